// Lapis: the client for engines on the same host, in C.
//
// Made of the Rust sources of this library: do not change it by hand.
//
// Rules, for all that follows:
//
// - A function answers LAPIS_OK or a negative LAPIS_E_ code. What failed is told by lapis_last_error(). A failed call
//   changed nothing, but for LAPIS_E_LATE, LAPIS_E_GPU, LAPIS_E_GPU_BUSY and LAPIS_E_PANIC, and wrote null where it was to
//   write a handle.
// - Calls take batches: `keys_count` keys, 1 to LAPIS_KEYS_MAX, and answer into lists of as many elements, which the
//   caller provides. Misses and refused puts are values there.
// - Lists, texts, buffers and places for answers are the caller's; they must be good until the call returns (with a
//   ticket: until that was answered or freed), must not overlap, and are not used afterwards. Memory that is read must
//   be initialised, and nobody may write it meanwhile. None of it may lie in a view or a slot.
// - A handle is freed once, by the one function that its creator names. Freeing null does nothing. A handle that was
//   freed is not to be used again.
// - Clients, pools and what lapis_get_device() and lapis_get_device_pieces() give may be used by any threads at the same
//   time; views, tickets and reservations by one at a time. No handle is to be freed while another thread uses it.
// - All other handles may be freed after their client was closed, in any order.
// - In a forked child the parent's handles are of no use but to be freed, which does no harm to the parent: calls answer
//   LAPIS_E_CLOSED. Connect anew there.
// - Structs begin with their size, so that fields can be added: set it, and zero all else, by LAPIS_INIT. In a list all
//   have the same.
// - No call outlives its deadline by more than a copy, but the first one on a GPU, which opens it, and lapis_open_gpu(). Without a daemon, hits
//   in memory go on, all else answers at once.
// - The library writes nothing and installs no signal handlers; only a bug of its own (LAPIS_E_PANIC) prints to standard
//   error. It starts threads of its own for each client.


#ifndef LAPIS_H
#define LAPIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

// Zeroes a struct of this library and sets its size: the defaults.
#define LAPIS_INIT(options)                     \
    do {                                        \
        memset(&(options), 0, sizeof(options)); \
        (options).size = sizeof(options);       \
    } while (0)

// Whether the library that was loaded serves a program that was compiled with this header.
#define LAPIS_ABI_FITS()                                       \
    (lapis_abi_version() >> 16 == LAPIS_ABI_VERSION >> 16 &&   \
     lapis_abi_version() >= LAPIS_ABI_VERSION)


// The call did what it says. Misses and refused puts are results of single keys and no errors.
#define LAPIS_OK 0

// A bug of this library: it caught itself. Believe nothing that the call was to write.
#define LAPIS_E_PANIC -1

// An argument is null, out of its bounds, or not of this client; lapis_last_error() names it.
#define LAPIS_E_ARGUMENT -2

// The size of a struct is none that this library knows: LAPIS_INIT was forgotten, or the library is too old.
#define LAPIS_E_SIZE -3

// The client was closed, or belongs to the process that this one was forked from: connect anew here.
#define LAPIS_E_CLOSED -4

// The number of keys: 1 to LAPIS_KEYS_MAX in one call.
#define LAPIS_E_KEYS -5

// Buffer or vectors do not hold exactly the bytes of the blocks asked.
#define LAPIS_E_BUFFER -6

// Pieces or bytes beyond the end of a block.
#define LAPIS_E_RANGE -7

// The call is for pools of the other kind.
#define LAPIS_E_KIND -8

// A name or label is too long, empty, or not of the letters allowed.
#define LAPIS_E_NAME -9

// Too many views are held by this client: release some. Transient.
#define LAPIS_E_VIEWS -10

// The daemon refused and said why: what is asked has to change.
#define LAPIS_E_REFUSED -11

// The daemon did not answer within the deadline; what was asked may yet happen. Transient.
#define LAPIS_E_LATE -12

// The daemon is gone; the client reconnects by itself. Transient.
#define LAPIS_E_GONE -13

// No daemon is at that path, or it is not ready. Transient.
#define LAPIS_E_ABSENT -14

// Connecting failed in a way that does not pass by itself.
#define LAPIS_E_CONNECT -15

// The daemon speaks another language than this library: they are of different releases.
#define LAPIS_E_PROTOCOL -16

// The system has no memory, no descriptors or no threads left, or forbids the use of them.
#define LAPIS_E_SYSTEM -17

// A GPU or its driver: it is not there, was lost, or refused. lapis_last_error() says which, and what to do.
#define LAPIS_E_GPU -18

// A GPU has no memory left for what the call needs, or the system has not. Transient.
#define LAPIS_E_GPU_BUSY -19

// What became of a key of a put: stored by this call.
#define LAPIS_STORED 1

// Of a put or a reserve: it was there already, and nothing was copied.
#define LAPIS_EXISTS 2

// Of a reserve: there is a slot to fill.
#define LAPIS_RESERVED 3

// Every slot is pinned, granted or being written, and stayed so until the deadline. Transient.
#define LAPIS_REFUSED_ALL_PINNED -1

