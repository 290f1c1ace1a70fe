# Entry, exit, abort and the gate to host functions (AT&T syntax).
#
# Everywhere here rcx (r11 before the host stack is reached) is the high half of the context's address, that is, the context lies at
# HOME(%rcx); names like BASE are HOME plus the field's offset. See context.rs.

.text

# Zeroes every vector register that accepted text can name, upper halves included, if the text has instructions that name any. Legacy
# pxor where there is no AVX.
.macro CLEAR_VECTORS flags
    test ${VECTORS}, \flags
    jz 882f
    test ${AVX}, \flags
    jz 881f
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    vpxor %xmm\n, %xmm\n, %xmm\n
    .endr
    jmp 882f
881:
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    pxor %xmm\n, %xmm\n
    .endr
882:
.endm

# Zeroes the x87 registers (fninit and emms only change tags, design-review B3), the stack top, the condition codes and the exception
# flags, and empties the stack. fninit and fnclex are slow, so they run only where there is something to clear.
.macro CLEAR_X87
    emms
    fld1
    ftst
    fstp %st(0)
    .irp n, 0,1,2,3,4,5,6,7
    pxor %mm\n, %mm\n
    .endr
    emms
    fnstsw %ax
    test $0xff, %al
    jz 871f
    fnclex
871:
.endm

# Pops rdx words off the shadow stack, at most 255 at a time (design-review C3). Changes rax, rdx and flags.
.macro POP_SHADOW
861:
    mov $255, %eax
    cmp %rax, %rdx
    cmovb %rdx, %rax
    incsspq %rax
    sub %rax, %rdx
    jnz 861b
.endm

# cordon_loader_enter(rdi = high half of the context's address, rsi = native rsp; the word there is the address to call; rdx = six integers)
.balign 64
.globl cordon_loader_enter
.hidden cordon_loader_enter
.type cordon_loader_enter, @function
cordon_loader_enter:
    .cfi_startproc
    .cfi_undefined %rip
    push %rbp
    push %rbx
    sub $8, %rsp
    mov {FLAGS}(%rdi), %ebx
    mov %rsp, {HOST_RSP}(%rdi)
    test ${SHADOWED}+{SYSTEM_CALLS}, %ebx
    jnz 18f
10:
    rdgsbase %rax
    mov {BASE}(%rdi), %rcx
    mov %rax, {HOST_GS}(%rdi)
    cmp %rcx, %rax
    jne 7f
11:
    xor %eax, %eax
    xor %r14d, %r14d
    test ${VECTORS}+{FLOAT_ARGS}+{METERED}, %ebx
    jz 14f
    test ${VECTORS}, %ebx
    jz 17f
    stmxcsr (%rsp)
    mov (%rsp), %eax
    xor $0x1f80, %eax
    test %eax, {MXCSR_MASK}(%rdi)
    jnz 15f
12:
    test ${X87}, %ebx
    jnz 16f
19:
    CLEAR_VECTORS %ebx
    xor %eax, %eax
    test ${FLOAT_ARGS}+{METERED}, %ebx
    jnz 17f
14:
    mov %rsi, %rsp
    mov (%rdx), %rdi
    mov 8(%rdx), %rsi
    mov 24(%rdx), %rcx
    mov 32(%rdx), %r8
    mov 40(%rdx), %r9
    mov 16(%rdx), %rdx
    xor %ebx, %ebx
    xor %ebp, %ebp
    xor %r10d, %r10d
    xor %r11d, %r11d
    xor %r12d, %r12d
    xor %r13d, %r13d
    xor %r15d, %r15d
    cmp %ebx, %ebx
    call *(%rsp)

    # The handler returned; rsp is where it was before the call.
    mov %esp, %ecx
    xor %rsp, %rcx
    mov {FLAGS}(%rcx), %edx
    movl $0, {STOP}(%rcx)
    test ${METERED}, %edx
    jnz 27f
cordon_loader_leave:  # rcx = high half of the context's address, edx = FLAGS; rax and xmm0 are the result.
    mov {HOST_RSP}(%rcx), %rsp
    test ${X87}+{NT}+{CONTROL}+{UPPER}+{SYSTEM_CALLS}, %edx
    jnz 28f
22:
    mov {HOST_GS}(%rcx), %rdx
    cmp {BASE}(%rcx), %rdx
    je 23f
    wrgsbase %rdx
