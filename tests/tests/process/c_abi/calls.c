// Every call, used as its comment in the header says: calls SOCKET.

#define _GNU_SOURCE
#include "check.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 4, BATCH_BYTES = BLOCKS * BLOCK_BYTES };

static void copies(const lapis_pool_t *pool) {
    lapis_key_t keys[BLOCKS + 1];
    int32_t results[BLOCKS];
    uint32_t hit_bytes[BLOCKS + 1];
    size_t stored, hits;
    unsigned char *blocks = blocks_of(BLOCKS, 100), *copy = (unsigned char *)calloc(BLOCKS + 1, BLOCK_BYTES);
    CHECK(copy != NULL);
    number_keys(keys, BLOCKS + 1, 100);

    OK(lapis_put_from(pool, keys, BLOCKS, NULL, blocks, BATCH_BYTES, patient(), results, &stored));
    CHECK(stored == BLOCKS && results[0] == LAPIS_STORED && results[3] == LAPIS_STORED);
    OK(lapis_put_from(pool, keys, BLOCKS, NULL, blocks, BATCH_BYTES, patient(), results, &stored));
    CHECK(stored == 0 && results[0] == LAPIS_EXISTS && results[3] == LAPIS_EXISTS);

    lapis_get_options_t options;
    LAPIS_INIT(options);
    options.verify = LAPIS_VERIFY_ALWAYS;
    options.deadline_us = LAPIS_DEADLINE_NOW;
    OK(lapis_get_into(pool, keys, BLOCKS + 1, copy, BATCH_BYTES + BLOCK_BYTES, &options, hit_bytes, &hits));
    CHECK(hits == BLOCKS && memcmp(copy, blocks, BATCH_BYTES) == 0);
    CHECK(hit_bytes[0] == BLOCK_BYTES && hit_bytes[3] == BLOCK_BYTES && hit_bytes[4] == 0);
    // The last two answers are left out by whoever does not want them.
    OK(lapis_get_into(pool, keys, BLOCKS, copy, BATCH_BYTES, NULL, hit_bytes, NULL));
    free(blocks);
    free(copy);
}

// Two vectors a block, the second one's bytes before the first one's.
static void halves(struct iovec *vectors, unsigned char *memory) {
    for (int i = 0; i < BLOCKS; i++) {
        vectors[2 * i].iov_base = memory + i * BLOCK_BYTES + 4096;
        vectors[2 * i].iov_len = BLOCK_BYTES - 4096;
        vectors[2 * i + 1].iov_base = memory + i * BLOCK_BYTES;
        vectors[2 * i + 1].iov_len = 4096;
    }
}

static void vectors(const lapis_pool_t *pool) {
    lapis_key_t keys[BLOCKS], parent;
    struct iovec vectors[2 * BLOCKS];
    int32_t results[BLOCKS];
    uint32_t hit_bytes[BLOCKS];
    size_t hits, stored;
    unsigned char *blocks = blocks_of(BLOCKS, 200), *copy = (unsigned char *)calloc(BLOCKS, BLOCK_BYTES);
    CHECK(copy != NULL);
    number_keys(keys, BLOCKS, 200);
    number_keys(&parent, 1, 103);
    halves(vectors, blocks);
    OK(lapis_put_from_vectors(pool, keys, BLOCKS, &parent, vectors, 2 * BLOCKS, patient(), results, &stored));
    CHECK(stored == BLOCKS);

    // Whole blocks have the bytes in the order of the vectors.
    OK(lapis_get_into(pool, keys, BLOCKS, copy, BATCH_BYTES, NULL, hit_bytes, &hits));
    CHECK(hits == BLOCKS && memcmp(copy, blocks + 4096, BLOCK_BYTES - 4096) == 0);
    CHECK(memcmp(copy + BLOCK_BYTES - 4096, blocks, 4096) == 0);
    memset(copy, 0, BATCH_BYTES);
    halves(vectors, copy);
    OK(lapis_get_into_vectors(pool, keys, BLOCKS, vectors, 2 * BLOCKS, NULL, hit_bytes, &hits));
    CHECK(hits == BLOCKS && memcmp(copy, blocks, BATCH_BYTES) == 0);

    number_keys(&parent, 1, 999);
    number_keys(keys, 1, 299);
    OK(lapis_put_from(pool, keys, 1, &parent, blocks, BLOCK_BYTES, patient(), results, &stored));
    CHECK(stored == 0 && results[0] == LAPIS_REFUSED_NO_PARENT && !lapis_result_is_transient(results[0]));
    CHECK(strcmp(lapis_result_text(results[0]), "the parent block is not stored") == 0);
    free(blocks);
    free(copy);
}

