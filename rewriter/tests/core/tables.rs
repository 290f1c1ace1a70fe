//! Indirect transfers: what is a switch, what a tail call, what neither.

use crate::assemble::{Made, assemble, refusal, rewrite, rewrite_in};
use cordon_checker::layout::Slot;
use cordon_checker::{Mode, Protect};
use cordon_rewriter::{Options, object::Input};

/// `and $mask,%eax; op *%gs:disp(%rax)`.
fn unit(mask: u8, operation: u8, disp: u32) -> Vec<u8> {
    let mut bytes = vec![0x83, 0xe0, mask, 0x65, 0xff, operation];
    bytes.extend(disp.to_le_bytes());
    bytes
}

#[test]
fn indirect_call_goes_through_the_main_table() {
    let made = rewrite("mov %rdi,%rax\n sub $8,%rsp\n call *%rax\n add $8,%rsp\n ret\n");
    assert_eq!(made.step(2).0, unit(0, 0x90, 0x10000));
}

/// A bounds check, two cases and what follows them.
fn switch(dispatch: &str, table: &str) -> String {
    format!(
        concat!(
            "cmp $2,%edi\n ja 9f\n mov %edi,%edi\n lea t(%rip),%rdx\n {}\n",
            "1: mov $1,%eax\n ret\n2: mov $2,%eax\n ret\n9: xor %eax,%eax\n ret\n",
            "{}\n.text\n"
        ),
        dispatch, table
    )
}

const RELATIVE: &str = ".section .rodata\nt: .long 1b-t,2b-t,1b-t";
const ABSOLUTE: &str = ".section .rodata\nt: .quad 1b,2b,1b";
const LOAD_SUM_JUMP: &str = "movslq (%rdx,%rdi,4),%rax\n add %rdx,%rax\n jmp *%rax";
/// `mov %edi,%eax; shl $3,%eax`.
const TIMES_8: [u8; 5] = [0x89, 0xf8, 0xc1, 0xe0, 3];

/// The slots of the only sub-table: whether each is a trap.
fn traps(made: &Made) -> Vec<bool> {
    let [(_, slots)] = &made.0.parts.note.sub_tables[..] else { panic!("one table") };
    slots.iter().map(|slot| *slot == Slot::Trap).collect()
}

#[test]
fn relative_switch_jumps_by_its_index() {
    let made = rewrite(&switch(LOAD_SUM_JUMP, RELATIVE));
    let [(table, slots)] = &made.0.parts.note.sub_tables[..] else { panic!("one table") };
    assert_eq!((table.bits, table.depth, slots.len()), (2, 0, 3), "a slot for each entry");
    assert!(slots[0] == slots[2] && slots[0] != slots[1], "{slots:?}");
    assert_eq!(made.step(4).0, TIMES_8);
    assert_eq!(made.step(5).0, [], "no address of the table is added");
    assert_eq!(made.step(6).0, unit(24, 0xa0, table.base.cast_unsigned()));
    // Entries: index * 8 minus the table's own window offset.
    let rodata = &made.0.parts.rodata;
    let entry = |i: usize| u32::from_le_bytes(rodata.bytes[4 * i..4 * i + 4].try_into().expect("four bytes"));
    assert_eq!([entry(0), entry(1), entry(2)].map(|e| e.wrapping_add(rodata.start)), [0, 8, 16]);
}

#[test]
fn absolute_switch_jumps_by_its_index() {
    let made = rewrite(&switch("jmp *t(,%rdi,8)", ABSOLUTE));
    let base = made.0.parts.note.sub_tables[0].0.base.cast_unsigned();
    let mut expected = vec![0xc1, 0xe7, 3, 0x83, 0xe7, 24, 0x65, 0xff, 0xa7];
    expected.extend(base.to_le_bytes());
    assert_eq!(made.step(4).0, expected);
    let made = rewrite(&switch("mov (%rdx,%rdi,8),%rax\n jmp *%rax", ABSOLUTE));
    assert_eq!(made.step(4).0, TIMES_8);
    let made = rewrite(&switch("shl $3,%rdi\n mov t(%rdi),%rax\n jmp *%rax", ABSOLUTE));
    assert_eq!(made.step(5).0, [0x8d, 0x07], "lea (%rdi),%eax");
}

#[test]
fn switch_needs_no_check_and_is_the_same_in_every_flavour() {
    for (matched, metered, protect) in
        [(true, false, Protect::All), (true, true, Protect::All), (false, true, Protect::All), (false, false, Protect::Stores)]
    {
        let mode = Mode { matched, metered, protect };
        let made = rewrite_in(mode, &switch(LOAD_SUM_JUMP, RELATIVE));
        assert_eq!(made.step(4).0, TIMES_8, "{mode:?}");
        assert!(made.step(5).0.is_empty(), "{mode:?}");
    }
}

