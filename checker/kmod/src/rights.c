// SPDX-License-Identifier: GPL-2.0
/* What users without CAP_SYS_MODULE may insert, where the administrator lets them (`unprivileged`): handlers for direct calls, each of them small,
 * and all of a user's together as well. Half of what all handlers share, and seven eighths of the memory, stay for others, whatever the number
 * of such users (one who has subordinate user ids is many). */
#include <linux/capability.h>
#include <linux/module.h>
#include "internal.h"

/* Longest image file and text, bytes: the kernel reads and checks them at a stretch. */
#define IMAGE_LIMIT (64UL << 20)
#define UNPRIVILEGED_IMAGE_LIMIT (8UL << 20)
#define UNPRIVILEGED_TEXT_LIMIT (256UL << 10)

static bool allowed;
static unsigned long memory_mb = 32, handlers = 8, time_ms = 10;

module_param_named(unprivileged, allowed, bool, 0644);
MODULE_PARM_DESC(unprivileged, "let users without CAP_SYS_MODULE insert handlers for direct calls (off; see checker/AUDIT.md)");
module_param_named(unprivileged_memory_mb, memory_mb, ulong, 0644);
MODULE_PARM_DESC(unprivileged_memory_mb, "memory that all handlers of such a user may have (32)");
module_param_named(unprivileged_handlers, handlers, ulong, 0644);
MODULE_PARM_DESC(unprivileged_handlers, "handlers that such a user may have (8)");
module_param_named(unprivileged_time_limit_ms, time_ms, ulong, 0644);
MODULE_PARM_DESC(unprivileged_time_limit_ms, "greatest time limit of a call of such a handler (10)");

/* Whether the caller may insert at all. */
bool cordon_may_insert(void)
{
	return capable(CAP_SYS_MODULE) || READ_ONCE(allowed);
}

/* Greatest length of the caller's image file, bytes. */
u64 cordon_image_limit(void)
{
	return capable(CAP_SYS_MODULE) ? IMAGE_LIMIT : UNPRIVILEGED_IMAGE_LIMIT;
}

/* Greatest length of text, bytes. */
u64 cordon_text_limit(const struct cordon_handler *handler)
{
	return handler->unprivileged ? UNPRIVILEGED_TEXT_LIMIT : CORDON_ARENA_BYTES;
}

/* Greatest time limit of a call, ns. */
u64 cordon_time_limit_max(const struct cordon_handler *handler)
{
	u64 limit = (u64)READ_ONCE(cordon_time_limit_max_ms) * NSEC_PER_MSEC;

	return handler->unprivileged ? min_t(u64, limit, (u64)READ_ONCE(time_ms) * NSEC_PER_MSEC) : limit;
}

/* Whether a handler may import what is called so: the kernel's log is not for everybody. */
bool cordon_may_import(const struct cordon_handler *handler, const u8 *name, size_t length)
{
	static const char log[] = "cordon_log";

	return !handler->unprivileged || length != sizeof(log) - 1 || memcmp(name, log, length);
}

/* Whether a handler with so much memory, text and stubs (bytes) and so many instructions is within its user's limits, and all such users' together
 * within theirs. Needs cordon_lock. */
bool cordon_within_quota(const struct cordon_handler *handler, u64 memory, u64 text, u32 instructions)
{
	u64 count = 1, pages = PAGE_ALIGN(text) >> PAGE_SHIFT, entries = instructions + 1, whole = memory;
	const struct cordon_handler *other;

	if (!handler->unprivileged)
		return true;
	list_for_each_entry(other, &cordon_handlers, list) {
		if (!other->unprivileged)
			continue;
		pages += other->page_count;
		entries += other->fault_count;
		whole += other->window_pages << PAGE_SHIFT;
		if (uid_eq(other->owner, handler->owner)) {
			count++;
			memory += other->window_pages << PAGE_SHIFT;
		}
	}
	return count <= READ_ONCE(handlers) && memory <= (u64)READ_ONCE(memory_mb) << 20 && whole <= ((u64)totalram_pages() << PAGE_SHIFT) / 8 &&
	       pages <= CORDON_ARENA_BYTES / PAGE_SIZE / 2 && entries <= CORDON_EXTABLE_ENTRIES / 2;
}
