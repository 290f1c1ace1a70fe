# Built-in gates (AT&T syntax). They run on the native stack, hold nothing, and may be aborted at any instruction: every address in
# [cordon_loader_gates, cordon_loader_gates_end) is in the signal handler's list.
#
# Window memory is reached through gs with 32-bit addresses, or linearly after base (from the context, never from a handler's register)
# plus a checked range. A pointer must be below 4 GiB as a 64-bit number, a destination not below T_end; offset and length are summed in
# 64 bits. Nothing is checked or touched when the length is 0.
#
# Metered images get gates of their own (NAME_metered), which take fuel from r14 before they work: one unit for 16 bytes of memcpy, memmove,
# memset, memcmp, strlen and setjmp, one for four elements of a string instruction, what is left over being free. A length that is not known
# before (strlen, comparing, scanning) is paid for as it is found out, and the gate never works for more than there is.

.text
.balign 64
.globl cordon_loader_gates
.hidden cordon_loader_gates
cordon_loader_gates:

# Gives the high half of the context's address in \reg. Changes flags.
.macro FIND_CONTEXT reg
    mov %rsp, \reg
    shr $32, \reg
    shl $32, \reg
.endm

# Refuses unless \offset .. \offset+\len (1 <= len < 2^32, both zero-extended) ends at or below 4 GiB. Changes \scratch and flags.
.macro CHECK_RANGE offset, len, scratch, bad
    lea -1(\offset,\len), \scratch
    shr $32, \scratch
    jnz \bad
.endm

# Refused arguments: the loader looks at rdi, rsi and the length in rdx or rcx. rsp is as at the call; r11 = the gate's address.
gate_refuses:
    mov %rcx, %r8
    FIND_CONTEXT %rcx
    movl ${STOP_GATE_RANGE}, {STOP}(%rcx)
gate_stops:
    mov %rdi, {ARGS}(%rcx)
    mov %rsi, {ARGS}+8(%rcx)
    mov %rdx, {ARGS}+16(%rcx)
    mov %r8, {ARGS}+24(%rcx)
    mov %r11, {ARGS}+32(%rcx)
    mov %r14, {FUEL}(%rcx)
    mov %rsp, {GATE_RSP}(%rcx)
    jmp cordon_loader_abort
# Not enough fuel; as gate_refuses.
gate_starves:
    mov %rcx, %r8
    FIND_CONTEXT %rcx
    movl ${STOP_FUEL}, {STOP}(%rcx)
    jmp gate_stops

# Where gate \name goes to be refused or for want of fuel, with \frame bytes pushed.
.macro STOPS name, frame
refuse_\name:
    lea \frame(%rsp), %rsp
    lea cordon_loader_\name(%rip), %r11
    jmp gate_refuses
starve_\name:
    lea \frame(%rsp), %rsp
    lea cordon_loader_\name(%rip), %r11
    jmp gate_starves
.endm

# The metered form of a gate whose length is rdx.
.macro PAY_BYTES name
    .balign 16
    .globl cordon_loader_\name\()_metered
    .hidden cordon_loader_\name\()_metered
    cordon_loader_\name\()_metered:
    mov %rdx, %r11
    shr $4, %r11
    sub %r11, %r14
    jae cordon_loader_\name
    jmp starve_\name
.endm
PAY_BYTES memmove
PAY_BYTES memset
PAY_BYTES memcmp

# void *memcpy(void *rdi, const void *rsi, size_t rdx), memmove alike: overlap is always handled.
.balign 32
.globl cordon_loader_memmove
.hidden cordon_loader_memmove
cordon_loader_memmove:
    mov %rdi, %rax
    FIND_CONTEXT %r11
    test %rdx, %rdx
    jz 9f
    mov %edi, %r8d
    mov %esi, %r9d
    mov %rdx, %rcx
    or %rdi, %rcx
    or %rsi, %rcx
    shr $32, %rcx
    jnz refuse_memmove
    cmp {TABLE_END}(%r11), %r8
    jb refuse_memmove
    CHECK_RANGE %r8, %rdx, %rcx, refuse_memmove
    CHECK_RANGE %r9, %rdx, %rcx, refuse_memmove
    cmp $16, %edx
    jbe 3f
    cmp $32, %edx
    jbe 2f
    cmp $64, %edx
    ja 6f
    movdqu %gs:(%r9d), %xmm0
    movdqu %gs:16(%r9d), %xmm1
    movdqu %gs:-32(%r9d,%edx), %xmm2
    movdqu %gs:-16(%r9d,%edx), %xmm3
    movdqu %xmm0, %gs:(%r8d)
    movdqu %xmm1, %gs:16(%r8d)
    movdqu %xmm2, %gs:-32(%r8d,%edx)
    movdqu %xmm3, %gs:-16(%r8d,%edx)
    jmp 9f
