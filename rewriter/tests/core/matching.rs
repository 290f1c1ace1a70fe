//! Match mode: which accesses get a check, where it stands, and how it leaves everything else alone.

use crate::assemble::{Made, rewrite_in};
use cordon_checker::{Mode, Protect};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

pub const MATCH: Mode = Mode { matched: true, metered: false, protect: Protect::All };

fn made(body: &str) -> Made {
    rewrite_in(MATCH, body)
}

/// The new code in AT&T syntax, a line for each instruction; branch targets are text offsets.
pub fn listing(made: &Made) -> Vec<String> {
    let mut formatter = GasFormatter::new();
    let line = |insn| {
        let mut text = String::new();
        formatter.format(&insn, &mut text);
        text.to_lowercase().replace(',', ", ")
    };
    Decoder::with_ip(64, made.text(), 0, DecoderOptions::NONE).into_iter().map(line).collect()
}

/// Registers that are compared with the limit, in order.
fn checked(made: &Made) -> Vec<String> {
    let register = |line: &String| Some(line.strip_prefix("cmp $0x7fffffff, %")?.to_owned());
    listing(made).iter().filter_map(register).collect()
}

/// The place of the only line that begins so.
fn position(lines: &[String], start: &str) -> usize {
    let found: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].starts_with(start)).collect();
    assert_eq!(found.len(), 1, "`{start}` in {lines:#?}");
    found[0]
}

#[test]
fn one_check_serves_every_small_displacement_from_an_unchanged_base() {
    let made = made("mov 8(%rdi),%rax\n add %rax,0x7000(%rdi)\n mov %rax,-16(%rdi)\n ret\n");
    assert_eq!(checked(&made), ["rdi"]);
    assert!(made.step(0).1.contains("checked") && !made.step(1).1.contains("checked"), "and says which access has it");
    assert_eq!(made.text()[..9], [0x48, 0x81, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x77, 0x16], "cmp $0x7fffffff,%rdi; ja");
}

#[test]
fn a_changed_base_is_checked_again() {
    assert_eq!(checked(&made("mov (%rdi),%rax\n mov %rsi,%rdi\n mov (%rdi),%rax\n ret\n")), ["rdi", "rdi"]);
    assert_eq!(checked(&made("mov (%rdi),%rdi\n mov (%rdi),%rax\n ret\n")), ["rdi", "rdi"]);
}

#[test]
fn a_pointer_that_moves_a_little_stays_checked_in_straight_line_code() {
    let moved = "mov (%rdi),%eax\n add $8,%rdi\n mov (%rdi),%ecx\n lea 8(%rdi),%rsi\n ret\n";
    assert_eq!(checked(&made(moved)), ["rdi"]);
}

#[test]
fn a_call_forgets() {
    let made = made(
        "push %rbx\n mov %rdi,%rbx\n mov (%rbx),%rax\n call g\n mov (%rbx),%rax\n pop %rbx\n ret\n.type g,@function\ng: ret\n.size g,.-g\n",
    );
    assert_eq!(checked(&made), ["rbx", "rbx"]);
}

#[test]
fn an_index_is_added_before_the_check() {
    let lines = listing(&made("mov -8(%rdi,%rcx,8),%rax\n ret\n"));
    assert_eq!(lines[..2], ["lea -8(%rdi, %rcx, 8), %rdx", "cmp $0x7fffffff, %rdx"], "{lines:#?}");
    assert_eq!(lines[3], "mov %gs:(%edx), %rax");
}

#[test]
fn a_sum_in_a_register_serves_other_displacements() {
    let made = made("mov (%rdi,%rcx,8),%rax\n mov 8(%rdi,%rcx,8),%r8\n add %rax,-8(%rdi,%rcx,8)\n ret\n");
    assert_eq!(checked(&made).len(), 1);
    assert_eq!(listing(&made)[3..6], ["mov %gs:(%edx), %rax", "mov %gs:8(%edx), %r8", "add %rax, %gs:-8(%edx)"]);
}

