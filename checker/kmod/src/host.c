// SPDX-License-Identifier: GPL-2.0
/* Host functions that touch nothing but the caller's window: time, CPU, a line for the kernel's log.
 *
 * All may be called wherever handlers run, under locks of the kernel and in an NMI included. So a line is only put aside here, and an interrupt
 * of its own prints it. */
#include <asm/cpufeature.h>
#include <linux/irq_work.h>
#include <linux/ktime.h>
#include <linux/smp.h>
#include "internal.h"

/* Longest line, bytes; lines that may wait on one CPU. */
#define LINE_BYTES 120
#define LINES 16
/* Of a handler's name in front of its lines. */
#define NAME_BYTES 24
/* For this long a handler has its log_lines. */
#define INTERVAL_NS (5 * NSEC_PER_SEC)

enum { FREE, TAKEN, READY };

struct line {
	atomic_t state;
	u32 handler, left_out;
	char name[NAME_BYTES + 1], text[LINE_BYTES + 1];
};

struct lines {
	struct irq_work work;
	struct line line[LINES];
};

static DEFINE_PER_CPU(struct lines, waiting);
unsigned int cordon_log_lines = 20;

/* In an interrupt that came when interrupts were on: no lock is held that printing might want. */
static void print(struct irq_work *work)
{
	struct lines *lines = container_of(work, struct lines, work);
	unsigned int i;

	for (i = 0; i < LINES; i++) {
		struct line *line = &lines->line[i];

		if (atomic_read_acquire(&line->state) != READY)
			continue;
		if (line->left_out)
			pr_info("handler %u left out %u lines\n", line->handler, line->left_out);
		pr_info("handler %u%s%s: %s\n", line->handler, *line->name ? " " : "", line->name, line->text);
		atomic_set_release(&line->state, FREE);
	}
}

void cordon_host_init(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		per_cpu(waiting, cpu).work = IRQ_WORK_INIT(print);
}

/* No handler is left. */
void cordon_host_exit(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		irq_work_sync(&per_cpu(waiting, cpu).work);
}

/* Whether the handler may have one more line. */
static bool may_log(struct cordon_handler *handler)
{
	s64 now = ktime_get_mono_fast_ns(), since = atomic64_read(&handler->log_since);

	if (now - since >= INTERVAL_NS && atomic64_cmpxchg(&handler->log_since, since, now) == since)
		atomic_set(&handler->log_lines, 0);
	/* Reading first keeps the count from going round. */
	return atomic_read(&handler->log_lines) < READ_ONCE(cordon_log_lines) &&
	       atomic_inc_return(&handler->log_lines) <= READ_ONCE(cordon_log_lines);
}

static struct line *take_line(struct lines *lines)
{
	unsigned int i;

	for (i = 0; i < LINES; i++)
		if (atomic_cmpxchg(&lines->line[i].state, FREE, TAKEN) == FREE)
			return &lines->line[i];
	return NULL;
}

/* Printable ASCII; a newline at the end goes, all else becomes a question mark. */
static void copy_line(char *to, const u8 *from, u32 length)
{
	u32 i;

	for (i = 0; i < length; i++) {
		u8 byte = READ_ONCE(from[i]);

		if (byte == '\n' && i == length - 1)
			break;
		to[i] = byte >= ' ' && byte <= '~' ? byte : '?';
	}
	to[i] = 0;
}

/* long cordon_log(const char *text, unsigned long bytes) */
u32 cordon_host_log(struct cordon_context *context)
{
	struct cordon_handler *handler = context->handler;
	u64 length = min_t(u64, context->regs[RSI], LINE_BYTES);
	struct lines *lines = this_cpu_ptr(&waiting);
	struct line *line;
	u8 *text = NULL;
	u32 stop = cordon_gate_pay(context, 64);

	if (!stop && length)
		stop = cordon_gate_range(context, context->regs[RDI], length, false, &text);
	if (stop)
		return stop;
	line = may_log(handler) ? take_line(lines) : NULL;
	if (!line) {
		atomic_inc(&handler->log_left_out);
		return cordon_gate_give(context, -EAGAIN);
	}
	copy_line(line->text, text, length);
	copy_line(line->name, (const u8 *)handler->name, strnlen(handler->name, NAME_BYTES));
	line->handler = handler->id;
	line->left_out = atomic_xchg(&handler->log_left_out, 0);
	atomic_set_release(&line->state, READY);
	irq_work_queue(&lines->work);
	return cordon_gate_give(context, length);
}

/* unsigned long cordon_time_ns(void) */
u32 cordon_host_time(struct cordon_context *context)
{
	return cordon_gate_give(context, ktime_get_mono_fast_ns());
}

/* cpuid as a call: eax and ecx in; eax, ebx, ecx, edx out. As in user mode only what images may use, and a vendor that names no machine. */
u32 cordon_host_cpuid(struct cordon_context *context)
{
	static const char vendor[] = "Cordon SFI  ";
	u32 leaf = context->regs[RAX], sub = context->regs[RCX], a = 0, b = 0, c = 0, d = 0;

	if (leaf == 0 || leaf == 0x80000000) {
		a = leaf ? 0x80000001 : 7;
		memcpy(&b, vendor, 4);
		memcpy(&d, vendor + 4, 4);
		memcpy(&c, vendor + 8, 4);
	} else if (leaf == 1) {
		c = boot_cpu_has(X86_FEATURE_MOVBE) << 22 | boot_cpu_has(X86_FEATURE_POPCNT) << 23;
		d = 1 << 15;
	} else if (leaf == 7 && !sub) {
		b = boot_cpu_has(X86_FEATURE_BMI1) << 3 | boot_cpu_has(X86_FEATURE_BMI2) << 8 | boot_cpu_has(X86_FEATURE_ADX) << 19;
	} else if (leaf == 0x80000001) {
		c = 1 | boot_cpu_has(X86_FEATURE_ABM) << 5 | boot_cpu_has(X86_FEATURE_3DNOWPREFETCH) << 8;
		d = 1 << 29;
	}
	context->regs[RAX] = a;
	context->regs[RBX] = b;
	context->regs[RCX] = c;
	context->regs[RDX] = d;
	return 0;
}

/* unsigned cordon_cpu(void) */
u32 cordon_host_cpu(struct cordon_context *context)
{
	return cordon_gate_give(context, raw_smp_processor_id());
}
