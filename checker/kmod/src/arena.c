// SPDX-License-Identifier: GPL-2.0
/* Checked text in the module's own text, and the module's exception table, which lists every instruction of it.
 *
 * A handler has whole pages: text, the trap, and 5 bytes for each instruction that call cordon_fault. The exception table sends a faulting
 * instruction to its own 5 bytes, so that no register is lost to tell which one it was. */
#include <asm/extable_fixup_types.h>
#include <asm/sync_core.h>
#include <linux/bitmap.h>
#include <linux/extable.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include "internal.h"

#define PAGES (CORDON_ARENA_BYTES / PAGE_SIZE)
#define STUB 5
/* Behind the text: endbr64, ud2, and int3 up to 16 bytes. */
#define TRAP 16
#define TRAP_FAULTS_AT 4

extern u8 cordon_arena[];
asmlinkage void cordon_fault(void);

static DECLARE_BITMAP(used, PAGES);
static struct exception_table_entry tables[2][CORDON_EXTABLE_ENTRIES];
static unsigned int current_table;
static const struct exception_table_entry *own_entries;
static unsigned int own_count;
static bool taken_over;

/* Writes to the arena through a mapping that lasts as long as this function. `from` NULL = int3. */
static int write_arena(u8 *to, const u8 *from, size_t length)
{
	unsigned long first = (unsigned long)to & PAGE_MASK;
	unsigned int count = (PAGE_ALIGN((unsigned long)to + length) - first) >> PAGE_SHIFT, i;
	struct page **pages = kvmalloc_array(count, sizeof(*pages), GFP_KERNEL);
	u8 *alias = NULL;

	if (!pages)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		pages[i] = vmalloc_to_page((void *)(first + i * PAGE_SIZE));
	alias = vmap(pages, count, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	if (!alias)
		return -ENOMEM;
	if (from)
		memcpy(alias + ((unsigned long)to - first), from, length);
	else
		memset(alias + ((unsigned long)to - first), 0xcc, length);
	vunmap(alias);
	return 0;
}

/* When the module is loaded. */
int cordon_arena_clear(void)
{
	return write_arena(cordon_arena, NULL, CORDON_ARENA_BYTES);
}

static void synchronize_core(void *unused)
{
	sync_core();
}

static size_t trap_offset(const struct cordon_handler *handler)
{
	return ALIGN(handler->image.text_length, 16);
}

/* What a text of `length` bytes takes of the arena, with its trap and stubs. */
u64 cordon_text_bytes(u64 length, u32 instructions)
{
	return ALIGN(length, 16) + TRAP + ((u64)instructions + 1) * STUB;
}

/* Where slots that hold nothing lead. */
u64 cordon_trap(const struct cordon_handler *handler)
{
	return (u64)handler->text + trap_offset(handler);
}

bool cordon_in_text(const struct cordon_handler *handler, u64 address)
{
	return address >= (u64)handler->text && address < cordon_trap(handler) + TRAP;
}

static int reserve(struct cordon_handler *handler, size_t bytes)
{
	u32 count = PAGE_ALIGN(bytes) >> PAGE_SHIFT;
	unsigned long first = bitmap_find_next_zero_area(used, PAGES, 0, count, 0);

	if (first >= PAGES)
		return -ENOSPC;
	bitmap_set(used, first, count);
	handler->first_page = first;
	handler->page_count = count;
	handler->text = cordon_arena + first * PAGE_SIZE;
	cordon_arena_pages_used += count;
	return 0;
}

static u32 entries_in_use(void)
{
	struct cordon_handler *handler;
	u32 sum = own_count;

	list_for_each_entry(handler, &cordon_handlers, list)
		sum += handler->fault_count;
	return sum;
}

/* Copies text to its place, where it is judged and will run, with its trap and room for the stubs of `instructions`. Nothing leads there
 * yet. Gives a verdict. */
u32 cordon_text_place(struct cordon_handler *handler, const u8 *text, u32 instructions)
{
	static const u8 trap[TRAP] = { 0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x0b, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc };
	size_t length = handler->image.text_length;
	u32 stubs = instructions + 1;

	if (stubs + entries_in_use() > CORDON_EXTABLE_ENTRIES || reserve(handler, cordon_text_bytes(length, instructions)))
		return CORDON_TOO_LARGE;
	handler->stubs = handler->text + trap_offset(handler) + TRAP;
	handler->fault_count = stubs;
	if (write_arena(handler->text, text, length) || write_arena((u8 *)cordon_trap(handler), trap, TRAP))
		return CORDON_TOO_LARGE;
	return CORDON_ACCEPTED;
}

static void entry_set(struct exception_table_entry *entry, u64 instruction, u64 fixup, int data)
{
	entry->insn = instruction - (u64)&entry->insn;
	entry->fixup = fixup - (u64)&entry->fixup;
	entry->data = data;
}

/* The module's own entries on one side of the arena. */
static struct exception_table_entry *copy_own(struct exception_table_entry *to, bool below)
{
	unsigned int i;

	for (i = 0; i < own_count; i++) {
		const struct exception_table_entry *entry = &own_entries[i];
		u64 instruction = (u64)&entry->insn + entry->insn;

		if ((instruction < (u64)cordon_arena) == below)
			entry_set(to++, instruction, (u64)&entry->fixup + entry->fixup, entry->data);
	}
	return to;
}

/* Publishes the exception table of all listed handlers. The table's length is constant, so one store switches; who looks in the old one does
 * so with preemption off, which synchronize_rcu waits for. */
static void rebuild(void)
{
	struct exception_table_entry *table = tables[!current_table], *to = copy_own(table, true);
	struct cordon_handler *handler;

	list_for_each_entry(handler, &cordon_handlers, list) {
		u32 i;

		for (i = 0; i < handler->fault_count; i++)
			entry_set(to++, (u64)handler->text + handler->faults[i], (u64)handler->stubs + i * STUB, EX_TYPE_DEFAULT);
	}
	to = copy_own(to, false);
	cordon_table_entries_used = to - table;
	while (to < table + CORDON_EXTABLE_ENTRIES)
		entry_set(to++, -PAGE_SIZE, -PAGE_SIZE, EX_TYPE_DEFAULT);
	smp_store_release(&THIS_MODULE->extable, table);
	synchronize_rcu();
	if (!taken_over) {
		THIS_MODULE->num_exentries = CORDON_EXTABLE_ENTRIES;
		taken_over = true;
		synchronize_rcu();
	}
	current_table = !current_table;
}

static int write_stubs(struct cordon_handler *handler)
{
	size_t bytes = (size_t)handler->fault_count * STUB;
	u8 *code = kvmalloc(bytes, GFP_KERNEL);
	u32 i;
	int failed;

	if (!code)
		return -ENOMEM;
	for (i = 0; i < handler->fault_count; i++) {
		s32 distance = (u64)cordon_fault - ((u64)handler->stubs + i * STUB + STUB);

		code[i * STUB] = 0xe8;
		memcpy(code + i * STUB + 1, &distance, sizeof(distance));
	}
	failed = write_arena(handler->stubs, code, bytes);
	kvfree(code);
	return failed;
}

/* Where the handler belongs: the list is ascending by text. */
static struct list_head *place_in_list(const struct cordon_handler *handler)
{
	struct cordon_handler *other;

	list_for_each_entry(other, &cordon_handlers, list)
		if (other->text > handler->text)
			return &other->list;
	return &cordon_handlers;
}

/* Makes accepted text safe to run: every instruction of it is in the exception table. */
int cordon_text_arm(struct cordon_handler *handler, const u64 *scratch)
{
	size_t length = handler->image.text_length, at;
	u32 room = handler->fault_count, count = 0;
	int failed;

	handler->faults = kvmalloc_array(room, sizeof(*handler->faults), GFP_KERNEL_ACCOUNT);
	if (!handler->faults)
		return -ENOMEM;
	for (at = cordon_rs_next_start(scratch, length, 0); at < length; at = cordon_rs_next_start(scratch, length, at + 1)) {
		if (count + 1 >= room)
			return -EINVAL;
		handler->faults[count++] = at;
	}
	handler->faults[count++] = trap_offset(handler) + TRAP_FAULTS_AT;
	if (count != room)
		return -EINVAL;
	failed = cordon_jumps_make(handler, scratch) ?: write_stubs(handler);
	if (failed)
		return failed;
	on_each_cpu(synchronize_core, NULL, 1);
	list_add_tail(&handler->list, place_in_list(handler));
	rebuild();
	return 0;
}

/* Takes the text out of the table and the arena; nobody runs it any more. */
void cordon_text_remove(struct cordon_handler *handler)
{
	if (!handler->page_count)
		return;
	if (!list_empty(&handler->list)) {
		list_del_init(&handler->list);
		rebuild();
	}
	if (!write_arena(handler->text, NULL, (size_t)handler->page_count << PAGE_SHIFT)) {
		on_each_cpu(synchronize_core, NULL, 1);
		bitmap_clear(used, handler->first_page, handler->page_count);
		cordon_arena_pages_used -= handler->page_count;
	}
	/* Without memory for the mapping the pages are lost until the module is loaded again; they hold checked text only. */
	cordon_jumps_free(handler);
	kvfree(handler->faults);
	handler->faults = NULL;
	handler->page_count = 0;
}

/* Before the first insertion, and after the module's init function: the kernel trims the module's table then. */
void cordon_arena_init(void)
{
	if (!taken_over) {
		own_entries = THIS_MODULE->extable;
		own_count = THIS_MODULE->num_exentries;
	}
}