2:
    movdqu %gs:(%r9d), %xmm0
    movdqu %gs:-16(%r9d,%edx), %xmm1
    movdqu %xmm0, %gs:(%r8d)
    movdqu %xmm1, %gs:-16(%r8d,%edx)
    jmp 9f
3:
    cmp $8, %edx
    jb 4f
    mov %gs:(%r9d), %rcx
    mov %gs:-8(%r9d,%edx), %r10
    mov %rcx, %gs:(%r8d)
    mov %r10, %gs:-8(%r8d,%edx)
    jmp 9f
4:
    cmp $4, %edx
    jb 5f
    mov %gs:(%r9d), %ecx
    mov %gs:-4(%r9d,%edx), %r10d
    mov %ecx, %gs:(%r8d)
    mov %r10d, %gs:-4(%r8d,%edx)
    jmp 9f
5:
    movzbl %gs:(%r9d), %ecx
    cmp $1, %edx
    je 1f
    movzwl %gs:-2(%r9d,%edx), %r10d
    mov %r10w, %gs:-2(%r8d,%edx)
1:
    mov %cl, %gs:(%r8d)
9:
    xor %r11d, %r11d
    ret
6:
    # Forward is right unless the destination begins inside the source.
    mov %r8, %rcx
    sub %r9, %rcx
    cmp %rdx, %rcx
    jb 8f
    cmp $2048, %edx
    jae 7f
    movdqu %gs:-64(%r9d,%edx), %xmm4
    movdqu %gs:-48(%r9d,%edx), %xmm5
    movdqu %gs:-32(%r9d,%edx), %xmm6
    movdqu %gs:-16(%r9d,%edx), %xmm7
    lea (%r8,%rdx), %r10
1:
    movdqu %gs:(%r9d), %xmm0
    movdqu %gs:16(%r9d), %xmm1
    movdqu %gs:32(%r9d), %xmm2
    movdqu %gs:48(%r9d), %xmm3
    movdqu %xmm0, %gs:(%r8d)
    movdqu %xmm1, %gs:16(%r8d)
    movdqu %xmm2, %gs:32(%r8d)
    movdqu %xmm3, %gs:48(%r8d)
    add $64, %r8
    add $64, %r9
    sub $64, %edx
    cmp $64, %edx
    ja 1b
    movdqu %xmm4, %gs:-64(%r10d)
    movdqu %xmm5, %gs:-48(%r10d)
    movdqu %xmm6, %gs:-32(%r10d)
    movdqu %xmm7, %gs:-16(%r10d)
    jmp 9b
7:
    mov {BASE}(%r11), %rcx
    lea (%rcx,%r8), %rdi
    lea (%rcx,%r9), %rsi
    mov %rdx, %rcx
    rep movsb
    xor %edi, %edi
    xor %esi, %esi
    jmp 9b
8:
    movdqu %gs:(%r9d), %xmm4
    movdqu %gs:16(%r9d), %xmm5
    movdqu %gs:32(%r9d), %xmm6
    movdqu %gs:48(%r9d), %xmm7
1:
    movdqu %gs:-16(%r9d,%edx), %xmm0
    movdqu %gs:-32(%r9d,%edx), %xmm1
    movdqu %gs:-48(%r9d,%edx), %xmm2
    movdqu %gs:-64(%r9d,%edx), %xmm3
    movdqu %xmm0, %gs:-16(%r8d,%edx)
    movdqu %xmm1, %gs:-32(%r8d,%edx)
    movdqu %xmm2, %gs:-48(%r8d,%edx)
    movdqu %xmm3, %gs:-64(%r8d,%edx)
    sub $64, %edx
    cmp $64, %edx
    ja 1b
    movdqu %xmm4, %gs:(%r8d)
    movdqu %xmm5, %gs:16(%r8d)
    movdqu %xmm6, %gs:32(%r8d)
    movdqu %xmm7, %gs:48(%r8d)
    jmp 9b
    STOPS memmove, 0

