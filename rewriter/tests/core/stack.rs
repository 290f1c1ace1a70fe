//! The mirrored stack: DESIGN §4 and the idioms that compilers use on it.

use crate::assemble::{refusal, rewrite, rewrite_with};
use cordon_rewriter::Options;
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};

/// `lea -8(%rsp),%rsp`
const DOWN: [u8; 5] = [0x48, 0x8d, 0x64, 0x24, 0xf8];

fn is_store_of_push(bytes: &[u8]) -> bool {
    // lea -8(%rsp),%rsp; mov %reg,%gs:K(%esp)
    bytes.starts_with(&DOWN) && bytes[5..].starts_with(&[0x65, 0x67])
}

#[test]
fn pushed_argument_is_a_store() {
    let made = rewrite("push %rdi\n call g\n add $8,%rsp\n ret\n.type g,@function\ng: mov 8(%rsp),%rax\n ret\n.size g,.-g\n");
    assert!(is_store_of_push(made.step(0).0), "{:x?}", made.step(0));
}

#[test]
fn saved_register_that_is_addressed_through_rbp_is_a_store() {
    let made = rewrite("push %rbp\n mov %rsp,%rbp\n push %rbx\n xor %ebx,%ebx\n mov -8(%rbp),%rbx\n leave\n ret\n");
    assert_eq!(made.step(0).0, [0x55], "rbp itself is saved natively");
    assert!(is_store_of_push(made.step(2).0), "{:x?}", made.step(2));
    let (leave, _) = made.step(5);
    assert_eq!(leave.last(), Some(&0x5d), "leave ends in a native pop: {leave:x?}");
}

#[test]
fn a_changed_register_is_not_a_saved_one() {
    let made =
        rewrite("mov %rdi,%rbx\n push %rbx\n call g\n pop %rbx\n mov %rbx,%rax\n ret\n.type g,@function\ng: ret\n.size g,.-g\n");
    assert!(is_store_of_push(made.step(1).0), "{:x?}", made.step(1));
    assert!(made.step(3).0.len() > 1, "the pop loads from the data stack");
}

#[test]
fn pop_into_memory_takes_the_pushed_value_from_the_data_stack() {
    let made = rewrite("push %rbx\n pop (%rdi)\n ret\n");
    assert!(is_store_of_push(made.step(0).0), "{:x?}", made.step(0));
    let room = rewrite("push %rax\n pop (%rdi)\n ret\n");
    assert!(is_store_of_push(room.step(0).0), "{:x?}", room.step(0));
}

#[test]
fn room_is_native_only_while_nobody_reads_it_back() {
    let room = rewrite("push %rax\n call g\n pop %rcx\n ret\n.type g,@function\ng: xor %eax,%eax\n ret\n.size g,.-g\n");
    assert_eq!((room.step(0).0, room.step(2).0), (&[0x50][..], &[0x59][..]));
    let read =
        rewrite("push %rax\n mov %rsp,%rdi\n call g\n pop %rax\n ret\n.type g,@function\ng: movq $5,(%rdi)\n ret\n.size g,.-g\n");
    assert!(read.step(3).0.len() > 1, "the result is popped from the data stack: {:x?}", read.step(3));
}

#[test]
fn stack_pointer_restored_from_a_copy_in_any_register() {
    let made = rewrite(
        "push %r14\n mov %rsp,%r14\n sub $8,%rsp\n push %rdi\n call g\n mov %r14,%rsp\n pop %r14\n ret\n.type g,@function\ng: ret\n.size g,.-g\n",
    );
    assert_eq!(made.step(5).0, [0x48, 0x8d, 0x64, 0x24, 16], "lea 16(%rsp),%rsp");
    assert_eq!(made.step(6).0, [0x41, 0x5e]);
}

