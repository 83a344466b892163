// Mistakes in calls: each is answered with its code and a text that names what is wrong: mistakes SOCKET.

#include "check.h"

enum { BLOCKS = 2 };

// What most calls below get right.
static lapis_client_t *client;
static lapis_pool_t *pool, *object_pool;
static lapis_key_t keys[BLOCKS];
static unsigned char blocks[BLOCKS * BLOCK_BYTES];
static uint32_t hit_bytes[BLOCKS];
static int32_t results[BLOCKS];
static size_t found;

static void connecting(const char *socket) {
    lapis_client_t *none = client;
    FAILS(LAPIS_E_ARGUMENT, "path is null", lapis_connect(NULL, NULL, &none));
    CHECK(none == NULL);
    FAILS(LAPIS_E_ARGUMENT, "client is null", lapis_connect(socket, NULL, NULL));
    FAILS(LAPIS_E_ARGUMENT, "path is not UTF-8", lapis_connect("\xff", NULL, &none));
    FAILS(LAPIS_E_ABSENT, "/nowhere/lapis.sock", lapis_connect("/nowhere/lapis.sock", NULL, &none));
    CHECK(lapis_code_is_transient(LAPIS_E_ABSENT) && !lapis_code_is_transient(LAPIS_E_ARGUMENT));

    lapis_connect_options_t options;
    memset(&options, 0, sizeof(options));
    FAILS(LAPIS_E_SIZE, "options.size is 0", lapis_connect(socket, &options, &none));
    LAPIS_INIT(options);
    options.flags = 16;
    FAILS(LAPIS_E_ARGUMENT, "options.flags is 16", lapis_connect(socket, &options, &none));
    LAPIS_INIT(options);
    options.verify = 3;
    FAILS(LAPIS_E_ARGUMENT, "options.verify is 3", lapis_connect(socket, &options, &none));
    LAPIS_INIT(options);
    options.name = "\xff";
    FAILS(LAPIS_E_ARGUMENT, "options.name is not UTF-8", lapis_connect(socket, &options, &none));

    // A program of a later release: what it leaves at zero does no harm, what it sets would be lost.
    struct {
        lapis_connect_options_t known;
        uint64_t added;
    } later;
    memset(&later, 0, sizeof(later));
    later.known.size = sizeof(later);
    later.added = 1;
    FAILS(LAPIS_E_SIZE, "it is older than the program", lapis_connect(socket, &later.known, &none));
    later.added = 0;
    OK(lapis_connect(socket, &later.known, &none));
    OK(lapis_client_close(none));
}

static void asking_the_client(const char *socket) {
    bool connected;
    int fd;
    uint32_t warning;
    lapis_bytes_t *json;
    lapis_stats_t stats;
    memset(&stats, 0, sizeof(stats));
    FAILS(LAPIS_E_ARGUMENT, "client is null", lapis_client_is_connected(NULL, &connected));
    FAILS(LAPIS_E_ARGUMENT, "connected is null", lapis_client_is_connected(client, NULL));
    FAILS(LAPIS_E_ARGUMENT, "client is null", lapis_client_fd(NULL, &fd));
    FAILS(LAPIS_E_ARGUMENT, "client is null", lapis_client_acknowledge(NULL));
    FAILS(LAPIS_E_ARGUMENT, "client is null", lapis_client_warning(NULL, &warning));
    FAILS(LAPIS_E_SIZE, "stats.size is 0", lapis_client_stats(client, &stats));
    FAILS(LAPIS_E_ARGUMENT, "stats is null", lapis_client_stats(client, NULL));
    FAILS(LAPIS_E_ARGUMENT, "deadline_us is 0", lapis_status(socket, 0, &json));
    FAILS(LAPIS_E_ABSENT, "/nowhere", lapis_status("/nowhere", 1000, &json));
    CHECK(json == NULL);
}