// The block is larger than the pool's blocks.
#define LAPIS_REFUSED_TOO_LARGE -2

// The block does not fit an extent of this group.
#define LAPIS_REFUSED_NO_EXTENT_FITS -3

// The pool is not known to this daemon.
#define LAPIS_REFUSED_NO_POOL -4

// This client, or this group's socket, does not permit puts.
#define LAPIS_REFUSED_READ_ONLY -5

// The slot was not granted to this client.
#define LAPIS_REFUSED_NOT_GRANTED -6

// The block table has no line for this key that could be freed. Transient.
#define LAPIS_REFUSED_NO_LINE -7

// The daemon's memory is still being populated. Transient.
#define LAPIS_REFUSED_NOT_READY -8

// The parent block is not stored.
#define LAPIS_REFUSED_NO_PARENT -9

// A limit of this client is reached.
#define LAPIS_REFUSED_LIMIT -10

// The daemon is draining. Transient.
#define LAPIS_REFUSED_DRAINING -11

// The daemon is gone. Transient.
#define LAPIS_REFUSED_GONE -12

// The daemon did not answer before the deadline; the block may yet be stored. Transient.
#define LAPIS_REFUSED_LATE -13

// Every block that could make room is worth more. An ordinary answer where there is no SSD tier: go on without storing.
#define LAPIS_REFUSED_COLD -14

// No other host of this name can be asked now.
#define LAPIS_REFUSED_NO_PEER -15

// Of this header. The upper half rises when a program compiled before would not run any more (as does the number in
// the shared library's name), the lower half when something was added.
#define LAPIS_ABI_VERSION 3

// Ask for memory that can only be read: every put is refused, and so are removals and hints.
#define LAPIS_CONNECT_READ_ONLY 1

// Do not map all memory ahead, in the background: the first copy of each page takes longer then.
#define LAPIS_CONNECT_NO_POPULATE 2

// Devices write into reserved slots: after the death of this process the daemon waits a grace before it reuses them.
#define LAPIS_CONNECT_WRITES_BY_DMA 4

// Ask for the daemon's memory on GPUs, where lapis_get_device() finds blocks and lapis_put_device() puts them; without it
// both go by way of DRAM. Implies LAPIS_CONNECT_WRITES_BY_DMA.
#define LAPIS_CONNECT_GPUS 8

// When the bytes of a hit in memory are checked against their sum: as a level above says; at first the daemon's
// configuration.
#define LAPIS_VERIFY_DEFAULT 0

// When nobody has checked them since the daemon's start.
#define LAPIS_VERIFY_CROSSINGS 1

// Always. Costs one more pass over the bytes.
#define LAPIS_VERIFY_ALWAYS 2

// The daemon has nothing to say about the views held.
#define LAPIS_WARNING_NONE 0

// Over the limit of pinned bytes while others need them: release views soon.
#define LAPIS_WARNING_PINS_OVER_LIMIT 1

// The views of this client are not heeded any more: none is valid.
#define LAPIS_WARNING_EXPELLED 2

// Equal blocks with parents.
#define LAPIS_POOL_CHAIN 0

// Any bytes under any name.
#define LAPIS_POOL_OBJECT 1

// Answer at once from what is there.
#define LAPIS_WAIT_PRESENT 0

// Wait for blocks that somebody is filling now.
#define LAPIS_WAIT_FILLING 1

// Wait until the deadline for blocks that nobody has put yet, too.
#define LAPIS_WAIT_ABSENT 2

// The daemon's default: for a get 50 ms + bytes / 500 MB/s, for a put 1 s + bytes / 500 MB/s.
#define LAPIS_DEADLINE_DEFAULT 0

// Do not wait at all. Hits in memory are copied nevertheless.
#define LAPIS_DEADLINE_NOW -1

// The leading run counts.
#define LAPIS_HIT_PREFIX 0

// A length counts only if the last `trailing` keys before it are there (sliding windows, recurrent state).
#define LAPIS_HIT_TRAILING 1

// Each key for itself.
#define LAPIS_HIT_ANY 2

// The session ended: its own blocks are the first to go.
#define LAPIS_HINT_ENDED 1

// The session will be back soon (a tool call runs).
#define LAPIS_HINT_WILL_RETURN 2

// Kept as long as anything else can go, for `value` milliseconds.
#define LAPIS_HINT_PINNED 3

// Priority `value`, 0 to 255: higher stays longer; decays.
#define LAPIS_HINT_PRIORITY 4

// Most keys of one call.
#define LAPIS_KEYS_MAX 8192

// Bytes of this library's making; freed by lapis_bytes_free().
typedef struct lapis_bytes_t lapis_bytes_t;

// A connection to the daemon of this host, kept up by itself. Any thread may use it at any time.
typedef struct lapis_client_t lapis_client_t;

// The copies that a get put on a stream. Any thread may use it at any time.
typedef struct lapis_device_got_t lapis_device_got_t;

// The copies of a get in pieces. Any thread may use it at any time.
typedef struct lapis_device_load_t lapis_device_load_t;

