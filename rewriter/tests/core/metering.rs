//! Metered mode: where METERs stand, what they charge, and where the value of r14 goes.

use crate::assemble::{Made, assemble, refusal_in, rewrite_in};
use cordon_checker::{Mode, Protect};
use cordon_rewriter::{Options, object::Input};

const METERED: Mode = Mode { matched: false, metered: true, protect: Protect::All };
/// `lea -8(%rsp),%rsp`
const DOWN: [u8; 5] = [0x48, 0x8d, 0x64, 0x24, 0xf8];
const LAHF: u8 = 0x9f;

fn made(body: &str) -> Made {
    rewrite_in(METERED, body)
}

/// What the METERs in `text` charge, in order.
fn charges(text: &[u8]) -> Vec<u32> {
    let charge = |at: &[u8]| match at {
        [0x49, 0x83, 0xee, small, ..] => Some(u32::from(*small)),
        [0x49, 0x81, 0xee, a, b, c, d, ..] => Some(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => None,
    };
    (0..text.len()).filter_map(|at| charge(&text[at..])).collect()
}

#[test]
fn a_straight_function_is_paid_for_at_its_entry() {
    // METER itself counts.
    assert_eq!(charges(made("mov %rdi,%rax\n ret\n").text()), [3]);
}

#[test]
fn a_loop_is_paid_for_round_by_round() {
    let loop_of_three = made("xor %eax,%eax\n1: add %rdi,%rax\n dec %rdi\n jne 1b\n ret\n");
    assert_eq!(charges(loop_of_three.text()), [2, 5], "the last round pays for what comes behind");
}

#[test]
fn only_a_much_longer_side_of_a_branch_is_charged_by_itself() {
    let branch = |length| made(&format!("test %rdi,%rdi\n je 1f\n .rept {length}\n add %rdi,%rax\n .endr\n1: ret\n"));
    assert_eq!(charges(branch(10).text()), [14]);
    assert_eq!(charges(branch(100).text()), [4, 102]);
}

#[test]
fn a_rare_block_pays_for_its_way_back_to_frequent_code() {
    assert_eq!(charges(made("test %rdi,%rdi\n js 2f\n1: mov %rdi,%rax\n ret\n2: neg %rdi\n jmp 1b\n").text()), [5, 5]);
}

#[test]
fn straight_code_of_any_length_is_charged_in_parts() {
    let parts = charges(made(".rept 3000\n add %rdi,%rax\n .endr\n ret\n").text());
    assert!(parts.iter().all(|charge| *charge <= 1023), "{parts:?}");
    assert_eq!(parts.iter().sum::<u32>(), 3001 + parts.len() as u32);
}

#[test]
fn flags_that_live_at_a_loop_head_are_kept() {
    let chain =
        "1: mov (%rdi),%rax\n adc (%rsi),%rax\n mov %rax,(%rdi)\n lea 8(%rdi),%rdi\n lea 8(%rsi),%rsi\n dec %rdx\n jne 1b\n";
    assert!(made(&format!("clc\n{chain} setc %al\n ret\n")).text().contains(&LAHF));
    let rotated = "stc\n jmp 2f\n1: lea 8(%rdi),%rdi\n2: mov (%rdi),%rax\n adc %rax,%rcx\n dec %rdx\n jne 1b\n setc %al\n ret\n";
    assert!(made(rotated).text().contains(&LAHF));
    let without = "xor %ecx,%ecx\n1: mov (%rdi),%rax\n add %rax,%rcx\n dec %rdx\n jne 1b\n ret\n";
    assert!(!made(without).text().contains(&LAHF));
}

/// Found by csmith (seed 77, gcc -O2 -march=x86-64-v3): the copies of an over-aligned function each jump to the padding in front of the loop, so that its
/// no-ops must be paid for and few.
#[test]
fn a_loop_behind_an_over_alignment_is_reached_through_its_padding() {
    let over_aligned =
        made("push %rbp\n mov %rsp,%rbp\n and $-32,%rsp\n .p2align 5\n1: add %rdi,%rax\n dec %rdi\n jne 1b\n leave\n ret\n");
    assert_eq!(charges(over_aligned.text()).len(), 5, "the entry, and a loop for each alignment of rsp");
}

/// gcc -Os (20120427-2.c of its own tests): flags live where two blocks jump back to, and the way back is longer than the way straight on.
#[test]
fn a_way_back_longer_than_the_way_on_brings_what_flags_there_cost() {
    let body = "push %rbx\n1: mov %edi,%ebx\n call host\n cmp %ebx,%eax\n jle 3f\n inc %eax\n2: je 5f\n ud2\n3: jne 4f\n test %eax,%eax\n\
                jmp 2b\n4: dec %eax\n jmp 2b\n5: cmp $3,%eax\n jne 1b\n pop %rbx\n ret\n";
    made(body);
}

#[test]
fn r14_becomes_a_register_that_the_function_does_not_name() {
    let made = made("push %r14\n mov %rdi,%r14\n mov %r14,%rax\n pop %r14\n ret\n");
    assert!(made.step(0).0.ends_with(&[0x41, 0x57]), "push %r15: {:x?}", made.step(0));
    assert_eq!(made.step(3).0, [0x41, 0x5f], "pop %r15");
}

#[test]
fn r14_lies_where_its_push_made_room_if_every_other_register_is_busier() {
    let others = ["rbx", "rbp", "r12", "r13", "r15"];
    let save: String = others.iter().map(|r| format!(" push %{r}\n")).collect();
    let busy: String = others.iter().map(|r| format!(" mov %rdi,%{r}\n add %{r},%{r}\n add %rsi,%{r}\n")).collect();
    let restore: String = others.iter().rev().map(|r| format!(" pop %{r}\n")).collect();
    let made = made(&format!("push %r14\n{save} mov %rdi,%r14\n{busy} add %r14,%rax\n{restore} pop %r14\n ret\n"));
    assert!(made.step(0).0.ends_with(&DOWN), "{:x?}", made.step(0));
    // mov %rdi,%gs:40(%esp)
    assert_eq!(made.step(6).0, [0x65, 0x67, 0x48, 0x89, 0x7c, 0x24, 0x28]);
    assert_eq!(made.step(6).1, "r14 counts: its value lies in the frame");
}

#[test]
fn a_function_that_shares_r14_with_its_caller_is_refused() {
    assert_eq!(refusal_in(METERED, "mov %r14,%rax\n ret\n"), ("count-register", 0));
    assert_eq!(refusal_in(METERED, "xor %r14d,%r14d\n ret\n"), ("count-register", 3));
}

#[test]
fn any_number_of_constructors_is_paid_for() {
    let pointers = ".section .init_array,\"aw\",@init_array\n.rept 1100\n .quad c\n.endr\n";
    let source =
        format!(".text\n.globl f\n.type f,@function\nf: ret\n.size f,.-f\n.type c,@function\nc: ret\n.size c,.-c\n{pointers}");
    let inputs = [Input { name: "c.o".into(), bytes: assemble(&source) }];
    let options = Options { mode: METERED, ..Options::default() };
    let made = cordon_rewriter::rewrite(&inputs, &options).unwrap_or_else(|refusals| panic!("{refusals}"));
    assert_eq!(charges(&made.parts.text), [2, 2, 2, 503, 503, 103]);
    assert_eq!(made.parts.stubs.iter().filter(|stub| stub.fuel).count(), 4);
}

#[test]
fn a_branch_to_the_no_ops_in_front_of_a_loop_is_paid_for() {
    // An empty jump in front of an aligned place that something jumps back to, at every distance from an aligned place.
    for filler in 0..32 {
        let filler = " inc %eax\n".repeat(filler);
        made(&format!(
            "test %edi,%edi\n je 3f\n{filler} call g\n jmp 1f\n ud2\n1: jmp 2f\n.p2align 3\n2: mov %rdi,%rax\n ret\n3: call g\n jmp 2b\n.size f,.-f\n\
             .type g,@function\ng: mov %edi,%edi\n ret\n.size g,.-g\n"
        ));
    }
}