static void naming(void) {
    lapis_key_t key;
    lapis_fingerprint_t fingerprint;
    lapis_namespace_t meaning;
    lapis_extra_t extra = {"lora", NULL};
    FAILS(LAPIS_E_ARGUMENT, "bytes is null", lapis_key(NULL, 8, &key));
    FAILS(LAPIS_E_ARGUMENT, "bytes_count is 0", lapis_key("", 0, &key));
    FAILS(LAPIS_E_ARGUMENT, "key is null", lapis_key("k", 1, NULL));
    FAILS(LAPIS_E_ARGUMENT, "namespace is null", lapis_fingerprint(NULL, &fingerprint));
    memset(&meaning, 0, sizeof(meaning));
    FAILS(LAPIS_E_SIZE, "namespace.size is 0", lapis_fingerprint(&meaning, &fingerprint));
    LAPIS_INIT(meaning);
    meaning.salt = "\xc3(";
    FAILS(LAPIS_E_ARGUMENT, "namespace.salt is not UTF-8", lapis_fingerprint(&meaning, &fingerprint));
    LAPIS_INIT(meaning);
    meaning.tokens_per_block = (uint64_t)1 << 32;
    FAILS(LAPIS_E_ARGUMENT, "namespace.tokens_per_block is 4294967296", lapis_fingerprint(&meaning, &fingerprint));
    LAPIS_INIT(meaning);
    meaning.extras_count = 1;
    FAILS(LAPIS_E_ARGUMENT, "namespace.extras is null", lapis_fingerprint(&meaning, &fingerprint));
    meaning.extras = &extra;
    FAILS(LAPIS_E_ARGUMENT, "namespace.extras.value is null", lapis_fingerprint(&meaning, &fingerprint));
}

static void opening_pools(void) {
    lapis_pool_t *none = pool;
    lapis_pool_shape_t shape = shape_of("kv", LAPIS_POOL_CHAIN, 1);
    FAILS(LAPIS_E_ARGUMENT, "client is null", lapis_pool_open(NULL, &shape, &none));
    CHECK(none == NULL);
    FAILS(LAPIS_E_ARGUMENT, "shape is null", lapis_pool_open(client, NULL, &none));
    FAILS(LAPIS_E_ARGUMENT, "pool is null", lapis_pool_open(client, &shape, NULL));
    shape = shape_of(NULL, LAPIS_POOL_CHAIN, 1);
    FAILS(LAPIS_E_ARGUMENT, "shape.label is null", lapis_pool_open(client, &shape, &none));
    shape = shape_of("a label of more than forty-eight bytes, which is the most", LAPIS_POOL_CHAIN, 1);
    FAILS(LAPIS_E_NAME, "label", lapis_pool_open(client, &shape, &none));
    shape = shape_of("kv", 2, 1);
    FAILS(LAPIS_E_ARGUMENT, "shape.kind is 2", lapis_pool_open(client, &shape, &none));
    shape = shape_of("kv", LAPIS_POOL_CHAIN, 65536);
    FAILS(LAPIS_E_ARGUMENT, "shape.pieces is 65536", lapis_pool_open(client, &shape, &none));
    shape = shape_of("kv", LAPIS_POOL_CHAIN, 3);
    FAILS(LAPIS_E_REFUSED, "the daemon refused", lapis_pool_open(client, &shape, &none));
    shape = shape_of("kv", LAPIS_POOL_CHAIN, 1);
    shape.size = 8;
    FAILS(LAPIS_E_SIZE, "shape.size is 8", lapis_pool_open(client, &shape, &none));
}

static void looking_up(const char *socket) {
    lapis_client_t *other_client = connect_to(socket);
    lapis_pool_t *other = chain_of(other_client);
    lapis_ask_t asks[2] = {{pool, LAPIS_HIT_PREFIX, 0}, {other, LAPIS_HIT_PREFIX, 0}};
    FAILS(LAPIS_E_ARGUMENT, "pool is null", lapis_exists(NULL, keys, 1, NULL, &found));
    FAILS(LAPIS_E_ARGUMENT, "keys is null", lapis_exists(pool, NULL, 1, NULL, &found));
    FAILS(LAPIS_E_KEYS, "0 keys in one call, expected 1 to 8192", lapis_exists(pool, keys, 0, NULL, &found));
    FAILS(LAPIS_E_KEYS, "8193 keys", lapis_exists(pool, keys, LAPIS_KEYS_MAX + 1, NULL, &found));
    FAILS(LAPIS_E_ARGUMENT, "asks is null", lapis_match_prefix(NULL, 1, keys, 1, &found));
    FAILS(LAPIS_E_ARGUMENT, "asks_count is 0", lapis_match_prefix(asks, 0, keys, 1, &found));
    FAILS(LAPIS_E_ARGUMENT, "asks[1]", lapis_match_prefix(asks, 2, keys, 1, &found));
    FAILS(LAPIS_E_ARGUMENT, "matched is null", lapis_match_prefix(asks, 1, keys, 1, NULL));
    asks[0].trailing = 2;
    FAILS(LAPIS_E_ARGUMENT, "asks.trailing is 2", lapis_match_prefix(asks, 1, keys, 1, &found));
    asks[0].policy = 3;
    FAILS(LAPIS_E_ARGUMENT, "asks.policy is 3", lapis_match_prefix(asks, 1, keys, 1, &found));
    asks[0].pool = NULL;
    FAILS(LAPIS_E_ARGUMENT, "asks.pool[0] is null", lapis_match_prefix(asks, 1, keys, 1, &found));
    OK(lapis_pool_close(other));
    OK(lapis_client_close(other_client));
}