#[test]
fn pointer_into_the_frame_is_a_window_offset() {
    let body = "sub $24,%rsp\n lea 8(%rsp),%rdi\n movq $1,(%rdi)\n movq $2,(%rsp)\n add $24,%rsp\n ret\n";
    let made = rewrite(body);
    assert_eq!(made.step(1).0, [0x8d, 0x7c, 0x24, 0x08], "lea 8(%rsp),%edi");
    assert_eq!(made.step(3).0[..6], [0x65, 0x67, 0x48, 0xc7, 0x04, 0x24], "movq $2,%gs:(%esp)");
    let made = rewrite_with(&Options { fast_window: true, ..Options::default() }, body);
    assert_eq!(made.step(1).0, [0x8d, 0xbc, 0x24, 0x08, 0x00, 0x10, 0x00], "lea K+8(%rsp),%edi");
    assert_eq!(made.step(3).0[..10], [0x65, 0x67, 0x48, 0xc7, 0x84, 0x24, 0x00, 0x00, 0x10, 0x00], "movq $2,%gs:K(%esp)");
}

#[test]
fn over_aligned_frame_is_copied_for_each_misalignment() {
    let made = rewrite("push %rbp\n mov %rsp,%rbp\n and $-32,%rsp\n sub $32,%rsp\n movq $1,(%rsp)\n leave\n ret\n");
    let copies = made.0.explanations.iter().filter(|e| e.old == 0x0c).count();
    assert_eq!(copies, 4, "one store for each of the paddings 0, 8, 16, 24");
}

#[test]
fn callee_that_pops_its_arguments() {
    let made = rewrite("push %rdi\n call g\n ret\n.type g,@function\ng: mov 8(%rsp),%rax\n ret $8\n.size g,.-g\n");
    let (call, _) = made.step(1);
    assert!(call.ends_with(&[0x48, 0x8d, 0x64, 0x24, 8]), "the caller moves rsp: {call:x?}");
}

#[test]
fn refuses_code_without_a_static_depth() {
    assert_eq!(refusal("test %edi,%edi\n je 1f\n push %rax\n1: ret\n"), ("stack-depth-conflict", 5));
    assert_eq!(refusal("push %rax\n ret\n"), ("stack-depth-conflict", 1));
    assert_eq!(refusal("mov %rdi,%rsp\n ret\n"), ("unknown-stack-pointer", 0));
    assert_eq!(refusal("lea (%rdi,%rsi),%rsp\n ret\n"), ("unknown-stack-pointer", 0));
    assert_eq!(refusal("add $8,%rsp\n ret\n"), ("unknown-stack-pointer", 0));
}

#[test]
fn refuses_code_that_reads_its_return_address() {
    assert_eq!(refusal("pop %rax\n jmp *%rax\n").0, "reads-return-address");
    assert_eq!(refusal("mov (%rsp),%rax\n ret\n"), ("reads-return-address", 0));
    assert_eq!(refusal("call 1f\n1: pop %rax\n ret\n"), ("reads-return-address", 0));
    assert_eq!(refusal("push %rbp\n mov %rsp,%rbp\n mov 8(%rbp),%rax\n pop %rbp\n ret\n"), ("reads-return-address", 4));
}

#[test]
fn an_overrun_of_the_frame_leaves_the_return_address_alone() {
    let made = rewrite("push %rbp\n mov %rsp,%rbp\n mov %rdi,8(%rbp)\n pop %rbp\n ret\n");
    assert_eq!(made.step(2).0, [0x65, 0x67, 0x48, 0x89, 0x7d, 0x08], "mov %rdi,%gs:8(%ebp)");
}

#[test]
fn fence_on_the_return_address_is_harmless() {
    let made = rewrite("lock orq $0,(%rsp)\n ret\n");
    assert_eq!(made.step(0).0[..3], [0x65, 0x67, 0xf0], "a locked access to the data stack: {:x?}", made.step(0));
}

#[test]
fn stack_probe_loop_is_one_move() {
    let made =
        rewrite("lea -8192(%rsp),%r11\n1: sub $4096,%rsp\n orq $0,(%rsp)\n cmp %r11,%rsp\n jne 1b\n add $8192,%rsp\n ret\n");
    assert_eq!(made.step(1).0, [0x48, 0x8d, 0xa4, 0x24, 0x00, 0xe0, 0xff, 0xff], "lea -8192(%rsp),%rsp");
}

