/* The stand-in's libspdk_nvme: controllers over files or memory, one namespace each, with faults by plan. */
#include "standin.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DRIVES = 64, COMMANDS = 512, NAMESPACE = 1 };
enum { OP_FLUSH, OP_WRITE, OP_READ, OP_DISCARD };
enum { FINE = 0, ABORTED = 0x08, OUT_OF_RANGE = 0x80 };

struct spdk_nvme_transport_id { char trstring[33]; int trtype, adrfam; char traddr[257], trsvcid[33], subnqn[224]; int priority; };
struct spdk_nvme_cpl { uint32_t cdw0, cdw1; uint16_t sqhd, sqid, cid, status; };
struct spdk_nvme_dsm_range { uint32_t attributes, length; uint64_t lba; };
typedef void (*spdk_nvme_cmd_cb)(void *, const struct spdk_nvme_cpl *);

struct command {
	int used, op, is_last;
	char *payload;
	uint64_t at, bytes, due_ns, order;
	spdk_nvme_cmd_cb done;
	void *arg;
};

struct spdk_nvme_ns { struct spdk_nvme_ctrlr *of; };
struct spdk_nvme_qpair {
	struct spdk_nvme_ctrlr *of;
	int alive, in_callbacks, has_thread;
	pthread_t thread;
	uint64_t order;
	unsigned used;
	struct command commands[COMMANDS];
};

/* How often and when things go wrong; 0: never. */
struct plan {
	uint64_t seed, depth, delay_us, fail_read, fail_write, fail_flush, fail_discard, status, nomem_every;
	uint64_t fail_after, remove_after, back_after_ms, hang_after, reset_fails;
};