static void pieces(const lapis_client_t *client) {
    lapis_pool_t *pool = pool_of(client, "pieces", LAPIS_POOL_CHAIN, 4);
    lapis_key_t keys[2];
    uint32_t hit_bytes[2];
    size_t hits;
    unsigned char part[BLOCK_BYTES], *blocks = blocks_of(2, 300);
    number_keys(keys, 2, 300);
    put_numbers(pool, 2, 300);
    lapis_get_options_t options;
    LAPIS_INIT(options);
    options.pieces_first = 1;
    options.pieces_end = 3;
    OK(lapis_get_into(pool, keys, 2, part, sizeof(part), &options, hit_bytes, &hits));
    CHECK(hits == 2 && hit_bytes[0] == BLOCK_BYTES / 2);
    CHECK(memcmp(part, blocks + BLOCK_BYTES / 4, BLOCK_BYTES / 2) == 0);
    CHECK(memcmp(part + BLOCK_BYTES / 2, blocks + BLOCK_BYTES + BLOCK_BYTES / 4, BLOCK_BYTES / 2) == 0);
    free(blocks);
    OK(lapis_pool_close(pool));
}

static void look_ups(const lapis_client_t *client, const lapis_pool_t *pool) {
    enum { KEYS = 70 };
    lapis_key_t keys[KEYS];
    uint64_t present[2];
    size_t found, matched;
    number_keys(keys, KEYS, 400);
    put_numbers(pool, 66, 400);
    OK(lapis_exists(pool, keys, KEYS, present, &found));
    CHECK(found == 66 && present[0] == UINT64_MAX && present[1] == 3);
    OK(lapis_exists(pool, keys + 66, 1, NULL, &found));
    CHECK(found == 0);

    // Another pool has the keys 430 and 431: a window of two.
    lapis_pool_t *window = pool_of(client, "window", LAPIS_POOL_CHAIN, 1);
    put_numbers(window, 2, 430);
    lapis_ask_t asks[2] = {{pool, LAPIS_HIT_PREFIX, 0}, {window, LAPIS_HIT_TRAILING, 2}};
    OK(lapis_match_prefix(asks, 1, keys, KEYS, &matched));
    CHECK(matched == 66);
    // Nobody else is there to have more.
    OK(lapis_fetch_prefix(asks, 1, keys, KEYS, LAPIS_DEADLINE_DEFAULT, &matched));
    uint64_t there;
    FAILS(LAPIS_E_REFUSED, "nobody", lapis_offer(pool, keys, KEYS, "nobody", LAPIS_DEADLINE_DEFAULT, &there));
    CHECK(matched == 66);
    OK(lapis_match_prefix(asks, 2, keys, KEYS, &matched));
    CHECK(matched == 32);
    asks[1].policy = LAPIS_HIT_ANY;
    asks[1].trailing = 0;
    OK(lapis_match_prefix(asks + 1, 1, keys, KEYS, &matched));
    CHECK(matched == 2);
    OK(lapis_pool_close(window));
}

