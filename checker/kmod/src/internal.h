/* SPDX-License-Identifier: GPL-2.0 */
/* What the files of the module share. */
#ifndef CORDON_INTERNAL_H
#define CORDON_INTERNAL_H

#include <linux/atomic.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/uidgid.h>
#include <linux/vmalloc.h>
#include "../include/cordon.h"
#include "context.h"
#include "layout.h"
#include "rust.h"

#undef pr_fmt
#define pr_fmt(fmt) "cordon: " fmt

/* Bytes of the native stack that handlers may use, and what interrupts may need below (kernel-notes: 2.9 KiB were seen). rust/src/interface.rs
 * has the first number too. */
#define CORDON_STACK_BYTES (64 << 10)
#define CORDON_STACK_RESERVE (16 << 10)

/* Pages of a run of window memory. */
struct cordon_memory {
	s64 start, end; /* from the window's base */
	u32 kind;	/* enum cordon_region_kind; the table has CORDON_TABLE */
	struct page **pages;
};

#define CORDON_TABLE 5

struct cordon_window {
	struct vm_struct *area;
	u64 base;
	u32 memories;
	struct cordon_memory memory[CORDON_REGIONS + 1];
	raw_spinlock_t busy; /* a call is inside */
};

struct cordon_map;
struct sk_buff;

struct cordon_handler {
	struct list_head list; /* ascending by text; under cordon_lock */
	/* registry.c */
	struct kref users; /* descriptors, the pin, whoever looks at it */
	u32 id;		   /* 0 = none yet */
	bool ended, pinned, unprivileged;
	kuid_t owner;
	u32 pid;
	char process[TASK_COMM_LEN];
	char name[CORDON_NAME_BYTES];
	struct cordon_image image;
	u8 *note;
	/* arena.c */
	u8 *text;
	u8 *stubs; /* 5 bytes for each of `faults` */
	u32 *faults; /* text offsets of all instructions, ascending; the last one is the trap's */
	u32 fault_count;
	u32 *states; /* jumps.c: as many, of text that may longjmp */
	u32 first_page, page_count;
	/* window.c */
	u32 windows; /* 1, or one for each CPU that there may be, by number */
	struct cordon_window **window;
	u64 window_pages;
	/* host.c */
	atomic64_t log_since; /* when the lines that log_lines counts began, ns */
	atomic_t log_lines, log_left_out;
	/* map.c */
	struct cordon_map *maps[CORDON_MAPS];
	/* run.c */
	u64 *gates; /* by import: what its slot holds */
	/* events.c */
	struct mutex events_lock;
	struct list_head events;
	u32 next_event;
	atomic64_t calls, returned, stopped, missed, refused;
};

extern struct mutex cordon_lock; /* handlers, arena, exception table */
extern struct list_head cordon_handlers;
extern u64 cordon_arena_pages_used, cordon_window_pages_used, cordon_table_entries_used;

/* main.c */
void cordon_destroy(struct cordon_handler *handler);

/* registry.c */
void cordon_introduce(struct cordon_handler *handler, const char *name);
int cordon_register(struct cordon_handler *handler);
void cordon_put(struct cordon_handler *handler);
struct cordon_handler *cordon_get(u32 id, bool or_above);
int cordon_pin(struct cordon_handler *handler);
void cordon_unpin(struct cordon_handler *handler);
void cordon_end(struct cordon_handler *handler);
void cordon_tell(struct cordon_handler *handler, struct cordon_about *about);
void cordon_count(struct cordon_handler *handler, struct cordon_stats *stats);

/* rights.c */
bool cordon_may_insert(void);
bool cordon_may_import(const struct cordon_handler *handler, const u8 *name, size_t length);
u64 cordon_image_limit(void);
u64 cordon_text_limit(const struct cordon_handler *handler);
u64 cordon_time_limit_max(const struct cordon_handler *handler);
bool cordon_within_quota(const struct cordon_handler *handler, u64 memory, u64 text, u32 instructions);

/* symbols.c */
int cordon_symbols_find(void);
struct vm_struct *cordon_reserve(unsigned long size);
struct vm_struct *cordon_reserve_at(unsigned long size, unsigned long start);
int cordon_map(unsigned long start, unsigned long end, pgprot_t protection, struct page **pages);

/* arena.c */
int cordon_arena_clear(void);
void cordon_arena_init(void);
u64 cordon_text_bytes(u64 length, u32 instructions);
u32 cordon_text_place(struct cordon_handler *handler, const u8 *text, u32 instructions);
int cordon_text_arm(struct cordon_handler *handler, const u64 *scratch);
void cordon_text_remove(struct cordon_handler *handler);
bool cordon_in_text(const struct cordon_handler *handler, u64 address);
u64 cordon_trap(const struct cordon_handler *handler);

