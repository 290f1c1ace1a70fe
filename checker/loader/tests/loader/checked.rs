//! What runs is what was checked, where the checker thinks that it runs.

use crate::builder::{Builder, Built, options};
use cordon_checker::layout::USER_STACK_LOW;
use cordon_loader::{Image, Imports, Window};

/// Checklist 43: the file changes after the check.
#[test]
fn text_runs_as_it_was_checked_whatever_becomes_of_the_file() {
    let Built { mut file, .. } = Builder::new(".globl f\nf: mov $7,%eax; ret").build();
    let image = Image::from_bytes(&file, &options()).expect("loads");
    file.fill(0xcc);
    let mut first = Window::new(&image, &Imports::new()).expect("makes a window");
    assert_eq!(first.call("f", &[]).expect("returns"), 7);
    drop(file);
    let mut second = Window::new(&image, &Imports::new()).expect("makes a window");
    drop(image);
    assert_eq!((first.call("f", &[]).expect("returns"), second.call("f", &[]).expect("returns")), (7, 7));
}

/// B5: flags and low bits of rsp are constants of the handler's own path, the same in every window and thread.
#[test]
fn the_low_half_of_the_stack_pointer_is_the_layouts() {
    // lahf behind arithmetic on rsp, and rsp's low half.
    let source = ".globl low\nlow: lea (%rsp),%eax; ret\n.globl flags\nflags: xor %eax,%eax; sub $8,%rsp; lahf; add $8,%rsp; ret";
    let image = Image::from_bytes(&Builder::new(source).build().file, &options()).expect("loads");
    let look = || {
        let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
        (w.call("low", &[]).expect("returns"), w.call("flags", &[]).expect("returns"))
    };
    let (low, flags) = look();
    assert_eq!(low, u64::from(USER_STACK_LOW));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            assert_eq!(scope.spawn(look).join().expect("looks"), (low, flags));
        }
    });
}
