# String instructions that end where memory does: rdi, rsi, rdx = count, rcx = what is stored.
.macro ENTRY name
.globl \name
.type \name,@function
\name:
    mov %rcx, %rax
    mov %rdx, %rcx
.endm
.macro END name
    mov %rdi, %rax
    ret
.size \name,.-\name
.endm
ENTRY movs1
    rep movsb
END movs1
ENTRY movs8
    rep movsq
END movs8
ENTRY stos1
    rep stosb
END stos1
ENTRY stos4
    rep stosl
END stos4