static void views(const lapis_pool_t *pool) {
    lapis_key_t keys[3];
    const void *pointers[3];
    size_t lengths[3], valid_count;
    bool valid[3];
    unsigned char some[100];
    unsigned char *blocks = blocks_of(2, 500);
    lapis_views_t *views;
    number_keys(keys, 3, 500);
    put_numbers(pool, 2, 500);
    OK(lapis_view(pool, keys, 3, LAPIS_VERIFY_ALWAYS, pointers, lengths, &views));
    CHECK(lengths[0] == BLOCK_BYTES && lengths[1] == BLOCK_BYTES && lengths[2] == 0 && pointers[2] == NULL);
    CHECK(memcmp(pointers[0], blocks, BLOCK_BYTES) == 0 && memcmp(pointers[1], blocks + BLOCK_BYTES, BLOCK_BYTES) == 0);
    OK(lapis_views_copy(views, 1, BLOCK_BYTES - 100, some, 100));
    CHECK(memcmp(some, blocks + 2 * BLOCK_BYTES - 100, 100) == 0);
    OK(lapis_views_still_valid(views, valid, &valid_count));
    CHECK(valid[0] && valid[1] && !valid[2] && valid_count == 2);
    OK(lapis_views_release_one(views, 0));
    OK(lapis_views_still_valid(views, valid, NULL));
    CHECK(!valid[0] && valid[1]);
    OK(lapis_views_release(views));
    free(blocks);
}

static void expect_blocks(const lapis_pool_t *pool, int count, int first) {
    lapis_key_t keys[8];
    uint32_t hit_bytes[8];
    size_t hits;
    unsigned char copy[BLOCK_BYTES], block[BLOCK_BYTES];
    number_keys(keys, count, first);
    for (int i = 0; i < count; i++) {
        OK(lapis_get_into(pool, &keys[i], 1, copy, BLOCK_BYTES, NULL, hit_bytes, &hits));
        fill_block(block, first + i);
        CHECK(hits == 1 && memcmp(copy, block, BLOCK_BYTES) == 0);
    }
}

static void reservations(const lapis_pool_t *pool) {
    lapis_key_t keys[3];
    int32_t results[3];
    void *places[3];
    uint64_t sums[2];
    size_t stored, found;
    lapis_reservation_t *reservation;
    number_keys(keys, 3, 600);
    put_numbers(pool, 1, 600);

    // Filled by own stores and by a call; one key is there.
    OK(lapis_reserve(pool, keys, 3, NULL, patient(), results, places, &reservation));
    CHECK(results[0] == LAPIS_EXISTS && places[0] == NULL);
    CHECK(results[1] == LAPIS_RESERVED && results[2] == LAPIS_RESERVED);
    fill_block((unsigned char *)places[1], 601);
    unsigned char block[BLOCK_BYTES];
    fill_block(block, 602);
    OK(lapis_reservation_write(reservation, 2, 0, block, 1000));
    OK(lapis_reservation_write(reservation, 2, 1000, block + 1000, BLOCK_BYTES - 1000));
    OK(lapis_reservation_commit(reservation, NULL, patient(), results, &stored));
    CHECK(stored == 2 && results[0] == LAPIS_EXISTS && results[2] == LAPIS_STORED);
    OK(lapis_reservation_abort(reservation));
    expect_blocks(pool, 3, 600);

    // With sums of the caller.
    number_keys(keys, 2, 610);
    OK(lapis_reserve(pool, keys, 2, NULL, patient(), results, places, &reservation));
    for (int i = 0; i < 2; i++) {
        fill_block(block, 610 + i);
        memcpy(places[i], block, BLOCK_BYTES);
        OK(lapis_sum(pool, &keys[i], block, BLOCK_BYTES, &sums[i]));
    }
    OK(lapis_reservation_commit(reservation, sums, patient(), results, &stored));
    CHECK(stored == 2);
    OK(lapis_reservation_abort(reservation));
    expect_blocks(pool, 2, 610);

    // Given back.
    number_keys(keys, 1, 620);
    OK(lapis_reserve(pool, keys, 1, NULL, patient(), results, places, &reservation));
    OK(lapis_reservation_abort(reservation));
    OK(lapis_exists(pool, keys, 1, NULL, &found));
    CHECK(found == 0);
}