# void *memset(void *rdi, int esi, size_t rdx)
.balign 32
.globl cordon_loader_memset
.hidden cordon_loader_memset
cordon_loader_memset:
    mov %rdi, %rax
    FIND_CONTEXT %r11
    test %rdx, %rdx
    jz 9f
    mov %edi, %r8d
    mov %rdx, %rcx
    or %rdi, %rcx
    shr $32, %rcx
    jnz refuse_memset
    cmp {TABLE_END}(%r11), %r8
    jb refuse_memset
    CHECK_RANGE %r8, %rdx, %rcx, refuse_memset
    movzbl %sil, %ecx
    movabs $0x0101010101010101, %r9
    imul %r9, %rcx
    cmp $16, %edx
    jbe 3f
    movq %rcx, %xmm0
    punpcklqdq %xmm0, %xmm0
    cmp $1024, %edx
    jae 7f
    lea (%r8,%rdx), %r10
    cmp $64, %edx
    jbe 2f
1:
    movdqu %xmm0, %gs:(%r8d)
    movdqu %xmm0, %gs:16(%r8d)
    movdqu %xmm0, %gs:32(%r8d)
    movdqu %xmm0, %gs:48(%r8d)
    add $64, %r8
    sub $64, %edx
    cmp $64, %edx
    ja 1b
    movdqu %xmm0, %gs:-64(%r10d)
    movdqu %xmm0, %gs:-48(%r10d)
    movdqu %xmm0, %gs:-32(%r10d)
    movdqu %xmm0, %gs:-16(%r10d)
    jmp 9f
2:
    movdqu %xmm0, %gs:(%r8d)
    movdqu %xmm0, %gs:-16(%r10d)
    cmp $32, %edx
    jbe 9f
    movdqu %xmm0, %gs:16(%r8d)
    movdqu %xmm0, %gs:-32(%r10d)
    jmp 9f
3:
    cmp $8, %edx
    jb 4f
    mov %rcx, %gs:(%r8d)
    mov %rcx, %gs:-8(%r8d,%edx)
    jmp 9f
4:
    cmp $4, %edx
    jb 5f
    mov %ecx, %gs:(%r8d)
    mov %ecx, %gs:-4(%r8d,%edx)
    jmp 9f
5:
    mov %cl, %gs:(%r8d)
    cmp $1, %edx
    je 9f
    mov %cx, %gs:-2(%r8d,%edx)
9:
    xor %r11d, %r11d
    ret
7:
    mov %rdi, %r9
    mov {BASE}(%r11), %rdi
    add %r8, %rdi
    mov %esi, %eax
    mov %rdx, %rcx
    rep stosb
    mov %r9, %rax
    xor %edi, %edi
    jmp 9b
    STOPS memset, 0

# int memcmp(const void *rdi, const void *rsi, size_t rdx)
.balign 32
.globl cordon_loader_memcmp
.hidden cordon_loader_memcmp
cordon_loader_memcmp:
    xor %eax, %eax
    test %rdx, %rdx
    jz 9f
    mov %edi, %r8d
    mov %esi, %r9d
    mov %rdx, %rcx
    or %rdi, %rcx
    or %rsi, %rcx
    shr $32, %rcx
    jnz refuse_memcmp
    CHECK_RANGE %r8, %rdx, %rcx, refuse_memcmp
    CHECK_RANGE %r9, %rdx, %rcx, refuse_memcmp
    cmp $16, %edx
    jb 4f
1:
    movdqu %gs:(%r8d), %xmm0
    movdqu %gs:(%r9d), %xmm1
    pcmpeqb %xmm1, %xmm0
    pmovmskb %xmm0, %ecx
    xor $0xffff, %ecx
    jnz 3f
    add $16, %r8
    add $16, %r9
    sub $16, %edx
    cmp $16, %edx
    jae 1b
    test %edx, %edx
    jz 9f
    # The last 16 bytes again, ending at the end.
    lea -16(%r8,%rdx), %r8
    lea -16(%r9,%rdx), %r9
    mov $16, %edx
    jmp 1b
3:
    bsf %ecx, %ecx
    movzbl %gs:(%r8d,%ecx), %eax
    movzbl %gs:(%r9d,%ecx), %ecx
    sub %ecx, %eax
    jmp 9f
4:
    movzbl %gs:(%r8d), %eax
    movzbl %gs:(%r9d), %ecx
    sub %ecx, %eax
    jnz 9f
    inc %r8
    inc %r9
    dec %edx
    jnz 4b
