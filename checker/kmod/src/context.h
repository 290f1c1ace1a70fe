/* SPDX-License-Identifier: GPL-2.0 */
/* The invocation context: what entry.S and C know about a running call. It lies on the host's stack; cordon_current finds it. */
#ifndef CORDON_CONTEXT_H
#define CORDON_CONTEXT_H

/* Low half of rsp at an outermost entry, plus 8 (DESIGN section 4, S + 8): the end of every native stack. */
#define CORDON_STACK_TOP 0x70000000

/* How a call ended. */
#define CORDON_STOP_NONE 0
#define CORDON_STOP_FAULT 1
#define CORDON_STOP_TIME 2
#define CORDON_STOP_GATE 3
#define CORDON_STOP_FUEL 4
#define CORDON_STOP_JUMP 5

#define CORDON_FLAG_FSGSBASE 1

#define CTX_HOST_RSP 0
#define CTX_HOST_FS 8
#define CTX_PREVIOUS 16
#define CTX_BASE 24
#define CTX_STACK 32
#define CTX_ARGS 40
#define CTX_FUEL 88
#define CTX_RESULT 96
#define CTX_STATUS 104
#define CTX_FLAGS 108
#define CTX_STUB 112
#define CTX_GATE 120
#define CTX_RFLAGS 128
#define CTX_REGS 136

/* Status flags: carry, parity, adjust, zero, sign, overflow. */
#define CORDON_STATUS_FLAGS 0x8d5

#ifndef __ASSEMBLY__
#include <linux/types.h>

struct cordon_handler;
struct cordon_window;
struct cordon_job;

/* Places in cordon_context.regs. */
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R12 = 12, R13, R14, R15 };

struct cordon_context {
	u64 host_rsp;
	u64 host_fs;
	struct cordon_context *previous; /* of this CPU, interrupted by this one */
	u64 base;
	u64 stack; /* rsp before the call of the entry; the word there is the entry's address */
	u64 args[6];
	u64 fuel; /* r14 in and out */
	u64 result;
	u32 status;
	u32 flags;
	u64 stub;      /* fault: behind the instruction's stub */
	u64 gate;      /* index of the gate that runs or ran last */
	u64 rflags;    /* of the handler at a gate */
	u64 regs[16];  /* of the handler at a fault, a gate or an expiry: rax rcx rdx rbx rsp rbp rsi rdi r8..r15 */
	u64 rip;       /* expiry: where */
	u64 deadline;  /* ktime_get_mono_fast_ns() */
	u64 failed;    /* gate: the address that it could not use */
	u64 failed_bytes;
	u32 failed_write;
	u32 expired;   /* the deadline has passed in a gate */
	struct cordon_handler *handler;
	struct cordon_window *window;
	struct cordon_job *job; /* NULL: called by user space */
};

int cordon_enter(struct cordon_context *context);
u32 cordon_gate_run(struct cordon_context *context);
#endif
#endif