// A get waits for blocks that a put brings later; both are polled when the client's descriptor says so.
static void tickets(const lapis_client_t *client, const lapis_pool_t *pool, bool by_vectors) {
    int first = by_vectors ? 710 : 700, fd;
    lapis_key_t keys[BLOCKS];
    struct iovec from[2 * BLOCKS], to[2 * BLOCKS];
    uint32_t hit_bytes[BLOCKS];
    int32_t results[BLOCKS];
    size_t hits = 0, stored = 0;
    uint64_t left_us;
    bool got = false, put = false;
    lapis_get_ticket_t *get_ticket;
    lapis_put_ticket_t *put_ticket = NULL;
    unsigned char *blocks = blocks_of(BLOCKS, first), *copy = (unsigned char *)calloc(BLOCKS, BLOCK_BYTES);
    CHECK(copy != NULL);
    lapis_get_options_t options;
    LAPIS_INIT(options);
    options.wait = LAPIS_WAIT_ABSENT;
    options.deadline_us = 30000000;
    number_keys(keys, BLOCKS, first);
    halves(from, blocks);
    halves(to, copy);
    if (by_vectors) {
        OK(lapis_begin_get_vectors(pool, keys, BLOCKS, to, 2 * BLOCKS, &options, &get_ticket));
        OK(lapis_begin_put_vectors(pool, keys, BLOCKS, NULL, from, 2 * BLOCKS, patient(), &put_ticket));
    } else {
        OK(lapis_begin_get(pool, keys, BLOCKS, copy, BATCH_BYTES, &options, &get_ticket));
        OK(lapis_begin_put(pool, keys, BLOCKS, NULL, blocks, BATCH_BYTES, patient(), &put_ticket));
    }
    // Of no more use to the tickets.
    memset(keys, 0, sizeof(keys));
    memset(to, 0, sizeof(to));
    memset(from, 0, sizeof(from));

    OK(lapis_client_fd(client, &fd));
    OK(lapis_get_ticket_poll(get_ticket, &got, hit_bytes, &hits));
    CHECK(!got);
    OK(lapis_get_ticket_left_us(get_ticket, &left_us));
    CHECK(left_us > 0 && left_us <= 30000000);
    while (!got || !put) {
        OK(lapis_client_acknowledge(client));
        if (!put) {
            OK(lapis_put_ticket_poll(put_ticket, &put, results, &stored));
        }
        if (!got) {
            OK(lapis_get_ticket_poll(get_ticket, &got, hit_bytes, &hits));
        }
        struct pollfd readable = {fd, POLLIN, 0};
        if (!got || !put) {
            CHECK(poll(&readable, 1, 10000) == 1);
        }
    }
    CHECK(stored == BLOCKS && hits == BLOCKS && memcmp(copy, blocks, BATCH_BYTES) == 0);
    OK(lapis_get_ticket_left_us(get_ticket, &left_us));
    CHECK(left_us == 0);
    OK(lapis_put_ticket_left_us(put_ticket, &left_us));
    CHECK(left_us == 0);
    OK(lapis_get_ticket_free(get_ticket));
    OK(lapis_put_ticket_free(put_ticket));
    free(blocks);
    free(copy);
}

