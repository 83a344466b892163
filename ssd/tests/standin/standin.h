/* A stand-in for SPDK's environment and NVMe driver, for tests: what Lapis calls of them, over a file or memory. It says
 * what was called wrongly (standin_misuse) and does what a plan asks of it. Declarations follow SPDK's public headers. */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* SPDK 24.09 and later; the size of it is what the caller says in opts_size. */
struct spdk_env_opts {
	const char *name;
	const char *core_mask;
	const char *lcore_map;
	int shm_id, mem_channel, main_core, mem_size;
	bool no_pci, hugepage_single_segments, unlink_hugepage, no_huge;
	uint32_t reserved;
	size_t num_pci_addr;
	const char *hugedir;
	void *pci_blocked, *pci_allowed;
	const char *iova_mode;
	uint64_t base_virtaddr;
	void *env_context;
	const char *vf_token;
	size_t opts_size;
	bool enforce_numa;
	uint8_t reserved2[7];
};
_Static_assert(sizeof(struct spdk_env_opts) == 128, "as SPDK has it");

/* Counts and says what a caller did wrong. */
void standin_wrong(const char *what, ...);
/* Whether the environment was made. */
int standin_env_up(void);
/* Whether a device may reach all of it. */
int standin_registered(const void *at, size_t bytes);
