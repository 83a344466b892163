// Blocks between the memory of GPUs and the daemon's: devices SOCKET LIBRARY, with the stand-in for CUDA's driver; without
// LIBRARY where there is no driver.

#define _POSIX_C_SOURCE 200809L // nanosleep

#include "check.h"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 6, BATCH_BYTES = BLOCKS * BLOCK_BYTES, HALF = BLOCK_BYTES / 2, DRAM_BYTES = 64 << 20 };

typedef unsigned long long address_t; // CUdeviceptr

// What of cuda.h is called here.
static int (*cu_init)(unsigned);
static int (*cu_retain)(void **context, int device);
static int (*cu_set_current)(void *context);
static int (*cu_alloc)(address_t *memory, size_t bytes);
static int (*cu_free)(address_t memory);
static int (*cu_to_device)(address_t to, const void *from, size_t bytes);
static int (*cu_to_host)(void *to, address_t from, size_t bytes);
static int (*cu_fill)(address_t to, unsigned char value, size_t bytes);
static int (*cu_stream)(void **stream, unsigned flags);
static int (*cu_synchronize)(void *stream);
static int (*cu_wait_word)(void *stream, address_t at, uint32_t value, unsigned flags);
static int (*cu_write_word)(void *stream, address_t at, uint32_t value, unsigned flags);

static void load(const char *library) {
    void *driver = dlopen(library, RTLD_NOW);
    CHECK(driver != NULL);
    const struct {
        const char *name;
        void *place;
    } functions[] = {
        {"cuInit", &cu_init},
        {"cuDevicePrimaryCtxRetain", &cu_retain},
        {"cuCtxSetCurrent", &cu_set_current},
        {"cuMemAlloc_v2", &cu_alloc},
        {"cuMemFree_v2", &cu_free},
        {"cuMemcpyHtoD_v2", &cu_to_device},
        {"cuMemcpyDtoH_v2", &cu_to_host},
        {"cuMemsetD8_v2", &cu_fill},
        {"cuStreamCreate", &cu_stream},
        {"cuStreamSynchronize", &cu_synchronize},
        {"cuStreamWaitValue32_v2", &cu_wait_word},
        {"cuStreamWriteValue32_v2", &cu_write_word},
    };
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        void *function = dlsym(driver, functions[i].name);
        CHECK(function != NULL);
        memcpy(functions[i].place, &function, sizeof(function));
    }
}

static lapis_client_t *connect_with_gpus(const char *socket) {
    lapis_client_t *client;
    lapis_connect_options_t options;
    LAPIS_INIT(options);
    options.flags = LAPIS_CONNECT_GPUS;
    OK(lapis_connect(socket, &options, &client));
    return client;
}

// The halves of blocks that lie one after the other; in each block the second before the first if `crossed`.
static void halves(address_t *addresses, address_t memory, int crossed) {
    for (int i = 0; i < 2 * BLOCKS; i++) {
        addresses[i] = memory + (address_t)HALF * (address_t)(crossed ? i ^ 1 : i);
    }
}

static void expect(address_t memory, const unsigned char *bytes, size_t count) {
    unsigned char *copy = (unsigned char *)malloc(count);
    CHECK(copy != NULL && cu_to_host(copy, memory, count) == 0);
    CHECK(memcmp(copy, bytes, count) == 0);
    free(copy);
}