9:
    xor %r11d, %r11d
    ret
    STOPS memcmp, 0

# size_t strlen(const char *rdi); a string without end runs into an unmapped page.
.macro STRLEN name, metered
    .balign 32
    .globl cordon_loader_\name
    .hidden cordon_loader_\name
    cordon_loader_\name:
    mov %rdi, %r8
    mov %edi, %ecx
    shr $32, %r8
    jnz refuse_\name
    mov %edi, %r8d
    and $-16, %r8d
    and $15, %ecx
    pxor %xmm0, %xmm0
    movdqa %gs:(%r8d), %xmm1
    pcmpeqb %xmm0, %xmm1
    pmovmskb %xmm1, %eax
    shr %cl, %eax
    bsf %eax, %eax
    jnz 9f
1:
    .if \metered
    sub $1, %r14
    jb starve_\name
    .endif
    add $16, %r8d
    movdqa %gs:(%r8d), %xmm1
    pcmpeqb %xmm0, %xmm1
    pmovmskb %xmm1, %eax
    test %eax, %eax
    jz 1b
    bsf %eax, %eax
    add %r8, %rax
    mov %edi, %r8d
    sub %r8, %rax
9:
    xor %r11d, %r11d
    ret
    STOPS \name, 0
.endm
STRLEN strlen, 0
STRLEN strlen_metered, 1

# Instruction gates keep every register and flag that the instruction keeps. Their frame, from rsp up:
#   r10, r9, r8, flags (ah = lahf, al = overflow), rax, return address
.macro STRING_PROLOGUE
    push %rax
    lahf
    seto %al
    push %rax
    push %r8
    push %r9
    push %r10
    FIND_CONTEXT %r10
.endm

.macro STRING_FLAGS
    mov 24(%rsp), %rax
    add $0x7f, %al
    sahf
.endm

.macro STRING_EPILOGUE
    pop %r10
    pop %r9
    pop %r8
    lea 8(%rsp), %rsp
    pop %rax
    ret
.endm

# rax = rcx elements of 2^\shift bytes, refused from 4 GiB on; the destination rdi is checked. \pointers = rdi | other pointers.
.macro CHECK_DESTINATION name, shift, pointers
    shr $32, \pointers
    mov %rcx, %rax
    shr $32-\shift, %rax
    or \pointers, %rax
    jnz refuse_\name
    mov %edi, %r8d
    mov %rcx, %rax
    shl $\shift, %rax
    cmp {TABLE_END}(%r10), %r8
    jb refuse_\name
    CHECK_RANGE %r8, %rax, %r9, refuse_\name
.endm

# Takes the fuel for rcx elements. Changes rax and flags.
.macro PAY_ELEMENTS name, metered
    .if \metered
    mov %rcx, %rax
    shr $2, %rax
    sub %rax, %r14
    jb starve_\name
    .endif
.endm

# \reg becomes the linear address of its window offset; \delta is what takes that back to the register's value.
.macro TO_LINEAR reg, reg32, delta
    mov \reg, \delta
    mov \reg32, \reg32
    add {BASE}(%r10), \reg
    sub \reg, \delta
.endm

.macro GATE name
    .balign 16
    .globl cordon_loader_\name
    .hidden cordon_loader_\name
    cordon_loader_\name:
.endm

.macro REP_MOVS name, shift, letter, metered
    GATE \name
    STRING_PROLOGUE
    test %rcx, %rcx
    jz 1f
    PAY_ELEMENTS \name, \metered
    mov %rdi, %r9
    or %rsi, %r9
    CHECK_DESTINATION \name, \shift, %r9
    mov %esi, %r8d
    CHECK_RANGE %r8, %rax, %r9, refuse_\name
    TO_LINEAR %rdi, %edi, %r9
    TO_LINEAR %rsi, %esi, %r8
    STRING_FLAGS
    rep movs\letter
    lea (%rdi,%r9), %rdi
    lea (%rsi,%r8), %rsi
    STRING_EPILOGUE
1:
    STRING_FLAGS
    STRING_EPILOGUE
    STOPS \name, 40
.endm