// A get under way. One thread at a time may use it.
typedef struct lapis_get_ticket_t lapis_get_ticket_t;

// An open pool. It stays good over restarts of the daemon, cold ones too. Any thread may use it at any time.
typedef struct lapis_pool_t lapis_pool_t;

// A put under way. One thread at a time may use it.
typedef struct lapis_put_ticket_t lapis_put_ticket_t;

// Slots to be filled, one for each key that was answered LAPIS_RESERVED. One thread at a time may use the handle; the
// slots any thread may fill.
typedef struct lapis_reservation_t lapis_reservation_t;

// The pinned blocks of one batch. One thread at a time may use the handle; the blocks any thread may read.
typedef struct lapis_views_t lapis_views_t;

// How to connect. All zero but the size: the defaults.
typedef struct lapis_connect_options_t {
    // Set by LAPIS_INIT.
    size_t size;
    // Shown by `lapis status`. Null: the program's name.
    const char *name;
    // LAPIS_CONNECT_..., added.
    uint32_t flags;
    // LAPIS_VERIFY_...
    uint32_t verify;
} lapis_connect_options_t;

// What a client counted since it connected first.
typedef struct lapis_stats_t {
    // Set by LAPIS_INIT.
    size_t size;
    // Keys asked by lapis_exists and lapis_match_prefix.
    uint64_t keys_looked_up;
    // Of those, how many were there.
    uint64_t keys_found;
    // Blocks asked by gets and views.
    uint64_t blocks_asked;
    // Of those, how many were hits.
    uint64_t blocks_hit;
    // Payload bytes of those hits.
    uint64_t bytes_hit;
    // Blocks of puts by their outcome.
    uint64_t blocks_stored;
    uint64_t blocks_existed;
    uint64_t blocks_refused;
    // Copies and views that met a changed line and were tried once more.
    uint64_t retries;
    // Blocks that did not fit their sum, answered as misses.
    uint64_t blocks_corrupt;
} lapis_stats_t;

// A block's key: the engine's hash, zero-padded. A buffer of 32-byte hashes is a list of keys; any alignment will do,
// 8 bytes spare a copy.
typedef struct lapis_key_t {
    uint8_t bytes[32];
} lapis_key_t;

// One more thing that shapes the bytes of a block (LoRA policy, group spec). Both are UTF-8 and not null.
typedef struct lapis_extra_t {
    const char *name;
    const char *value;
} lapis_extra_t;

// All that the bytes of a block depend on and its key does not say. Texts are UTF-8; null is the empty text. What
// differs only in a field left out is taken for the same.
typedef struct lapis_namespace_t {
    // Set by LAPIS_INIT.
    size_t size;
    const char *model;
    // Of the weights: a commit or a digest.
    const char *revision;
    // The logical type of an element; kinds of fp8 differ.
    const char *dtype;
    // The engine's order of layers, K and V, heads and tokens within a block.
    const char *layout;
    // At most 2^32 - 1.
    uint64_t tokens_per_block;
    // By which the keys are made.
    const char *hash_algorithm;
    // The hash's seed or first parent.
    const char *hash_seed;
    // Keeps apart what must not be shared though all else is equal: a customer, an experiment.
    const char *salt;
    // Their order does not matter; of two values for one name both count. May be null where there are none.
    const struct lapis_extra_t *extras;
    size_t extras_count;
} lapis_namespace_t;

// What the bytes of a namespace mean, from lapis_fingerprint(). Unlike fingerprints never share a block.
typedef struct lapis_fingerprint_t {
    uint8_t bytes[32];
} lapis_fingerprint_t;

// What makes a pool: the same shape is the same pool, in every process of the trust group.
typedef struct lapis_pool_shape_t {
    // Set by LAPIS_INIT.
    size_t size;
    // Of lapis_fingerprint().
    struct lapis_fingerprint_t fingerprint;
    // Which family of blocks in the namespace: cache group, rank or shard rectangle, K or V. ASCII, at most 48 bytes.
    const char *label;
    // Payload bytes of every block of a chain pool; the most that an object of an object pool may have.
    uint64_t block_bytes;
    // LAPIS_POOL_...
    uint32_t kind;
    // Equal pieces of a block, each with a sum of its own when there are several: 1 to 256; 0 is 1.
    uint32_t pieces;
} lapis_pool_shape_t;

// How to get. All zero but the size: the defaults.
typedef struct lapis_get_options_t {
    // Set by LAPIS_INIT.
    size_t size;
    // Microseconds, or LAPIS_DEADLINE_...
    int64_t deadline_us;
    // LAPIS_WAIT_...
    uint32_t wait;
    // LAPIS_VERIFY_...
    uint32_t verify;
    // Only the pieces from `pieces_first` up to and without `pieces_end` of every block; both 0: all.
    uint32_t pieces_first;
    uint32_t pieces_end;
} lapis_get_options_t;

