/* The stand-in's libspdk_env_dpdk: start, registered memory, memory for devices. */
#include "standin.h"
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>

enum { RANGES = 4096 };
static const uintptr_t HUGE_BYTES = 2 << 20;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct range { uintptr_t at; size_t bytes; int allocated, reach; } ranges[RANGES];
static int up, misuse;

/* How a device reaches what is registered from now on: by the memory's own addresses, which an IOMMU maps and pins; by physical
 * ones, which are true of reserved huge pages alone; or not at all, as registration has failed and said nothing of it. */
enum { BY_IOMMU, BY_PHYSICAL, NOT_AT_ALL };
static int reach = BY_IOMMU;
void standin_reach(int how) { reach = how; }
static char last[512];

void standin_wrong(const char *what, ...)
{
	va_list args;
	va_start(args, what);
	vsnprintf(last, sizeof(last), what, args);
	va_end(args);
	__atomic_add_fetch(&misuse, 1, __ATOMIC_SEQ_CST);
	fprintf(stderr, "spdk stand-in: MISUSE: %s\n", last);
}

int standin_misuse(void) { return __atomic_load_n(&misuse, __ATOMIC_SEQ_CST); }
const char *standin_last_misuse(void) { return last; }
void standin_forgive(void) { __atomic_store_n(&misuse, 0, __ATOMIC_SEQ_CST); }
int standin_env_up(void) { return up; }

/* Bytes that are registered, those allocated here not counted. */
uint64_t standin_registered_bytes(void)
{
	uint64_t sum = 0;
	pthread_mutex_lock(&lock);
	for (int i = 0; i < RANGES; i++) sum += ranges[i].allocated ? 0 : ranges[i].bytes;
	pthread_mutex_unlock(&lock);
	return sum;
}

static struct range *around(uintptr_t at)
{
	for (int i = 0; i < RANGES; i++)
		if (ranges[i].bytes && ranges[i].at <= at && at < ranges[i].at + ranges[i].bytes) return &ranges[i];
	return NULL;
}

int standin_registered(const void *start, size_t bytes)
{
	uintptr_t at = (uintptr_t)start, end = at + bytes;
	pthread_mutex_lock(&lock);
	while (at < end) {
		struct range *found = around(at);
		if (!found || found->reach != BY_IOMMU) break;
		at = found->at + found->bytes;
	}
	pthread_mutex_unlock(&lock);
	return at >= end;
}

static int add(uintptr_t at, size_t bytes, int allocated)
{
	for (int i = 0; i < RANGES; i++)
		if (!ranges[i].bytes) { ranges[i] = (struct range){ at, bytes, allocated, allocated ? BY_IOMMU : reach }; return 0; }
	return -ENOMEM;
}

void spdk_env_opts_init(struct spdk_env_opts *opts)
{
	size_t size = opts->opts_size;
	if (size < offsetof(struct spdk_env_opts, opts_size) + sizeof(size)) standin_wrong("opts_size is %zu", size);
	memset(opts, 0, size < sizeof(*opts) ? size : sizeof(*opts));
	opts->opts_size = size;
	opts->name = "spdk";
	opts->core_mask = "0x1";
	opts->shm_id = opts->mem_size = opts->main_core = opts->mem_channel = -1;
	opts->base_virtaddr = 0x200000000000;
}

int spdk_env_init(const struct spdk_env_opts *opts)
{
	if (up) { standin_wrong("spdk_env_init twice"); return -EALREADY; }
	if (!opts || !opts->name || !opts->core_mask) { standin_wrong("spdk_env_init without options"); return -EINVAL; }
	if (opts->core_mask[0] != '[' && strncmp(opts->core_mask, "0x", 2)) standin_wrong("core mask %s", opts->core_mask);
	if (!opts->unlink_hugepage) standin_wrong("huge pages of a killed process would stay");
	if (getenv("SPDK_STANDIN_NO_HUGE")) return -ENOMEM;
	return up = 1, 0;
}

int spdk_mem_register(void *start, size_t bytes)
{
	uintptr_t at = (uintptr_t)start;
	if (!up) { standin_wrong("spdk_mem_register before spdk_env_init"); return -EINVAL; }
	if (at % HUGE_BYTES || bytes % HUGE_BYTES || !bytes) {
		standin_wrong("spdk_mem_register of %p, %zu bytes: not made of 2 MiB", start, bytes);
		return -EINVAL;
	}
	unsigned char there[HUGE_BYTES / 4096];
	for (uintptr_t page = at; page < at + bytes; page += HUGE_BYTES)
		if (mincore((void *)page, HUGE_BYTES, there)) { standin_wrong("spdk_mem_register of memory that is not mapped"); return -EFAULT; }
	pthread_mutex_lock(&lock);
	int rc = 0;
	for (int i = 0; i < RANGES; i++)
		if (ranges[i].bytes && ranges[i].at < at + bytes && at < ranges[i].at + ranges[i].bytes) rc = -EBUSY;
	if (!rc) rc = add(at, bytes, 0);
	pthread_mutex_unlock(&lock);
	if (rc == -EBUSY) standin_wrong("spdk_mem_register of what is registered");
	return rc;
}

int spdk_mem_unregister(void *start, size_t bytes)
{
	int rc = -EINVAL;
	pthread_mutex_lock(&lock);
	struct range *found = around((uintptr_t)start);
	if (found && found->at == (uintptr_t)start && found->bytes == bytes && !found->allocated) found->bytes = 0, rc = 0;
	pthread_mutex_unlock(&lock);
	if (rc) standin_wrong("spdk_mem_unregister of what is not registered");
	return rc;
}

/* The address that a device has for this one, and how many bytes from there on lie in one piece. */
uint64_t spdk_vtophys(const void *start, uint64_t *size)
{
	uintptr_t at = (uintptr_t)start;
	uint64_t to = UINT64_MAX;
	pthread_mutex_lock(&lock);
	struct range *found = around(at);
	if (found && found->reach != NOT_AT_ALL) {
		uint64_t left = found->at + found->bytes - at, page = HUGE_BYTES - at % HUGE_BYTES;
		to = found->reach == BY_PHYSICAL ? (uint64_t)at ^ 1ull << 46 : at;
		if (found->reach == BY_PHYSICAL && left > page) left = page;
		if (size && *size > left) *size = left;
	}
	pthread_mutex_unlock(&lock);
	return to;
}

void *spdk_zmalloc(size_t size, size_t align, uint64_t *unused, int numa, uint32_t flags)
{
	(void)numa;
	if (!up || unused || !(flags & 3) || (align & (align - 1))) { standin_wrong("spdk_zmalloc"); return NULL; }
	void *at = NULL;
	if (posix_memalign(&at, align < 64 ? 64 : align, size)) return NULL;
	memset(at, 0, size);
	pthread_mutex_lock(&lock);
	int rc = add((uintptr_t)at, size, 1);
	pthread_mutex_unlock(&lock);
	if (rc) { free(at); return NULL; }
	return at;
}

void spdk_free(void *at)
{
	pthread_mutex_lock(&lock);
	struct range *found = around((uintptr_t)at);
	int known = found && found->at == (uintptr_t)at && found->allocated;
	if (known) { memset(at, 0xdd, found->bytes); found->bytes = 0; }
	pthread_mutex_unlock(&lock);
	if (known) free(at);
	else if (at) standin_wrong("spdk_free of what spdk_zmalloc did not give");
}