// To other memory of a GPU, and every byte as it was put.
static void get(const lapis_pool_t *pool, int device, void *stream, const unsigned char *blocks) {
    lapis_key_t keys[BLOCKS + 1];
    uint32_t hit_bytes[BLOCKS + 1];
    size_t hits = 0;
    address_t memory, addresses[2 * BLOCKS + 2];
    lapis_device_got_t *got;
    bool is;
    lapis_get_options_t options;
    LAPIS_INIT(options);
    options.deadline_us = 30000000;
    number_keys(keys, BLOCKS, 700);
    // In the middle a block that nobody has put.
    keys[BLOCKS] = keys[2];
    number_keys(&keys[2], 1, 799);
    CHECK(cu_alloc(&memory, BATCH_BYTES + BLOCK_BYTES) == 0 && cu_fill(memory, 0xee, BATCH_BYTES + BLOCK_BYTES) == 0);
    halves(addresses, memory, 0);
    addresses[2 * BLOCKS] = memory + BATCH_BYTES;
    addresses[2 * BLOCKS + 1] = memory + BATCH_BYTES + HALF;
    OK(lapis_get_device(pool, keys, BLOCKS + 1, addresses, 2 * BLOCKS + 2, (uint32_t)device, stream, &options, hit_bytes,
                        &hits, &got));
    CHECK(cu_synchronize(stream) == 0);
    OK(lapis_device_got_is_over(got, &is));
    CHECK(is);
    OK(lapis_device_got_still_valid(got, &is));
    CHECK(is && hits == BLOCKS);
    OK(lapis_device_got_free(got));
    for (int i = 0; i <= BLOCKS; i++) {
        CHECK(hit_bytes[i] == (i == 2 ? 0 : BLOCK_BYTES));
    }
    expect(memory, blocks, 2 * BLOCK_BYTES);
    unsigned char untouched[BLOCK_BYTES];
    memset(untouched, 0xee, sizeof(untouched));
    expect(memory + 2 * BLOCK_BYTES, untouched, BLOCK_BYTES);
    expect(memory + 3 * BLOCK_BYTES, blocks + 3 * BLOCK_BYTES, BATCH_BYTES - 3 * BLOCK_BYTES);
    expect(memory + BATCH_BYTES, blocks + 2 * BLOCK_BYTES, BLOCK_BYTES);
    CHECK(cu_free(memory) == 0);
}

// The second half of all blocks, then the first, each to memory of its own; a stream waits for the flag of one and for the
// other.
static void get_in_pieces(const lapis_pool_t *pool, int device, void *stream, const unsigned char *blocks) {
    enum { KEYS = BLOCKS + 1, PLANE_BYTES = KEYS * HALF };
    lapis_key_t keys[KEYS];
    uint32_t hit_bytes[KEYS];
    size_t hits = 0;
    address_t memory, flags, places[2][KEYS];
    lapis_device_piece_t pieces[2];
    lapis_device_load_t *load;
    void *engine;
    bool is;
    lapis_get_options_t options;
    LAPIS_INIT(options);
    options.deadline_us = 30000000;
    // The last one nobody has put.
    number_keys(keys, BLOCKS, 700);
    number_keys(&keys[BLOCKS], 1, 799);
    CHECK(cu_alloc(&memory, 2 * PLANE_BYTES) == 0 && cu_fill(memory, 0xee, 2 * PLANE_BYTES) == 0);
    CHECK(cu_alloc(&flags, 8) == 0 && cu_fill(flags, 0, 8) == 0 && cu_stream(&engine, 1) == 0);
    for (int piece = 0; piece < 2; piece++) {
        LAPIS_INIT(pieces[piece]);
        pieces[piece].offset = piece == 0 ? HALF : 0;
        pieces[piece].bytes = HALF;
        pieces[piece].addresses = places[piece];
        pieces[piece].addresses_count = KEYS;
        for (int i = 0; i < KEYS; i++) {
            places[piece][i] = memory + (address_t)piece * PLANE_BYTES + (address_t)i * HALF;
        }
    }
    pieces[0].flag = flags + 4;
    pieces[0].flag_value = 9;
    CHECK(cu_wait_word(engine, flags + 4, 9, 0) == 0);
    OK(lapis_get_device_pieces(pool, keys, KEYS, pieces, 2, (uint32_t)device, stream, &options, hit_bytes, &hits, &load));
    OK(lapis_device_load_wait_piece(load, 1, (uint32_t)device, engine));
    CHECK(cu_synchronize(engine) == 0);
    for (size_t piece = 0; piece < 2; piece++) {
        OK(lapis_device_load_is_piece_over(load, piece, &is));
        CHECK(is);
    }
    OK(lapis_device_load_is_over(load, &is));
    CHECK(is);
    OK(lapis_device_load_still_valid(load, &is));
    CHECK(is && hits == BLOCKS);
    for (int i = 0; i < BLOCKS; i++) {
        CHECK(hit_bytes[i] == BLOCK_BYTES);
        expect(places[0][i], blocks + i * BLOCK_BYTES + HALF, HALF);
        expect(places[1][i], blocks + i * BLOCK_BYTES, HALF);
    }
    unsigned char untouched[HALF];
    memset(untouched, 0xee, sizeof(untouched));
    expect(places[0][BLOCKS], untouched, HALF);
    expect(places[1][BLOCKS], untouched, HALF);
    CHECK(hit_bytes[BLOCKS] == 0);
    const unsigned char told[8] = {0, 0, 0, 0, 9, 0, 0, 0};
    expect(flags, told, sizeof(told));
    FAILS(LAPIS_E_ARGUMENT, "piece is 2", lapis_device_load_wait_piece(load, 2, (uint32_t)device, engine));
    FAILS(LAPIS_E_ARGUMENT, "piece is 2", lapis_device_load_is_piece_over(load, 2, &is));
    FAILS(LAPIS_E_ARGUMENT, "over is null", lapis_device_load_is_piece_over(load, 1, NULL));
    FAILS(LAPIS_E_GPU, "opening a GPU", lapis_device_load_wait_piece(load, 1, 7, NULL));
    OK(lapis_device_load_free(load));
    CHECK(cu_free(memory) == 0 && cu_free(flags) == 0);
}

