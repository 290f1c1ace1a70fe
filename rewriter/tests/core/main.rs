//! The rewriter's own decisions, looked at instruction by instruction: what stays, what changes, and that threads change nothing.
//! That the results behave as the originals do is the fixtures' business.

mod arena;
mod assemble;
mod idioms;
mod kernel;
mod masking;
mod matching;
mod metering;
mod stack;
mod stray;
mod tables;
mod thunks;

use assemble::{assemble, rewrite};
use cordon_rewriter::{Options, object::Input};

/// Two hundred small functions that call each other, so that there is something to distribute.
fn many_functions() -> String {
    let mut source = String::new();
    for i in 0..200 {
        let next = (i * 7 + 3) % 200;
        source += &format!(
            ".globl f{i}\n.type f{i},@function\nf{i}:\n push %rbx\n mov %rdi,%rbx\n dec %rdi\n js 1f\n call f{next}\n1: add %rbx,%rax\n pop %rbx\n ret\n.size f{i},.-f{i}\n"
        );
    }
    source
}

#[test]
fn gives_the_same_bytes_for_any_number_of_threads() {
    let object = assemble(&many_functions());
    let inputs = [Input { name: "many.o".into(), bytes: object }];
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| cordon_rewriter::rewrite(&inputs, &Options::default()).expect("accepted").image)
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(7));
}

#[test]
fn keeps_native_what_needs_no_change() {
    let made = rewrite("push %rbx\n push %rbp\n sub $24,%rsp\n add $24,%rsp\n pop %rbp\n pop %rbx\n ret\n");
    assert_eq!(made.text(), [0x53, 0x55, 0x48, 0x83, 0xec, 24, 0x48, 0x83, 0xc4, 24, 0x5d, 0x5b, 0xc3]);
}

#[test]
fn forces_every_access_into_the_window() {
    let made = rewrite("mov 8(%rdi,%rcx,4),%rax\n ret\n");
    assert_eq!(made.text(), [0x65, 0x67, 0x48, 0x8b, 0x44, 0x8f, 8, 0xc3]);
}