#[test]
fn sum_stays_where_it_is_not_all_that_happens_to_the_entry() {
    // Unoptimised code: the entry is loaded without its sign, from an index times its width.
    let plain = "lea 0(,%rdi,4),%rax\n mov (%rax,%rdx),%eax\n cltq\n lea t(%rip),%rcx\n add %rcx,%rax\n jmp *%rax";
    let made = rewrite(&switch(plain, RELATIVE));
    let start = made.0.parts.rodata.start.cast_signed();
    let lea = |prefix: &[u8], sib: u8| [prefix, &[0x8d, 0x04, sib], &(-start).to_le_bytes()].concat();
    assert_eq!(made.step(5).0, lea(&[], 0x45), "lea -t(,%rax,2),%eax");
    assert_eq!(made.step(8).0, [0x48, 0x01, 0xc8]);
    // lea -t(,%rdi,8),%rax
    let kept = lea(&[0x48], 0xfd);
    let copied = "movslq (%rdx,%rdi,4),%rax\n mov %rax,%rcx\n add %rdx,%rax\n jmp *%rax";
    assert_eq!(rewrite(&switch(copied, RELATIVE)).step(4).0, kept);
    let joined = "test %esi,%esi\n je 5f\n movslq (%rdx,%rdi,4),%rax\n 5: add %rdx,%rax\n jmp *%rax";
    assert!(refusal(&switch(joined, RELATIVE)).0 == "unresolved-jump", "the other way brings no entry");
    let looped = "movslq (%rdx,%rdi,4),%rax\n 5: dec %esi\n jg 5b\n add %rdx,%rax\n jmp *%rax";
    assert_eq!(rewrite(&switch(looped, RELATIVE)).step(4).0, kept);
    let flags = "movslq (%rdx,%rdi,4),%rax\n add %rdx,%rax\n setc %cl\n jmp *%rax";
    assert_eq!(rewrite(&switch(flags, RELATIVE)).step(4).0, kept);
}

#[test]
fn index_may_change_between_load_and_jump() {
    let changed = "movslq (%rdx,%rdi,4),%rax\n inc %rdi\n add %rdx,%rax\n jmp *%rax";
    let made = rewrite(&switch(changed, RELATIVE));
    assert_eq!(made.step(4).0, TIMES_8);
    assert_eq!(made.step(5).0, [0x48, 0xff, 0xc7]);
    // Flags that are live go around the shift.
    let flags = "cmp $1,%esi\n mov t(,%rdi,8),%rax\n sete %cl\n jmp *%rax";
    assert_eq!(rewrite(&switch(flags, ABSOLUTE)).step(5).0, [0x8d, 0x04, 0xfd, 0, 0, 0, 0]);
}

#[test]
fn case_that_cannot_occur_traps_in_its_place() {
    let made = rewrite(&switch("jmp *t(,%rdi,8)", "8: .section .rodata\nt: .quad 1b,8b,2b"));
    assert_eq!(traps(&made), [false, true, false]);
}

/// Tables that keep a number for each target, behind a trap, since their order is not all that is known to matter.
#[test]
fn table_whose_order_does_not_decide_keeps_its_loads() {
    let through_memory = [0x65, 0x67, 0x48, 0x8b];
    // Two equal entries, and code that compares what it has loaded.
    let compared = "mov t(,%rdi,8),%rax\n cmp %rax,t(,%rsi,8)\n je 2f\n jmp *%rax";
    let made = rewrite(&switch(compared, ABSOLUTE));
    assert_eq!(traps(&made), [true, false, false]);
    assert_eq!(made.step(4).0[..4], through_memory);
    // The same of different entries: one number each, whoever looks.
    let different = rewrite(&switch(compared, ".section .rodata\nt: .quad 2b,1b"));
    assert_eq!(traps(&different), [false, false]);
    // The same of two relative entries, before their sums.
    let differences = "movslq (%rdx,%rdi,4),%rax\n movslq (%rdx,%rsi,4),%rcx\n cmp %rcx,%rax\n je 2f\n add %rdx,%rax\n jmp *%rax";
    assert_eq!(traps(&rewrite(&switch(differences, RELATIVE))), [true, false, false]);
    // Kept somewhere, so that anybody may compare it.
    let stored = "mov t(,%rdi,8),%rax\n mov %rax,(%rsi)\n jmp *%rax";
    assert_eq!(traps(&rewrite(&switch(stored, ABSOLUTE))), [true, false, false]);
    // A table that the program may change.
    let writable = ABSOLUTE.replace(".section .rodata", ".data");
    let made = rewrite(&switch("mov t(,%rdi,8),%rax\n jmp *%rax", &writable));
    assert_eq!((traps(&made), &made.step(4).0[..4]), (vec![true, false, false], &through_memory[..]));
    // One jump through two tables.
    let merged = "test %esi,%esi\n je 5f\n mov t(,%rdi,8),%rax\n jmp 6f\n 5: mov u(,%rdi,8),%rax\n 6: jmp *%rax";
    let made = rewrite(&switch(merged, &format!("{ABSOLUTE}\nu: .quad 2b,1b,2b")));
    assert_eq!(traps(&made), [true, false, false]);
    // Labels from elsewhere.
    let elsewhere = "test %esi,%esi\n je 5f\n mov t(,%rdi,8),%rax\n jmp *%rax\n 5: mov (%rsi),%rax\n jmp *%rax\n 7: jmp 1f";
    let made = rewrite(&switch(elsewhere, &format!("{ABSOLUTE}\n .quad 0,7b")));
    assert!(made.0.parts.note.sub_tables.iter().all(|(_, slots)| slots[0] == Slot::Trap));
}

