//! Match mode at work: every form of access does what native code does where that is memory, and is stopped and named where it is not.

use crate::assemble::{Made, rewrite_in};
use crate::matching::MATCH;
use cordon_loader::{Error, Fault, FaultAccess, FaultKind, Image, Imports, LoadOptions, Window};

/// Bytes at the good pointer; it points to their middle.
const MEMORY: usize = 256;

/// One form of access through rdi (and rsi, a number): the code in front of it, the access, the code behind.
struct Form {
    front: &'static str,
    access: &'static str,
    behind: &'static str,
    rsi: u64,
    /// Displacement and scaled index that the access adds to rdi.
    added: i64,
    write: bool,
}

const fn form(access: &'static str) -> Form {
    Form { front: "", access, behind: "", rsi: 0, added: 0, write: false }
}

const fn store(access: &'static str) -> Form {
    Form { write: true, ..form(access) }
}

/// Loads, stores, both at once; every width and unit; indices of both signs; flags wanted behind the access.
const FORMS: [Form; 30] = [
    form("mov (%rdi),%al"),
    Form { added: 8, ..form("mov 8(%rdi),%rax") },
    Form { added: -16, ..form("movzwl -16(%rdi),%eax") },
    store("mov %rsi,(%rdi)"),
    Form { added: 4, ..store("movw $7,4(%rdi)") },
    store("addq $1,(%rdi)"),
    store("lock cmpxchg %rsi,(%rdi)"),
    store("xchg %rsi,(%rdi)"),
    store("setc (%rdi)"),
    Form { rsi: 2, added: 16, ..form("mov (%rdi,%rsi,8),%rax") },
    Form { rsi: -3_i64 as u64, added: -8, ..form("mov 16(%rdi,%rsi,8),%rax") },
    Form { rsi: 5, added: 5, ..store("movb $1,(%rsi,%rdi)") },
    Form { rsi: 5, added: 21, ..form("movzbl 16(%rdi,%rsi),%eax") },
    Form { front: "movzbl %sil,%esi\n", rsi: 7, added: 56, ..form("mov (%rdi,%rsi,8),%rax") },
    Form { front: "push %rbx\n mov %rdi,%rbx\n mov $3,%eax\n", behind: "pop %rbx\n", added: 3, ..form("xlat") },
    Form { front: "mov %rdi,%rsi\n", ..form("lodsq") },
    store("stosl"),
    form("scasb"),
    Form { behind: "add $8,%rsp\n", ..form("push (%rdi)") },
    Form { front: "push %rsi\n", ..store("pop (%rdi)") },
    Form { behind: "fstp %st(0)\n", ..form("fldl (%rdi)") },
    Form { front: "fld1\n", ..store("fstpt (%rdi)") },
    form("movdqu (%rdi),%xmm0"),
    form("vmovups (%rdi),%ymm0"),
    Form { behind: "vzeroupper\n", ..store("vmovdqu %ymm0,(%rdi)") },
    Form { rsi: 1, added: 4, ..form("cvtsi2sdl (%rdi,%rsi,4),%xmm0") },
    form("popcnt (%rdi),%rax"),
    Form { front: "cmp %rsi,%rsi\n", behind: "sete %al\n", ..form("mov (%rdi),%rcx") },
    Form { front: "add %rsi,%rsi\n", behind: "adc $0,%rax\n", rsi: 1, added: 8, ..form("mov 8(%rdi),%rcx") },
    Form { front: "cmp %rsi,%rsi\n mov %rdi,%rcx\n", behind: "cmovl %rsi,%rax\n", ..form("mov (%rcx),%rdx") },
];

/// Pointers that native code could have but that lead out of handler memory. All but the first have a low half that memory would have.
fn strays(good: u64) -> [u64; 5] {
    [0x8000_0040, good + (1 << 32), good + (7 << 40), good | 1 << 63, good.wrapping_sub(1 << 32)]
}

struct Setting {
    made: Made,
    window: Window,
}

impl Setting {
    fn new(body: &str) -> Setting {
        let made = rewrite_in(MATCH, body);
        let mut options = LoadOptions::default();
        options.policy.mode = MATCH;
        let image = Image::from_bytes(&made.0.image, &options).expect("loads");
        let window = Window::new(&image, &Imports::new()).expect("a window");
        Setting { made, window }
    }

    fn call(&mut self, rdi: u64, rsi: u64) -> Result<u64, Box<Fault>> {
        let entry = self.window.image().entry("f").expect("the entry");
        match self.window.call_entry(entry, [rdi, rsi, 0, 0, 0, 0]) {
            Ok(result) => Ok(result),
            Err(Error::Fault(fault)) => Err(fault),
            Err(other) => panic!("{other}"),
        }
    }

    /// Offset in the object of the instruction with this number.
    fn offset(&self, index: usize) -> u32 {
        self.made.0.explanations[index].old
    }
}

