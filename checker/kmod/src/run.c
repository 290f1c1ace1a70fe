// SPDX-License-Identifier: GPL-2.0
/* One call: the try-lock of the window, a native stack, the entry, and what is told of how it ended. */
#include <linux/irqflags.h>
#include <linux/ktime.h>
#include <linux/preempt.h>
#include <asm/cpufeature.h>
#include "internal.h"

#define STUB 5
#define DEFAULT_FUEL (1ULL << 40)
/* The most where no timer can end a loop: a few milliseconds. */
#define FUEL_WITHOUT_INTERRUPTS (1ULL << 22)

DEFINE_PER_CPU(struct cordon_context *, cordon_current);
unsigned long cordon_time_limit_ms = 100, cordon_time_limit_max_ms = 5000;

static_assert(offsetof(struct cordon_context, host_rsp) == CTX_HOST_RSP && offsetof(struct cordon_context, host_fs) == CTX_HOST_FS);
static_assert(offsetof(struct cordon_context, previous) == CTX_PREVIOUS && offsetof(struct cordon_context, base) == CTX_BASE);
static_assert(offsetof(struct cordon_context, stack) == CTX_STACK && offsetof(struct cordon_context, args) == CTX_ARGS);
static_assert(offsetof(struct cordon_context, fuel) == CTX_FUEL && offsetof(struct cordon_context, result) == CTX_RESULT);
static_assert(offsetof(struct cordon_context, status) == CTX_STATUS && offsetof(struct cordon_context, flags) == CTX_FLAGS);
static_assert(offsetof(struct cordon_context, stub) == CTX_STUB && offsetof(struct cordon_context, gate) == CTX_GATE);
static_assert(offsetof(struct cordon_context, rflags) == CTX_RFLAGS && offsetof(struct cordon_context, regs) == CTX_REGS);

/* The text offset behind a call, if `word` is a return address into the text. */
static bool is_return(const struct cordon_handler *handler, u64 word, u32 *offset)
{
	u64 distance = word - (u64)handler->text;

	*offset = distance;
	return distance > 0 && distance <= handler->image.text_length;
}

/* Words of the native stack that are return addresses; saved registers of the handler may look like some. */
static void list_frames(const struct cordon_context *context, struct cordon_run *run)
{
	u64 at = ALIGN(context->regs[RSP], 8), top = context->stack, bottom = top - CORDON_STACK_BYTES - CORDON_STACK_RESERVE;

	if (at < bottom)
		return;
	for (; at < top - 8 && run->frames < CORDON_FRAMES; at += 8) {
		u32 offset;

		if (is_return(context->handler, *(u64 *)at, &offset)) {
			run->frame[run->frames] = offset;
			run->depth[run->frames++] = top - 8 - at;
		}
	}
}

static void place_at(struct cordon_run *run, u64 offset, const struct cordon_handler *handler)
{
	if (offset < handler->image.text_length) {
		run->text_offset = offset;
		run->flags |= CORDON_HAS_PLACE;
	}
}

/* The place behind the call whose return address rsp points at. */
static void place_of_caller(const struct cordon_context *context, struct cordon_run *run)
{
	u64 at = context->regs[RSP], top = context->stack;
	u32 offset;

	if (at < top - 8 && at >= top - CORDON_STACK_BYTES && is_return(context->handler, *(u64 *)at, &offset)) {
		run->text_offset = offset;
		run->flags |= CORDON_HAS_PLACE;
	}
}

static void tell_address(struct cordon_run *run, u64 address, u64 bytes, bool write)
{
	run->address = address;
	run->window_offset = address & U32_MAX;
	run->access_bytes = min_t(u64, bytes, U32_MAX);
	run->flags |= CORDON_HAS_ADDRESS | (write ? CORDON_IS_WRITE : 0);
}

static void tell_fault(const struct cordon_context *context, struct cordon_run *run)
{
	const struct cordon_handler *handler = context->handler;
	u64 index = (context->stub - STUB - (u64)handler->stubs) / STUB;
	struct cordon_facts facts;
	u32 at;

	if (index >= handler->fault_count)
		return;
	at = handler->faults[index];
	if (at >= handler->image.text_length) {
		run->kind = CORDON_BAD_CODE_POINTER;
		place_of_caller(context, run);
		return;
	}
	place_at(run, at, handler);
	cordon_rs_explain(handler->text, handler->image.text_length, handler->note, handler->image.note_length, at, run->registers, &facts);
	run->kind = facts.kind;
	/* The function that had no room has not begun: its caller is the place. */
	if (facts.kind == CORDON_NATIVE_STACK_OVERFLOW)
		place_of_caller(context, run);
	if (facts.has_address)
		tell_address(run, facts.address, facts.bytes, facts.is_write);
}

static void tell_gate(const struct cordon_context *context, struct cordon_run *run)
{
	const struct cordon_handler *handler = context->handler;

	run->flags |= CORDON_IN_GATE;
	strscpy(run->gate, cordon_gate_name(context->gate), sizeof(run->gate));
	place_of_caller(context, run);
	if (context->status != CORDON_STOP_GATE)
		return;
	tell_address(run, context->failed, context->failed_bytes, context->failed_write);
	if (context->failed >> 32 || context->failed_bytes > (1ULL << 32) - context->failed)
		run->kind = CORDON_GATE_RANGE;
	else
		run->kind = cordon_rs_kind_at(handler->note, handler->image.note_length, context->failed, context->failed_write);
}

