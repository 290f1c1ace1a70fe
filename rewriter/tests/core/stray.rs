//! Match mode at work: every form of access does what native code does where that is memory, and is stopped and named where it is not.

use crate::assemble::{Made, rewrite_in};
use crate::matching::MATCH;
use cordon_loader::{Error, Fault, FaultAccess, FaultKind, Image, Imports, LoadOptions, Memory, Relation, Sharing, Window};

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

/// Accesses of every size that instructions have: code in front, the access at this displacement from rdi, code behind, size.
const SIZES: [(&str, &str, &str, u64); 20] = [
    ("", "mov DISP(%rdi),%al", "", 1),
    ("", "mov %al,DISP(%rdi)", "", 1),
    ("", "incb DISP(%rdi)", "", 1),
    ("", "movzwl DISP(%rdi),%eax", "", 2),
    ("", "movw $1,DISP(%rdi)", "", 2),
    ("", "fildl DISP(%rdi)", "fstp %st(0)\n", 4),
    ("", "cmp %eax,DISP(%rdi)", "", 4),
    ("", "lock xadd %eax,DISP(%rdi)", "", 4),
    ("", "mov DISP(%rdi),%rax", "", 8),
    ("", "mov %rax,DISP(%rdi)", "", 8),
    ("", "add %rax,DISP(%rdi)", "", 8),
    ("", "fldl DISP(%rdi)", "fstp %st(0)\n", 8),
    ("", "fldt DISP(%rdi)", "fstp %st(0)\n", 10),
    ("fld1\n", "fstpt DISP(%rdi)", "", 10),
    ("", "movdqu DISP(%rdi),%xmm0", "", 16),
    ("", "movups %xmm0,DISP(%rdi)", "", 16),
    ("", "vmovdqu DISP(%rdi),%ymm0", "vzeroupper\n", 32),
    ("", "vmovups %ymm0,DISP(%rdi)", "vzeroupper\n", 32),
    ("vpcmpeqd %ymm0,%ymm0,%ymm0\n", "vmaskmovps DISP(%rdi),%ymm0,%ymm1", "vzeroupper\n", 32),
    ("vpcmpeqd %ymm0,%ymm0,%ymm0\n", "vmaskmovps %ymm0,%ymm0,DISP(%rdi)", "vzeroupper\n", 32),
];

/// What an access next to memory may be called: its base alone is checked.
const UNCHECKED: [FaultKind; 3] = [FaultKind::NullZone, FaultKind::Unmapped, FaultKind::StrayAccess];

/// A page of memory with nothing around it: its first address and the one past it.
fn page(setting: &mut Setting) -> (std::sync::Arc<Memory>, u64, u64) {
    let memory = Memory::new("edge", 4096).expect("makes a memory");
    let at = u64::from(setting.window.share(&memory, Sharing::ReadWrite).expect("there is room"));
    (memory, at, at + 4096)
}

/// Addresses around the limits that checks have: 0, 2 GiB, 4 GiB and the end of the 64 bits.
fn limits() -> impl Iterator<Item = u64> {
    [0, 1_u64 << 31, 1 << 32, 1 << 63].into_iter().flat_map(|limit| (-64..=64).map(move |by| limit.wrapping_add_signed(by)))
}

#[test]
fn accesses_of_every_size_are_exact_at_both_edges_of_memory() {
    for (front, access, behind, size) in SIZES {
        for disp in [0_i64, 64, -64, 0x7fff_0000] {
            let access = access.replace("DISP", &disp.to_string());
            let mut setting = Setting::new(&format!("{front}{access}\n {behind}ret\n"));
            let (memory, start, end) = page(&mut setting);
            let mut call = |address: u64| setting.call(address.wrapping_add_signed(-disp), 0);
            for good in [start, start + 1, end - size - 1, end - size] {
                call(good).unwrap_or_else(|fault| panic!("{access} at {good:#x} of {start:#x} to {end:#x}: {fault}"));
            }
            let mut before = vec![0; 4096];
            memory.read(0, &mut before).expect("reads");
            let mut fails = |address: u64| {
                let fault = call(address).expect_err(&access);
                let what = format!("{access} at {address:#x}: {fault}");
                assert_eq!((fault.address, fault.bytes), (Some(address), Some(size)), "{what}");
                fault
            };
            for by in 1..=64 {
                let fault = fails(start - by);
                assert_eq!(
                    (fault.kind, fault.report().region.expect("near").relation),
                    (FaultKind::Unmapped, Relation::Before(by))
                );
                let fault = fails(end - size + by);
                let past = by.saturating_sub(size) + 1;
                assert_eq!(
                    (fault.kind, fault.report().region.expect("near").relation),
                    (FaultKind::Unmapped, Relation::Past(past))
                );
            }
            for address in limits() {
                let kind = fails(address).kind;
                let expected = match address {
                    0..0x1_0000 => FaultKind::NullZone,
                    0x1_0000..0x8000_0000 => FaultKind::Unmapped,
                    _ => FaultKind::StrayAccess,
                };
                // A small displacement leads from a base that is checked into the null zone, or from one in memory into what is never mapped.
                let base_tells = disp.abs() == 64 && [expected, kind].iter().all(|k| UNCHECKED.contains(k));
                assert!(kind == expected || base_tells, "{access} at {address:#x}: {kind:?}");
            }
            for address in [start + (1 << 32), start | 1 << 63, end - size + (5 << 40)] {
                assert_eq!(fails(address).kind, FaultKind::StrayAccess, "{access} at {address:#x}");
            }
            let mut after = vec![0; 4096];
            memory.read(0, &mut after).expect("reads");
            assert!(before == after, "{access}: a stray access happened");
        }
    }
}