static void objects(const lapis_client_t *client) {
    lapis_pool_t *pool = pool_of(client, "objects", LAPIS_POOL_OBJECT, 0);
    const char name[] = "an object\0with any name";
    lapis_bytes_t *object;
    lapis_key_t key;
    size_t found;
    int32_t result;
    bool removed;
    unsigned char *blocks = blocks_of(17, 0);
    OK(lapis_put_object(pool, name, sizeof(name), "some bytes", 10, patient(), &result));
    CHECK(result == LAPIS_STORED);
    OK(lapis_put_object(pool, name, sizeof(name), "some bytes", 10, patient(), &result));
    CHECK(result == LAPIS_EXISTS);
    OK(lapis_get_object(pool, name, sizeof(name), 30000000, &object));
    CHECK(lapis_bytes_count(object) == 10 && memcmp(lapis_bytes_data(object), "some bytes", 10) == 0);
    OK(lapis_bytes_free(object));
    OK(lapis_key(name, sizeof(name), &key));
    OK(lapis_exists(pool, &key, 1, NULL, &found));
    CHECK(found == 1);
    OK(lapis_remove_object(pool, name, sizeof(name), 30000000, &removed));
    CHECK(removed);
    OK(lapis_get_object(pool, name, sizeof(name), 30000000, &object));
    CHECK(object == NULL && lapis_bytes_data(object) == NULL && lapis_bytes_count(object) == 0);

    OK(lapis_put_object(pool, "empty", 5, NULL, 0, patient(), &result));
    CHECK(result == LAPIS_STORED);
    OK(lapis_get_object(pool, "empty", 5, 1000000, &object));
    CHECK(object != NULL && lapis_bytes_count(object) == 0);
    OK(lapis_bytes_free(object));
    OK(lapis_put_object(pool, "too large", 9, blocks, 17 * BLOCK_BYTES, patient(), &result));
    CHECK(result == LAPIS_REFUSED_TOO_LARGE);
    free(blocks);
    OK(lapis_pool_close(pool));
}

static void forgetting(const lapis_client_t *client) {
    lapis_pool_t *pool = pool_of(client, "forgotten", LAPIS_POOL_CHAIN, 1);
    lapis_key_t keys[4];
    uint64_t removed;
    size_t found;
    number_keys(keys, 4, 800);
    put_numbers(pool, 4, 800);
    OK(lapis_prefetch(pool, keys, 4));
    OK(lapis_hint(pool, keys, 4, LAPIS_HINT_ENDED, 0));
    OK(lapis_hint(pool, keys, 4, LAPIS_HINT_WILL_RETURN, 0));
    OK(lapis_hint(pool, keys, 4, LAPIS_HINT_PINNED, 60000));
    OK(lapis_hint(pool, keys, 4, LAPIS_HINT_PRIORITY, 255));
    // The last block: those before it keep theirs.
    OK(lapis_remove(pool, keys + 3, 1, 30000000, &removed));
    CHECK(removed == 1);
    OK(lapis_purge(pool, 20000000, &removed));
    CHECK(removed == 3);
    OK(lapis_exists(pool, keys, 4, NULL, &found));
    CHECK(found == 0);
    OK(lapis_pool_close(pool));
}

static void about(const char *socket) {
    lapis_client_t *client;
    lapis_connect_options_t options;
    LAPIS_INIT(options);
    options.name = "reader of c abi";
    options.flags = LAPIS_CONNECT_READ_ONLY | LAPIS_CONNECT_NO_POPULATE | LAPIS_CONNECT_WRITES_BY_DMA;
    options.verify = LAPIS_VERIFY_ALWAYS;
    OK(lapis_connect(socket, &options, &client));
    lapis_pool_t *pool = chain_of(client);
    expect_blocks(pool, 2, 100);
    lapis_key_t key;
    int32_t result;
    uint32_t warning;
    unsigned char block[BLOCK_BYTES];
    fill_block(block, 900);
    number_keys(&key, 1, 900);
    OK(lapis_put_from(pool, &key, 1, NULL, block, BLOCK_BYTES, NULL, &result, NULL));
    CHECK(result == LAPIS_REFUSED_READ_ONLY);

    lapis_stats_t stats;
    LAPIS_INIT(stats);
    OK(lapis_client_stats(client, &stats));
    CHECK(stats.size == sizeof(stats) && stats.blocks_asked == 2 && stats.blocks_hit == 2);
    CHECK(stats.bytes_hit == 2 * BLOCK_BYTES && stats.blocks_stored == 0 && stats.blocks_corrupt == 0);
    OK(lapis_client_warning(client, &warning));
    CHECK(warning == LAPIS_WARNING_NONE && is_connected(client));

    lapis_bytes_t *json;
    OK(lapis_status(socket, 10000000, &json));
    const char *text = (const char *)lapis_bytes_data(json);
    CHECK(strlen(text) == lapis_bytes_count(json) && strstr(text, "\"reader of c abi\"") != NULL);
    OK(lapis_bytes_free(json));
    OK(lapis_pool_close(pool));
    OK(lapis_client_close(client));
}