.macro REP_STOS name, shift, letter, metered
    GATE \name
    STRING_PROLOGUE
    test %rcx, %rcx
    jz 1f
    PAY_ELEMENTS \name, \metered
    mov %rdi, %r9
    CHECK_DESTINATION \name, \shift, %r9
    TO_LINEAR %rdi, %edi, %r9
    STRING_FLAGS
    mov 32(%rsp), %rax
    rep stos\letter
    lea (%rdi,%r9), %rdi
    STRING_EPILOGUE
1:
    STRING_FLAGS
    STRING_EPILOGUE
    STOPS \name, 40
.endm

# Comparing and scanning only read, upwards and one element after the other, so they end at the guard above the window at the latest.
# A count of 0 leaves flags and pointers as they are. In the metered form r10 is the part of the count that the fuel does not last for,
# and the count begun with is pushed below the frame.
.macro LIMIT_COUNT
    xor %r10d, %r10d
    mov %r14, %rax
    shr $60, %rax
    jnz 2f
    lea 3(,%r14,4), %rax
    cmp %rax, %rcx
    jbe 2f
    mov %rcx, %r10
    sub %rax, %r10
    mov %rax, %rcx
2:
    push %rcx
.endm
# \going_on is the branch that is taken, by ZF of the last element, if the instruction would have gone on.
.macro PAY_COUNT name, going_on
    lahf
    seto %al
    pop %r9
    sub %rcx, %r9
    shr $2, %r9
    sub %r9, %r14
    test %r10, %r10
    jz 3f
    test %rcx, %rcx
    jnz 3f
    test $0x40, %ah
    \going_on starve_\name
3:
    add %r10, %rcx
    add $0x7f, %al
    sahf
.endm
.macro COMPARE name, prefix, letter, metered, going_on
    GATE \name
    STRING_PROLOGUE
    test %rcx, %rcx
    jz 1f
    mov %rdi, %rax
    or %rsi, %rax
    shr $32, %rax
    jnz refuse_\name
    TO_LINEAR %rdi, %edi, %r9
    TO_LINEAR %rsi, %esi, %r8
    .if \metered
    LIMIT_COUNT
    .endif
    # Every element sets the flags, and there is one.
    \prefix cmps\letter
    lea (%rdi,%r9), %rdi
    lea (%rsi,%r8), %rsi
    .if \metered
    PAY_COUNT \name, \going_on
    .endif
    STRING_EPILOGUE
1:
    STRING_FLAGS
    STRING_EPILOGUE
    STOPS \name, 40
.endm
.macro SCAN name, prefix, letter, metered, going_on
    GATE \name
    STRING_PROLOGUE
    test %rcx, %rcx
    jz 1f
    mov %rdi, %rax
    shr $32, %rax
    jnz refuse_\name
    TO_LINEAR %rdi, %edi, %r9
    .if \metered
    LIMIT_COUNT
    mov 40(%rsp), %rax
    .else
    mov 32(%rsp), %rax
    .endif
    \prefix scas\letter
    lea (%rdi,%r9), %rdi
    .if \metered
    PAY_COUNT \name, \going_on
    .endif
    STRING_EPILOGUE
1:
    STRING_FLAGS
    STRING_EPILOGUE
    STOPS \name, 40
.endm

.macro STRING_GATES size, shift, letter
    REP_MOVS rep_movs\size, \shift, \letter, 0
    REP_MOVS rep_movs\size\()_metered, \shift, \letter, 1
    REP_STOS rep_stos\size, \shift, \letter, 0
    REP_STOS rep_stos\size\()_metered, \shift, \letter, 1
    COMPARE repe_cmps\size, repe, \letter, 0
    COMPARE repe_cmps\size\()_metered, repe, \letter, 1, jnz
    COMPARE repne_cmps\size, repne, \letter, 0
    COMPARE repne_cmps\size\()_metered, repne, \letter, 1, jz
    SCAN repe_scas\size, repe, \letter, 0
    SCAN repe_scas\size\()_metered, repe, \letter, 1, jnz
    SCAN repne_scas\size, repne, \letter, 0
    SCAN repne_scas\size\()_metered, repne, \letter, 1, jz
.endm
STRING_GATES 1, 0, b
STRING_GATES 2, 1, w
STRING_GATES 4, 2, l
STRING_GATES 8, 3, q

# fldcw of the 16-bit word at window offset eax, every exception masked (design-review B2).
GATE fldcw
    push %rcx
    push %rax
    movzwl %gs:(%eax), %ecx
    lahf
    seto %al
    or $0x3f, %ecx
    push %rcx
    fldcw (%rsp)
    lea 8(%rsp), %rsp
    add $0x7f, %al
    sahf
    pop %rax
    pop %rcx
    ret