#[test]
fn gates_work_up_to_both_edges_of_memory() {
    for body in ["mov %rsi,%rcx\n rep stosb\n", "mov %rsi,%rcx\n mov %rdi,%rsi\n rep movsb\n"] {
        let mut setting = Setting::new(&format!("mov $5,%eax\n {body} ret\n"));
        let (memory, start, end) = page(&mut setting);
        for size in 1..=64_u64 {
            for good in [start, end - size] {
                setting.call(good, size).unwrap_or_else(|fault| panic!("{size} bytes at {good:#x}: {fault}"));
            }
            let outside = (1..=64).flat_map(|by| [start - by, end - size + by]).chain(limits());
            for address in outside {
                let fault = setting.call(address, size).expect_err("outside");
                assert!(fault.gate.is_some() && fault.access.is_some(), "{size} bytes at {address:#x}: {fault}");
            }
            for address in [start + (1 << 32), start | 1 << 63] {
                memory.write(0, &[9; 64]).expect("writes");
                assert_eq!(setting.call(address, size).expect_err("stray").kind, FaultKind::GateRange);
                let mut bytes = [0; 64];
                memory.read(0, &mut bytes).expect("reads");
                assert_eq!(bytes, [9; 64], "nothing was written");
            }
        }
    }
}

#[test]
fn counted_loops_do_what_they_did_and_report_pointers_that_are_astray() {
    let sum = "xor %eax,%eax\n xor %ecx,%ecx\n1: movzbl -3(%rdi,%rcx),%edx\n add %rdx,%rax\n add $1,%rcx\n cmp %rsi,%rcx\n jb 1b\n ret\n";
    let mut setting = Setting::new(sum);
    let good = u64::from(setting.window.place(&[3; MEMORY]).expect("memory")) + 8;
    assert_eq!(setting.call(good, 40).expect("in memory"), 120);
    for stray in strays(good) {
        let fault = setting.call(stray, 40).expect_err("astray");
        assert_eq!((fault.kind, fault.address), (FaultKind::StrayAccess, Some(stray.wrapping_sub(3))), "{fault}");
    }
    // Off the end of memory it goes on until a page is missing or the counter is.
    let fault = setting.call(good, u64::MAX).expect_err("astray");
    assert!(fault.address.is_some_and(|at| at > good), "{fault}");
    // The same from below: a counter that is negative is none.
    let below = "xor %eax,%eax\n mov $-4,%rcx\n1: movzbl (%rdi,%rcx),%edx\n add %rdx,%rax\n add $1,%rcx\n jne 1b\n ret\n";
    let mut setting = Setting::new(below);
    let good = u64::from(setting.window.place(&[3; MEMORY]).expect("memory")) + 8;
    assert_eq!(setting.call(good, 0).expect("in memory"), 12);
}

#[test]
fn indices_of_the_stack_that_are_astray_are_reported() {
    let body = "mov %edi,%eax\n movq $5,-64(%rsp)\n movq $6,-56(%rsp)\n mov -64(%rsp,%rax,8),%rax\n ret\n";
    let mut setting = Setting::new(body);
    assert_eq!([0, 1].map(|i| setting.call(i, 0).expect("in the frame")), [5, 6]);
    let base = setting.call(0x1000_0000, 0).expect_err("astray").address.expect("known") - (0x1000_0000 << 3);
    for index in [0x2000_0000, 0xffff_fff0] {
        let fault = setting.call(index, 0).expect_err("astray");
        assert_eq!((fault.kind, fault.address), (FaultKind::StrayAccess, Some(base + (index << 3))), "{fault}");
    }
}