// One pool of a look-up, and what counts as a hit there.
typedef struct lapis_ask_t {
    const struct lapis_pool_t *pool;
    // LAPIS_HIT_...
    uint32_t policy;
    // Of LAPIS_HIT_TRAILING; else 0.
    uint32_t trailing;
} lapis_ask_t;

// How to put, reserve or commit. All zero but the size: the defaults.
typedef struct lapis_put_options_t {
    // Set by LAPIS_INIT.
    size_t size;
    // Microseconds, or LAPIS_DEADLINE_...
    int64_t deadline_us;
} lapis_put_options_t;

// A part of every block that goes to places of its own, such as a layer's. All zero but the size is no piece.
typedef struct lapis_device_piece_t {
    // Set by LAPIS_INIT.
    size_t size;
    // Bytes of a block before it.
    uint64_t offset;
    uint64_t bytes;
    // As lapis_get_device() has them, each for an equal part of the piece.
    const unsigned long long *addresses;
    size_t addresses_count;
    // Of 4 bytes in memory that the GPU reaches, a multiple of 4: written when the piece is over. 0: no flag.
    unsigned long long flag;
    // What is written there.
    uint32_t flag_value;
    // 0.
    uint32_t unused;
} lapis_device_piece_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What a code means, in a few words. lapis_last_error() knows more of the last failure.
const char *lapis_code_text(int code);

// Whether the same call may succeed later without a change of what is asked.
bool lapis_code_is_transient(int code);

// What the result of a put's or a reserve's key means, in a few words.
const char *lapis_result_text(int32_t result);

// Whether the same put may succeed later without anyone's help.
bool lapis_result_is_transient(int32_t result);

// Why the last failed call of this thread failed, as a sentence with its causes; "" if none did. Never null. The text
// lives until the thread's next failed call.
const char *lapis_last_error(void);

// LAPIS_ABI_VERSION of the library. LAPIS_ABI_FITS() says whether a program can use it.
uint32_t lapis_abi_version(void);

// The release of the library, as "0.1.0".
const char *lapis_version(void);

// Connects to the daemon that serves the socket at `path`. Ended by lapis_client_close().
int lapis_connect(const char *path,
                  const struct lapis_connect_options_t *options,
                  struct lapis_client_t **client);

// Ends a client: its connection, as soon as calls of other threads, tickets, views and reservations of it have ended.
// Its pools answer LAPIS_E_CLOSED from now on. Null is no mistake.
int lapis_client_close(struct lapis_client_t *client);

// Whether a daemon answers now. Never in a forked child.
int lapis_client_is_connected(const struct lapis_client_t *client,
                              bool *connected);

// A descriptor that becomes readable when a ticket may have got on; for poll and its kin, not to be read or closed. It
// is good until the client is closed.
int lapis_client_fd(const struct lapis_client_t *client,
                    int *fd);

// Makes the client's descriptor quiet. Call it before polling the tickets.
int lapis_client_acknowledge(const struct lapis_client_t *client);

// What the daemon says about the views held: LAPIS_WARNING_...
int lapis_client_warning(const struct lapis_client_t *client,
                         uint32_t *warning);

// What this client counted. `stats` went through LAPIS_INIT.
int lapis_client_stats(const struct lapis_client_t *client,
                       struct lapis_stats_t *stats);

// The daemon's state as JSON, by a connection of its own: for people and scripts. A NUL follows it. `deadline_us`: of
// each part of the answer; at least 1.
int lapis_status(const char *path,
                 uint64_t deadline_us,
                 struct lapis_bytes_t **json);

// The key of an engine's hash of 1 to 32 bytes, zero-padded; longer names are hashed with BLAKE3. The key of an object
// is that of its name.
int lapis_key(const void *bytes,
              size_t bytes_count,
              struct lapis_key_t *key);

// The fingerprint of a namespace; the same in every release and language.
int lapis_fingerprint(const struct lapis_namespace_t *meaning,
                      struct lapis_fingerprint_t *fingerprint);

// Opens a pool, or makes it. `shape` went through LAPIS_INIT. Freed by lapis_pool_close().
int lapis_pool_open(const struct lapis_client_t *client,
                    const struct lapis_pool_shape_t *shape,
                    struct lapis_pool_t **pool);

// Frees the handle; the pool and its blocks stay with the daemon. Null is no mistake.
int lapis_pool_close(struct lapis_pool_t *pool);

// Copies blocks to `dst`, one after the other: `dst_bytes` is exactly what they have. Blocks in memory need nobody else;
// for others the daemon is asked, within the deadline. `options` may be null. `hit_bytes` has one element a key: so many
// bytes were copied, 0 for a miss; what a miss has in `dst` is not to be looked at. `hits`, if not null, is how many
// were hits.
int lapis_get_into(const struct lapis_pool_t *pool,
                   const struct lapis_key_t *keys,
                   size_t keys_count,
                   void *dst,
                   size_t dst_bytes,
                   const struct lapis_get_options_t *options,
                   uint32_t *hit_bytes,
                   size_t *hits);

