// SPDX-License-Identifier: GPL-2.0
/* Three functions of mm/vmalloc.c that are not exported: only they reserve address space without page tables, at a given place, and map
 * pages into it read-only. Found by kprobe; called by static call, since their landing pads may be sealed. */
#include <linux/kprobes.h>
#include <linux/static_call.h>
#include "internal.h"

static struct vm_struct *no_area(unsigned long size, unsigned long flags)
{
	return NULL;
}

static struct vm_struct *no_area_at(unsigned long size, unsigned long flags, unsigned long start, unsigned long end, const void *caller)
{
	return NULL;
}

static int no_map(unsigned long start, unsigned long end, pgprot_t protection, struct page **pages, unsigned int shift)
{
	return -ENOSYS;
}

DEFINE_STATIC_CALL(cordon_get_vm_area, no_area);
DEFINE_STATIC_CALL(cordon_get_vm_area_at, no_area_at);
DEFINE_STATIC_CALL(cordon_vmap_pages, no_map);

/* The address of a function of the kernel, 0 if there is none of that name. */
static unsigned long function(const char *name)
{
	static const u8 endbr[4] = { 0xf3, 0x0f, 0x1e, 0xfa }, sealed[4] = { 0x66, 0x0f, 0x1f, 0x00 };
	struct kprobe probe = { .symbol_name = name };
	unsigned long address;

	if (register_kprobe(&probe))
		return 0;
	address = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	/* With landing pads the probe lies behind the function's. */
	if (IS_ENABLED(CONFIG_X86_KERNEL_IBT)) {
		const void *pad = (const void *)(address - 4);

		if (!memcmp(pad, endbr, 4) || !memcmp(pad, sealed, 4))
			address -= 4;
	}
	return address;
}

int cordon_symbols_find(void)
{
	unsigned long area = function("get_vm_area"), area_at = function("__get_vm_area_caller"), map = function("vmap_pages_range_noflush");

	if (!area || !area_at || !map) {
		pr_err("this kernel lacks get_vm_area, __get_vm_area_caller or vmap_pages_range_noflush\n");
		return -ENOENT;
	}
	static_call_update(cordon_get_vm_area, (void *)area);
	static_call_update(cordon_get_vm_area_at, (void *)area_at);
	static_call_update(cordon_vmap_pages, (void *)map);
	return 0;
}

/* Address space without pages; free_vm_area() takes it back with all its mappings. */
struct vm_struct *cordon_reserve(unsigned long size)
{
	return static_call(cordon_get_vm_area)(size, VM_MAP);
}

/* The same at exactly `start`; NULL if it is taken. A guard page follows. */
struct vm_struct *cordon_reserve_at(unsigned long size, unsigned long start)
{
	return static_call(cordon_get_vm_area_at)(size, VM_MAP, start, start + size + PAGE_SIZE, __builtin_return_address(0));
}

int cordon_map(unsigned long start, unsigned long end, pgprot_t protection, struct page **pages)
{
	return static_call(cordon_vmap_pages)(start, end, protection, pages, PAGE_SHIFT);
}