23:
    add $8, %rsp
    pop %rbx
    pop %rbp
    ret

    # Seldom-taken parts of entry.
7:
    wrgsbase %rcx
    test ${KEEP_GS}, %ebx
    jz 11b
    # A base of 0, and one that an exit left there, is nobody's: exit leaves this one.
    test %rax, %rax
    jz 8f
    cmp {LEFT_GS}(%rdi), %rax
    jne 11b
8:
    mov %rcx, {LEFT_GS}(%rdi)
    mov %rcx, {HOST_GS}(%rdi)
    jmp 11b
18:
    test ${SHADOWED}, %ebx
    jz 11b
    rdsspq %rax
    mov %rax, {SHADOW}(%rdi)
    test ${SYSTEM_CALLS}, %ebx
    jz 10b
    jmp 11b
15:  # The host's MXCSR is not the default: load it, and give host functions theirs back.
    movl $0x1f80, 4(%rsp)
    ldmxcsr 4(%rsp)
    orl ${CONTROL}, {FLAGS}(%rdi)
    or ${CONTROL}, %ebx
    jmp 12b
16:
    fnstcw 4(%rsp)
    mov 4(%rsp), %ax
    mov %eax, {HOST_FCW}(%rdi)
    cmp $0x037f, %ax
    je 20f
    # Unmasked exceptions may be pending: fninit does not wait for them.
    fninit
20:
    CLEAR_X87
    jmp 19b
17:
    test ${METERED}, %ebx
    jz 9f
    mov {FUEL}(%rdi), %r14
9:
    test ${FLOAT_ARGS}, %ebx
    jz 14b
    movsd {FLOAT_VALUES}(%rdi), %xmm0
    movsd {FLOAT_VALUES}+8(%rdi), %xmm1
    movsd {FLOAT_VALUES}+16(%rdi), %xmm2
    movsd {FLOAT_VALUES}+24(%rdi), %xmm3
    movsd {FLOAT_VALUES}+32(%rdi), %xmm4
    movsd {FLOAT_VALUES}+40(%rdi), %xmm5
    movsd {FLOAT_VALUES}+48(%rdi), %xmm6
    movsd {FLOAT_VALUES}+56(%rdi), %xmm7
    mov $8, %eax
    jmp 14b

    # Seldom-taken parts of exit; rax is kept.
27:
    mov %r14, {FUEL}(%rcx)
    jmp cordon_loader_leave
28:
    test ${UPPER}, %edx
    jz 21f
    vzeroupper
21:
    test ${NT}, %edx
    jz 25f
    sfence
25:
    test ${CONTROL}, %edx
    jz 26f
    stmxcsr 4(%rsp)
    mov (%rsp), %esi
    cmp %esi, 4(%rsp)
    je 26f
    ldmxcsr (%rsp)
26:
    test ${X87}, %edx
    jz 24f
    emms
    fnstcw 4(%rsp)
    mov 4(%rsp), %si
    cmp {HOST_FCW}(%rcx), %si
    je 24f
    # The host's word may unmask what the handler raised (design-review B2).
    fnclex
    fldcw {HOST_FCW}(%rcx)
24:
    test ${SYSTEM_CALLS}, %edx
    jz 22b
    jmp 23b
    .cfi_endproc
.size cordon_loader_enter, . - cordon_loader_enter

# Ends the running entry from anywhere: rcx = high half of the context's address, STOP set. The signal handler and the gates come here.
.globl cordon_loader_abort
.hidden cordon_loader_abort
.type cordon_loader_abort, @function
cordon_loader_abort:
    .cfi_startproc
    .cfi_undefined %rip
    mov {FLAGS}(%rcx), %edx
    mov {HOST_RSP}(%rcx), %rsp
    cld
    test ${SHADOWED}, %edx
    jz cordon_loader_leave
    rdsspq %rax
    # To where entry was.
    mov {SHADOW}(%rcx), %rdx
    sub %rax, %rdx
    shr $3, %rdx
    POP_SHADOW
    mov {FLAGS}(%rcx), %edx
    jmp cordon_loader_leave
    .cfi_endproc
.size cordon_loader_abort, . - cordon_loader_abort

# The way back from a host function: besides rdx no value of the host in any register or flag. rax is the result.
.macro CLEAR_REGISTERS
    xor %ecx, %ecx
    xor %esi, %esi
    xor %edi, %edi
    xor %r8d, %r8d
    xor %r9d, %r9d
    xor %r10d, %r10d
    xor %r11d, %r11d
    cmp %ecx, %ecx
