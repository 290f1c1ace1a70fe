// SPDX-License-Identifier: GPL-2.0
/* Windows, one for a handler or one for each CPU: 4 GiB of address space at the base, the table below it read-only, guards around it; the regions' pages are there from the start. */
#include <linux/cpumask.h>
#include <linux/gfp.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include "internal.h"

#define CONTROL SZ_128K
#define GUARD SZ_64K

/* The base has bit 20 set and native stacks have not: with K = 0 the two stacks' lines then do not collide (DESIGN section 4). */
static u64 base_in(const struct vm_struct *area)
{
	return ALIGN((u64)area->addr + CONTROL, SZ_2M) + SZ_1M;
}

static int map_memory(struct cordon_window *window, s64 start, s64 end, u32 kind)
{
	struct cordon_memory *memory = &window->memory[window->memories];
	bool read_only = kind == CORDON_RODATA || kind == CORDON_TABLE;
	u64 pages = (u64)(end - start) >> PAGE_SHIFT, i;

	*memory = (struct cordon_memory){ .start = start, .end = end, .kind = kind };
	memory->pages = kvcalloc(pages, sizeof(*memory->pages), GFP_KERNEL_ACCOUNT);
	if (!memory->pages)
		return -ENOMEM;
	window->memories++;
	for (i = 0; i < pages; i++) {
		memory->pages[i] = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
		if (!memory->pages[i])
			return -ENOMEM;
	}
	return cordon_map(window->base + start, window->base + end, read_only ? PAGE_KERNEL_RO : PAGE_KERNEL, memory->pages);
}

/* Copies to pages through the kernel's own mapping of them: theirs in the window may be read-only. */
static void fill(struct cordon_memory *memory, s64 offset, const u8 *from, u64 length)
{
	u64 at = offset - memory->start;

	while (length) {
		u64 part = min_t(u64, length, PAGE_SIZE - (at & ~PAGE_MASK));

		memcpy(page_address(memory->pages[at >> PAGE_SHIFT]) + (at & ~PAGE_MASK), from, part);
		at += part;
		from += part;
		length -= part;
	}
}

static struct cordon_memory *memory_at(struct cordon_window *window, u64 offset)
{
	u32 i;

	for (i = 0; i < window->memories; i++) {
		struct cordon_memory *memory = &window->memory[i];

		if (memory->kind != CORDON_TABLE && offset >= (u64)memory->start && offset < (u64)memory->end)
			return memory;
	}
	return NULL;
}

/* The slots' addresses; the pages are read-only for whoever looks through the window. */
static int fill_table(struct cordon_handler *handler, struct cordon_window *window)
{
	u64 bytes = handler->image.table_end - handler->image.table;
	u64 *words = kvmalloc(bytes, GFP_KERNEL);

	if (!words)
		return -ENOMEM;
	cordon_rs_tables(handler->note, handler->image.note_length, words, bytes / 8, (u64)handler->text, cordon_trap(handler),
			 handler->gates);
	fill(&window->memory[0], handler->image.table, (u8 *)words, bytes);
	kvfree(words);
	return 0;
}

static int make(struct cordon_handler *handler, struct cordon_window *window, const u8 *file)
{
	struct cordon_image *image = &handler->image;
	u32 i;
	int failed;

	raw_spin_lock_init(&window->busy);
	window->area = cordon_reserve(SZ_4G + CONTROL + GUARD + SZ_4M);
	if (!window->area)
		return -ENOMEM;
	window->base = base_in(window->area);
	failed = map_memory(window, image->table, image->table_end, CORDON_TABLE);
	if (!failed)
		failed = fill_table(handler, window);
	for (i = 0; i < image->regions && !failed; i++)
		failed = map_memory(window, image->region[i].start, image->region[i].end, image->region[i].kind);
	for (i = 0; i < image->segments && !failed; i++) {
		const struct cordon_segment *segment = &image->segment[i];
		struct cordon_memory *memory = memory_at(window, segment->start);

		if (!memory)
			return -EINVAL;
		fill(memory, segment->start, file + segment->offset, segment->length);
	}
	return failed;
}

/* Makes handler->windows of them, of `bytes` each. Needs the text's place and the gates. */
int cordon_window_make(struct cordon_handler *handler, const u8 *file, u64 bytes)
{
	u32 i;
	int failed = 0;

	handler->window = kvcalloc(handler->windows, sizeof(*handler->window), GFP_KERNEL_ACCOUNT);
	if (!handler->window)
		return -ENOMEM;
	for (i = 0; i < handler->windows && !failed; i++) {
		if (handler->windows > 1 && !cpu_possible(i))
			continue;
		handler->window[i] = kvzalloc(sizeof(**handler->window), GFP_KERNEL_ACCOUNT);
		failed = handler->window[i] ? make(handler, handler->window[i], file) : -ENOMEM;
		handler->window_pages += bytes >> PAGE_SHIFT;
	}
	return failed;
}

static void free_window(struct cordon_window *window)
{
	u32 i;

	if (window->area)
		free_vm_area(window->area);
	for (i = 0; i < window->memories; i++) {
		struct cordon_memory *memory = &window->memory[i];
		u64 pages = (u64)(memory->end - memory->start) >> PAGE_SHIFT, page;

		for (page = 0; page < pages && memory->pages[page]; page++)
			put_page(memory->pages[page]);
		kvfree(memory->pages);
	}
	kvfree(window);
}

void cordon_window_free(struct cordon_handler *handler)
{
	u32 i;

	for (i = 0; handler->window && i < handler->windows; i++)
		if (handler->window[i])
			free_window(handler->window[i]);
	kvfree(handler->window);
	handler->window = NULL;
}

/* The window for calls on a CPU. */
struct cordon_window *cordon_window_of(const struct cordon_handler *handler, u32 cpu)
{
	return handler->windows == 1 ? handler->window[0] : cpu < handler->windows ? handler->window[cpu] : NULL;
}

/* The first region of a kind; NULL if there is none. */
const struct cordon_memory *cordon_window_area(const struct cordon_window *window, u32 kind)
{
	u32 i;

	for (i = 0; i < window->memories; i++)
		if (window->memory[i].kind == kind)
			return &window->memory[i];
	return NULL;
}

/* Bytes from `offset` on that may be read, or written; 0 = not the first one. */
u64 cordon_window_span(struct cordon_window *window, u64 offset, bool write)
{
	u64 at = offset;
	struct cordon_memory *memory;

	while ((memory = memory_at(window, at)) && !(write && memory->kind == CORDON_RODATA))
		at = memory->end;
	return at - offset;
}

/* The page at a page-aligned file offset, for user space: the upper half is the number of the window. NULL if there is none or it may not be
 * written. */
struct page *cordon_window_page(struct cordon_handler *handler, u64 offset, bool write)
{
	struct cordon_window *window = offset >> 32 < handler->windows ? handler->window[offset >> 32] : NULL;
	struct cordon_memory *memory;

	offset &= U32_MAX;
	memory = window ? memory_at(window, offset) : NULL;
	if (!memory || (write && memory->kind == CORDON_RODATA))
		return NULL;
	return memory->pages[(offset - memory->start) >> PAGE_SHIFT];
}