struct spdk_nvme_ctrlr {
	char address[64];
	int fd;
	char *memory;
	uint64_t bytes, random, submitted, reads, writes, flushes, discards, resets, connects;
	uint32_t sector, metadata, transfer_max, command_set;
	int attached, failed, removed, pulled, qpairs, plugged, news;
	uint64_t back_ns; /* when it is plugged again, by plan */
	struct plan plan;
	struct spdk_nvme_ns ns;
	/* What identify says; the same in every copy of it, as SPDK's are. */
	char identify[4096], identify_ns[4096];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct spdk_nvme_ctrlr drives[DRIVES];

static uint64_t now_ns(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static uint64_t chance(struct spdk_nvme_ctrlr *of)
{
	of->random += 0x9e3779b97f4a7c15;
	uint64_t x = of->random;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static void read_plan(struct plan *plan, const char *text)
{
	struct { const char *name; uint64_t *value; } words[] = {
		{ "seed", &plan->seed }, { "depth", &plan->depth }, { "delay_us", &plan->delay_us },
		{ "fail_read", &plan->fail_read }, { "fail_write", &plan->fail_write }, { "fail_flush", &plan->fail_flush },
		{ "fail_discard", &plan->fail_discard }, { "status", &plan->status }, { "nomem_every", &plan->nomem_every },
		{ "fail_after", &plan->fail_after }, { "remove_after", &plan->remove_after }, { "hang_after", &plan->hang_after },
		{ "reset_fails", &plan->reset_fails }, { "back_after_ms", &plan->back_after_ms },
	};
	memset(plan, 0, sizeof(*plan));
	plan->depth = COMMANDS;
	plan->status = 0x281;
	char copy[512];
	snprintf(copy, sizeof(copy), "%s", text ? text : "");
	for (char *rest = copy, *word; (word = strsep(&rest, ",")) != NULL;) {
		char *value = strchr(word, '=');
		size_t i = 0, count = sizeof(words) / sizeof(words[0]);
		if (!*word) continue;
		if (value) *value++ = 0;
		while (i < count && strcmp(words[i].name, word)) i++;
		if (i == count || !value) { standin_wrong("a plan that says %s", word); continue; }
		*words[i].value = strtoull(value, NULL, 0);
	}
	if (plan->depth > COMMANDS) plan->depth = COMMANDS;
}

static struct spdk_nvme_ctrlr *known(const char *address)
{
	for (int i = 0; i < DRIVES; i++)
		if (!strcmp(drives[i].address, address)) return &drives[i];
	return NULL;
}

/* Who a drive says that it is. */
static void is_called(struct spdk_nvme_ctrlr *drive, const char *serial)
{
	snprintf(drive->identify + 4, 21, "%-20s", serial);
	snprintf(drive->identify + 24, 41, "%-40s", "stand-in");
	snprintf(drive->identify_ns + 104, 17, "%-16s", serial);
}

/* Makes a drive, or changes one that nobody has: over the file at `path`, or in memory where that is NULL. */
int standin_drive(const char *address, const char *path, uint64_t bytes, uint32_t sector, uint32_t metadata, uint32_t transfer_max, uint32_t command_set)
{
	pthread_mutex_lock(&lock);
	struct spdk_nvme_ctrlr *drive = known(address);
	for (int i = 0; !drive && i < DRIVES; i++)
		if (!drives[i].address[0]) { drive = &drives[i]; drive->fd = -1; }
	int rc = drive && !drive->attached ? 0 : -EBUSY;
	if (!rc) {
		snprintf(drive->address, sizeof(drive->address), "%s", address);
		if (drive->fd >= 0) close(drive->fd);
		free(drive->memory);
		drive->memory = NULL;
		drive->fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
		if (path && (drive->fd < 0 || ftruncate(drive->fd, bytes))) rc = -errno;
		if (!path) drive->memory = calloc(1, bytes);
		drive->bytes = bytes;
		drive->sector = sector;
		drive->metadata = metadata;
		drive->transfer_max = transfer_max;
		drive->command_set = command_set;
		drive->plugged = 1;
		drive->removed = drive->failed = drive->pulled = 0;
		drive->submitted = drive->reads = drive->writes = drive->flushes = drive->discards = drive->resets = drive->connects = 0;
		is_called(drive, address);
		read_plan(&drive->plan, "");
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

/* From now on; counts of commands begin anew. */
void standin_plan(const char *address, const char *text)
{
	pthread_mutex_lock(&lock);
	struct spdk_nvme_ctrlr *drive = known(address);
	if (drive) { read_plan(&drive->plan, text); drive->random = drive->plan.seed; drive->submitted = 0; }
	pthread_mutex_unlock(&lock);
	if (!drive) standin_wrong("a plan for %s, which there is not", address);
}

/* Another drive in the place of one that nobody has, or of one that was pulled. */
void standin_swap(const char *address, const char *serial)
{
	struct spdk_nvme_ctrlr *drive = known(address);
	if (drive) is_called(drive, serial);
}

/* Puts a drive that was removed back in its place, or pulls one that nobody has. */
void standin_plug(const char *address, int plugged)
{
	struct spdk_nvme_ctrlr *drive = known(address);
	if (drive) drive->plugged = plugged;
}

uint64_t standin_count(const char *address, const char *of)
{
	struct spdk_nvme_ctrlr *d = known(address);
	if (!d) return 0;
	return !strcmp(of, "reads") ? d->reads : !strcmp(of, "writes") ? d->writes : !strcmp(of, "flushes") ? d->flushes :
	       !strcmp(of, "discards") ? d->discards : !strcmp(of, "resets") ? d->resets :
	       !strcmp(of, "connects") ? d->connects :
	       !strcmp(of, "qpairs") ? (uint64_t)d->qpairs : !strcmp(of, "attached") ? (uint64_t)d->attached : 0;
}

/* Drives of a process that nobody sets up: files beside this library, named by address and bytes of a sector, as in
 * "0000:65:00.0.512"; "0000:65:00.0.plan" is what goes wrong with it. */
static struct spdk_nvme_ctrlr *from_folder(const char *address)
{
	Dl_info here;
	char library[3072], path[4096], plan[512] = "";
	struct stat found;
	uint32_t sector = 512;
	if (!dladdr((void *)&standin_drive, &here)) return NULL;
	snprintf(library, sizeof(library), "%s", here.dli_fname);
	const char *folder = dirname(library);
	for (;; sector = 4096) {
		snprintf(path, sizeof(path), "%s/%s.%u", folder, address, sector);
		if (!stat(path, &found)) break;
		if (sector == 4096) return NULL;
	}
	if (standin_drive(address, path, found.st_size, sector, 0, 128 << 10, 0)) return NULL;
	struct spdk_nvme_ctrlr *drive = known(address);
	snprintf(path, sizeof(path), "%s/%s.plan", folder, address);
	FILE *file = fopen(path, "r");
	if (file) {
		if (!fgets(plan, sizeof(plan), file)) plan[0] = 0;
		fclose(file);
	}
	plan[strcspn(plan, "\n")] = 0;
	read_plan(&drive->plan, plan);
	drive->random = drive->plan.seed;
	return drive;
}

int spdk_nvme_transport_id_parse(struct spdk_nvme_transport_id *id, const char *text)
{
	if (sscanf(text, "trtype:PCIe traddr:%256s", id->traddr) != 1) { standin_wrong("transport id %s", text); return -EINVAL; }
	id->trtype = 256;
	return 0;
}

struct spdk_nvme_ctrlr *spdk_nvme_connect(const struct spdk_nvme_transport_id *id, const void *opts, size_t opts_size)
{
	if (!standin_env_up()) { standin_wrong("spdk_nvme_connect before spdk_env_init"); return NULL; }
	if (opts || opts_size) { standin_wrong("options of a controller are not known here"); return NULL; }
	struct spdk_nvme_ctrlr *drive = known(id->traddr);
	if (!drive) drive = from_folder(id->traddr);
	if (drive && drive->back_ns && now_ns() >= drive->back_ns) { drive->plugged = 1; drive->back_ns = 0; }
	if (!drive || !drive->plugged) return NULL;
	if (drive->attached) { standin_wrong("%s is connected twice", id->traddr); return NULL; }
	/* As SPDK's claim of a device: another process has it until it ends. */
	if (drive->fd >= 0) {
		struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		if (fcntl(drive->fd, F_SETLK, &whole)) return NULL;
	}
	drive->attached = 1;
	drive->failed = drive->removed = drive->pulled = 0;
	drive->connects++;
	drive->ns.of = drive;
	return drive;
}

int spdk_nvme_detach(struct spdk_nvme_ctrlr *drive)
{
	if (!drive->attached) { standin_wrong("spdk_nvme_detach twice"); return -EINVAL; }
	if (drive->qpairs) standin_wrong("spdk_nvme_detach with %d queue pairs", drive->qpairs);
	struct flock whole = { .l_type = F_UNLCK, .l_whence = SEEK_SET };
	if (drive->fd >= 0) fcntl(drive->fd, F_SETLK, &whole);
	drive->attached = 0;
	return 0;
}

static int usable(struct spdk_nvme_ctrlr *drive, const char *call)
{
	if (drive->attached) return 1;
	standin_wrong("%s of a controller that was detached", call);
	return 0;
}

struct spdk_nvme_ns *spdk_nvme_ctrlr_get_ns(struct spdk_nvme_ctrlr *drive, uint32_t number)
{
	return usable(drive, "spdk_nvme_ctrlr_get_ns") && number == NAMESPACE ? &drive->ns : NULL;
}

bool spdk_nvme_ns_is_active(struct spdk_nvme_ns *ns) { return ns && ns->of->attached; }
uint32_t spdk_nvme_ns_get_sector_size(struct spdk_nvme_ns *ns) { return ns->of->sector; }
/* Metadata lies apart from the sectors, so that these are as long as without. */
uint32_t spdk_nvme_ns_get_extended_sector_size(struct spdk_nvme_ns *ns) { return ns->of->sector; }
uint32_t spdk_nvme_ns_get_md_size(struct spdk_nvme_ns *ns) { return ns->of->metadata; }
int spdk_nvme_ns_get_csi(const struct spdk_nvme_ns *ns) { return ns->of->command_set; }
const void *spdk_nvme_ns_get_data(struct spdk_nvme_ns *ns) { return ns->of->identify_ns; }
const void *spdk_nvme_ctrlr_get_data(struct spdk_nvme_ctrlr *drive) { return drive->identify; }
uint64_t spdk_nvme_ns_get_num_sectors(struct spdk_nvme_ns *ns) { return ns->of->bytes / ns->of->sector; }
uint32_t spdk_nvme_ns_get_max_io_xfer_size(struct spdk_nvme_ns *ns) { return ns->of->transfer_max; }
bool spdk_nvme_ctrlr_is_failed(struct spdk_nvme_ctrlr *drive) { return usable(drive, "spdk_nvme_ctrlr_is_failed") && drive->failed; }

/* As SPDK: that a controller was pulled is found out here alone, of all of them. */
int spdk_nvme_scan_attached(const struct spdk_nvme_transport_id *id)
{
	if (!standin_env_up()) { standin_wrong("spdk_nvme_scan_attached before spdk_env_init"); return -EINVAL; }
	if (id->trtype != 256) { standin_wrong("spdk_nvme_scan_attached of another transport"); return -EINVAL; }
	for (int i = 0; i < DRIVES; i++)
		if (drives[i].attached && drives[i].pulled) drives[i].failed = drives[i].removed = 1;
	return 0;
}

int32_t spdk_nvme_ctrlr_process_admin_completions(struct spdk_nvme_ctrlr *drive)
{
	if (!usable(drive, "spdk_nvme_ctrlr_process_admin_completions")) return -ENXIO;
	if (drive->news) drive->failed = 1, drive->news = 0;
	return drive->failed ? -ENXIO : 0;
}

struct spdk_nvme_qpair *spdk_nvme_ctrlr_alloc_io_qpair(struct spdk_nvme_ctrlr *drive, const void *opts, size_t opts_size)
{
	if (!usable(drive, "spdk_nvme_ctrlr_alloc_io_qpair") || drive->failed) return NULL;
	if (opts || opts_size) standin_wrong("options of a queue pair are not known here");
	struct spdk_nvme_qpair *pair = calloc(1, sizeof(*pair));
	pair->of = drive;
	pair->alive = 1;
	drive->qpairs++;
	return pair;
}

static int mine(struct spdk_nvme_qpair *pair, const char *call)
{
	if (!pair->alive) { standin_wrong("%s on a queue pair that was freed", call); return 0; }
	if (!pair->has_thread) { pair->has_thread = 1; pair->thread = pthread_self(); }
	if (!pthread_equal(pair->thread, pthread_self())) { standin_wrong("%s on another thread's queue pair", call); return 0; }
	return 1;
}

static void end(struct spdk_nvme_qpair *pair, struct command *command, uint16_t status)
{
	struct command ended = *command;
	struct spdk_nvme_cpl completion = { .status = (uint16_t)(status << 1 | 1) };
	command->used = 0;
	pair->used--;
	pair->in_callbacks = 1;
	ended.done(ended.arg, &completion);
	pair->in_callbacks = 0;
}

static void all_or_part(struct spdk_nvme_ctrlr *drive, struct command *command, uint64_t bytes)
{
	if (command->op == OP_READ || command->op == OP_WRITE)
		if (!standin_registered(command->payload, command->bytes)) { standin_wrong("memory was given up while a device had it"); return; }
	char *place = drive->memory ? drive->memory + command->at : NULL;
	if (command->op == OP_WRITE) {
		if (place) memcpy(place, command->payload, bytes);
		else if (pwrite(drive->fd, command->payload, bytes, command->at) != (ssize_t)bytes) standin_wrong("the file of a drive");
	} else if (command->op == OP_READ) {
		if (place) memcpy(command->payload, place, bytes);
		else if (pread(drive->fd, command->payload, bytes, command->at) != (ssize_t)bytes) standin_wrong("the file of a drive");
	}
}

static uint16_t outcome(struct spdk_nvme_ctrlr *drive, struct command *command)
{
	struct { uint64_t every, *count; } kinds[] = {
		[OP_READ] = { drive->plan.fail_read, &drive->reads }, [OP_WRITE] = { drive->plan.fail_write, &drive->writes },
		[OP_FLUSH] = { drive->plan.fail_flush, &drive->flushes }, [OP_DISCARD] = { drive->plan.fail_discard, &drive->discards },
	};
	uint64_t count = ++*kinds[command->op].count, every = kinds[command->op].every;
	if (command->at + command->bytes > drive->bytes) return OUT_OF_RANGE;
	if (every && count % every == 0) return drive->plan.status;
	return FINE;
}

static int submit(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *pair, struct command command)
{
	struct spdk_nvme_ctrlr *drive = ns->of;
	if (!usable(drive, "a command") || !mine(pair, "a command")) return -ENXIO;
	if (pair->of != drive) { standin_wrong("a namespace of another controller"); return -EINVAL; }
	if (drive->failed) return -ENXIO;
	if (command.op == OP_READ || command.op == OP_WRITE) {
		if (!command.bytes) { standin_wrong("a command of no sectors"); return -EINVAL; }
		if (command.bytes > drive->transfer_max) { standin_wrong("%lu bytes at once", (unsigned long)command.bytes); return -EINVAL; }
		if ((uintptr_t)command.payload % 4) { standin_wrong("an address that is no multiple of 4"); return -EFAULT; }
		if (!standin_registered(command.payload, command.bytes)) { standin_wrong("%lu bytes at %p are not registered, or not for good", (unsigned long)command.bytes, (void *)command.payload); return -EFAULT; }
	}
	uint64_t number = ++drive->submitted;
	struct plan *plan = &drive->plan;
	if (plan->nomem_every && number % plan->nomem_every == 0) return -ENOMEM;
	if (pair->used >= plan->depth) return -ENOMEM;
	if (plan->fail_after && number == plan->fail_after) drive->failed = 1;
	if (plan->remove_after && number == plan->remove_after) {
		drive->pulled = 1;
		drive->plugged = 0;
		if (plan->back_after_ms) drive->back_ns = now_ns() + plan->back_after_ms * 1000000;
	}
	command.used = 1;
	command.order = pair->order++;
	command.due_ns = now_ns() + (plan->delay_us ? chance(drive) % (plan->delay_us * 1000) : 0);
	if (plan->hang_after && number > plan->hang_after) command.due_ns = UINT64_MAX;
	struct command *place = pair->commands;
	while (place->used) place++;
	*place = command;
	pair->used++;
	return 0;
}

static int transfer(int op, struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *pair, void *payload, uint64_t lba, uint32_t count, spdk_nvme_cmd_cb done, void *arg, uint32_t flags)
{
	if (flags) standin_wrong("flags %x", flags);
	uint64_t sector = ns->of->sector;
	return submit(ns, pair, (struct command){ .op = op, .payload = payload, .at = lba * sector, .bytes = count * sector, .done = done, .arg = arg });
}

int spdk_nvme_ns_cmd_read(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *pair, void *to, uint64_t lba, uint32_t count, spdk_nvme_cmd_cb done, void *arg, uint32_t flags)
{
	return transfer(OP_READ, ns, pair, to, lba, count, done, arg, flags);
}

int spdk_nvme_ns_cmd_write(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *pair, void *from, uint64_t lba, uint32_t count, spdk_nvme_cmd_cb done, void *arg, uint32_t flags)
{
	return transfer(OP_WRITE, ns, pair, from, lba, count, done, arg, flags);
}

int spdk_nvme_ns_cmd_flush(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *pair, spdk_nvme_cmd_cb done, void *arg)
{
	return submit(ns, pair, (struct command){ .op = OP_FLUSH, .done = done, .arg = arg });
}

int spdk_nvme_ns_cmd_dataset_management(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *pair, uint32_t type, const struct spdk_nvme_dsm_range *ranges, uint16_t count, spdk_nvme_cmd_cb done, void *arg)
{
	if (type != 4 || count != 1 || ranges->attributes || !ranges->length) { standin_wrong("a dataset management that is no deallocation"); return -EINVAL; }
	uint64_t sector = ns->of->sector;
	return submit(ns, pair, (struct command){ .op = OP_DISCARD, .at = ranges->lba * sector, .bytes = ranges->length * sector, .done = done, .arg = arg });
}

int32_t spdk_nvme_qpair_process_completions(struct spdk_nvme_qpair *pair, uint32_t max)
{
	if (!mine(pair, "spdk_nvme_qpair_process_completions")) return -ENXIO;
	if (pair->in_callbacks) standin_wrong("spdk_nvme_qpair_process_completions in a callback");
	struct spdk_nvme_ctrlr *drive = pair->of;
	if (drive->failed) {
		/* As SPDK does of a controller that was removed. */
		for (int i = 0; drive->removed && i < COMMANDS; i++)
			if (pair->commands[i].used) end(pair, &pair->commands[i], ABORTED);
		return -ENXIO;
	}
	/* One that was pulled says nothing, not even that. */
	if (drive->pulled) return 0;
	uint64_t now = now_ns();
	int32_t ended = 0;
	for (;;) {
		struct command *next = NULL;
		for (unsigned i = 0, seen = 0; i < COMMANDS && seen < pair->used; i++) {
			struct command *c = &pair->commands[i];
			if (!c->used) continue;
			seen++;
			if (c->due_ns <= now && (!next || c->due_ns < next->due_ns || (c->due_ns == next->due_ns && c->order < next->order))) next = c;
		}
		if (!next) return ended;
		uint16_t status = outcome(drive, next);
		if (status == FINE) all_or_part(drive, next, next->bytes);
		end(pair, next, status);
		if (++ended == (int32_t)max) return ended;
	}
}

static void abort_all(struct spdk_nvme_qpair *pair)
{
	for (int i = 0; i < COMMANDS; i++) {
		struct command *command = &pair->commands[i];
		if (!command->used) continue;
		/* What a device did of a command that it did not answer is not known. */
		if (!pair->of->pulled && chance(pair->of) % 2 && command->at + command->bytes <= pair->of->bytes)
			all_or_part(pair->of, command, chance(pair->of) % (command->bytes / 512 + 1) * 512);
		end(pair, command, ABORTED);
	}
}

int spdk_nvme_ctrlr_free_io_qpair(struct spdk_nvme_qpair *pair)
{
	if (!pair->alive) { standin_wrong("spdk_nvme_ctrlr_free_io_qpair twice"); return 0; }
	if (pair->in_callbacks) { standin_wrong("a queue pair is freed in a callback of its own"); return 0; }
	usable(pair->of, "spdk_nvme_ctrlr_free_io_qpair");
	abort_all(pair);
	pair->alive = 0;
	pair->of->qpairs--;
	/* Kept, so that its use is seen. */
	return 0;
}

int spdk_nvme_ctrlr_reset(struct spdk_nvme_ctrlr *drive)
{
	if (!usable(drive, "spdk_nvme_ctrlr_reset")) return -1;
	drive->resets++;
	if (drive->removed) return -ENXIO;
	if (drive->plan.reset_fails || drive->pulled) { drive->failed = 1; return -1; }
	drive->failed = 0;
	return 0;
}

/* Fails a controller, or takes it out: as with SPDK, who does not ask for its news hears nothing of it. */
void standin_fail(const char *address, int removed)
{
	struct spdk_nvme_ctrlr *drive = known(address);
	if (!drive) return;
	if (removed) drive->pulled = 1, drive->plugged = 0;
	else drive->news = 1;
}