/* Fills the report; of the kernel's addresses it says nothing. */
static void tell(const struct cordon_context *context, struct cordon_run *run)
{
	bool in_gate = context->status == CORDON_STOP_GATE || context->status == CORDON_STOP_FUEL || context->status == CORDON_STOP_JUMP ||
		       (context->status == CORDON_STOP_TIME && !context->rip);

	memcpy(run->registers, context->regs, sizeof(run->registers));
	run->registers[RSP] &= U32_MAX;
	run->flags = CORDON_HAS_REGISTERS;
	list_frames(context, run);
	switch (context->status) {
	case CORDON_STOP_FAULT:
		run->kind = CORDON_OTHER;
		tell_fault(context, run);
		break;
	case CORDON_STOP_TIME:
		run->kind = CORDON_TIME_LIMIT;
		place_at(run, context->rip - (u64)context->handler->text, context->handler);
		break;
	case CORDON_STOP_FUEL:
		run->kind = CORDON_FUEL;
		break;
	case CORDON_STOP_JUMP:
		run->kind = CORDON_BAD_JUMP;
		break;
	}
	if (in_gate)
		tell_gate(context, run);
}

static u64 time_limit(const struct cordon_handler *handler, u64 wanted_ns)
{
	u64 limit = wanted_ns ?: (u64)READ_ONCE(cordon_time_limit_ms) * NSEC_PER_MSEC;

	return min(limit, cordon_time_limit_max(handler));
}

/* With preemption off, on a native stack and with the window taken. */
static void call(struct cordon_handler *handler, struct cordon_window *window, u64 entry, u64 stack, struct cordon_run *run,
		 struct cordon_job *job)
{
	struct cordon_context context = {
		.base = window->base,
		.stack = stack,
		.flags = boot_cpu_has(X86_FEATURE_FSGSBASE) ? CORDON_FLAG_FSGSBASE : 0,
		.fuel = handler->image.metered ? min_t(u64, run->fuel ?: DEFAULT_FUEL, S64_MAX) : 0,
		.handler = handler,
		.window = window,
		.job = job,
	};
	u64 begin = ktime_get_mono_fast_ns(), fuel = context.fuel;

	bool no_interrupts = irqs_disabled() || in_nmi();

	if (no_interrupts)
		context.fuel = fuel = min_t(u64, fuel, FUEL_WITHOUT_INTERRUPTS);
	memcpy(context.args, run->args, sizeof(context.args));
	context.deadline = begin + time_limit(handler, run->time_limit_ns);
	*(u64 *)stack = (u64)handler->text + entry;
	barrier();
	cordon_enter(&context);
	run->elapsed_ns = ktime_get_mono_fast_ns() - begin;
	if (context.status == CORDON_STOP_NONE) {
		run->kind = CORDON_RETURNED;
		run->result = context.result;
		atomic64_inc(&handler->returned);
	} else {
		context.fuel = context.regs[14];
		atomic64_inc(&handler->stopped);
		tell(&context, run);
	}
	run->flags |= no_interrupts ? CORDON_NO_INTERRUPTS : 0;
	if (handler->image.metered)
		run->fuel_used = (s64)context.fuel < 0 ? fuel : fuel - context.fuel;
}

/* With preemption off; `window` NULL = that of this CPU. */
static int run_in(struct cordon_handler *handler, struct cordon_window *window, u64 entry, struct cordon_run *run, struct cordon_job *job)
{
	int failed;
	u64 stack;

	run->cpu = raw_smp_processor_id();
	window = window ?: cordon_window_of(handler, run->cpu);
	if ((irqs_disabled() || in_nmi()) && !handler->image.metered)
		return -EPERM;
	if (!cordon_watchdog_armed() || !window)
		return -EAGAIN;
	if (!raw_spin_trylock(&window->busy))
		return -EBUSY;
	stack = cordon_stack_take();
	failed = !stack ? -EAGAIN : job && job->prepare ? job->prepare(window, run, job) : 0;
	if (!failed) {
		atomic64_inc(&handler->calls);
		call(handler, window, entry, stack, run, job);
		if (job && job->finish)
			job->finish(window, run, job);
	}
	if (stack)
		cordon_stack_give();
	raw_spin_unlock(&window->busy);
	return failed;
}

static int run_with(struct cordon_handler *handler, struct cordon_window *window, u64 entry, struct cordon_run *run,
		    struct cordon_job *job)
{
	int failed;

	run->result = run->elapsed_ns = run->fuel_used = 0;
	run->kind = run->flags = run->frames = run->access_bytes = run->text_offset = 0;
	run->address = run->window_offset = 0;
	memset(run->registers, 0, sizeof(run->registers));
	memset(run->gate, 0, sizeof(run->gate));
	preempt_disable();
	failed = run_in(handler, window, entry, run, job);
	preempt_enable();
	if (failed)
		atomic64_inc(failed == -EBUSY ? &handler->missed : &handler->refused);
	return failed;
}

/* Calls the entry at a text offset. 0, or why it was not called: -EBUSY (the window is in use), -EAGAIN (nested too deep, or a CPU on its
 * way in or out), -EPERM (interrupts are off and the text is not metered). What it found is in `run`. */
int cordon_run_with(struct cordon_handler *handler, u64 entry, struct cordon_run *run, struct cordon_job *job)
{
	return run_with(handler, NULL, entry, run, job);
}

int cordon_run(struct cordon_handler *handler, u64 entry, struct cordon_run *run)
{
	return run_with(handler, NULL, entry, run, NULL);
}

/* In a window of one's choice: constructors run in each. */
int cordon_run_in(struct cordon_handler *handler, struct cordon_window *window, u64 entry, struct cordon_run *run)
{
	return run_with(handler, window, entry, run, NULL);
}