#[test]
fn a_table_in_memory_may_be_indexed_from_its_end() {
    let data = ".data\ntable: .zero 64\n.text\n";
    for operand in ["table+64(,%rdi,8)", "table+64(%rdi)"] {
        let lines = listing(&made(&format!("mov {operand},%rax\n ret\n{data}")));
        assert!(lines[0].starts_with("lea ") && lines[1].starts_with("cmp $0x7fffffff, %"), "{lines:#?}");
    }
}

#[test]
fn a_byte_or_word_indexes_a_table_without_a_check() {
    let data = ".section .rodata\ntable: .zero 1024\n.text\n";
    assert!(checked(&made(&format!("movzbl %dil,%edi\n mov table(,%rdi,4),%eax\n ret\n{data}"))).is_empty());
    assert!(checked(&made(&format!("movzwl %di,%edi\n mov table(%rdi),%al\n ret\n{data}"))).is_empty());
    let based = made("movzbl %sil,%esi\n mov (%rdi,%rsi,8),%rax\n movzbl %dl,%edx\n add 8(%rdi,%rdx,4),%rax\n ret\n");
    assert_eq!(checked(&based), ["rdi"], "the base tells where a byte is added");
    let word = made("movzwl %si,%esi\n mov (%rdi,%rsi,8),%rax\n ret\n");
    assert!(listing(&word)[1].starts_with("lea "), "with a word the base alone might be a little below 0");
}

#[test]
fn a_zero_extended_register_needs_no_check() {
    assert!(checked(&made("mov %edi,%eax\n mov (%rax),%rax\n ret\n")).is_empty());
    assert!(checked(&made("lea -24(%rsp),%rax\n mov %rdi,8(%rax)\n ret\n")).is_empty(), "nor an address on the stack");
}

#[test]
fn the_stack_needs_a_check_only_with_an_index() {
    let lines = listing(&made("mov %rdi,-8(%rsp)\n mov -32(%rsp,%rsi,8),%rax\n ret\n"));
    assert_eq!(lines[0], "mov %rdi, %gs:-8(%esp)");
    assert_eq!(lines[1..4], ["lea -0x20(%rsp), %ecx", "lea (%rcx, %rsi, 8), %rcx", "cmp $0x7fffffff, %rcx"], "{lines:#?}");
}

#[test]
fn a_check_moves_up_over_the_flags_that_it_would_destroy() {
    let lines = listing(&made("cmp %rsi,%rdx\n mov (%rdi),%rax\n cmovb %rsi,%rax\n ret\n"));
    assert!(position(&lines, "cmp $0x7fffffff") < position(&lines, "cmp %rsi"), "{lines:#?}");
    assert!(!lines.contains(&"lahf".to_owned()));
}

#[test]
fn flags_are_kept_where_a_check_cannot_move() {
    let lines = listing(&made("cmp %rsi,%rdx\n mov 8(%rdi),%rcx\n mov 8(%rcx),%rdx\n cmovb %rsi,%rdx\n mov %rdx,%rax\n ret\n"));
    let (save, check, restore) = (position(&lines, "lahf"), position(&lines, "cmp $0x7fffffff, %rcx"), position(&lines, "sahf"));
    assert!(save < check && check < restore, "{lines:#?}");
    assert!(!lines.iter().any(|l| l.starts_with("seto")), "nobody reads the overflow flag");
    let lines = listing(&made("cmp %rsi,%rdx\n mov 8(%rdi),%rcx\n mov 8(%rcx),%rdx\n cmovl %rsi,%rdx\n mov %rdx,%rax\n ret\n"));
    let (save, restore) = (position(&lines, "seto %al"), position(&lines, "add $0x7f, %al"));
    assert!(save < restore && lines[restore + 1] == "sahf", "{lines:#?}");
}

#[test]
fn an_adc_chain_is_checked_before_it_begins() {
    let lines = listing(&made("mov (%rsi),%rax\n add %rax,(%rdi)\n mov 8(%rsi),%rax\n adc %rax,8(%rdi)\n ret\n"));
    assert!(position(&lines, "cmp $0x7fffffff, %rdi") < position(&lines, "add %rax"), "{lines:#?}");
    assert!(!lines.contains(&"lahf".to_owned()));
}

/// Every register but rsp has a value that is wanted later.
const FULL: &str = "mov %rax,-8(%rsp)\n xor %ebx,%ebx\n xor %ebp,%ebp\n";
const USE: &str = "add %rcx,%rax\n add %rdx,%rax\n add %rbx,%rax\n add %rbp,%rax\n add %rsi,%rax\n add %rdi,%rax\n add %r8,%rax\n \
    add %r9,%rax\n add %r10,%rax\n add %r11,%rax\n add %r12,%rax\n add %r13,%rax\n add %r14,%rax\n add %r15,%rax\n";

#[test]
fn a_register_is_kept_on_the_stack_where_none_is_free() {
    let body = |access: &str| format!("push %rbx\n push %rbp\n {FULL}{access}{USE} pop %rbp\n pop %rbx\n ret\n");
    let lines = listing(&made(&body("add %rax,(%rdi,%rcx,8)\n")));
    let at = position(&lines, "add %rax, %gs:(%");
    assert!(lines[at - 4].starts_with("mov %") && lines[at - 4].contains("(%esp)"), "kept: {lines:#?}");
    assert!(lines[at + 1].starts_with("mov %gs:") && lines[at + 1].contains("(%esp), %"), "put back: {lines:#?}");
}

#[test]
fn rdx_is_a_scratch_register_unless_a_caller_reads_it() {
    let callee = ".type g,@function\ng: mov %rdi,%rdx\n mov (%rdi,%rcx),%rax\n ret\n.size g,.-g\n";
    let free = made(&format!("call g\n ret\n{callee}"));
    assert_eq!(checked(&free), ["rdx"]);
    let read = made(&format!("call g\n add %rdx,%rax\n ret\n{callee}"));
    assert_ne!(checked(&read), ["rdx"], "the second half of a result");
}

#[test]
fn an_index_that_dies_holds_the_sum_where_no_other_register_is_free() {
    let last = "add $1,%rcx\n mov %rax,(%rdi,%rcx,8)\n xor %ecx,%ecx\n";
    let lines = listing(&made(&format!("push %rbx\n push %rbp\n {FULL}{last}{USE} pop %rbp\n pop %rbx\n ret\n")));
    let at = position(&lines, "lea (%rdi, %rcx, 8), %rcx");
    assert_eq!(lines[at + 3], "mov %rax, %gs:(%ecx)");
}

#[test]
fn a_check_of_what_a_loop_does_not_change_stands_in_front_of_it() {
    let made = made("xor %ecx,%ecx\n1: mov (%rsi),%rax\n add %rax,8(%rdi)\n dec %rdx\n jne 1b\n ret\n");
    let lines = listing(&made);
    assert_eq!(checked(&made), ["rsi", "rdi"]);
    let head = position(&lines, "mov %gs:(%esi), %rax");
    assert!(position(&lines, "cmp $0x7fffffff, %rdi") < head && lines[head - 1].starts_with("ja "), "{lines:#?}");
    assert!(!lines[head..].iter().any(|l| l.starts_with("cmp")));
}

#[test]
fn a_check_leaves_its_loop_only_if_every_round_makes_the_access() {
    for guarded in ["test %rdx,%rdx\n je 2f\n", "call g\n"] {
        let body = format!("push %rdi\n1: {guarded}mov (%rdi),%rax\n2: dec %rdx\n jne 1b\n pop %rdi\n ret\n");
        let made = made(&format!("{body}.type g,@function\ng: ret\n.size g,.-g\n"));
        let lines = listing(&made);
        let before = position(&lines, "mov %gs:(%edi), %rax") - 2;
        assert_eq!(lines[before], "cmp $0x7fffffff, %rdi", "{lines:#?}");
    }
}