#[test]
fn scratch_register_is_never_one_that_a_caller_keeps_across_the_call() {
    // The caller keeps r11, rcx, rdx, rsi, r8, r9, r10 across the call, as gcc's -fipa-ra may; g needs a scratch for `push mem`.
    let made = rewrite(concat!(
        "call g\n add %r11,%rax\n add %rcx,%rax\n add %rdx,%rax\n add %rsi,%rax\n add %r8,%rax\n add %r9,%rax\n add %r10,%rax\n add %rdi,%rax\n ret\n",
        ".type g,@function\ng: push (%rdi)\n mov (%rsp),%rax\n add $8,%rsp\n ret\n.size g,.-g\n"
    ));
    let push = made.0.explanations.iter().position(|e| e.change.contains("store on the data stack")).expect("the push");
    let bytes = made.step(push).0;
    // mov %gs:(%edi),%rax: rax is overwritten anyway and the only register nobody waits for.
    assert_eq!(bytes[..5], [0x65, 0x67, 0x48, 0x8b, 0x07], "{bytes:x?}");
}

#[test]
fn the_target_of_a_call_after_alloca_survives_the_copying_of_stack_arguments() {
    let made = rewrite(
        "push %rbp\n mov %rsp,%rbp\n push %rbx\n sub $8,%rsp\n mov %rdi,%rbx\n sub %rsi,%rsp\n sub $16,%rsp\n mov %rdx,(%rsp)\n\
         mov %rcx,8(%rsp)\n call *(%rbx)\n lea -8(%rbp),%rsp\n pop %rbx\n pop %rbp\n ret\n",
    );
    // What runs after alloca is laid out behind the rest.
    let (call, change) = made.step(12);
    assert_eq!(change, "through the table of checked functions");
    let loads = Decoder::with_ip(64, call, 0, DecoderOptions::NONE).into_iter().filter(|insn| insn.mnemonic() == Mnemonic::Mov);
    let written =
        loads.filter(|insn| insn.op0_kind() == OpKind::Register && insn.op0_register().full_register() == Register::R11);
    assert_eq!(written.count(), 1, "r11 holds the target from its load to the call: {call:x?}");
}

#[test]
fn a_stack_pointer_between_words_is_rounded_up() {
    // clang's leaf functions without a red zone.
    let made = rewrite("push %rbx\n sub $4,%rsp\n mov %edi,(%rsp)\n mov %rsp,%rax\n add $4,%rsp\n pop %rbx\n ret\n");
    assert_eq!(made.step(1).0, [0x48, 0x8d, 0x64, 0x24, 0xf8], "lea -8(%rsp),%rsp");
    assert_eq!(made.step(2).0, [0x65, 0x67, 0x89, 0x7c, 0x24, 4], "mov %edi,%gs:4(%esp)");
    assert_eq!(made.step(3).0, [0x8d, 0x44, 0x24, 4], "lea 4(%rsp),%eax");
    assert_eq!(made.step(4).0, [0x48, 0x8d, 0x64, 0x24, 8]);
}

#[test]
fn memory_of_a_constant_size_in_a_loop_comes_from_the_arena() {
    let body = |take: &str| format!("push %rbp\n mov %rsp,%rbp\n1: {take}\n dec %edi\n jne 1b\n leave\n ret\n");
    for take in [
        "sub $32,%rsp\n mov %rax,(%rsp)\n mov %rsp,%rax",
        "mov %rsp,%rcx\n lea -32(%rcx),%rdx\n mov %rdx,%rsp\n mov %rax,-32(%rcx)",
    ] {
        let made = rewrite(&body(take));
        assert!(made.0.explanations.iter().any(|e| e.change.contains("arena")), "{take}");
    }
    assert_eq!(refusal(&body("push %rax")).0, "stack-depth-conflict");
}
