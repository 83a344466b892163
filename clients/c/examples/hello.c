// Connect, put, find, get, view, beside a running daemon:
//
//     cc hello.c $(pkg-config --cflags --libs lapis) -o hello && ./hello [SOCKET]
//
// C11 and C++17. clients/rust/examples/hello.rs is the same in Rust.

#include <lapis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 2, BLOCK_BYTES = 64 * 1024 };

static unsigned char blocks[BLOCKS * BLOCK_BYTES], copies[BLOCKS * BLOCK_BYTES];

static void check(int code, const char *what) {
    if (code != LAPIS_OK) {
        fprintf(stderr, "%s: %s\n", what, lapis_last_error());
        exit(1);
    }
}

static lapis_pool_t *open_pool(const lapis_client_t *client) {
    // Whatever changes the bytes of a block and not its key belongs here.
    lapis_namespace_t meaning;
    LAPIS_INIT(meaning);
    meaning.model = "hello";
    meaning.dtype = "u8";
    meaning.tokens_per_block = 16;

    lapis_pool_shape_t shape;
    LAPIS_INIT(shape);
    check(lapis_fingerprint(&meaning, &shape.fingerprint), "the namespace");
    shape.label = "kv";
    shape.kind = LAPIS_POOL_CHAIN;
    shape.block_bytes = BLOCK_BYTES;

    lapis_pool_t *pool;
    check(lapis_pool_open(client, &shape, &pool), "opening the pool");
    return pool;
}

int main(int argc, char **argv) {
    if (!LAPIS_ABI_FITS()) {
        fprintf(stderr, "liblapis %s is not the one of this program's header\n", lapis_version());
        return 1;
    }
    lapis_client_t *client;
    check(lapis_connect(argc > 1 ? argv[1] : "/run/lapis/lapis.sock", NULL, &client), "connecting");
    lapis_pool_t *pool = open_pool(client);

    lapis_key_t keys[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) {
        char name[32];
        int bytes = snprintf(name, sizeof(name), "block %d", i);
        check(lapis_key(name, (size_t)bytes, &keys[i]), "making a key");
        memset(blocks + i * BLOCK_BYTES, i + 1, BLOCK_BYTES);
    }

    int32_t results[BLOCKS];
    check(lapis_put_from(pool, keys, BLOCKS, NULL, blocks, sizeof(blocks), NULL, results, NULL), "putting");
    for (int i = 0; i < BLOCKS; i++) {
        printf("put: block %d: %s\n", i, lapis_result_text(results[i]));
    }

    lapis_ask_t ask;
    memset(&ask, 0, sizeof(ask));
    ask.pool = pool;
    ask.policy = LAPIS_HIT_PREFIX;
    size_t matched, hits;
    check(lapis_match_prefix(&ask, 1, keys, BLOCKS, &matched), "matching");
    printf("match_prefix: %zu of %d\n", matched, BLOCKS);

    uint32_t hit_bytes[BLOCKS];
    check(lapis_get_into(pool, keys, BLOCKS, copies, sizeof(copies), NULL, hit_bytes, &hits), "getting");
    printf("get_into: %zu hits, %s\n", hits,
           memcmp(blocks, copies, sizeof(blocks)) == 0 ? "the same bytes" : "not all the same bytes");

    const void *pointers[1];
    size_t lengths[1], valid;
    lapis_views_t *views;
    check(lapis_view(pool, keys, 1, LAPIS_VERIFY_DEFAULT, pointers, lengths, &views), "viewing");
    if (pointers[0] != NULL) {
        int first = *(const unsigned char *)pointers[0];
        check(lapis_views_still_valid(views, NULL, &valid), "looking again");
        printf("view: %zu bytes, the first is %d, %s\n", lengths[0], first, valid == 1 ? "still valid" : "gone");
    }

    check(lapis_views_release(views), "releasing");
    check(lapis_pool_close(pool), "closing the pool");
    check(lapis_client_close(client), "closing");
    return 0;
}
