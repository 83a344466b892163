// A program that lives on without its daemon: outage SOCKET. It says "put", "alone" and "back", and waits for a line
// after each of the first two: meanwhile the daemon is killed, and another one started that has nothing.

#define _GNU_SOURCE
#include "check.h"

enum { BLOCKS = 4, FIRST = 1, ABSENT = 1000 };

static lapis_client_t *client;
static lapis_pool_t *pool, *objects;
static lapis_key_t keys[BLOCKS], absent[BLOCKS];
static unsigned char copy[BLOCKS * BLOCK_BYTES];
static uint32_t hit_bytes[BLOCKS];

static void say_and_wait(const char *word) {
    char line[16];
    puts(word);
    fflush(stdout);
    CHECK(fgets(line, sizeof(line), stdin) != NULL);
}

static size_t hits_of(const lapis_key_t *asked, uint32_t wait) {
    size_t hits;
    lapis_get_options_t options;
    LAPIS_INIT(options);
    options.wait = wait;
    options.deadline_us = 60000000;
    OK(lapis_get_into(pool, asked, BLOCKS, copy, sizeof(copy), &options, hit_bytes, &hits));
    return hits;
}

static size_t valid_of(const lapis_views_t *views) {
    size_t valid;
    OK(lapis_views_still_valid(views, NULL, &valid));
    return valid;
}

// Hits go on, all else is answered at once: with a miss, with a refusal, or with LAPIS_E_GONE.
static void alone(const char *socket) {
    struct timespec before, after;
    int32_t results[BLOCKS];
    void *places[BLOCKS];
    bool done;
    lapis_pool_t *no_pool;
    lapis_bytes_t *bytes;
    lapis_reservation_t *reservation;
    lapis_get_ticket_t *ticket;
    lapis_pool_shape_t shape = shape_of("another", LAPIS_POOL_CHAIN, 1);
    unsigned char *blocks = blocks_of(BLOCKS, FIRST);
    CHECK(hits_of(keys, LAPIS_WAIT_PRESENT) == BLOCKS && memcmp(copy, blocks, sizeof(copy)) == 0);

    clock_gettime(CLOCK_MONOTONIC, &before);
    CHECK(hits_of(absent, LAPIS_WAIT_ABSENT) == 0 && hit_bytes[0] == 0);
    OK(lapis_put_from(pool, absent, BLOCKS, NULL, blocks, sizeof(copy), NULL, results, NULL));
    CHECK(results[0] == LAPIS_REFUSED_GONE && lapis_result_is_transient(results[0]));
    OK(lapis_reserve(pool, absent, BLOCKS, NULL, NULL, results, places, &reservation));
    CHECK(results[3] == LAPIS_REFUSED_GONE && places[3] == NULL);
    OK(lapis_reservation_abort(reservation));
    OK(lapis_begin_get(pool, absent, BLOCKS, copy, sizeof(copy), NULL, &ticket));
    OK(lapis_get_ticket_poll(ticket, &done, hit_bytes, NULL));
    CHECK(done && hit_bytes[0] == 0);
    OK(lapis_get_ticket_free(ticket));
    OK(lapis_put_object(objects, "name", 4, "bytes", 5, NULL, results));
    CHECK(results[0] == LAPIS_REFUSED_GONE);
    OK(lapis_get_object(objects, "name", 4, LAPIS_DEADLINE_DEFAULT, &bytes));
    CHECK(bytes == NULL);
    FAILS(LAPIS_E_GONE, "the daemon is gone", lapis_prefetch(pool, keys, BLOCKS));
    FAILS(LAPIS_E_GONE, "the daemon is gone", lapis_hint(pool, keys, BLOCKS, LAPIS_HINT_ENDED, 0));
    FAILS(LAPIS_E_GONE, "the daemon is gone", lapis_remove(pool, keys, BLOCKS, 0, NULL));
    FAILS(LAPIS_E_GONE, "the daemon is gone", lapis_purge(pool, 0, NULL));
    FAILS(LAPIS_E_GONE, "the daemon is gone", lapis_pool_open(client, &shape, &no_pool));
    FAILS(LAPIS_E_ABSENT, socket, lapis_status(socket, 1000000, &bytes));
    clock_gettime(CLOCK_MONOTONIC, &after);
    // Far below the deadlines, on any machine.
    CHECK(after.tv_sec - before.tv_sec < 20);
    free(blocks);
}

int main(int argc, char **argv) {
    const void *pointers[BLOCKS];
    lapis_views_t *views;
    CHECK(argc == 2);
    client = connect_to(argv[1]);
    pool = chain_of(client);
    objects = pool_of(client, "objects", LAPIS_POOL_OBJECT, 0);
    number_keys(keys, BLOCKS, FIRST);
    number_keys(absent, BLOCKS, ABSENT);
    put_numbers(pool, BLOCKS, FIRST);
    OK(lapis_view(pool, keys, BLOCKS, LAPIS_VERIFY_DEFAULT, pointers, NULL, &views));
    say_and_wait("put");

    EVENTUALLY(!is_connected(client));
    alone(argv[1]);
    CHECK(valid_of(views) == BLOCKS);
    say_and_wait("alone");

    // The new daemon has nothing. The pool is open there all the same.
    EVENTUALLY(is_connected(client));
    CHECK(hits_of(keys, LAPIS_WAIT_PRESENT) == 0);
    EVENTUALLY(valid_of(views) == 0);
    unsigned char *blocks = blocks_of(BLOCKS, FIRST);
    CHECK(memcmp(pointers[3], blocks + 3 * BLOCK_BYTES, BLOCK_BYTES) == 0);
    free(blocks);
    put_numbers(pool, BLOCKS, FIRST);
    CHECK(hits_of(keys, LAPIS_WAIT_PRESENT) == BLOCKS);
    OK(lapis_views_release(views));
    OK(lapis_pool_close(objects));
    OK(lapis_pool_close(pool));
    OK(lapis_client_close(client));
    puts("back");
    return 0;
}