# ldmxcsr of the 32-bit word at window offset eax, every exception masked, reserved bits cleared.
GATE ldmxcsr
    push %rcx
    push %rax
    mov %gs:(%eax), %ecx
    lahf
    seto %al
    or $0x1f80, %ecx
    movzwl %cx, %ecx
    push %rcx
    ldmxcsr (%rsp)
    lea 8(%rsp), %rsp
    add $0x7f, %al
    sahf
    pop %rax
    pop %rcx
    ret

# cpuid: eax, ecx in; eax, ebx, ecx, edx out, from the image's list of leaves; a leaf that is not there is all zero.
GATE cpuid
    push %rsi
    push %rdi
    mov %eax, %esi
    lahf
    seto %al
    push %rax
    FIND_CONTEXT %rdi
    mov {LEAF_COUNT}(%rdi), %rdx
    mov {LEAVES}(%rdi), %rdi
1:
    dec %rdx
    js 3f
    cmp %esi, (%rdi)
    jne 2f
    cmp %ecx, 4(%rdi)
    je 4f
    cmpl $-1, 4(%rdi)
    je 4f
2:
    add $24, %rdi
    jmp 1b
3:
    xor %esi, %esi
    xor %ebx, %ebx
    xor %ecx, %ecx
    xor %edx, %edx
    jmp 5f
4:
    mov 8(%rdi), %esi
    mov 12(%rdi), %ebx
    mov 16(%rdi), %ecx
    mov 20(%rdi), %edx
5:
    pop %rax
    add $0x7f, %al
    sahf
    mov %esi, %eax
    pop %rdi
    pop %rsi
    ret

# xgetbv of register 0: edx:eax = the state components that the policy has.
GATE xgetbv
    lahf
    seto %al
    FIND_CONTEXT %rdx
    pushq {XCR0}(%rdx)
    add $0x7f, %al
    sahf
    pop %rax
    mov $0, %edx
    ret

# The record of setjmp lies at rdi: r8 = its offset. Changes r9.
.macro CHECK_RECORD name
    mov %rdi, %r8
    shr $32, %r8
    jnz refuse_\name
    mov %edi, %r8d
    lea 63(%r8), %r9
    shr $32, %r9
    jnz refuse_\name
.endm

# setjmp writes eight words at rdi: rbx, rbp, r12, r13, r14 (where that is the count: rdx), r15, the low half of rsp after the return with
# eax above it, and the text offset of the return address. rax = eax << 32, rdx is kept.
.macro SETJMP name, metered
    GATE \name
    .if \metered
    sub $4, %r14
    jb starve_\name
    .endif
    CHECK_RECORD \name
    FIND_CONTEXT %r11
    cmp {TABLE_END}(%r11), %r8
    jb refuse_\name
    shl $32, %rax
    lea 8(%rsp), %r10d
    or %rax, %r10
    # Where an entry itself was made a jump here, the return address is the host's: none is told.
    mov (%rsp), %r9
    cmp {TEXT_END}(%r11), %r9
    jae 1f
    sub {TEXT_START}(%r11), %r9
    jae 2f
1:
    mov $-1, %r9
2:
    mov %rbx, %gs:(%r8d)
    mov %rbp, %gs:8(%r8d)
    mov %r12, %gs:16(%r8d)
    mov %r13, %gs:24(%r8d)
    .if \metered
    mov %rdx, %gs:32(%r8d)
    .else
    mov %r14, %gs:32(%r8d)
    .endif
    mov %r15, %gs:40(%r8d)
    mov %r10, %gs:48(%r8d)
    mov %r9, %gs:56(%r8d)
    xor %r11d, %r11d
    ret
    STOPS \name, 0
.endm
SETJMP setjmp, 0
SETJMP setjmp_metered, 1

# longjmp copies the record at rdi, once, and goes on as a host function with the import index in eax (jumps.rs).
GATE longjmp
    CHECK_RECORD longjmp
    FIND_CONTEXT %r11
    .irp word, 0,8,16,24,32,40,48,56
    mov %gs:\word(%r8d), %r9
    mov %r9, {RECORD}+\word(%r11)
    .endr
    jmp cordon_loader_host_gate
    STOPS longjmp, 0

.globl cordon_loader_gates_end
.hidden cordon_loader_gates_end
cordon_loader_gates_end:
