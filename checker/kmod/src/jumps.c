// SPDX-License-Identifier: GPL-2.0
/* setjmp and longjmp: as in user mode (loader/src/jumps.rs, which argues why it may go where it goes), with the same record, and the same three
 * conditions. setjmp writes the callee-saved registers, the low half of rsp and the text offset of its return address to the window; nothing
 * in that record is believed. longjmp goes to offset R, where the checker knows depth d and pushed set p, if
 *
 * 1. R follows a call of cordon.setjmp,
 * 2. a function of this call is active whose return address lies at (record's rsp) + d: found by walking from return address to return
 *    address, each of which has a static depth,
 * 3. that function waits with all of p pushed.
 *
 * rsp then is that place - d, for which LIMIT at the function's entry made sure that there is room. What was pushed there lies above it, and
 * callees write below only. */
#include <linux/slab.h>
#include "internal.h"

#define RECORD 8
#define R14_WORD 4
#define STACK_WORD 6
#define RETURN_WORD 7
/* Price of a longjmp: more than any credit that may be left where it goes. */
#define FUEL 1024
#define CALL_BYTES 8

static const char setjmp_name[] = "cordon.setjmp", longjmp_name[] = "cordon.longjmp";

static bool imports(const struct cordon_handler *handler, const char *wanted)
{
	u32 i;

	for (i = 0; i < handler->image.imports; i++) {
		const u8 *name;
		size_t length = cordon_rs_import(handler->note, handler->image.note_length, i, &name);

		if (length == strlen(wanted) && !memcmp(name, wanted, length))
			return true;
	}
	return false;
}

/* Keeps the checker's states at all instructions of text that may longjmp. Needs the list of instructions. */
int cordon_jumps_make(struct cordon_handler *handler, const u64 *scratch)
{
	u32 i;

	if (!imports(handler, longjmp_name))
		return 0;
	handler->states = kvmalloc_array(handler->fault_count, sizeof(*handler->states), GFP_KERNEL_ACCOUNT);
	if (!handler->states)
		return -ENOMEM;
	for (i = 0; i + 1 < handler->fault_count; i++)
		handler->states[i] = cordon_rs_state(scratch[handler->faults[i]]);
	return 0;
}

void cordon_jumps_free(struct cordon_handler *handler)
{
	kvfree(handler->states);
	handler->states = NULL;
}

/* The state at a text offset; false if no instruction starts there. */
static bool state_at(const struct cordon_handler *handler, u64 offset, u32 *depth, u32 *set)
{
	/* The last one is the trap's, which is no part of the text. */
	u32 low = 0, high = handler->fault_count - 1;

	while (low < high) {
		u32 middle = low + (high - low) / 2;

		if (handler->faults[middle] == offset) {
			*depth = handler->states[middle] >> 16 << 3;
			*set = handler->states[middle] & U16_MAX;
			return true;
		}
		if (handler->faults[middle] < offset)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

/* Whether the instruction in front of a text offset is a call of cordon.setjmp: call *%fs:disp32 through its slot. */
static bool follows_setjmp(const struct cordon_context *context, u64 offset)
{
	static const u8 call[] = { 0x64, 0xff, 0x14, 0x25 };
	const struct cordon_handler *handler = context->handler;
	const u8 *bytes;
	u32 depth, set;
	s32 slot;

	if (offset < CALL_BYTES || !state_at(handler, offset - CALL_BYTES, &depth, &set))
		return false;
	bytes = handler->text + offset - CALL_BYTES;
	memcpy(&slot, bytes + sizeof(call), sizeof(slot));
	if (memcmp(bytes, call, sizeof(call)) || slot < handler->image.table || slot > handler->image.table_end - 8)
		return false;
	/* Tables are read-only, and mapped whole pages. */
	return *(u64 *)(context->base + slot) == cordon_gate_address((const u8 *)setjmp_name, strlen(setjmp_name));
}

/* Where the return address lies of the active function that has it at a place with this low half, and the set it waits with; 0 = there is none. */
static u64 waiting(const struct cordon_context *context, u32 low, u32 *set)
{
	const struct cordon_handler *handler = context->handler;
	u64 at = context->regs[RSP], top = context->stack, wanted = (top & ~(u64)U32_MAX) | low;

	while (at < top) {
		u64 offset = *(u64 *)at - (u64)handler->text;
		u32 depth;

		if (offset >= handler->image.text_length || !state_at(handler, offset, &depth, set))
			return 0;
		at += 8 + (u64)depth;
		if (at >= wanted)
			return at == wanted && at < top ? at : 0;
	}
	return 0;
}

/* int cordon.setjmp(record) */
u32 cordon_jump_set(struct cordon_context *context)
{
	u64 *regs = context->regs, at = *(u64 *)regs[RSP] - (u64)context->handler->text;
	u64 record[RECORD] = { regs[RBX], regs[RBP], regs[R12], regs[R13], context->handler->image.metered ? regs[RDX] : regs[R14], regs[R15],
			       (u32)(regs[RSP] + 8) | regs[RAX] << 32, at < context->handler->image.text_length ? at : U64_MAX };
	u32 stop = cordon_gate_pay(context, 4);
	u8 *to;

	if (!stop)
		stop = cordon_gate_range(context, regs[RDI], sizeof(record), true, &to);
	if (stop)
		return stop;
	memcpy(to, record, sizeof(record));
	return cordon_gate_give(context, regs[RAX] << 32);
}

static void restore(struct cordon_context *context, const u64 *record, u64 rsp)
{
	u64 *regs = context->regs;

	/* Where nobody needs it any more: the gate's return takes it from there. */
	*(u64 *)(rsp - 8) = (u64)context->handler->text + record[RETURN_WORD];
	regs[RSP] = rsp - 8;
	regs[RAX] = (record[STACK_WORD] & ~(u64)U32_MAX) | max_t(u32, regs[RSI], 1);
	regs[RBX] = record[0];
	regs[RBP] = record[1];
	regs[R12] = record[2];
	regs[R13] = record[3];
	regs[R15] = record[5];
	/* Where r14 counts, the rewriter had its value in rdx. */
	regs[context->handler->image.metered ? RDX : R14] = record[R14_WORD];
}

/* void cordon.longjmp(record, int value) */
u32 cordon_jump_go(struct cordon_context *context)
{
	u32 depth, set, active, stop = cordon_gate_pay(context, FUEL);
	u64 record[RECORD], place;
	u8 *from;

	if (!stop)
		stop = cordon_gate_range(context, context->regs[RDI], sizeof(record), false, &from);
	if (stop)
		return stop;
	memcpy(record, from, sizeof(record));
	if (!state_at(context->handler, record[RETURN_WORD], &depth, &set) || !follows_setjmp(context, record[RETURN_WORD]))
		return CORDON_STOP_JUMP;
	place = waiting(context, (u32)record[STACK_WORD] + depth, &active);
	if (!place || set & ~active || place - depth < context->stack - CORDON_STACK_BYTES + 8)
		return CORDON_STOP_JUMP;
	restore(context, record, place - depth);
	return 0;
}
