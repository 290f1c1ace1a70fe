//! Images for the kernel: another segment, LIMIT and `endbr64` where the checker wants them, no lock.

use crate::assemble::{Made, refusal_with, rewrite_with};
use cordon_checker::note::Note;
use cordon_checker::{Mode, Policy, check};
use cordon_rewriter::{Options, kernel};

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// `cmp $imm32,%esp`
const LIMIT: [u8; 2] = [0x81, 0xfc];

fn modes() -> [Mode; 4] {
    [(false, false), (true, false), (false, true), (true, true)].map(|(matched, metered)| Mode {
        matched,
        metered,
        ..Mode::default()
    })
}

/// Rewritten for the kernel and accepted under its policy.
fn kernel_in(mode: Mode, body: &str) -> Made {
    let made = rewrite_with(&Options { mode, ..Options::for_kernel() }, body);
    let bytes = made.0.parts.note.to_bytes();
    let note = Note::parse(&bytes).expect("a note");
    let mut scratch = vec![0; made.text().len()];
    note.validate(&Policy::KERNEL).expect("for a kernel");
    check(made.text(), &Policy::KERNEL, &note.layout, &mut scratch).expect("accepted");
    made
}

fn sandbox(body: &str) -> Made {
    kernel_in(Mode::default(), body)
}

#[test]
fn entries_begin_with_a_landing_pad_and_the_stack_limit_others_with_the_limit() {
    let made = sandbox("call g\n ret\n.type g,@function\ng: ret\n.size g,.-g\n");
    assert!(made.text().starts_with(&[&ENDBR64[..], &LIMIT].concat()), "{:02x?}", made.text());
    let callee = made.0.parts.symbols.iter().find(|s| s.name == "g").expect("has a symbol").value as usize;
    assert!(made.text()[callee..].starts_with(&LIMIT));
    assert!(made.text().ends_with(&[0x0f, 0x0b]), "where all limits lead");
}

#[test]
fn accesses_are_behind_fs_and_tables_below_the_window() {
    let made = sandbox("mov (%rdi),%rax\n lea h(%rip),%rdx\n call *%rdx\n ret\n.type h,@function\nh: ret\n.size h,.-h\n");
    assert!(made.step(0).0.ends_with(&[0x64, 0x67, 0x48, 0x8b, 0x07]), "{:02x?}", made.step(0));
    let call = made.step(2).0;
    assert!(call.ends_with(&kernel::TABLE.to_le_bytes()), "{call:02x?}");
    let target = made.0.parts.symbols.iter().find(|s| s.name == "h").expect("has a symbol").value as usize;
    assert!(made.text()[target..].starts_with(&ENDBR64), "its address is taken");
}

#[test]
fn locks_are_dropped_and_exchanges_taken_apart() {
    let made = sandbox("lock incl (%rdi)\n xchg %rax,8(%rdi,%rsi)\n lock xadd %ecx,(%rdi)\n ret\n");
    assert!(made.step(0).0.ends_with(&[0x64, 0x67, 0xff, 0x07]), "{:02x?}", made.step(0));
    assert!(!made.text().contains(&0xf0) && !made.text().windows(2).any(|b| b == [0x48, 0x87]), "{:02x?}", made.text());
}

#[test]
fn every_mode_is_accepted_with_loops_switches_and_allocations() {
    let switch = "cmp $3,%edi\n ja 9f\n mov %edi,%edi\n notrack jmp *table(,%rdi,8)\n\
        1: inc %eax\n2: inc %eax\n3: inc %eax\n ret\n9: dec %edi\n jnz 9b\n ret\n\
        .section .rodata\n.balign 8\ntable: .quad 1b,2b,3b,9b\n.text\n";
    let allocation = "push %rbp\n mov %rsp,%rbp\n sub %rdi,%rsp\n movq $1,(%rsp)\n leave\n ret\n";
    let constructor = "ret\n.type c,@function\nc: ret\n.size c,.-c\n.section .init_array,\"aw\"\n.quad c\n.text\n";
    // The table has one slot, the trap, and so the mask 0.
    let null = "xor %eax,%eax\n call *%rax\n ret\n";
    // The loop goes back to the function's entry.
    let entry_loop = "dec %rdi\n jnz f\n mov %rdi,%rax\n ret\n";
    for body in [switch, allocation, constructor, null, entry_loop] {
        for mode in modes() {
            kernel_in(mode, body);
        }
    }
}

#[test]
fn refuses_what_no_kernel_handler_can_have() {
    let refused = |body| refusal_with(&Options::for_kernel(), body).code;
    assert_eq!(refused("addsd %xmm1,%xmm0\n ret\n"), "unsupported-instruction");
    assert_eq!(refused("sub $9000,%rsp\n movq $1,(%rsp)\n add $9000,%rsp\n ret\n"), "frame-too-large");
    for options in [
        Options { stack: 1 << 20, ..Options::for_kernel() },
        Options { fast_window: true, ..Options::for_kernel() },
        Options { syscalls: true, ..Options::for_kernel() },
    ] {
        assert_eq!(refusal_with(&options, "ret\n").code, "unsupported-option");
    }
}
