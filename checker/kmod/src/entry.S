/* SPDX-License-Identifier: GPL-2.0 */
/* Entry, exits and gates. cordon_enter runs with preemption off; the handler runs on a native stack of the CPU, fs base = window base.
 * Every way out finds its context in cordon_current and restores the host's stack from there: nothing on the native stack is trusted.
 *
 * Stack traces end here. */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>
#include <asm/unwind_hints.h>
#include <linux/version.h>
#include "context.h"
#include "layout.h"

#ifndef ENDBR
#define ENDBR
#endif

/* Nothing above is of interest to the unwinder. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
#define NO_CALLER UNWIND_HINT_END_OF_STACK
#else
#define NO_CALLER UNWIND_HINT_EMPTY
#endif

#define MSR_FS 0xc0000100

.macro SAVE_REGISTERS
	/* rdi is pushed; gives rdi = the context and stores all registers but rsp. Leaves rsp as it was before the push. */
	movq PER_CPU_VAR(cordon_current), %rdi
	movq %rax, CTX_REGS+0x00(%rdi)
	movq %rcx, CTX_REGS+0x08(%rdi)
	movq %rdx, CTX_REGS+0x10(%rdi)
	movq %rbx, CTX_REGS+0x18(%rdi)
	movq %rbp, CTX_REGS+0x28(%rdi)
	movq %rsi, CTX_REGS+0x30(%rdi)
	popq CTX_REGS+0x38(%rdi)
	movq %r8, CTX_REGS+0x40(%rdi)
	movq %r9, CTX_REGS+0x48(%rdi)
	movq %r10, CTX_REGS+0x50(%rdi)
	movq %r11, CTX_REGS+0x58(%rdi)
	movq %r12, CTX_REGS+0x60(%rdi)
	movq %r13, CTX_REGS+0x68(%rdi)
	movq %r14, CTX_REGS+0x70(%rdi)
	movq %r15, CTX_REGS+0x78(%rdi)
.endm

	.text

/* int cordon_enter(struct cordon_context *): calls the entry whose address lies at context->stack; the outcome is in the context. */
SYM_CODE_START(cordon_enter)
	NO_CALLER
	ENDBR
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, CTX_HOST_RSP(%rdi)
	movq PER_CPU_VAR(cordon_current), %rax
	movq %rax, CTX_PREVIOUS(%rdi)
	movq CTX_BASE(%rdi), %rdx
	testl $CORDON_FLAG_FSGSBASE, CTX_FLAGS(%rdi)
	jz .Lread_msr
	rdfsbase %rax
	movq %rax, CTX_HOST_FS(%rdi)
	wrfsbase %rdx
	jmp .Lcall
.Lread_msr:
	movl $MSR_FS, %ecx
	rdmsr
	movl %eax, CTX_HOST_FS(%rdi)
	movl %edx, CTX_HOST_FS+4(%rdi)
	movl CTX_BASE(%rdi), %eax
	movl CTX_BASE+4(%rdi), %edx
	wrmsr
.Lcall:
	movq %rdi, PER_CPU_VAR(cordon_current)
	movq CTX_STACK(%rdi), %rsp
	movq CTX_ARGS+0x08(%rdi), %rsi
	movq CTX_ARGS+0x10(%rdi), %rdx
	movq CTX_ARGS+0x18(%rdi), %rcx
	movq CTX_ARGS+0x20(%rdi), %r8
	movq CTX_ARGS+0x28(%rdi), %r9
	movq CTX_FUEL(%rdi), %r14
	movq CTX_ARGS(%rdi), %rdi
	xorl %eax, %eax
	xorl %ebx, %ebx
	xorl %ebp, %ebp
	xorl %r10d, %r10d
	xorl %r11d, %r11d
	xorl %r12d, %r12d
	xorl %r13d, %r13d
	xorl %r15d, %r15d
	cld
	ANNOTATE_RETPOLINE_SAFE
	call *(%rsp)
	movq PER_CPU_VAR(cordon_current), %rdi
	movq %rax, CTX_RESULT(%rdi)
	movq %r14, CTX_FUEL(%rdi)
	movl $CORDON_STOP_NONE, CTX_STATUS(%rdi)
