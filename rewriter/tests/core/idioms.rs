//! Idioms of hand-written code and of C libraries.

use crate::assemble::{refusal, refusal_with, rewrite};
use cordon_rewriter::Options;

#[test]
fn a_copy_from_high_to_low_addresses_is_a_loop() {
    let made = rewrite("mov %rdx,%rcx\n std\n rep movsb\n cld\n ret\n");
    assert_eq!(made.step(1).0, [], "std leaves nothing behind");
    let (copy, _) = made.step(2);
    assert!(copy.starts_with(&[0x48, 0x85, 0xc9, 0x74]), "test %rcx,%rcx; je: {copy:x?}");
    assert!(copy.windows(4).any(|w| w == [0x48, 0x8d, 0x76, 0xff]), "lea -1(%rsi),%rsi: {copy:x?}");
    rewrite("mov %rdx,%rcx\n std\n rep movsq\n cld\n ret\n");
}

#[test]
fn the_direction_flag_is_for_nothing_else() {
    for body in [
        "std\n ret\n",
        "std\n rep movsb\n ret\n",
        "std\n movsb\n cld\n ret\n",
        "std\n rep stosb\n cld\n ret\n",
        "std\n nop\n rep movsb\n cld\n ret\n",
        // Somebody else arrives between the parts.
        "test %edi,%edi\n je 1f\n std\n1: rep movsb\n cld\n ret\n",
        "test %edi,%edi\n je 1f\n std\n rep movsb\n1: cld\n ret\n",
    ] {
        assert_eq!(refusal(body).0, "unsupported-instruction", "{body}");
    }
}

#[test]
fn code_that_is_reached_at_two_depths_is_copied() {
    // getcwd of musl: a buffer of constant size in one arm.
    let made = rewrite(concat!(
        "push %rbp\n mov %rsp,%rbp\n push %rbx\n sub $8,%rsp\n test %rdi,%rdi\n jne 1f\n sub $4096,%rsp\n mov %rsp,%rdi\n",
        "1: mov %rdi,%rbx\n call g\n test %eax,%eax\n js 2f\n mov %rbx,%rax\n2: lea -8(%rbp),%rsp\n pop %rbx\n pop %rbp\n ret\n",
        ".type g,@function\ng: xor %eax,%eax\n ret\n.size g,.-g\n"
    ));
    let depths: Vec<u32> = made.0.explanations.iter().filter(|e| e.change.is_empty()).map(|e| e.depth).collect();
    assert!(depths.contains(&24) && depths.contains(&4120), "{depths:?}");
    assert_eq!(refusal("1: push %rdi\n dec %edi\n jne 1b\n ret\n").0, "stack-depth-conflict");
}

#[test]
fn the_size_of_an_allocation_may_lie_in_memory() {
    rewrite(
        "push %rbp\n mov %rsp,%rbp\n sub $16,%rsp\n mov %rdi,-8(%rbp)\n sub -8(%rbp),%rsp\n mov %rsp,%rdi\n call g\n leave\n ret\n.type g,@function\ng: ret\n.size g,.-g\n",
    );
    let code = refusal("push %rbp\n mov %rsp,%rbp\n sub $16,%rsp\n mov %rdi,(%rsp)\n sub (%rsp),%rsp\n leave\n ret\n").0;
    assert_eq!(code, "unknown-stack-pointer");
    // And what is pushed after it.
    rewrite(
        "push %rbp\n mov %rsp,%rbp\n sub %rdi,%rsp\n push 16(%rbp)\n call g\n leave\n ret\n.type g,@function\ng: mov 8(%rsp),%rax\n ret\n.size g,.-g\n",
    );
    let code = refusal("push %rbp\n mov %rsp,%rbp\n sub %rdi,%rsp\n push 8(%rsp)\n leave\n ret\n").0;
    assert_eq!(code, "unsupported-instruction");
}

#[test]
fn what_counts_from_a_copy_of_the_stack_pointer_before_an_allocation_is_refused() {
    // clang: the copy minus the size is what was allocated. With a constant it can only mean the frame.
    let body = |access: &str| {
        format!(
            "push %rbp\n mov %rsp,%rbp\n push %rbx\n push %rax\n mov %rsp,%rbx\n mov %rbx,%rcx\n sub %rdi,%rcx\n mov %rcx,%rsp\n neg %rdi\n {access}\n lea -8(%rbp),%rsp\n pop %rbx\n pop %rbp\n ret\n"
        )
    };
    for wrong in ["movb $1,20(%rbx,%rdi)", "lea 1(%rdi,%rbx),%rax", "mov %rbx,%rdx\n add %rdi,%rdx", "sub %rbx,%rdi"] {
        assert_eq!(refusal(&body(wrong)).0, "unknown-stack-pointer", "{wrong}");
    }
    for right in ["movb $1,(%rbx)", "lea 8(%rbx),%rax", "movb $1,-16(%rbp,%rdi)", "movb $1,(%rcx,%rdi)", "mov %rbx,%rdx"] {
        rewrite(&body(right));
    }
}

