# Stores what it finds in registers: at its entry (heap + 0), behind a gate (heap + 128), and calls itself once more for the frames.
.macro STORE at
    mov %rax, __cordon_heap_start+\at+0(%rip)
    mov %rcx, __cordon_heap_start+\at+8(%rip)
    mov %rdx, __cordon_heap_start+\at+16(%rip)
    mov %rbx, __cordon_heap_start+\at+24(%rip)
    mov %rsp, __cordon_heap_start+\at+32(%rip)
    mov %rbp, __cordon_heap_start+\at+40(%rip)
    mov %rsi, __cordon_heap_start+\at+48(%rip)
    mov %rdi, __cordon_heap_start+\at+56(%rip)
    mov %r8, __cordon_heap_start+\at+64(%rip)
    mov %r9, __cordon_heap_start+\at+72(%rip)
    mov %r10, __cordon_heap_start+\at+80(%rip)
    mov %r11, __cordon_heap_start+\at+88(%rip)
    mov %r12, __cordon_heap_start+\at+96(%rip)
    mov %r13, __cordon_heap_start+\at+104(%rip)
    mov %r15, __cordon_heap_start+\at+112(%rip)
.endm
.globl leak
.type leak,@function
leak:
    STORE 0
    sub $8,%rsp
    lea __cordon_heap_start+512(%rip), %rdi
    lea __cordon_heap_start(%rip), %rsi
    mov $120, %edx
    call memcpy
    STORE 128
    lea __cordon_heap_start+768(%rip), %rdi
    lea __cordon_heap_start(%rip), %rsi
    mov $15, %ecx
    rep movsq
    STORE 256
    add $8,%rsp
    mov $1,%eax
    ret
.size leak,.-leak