#[test]
fn a_pointer_that_a_loop_moves_is_checked_in_it() {
    let made = made("1: mov (%rdi),%rax\n add $8,%rdi\n dec %rdx\n jne 1b\n ret\n");
    assert_eq!(checked(&made), ["rdi"]);
}

#[test]
fn a_check_of_nested_loops_stands_in_front_of_both() {
    let made =
        made("xor %esi,%esi\n1: mov $9,%ecx\n2: add %rcx,%rsi\n mov (%rdi),%rax\n dec %rcx\n jne 2b\n dec %rdx\n jne 1b\n ret\n");
    assert_eq!(checked(&made), ["rdi"]);
    assert_eq!(listing(&made)[1], "cmp $0x7fffffff, %rdi");
    let place = made.0.parts.stubs[0].place as usize;
    assert!(made.text()[place..].starts_with(&[0x65, 0x67]), "the stub names the access, not the loop: {place:#x}");
}

#[test]
fn a_counter_is_checked_in_the_loop_and_its_pointers_in_front() {
    let made =
        made("xor %ecx,%ecx\n1: movzbl 8(%rdi,%rcx),%eax\n mov %al,(%rsi,%rcx)\n add $1,%rcx\n cmp %rdx,%rcx\n jb 1b\n ret\n");
    let lines = listing(&made);
    assert_eq!(checked(&made), ["rdi", "rsi", "rcx"]);
    assert!(
        lines[5].contains("rcx") && lines[7] == "movzbl %gs:8(%edi, %ecx), %eax" && lines[8] == "mov %al, %gs:(%esi, %ecx)",
        "{lines:#?}"
    );
    assert!(lines.last().is_some_and(|l| l == "ud2") && lines[11].starts_with("jb "), "{lines:#?}");
}

/// Each of these loops needs the sum of both registers, as either may be what native code makes a pointer of.
#[test]
fn a_counter_must_start_near_0_and_only_count_up() {
    let body = |first: &str, access: &str, step: &str| format!("{first}\n1: {access}\n {step}\n cmp %rdx,%rcx\n jb 1b\n ret\n");
    let access = "movzbl (%rdi,%rcx),%eax";
    for (first, access, step) in [
        ("mov %rsi,%rcx", access, "add $1,%rcx"),
        ("mov $-4,%rcx", access, "add $1,%rcx"),
        ("mov $0x100,%ecx", access, "add $1,%rcx"),
        ("xor %ecx,%ecx", access, "sub $1,%rcx"),
        ("xor %ecx,%ecx", access, "add %rsi,%rcx"),
        ("xor %ecx,%ecx", access, "add $1,%cl"),
        ("xor %ecx,%ecx", access, "add $1,%rcx\n add $1,%rdi"),
        ("xor %ecx,%ecx", "movzbl 0xff02(%rdi,%rcx),%eax", "add $1,%rcx"),
        ("xor %ecx,%ecx", "mov (%rdi,%rcx,4),%eax", "add $1,%rcx"),
        ("xor %ecx,%ecx\n test %rsi,%rsi\n je 1f\n mov %rsi,%rcx", access, "add $1,%rcx"),
    ] {
        let lines = listing(&made(&body(first, access, step)));
        assert!(lines.iter().any(|l| l.starts_with("lea ")), "{lines:#?}");
    }
    let counted = made(&body("xor %ecx,%ecx", "movzbl 0xff01(%rdi,%rcx),%eax", "add $1,%rcx"));
    assert_eq!(checked(&counted), ["rdi", "rcx"]);
}

/// The inner loop is entered at its end only, so that the checker knows nothing where it begins.
#[test]
fn nothing_is_checked_in_front_of_a_loop_that_forgets_it() {
    let front = "mov $8,%ecx\n1: ";
    let rest = "\n test %rax,%rax\n jne 3f\n jmp 4f\n2: dec %rsi\n3: cmp $3,%esi\n jne 2b\n4: add $8,%rcx\n cmp %rcx,%rdx\n jae 1b\n ret\n";
    let sum = listing(&made(&format!("{front} mov -8(%rdi,%rcx),%rax{rest}")));
    assert!(sum[1].starts_with("lea -8(%rdi, %rcx)") && sum[2].starts_with("cmp $0x7fffffff"), "{sum:#?}");
    let base = made(&format!("{front} mov (%rdi),%rax{rest}"));
    assert_eq!(checked(&base), ["rdi"]);
    let counted = made(&format!("{front} mov -8(%rdi,%rcx),%rax\n add $8,%rcx\n cmp %rcx,%rdx\n jae 1b\n ret\n"));
    assert_eq!(checked(&counted), ["rdi", "rcx"]);
}