#[test]
fn two_jumps_through_one_table_share_its_order() {
    let twice = "test %esi,%esi\n je 5f\n mov t(,%rdi,8),%rax\n jmp *%rax\n 5: jmp *(%rdx,%rdi,8)";
    let made = rewrite(&switch(twice, ABSOLUTE));
    assert_eq!(traps(&made), [false, false, false]);
    assert_eq!(made.step(6).0, TIMES_8);
    assert_eq!(made.step(8).0[..3], [0xc1, 0xe7, 3]);
}

#[test]
fn entries_in_front_of_a_table_are_no_part_of_it() {
    // Index -1 reads the first entry, through a reference to the second one.
    let before = "mov t+8(,%rdi,8),%rax\n jmp *%rax";
    assert_eq!(refusal(&switch(before, ABSOLUTE)).0, "unrecognized-code-reference");
    let bound = rewrite(&switch("mov u(,%rdi,8),%rax\n jmp *%rax", ".section .rodata\nt: .quad 5\nu: .quad 1b,2b\n.quad 7"));
    assert_eq!(traps(&bound), [false, false], "two entries between numbers");
}

#[test]
fn tail_call_through_a_pointer_is_no_switch() {
    let made = rewrite("mov (%rdi),%rax\n jmp *%rax\n");
    assert_eq!(made.step(1).0, unit(0, 0xa0, 0x10000));
}

#[test]
fn host_function_is_called_through_its_slot() {
    let made = rewrite("sub $8,%rsp\n call host\n add $8,%rsp\n ret\n");
    assert_eq!(made.step(1).0, [0x65, 0xff, 0x14, 0x25, 0x08, 0x00, 0x01, 0x00]);
    assert_eq!(made.0.parts.note.imports, [(1, "host".to_owned())]);
}

#[test]
fn refuses_a_jump_whose_table_is_lost() {
    assert_eq!(refusal("push %rbx\n jmp *%rax\n"), ("unresolved-jump", 1));
    assert_eq!(refusal("lea 1f(%rip),%rdx\n add %rdx,%rax\n jmp *%rax\n1: ret\n").0, "unresolved-jump");
}

#[test]
fn refuses_an_undefined_function_by_name() {
    let inputs = [cordon_rewriter::object::Input {
        name: "u.o".into(),
        bytes: crate::assemble::assemble(".globl f\n.type f,@function\nf: sub $8,%rsp\n call nowhere\n add $8,%rsp\n ret\n"),
    }];
    let problems = cordon_rewriter::rewrite(&inputs, &cordon_rewriter::Options::default()).expect_err("refused").0;
    assert_eq!(problems[0].code, "undefined-symbol");
    assert!(problems[0].message.contains("`nowhere`"));
    assert_eq!(problems[0].place.offset, Some(4));
}

#[test]
fn table_ends_where_the_next_object_is_compared_with_a_wide_immediate() {
    // `cmpl $imm32,x(%rip)`: the relocation of x counts from behind the immediate; x lies directly behind the table.
    let made = rewrite(concat!(
        "cmpl $100000,x(%rip)\n cmp $1,%edi\n ja 9f\n mov %edi,%edi\n lea t(%rip),%rdx\n movslq (%rdx,%rdi,4),%rax\n add %rdx,%rax\n jmp *%rax\n",
        "1: mov $1,%eax\n ret\n2: mov $2,%eax\n ret\n9: xor %eax,%eax\n ret\n",
        ".section .rodata\nt: .long 1b-t,2b-t\nx: .long 7\n.text\n"
    ));
    assert_eq!(made.0.parts.note.sub_tables[0].1.len(), 2, "both cases");
}

/// Debian's libexpat (xmlrole.o): the last entries of the switch of a function that nothing reaches seem to refer to the function behind it.
#[test]
fn entries_of_a_function_that_is_not_reached_refer_to_it() {
    let switch =
        "cmp $31,%edi\n ja 1f\n lea t(%rip),%rcx\n movslq (%rcx,%rdi,4),%rax\n add %rcx,%rax\n jmp *%rax\n1: ret\n2: ret\n";
    let table = ".section .rodata\n.balign 4\nother: .quad 1\nt: .rept 32\n .long 2b-t\n.endr\n.text\n";
    let body = "mov other(%rip),%rax\n .rept 40\n inc %eax\n .endr\n ret\n.size f,.-f\n";
    let source = format!(".text\n.type u,@function\nu: {switch}.size u,.-u\n.globl f\n.type f,@function\nf: {body}{table}");
    let inputs = [Input { name: "f.o".into(), bytes: assemble(&source) }];
    cordon_rewriter::rewrite(&inputs, &Options::default()).unwrap_or_else(|refusals| panic!("{refusals}"));
}
