//! Memory that functions allocate on the stack: whose it is after a call that did not return, and below another call.

use crate::assemble::rewrite_in;
use crate::matching::MATCH;
use cordon_checker::Mode;
use cordon_loader::{Error, Image, Imports, LoadOptions, Window};

/// f(size, what) allocates `size` bytes. what = 0: gives their address; 1: loads from where nothing is; else: gives how far below them the
/// 64 bytes begin that a nested f(64, 0) allocates, or 0 if that f has changed them.
const ALLOCATES: &str = "push %rbp\n mov %rsp,%rbp\n push %rbx\n sub $8,%rsp\n sub %rdi,%rsp\n mov %rsp,%rax\n mov %rsp,%rbx\n dec %esi\n js 2f\n jnz 1f\n \
    mov (%rsi),%rax\n 1: movq $7,(%rbx)\n call host\n xor %ecx,%ecx\n cmpq $7,(%rbx)\n cmovne %ebx,%ecx\n mov %rbx,%rdx\n sub %rax,%rdx\n mov %rdx,%rax\n sub %rcx,%rax\n \
    2: mov -8(%rbp),%rbx\n leave\n ret\n";

/// Allocates half of what there is.
const HALF: u64 = 1 << 15;

fn modes() -> [Mode; 4] {
    let metered = |mode| Mode { metered: true, ..mode };
    [Mode::default(), MATCH, metered(Mode::default()), metered(MATCH)]
}

#[test]
fn a_call_that_a_fault_ends_gives_back_what_it_allocated() {
    for mode in modes() {
        let mut options = LoadOptions::default();
        options.policy.mode = mode;
        let image = Image::from_bytes(&rewrite_in(mode, ALLOCATES).0.image, &options).expect("loads");
        let again = Imports::new().function("host", |call, _| call.call_entry("f", [64, 0, 0, 0, 0, 0]).unwrap_or(0));
        let mut window = Window::new(&image, &again).expect("a window");
        if mode.metered {
            window.set_fuel(Some(1 << 30)).expect("counts");
        }
        let entry = image.entry("f").expect("the entry");
        let mut call = |size, what| window.call_entry(entry, [size, what, 0, 0, 0, 0]);
        let first = call(HALF, 0).expect("returns");
        for round in 0..100 {
            match call(HALF, 1) {
                Err(Error::Fault(fault)) => assert_eq!(fault.address, Some(0), "{mode:?} {round}: {fault}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(call(HALF, 0).expect("returns"), first, "{mode:?}");
        assert_eq!(call(HALF, 2).expect("returns"), 64, "{mode:?}: a nested call allocates below");
    }
}