.endm

# Calls the plain function in r10, which gets the handler's argument registers as they are, on the host's stack. What the long way does
# before and after a function holds here as well: native stack left for callbacks and signals (GATE_LIMIT), rbp 0 for those who follow frame
# pointers, a time limit or panic looked at behind the function, the segment base compared, the handler's count back from its own copy, no
# host value in any register or flag. Control words are not touched: text that may see them, and a host that has its own, go the long way.
#
# The handler's rsp waits in r15, and its r15 and rbp on the host's stack, so that the handler's next steps wait for no store of the gate.
# \others: the text has more to look after than general registers.
.macro CALL_PLAIN others
    cmp {GATE_LIMIT}(%r11), %rsp
    jb 37f
    mov %eax, {IMPORT}(%r11)
    mov {HOST_RSP}(%r11), %rax
    .if \others
    mov %r14, {FUEL}(%r11)
    testl ${UPPER}, {FLAGS}(%r11)
    jz 401f
    vzeroupper
401:
    .endif
    # 16-byte aligned at the call, as host_rsp is.
    mov %r15, -8(%rax)
    mov %rbp, -16(%rax)
    mov %rsp, %r15
    lea -16(%rax), %rsp
    xor %ebp, %ebp
    call *%r10
    mov %r15d, %ecx
    xor %r15, %rcx
    testl ${ENDING}, {MARKS}(%rcx)
    jnz 38f
    rdgsbase %rdx
    cmp {BASE}(%rcx), %rdx
    jne 402f
403:
    .if \others
    mov {FLAGS}(%rcx), %edx
    mov {FUEL}(%rcx), %r14
    CLEAR_VECTORS %edx
    .endif
    mov %r15, %rdx
    mov (%rsp), %rbp
    mov 8(%rsp), %r15
    mov %rdx, %rsp
    xor %edx, %edx
    CLEAR_REGISTERS
    ret
402:
    mov {BASE}(%rcx), %rdx
    wrgsbase %rdx
    jmp 403b
.endm

# Gate to host functions, reached by the import's stub with rax = import index and SysV arguments, on the native stack.
.balign 64
.globl cordon_loader_host_gate
.hidden cordon_loader_host_gate
.type cordon_loader_host_gate, @function
cordon_loader_host_gate:
    .cfi_startproc
    .cfi_undefined %rip
    mov %esp, %r11d
    xor %rsp, %r11
    mov {PLAIN}(%r11), %r10
    mov (%r10,%rax,8), %r10
    test %r10, %r10
    jz 30f
    testl ${VECTORS}+{METERED}+{X87}+{CONTROL}, {FLAGS}(%r11)
    jnz 29f
    CALL_PLAIN 0
29:
    # A function that needs control words of its own goes the long way.
    testl ${CONTROL}+{X87}, {FLAGS}(%r11)
    jnz 30f
    CALL_PLAIN 1
38:  # The time is up, or the function panicked: the call ends.
    mov %r15, {GATE_RSP}(%rcx)
    mov %rcx, %rdi
    call {plain_ended}
    mov %r15d, %ecx
    xor %r15, %rcx
    jmp cordon_loader_abort

30:
    cmp {GATE_LIMIT}(%r11), %rsp
    jb 37f
    mov %rsp, {GATE_RSP}(%r11)
    mov %r14, {FUEL}(%r11)
    mov %eax, {IMPORT}(%r11)
    mov {FLAGS}(%r11), %r10d
    mov {HOST_RSP}(%r11), %rax
    test ${FLOAT_IMPORTS}, %r10d
    jnz 34f
31:
    test ${CONTROL}+{X87}, %r10d
    jnz 35f
32:
    test ${UPPER}, %r10d
    jz 33f
    vzeroupper
33:
    # The host's stack, 16-byte aligned at the call, as host_rsp is; the seventh argument is its lowest word.
    mov %r15, -8(%rax)
    mov %rbp, -16(%rax)
    mov %r11, -32(%rax)
    mov %rsp, %r15
    lea -32(%rax), %rsp
    xor %ebp, %ebp
    call {dispatch}
    mov %r15d, %ecx
    xor %r15, %rcx
    test %edx, %edx
    jnz cordon_loader_abort
    mov {FLAGS}(%rcx), %edx
    test ${SYSTEM_CALLS}, %edx
    jnz 41f
    rdgsbase %rsi
    cmp {BASE}(%rcx), %rsi
    jne 48f