// lapis_get_into() for vectors: the same number for every block, in order, together exactly its bytes.
int lapis_get_into_vectors(const struct lapis_pool_t *pool,
                           const struct lapis_key_t *keys,
                           size_t keys_count,
                           const struct iovec *vectors,
                           size_t vectors_count,
                           const struct lapis_get_options_t *options,
                           uint32_t *hit_bytes,
                           size_t *hits);

// Which of the keys are held. `present`, if not null, has (keys_count + 63) / 64 words: bit i % 64 of word i / 64 is
// that of key i. `found`, if not null, is how many.
int lapis_exists(const struct lapis_pool_t *pool,
                 const struct lapis_key_t *keys,
                 size_t keys_count,
                 uint64_t *present,
                 size_t *found);

// How many leading keys are held under the policy of every pool asked; for a single LAPIS_HIT_ANY, how many of all.
// All pools are of one client.
int lapis_match_prefix(const struct lapis_ask_t *asks,
                       size_t asks_count,
                       const struct lapis_key_t *keys,
                       size_t keys_count,
                       size_t *matched);

// lapis_match_prefix(), after what other hosts have of the keys that are missing here was fetched. Without other hosts, or
// where nothing is missing, nobody is asked. `deadline_us`: microseconds, or LAPIS_DEADLINE_...
int lapis_fetch_prefix(const struct lapis_ask_t *asks,
                       size_t asks_count,
                       const struct lapis_key_t *keys,
                       size_t keys_count,
                       int64_t deadline_us,
                       size_t *matched);

// Stores blocks from `src`, one after the other: `src_bytes` is exactly what they have. The first one's parent is
// `parent`, which may be null; each other one's is the block before it. Keys that are there are not copied. `options`
// may be null. `results` has one element a key: LAPIS_STORED, LAPIS_EXISTS or a LAPIS_REFUSED_ value. `stored`, if not
// null, is how many were stored by this call.
int lapis_put_from(const struct lapis_pool_t *pool,
                   const struct lapis_key_t *keys,
                   size_t keys_count,
                   const struct lapis_key_t *parent,
                   const void *src,
                   size_t src_bytes,
                   const struct lapis_put_options_t *options,
                   int32_t *results,
                   size_t *stored);

// lapis_put_from() for vectors: the same number for every block, in order, together exactly its bytes.
int lapis_put_from_vectors(const struct lapis_pool_t *pool,
                           const struct lapis_key_t *keys,
                           size_t keys_count,
                           const struct lapis_key_t *parent,
                           const struct iovec *vectors,
                           size_t vectors_count,
                           const struct lapis_put_options_t *options,
                           int32_t *results,
                           size_t *stored);

// Takes CUDA's driver from a file, instead of libcuda.so or libcuda.so.1 as the loader finds it; before the first call
// that needs it, and for the life of the process. Without this call the driver is looked for at the first call on a GPU;
// this library is linked with none. LAPIS_E_GPU where it cannot be loaded, or another one is.
int lapis_load_cuda(const char *path);

// Opens a GPU ahead of the first call there: maps what the daemon has on it (LAPIS_CONNECT_GPUS), and registers the daemon's
// memory in DRAM with the driver. Returns when all of that is registered or `deadline_us` are over; 0 does not wait. The
// opening itself is waited for at any rate. Of `bytes` so many are registered then, and the rest goes on behind; both may
// be null. A GPU that is open already is only looked at.
//
// Calls on a GPU do the same where nobody has before, within their own deadlines: what is not registered in time is a miss.
// So does a client that connects to a daemon with other memory, as after a cold start. `device` is as lapis_get_device()
// has it. LAPIS_E_GPU and LAPIS_E_GPU_BUSY, also where there is no driver or it refuses to register.
int lapis_open_gpu(const struct lapis_client_t *client,
                   uint32_t device,
                   uint64_t deadline_us,
                   uint64_t *registered_bytes,
                   uint64_t *bytes);

// lapis_get_into() into the memory of a GPU, on the caller's stream: when this returns, all copies are on it, behind what
// was there, so blocks are there for whatever is put on the stream afterwards. What the daemon has on that GPU, or on
// another one that it reaches (peer to peer), is copied from there (LAPIS_CONNECT_GPUS), what is in DRAM from where it
// lies; for the rest the daemon is asked, within the deadline.
//
// `addresses` are those of CUdeviceptr: one for each key, or the same number for each, and each gets an equal part of what
// is asked of a block. Each is memory of the stream's GPU with room for its part, which nobody frees, nor reads or writes
// other than on this stream, before what is put on the stream has ended. `device` is the GPU as the driver counts them in
// this process (CUdevice, cudaGetDevice()); `stream` is a CUstream or cudaStream_t of its primary context, null for the
// default stream.
//
// `hit_bytes` and `hits` are as lapis_get_into() has them. `got` tells of the copies; ask lapis_device_got_still_valid()
// when they have ended and before the bytes are believed. Freed by lapis_device_got_free().
//
// Sums are checked of what comes from DRAM, and were of what lies on a GPU when it came there; with LAPIS_VERIFY_ALWAYS
// blocks come from DRAM. The first call opens the GPU and registers memory of the host with the driver, which may take
// longer than a default deadline: blocks that are not registered by then are misses (lapis_open_gpu()). LAPIS_E_GPU and LAPIS_E_GPU_BUSY, also
// where there is no driver: copies may be on the stream all the same.
int lapis_get_device(const struct lapis_pool_t *pool,
                     const struct lapis_key_t *keys,
                     size_t keys_count,
                     const unsigned long long *addresses,
                     size_t addresses_count,
                     uint32_t device,
                     void *stream,
                     const struct lapis_get_options_t *options,
                     uint32_t *hit_bytes,
                     size_t *hits,
                     struct lapis_device_got_t **got);

