// What the C programs of these tests share: checks that say where they failed, one pool, keys by number.

#ifndef CHECK_H
#define CHECK_H

#include <lapis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BLOCK_BYTES (64 * 1024)

// Ends the program unless `condition` holds.
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s; the last error: %s\n", __FILE__, __LINE__, #condition,               \
                    lapis_last_error());                                                                     \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

// The call succeeds.
#define OK(call) CHECK((call) == LAPIS_OK)

// The call fails with that code, and its text has those words.
#define FAILS(code, words, call)                                                                             \
    do {                                                                                                     \
        int answered = (call);                                                                               \
        if (answered != (code) || strstr(lapis_last_error(), (words)) == NULL) {                             \
            fprintf(stderr, "%s:%d: %s answered %d (%s), expected %d with \"%s\"\n", __FILE__, __LINE__,     \
                    #call, answered, lapis_last_error(), (code), (words));                                   \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

// Looks again and again until `condition` holds, for at most 30 s.
#define EVENTUALLY(condition)                                                                                \
    do {                                                                                                     \
        int looks = 0;                                                                                       \
        while (!(condition)) {                                                                               \
            struct timespec pause = {0, 1000000};                                                            \
            CHECK(looks++ < 30000);                                                                          \
            nanosleep(&pause, NULL);                                                                         \
        }                                                                                                    \
    } while (0)

static inline lapis_client_t *connect_to(const char *socket) {
    lapis_client_t *client;
    OK(lapis_connect(socket, NULL, &client));
    return client;
}

static inline int is_connected(const lapis_client_t *client) {
    bool connected;
    OK(lapis_client_is_connected(client, &connected));
    return connected;
}

static inline lapis_pool_shape_t shape_of(const char *label, uint32_t kind, uint32_t pieces) {
    lapis_namespace_t meaning;
    LAPIS_INIT(meaning);
    meaning.model = "c abi";
    meaning.dtype = "u8";
    lapis_pool_shape_t shape;
    LAPIS_INIT(shape);
    OK(lapis_fingerprint(&meaning, &shape.fingerprint));
    shape.label = label;
    shape.kind = kind;
    shape.block_bytes = kind == LAPIS_POOL_OBJECT ? 1 << 20 : BLOCK_BYTES;
    shape.pieces = pieces;
    return shape;
}

static inline lapis_pool_t *pool_of(const lapis_client_t *client, const char *label, uint32_t kind, uint32_t pieces) {
    lapis_pool_shape_t shape = shape_of(label, kind, pieces);
    lapis_pool_t *pool;
    int opened, tries = 0;
    // A daemon that gets no processor time is late, which passes.
    do {
        opened = lapis_pool_open(client, &shape, &pool);
    } while (opened == LAPIS_E_LATE && ++tries < 30);
    OK(opened);
    return pool;
}

// Options for puts that must succeed, on whatever machine.
static inline const lapis_put_options_t *patient(void) {
    static lapis_put_options_t options;
    LAPIS_INIT(options);
    options.deadline_us = 30000000;
    return &options;
}

static inline lapis_pool_t *chain_of(const lapis_client_t *client) {
    return pool_of(client, "kv", LAPIS_POOL_CHAIN, 0);
}

// Keys of consecutive numbers; each block's bytes follow from its number.
static inline void number_keys(lapis_key_t *keys, int count, int first) {
    for (int i = 0; i < count; i++) {
        char name[32];
        OK(lapis_key(name, (size_t)snprintf(name, sizeof(name), "block %d", first + i), &keys[i]));
    }
}

static inline unsigned char byte_of(int number, size_t at) {
    return (unsigned char)(number * 31 + (int)(at / 4096) * 7 + (int)(at % 251));
}

static inline void fill_block(unsigned char *block, int number) {
    for (size_t at = 0; at < BLOCK_BYTES; at++) {
        block[at] = byte_of(number, at);
    }
}

static inline unsigned char *blocks_of(int count, int first) {
    unsigned char *blocks = (unsigned char *)malloc((size_t)count * BLOCK_BYTES);
    CHECK(blocks != NULL);
    for (int i = 0; i < count; i++) {
        fill_block(blocks + (size_t)i * BLOCK_BYTES, first + i);
    }
    return blocks;
}

// Puts blocks of consecutive numbers, all of which are new.
static inline void put_numbers(const lapis_pool_t *pool, int count, int first) {
    lapis_key_t *keys = (lapis_key_t *)malloc((size_t)count * sizeof(lapis_key_t));
    int32_t *results = (int32_t *)malloc((size_t)count * sizeof(int32_t));
    CHECK(keys != NULL && results != NULL);
    unsigned char *blocks = blocks_of(count, first);
    size_t stored = 0;
    number_keys(keys, count, first);
    size_t bytes = (size_t)count * BLOCK_BYTES;
    OK(lapis_put_from(pool, keys, (size_t)count, NULL, blocks, bytes, patient(), results, &stored));
    for (int i = 0; i < count; i++) {
        CHECK(results[i] == LAPIS_STORED);
    }
    CHECK(stored == (size_t)count);
    free(blocks);
    free(results);
    free(keys);
}

#endif
