/* SPDX-License-Identifier: GPL-2.0 */
/* Where checked text lies: a part of the module's own text, which the kernel maps executable and read-only. */
#include <linux/linkage.h>
#include <linux/version.h>
#include <asm/unwind_hints.h>
#include "layout.h"

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
#define NO_CALLER UNWIND_HINT_END_OF_STACK
#else
#define NO_CALLER UNWIND_HINT_EMPTY
#endif

	.section .text.cordon_arena,"ax",@progbits
	.balign 4096
SYM_CODE_START(cordon_arena)
	/* What objtool lets pass (endbr64, no-ops, an end); the module fills it with int3 when it is loaded. */
	NO_CALLER
	.byte 0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x1f, 0x40, 0x00
	.fill CORDON_ARENA_BYTES / 8 - 2, 8, 0x0000000000841f0f
	.fill 8, 1, 0xcc
SYM_CODE_END(cordon_arena)
	.globl cordon_arena_end
cordon_arena_end:

	.section .note.GNU-stack,"",@progbits
