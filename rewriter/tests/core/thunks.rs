//! Retpolines and return thunks are the transfers that they stand for.

use crate::assemble::{refusal, rewrite};

/// `and $0,%eax; op *%gs:T(%rax)` with the main table's one slot.
fn unit(operation: u8) -> Vec<u8> {
    vec![0x83, 0xe0, 0, 0x65, 0xff, operation, 0, 0, 1, 0]
}

/// gcc's thunk for rax.
const THUNK: &str =
    ".type thunk,@function\nthunk: call 1f\n2: pause\n lfence\n jmp 2b\n1: mov %rax,(%rsp)\n ret\n.size thunk,.-thunk\n";

#[test]
fn a_call_of_a_thunk_is_an_indirect_call() {
    let made = rewrite(&format!("mov %rdi,%rax\n sub $8,%rsp\n call thunk\n add $8,%rsp\n ret\n.size f,.-f\n{THUNK}"));
    assert_eq!(made.step(2), (&unit(0x90)[..], "retpoline: through the table of checked functions"));
    assert_eq!(made.0.stats.functions, 1, "nobody needs the thunk");
    let made = rewrite(&format!("mov %rdi,%rax\n jmp thunk\n.size f,.-f\n{THUNK}"));
    assert_eq!(made.step(1).0, unit(0xa0));
    let made = rewrite(&format!("mov %rdi,%rax\n test %rdi,%rdi\n je thunk\n ret\n.size f,.-f\n{THUNK}"));
    assert!(made.text().windows(10).any(|w| w == unit(0xa0)), "a conditional one goes to the thunk, a jump by itself");
}

#[test]
fn thunks_may_be_inline() {
    let call = "mov %rdi,%rax\n sub $8,%rsp\n jmp 1f\n2: call 3f\n4: pause\n lfence\n jmp 4b\n3: mov %rax,(%rsp)\n ret\n1: call 2b\n add $8,%rsp\n ret\n";
    assert!(rewrite(call).text().windows(10).any(|w| w == unit(0x90)));
    let jump = "mov %rdi,%rax\n call 3f\n4: pause\n lfence\n jmp 4b\n3: mov %rax,(%rsp)\n ret\n";
    assert_eq!(rewrite(jump).step(1).0, unit(0xa0));
    let back = "mov %rdi,%rax\n call 3f\n4: pause\n lfence\n jmp 4b\n3: lea 8(%rsp),%rsp\n ret\n";
    assert_eq!(rewrite(back).step(1), (&[0xc3][..], "return thunk: a plain return"));
}

#[test]
fn thunks_of_the_surroundings_are_known_by_name() {
    let made = rewrite("mov %rdi,%r11\n sub $8,%rsp\n call __x86_indirect_thunk_r11\n add $8,%rsp\n jmp __x86_return_thunk\n");
    assert_eq!(made.step(2).0[..4], [0x41, 0x83, 0xe3, 0], "and $0,%r11d");
    assert_eq!(made.step(4).0, [0xc3]);
    assert_eq!(refusal("sub $8,%rsp\n call __x86_indirect_thunk_rsp\n add $8,%rsp\n ret\n").0, "undefined-symbol");
}

#[test]
fn what_only_looks_like_a_thunk_is_refused() {
    assert_eq!(refusal("call 1f\n ret\n1: mov %rax,(%rsp)\n nop\n ret\n").0, "reads-return-address");
    assert_eq!(refusal("call 1f\n ret\n1: lea 16(%rsp),%rsp\n ret\n").0, "unknown-stack-pointer");
}