// What a child frees stays with the parent; the child itself connects anew.
static void in_a_child(const char *socket, lapis_client_t *client, lapis_pool_t *pool) {
    lapis_key_t seen, reserved, awaited;
    const void *pointer;
    void *place;
    int32_t result;
    uint32_t hit_bytes;
    size_t found, stored;
    bool done;
    unsigned char copy[BLOCK_BYTES];
    lapis_views_t *views, *no_views;
    lapis_reservation_t *reservation;
    lapis_get_ticket_t *ticket;
    lapis_get_options_t options;
    LAPIS_INIT(options);
    options.wait = LAPIS_WAIT_ABSENT;
    options.deadline_us = 30000000;
    number_keys(&seen, 1, 100);
    number_keys(&reserved, 1, 950);
    number_keys(&awaited, 1, 951);
    OK(lapis_view(pool, &seen, 1, LAPIS_VERIFY_DEFAULT, &pointer, NULL, &views));
    OK(lapis_reserve(pool, &reserved, 1, NULL, patient(), &result, &place, &reservation));
    OK(lapis_begin_get(pool, &awaited, 1, copy, sizeof(copy), &options, &ticket));
    OK(lapis_get_ticket_poll(ticket, &done, &hit_bytes, NULL));
    CHECK(result == LAPIS_RESERVED && !done);

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        FAILS(LAPIS_E_CLOSED, "forked", lapis_exists(pool, &seen, 1, NULL, &found));
        FAILS(LAPIS_E_CLOSED, "forked", lapis_view(pool, &seen, 1, LAPIS_VERIFY_DEFAULT, &pointer, NULL, &no_views));
        FAILS(LAPIS_E_CLOSED, "forked", lapis_get_ticket_poll(ticket, &done, &hit_bytes, NULL));
        FAILS(LAPIS_E_CLOSED, "forked", lapis_reservation_commit(reservation, NULL, NULL, &result, NULL));
        CHECK(!is_connected(client));
        OK(lapis_get_ticket_free(ticket));
        OK(lapis_reservation_abort(reservation));
        OK(lapis_views_release(views));
        OK(lapis_pool_close(pool));
        OK(lapis_client_close(client));
        client = connect_to(socket);
        pool = chain_of(client);
        expect_blocks(pool, 2, 100);
        put_numbers(pool, 1, 951);
        OK(lapis_pool_close(pool));
        OK(lapis_client_close(client));
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    OK(lapis_views_still_valid(views, NULL, &found));
    CHECK(found == 1);
    OK(lapis_views_release(views));
    fill_block((unsigned char *)place, 950);
    OK(lapis_reservation_commit(reservation, NULL, patient(), &result, &stored));
    CHECK(stored == 1);
    OK(lapis_reservation_abort(reservation));
    EVENTUALLY((lapis_get_ticket_poll(ticket, &done, &hit_bytes, NULL), done));
    CHECK(hit_bytes == BLOCK_BYTES && copy[77] == byte_of(951, 77));
    OK(lapis_get_ticket_free(ticket));
    expect_blocks(pool, 2, 950);
}

int main(int argc, char **argv) {
    CHECK(argc == 2 && LAPIS_ABI_FITS() && lapis_abi_version() == LAPIS_ABI_VERSION);
    CHECK(strcmp(lapis_last_error(), "") == 0);
    lapis_client_t *client = connect_to(argv[1]);
    lapis_pool_t *pool = chain_of(client);
    copies(pool);
    vectors(pool);
    pieces(client);
    look_ups(client, pool);
    views(pool);
    reservations(pool);
    tickets(client, pool, false);
    tickets(client, pool, true);
    objects(client);
    forgetting(client);
    about(argv[1]);
    in_a_child(argv[1], client, pool);
    OK(lapis_pool_close(pool));
    OK(lapis_client_close(client));
    puts("all calls");
    return 0;
}