#[test]
fn an_index_of_the_stack_that_is_not_negative_is_checked_by_itself() {
    let lines = listing(&made("mov %edi,%eax\n mov -64(%rsp,%rax,8),%rcx\n add -56(%rsp,%rax,8),%rcx\n add %rcx,%rax\n ret\n"));
    assert_eq!(lines[1..3], ["lea (, %rax, 8), %rdx", "cmp $0x7fffffff, %rdx"], "{lines:#?}");
    assert_eq!(lines[4..6], ["mov %gs:-0x40(%esp, %edx), %rcx", "add %gs:-0x38(%esp, %edx), %rcx"], "{lines:#?}");
    let lines = listing(&made("mov %edi,%eax\n movzbl -64(%rsp,%rax),%eax\n ret\n"));
    assert_eq!((lines[1].as_str(), lines[3].as_str()), ("cmp $0x7fffffff, %rax", "movzbl %gs:-0x40(%esp, %eax), %eax"));
    // The index is overwritten by what it is used for, and nothing else is free.
    let last = "mov %ecx,%ecx\n mov -64(%rsp,%rcx,4),%ecx\n";
    let lines = listing(&made(&format!("push %rbx\n push %rbp\n {FULL}{last}{USE} pop %rbp\n pop %rbx\n ret\n")));
    let at = position(&lines, "shl $2, %rcx");
    assert!(lines[at + 3].contains("(%esp, %ecx), %ecx"), "{lines:#?}");
}

#[test]
fn a_prefetch_is_not_checked() {
    assert!(checked(&made("prefetcht0 (%rdi)\n ret\n")).is_empty());
}

/// Loads left alone, in a sandbox and beside checked stores.
const STORES: [Mode; 2] = [Mode { matched: false, ..FREE }, FREE];
const FREE: Mode = Mode { protect: Protect::Stores, ..MATCH };

#[test]
fn a_load_that_is_left_alone_has_no_prefix_for_its_address() {
    for mode in STORES {
        let loads =
            "mov (%rdi),%rax\n mov 0x1000(%rdi,%rcx,8),%rdx\n movzbl -1(,%r9,2),%esi\n addsd 8(%r13),%xmm0\n cmpb $1,(%r12)\n";
        let made = rewrite_in(mode, &format!("{loads} fldt (%rdi)\n fstp %st(0)\n vmovups (%rdi),%ymm0\n ret\n"));
        let lines = listing(&made);
        let expected = [
            "mov %gs:(%rdi), %rax",
            "mov %gs:0x1000(%rdi, %rcx, 8), %rdx",
            "movzbl %gs:-1(, %r9, 2), %esi",
            "addsd %gs:8(%r13), %xmm0",
            "cmpb $1, %gs:(%r12)",
            "fldt %gs:(%rdi)",
            "fstp %st(0)",
            "vmovups %gs:(%rdi), %ymm0",
        ];
        assert_eq!(lines[..8], expected, "{lines:#?}");
        assert_eq!(made.text()[..4], [0x65, 0x48, 0x8b, 0x07]);
        assert!(made.step(0).1.contains("left to its 64-bit address"), "{}", made.step(0).1);
    }
}