static void mistaken_pieces(const lapis_pool_t *pool, void *stream) {
    lapis_key_t key;
    uint32_t hit_bytes;
    bool is;
    address_t memory;
    lapis_device_piece_t pieces[2];
    lapis_device_load_t *load = (lapis_device_load_t *)&is;
    number_keys(&key, 1, 700);
    CHECK(cu_alloc(&memory, BLOCK_BYTES) == 0);
    for (int piece = 0; piece < 2; piece++) {
        LAPIS_INIT(pieces[piece]);
        pieces[piece].bytes = 64;
        pieces[piece].addresses = &memory;
        pieces[piece].addresses_count = 1;
    }
#define GET(list, count) lapis_get_device_pieces(pool, &key, 1, list, count, 0, stream, NULL, &hit_bytes, NULL, &load)
    FAILS(LAPIS_E_ARGUMENT, "pieces is null", GET(NULL, 1));
    CHECK(load == NULL);
    FAILS(LAPIS_E_RANGE, "pieces 0 to 0", GET(pieces, 0));
    pieces[1].size = 0;
    FAILS(LAPIS_E_SIZE, "pieces.size is 0", GET(pieces, 2));
    pieces[1].size = sizeof(pieces[1]) + 8;
    FAILS(LAPIS_E_ARGUMENT, "the same size in all", GET(pieces, 2));
    pieces[1].size = sizeof(pieces[1]);
    pieces[1].offset = BLOCK_BYTES - 63;
    FAILS(LAPIS_E_RANGE, "64 bytes at 65473", GET(pieces, 2));
    pieces[1].offset = 0;
    pieces[1].addresses_count = 0;
    FAILS(LAPIS_E_BUFFER, "0 vectors for 1 blocks", GET(pieces, 2));
    pieces[1].addresses_count = 1;
    pieces[1].flag_value = 1;
    FAILS(LAPIS_E_ARGUMENT, "pieces.flag_value is 1", GET(pieces, 2));
    pieces[1].flag = memory + 1;
    FAILS(LAPIS_E_ARGUMENT, "multiple of four", GET(pieces, 2));
    FAILS(LAPIS_E_ARGUMENT, "load is null", lapis_get_device_pieces(pool, &key, 1, pieces, 1, 0, stream, NULL, &hit_bytes,
                                                                    NULL, NULL));
#undef GET
    FAILS(LAPIS_E_ARGUMENT, "load is null", lapis_device_load_is_over(NULL, &is));
    FAILS(LAPIS_E_ARGUMENT, "load is null", lapis_device_load_still_valid(NULL, &is));
    FAILS(LAPIS_E_ARGUMENT, "load is null", lapis_device_load_is_piece_over(NULL, 0, &is));
    FAILS(LAPIS_E_ARGUMENT, "load is null", lapis_device_load_wait_piece(NULL, 0, 0, stream));
    OK(lapis_device_load_free(NULL));
    CHECK(cu_free(memory) == 0);
}