.Lleave:
	movq CTX_HOST_RSP(%rdi), %rsp
	cld
	testl $CORDON_FLAG_FSGSBASE, CTX_FLAGS(%rdi)
	jz .Lwrite_msr
	movq CTX_HOST_FS(%rdi), %rax
	wrfsbase %rax
	jmp .Lrestore
.Lwrite_msr:
	movl $MSR_FS, %ecx
	movl CTX_HOST_FS(%rdi), %eax
	movl CTX_HOST_FS+4(%rdi), %edx
	wrmsr
.Lrestore:
	movq CTX_PREVIOUS(%rdi), %rax
	movq %rax, PER_CPU_VAR(cordon_current)
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	xorl %eax, %eax
	RET
SYM_CODE_END(cordon_enter)

/* A faulting instruction's stub calls this, on the native stack, with all registers as at the fault. */
SYM_CODE_START(cordon_fault)
	NO_CALLER
	ENDBR
	pushq %rdi
	SAVE_REGISTERS
	popq CTX_STUB(%rdi)
	movq %rsp, CTX_REGS+0x20(%rdi)
	movl $CORDON_STOP_FAULT, CTX_STATUS(%rdi)
	jmp .Lleave
SYM_CODE_END(cordon_fault)

/* The watchdog sends an interrupted handler here; it has stored the registers. */
SYM_CODE_START(cordon_expire)
	NO_CALLER
	ENDBR
	movq PER_CPU_VAR(cordon_current), %rdi
	movl $CORDON_STOP_TIME, CTX_STATUS(%rdi)
	jmp .Lleave
SYM_CODE_END(cordon_expire)

/* What table slots of imports hold: 16 bytes for each gate. */
	.balign 16
SYM_CODE_START(cordon_gates)
	.set index, 0
	.rept CORDON_GATES
	.balign 16
	NO_CALLER
	ENDBR
	pushq $index
	jmp .Lgate
	.set index, index + 1
	.endr
SYM_CODE_END(cordon_gates)

/* The gate itself runs on the host's stack. It keeps all registers but those that it means to change, so no value of the host is left. */
SYM_CODE_START(cordon_gate)
	NO_CALLER
.Lgate:
	pushq %rdi
	SAVE_REGISTERS
	popq CTX_GATE(%rdi)
	pushfq
	popq CTX_RFLAGS(%rdi)
	movq %rsp, CTX_REGS+0x20(%rdi)
	movq CTX_HOST_RSP(%rdi), %rsp
	subq $8, %rsp
	cld
	movq %rdi, %rbx
	call cordon_gate_run
	movq %rbx, %rdi
	testl %eax, %eax
	jnz .Lstop
	movq CTX_REGS+0x20(%rdi), %rsp
	pushfq
	popq %rax
	andq $~CORDON_STATUS_FLAGS, %rax
	movq CTX_RFLAGS(%rdi), %rcx
	andl $CORDON_STATUS_FLAGS, %ecx
	orq %rcx, %rax
	pushq %rax
	popfq
	movq CTX_REGS+0x00(%rdi), %rax
	movq CTX_REGS+0x08(%rdi), %rcx
	movq CTX_REGS+0x10(%rdi), %rdx
	movq CTX_REGS+0x18(%rdi), %rbx
	movq CTX_REGS+0x28(%rdi), %rbp
	movq CTX_REGS+0x30(%rdi), %rsi
	movq CTX_REGS+0x40(%rdi), %r8
	movq CTX_REGS+0x48(%rdi), %r9
	movq CTX_REGS+0x50(%rdi), %r10
	movq CTX_REGS+0x58(%rdi), %r11
	movq CTX_REGS+0x60(%rdi), %r12
	movq CTX_REGS+0x68(%rdi), %r13
	movq CTX_REGS+0x70(%rdi), %r14
	movq CTX_REGS+0x78(%rdi), %r15
	movq CTX_REGS+0x38(%rdi), %rdi
	RET
.Lstop:
	movl %eax, CTX_STATUS(%rdi)
	jmp .Lleave
SYM_CODE_END(cordon_gate)

	.section .note.GNU-stack,"",@progbits
