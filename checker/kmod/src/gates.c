// SPDX-License-Identifier: GPL-2.0
/* Built-in gates: the imports of the user-mode loader (loader/src/gates.rs) that handlers without floating point can have, with the same meaning
 * and price in fuel, and the table of the kernel's own host functions (host.c, packet.c, map.c).
 *
 * They run on the host's stack. Whatever a range names is looked up in the regions before it is touched: all region pages are mapped, so
 * nothing here can fault. User space may write the same pages meanwhile; nothing is read twice that matters. */
#include <linux/kernel.h>
#include <linux/string.h>
#include "internal.h"

enum { MEMCPY, MEMMOVE, MEMSET, MEMCMP, STRLEN, MOVS, STOS = MOVS + 4, REPE_CMPS = STOS + 4, REPNE_CMPS = REPE_CMPS + 4,
       REPE_SCAS = REPNE_CMPS + 4, REPNE_SCAS = REPE_SCAS + 4, GATES = REPNE_SCAS + 4 };

static const char *const names[] = {
	"memcpy", "memmove", "memset", "memcmp", "strlen",
	"cordon.rep_movs1", "cordon.rep_movs2", "cordon.rep_movs4", "cordon.rep_movs8",
	"cordon.rep_stos1", "cordon.rep_stos2", "cordon.rep_stos4", "cordon.rep_stos8",
	"cordon.repe_cmps1", "cordon.repe_cmps2", "cordon.repe_cmps4", "cordon.repe_cmps8",
	"cordon.repne_cmps1", "cordon.repne_cmps2", "cordon.repne_cmps4", "cordon.repne_cmps8",
	"cordon.repe_scas1", "cordon.repe_scas2", "cordon.repe_scas4", "cordon.repe_scas8",
	"cordon.repne_scas1", "cordon.repne_scas2", "cordon.repne_scas4", "cordon.repne_scas8",
};

/* include/cordon_handler.h declares them for handlers. */
static const struct {
	const char *name;
	u32 (*run)(struct cordon_context *context);
} functions[] = {
	{ "cordon_time_ns", cordon_host_time },
	{ "cordon_cpu", cordon_host_cpu },
	{ "cordon_log", cordon_host_log },
	{ "cordon_packet_load", cordon_packet_load },
	{ "cordon_packet_store", cordon_packet_store },
	{ "cordon_map_lookup", cordon_map_lookup },
	{ "cordon_map_update", cordon_map_update },
	{ "cordon_map_delete", cordon_map_delete },
	{ "cordon_map_add", cordon_map_add },
	{ "cordon.setjmp", cordon_jump_set },
	{ "cordon.longjmp", cordon_jump_go },
	{ "cordon.cpuid", cordon_host_cpuid },
};

static_assert(ARRAY_SIZE(names) == GATES && GATES + ARRAY_SIZE(functions) == CORDON_GATES);

/* Bytes of work between two looks at the clock. */
#define CHUNK (64 << 10)

asmlinkage void cordon_gates(void);

const char *cordon_gate_name(u64 index)
{
	return index < GATES ? names[index] : index < CORDON_GATES ? functions[index - GATES].name : "";
}

u64 cordon_gate_address(const u8 *name, size_t length)
{
	u64 i;

	for (i = 0; i < CORDON_GATES; i++)
		if (strlen(cordon_gate_name(i)) == length && !memcmp(cordon_gate_name(i), name, length))
			return (u64)cordon_gates + 16 * i;
	return 0;
}

/* The function's result. */
u32 cordon_gate_give(struct cordon_context *context, s64 result)
{
	context->regs[RAX] = result;
	return 0;
}

static u32 refuse(struct cordon_context *context, u64 address, u64 bytes, bool write)
{
	context->failed = address;
	context->failed_bytes = bytes;
	context->failed_write = write;
	return CORDON_STOP_GATE;
}

/* Takes fuel where the text is metered. */
u32 cordon_gate_pay(struct cordon_context *context, u64 units)
{
	if (!context->handler->image.metered)
		return 0;
	if (context->regs[R14] < units)
		return CORDON_STOP_FUEL;
	context->regs[R14] -= units;
	return 0;
}

/* The range's memory in *to, or why there is none. */
u32 cordon_gate_range(struct cordon_context *context, u64 offset, u64 length, bool write, u8 **to)
{
	u64 span;

	if (offset >> 32 || length > (1ULL << 32) - offset)
		return refuse(context, offset, length, write);
	span = cordon_window_span(context->window, offset, write);
	if (span < length)
		return refuse(context, offset + span, length, write);
	*to = (u8 *)context->base + offset;
	return 0;
}

/* memmove in pieces. */
static u32 move(struct cordon_context *context, u8 *to, const u8 *from, u64 length)
{
	bool backward = to > from && to < from + length;

	while (length) {
		u64 part = min_t(u64, length, CHUNK), at = backward ? length - part : 0;

		if (READ_ONCE(context->expired))
			return CORDON_STOP_TIME;
		memmove(to + at, from + at, part);
		length -= part;
		if (!backward) {
			to += part;
			from += part;
		}
	}
	return 0;
}