#[test]
fn what_is_written_or_has_32_bits_stays_in_the_window_beside_loads_that_are_left_alone() {
    let data = ".data\ntable: .zero 64\n.text\n";
    for mode in STORES {
        let lines = listing(&rewrite_in(
            mode,
            "mov %eax,%edi\n mov %rax,(%rdi)\n incl (%rdi)\n xchg %rax,(%rdi)\n prefetcht0 (%rdi)\n ret\n",
        ));
        assert!(lines[1..].iter().all(|line| !line.contains("(%rdi")), "{lines:#?}");
        let lines = listing(&rewrite_in(mode, "mov 8(%rsp),%rax\n mov -64(%rsp,%rcx,8),%rax\n ret\n"));
        assert!(lines[..2].iter().all(|line| line.contains("(%esp")), "the native stack pointer: {lines:#?}");
        let lines = listing(&rewrite_in(mode, "mov (%edi,%esi),%eax\n ret\n"));
        assert!(lines.iter().any(|line| line.contains("(%edi, %esi)") || line.starts_with("lea (%rdi, %rsi), %e")), "{lines:#?}");
        let lines = listing(&rewrite_in(mode, &format!("mov table(%rip),%rax\n mov table+64(,%rcx,8),%rdx\n ret\n{data}")));
        assert!(lines[0].starts_with("mov %gs:0x") && lines[1].contains("(, %rcx, 8)"), "{lines:#?}");
    }
}

#[test]
fn loads_are_not_checked_where_only_stores_are_protected() {
    let stores = Mode { protect: Protect::Stores, ..MATCH };
    let made = rewrite_in(stores, "mov (%rdi),%rax\n mov %rax,(%rsi)\n cmp $1,(%rdx)\n incl (%rcx)\n ret\n");
    assert_eq!(checked(&made), ["rsi", "rcx"]);
}

#[test]
fn an_address_of_32_bits_counts_as_what_it_is() {
    let lines = listing(&made("mov 8(%edi,%esi,4),%rax\n ret\n"));
    assert_eq!(lines[..2], ["lea 8(%rdi, %rsi, 4), %ecx", "mov %gs:(%ecx), %rax"], "{lines:#?}");
}

#[test]
fn an_access_with_a_high_byte_goes_through_a_low_register() {
    let body = "mov %ah,(%rdi,%rcx)\n add %rcx,%rax\n add %rdx,%rax\n add %rsi,%rax\n add %rdi,%rax\n ret\n";
    assert_eq!(checked(&made(body)).len(), 1);
}

#[test]
fn the_programs_own_compare_with_the_limit_is_no_check() {
    let own = "test %esi,%esi\n je 1f\n cmp $0x7fffffff,%rdi\n1: ja 2f\n mov (%rdi),%rax\n2: ret\n";
    let lines = listing(&made(own));
    assert_eq!(lines.iter().filter(|l| l.starts_with("cmp $0x7fffffff")).count(), 2, "{lines:#?}");
    assert_eq!(lines[3], "nop");
}

#[test]
fn a_function_that_is_jumped_to_and_called_from_behind_knows_nothing_at_its_entry() {
    let tail = "mov (%rdi),%rax\n jmp g\n.size f,.-f\n.type g,@function\ng: mov 8(%rdi),%rax\n ret\n.size g,.-g\n";
    let made = made(&format!("{tail}.globl h\n.type h,@function\nh: call g\n ret\n.size h,.-h\n"));
    assert_eq!(checked(&made), ["rdi", "rdi"]);
    assert_eq!(made.0.parts.note.forgets.len(), 1);
}

#[test]
fn every_stub_names_the_access_of_its_check() {
    let made = made("mov (%rdi),%rax\n mov 8(%rsi,%rcx,8),%rdx\n mov %rdx,(%rax)\n ret\n");
    let stubs = &made.0.parts.stubs;
    let places: Vec<&[u8]> = stubs.iter().map(|s| &made.text()[s.place as usize..]).collect();
    assert_eq!(stubs.len(), 3);
    assert!(places.iter().all(|p| p.starts_with(&[0x65, 0x67])), "a window access each: {stubs:x?}");
    assert!(stubs.iter().all(|s| made.text()[s.at as usize..].starts_with(&[0x0f, 0x0b]) && !s.fuel));
    assert!(stubs.is_sorted(), "{stubs:x?}");
}
