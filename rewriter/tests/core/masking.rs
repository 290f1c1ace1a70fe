//! Explicit masks: each address is computed into a register of 32 bits in front of its access; nothing else changes.

use crate::assemble::{Made, refusal_with, rewrite, rewrite_with};
use crate::matching::{MATCH, listing};
use cordon_checker::{Mode, Protect};
use cordon_rewriter::{Masking, Options};

fn options(mode: Mode) -> Options {
    Options { mode, masking: Masking::Explicit, ..Options::default() }
}

fn made(body: &str) -> Made {
    rewrite_with(&options(Mode::default()), body)
}

/// The new code up to the first instruction that begins like `end`, exclusive.
fn masked_until(end: &str, body: &str) -> Vec<String> {
    listing(&made(body)).into_iter().take_while(|line| !line.starts_with(end)).collect()
}

/// The new code up to the first `ret`, exclusive.
fn masked(body: &str) -> Vec<String> {
    masked_until("ret", body)
}

#[test]
fn the_whole_address_is_computed_first() {
    let lines = masked("mov 8(%rdi,%rcx,4),%rax\n ret\n");
    assert_eq!(lines, ["lea 8(%rdi, %rcx, 4), %eax", "mov %gs:(%eax), %rax"]);
    let lines = masked("mov %rsi,-0x1000(%rdi)\n ret\n");
    assert_eq!(lines, ["lea -0x1000(%rdi), %ecx", "mov %rsi, %gs:(%ecx)"]);
    let lines = masked("mov %rsi,(,%rdi,8)\n ret\n");
    assert_eq!(lines, ["lea (, %rdi, 8), %ecx", "mov %rsi, %gs:(%ecx)"]);
    let change = made("mov 8(%rdi),%rax\n ret\n").step(0).1.to_owned();
    assert_eq!(change, "memory: its address is masked in a register first");
}

#[test]
fn a_register_alone_is_moved() {
    assert_eq!(masked("add %esi,(%rdi)\n ret\n"), ["mov %edi, %ecx", "add %esi, %gs:(%ecx)"]);
}

#[test]
fn every_access_has_a_mask_of_its_own() {
    let lines = masked("mov (%rdi),%rax\n mov 8(%rdi),%rcx\n add %rax,(%rdi)\n ret\n");
    let all = [
        "mov %edi, %eax",
        "mov %gs:(%eax), %rax",
        "lea 8(%rdi), %ecx",
        "mov %gs:(%ecx), %rcx",
        "mov %edi, %ecx",
        "add %rax, %gs:(%ecx)",
    ];
    assert_eq!(lines, all);
}

#[test]
fn what_needs_no_mask_has_none() {
    let data = ".data\nword: .quad 0\n.text\n";
    for body in [
        "mov %rdi,-8(%rsp)\n mov -8(%rsp),%rax\n ret\n".to_owned(),
        format!("mov %rdi,word(%rip)\n mov word(%rip),%rax\n ret\n{data}"),
        "prefetcht0 64(%rdi,%rsi,8)\n ret\n".to_owned(),
        "push %rbx\n mov %rdi,%rbx\n mov %rbx,%rax\n pop %rbx\n ret\n".to_owned(),
        "lea 8(%rdi,%rsi),%rax\n rep movsb\n call *%rdx\n ret\n".to_owned(),
    ] {
        assert_eq!(made(&body).text(), rewrite(&body).text(), "{body}");
    }
}

#[test]
fn an_index_on_the_stack_is_masked() {
    let lines = masked("mov -32(%rsp,%rsi,8),%rax\n ret\n");
    assert_eq!(lines, ["lea -0x20(%rsp, %rsi, 8), %eax", "mov %gs:(%eax), %rax"]);
}

#[test]
fn parts_of_instructions_are_masked() {
    assert_eq!(
        masked("movsq\n ret\n"),
        [
            "mov %esi, %ecx",
            "mov %gs:(%ecx), %rcx",
            "mov %edi, %edx",
            "mov %rcx, %gs:(%edx)",
            "lea 8(%rsi), %rsi",
            "lea 8(%rdi), %rdi"
        ]
    );
    let push = masked("push (%rdi)\n pop %rax\n ret\n");
    assert!(push.windows(2).any(|w| w == ["mov %edi, %eax", "mov %gs:(%eax), %rax"]), "{push:#?}");
}

/// Every register but rsp is wanted later.
const USE: &str = "add %rcx,%rax\n add %rdx,%rax\n add %rbx,%rax\n add %rbp,%rax\n add %rsi,%rax\n add %rdi,%rax\n add %r8,%rax\n \
    add %r9,%rax\n add %r10,%rax\n add %r11,%rax\n add %r12,%rax\n add %r13,%rax\n add %r14,%rax\n add %r15,%rax\n ret\n";