/* window.c */
int cordon_window_make(struct cordon_handler *handler, const u8 *file, u64 bytes);
void cordon_window_free(struct cordon_handler *handler);
u64 cordon_window_span(struct cordon_window *window, u64 offset, bool write);
const struct cordon_memory *cordon_window_area(const struct cordon_window *window, u32 kind);
struct cordon_window *cordon_window_of(const struct cordon_handler *handler, u32 cpu);
struct page *cordon_window_page(struct cordon_handler *handler, u64 offset, bool write);

/* stack.c */
int cordon_stacks_init(void);
void cordon_stacks_exit(void);
/* The highest address of the next level's stack on this CPU, or 0; preemption is off. */
u64 cordon_stack_take(void);
void cordon_stack_give(void);

/* watchdog.c */
int cordon_watchdog_init(void);
void cordon_watchdog_exit(void);
bool cordon_watchdog_armed(void);

/* gates.c */
u64 cordon_gate_address(const u8 *name, size_t length);
const char *cordon_gate_name(u64 index);
u32 cordon_gate_pay(struct cordon_context *context, u64 units);
u32 cordon_gate_range(struct cordon_context *context, u64 offset, u64 length, bool write, u8 **to);
u32 cordon_gate_give(struct cordon_context *context, s64 result);

/* host.c */
void cordon_host_init(void);
void cordon_host_exit(void);
u32 cordon_host_time(struct cordon_context *context);
u32 cordon_host_cpu(struct cordon_context *context);
u32 cordon_host_cpuid(struct cordon_context *context);
u32 cordon_host_log(struct cordon_context *context);
extern unsigned int cordon_log_lines;

/* packet.c */
int cordon_packet_prepare(struct cordon_window *window, struct cordon_run *run, struct cordon_job *job);
void cordon_packet_finish(struct cordon_window *window, const struct cordon_run *run, struct cordon_job *job);
u32 cordon_packet_store(struct cordon_context *context);
u32 cordon_packet_load(struct cordon_context *context);

/* jumps.c */
int cordon_jumps_make(struct cordon_handler *handler, const u64 *scratch);
void cordon_jumps_free(struct cordon_handler *handler);
u32 cordon_jump_set(struct cordon_context *context);
u32 cordon_jump_go(struct cordon_context *context);

/* map.c */
int cordon_map_create(const struct cordon_map_spec __user *argument);
int cordon_map_bind(struct cordon_handler *handler, const struct cordon_map_bind __user *argument);
void cordon_maps_release(struct cordon_handler *handler);
u32 cordon_map_lookup(struct cordon_context *context);
u32 cordon_map_update(struct cordon_context *context);
u32 cordon_map_delete(struct cordon_context *context);
u32 cordon_map_add(struct cordon_context *context);
extern atomic64_t cordon_maps_alive;

/* run.c */
DECLARE_PER_CPU(struct cordon_context *, cordon_current);
/* What an event brings along. */
struct cordon_job {
	/* Runs with the window taken, before the entry; a failure refuses the call. */
	int (*prepare)(struct cordon_window *window, struct cordon_run *run, struct cordon_job *job);
	/* Runs after it, with the window still taken. */
	void (*finish)(struct cordon_window *window, const struct cordon_run *run, struct cordon_job *job);
	struct sk_buff *packet;
	u8 family;     /* NFPROTO_IPV4 or NFPROTO_IPV6 */
	bool writable; /* the packet may be changed */
	bool changed;
	int failed;    /* changing it */
	u32 most;      /* bytes to be copied, 0 = all that fit */
	u32 copied;
};

int cordon_run_with(struct cordon_handler *handler, u64 entry, struct cordon_run *run, struct cordon_job *job);
int cordon_run(struct cordon_handler *handler, u64 entry, struct cordon_run *run);
int cordon_run_in(struct cordon_handler *handler, struct cordon_window *window, u64 entry, struct cordon_run *run);
extern unsigned long cordon_time_limit_ms, cordon_time_limit_max_ms, cordon_memory_limit_mb;

/* events.c */
int cordon_event_attach(struct cordon_handler *handler, const struct cordon_attach *wanted);
int cordon_event_detach(struct cordon_handler *handler, u32 number);
int cordon_event_tell(struct cordon_handler *handler, struct cordon_event_stats *stats);
void cordon_events_detach(struct cordon_handler *handler);
u32 cordon_events_count(struct cordon_handler *handler);

#endif