static u32 gate_move(struct cordon_context *context)
{
	u64 *regs = context->regs, length = regs[RDX];
	u8 *to, *from;
	u32 stop = cordon_gate_pay(context, length >> 4);

	if (!stop && length) {
		stop = cordon_gate_range(context, regs[RDI], length, true, &to);
		if (!stop)
			stop = cordon_gate_range(context, regs[RSI], length, false, &from);
		if (!stop)
			stop = move(context, to, from, length);
	}
	regs[RAX] = regs[RDI];
	return stop;
}

static u32 gate_set(struct cordon_context *context)
{
	u64 *regs = context->regs, length = regs[RDX];
	u8 *to;
	u32 stop = cordon_gate_pay(context, length >> 4);

	if (!stop && length)
		stop = cordon_gate_range(context, regs[RDI], length, true, &to);
	while (!stop && length) {
		u64 part = min_t(u64, length, CHUNK);

		memset(to, regs[RSI], part);
		to += part;
		length -= part;
		stop = READ_ONCE(context->expired) ? CORDON_STOP_TIME : 0;
	}
	regs[RAX] = regs[RDI];
	return stop;
}

static u32 gate_compare(struct cordon_context *context)
{
	u64 *regs = context->regs, length = regs[RDX], i;
	u8 *a, *b;
	u32 stop = cordon_gate_pay(context, length >> 4);

	regs[RAX] = 0;
	if (stop || !length)
		return stop;
	stop = cordon_gate_range(context, regs[RDI], length, false, &a);
	if (!stop)
		stop = cordon_gate_range(context, regs[RSI], length, false, &b);
	for (i = 0; i < length && !stop; i++) {
		u8 left = READ_ONCE(a[i]), right = READ_ONCE(b[i]);

		if (left != right) {
			regs[RAX] = (u32)(left - right);
			break;
		}
		if (!(i % CHUNK) && READ_ONCE(context->expired))
			stop = CORDON_STOP_TIME;
	}
	return stop;
}

static u32 gate_length(struct cordon_context *context)
{
	u64 *regs = context->regs, start = regs[RDI], at;
	u64 span = start >> 32 ? 0 : cordon_window_span(context->window, start, false);
	const u8 *text = (u8 *)context->base + start;

	for (at = 0; at < span; at++) {
		u32 stop = at % 16 == 15 ? cordon_gate_pay(context, 1) : 0;

		if (!(at % CHUNK) && READ_ONCE(context->expired))
			stop = CORDON_STOP_TIME;
		if (stop)
			return stop;
		if (!READ_ONCE(text[at])) {
			regs[RAX] = at;
			return 0;
		}
	}
	return refuse(context, start + at, 1, false);
}

/* Elements at an offset that are there, at most as many as are left. */
static u64 there(const struct cordon_context *context, u64 offset, u32 shift, bool write)
{
	return min(context->regs[RCX], cordon_window_span(context->window, offset, write) >> shift);
}

/* Whether elements at an offset leave the window. */
static bool leaves(u64 offset, u64 count, u32 shift)
{
	return offset >> 32 || count >> (32 - shift) || count << shift > (1ULL << 32) - offset;
}

/* The element that is not all there, at an offset. */
static u32 refuse_element(struct cordon_context *context, u64 offset, u32 shift, bool write)
{
	u64 part = cordon_window_span(context->window, offset, write);

	return refuse(context, offset + part, (1 << shift) - part, write);
}

/* Forward, one element after the other, so an overlap repeats what it copies. */
static void copy_elements(u8 *to, const u8 *from, u64 count, u32 shift)
{
	u64 bytes = count << shift, done;

	if (to <= from || to >= from + bytes)
		memmove(to, from, bytes);
	else
		for (done = 0; done < bytes; done += 1 << shift)
			memmove(to + done, from + done, 1 << shift);
}

/* `rep movs`. Wherever it stops, the registers are those of the instruction. */
static u32 gate_movs(struct cordon_context *context, u32 shift)
{
	u64 *regs = context->regs, count = regs[RCX], left;
	u32 stop;

	if (!count)
		return 0;
	stop = cordon_gate_pay(context, count >> 2);
	if (!stop && leaves(regs[RDI], count, shift))
		stop = refuse(context, regs[RDI], count >> (32 - shift) ? U64_MAX : count << shift, true);
	if (!stop && leaves(regs[RSI], count, shift))
		stop = refuse(context, regs[RSI], count << shift, false);
	if (stop)
		return stop;
	for (left = min(there(context, regs[RDI], shift, true), there(context, regs[RSI], shift, false)); left;) {
		u64 part = min_t(u64, left, CHUNK >> shift);

		if (READ_ONCE(context->expired))
			return CORDON_STOP_TIME;
		copy_elements((u8 *)context->base + regs[RDI], (u8 *)context->base + regs[RSI], part, shift);
		regs[RDI] += part << shift;
		regs[RSI] += part << shift;
		regs[RCX] -= part;
		left -= part;
	}
	if (!regs[RCX])
		return 0;
	if (!there(context, regs[RSI], shift, false))
		return refuse_element(context, regs[RSI], shift, false);
	return refuse_element(context, regs[RDI], shift, true);
}