// Before anything else is done there.
static void opened_ahead(const lapis_client_t *client) {
    uint64_t registered = 1, bytes = 1;
    OK(lapis_open_gpu(client, 0, 30000000, &registered, &bytes));
    CHECK(registered == DRAM_BYTES && bytes == DRAM_BYTES);
    OK(lapis_open_gpu(client, 0, 0, &registered, NULL));
    CHECK(registered == DRAM_BYTES);
    FAILS(LAPIS_E_GPU, "opening a GPU", lapis_open_gpu(client, 7, 0, &registered, &bytes));
    FAILS(LAPIS_E_ARGUMENT, "device is 65536", lapis_open_gpu(client, 1 << 16, 0, &registered, &bytes));
    FAILS(LAPIS_E_ARGUMENT, "client is null", lapis_open_gpu(NULL, 0, 0, NULL, NULL));
}

// Children free what they were forked with, whatever the parent's threads were about: they look after many copies.
static void forked(lapis_client_t *client, const lapis_pool_t *pool, void *stream) {
    enum { GETS = 400, FORKS = 60 };
    static lapis_device_got_t *gots[GETS];
    lapis_key_t key;
    uint32_t hit_bytes;
    address_t memory, gate;
    bool is;
    number_keys(&key, 1, 700);
    CHECK(cu_alloc(&memory, BLOCK_BYTES) == 0 && cu_alloc(&gate, 4) == 0 && cu_fill(gate, 0, 4) == 0);
    CHECK(cu_wait_word(stream, gate, 1, 0) == 0);
    for (int i = 0; i < GETS; i++) {
        OK(lapis_get_device(pool, &key, 1, &memory, 1, 0, stream, NULL, &hit_bytes, NULL, &gots[i]));
        CHECK(hit_bytes == BLOCK_BYTES);
    }
    for (int i = 0; i < FORKS; i++) {
        struct timespec pause = {0, 1000000 + 130000 * i};
        nanosleep(&pause, NULL);
        int status;
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            // Ends it, should it wait for a thread that is not here.
            alarm(20);
            if (lapis_device_got_is_over(gots[0], &is) != LAPIS_E_CLOSED || lapis_device_got_free(gots[0]) != LAPIS_OK) {
                _exit(1);
            }
            _exit(lapis_client_close(client) == LAPIS_OK ? 0 : 2);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    void *other;
    CHECK(cu_stream(&other, 1) == 0 && cu_write_word(other, gate, 1, 0) == 0 && cu_synchronize(stream) == 0);
    for (int i = 0; i < GETS; i++) {
        OK(lapis_device_got_still_valid(gots[i], &is));
        CHECK(is);
        OK(lapis_device_got_free(gots[i]));
    }
    CHECK(cu_synchronize(other) == 0 && cu_free(memory) == 0 && cu_free(gate) == 0);
}

static void mistakes(const lapis_client_t *client, const lapis_pool_t *pool, void *stream) {
    lapis_key_t keys[2];
    uint32_t hit_bytes[2];
    int32_t results[2];
    bool is;
    lapis_device_got_t *got = (lapis_device_got_t *)&is;
    address_t memory, nowhere = 0;
    lapis_pool_t *objects = pool_of(client, "objects", LAPIS_POOL_OBJECT, 0);
    number_keys(keys, 2, 700);
    CHECK(cu_alloc(&memory, 2 * BLOCK_BYTES) == 0);
    address_t three[3] = {memory, memory + 1024, memory + 2048};
    FAILS(LAPIS_E_BUFFER, "3 vectors for 2 blocks",
          lapis_get_device(pool, keys, 2, three, 3, 0, stream, NULL, hit_bytes, NULL, &got));
    CHECK(got == NULL);
    FAILS(LAPIS_E_BUFFER, "0 vectors for 2 blocks",
          lapis_get_device(pool, keys, 2, three, 0, 0, stream, NULL, hit_bytes, NULL, &got));
    // A third of a block is no whole number of bytes.
    FAILS(LAPIS_E_BUFFER, "hold 65535 bytes, expected 65536",
          lapis_get_device(pool, keys, 1, three, 3, 0, stream, NULL, hit_bytes, NULL, &got));
    FAILS(LAPIS_E_BUFFER, "3 vectors for 2 blocks",
          lapis_put_device(pool, keys, 2, NULL, three, 3, 0, stream, NULL, results, NULL));
    FAILS(LAPIS_E_ARGUMENT, "addresses[0] is null",
          lapis_get_device(pool, keys, 1, &nowhere, 1, 0, stream, NULL, hit_bytes, NULL, &got));
    FAILS(LAPIS_E_ARGUMENT, "addresses is null",
          lapis_put_device(pool, keys, 1, NULL, NULL, 1, 0, stream, NULL, results, NULL));
    FAILS(LAPIS_E_ARGUMENT, "device is 65536",
          lapis_get_device(pool, keys, 1, &memory, 1, 1 << 16, stream, NULL, hit_bytes, NULL, &got));
    FAILS(LAPIS_E_GPU, "opening a GPU",
          lapis_put_device(pool, keys, 1, NULL, &memory, 1, 2, NULL, NULL, results, NULL));
    FAILS(LAPIS_E_KIND, "is no chain pool",
          lapis_get_device(objects, keys, 1, &memory, 1, 0, stream, NULL, hit_bytes, NULL, &got));
    FAILS(LAPIS_E_ARGUMENT, "got is null",
          lapis_get_device(pool, keys, 1, &memory, 1, 0, stream, NULL, hit_bytes, NULL, NULL));
    FAILS(LAPIS_E_ARGUMENT, "got is null", lapis_device_got_is_over(NULL, &is));
    FAILS(LAPIS_E_ARGUMENT, "got is null", lapis_device_got_still_valid(NULL, &is));
    FAILS(LAPIS_E_GPU, "cannot be loaded beside it", lapis_load_cuda("/nowhere/libcuda.so"));
    OK(lapis_device_got_free(NULL));
    CHECK(cu_free(memory) == 0);
    OK(lapis_pool_close(objects));
}

// Its file is named wrongly, and where the loader looks there is none.
static int without_a_driver(const char *socket) {
    lapis_key_t key;
    uint32_t hit_bytes;
    int32_t result;
    lapis_device_got_t *got;
    const address_t somewhere = 4096;
    lapis_client_t *client = connect_with_gpus(socket);
    lapis_pool_t *pool = chain_of(client);
    number_keys(&key, 1, 700);
    FAILS(LAPIS_E_GPU, "/nowhere/libcuda.so, named as the CUDA library, cannot be loaded",
          lapis_load_cuda("/nowhere/libcuda.so"));
    CHECK(!lapis_code_is_transient(LAPIS_E_GPU) && lapis_code_is_transient(LAPIS_E_GPU_BUSY));
    if (dlopen("libcuda.so", RTLD_LAZY) != NULL || dlopen("libcuda.so.1", RTLD_LAZY) != NULL) {
        puts("a driver is here");
        return 0;
    }
    FAILS(LAPIS_E_GPU, "loading CUDA's driver: the CUDA driver's library is not to be had",
          lapis_get_device(pool, &key, 1, &somewhere, 1, 0, NULL, NULL, &hit_bytes, NULL, &got));
    FAILS(LAPIS_E_GPU, "install NVIDIA's driver", lapis_open_gpu(client, 0, 0, NULL, NULL));
    FAILS(LAPIS_E_GPU, "install NVIDIA's driver",
          lapis_put_device(pool, &key, 1, NULL, &somewhere, 1, 0, NULL, NULL, &result, NULL));
    // All else goes on.
    put_numbers(pool, 1, 900);
    OK(lapis_pool_close(pool));
    OK(lapis_client_close(client));
    puts("no driver");
    return 0;
}

int main(int argc, char **argv) {
    CHECK(argc == 2 || argc == 3);
    if (argc == 2) {
        return without_a_driver(argv[1]);
    }
    lapis_key_t keys[BLOCKS];
    int32_t results[BLOCKS];
    size_t stored;
    void *contexts[2], *streams[2];
    address_t memory, addresses[2 * BLOCKS];
    OK(lapis_load_cuda(argv[2]));
    load(argv[2]);
    CHECK(cu_init(0) == 0);
    for (int device = 0; device < 2; device++) {
        CHECK(cu_retain(&contexts[device], device) == 0 && cu_set_current(contexts[device]) == 0);
        CHECK(cu_stream(&streams[device], 1) == 0);
    }
    CHECK(cu_set_current(contexts[0]) == 0);
    lapis_client_t *client = connect_with_gpus(argv[1]);
    lapis_pool_t *pool = chain_of(client);
    opened_ahead(client);

    // Each block is put by its halves, which lie the other way round.
    unsigned char *blocks = blocks_of(BLOCKS, 700), *crossed = blocks_of(BLOCKS, 700);
    for (int i = 0; i < 2 * BLOCKS; i++) {
        memcpy(crossed + (i ^ 1) * HALF, blocks + i * HALF, HALF);
    }
    CHECK(cu_alloc(&memory, BATCH_BYTES) == 0 && cu_to_device(memory, crossed, BATCH_BYTES) == 0);
    halves(addresses, memory, 1);
    number_keys(keys, BLOCKS, 700);
    put_numbers(pool, 1, 701);
    OK(lapis_put_device(pool, keys, BLOCKS, NULL, addresses, 2 * BLOCKS, 0, streams[0], patient(), results, &stored));
    CHECK(stored == BLOCKS - 1);
    for (int i = 0; i < BLOCKS; i++) {
        CHECK(results[i] == (i == 1 ? LAPIS_EXISTS : LAPIS_STORED));
    }
    CHECK(cu_free(memory) == 0);

    // Where they lie, from there to another GPU, and to the host.
    get(pool, 0, streams[0], blocks);
    get_in_pieces(pool, 0, streams[0], blocks);
    CHECK(cu_set_current(contexts[1]) == 0);
    get(pool, 1, streams[1], blocks);
    get_in_pieces(pool, 1, streams[1], blocks);
    CHECK(cu_set_current(contexts[0]) == 0);
    memset(crossed, 0, BATCH_BYTES);
    uint32_t hit_bytes[BLOCKS];
    lapis_get_options_t options;
    LAPIS_INIT(options);
    options.deadline_us = 30000000;
    OK(lapis_get_into(pool, keys, BLOCKS, crossed, BATCH_BYTES, &options, hit_bytes, NULL));
    CHECK(memcmp(crossed, blocks, BATCH_BYTES) == 0);
    mistakes(client, pool, streams[0]);
    mistaken_pieces(pool, streams[0]);
    forked(client, pool, streams[0]);
    free(blocks);
    free(crossed);
    OK(lapis_pool_close(pool));
    OK(lapis_client_close(client));
    puts("all on GPUs");
    return 0;
}