// Whether all copies of a get have ended.
int lapis_device_got_is_over(const struct lapis_device_got_t *got,
                             bool *over);

// Whether what was copied is what was asked for; ask when the copies have ended. False once the GPU is lost, or the daemon
// gave the client up or came back cold: then the bytes may be anything.
int lapis_device_got_still_valid(const struct lapis_device_got_t *got,
                                 bool *valid);

// Frees the handle, whether the copies have ended or not: they go on, and what they read stays pinned until then. Null is
// no mistake.
int lapis_device_got_free(struct lapis_device_got_t *got);

// lapis_put_from() out of the memory of a GPU, on the caller's stream, behind what is on it: when this returns, the blocks
// are read and stored. Into the daemon's memory on that GPU as far as there is room (LAPIS_CONNECT_GPUS), else to DRAM.
// Arguments are as lapis_get_device() and lapis_put_from() have them; nobody frees the addresses' memory, or writes it other
// than on this stream, before what is put on the stream has ended.
int lapis_put_device(const struct lapis_pool_t *pool,
                     const struct lapis_key_t *keys,
                     size_t keys_count,
                     const struct lapis_key_t *parent,
                     const unsigned long long *addresses,
                     size_t addresses_count,
                     uint32_t device,
                     void *stream,
                     const struct lapis_put_options_t *options,
                     int32_t *results,
                     size_t *stored);

// lapis_get_device() in pieces, for engines that begin with the first layer while the others arrive: the first piece of all
// blocks is copied first, then the second of all, in the order of `pieces`, to addresses of its own each. Pieces are bytes
// of a block and need not cover it. Copies go on a stream of the client's own, behind what is on `stream` now. When this
// returns all are asked for; blocks that were not in memory were waited for, within the deadline, and in that time those
// that were there have been copied whole.
//
// Behind each piece its flag is written (cuStreamWriteValue32): a stream of the caller's waits for it by
// cuStreamWaitValue32 with CU_STREAM_WAIT_VALUE_GEQ, also before this is called, but then not `stream`, nor one that it
// waits for: the copies come behind it. Or, without a flag, lapis_device_load_wait_piece() once this has returned. Until then
// nobody looks at an address of the piece, frees it, or reads or writes it, but what is on `stream` when this is called;
// nor does anybody free the flag's memory.
//
// A flag says that its piece is over, not that all blocks came: which did is in `hit_bytes`. It is written too where blocks
// are missing, and where this fails with LAPIS_E_GPU or LAPIS_E_GPU_BUSY after copies were begun. None is written by a call
// that is refused for what it asks (all other codes), where the GPU or its driver is not to be had or is lost (nothing runs
// there then), or where the driver refuses the flag itself: who waits before calling writes the flags itself then.
//
// Arguments are as lapis_get_device() has them; pieces of `options` are not heeded, and a hit has so many bytes as all
// pieces. `load` tells of the copies; ask lapis_device_load_still_valid() when all are over and before the bytes are
// believed. Freed by lapis_device_load_free().
int lapis_get_device_pieces(const struct lapis_pool_t *pool,
                            const struct lapis_key_t *keys,
                            size_t keys_count,
                            const struct lapis_device_piece_t *pieces,
                            size_t pieces_count,
                            uint32_t device,
                            void *stream,
                            const struct lapis_get_options_t *options,
                            uint32_t *hit_bytes,
                            size_t *hits,
                            struct lapis_device_load_t **load);

// What is put on the stream after this waits, on its GPU, until the piece `piece`, counted from 0, and those before it are
// there; nobody waits here. `device` and `stream` are as lapis_get_device() has them, and may be of another GPU than the
// copies. LAPIS_E_GPU if a GPU is lost: then nothing runs there.
int lapis_device_load_wait_piece(const struct lapis_device_load_t *load,
                                 size_t piece,
                                 uint32_t device,
                                 void *stream);

// Whether the copies of a piece, and of those before it, have ended.
int lapis_device_load_is_piece_over(const struct lapis_device_load_t *load,
                                    size_t piece,
                                    bool *over);

// Whether all copies have ended.
int lapis_device_load_is_over(const struct lapis_device_load_t *load,
                              bool *over);

// Whether what was copied is what was asked for; ask when all copies have ended. False once the GPU is lost, or one that was
// read from, or the daemon gave the client up or came back cold: then the bytes may be anything.
int lapis_device_load_still_valid(const struct lapis_device_load_t *load,
                                  bool *valid);