#[test]
fn every_form_of_access_works_in_memory_and_is_reported_outside() {
    for form in &FORMS {
        let body = format!("{}{}\n {}ret\n", form.front, form.access, form.behind);
        let mut setting = Setting::new(&body);
        let good = u64::from(setting.window.place(&[1; MEMORY]).expect("memory")) + MEMORY as u64 / 2;
        setting.call(good, form.rsi).unwrap_or_else(|fault| panic!("{}: {fault}", form.access));
        for stray in strays(good) {
            let fault = setting.call(stray, form.rsi).expect_err(form.access);
            let what = format!("{} at {stray:#x}: {fault}", form.access);
            assert_eq!(fault.kind, FaultKind::StrayAccess, "{what}");
            assert_eq!(fault.address, Some(stray.wrapping_add_signed(form.added)), "{what}");
            let wanted = if form.write { FaultAccess::Write } else { FaultAccess::Read };
            assert_eq!(fault.access, Some(wanted), "{what}");
            let index = form.front.matches('\n').count();
            assert_eq!(fault.origin().expect("known").offset, setting.offset(index), "{what}");
        }
    }
}

#[test]
fn the_flags_behind_a_check_are_those_in_front() {
    // Every flag that `cmp` leaves, read behind two accesses of which the second address comes from the first.
    let body = "cmp %rsi,%rdi\n mov table(%rip),%rcx\n mov (%rcx),%rdx\n setb %al\n setl %dl\n sete %cl\n sets %r8b\n setp %r9b\n \
        movzbl %al,%eax\n movzbl %dl,%edx\n movzbl %cl,%ecx\n movzbl %r8b,%r8d\n movzbl %r9b,%r9d\n lea (%rax,%rdx,2),%eax\n \
        lea (%rax,%rcx,4),%eax\n lea (%rax,%r8,8),%eax\n shl $4,%r9d\n add %r9d,%eax\n ret\n.data\n.balign 8\ntable: .quad table\n.text\n";
    let mut setting = Setting::new(body);
    for (a, b) in [(1, 2), (2, 1), (3, 3), (0, i64::MIN), (i64::MIN, 1), (-1, 1), (i64::MAX, -1), (7, 4)] {
        let difference = a.wrapping_sub(b);
        let below = (a.cast_unsigned() < b.cast_unsigned()) as u64;
        let parity = (difference as u8).count_ones().is_multiple_of(2) as u64;
        let expected = below | ((a < b) as u64) << 1 | ((a == b) as u64) << 2 | ((difference < 0) as u64) << 3 | parity << 4;
        assert_eq!(setting.call(a.cast_unsigned(), b.cast_unsigned()).expect("no fault"), expected, "cmp {b}, {a}");
    }
}

#[test]
fn a_table_in_the_image_is_checked_at_both_ends() {
    let mut setting = Setting::new("mov table+64(,%rdi,8),%rax\n ret\n.data\ntable: .quad 1,2,3,4,5,6,7,8\n.text\n");
    assert_eq!(setting.call(-8_i64 as u64, 0).expect("the first"), 1);
    assert_eq!(setting.call(-1_i64 as u64, 0).expect("the last"), 8);
    for stray in [0x2000_0000, 1 << 60, 0x1000_0000, i64::MIN as u64 / 8 - 1] {
        let result = setting.call(stray, 0);
        let address = stray.wrapping_mul(8);
        // A multiple of the scale may leave the 64 bits and come back, as it does natively.
        if address < 1 << 31 {
            assert!(result.is_ok())
        } else {
            assert_eq!(result.expect_err("stray").kind, FaultKind::StrayAccess)
        }
    }
}

#[test]
fn an_index_from_the_stack_is_checked() {
    let mut setting = Setting::new("movq $77,-32(%rsp)\n mov -16(%rsp,%rdi,8),%rax\n ret\n");
    assert_eq!(setting.call(-2_i64 as u64, 0).expect("in the red zone"), 77);
    for stray in [0x2000_0000 - 2, -0x2000_0002_i64 as u64, 1 << 60 | 1 << 58] {
        assert_eq!(setting.call(stray, 0).expect_err("stray").kind, FaultKind::StrayAccess, "{stray:#x}");
    }
}

#[test]
fn the_upper_half_of_a_32_bit_address_does_not_matter() {
    let mut setting = Setting::new("mov (%edi,%esi,4),%eax\n ret\n");
    let good = u64::from(setting.window.place(&[5; 64]).expect("memory"));
    assert_eq!(setting.call(good | 9 << 32, 3 | 5 << 40).expect("no fault"), 0x0505_0505);
}

#[test]
fn a_control_word_is_not_loaded_from_a_stray_address() {
    let mut setting = Setting::new("ldmxcsr (%rdi)\n mov $1,%eax\n ret\n");
    let good = u64::from(setting.window.place(&0x1f80_u32.to_le_bytes()).expect("memory"));
    assert_eq!(setting.call(good, 0).expect("no fault"), 1);
    assert_eq!(setting.call(good + (1 << 32), 0).expect_err("stray").kind, FaultKind::StrayAccess);
}