#[test]
fn a_register_of_the_address_serves_if_it_dies_there() {
    assert_eq!(
        masked_until("add %rcx", &format!("mov 8(%rsi,%rdi),%rsi\n {USE}")),
        ["lea 8(%rsi, %rdi), %esi", "mov %gs:(%esi), %rsi"]
    );
    let lines = masked_until("mov %r8", &format!("mov %rdi,8(%rsi,%rdi)\n mov %r8,%rsi\n {USE}"));
    assert_eq!(lines, ["lea 8(%rsi, %rdi), %esi", "mov %rdi, %gs:(%esi)"]);
    let lines = masked_until("mov %r8", &format!("mov %rsi,8(%rsi,%rdi)\n mov %r8,%rsi\n {USE}"));
    assert_eq!(lines[1..3], ["lea 8(%rsi, %rdi), %r15d", "mov %rsi, %gs:(%r15d)"], "what is stored cannot");
}

#[test]
fn a_register_is_kept_on_the_stack_where_none_is_free() {
    let lines = masked_until("add %rcx", &format!("add %rax,8(%rdi,%rcx,2)\n {USE}"));
    let kept = ["mov %r15, %gs:-0xc0(%esp)", "lea 8(%rdi, %rcx, 2), %r15d", "add %rax, %gs:(%r15d)", "mov %gs:-0xc0(%esp), %r15"];
    assert_eq!(lines, kept, "below the red zone");
    let fast = Options { fast_window: true, ..options(Mode::default()) };
    let lines = listing(&rewrite_with(&fast, &format!("add %rax,8(%rdi)\n {USE}")));
    assert_eq!(lines[0], "mov %r15, %gs:0xfff40(%esp)");
}

#[test]
fn high_bytes_keep_their_encoding() {
    let lines = masked_until("add %rcx", &format!("mov %ah,8(%rdi)\n {USE}"));
    assert_eq!(lines, ["mov %rsi, %gs:-0xc0(%esp)", "lea 8(%rdi), %esi", "mov %ah, %gs:(%esi)", "mov %gs:-0xc0(%esp), %rsi"]);
}

#[test]
fn no_value_is_lost_in_a_register_that_a_caller_counts_on() {
    // gcc's -fipa-ra: f knows that g leaves rcx alone.
    let lines = listing(&made(
        "mov %rsi,%rcx\n call g\n add %rcx,%rax\n ret\n.size f,.-f\n.type g,@function\ng: mov %esi,%eax\n add %eax,8(%rdi)\n ret\n",
    ));
    let mask = lines.iter().find(|line| line.starts_with("lea 8(%rdi)")).expect("a mask");
    assert!(!mask.ends_with("ecx"), "{lines:#?}");
}

#[test]
fn only_stores_are_masked_where_only_they_are_protected() {
    let stores = Mode { protect: Protect::Stores, ..Mode::default() };
    let lines = listing(&rewrite_with(&options(stores), "mov 8(%rdi),%rax\n mov %rax,8(%rsi)\n ret\n"));
    assert_eq!(lines, ["mov %gs:8(%rdi), %rax", "lea 8(%rsi), %ecx", "mov %rax, %gs:(%ecx)", "ret"]);
}

#[test]
fn the_count_is_no_scratch_register() {
    let metered = Mode { metered: true, ..Mode::default() };
    let lines = listing(&rewrite_with(&options(metered), &format!("mov %rax,8(%r15)\n {}", USE.replace("add %r14,%rax", ""))));
    assert!(lines.contains(&"lea 8(%r15), %r13d".to_owned()), "{lines:#?}");
}

#[test]
fn kernel_images_have_masks() {
    let kernel = Options { masking: Masking::Explicit, ..Options::for_kernel() };
    let lines = listing(&rewrite_with(&kernel, "xchg %rsi,8(%rdi)\n mov %rsi,%rax\n ret\n"));
    let masks = lines.iter().filter(|line| line.starts_with("lea 8(%rdi), %")).count();
    assert!(masks == 2 && lines.iter().any(|line| line.starts_with("mov %fs:(%e")), "{lines:#?}");
}

#[test]
fn match_mode_has_no_masks() {
    let refusal = refusal_with(&options(MATCH), "ret\n");
    assert_eq!(refusal.code, "unsupported-option");
    assert!(refusal.message.contains("explicit masks"), "{}", refusal.message);
}
