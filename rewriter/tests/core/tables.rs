//! Indirect transfers: what is a switch, what a tail call, what neither.

use crate::assemble::{refusal, rewrite};
use cordon_checker::layout::Slot;

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

#[test]
fn relative_switch_gets_its_own_table_whose_first_slot_traps() {
    let made = rewrite(concat!(
        "cmp $2,%edi\n ja 9f\n mov %edi,%edi\n lea t(%rip),%rdx\n movslq (%rdx,%rdi,4),%rax\n add %rdx,%rax\n jmp *%rax\n",
        "1: mov $1,%eax\n ret\n2: mov $2,%eax\n ret\n9: xor %eax,%eax\n ret\n",
        ".section .rodata\nt: .long 1b-t,2b-t,1b-t\n.text\n"
    ));
    let tables = &made.0.parts.note.sub_tables;
    assert_eq!(tables.len(), 1);
    let (table, slots) = &tables[0];
    assert_eq!((table.bits, table.depth, slots.len()), (2, 0, 3), "trap and two targets");
    assert_eq!(slots[0], Slot::Trap);
    assert_eq!(made.step(6).0, unit(24, 0xa0, table.base.cast_unsigned()));
    // Entries: index * 8 minus the table's own window offset.
    let rodata = &made.0.parts.rodata;
    let entry = |i: usize| u32::from_le_bytes(rodata.bytes[4 * i..4 * i + 4].try_into().expect("four bytes"));
    assert_eq!([entry(0), entry(1), entry(2)].map(|e| e.wrapping_add(rodata.start)), [8, 16, 8]);
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
    assert_eq!(made.0.parts.note.sub_tables[0].1.len(), 3, "the trap and both cases");
}