/* `rep stos`. */
static u32 gate_stos(struct cordon_context *context, u32 shift)
{
	u64 *regs = context->regs, count = regs[RCX], left, i;
	u32 stop;

	if (!count)
		return 0;
	stop = cordon_gate_pay(context, count >> 2);
	if (!stop && leaves(regs[RDI], count, shift))
		stop = refuse(context, regs[RDI], count >> (32 - shift) ? U64_MAX : count << shift, true);
	if (stop)
		return stop;
	for (left = there(context, regs[RDI], shift, true); left;) {
		u64 part = min_t(u64, left, CHUNK >> shift);
		u8 *to = (u8 *)context->base + regs[RDI];

		if (READ_ONCE(context->expired))
			return CORDON_STOP_TIME;
		for (i = 0; i < part; i++)
			memcpy(to + (i << shift), &regs[RAX], 1 << shift);
		regs[RDI] += part << shift;
		regs[RCX] -= part;
		left -= part;
	}
	return regs[RCX] ? refuse_element(context, regs[RDI], shift, true) : 0;
}

/* The status flags of `cmp` of two elements of `bits` bits: left - right (SDM volume 1, section 3.4.3.1). */
static u64 flags_of(u64 left, u64 right, u32 bits)
{
	u64 mask = U64_MAX >> (64 - bits), result, top = 1ULL << (bits - 1);

	left &= mask;
	right &= mask;
	result = (left - right) & mask;
	return (left < right ? 0x1 : 0) | (hweight8(result) % 2 ? 0 : 0x4) | ((left ^ right ^ result) & 0x10) | (result ? 0 : 0x40) |
	       (result & top ? 0x80 : 0) | ((left ^ right) & (left ^ result) & top ? 0x800 : 0);
}

static u32 element(struct cordon_context *context, u64 offset, u32 shift, u64 *value)
{
	u8 *from;
	u32 stop = cordon_gate_range(context, offset, 1 << shift, false, &from);

	*value = 0;
	if (!stop)
		memcpy(value, from, 1 << shift);
	return stop;
}

/* `repe|repne cmps|scas`. */
static u32 gate_search(struct cordon_context *context, u32 shift, bool both, bool while_equal)
{
	u64 *regs = context->regs, done = 0, left = regs[RAX], right, size = 1 << shift;
	u32 stop = 0;

	while (regs[RCX] && !stop) {
		if (both)
			stop = element(context, regs[RSI], shift, &left);
		if (!stop)
			stop = element(context, regs[RDI], shift, &right);
		if (!stop && ++done % 4 == 0)
			stop = cordon_gate_pay(context, 1);
		if (!(done % 4096) && READ_ONCE(context->expired))
			stop = CORDON_STOP_TIME;
		if (stop)
			break;
		regs[RCX]--;
		regs[RDI] += size;
		regs[RSI] += both ? size : 0;
		context->rflags = (context->rflags & ~(u64)CORDON_STATUS_FLAGS) | flags_of(left, right, 8 << shift);
		if (!!(context->rflags & 0x40) != while_equal)
			break;
	}
	return stop;
}

/* Called by entry.S with preemption off. Gives a CORDON_STOP_ code, 0 to go on. */
u32 cordon_gate_run(struct cordon_context *context)
{
	u32 gate = context->gate, shift = (gate - MOVS) & 3, stop;

	switch (gate) {
	case MEMCPY:
	case MEMMOVE:
		stop = gate_move(context);
		break;
	case MEMSET:
		stop = gate_set(context);
		break;
	case MEMCMP:
		stop = gate_compare(context);
		break;
	case STRLEN:
		stop = gate_length(context);
		break;
	case MOVS ... STOS - 1:
		stop = gate_movs(context, shift);
		break;
	case STOS ... REPE_CMPS - 1:
		stop = gate_stos(context, shift);
		break;
	case REPE_CMPS ... GATES - 1:
		stop = gate_search(context, shift, gate < REPE_SCAS, gate < REPNE_CMPS || (gate >= REPE_SCAS && gate < REPNE_SCAS));
		break;
	case GATES ... CORDON_GATES - 1:
		stop = functions[gate - GATES].run(context);
		break;
	default:
		stop = refuse(context, 0, 0, false);
	}
	return stop ?: READ_ONCE(context->expired) ? CORDON_STOP_TIME : 0;
}