#[test]
fn a_call_at_the_end_of_its_section_does_not_return() {
    let made = rewrite("mov %edi,%edi\n call host\n");
    assert_eq!(made.step(1).0.last_chunk(), Some(&[0x0f, 0x0b]), "{:x?}", made.step(1));
}

#[test]
fn a_shift_by_one_has_no_immediate_behind_its_address() {
    // Taken for one, it hid the relocation: an array's element was another place, a variable was a text section.
    let data = ".data\n.zero 16\nv: .long 1,2,3,4\n.text\n";
    for (shift, same) in [("shll $1", "shll $2"), ("rolq $1", "rolq $3"), ("sarw $1", "sarw $7"), ("rcrb $1", "rcrb $2")] {
        for place in ["v(,%rdi,4)", "v(%rip)", "v+4", "8(%rdi)"] {
            let text = |shift| rewrite(&format!("{shift},{place}\n ret\n{data}"));
            let (by_one, other) = (text(shift), text(same));
            let mut expected = other.step(0).0.to_vec();
            expected.pop();
            let opcode = expected.iter().position(|b| matches!(b, 0xc0 | 0xc1)).expect("a shift by an immediate");
            expected[opcode] += 0x10;
            assert_eq!(by_one.step(0).0, expected, "{shift},{place}");
        }
    }
}

#[test]
fn an_absolute_address_of_64_bits_is_a_window_offset() {
    let data = ".data\n.zero 16\nv: .quad 1\n.text\n";
    for (absolute, plain) in [
        ("movabs v,%rax", "mov v,%rax"),
        ("movabs v,%eax", "mov v,%eax"),
        ("movabs v+1,%al", "mov v+1,%al"),
        ("movabs %ax,v", "mov %ax,v"),
        ("movabs %rax,v+8", "mov %rax,v+8"),
    ] {
        let text = |body| rewrite(&format!("{body}\n ret\n{data}"));
        assert_eq!(text(absolute).step(0).0, text(plain).step(0).0, "{absolute}");
    }
}

#[test]
fn a_register_of_the_x87_is_freed_and_popped_by_a_store_to_itself() {
    assert_eq!(rewrite("fldz\n ffreep %st(0)\n ret\n").step(1).0, rewrite("fldz\n fstp %st(0)\n ret\n").step(1).0);
    assert_eq!(refusal("fldz\n fldz\n .byte 0xdf,0xc1\n ret\n").0, "unsupported-instruction");
}

#[test]
fn a_relocation_of_no_field_is_refused() {
    assert_eq!(refusal("mov $1,%eax\n.reloc .-5,R_X86_64_32,v\n ret\n.data\nv: .long 1\n.text\n").0, "unsupported-relocation");
}

#[test]
fn a_function_that_ends_in_any_undefined_instruction_does_not_return() {
    // clang's sanitizers trap by ud1.
    for trap in ["ud2", "ud1 (%eax),%eax", "int3", "ud0 (%eax),%eax"] {
        rewrite(&format!(
            "push %rbx\n call g\n.size f,.-f\n .quad 0x35f23ebcc105cafe\n.type g,@function\ng: push %rax\n {trap}\n.size g,.-g\nh: ret\n"
        ));
    }
}

#[test]
fn a_refused_instruction_of_avx_512_comes_with_the_option_that_avoids_it() {
    for insn in ["vaddps %zmm0,%zmm1,%zmm2", "vpaddd (%rdi),%ymm16,%ymm0", "kmovw %k1,%eax"] {
        let refused = refusal_with(&Options::default(), &format!("{insn}\n ret\n"));
        assert_eq!(refused.code, "unsupported-instruction", "{insn}");
        assert!(refused.message.ends_with("; compile with -mno-avx512f"), "{}", refused.message);
    }
}

#[test]
fn a_call_whose_stack_arguments_may_be_more_than_are_copied_is_refused() {
    // Room for arguments or what is allocated: the size alone cannot tell, nor that it is not taken back at the function's end.
    let body = |room: u32| {
        format!(
            "push %rbp\n mov %rsp,%rbp\n sub %rdi,%rsp\n sub ${room},%rsp\n call g\n leave\n ret\n.size f,.-f\n.type g,@function\ng: ret\n"
        )
    };
    rewrite(&body(1 << 16));
    assert_eq!(refusal(&body((1 << 16) + 16)).0, "unsupported-instruction");
}
