// SPDX-License-Identifier: GPL-2.0
/* Native stacks: for each CPU and nesting level one, all with the same low half of their addresses, at a place drawn at random.
 *
 *   -4K - 16K - 64K   guard, never mapped
 *   -16K - 64K        room for interrupts and exceptions
 *   -64K .. 0         the handler's; 0 = an address whose low half is CORDON_STACK_TOP
 *   0 .. 4K           the first word is the address of the entry that runs, so that no register need hold it */
#include <linux/cpumask.h>
#include <linux/gfp.h>
#include <linux/random.h>
#include "internal.h"

/* Task, softirq, hardirq or kprobe, NMI. */
#define LEVELS 4
#define MAPPED (CORDON_STACK_RESERVE + CORDON_STACK_BYTES + PAGE_SIZE)
#define PAGES (MAPPED / PAGE_SIZE)
#define SLOT (1UL << 32)

struct stack {
	struct vm_struct *area;
	struct page *pages[PAGES];
	u64 top;
};

static DEFINE_PER_CPU(struct stack, stacks[LEVELS]);
static DEFINE_PER_CPU(u32, level);

static void free_stack(struct stack *stack)
{
	unsigned int i;

	if (stack->area)
		free_vm_area(stack->area);
	for (i = 0; i < PAGES; i++)
		if (stack->pages[i])
			__free_page(stack->pages[i]);
	memset(stack, 0, sizeof(*stack));
}

/* The place in a 4 GiB slot of the vmalloc space that is drawn at random; a slot that is taken is left for another one. */
static struct vm_struct *reserve(u64 *top)
{
	unsigned long first = ALIGN(VMALLOC_START, SLOT), slots = (VMALLOC_END - first) / SLOT;
	unsigned int tries;

	for (tries = 0; tries < 64; tries++) {
		unsigned long at = first + (get_random_u32() % slots) * SLOT + CORDON_STACK_TOP;
		struct vm_struct *area = cordon_reserve_at(MAPPED + PAGE_SIZE, at + PAGE_SIZE - MAPPED - PAGE_SIZE);

		if (area) {
			*top = at;
			return area;
		}
	}
	return NULL;
}

static int make_stack(struct stack *stack)
{
	unsigned int i;
	int failed;

	for (i = 0; i < PAGES; i++) {
		stack->pages[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!stack->pages[i])
			return -ENOMEM;
	}
	stack->area = reserve(&stack->top);
	if (!stack->area)
		return -ENOMEM;
	failed = cordon_map(stack->top + PAGE_SIZE - MAPPED, stack->top + PAGE_SIZE, PAGE_KERNEL, stack->pages);
	return failed;
}

int cordon_stacks_init(void)
{
	int cpu, i, failed = 0;

	for_each_possible_cpu(cpu)
		for (i = 0; i < LEVELS && !failed; i++)
			failed = make_stack(&per_cpu(stacks, cpu)[i]);
	if (failed)
		cordon_stacks_exit();
	return failed;
}

void cordon_stacks_exit(void)
{
	int cpu, i;

	for_each_possible_cpu(cpu)
		for (i = 0; i < LEVELS; i++)
			free_stack(&per_cpu(stacks, cpu)[i]);
}

u64 cordon_stack_take(void)
{
	u32 mine = this_cpu_inc_return(level) - 1;

	if (mine < LEVELS)
		return this_cpu_ptr(stacks)[mine].top;
	this_cpu_dec(level);
	return 0;
}

void cordon_stack_give(void)
{
	this_cpu_dec(level);
}