// Frees the handle, whether the copies have ended or not: they go on, and so do flags; what is read stays pinned until then.
// Null is no mistake.
int lapis_device_load_free(struct lapis_device_load_t *load);

// Asks for slots. Parent and options are those of lapis_put_from(). `results` and `places` have one element a key:
// LAPIS_RESERVED and where the block is to be written, block_bytes of it; or LAPIS_EXISTS or a LAPIS_REFUSED_ value and
// null. Freed by lapis_reservation_abort().
int lapis_reserve(const struct lapis_pool_t *pool,
                  const struct lapis_key_t *keys,
                  size_t keys_count,
                  const struct lapis_key_t *parent,
                  const struct lapis_put_options_t *options,
                  int32_t *results,
                  void **places,
                  struct lapis_reservation_t **reservation);

// Copies bytes into the slot of key `index`, from `offset` on. LAPIS_E_ARGUMENT if it has none.
int lapis_reservation_write(struct lapis_reservation_t *reservation,
                            size_t index,
                            uint64_t offset,
                            const void *src,
                            size_t src_bytes);

// Stores what the slots hold, all of which are full now; they are not the caller's any more. `sums`, if not null, has one
// element a key (lapis_sum; of keys without a slot anything): the slots are not read once more then; for pools of one
// piece. `results` and `stored` are those of lapis_put_from(). The reservation is still to be freed.
int lapis_reservation_commit(struct lapis_reservation_t *reservation,
                             const uint64_t *sums,
                             const struct lapis_put_options_t *options,
                             int32_t *results,
                             size_t *stored);

// Frees a reservation; slots that were not committed go back unused, and no device may write there any more by then.
// Null is no mistake.
int lapis_reservation_abort(struct lapis_reservation_t *reservation);

// The sum of a block of one piece, as lapis_reservation_commit() takes it.
int lapis_sum(const struct lapis_pool_t *pool,
              const struct lapis_key_t *key,
              const void *block,
              size_t block_bytes,
              uint64_t *sum);

// lapis_get_into() without waiting: nothing is copied before the first poll. `dst` belongs to the ticket until it was
// answered or freed; keys and options need not outlive this call. Freed by lapis_get_ticket_free().
int lapis_begin_get(const struct lapis_pool_t *pool,
                    const struct lapis_key_t *keys,
                    size_t keys_count,
                    void *dst,
                    size_t dst_bytes,
                    const struct lapis_get_options_t *options,
                    struct lapis_get_ticket_t **ticket);

// lapis_get_into_vectors() without waiting, as lapis_begin_get(). The vectors themselves need not outlive this call,
// only the memory that they name.
int lapis_begin_get_vectors(const struct lapis_pool_t *pool,
                            const struct lapis_key_t *keys,
                            size_t keys_count,
                            const struct iovec *vectors,
                            size_t vectors_count,
                            const struct lapis_get_options_t *options,
                            struct lapis_get_ticket_t **ticket);

// Goes on without waiting. `done` becomes true once: when all has come or the deadline is over; then `hit_bytes` and
// `hits` are as lapis_get_into() has them, and the ticket is of no more use than to be freed.
int lapis_get_ticket_poll(struct lapis_get_ticket_t *ticket,
                          bool *done,
                          uint32_t *hit_bytes,
                          size_t *hits);

// Microseconds until poll says done at the latest; 0 when it was answered.
int lapis_get_ticket_left_us(const struct lapis_get_ticket_t *ticket,
                             uint64_t *left_us);

// Frees a ticket; what has not come by then is given up. Null is no mistake.
int lapis_get_ticket_free(struct lapis_get_ticket_t *ticket);

// lapis_put_from() without waiting: nothing is copied before the first poll. `src` belongs to the ticket until it was
// answered or freed; keys, parent and options need not outlive this call. Freed by lapis_put_ticket_free().
int lapis_begin_put(const struct lapis_pool_t *pool,
                    const struct lapis_key_t *keys,
                    size_t keys_count,
                    const struct lapis_key_t *parent,
                    const void *src,
                    size_t src_bytes,
                    const struct lapis_put_options_t *options,
                    struct lapis_put_ticket_t **ticket);

// lapis_put_from_vectors() without waiting, as lapis_begin_put(). The vectors themselves need not outlive this call,
// only the memory that they name.
int lapis_begin_put_vectors(const struct lapis_pool_t *pool,
                            const struct lapis_key_t *keys,
                            size_t keys_count,
                            const struct lapis_key_t *parent,
                            const struct iovec *vectors,
                            size_t vectors_count,
                            const struct lapis_put_options_t *options,
                            struct lapis_put_ticket_t **ticket);

// Goes on without waiting; copies as far as there are slots. `done` becomes true once: when all results are there or the
// deadline is over; then `results` and `stored` are as lapis_put_from() has them, and the ticket is of no more use than
// to be freed.
int lapis_put_ticket_poll(struct lapis_put_ticket_t *ticket,
                          bool *done,
                          int32_t *results,
                          size_t *stored);