static int get_with(uint32_t wait, uint32_t verify, int64_t deadline_us, uint32_t first, uint32_t end) {
    lapis_get_options_t options;
    LAPIS_INIT(options);
    options.wait = wait;
    options.verify = verify;
    options.deadline_us = deadline_us;
    options.pieces_first = first;
    options.pieces_end = end;
    return lapis_get_into(pool, keys, BLOCKS, blocks, sizeof(blocks), &options, hit_bytes, NULL);
}

static void getting(void) {
    struct iovec vectors[3] = {{blocks, BLOCK_BYTES}, {NULL, BLOCK_BYTES}, {blocks, BLOCK_BYTES + 1}};
    lapis_get_ticket_t *ticket;
    const size_t all = sizeof(blocks);
    FAILS(LAPIS_E_ARGUMENT, "dst is null", lapis_get_into(pool, keys, 2, NULL, all, NULL, hit_bytes, NULL));
    FAILS(LAPIS_E_ARGUMENT, "hit_bytes is null", lapis_get_into(pool, keys, 2, blocks, all, NULL, NULL, NULL));
    FAILS(LAPIS_E_BUFFER, "expected 131072", lapis_get_into(pool, keys, 2, blocks, all - 1, NULL, hit_bytes, NULL));
    FAILS(LAPIS_E_KIND, "is no chain pool", lapis_get_into(object_pool, keys, 2, blocks, all, NULL, hit_bytes, NULL));
    FAILS(LAPIS_E_ARGUMENT, "options.wait is 3", get_with(3, 0, 0, 0, 0));
    FAILS(LAPIS_E_ARGUMENT, "options.verify is 7", get_with(0, 7, 0, 0, 0));
    FAILS(LAPIS_E_ARGUMENT, "options.deadline_us is", get_with(0, 0, -2, 0, 0));
    FAILS(LAPIS_E_RANGE, "pieces 1 to 2 of a block that has 1", get_with(0, 0, 0, 1, 2));
    FAILS(LAPIS_E_ARGUMENT, "options.pieces_end is 65536", get_with(0, 0, 0, 0, 65536));
    FAILS(LAPIS_E_ARGUMENT, "vectors is null", lapis_get_into_vectors(pool, keys, 2, NULL, 2, NULL, hit_bytes, NULL));
    FAILS(LAPIS_E_ARGUMENT, "vectors[1] is null",
          lapis_get_into_vectors(pool, keys, 2, vectors, 2, NULL, hit_bytes, NULL));
    FAILS(LAPIS_E_BUFFER, "0 vectors", lapis_get_into_vectors(pool, keys, 1, vectors, 0, NULL, hit_bytes, NULL));
    FAILS(LAPIS_E_BUFFER, "65537", lapis_get_into_vectors(pool, keys, 1, vectors + 2, 1, NULL, hit_bytes, NULL));
    vectors[1].iov_base = blocks + BLOCK_BYTES;
    vectors[2].iov_len = BLOCK_BYTES;
    FAILS(LAPIS_E_BUFFER, "3 vectors", lapis_get_into_vectors(pool, keys, 2, vectors, 3, NULL, hit_bytes, NULL));
    FAILS(LAPIS_E_ARGUMENT, "ticket is null", lapis_begin_get(pool, keys, 2, blocks, all, NULL, NULL));
    FAILS(LAPIS_E_BUFFER, "expected 131072", lapis_begin_get(pool, keys, 2, blocks, 1, NULL, &ticket));
    CHECK(ticket == NULL);
}