41:
    CLEAR_VECTORS %edx
    mov {FUEL}(%rcx), %r14
    test ${CONTROL}+{X87}+{FLOAT_IMPORTS}+{RESUME}, %edx
    jnz 49f
42:
    mov %r15, %rdx
    mov 16(%rsp), %rbp
    mov 24(%rsp), %r15
    mov %rdx, %rsp
    xor %edx, %edx
    CLEAR_REGISTERS
    ret

34:
    movsd %xmm0, {FLOAT_VALUES}(%r11)
    movsd %xmm1, {FLOAT_VALUES}+8(%r11)
    movsd %xmm2, {FLOAT_VALUES}+16(%r11)
    movsd %xmm3, {FLOAT_VALUES}+24(%r11)
    movsd %xmm4, {FLOAT_VALUES}+32(%r11)
    movsd %xmm5, {FLOAT_VALUES}+40(%r11)
    movsd %xmm6, {FLOAT_VALUES}+48(%r11)
    movsd %xmm7, {FLOAT_VALUES}+56(%r11)
    jmp 31b
35:  # Host functions run with the host's control words (design-review B2).
    stmxcsr {GATE_MXCSR}(%r11)
    ldmxcsr (%rax)
    test ${X87}, %r10d
    jz 32b
    fnstcw {GATE_FCW}(%r11)
    emms
    cmpw $0x037f, {HOST_FCW}(%r11)
    je 36f
    fnclex
36:
    fldcw {HOST_FCW}(%r11)
    jmp 32b
37:
    mov %rsp, {GATE_RSP}(%r11)
    mov %r14, {FUEL}(%r11)
    movl ${STOP_STACK}, {STOP}(%r11)
    mov %r11, %rcx
    jmp cordon_loader_abort
48:
    mov {BASE}(%rcx), %rsi
    wrgsbase %rsi
    jmp 41b
49:
    test ${FLOAT_IMPORTS}, %edx
    jz 43f
    movsd {FLOAT_RESULT}(%rcx), %xmm0
43:
    test ${CONTROL}+{X87}, %edx
    jz 45f
    ldmxcsr {GATE_MXCSR}(%rcx)
    test ${X87}, %edx
    jz 45f
    cmpw $0x037f, {HOST_FCW}(%rcx)
    je 44f
    fninit
44:
    mov %rax, %rsi
    CLEAR_X87
    mov %rsi, %rax
    fldcw {GATE_FCW}(%rcx)
45:
    test ${RESUME}, %edx
    jz 42b
    # longjmp: GATE_RSP is where setjmp returned to, and the word below it the address to go on at.
    andl $~{RESUME}, {FLAGS}(%rcx)
    test ${SHADOWED}, %edx
    jz 46f
    mov {POPPED}(%rcx), %rdx
    mov %rax, %rsi
    POP_SHADOW
    mov %rsi, %rax
46:
    mov {RECORD}(%rcx), %rbx
    mov {RECORD}+8(%rcx), %rbp
    mov {RECORD}+16(%rcx), %r12
    mov {RECORD}+24(%rcx), %r13
    mov {RECORD}+32(%rcx), %rdx
    mov {RECORD}+40(%rcx), %r15
    mov {GATE_RSP}(%rcx), %rsp
    CLEAR_REGISTERS
    jmp *-8(%rsp)
    .cfi_endproc
.size cordon_loader_host_gate, . - cordon_loader_host_gate

# Copies rdx bytes from rsi to rdi for the host; gives 0, or 1 if the signal handler found a fault here and went to the second label.
.balign 16
.globl cordon_loader_copy
.hidden cordon_loader_copy
.type cordon_loader_copy, @function
cordon_loader_copy:
    .cfi_startproc
    mov %rdx, %rcx
    cmp $64, %rdx
    ja 2f
    test %rcx, %rcx
    jz 3f
1:
    mov -1(%rsi,%rcx), %al
    mov %al, -1(%rdi,%rcx)
    dec %rcx
    jnz 1b
    xor %eax, %eax
    ret
2:
    rep movsb
3:
    xor %eax, %eax
    ret
.globl cordon_loader_copy_fault
.hidden cordon_loader_copy_fault
cordon_loader_copy_fault:
    mov $1, %eax
    ret
    .cfi_endproc
.size cordon_loader_copy, . - cordon_loader_copy