// Microseconds until poll says done at the latest; 0 when it was answered.
int lapis_put_ticket_left_us(const struct lapis_put_ticket_t *ticket,
                             uint64_t *left_us);

// Frees a ticket; what was not stored by then may be or not. Null is no mistake.
int lapis_put_ticket_free(struct lapis_put_ticket_t *ticket);

// Pins blocks where they are. Only what is in memory; no view is given while the daemon is another one than this client
// has registered with. `pointers` and `lengths` have one element a key: null and 0 for a miss. `lengths` may be null.
// `verify`: LAPIS_VERIFY_... The blocks are only to be read: other processes map them, too.
//
// Release views soon: over the daemon's limit of pinned bytes, and when others need them, the client is warned
// (lapis_client_warning), then given up. Freed by lapis_views_release().
int lapis_view(const struct lapis_pool_t *pool,
               const struct lapis_key_t *keys,
               size_t keys_count,
               uint32_t verify,
               const void **pointers,
               size_t *lengths,
               struct lapis_views_t **views);

// Whether what was read so far through each view was the block; ask after the last read. False once the daemon gave the
// client up or came back cold, for misses, and for what was released. `valid`, if not null, has one element a key;
// `valid_count`, if not null, is how many are.
int lapis_views_still_valid(const struct lapis_views_t *views,
                            bool *valid,
                            size_t *valid_count);

// Copies bytes of the view of key `index`, from `offset` on. LAPIS_E_ARGUMENT if it is a miss or was released.
int lapis_views_copy(const struct lapis_views_t *views,
                     size_t index,
                     size_t offset,
                     void *dst,
                     size_t dst_bytes);

// Releases the view of key `index` before the others: its pointer is not to be used any more.
int lapis_views_release_one(struct lapis_views_t *views,
                            size_t index);

// Releases all views and frees the handle: no pointer of theirs is to be used any more. Null is no mistake.
int lapis_views_release(struct lapis_views_t *views);

// Where the bytes are, until they are freed; null only for null.
const void *lapis_bytes_data(const struct lapis_bytes_t *bytes);

// How many there are; 0 for null.
size_t lapis_bytes_count(const struct lapis_bytes_t *bytes);

// Frees the bytes. Null is no mistake.
int lapis_bytes_free(struct lapis_bytes_t *bytes);

// Fetches blocks into memory ahead of their use. There is no answer: LAPIS_OK says that the daemon was told.
int lapis_prefetch(const struct lapis_pool_t *pool,
                   const struct lapis_key_t *keys,
                   size_t keys_count);

// Tells what is known of the future of these blocks: a LAPIS_HINT_ value, and what it takes, else 0. There is no answer:
// LAPIS_OK says that the daemon was told.
int lapis_hint(const struct lapis_pool_t *pool,
               const struct lapis_key_t *keys,
               size_t keys_count,
               uint32_t hint,
               uint32_t value);

// Offers blocks that were put here to another host, as peers.members calls it: it reads what it has room for. `there`, if not
// null, is how many are there then. `deadline_us`: microseconds, or LAPIS_DEADLINE_...
int lapis_offer(const struct lapis_pool_t *pool,
                const struct lapis_key_t *keys,
                size_t keys_count,
                const char *peer,
                int64_t deadline_us,
                uint64_t *there);

// Forgets blocks. `removed`, if not null, is how many there were. `deadline_us`: microseconds, or LAPIS_DEADLINE_...
int lapis_remove(const struct lapis_pool_t *pool,
                 const struct lapis_key_t *keys,
                 size_t keys_count,
                 int64_t deadline_us,
                 uint64_t *removed);

// Forgets every block of a pool. `removed` and `deadline_us` are those of lapis_remove().
int lapis_purge(const struct lapis_pool_t *pool,
                int64_t deadline_us,
                uint64_t *removed);

// Stores an object, whole or not at all, under a name of 1 to 1024 bytes. Objects never change: a name that is there is
// answered LAPIS_EXISTS. `bytes` may be null where there are none. `result`: LAPIS_STORED, LAPIS_EXISTS or a
// LAPIS_REFUSED_ value.
int lapis_put_object(const struct lapis_pool_t *pool,
                     const void *name,
                     size_t name_bytes,
                     const void *bytes,
                     size_t bytes_count,
                     const struct lapis_put_options_t *options,
                     int32_t *result);

// The bytes of an object, or null in `object` if it is not there as a whole. `deadline_us`, or LAPIS_DEADLINE_...: of
// the whole call; by default each part that has to be fetched may take as long as a get of as many bytes. Freed by
// lapis_bytes_free().
int lapis_get_object(const struct lapis_pool_t *pool,
                     const void *name,
                     size_t name_bytes,
                     int64_t deadline_us,
                     struct lapis_bytes_t **object);

// Forgets an object. `removed`, if not null, is whether it was there. `deadline_us`: microseconds, or
// LAPIS_DEADLINE_...
int lapis_remove_object(const struct lapis_pool_t *pool,
                        const void *name,
                        size_t name_bytes,
                        int64_t deadline_us,
                        bool *removed);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LAPIS_H */