static void putting(void) {
    lapis_put_options_t options;
    memset(&options, 0xff, sizeof(options));
    const size_t all = sizeof(blocks);
    FAILS(LAPIS_E_ARGUMENT, "src is null", lapis_put_from(pool, keys, 2, NULL, NULL, all, NULL, results, NULL));
    FAILS(LAPIS_E_ARGUMENT, "results is null", lapis_put_from(pool, keys, 2, NULL, blocks, all, NULL, NULL, NULL));
    FAILS(LAPIS_E_BUFFER, "expected 131072", lapis_put_from(pool, keys, 2, NULL, blocks, 7, NULL, results, NULL));
    FAILS(LAPIS_E_SIZE, "options.size", lapis_put_from(pool, keys, 2, NULL, blocks, all, &options, results, NULL));
    LAPIS_INIT(options);
    options.deadline_us = INT64_MIN;
    FAILS(LAPIS_E_ARGUMENT, "options.deadline_us",
          lapis_put_from(pool, keys, 2, NULL, blocks, all, &options, results, NULL));
    options.deadline_us = INT64_MAX;
    OK(lapis_put_from(pool, keys, 2, NULL, blocks, all, &options, results, NULL));
    CHECK(results[0] == LAPIS_STORED && results[1] == LAPIS_STORED);
}

static void viewing(void) {
    enum { MANY = LAPIS_KEYS_MAX };
    static lapis_key_t same[MANY];
    static const void *pointers[MANY];
    lapis_key_t asked[2] = {keys[0], {{255}}};
    lapis_views_t *views, *none;
    FAILS(LAPIS_E_ARGUMENT, "pointers is null", lapis_view(pool, asked, 2, 0, NULL, NULL, &views));
    FAILS(LAPIS_E_ARGUMENT, "verify is 9", lapis_view(pool, asked, 2, 9, pointers, NULL, &views));
    CHECK(views == NULL);
    OK(lapis_view(pool, asked, 2, LAPIS_VERIFY_DEFAULT, pointers, NULL, &views));
    CHECK(pointers[0] != NULL && pointers[1] == NULL);
    FAILS(LAPIS_E_RANGE, "of a block of 65536", lapis_views_copy(views, 0, BLOCK_BYTES - 1, blocks, 2));
    FAILS(LAPIS_E_RANGE, "of a block of 65536", lapis_views_copy(views, 0, SIZE_MAX, blocks, 2));
    FAILS(LAPIS_E_ARGUMENT, "dst is null", lapis_views_copy(views, 0, 0, NULL, 1));
    FAILS(LAPIS_E_ARGUMENT, "index is 1", lapis_views_copy(views, 1, 0, blocks, 1));
    FAILS(LAPIS_E_ARGUMENT, "index is 2", lapis_views_release_one(views, 2));
    OK(lapis_views_release_one(views, 0));
    FAILS(LAPIS_E_ARGUMENT, "index is 0", lapis_views_release_one(views, 0));
    FAILS(LAPIS_E_ARGUMENT, "views is null", lapis_views_still_valid(NULL, NULL, &found));
    OK(lapis_views_release(views));

    for (int i = 0; i < MANY; i++) {
        same[i] = keys[0];
    }
    OK(lapis_view(pool, same, MANY, LAPIS_VERIFY_DEFAULT, pointers, NULL, &views));
    FAILS(LAPIS_E_VIEWS, "8192 of 8192", lapis_view(pool, same, 1, LAPIS_VERIFY_DEFAULT, pointers, NULL, &none));
    CHECK(none == NULL && lapis_code_is_transient(LAPIS_E_VIEWS));
    OK(lapis_views_release(views));
    OK(lapis_view(pool, same, 1, LAPIS_VERIFY_DEFAULT, pointers, NULL, &views));
    OK(lapis_views_release(views));
}

static void reserving(void) {
    lapis_pool_t *pieces = pool_of(client, "pieces", LAPIS_POOL_CHAIN, 4);
    lapis_reservation_t *reservation;
    lapis_key_t key;
    void *place;
    uint64_t sum = 0;
    FAILS(LAPIS_E_ARGUMENT, "places is null", lapis_reserve(pool, keys, 1, NULL, NULL, results, NULL, &reservation));
    CHECK(reservation == NULL);
    FAILS(LAPIS_E_RANGE, "has 4", lapis_sum(pieces, keys, blocks, BLOCK_BYTES, &sum));
    FAILS(LAPIS_E_ARGUMENT, "key is null", lapis_sum(pool, NULL, blocks, BLOCK_BYTES, &sum));
    FAILS(LAPIS_E_ARGUMENT, "reservation is null", lapis_reservation_commit(NULL, NULL, NULL, results, NULL));
    number_keys(&key, 1, 50);
    OK(lapis_reserve(pieces, &key, 1, NULL, patient(), results, &place, &reservation));
    FAILS(LAPIS_E_RANGE, "of a block of 65536", lapis_reservation_write(reservation, 0, 1, blocks, BLOCK_BYTES));
    FAILS(LAPIS_E_ARGUMENT, "index is 1", lapis_reservation_write(reservation, 1, 0, blocks, 1));
    // Sums are of pools of one piece; the slots are still there after that.
    FAILS(LAPIS_E_RANGE, "has 4", lapis_reservation_commit(reservation, &sum, NULL, results, NULL));
    OK(lapis_reservation_write(reservation, 0, 0, blocks, BLOCK_BYTES));
    FAILS(LAPIS_E_ARGUMENT, "results is null", lapis_reservation_commit(reservation, NULL, NULL, NULL, NULL));
    OK(lapis_reservation_commit(reservation, NULL, patient(), results, NULL));
    CHECK(results[0] == LAPIS_STORED);
    FAILS(LAPIS_E_ARGUMENT, "used up", lapis_reservation_commit(reservation, NULL, NULL, results, NULL));
    FAILS(LAPIS_E_ARGUMENT, "used up", lapis_reservation_write(reservation, 0, 0, blocks, 1));
    OK(lapis_reservation_abort(reservation));
    OK(lapis_pool_close(pieces));
}

static void polling(void) {
    lapis_get_ticket_t *ticket;
    bool done = false;
    OK(lapis_begin_get(pool, keys, 2, blocks, sizeof(blocks), NULL, &ticket));
    FAILS(LAPIS_E_ARGUMENT, "done is null", lapis_get_ticket_poll(ticket, NULL, hit_bytes, &found));
    FAILS(LAPIS_E_ARGUMENT, "hit_bytes is null", lapis_get_ticket_poll(ticket, &done, NULL, &found));
    OK(lapis_get_ticket_poll(ticket, &done, hit_bytes, &found));
    CHECK(done && found == 2);
    FAILS(LAPIS_E_ARGUMENT, "used up", lapis_get_ticket_poll(ticket, &done, hit_bytes, &found));
    OK(lapis_get_ticket_free(ticket));
    FAILS(LAPIS_E_ARGUMENT, "ticket is null", lapis_put_ticket_poll(NULL, &done, results, &found));
}

static void hinting_and_naming_objects(void) {
    char name[1025] = "a name";
    bool removed;
    lapis_bytes_t *object;
    FAILS(LAPIS_E_ARGUMENT, "hint is 0", lapis_hint(pool, keys, 1, 0, 0));
    FAILS(LAPIS_E_ARGUMENT, "value is 1", lapis_hint(pool, keys, 1, LAPIS_HINT_ENDED, 1));
    FAILS(LAPIS_E_ARGUMENT, "value is 256", lapis_hint(pool, keys, 1, LAPIS_HINT_PRIORITY, 256));
    FAILS(LAPIS_E_ARGUMENT, "deadline_us", lapis_remove(pool, keys, 1, -9, NULL));
    FAILS(LAPIS_E_ARGUMENT, "pool is null", lapis_purge(NULL, 0, NULL));
    FAILS(LAPIS_E_KIND, "is no object pool", lapis_put_object(pool, name, 6, name, 6, NULL, results));
    FAILS(LAPIS_E_ARGUMENT, "bytes is null", lapis_put_object(object_pool, name, 6, NULL, 6, NULL, results));
    FAILS(LAPIS_E_ARGUMENT, "result is null", lapis_put_object(object_pool, name, 6, name, 6, NULL, NULL));
    FAILS(LAPIS_E_NAME, "a name of 0 bytes", lapis_put_object(object_pool, name, 0, name, 6, NULL, results));
    FAILS(LAPIS_E_NAME, "a name of 1025 bytes", lapis_get_object(object_pool, name, sizeof(name), 0, &object));
    FAILS(LAPIS_E_ARGUMENT, "name is null", lapis_remove_object(object_pool, NULL, 6, 0, &removed));
}

static void freeing_null(void) {
    OK(lapis_client_close(NULL));
    OK(lapis_pool_close(NULL));
    OK(lapis_views_release(NULL));
    OK(lapis_reservation_abort(NULL));
    OK(lapis_get_ticket_free(NULL));
    OK(lapis_put_ticket_free(NULL));
    OK(lapis_bytes_free(NULL));
}

// Handles of a client that was closed answer so, and can be freed.
static void going_on_after_the_end(void) {
    lapis_key_t key;
    lapis_get_ticket_t *get_ticket, *none;
    lapis_put_ticket_t *put_ticket;
    lapis_reservation_t *reservation;
    lapis_views_t *views;
    const void *pointers[BLOCKS];
    void *place;
    bool done;
    lapis_ask_t ask = {pool, LAPIS_HIT_PREFIX, 0};
    number_keys(&key, 1, 60);
    OK(lapis_begin_get(pool, keys, 2, blocks, sizeof(blocks), NULL, &get_ticket));
    OK(lapis_begin_put(pool, keys, 2, NULL, blocks, sizeof(blocks), patient(), &put_ticket));
    OK(lapis_reserve(pool, &key, 1, NULL, patient(), results, &place, &reservation));
    OK(lapis_view(pool, keys, 2, LAPIS_VERIFY_DEFAULT, pointers, NULL, &views));
    OK(lapis_client_close(client));

    FAILS(LAPIS_E_CLOSED, "the client of this pool was closed", lapis_exists(pool, keys, 1, NULL, &found));
    FAILS(LAPIS_E_CLOSED, "pool was closed", lapis_match_prefix(&ask, 1, keys, 1, &found));
    FAILS(LAPIS_E_CLOSED, "pool was closed", lapis_purge(pool, 0, NULL));
    FAILS(LAPIS_E_CLOSED, "pool was closed", lapis_begin_get(pool, keys, 2, blocks, sizeof(blocks), NULL, &none));
    FAILS(LAPIS_E_CLOSED, "ticket was closed", lapis_get_ticket_poll(get_ticket, &done, hit_bytes, NULL));
    FAILS(LAPIS_E_CLOSED, "ticket was closed", lapis_put_ticket_poll(put_ticket, &done, results, NULL));
    FAILS(LAPIS_E_CLOSED, "reservation was closed", lapis_reservation_commit(reservation, NULL, NULL, results, NULL));
    // What a view pins stays where it is until it is released.
    OK(lapis_views_still_valid(views, NULL, &found));
    CHECK(found == 2 && memcmp(pointers[0], blocks, BLOCK_BYTES) == 0);
    OK(lapis_get_ticket_free(get_ticket));
    OK(lapis_put_ticket_free(put_ticket));
    OK(lapis_reservation_abort(reservation));
    OK(lapis_views_release(views));
    OK(lapis_pool_close(object_pool));
    OK(lapis_pool_close(pool));
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    client = connect_to(argv[1]);
    pool = chain_of(client);
    object_pool = pool_of(client, "objects", LAPIS_POOL_OBJECT, 0);
    number_keys(keys, BLOCKS, 1);
    fill_block(blocks, 1);
    fill_block(blocks + BLOCK_BYTES, 2);
    connecting(argv[1]);
    asking_the_client(argv[1]);
    naming();
    opening_pools();
    looking_up(argv[1]);
    getting();
    putting();
    viewing();
    reserving();
    polling();
    hinting_and_naming_objects();
    freeing_null();
    going_on_after_the_end();
    puts("all mistakes");
    return 0;
}
