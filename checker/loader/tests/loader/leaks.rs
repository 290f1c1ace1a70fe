//! Nothing of the host reaches a handler, and nothing of a handler stays in the host.

use crate::builder::{Builder, DATA, HEAP};
use crate::gates::control_words;
use cordon_loader::{Arg, Error, FaultKind, Imports, LoadOptions, Window};
use std::arch::asm;

/// Stores every register that a handler can read at HEAP: 15 general, flags, 16 × ymm, 8 × mm, MXCSR, FCW.
fn dump_text(then: &str) -> String {
    let general = ["rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    let mut text = String::from(".globl dump\ndump:\n");
    let mut store = |tag: &str, base: u32| {
        text += tag;
        for (i, r) in general.iter().enumerate() {
            text += &format!("mov %{r},%gs:{}\n", base as usize + 8 * i);
        }
        // Flags without changing memory order: lahf and the overflow flag.
        text += &format!("lahf\nseto %al\nmov %rax,%gs:{}\n", base + 120);
        for i in 0..16 {
            text += &format!("vmovdqu %ymm{i},%gs:{}\n", base + 128 + 32 * i);
        }
        text += &format!("stmxcsr %gs:{}\nfnstcw %gs:{}\n", base + 640, base + 648);
        for i in 0..8 {
            text += &format!("movq %mm{i},%rax\nmov %rax,%gs:{}\n", base + 656 + 8 * i);
        }
        text += &format!("emms\nfnstsw %ax\nmov %ax,%gs:{}\n", base + 720);
    };
    store("", HEAP);
    store(then, HEAP + 1024);
    text += "ret\n";
    text
}

/// Fills vector, x87 and MMX registers of the host with a pattern.
fn soil() {
    let pattern = [0x5ec2_e7aa_5ec2_e7aa_u64; 4];
    // SAFETY: changes only registers that a call may change; emms leaves the x87 stack empty.
    unsafe {
        asm!("movq mm0, [{0}]", "movq mm1, [{0}]", "movq mm2, [{0}]", "movq mm3, [{0}]", "movq mm4, [{0}]", "movq mm5, [{0}]",
            "movq mm6, [{0}]", "movq mm7, [{0}]", "emms", in(reg) &pattern);
        if std::arch::is_x86_feature_detected!("avx") {
            asm!("vmovdqu ymm0, [{0}]", "vmovdqu ymm1, [{0}]", "vmovdqu ymm2, [{0}]", "vmovdqu ymm3, [{0}]", "vmovdqu ymm4, [{0}]",
                "vmovdqu ymm5, [{0}]", "vmovdqu ymm6, [{0}]", "vmovdqu ymm7, [{0}]", "vmovdqu ymm8, [{0}]", "vmovdqu ymm9, [{0}]",
                "vmovdqu ymm10, [{0}]", "vmovdqu ymm11, [{0}]", "vmovdqu ymm12, [{0}]", "vmovdqu ymm13, [{0}]",
                "vmovdqu ymm14, [{0}]", "vmovdqu ymm15, [{0}]", in(reg) &pattern,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _);
        }
    }
}

/// ZF and PF as `cmp %reg,%reg` leaves them, in lahf's layout with the always-one bit; no overflow.
const CONSTANT_FLAGS: u64 = 0x46 << 8;

fn dumped(w: &Window, at: u32) -> Vec<u64> {
    let bytes = w.bytes(at, 728).expect("reads");
    bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes"))).collect()
}

fn needs_avx() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}

/// A host function that leaves values everywhere and returns 0x77.
fn soiling() -> Imports {
    Imports::new().function("soil", |_, _| {
        soil();
        set_mxcsr(0x1fa0);
        0x77
    })
}

/// Every register but rax is as at an entry without arguments.
fn assert_nothing_but_rax(words: &[u64]) {
    assert_eq!(words[1..15], [0; 14], "general registers");
    assert_eq!(words[15] & 0xffff, CONSTANT_FLAGS, "flags");
    assert_eq!(words[16..80], [0; 64], "vector registers");
    assert_eq!(words[80] & 0xffff_ffff, 0x1f80, "MXCSR");
    assert_eq!(words[81] & 0xffff, 0x037f, "x87 control word");
    assert_eq!(words[82..90], [0; 8], "MMX registers");
    assert_eq!(words[90] & 0xffff, 0, "x87 status");
}

#[test]
fn entry_and_imports_leave_no_host_value_in_any_register() {
    if !needs_avx() {
        return;
    }
    let imports = soiling();
    let text = dump_text("sub $8,%rsp\nIMPORT 0\nlea 8(%rsp),%rsp\n");
    let mut w = Builder::new(&text).imports(&["soil"]).window_with(&imports);
    for _ in 0..3 {
        soil();
        w.call("dump", &[]).expect("returns");
        for (at, rax) in [(HEAP, 0), (HEAP + 1024, 0x77)] {
            let words = dumped(&w, at);
            assert_eq!(words[0], rax);
            assert_nothing_but_rax(&words);
        }
    }
}

/// What setjmp returns to the second time, by longjmp, with the x87 and AVX state of the host behind it.
#[test]
fn longjmp_leaves_no_host_value_in_any_register() {
    if !needs_avx() {
        return;
    }
    let imports = soiling();
    let text = dump_text("sub $8,%rsp\nmov $0x204000,%edi; mov $9,%eax; IMPORT 1\n");
    let end = "mov %gs:0x204100,%eax; movl $1,%gs:0x204100; test %eax,%eax; jnz 1f\nIMPORT 0; mov $0x204000,%edi; mov $7,%esi; IMPORT 2; ud2
               1: lea 8(%rsp),%rsp; ret\n";
    let text = text.strip_suffix("ret\n").expect("returns").to_owned() + end;
    let imports_named = ["soil", "cordon.setjmp", "cordon.longjmp"];
    let mut w = Builder::new(&text).imports(&imports_named).window_with(&imports);
    for _ in 0..3 {
        w.write(0x20_4100, &[0; 4]).expect("writes");
        soil();
        w.call("dump", &[]).expect("returns");
        let words = dumped(&w, HEAP + 1024);
        assert_eq!(words[0], 9 << 32 | 7);
        assert_nothing_but_rax(&words);
    }
}

#[test]
fn arguments_are_the_only_values_at_entry() {
    if !needs_avx() {
        return;
    }
    let mut w = Builder::new(&dump_text("nop\n")).window();
    w.call("dump", &[Arg::Int(11), Arg::Float(1.5), Arg::Int(22)]).expect("returns");
    let words = dumped(&w, HEAP);
    let mut expected = [0; 80];
    (expected[0], expected[5], expected[6]) = (8, 22, 11);
    (expected[15], expected[16]) = (words[15], 1.5_f64.to_bits());
    assert_eq!(words[..80], expected);
}

fn set_mxcsr(value: u32) {
    // SAFETY: loads a valid value with exceptions masked.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value) };
}

fn set_fcw(value: u16) {
    // SAFETY: as above.
    unsafe { asm!("fldcw [{}]", in(reg) &raw const value) };
}

/// Text that leaves everything in a mess and then returns, faults, or calls an import.
fn messy() -> Builder {
    let mess = format!(
        "movl $0x7f80,%gs:{DATA}; mov ${DATA},%eax; IMPORT 0; movw $0x0c3f,%gs:{DATA}; mov ${DATA},%eax; IMPORT 1
         vpcmpeqd %ymm0,%ymm0,%ymm0; vmovdqa %ymm0,%ymm15; fldz; fld1; movq %rax,%mm3; mov $-1,%rbx"
    );
    let text = format!(
        ".globl leave\nleave: push %rbx; {mess}; pop %rbx; ret
         .globl fail\nfail: push %rbx; {mess}; ud2
         .globl call\ncall: push %rbx; {mess}; IMPORT 2; fnstcw %gs:{HEAP}; stmxcsr %gs:{HEAP}+8; emms; pop %rbx; ret"
    );
    Builder::new(&text).imports(&["cordon.ldmxcsr", "cordon.fldcw", "look"])
}

#[test]
fn control_words_come_back_after_return_and_fault_and_in_imports() {
    if !needs_avx() {
        return;
    }
    let imports = Imports::new().function("look", |_, _| {
        assert_eq!(control_words(), (0x3f80, 0x067f));
        let (mut x, y) = (1.0_f64, 3.0_f64);
        // SAFETY: uses the x87 stack, which must be empty, and leaves it empty.
        unsafe {
            asm!("fld qword ptr [{0}]", "fdiv qword ptr [{1}]", "fstp qword ptr [{0}]", in(reg) &raw mut x, in(reg) &raw const y)
        };
        assert!((x - 1.0 / 3.0).abs() < 1e-9);
        0
    });
    let mut w = messy().window_with(&imports);
    let before = control_words();
    set_mxcsr(0x3f80);
    set_fcw(0x067f);
    w.call("leave", &[]).expect("returns");
    assert_eq!(control_words(), (0x3f80, 0x067f));
    assert_eq!(w.call("fail", &[]).expect_err("traps").fault().expect("a fault").kind, FaultKind::Trap);
    assert_eq!(control_words(), (0x3f80, 0x067f));
    w.call("call", &[]).expect("returns");
    assert_eq!(control_words(), (0x3f80, 0x067f));
    // Bit 6 always reads as one.
    assert_eq!(w.bytes(HEAP, 2).expect("reads"), [0x7f, 0x0c], "the handler keeps its own control word");
    assert_eq!(w.bytes(HEAP + 8, 4).expect("reads")[..2], [0x80, 0x7f]);
    set_mxcsr(before.0);
    set_fcw(before.1);
    // The x87 stack is empty: eight values fit.
    // SAFETY: loads eight values and drops them.
    let status = unsafe {
        let status: u16;
        asm!("fnclex", "fldz", "fldz", "fldz", "fldz", "fldz", "fldz", "fldz", "fldz", "fnstsw ax", "fninit", out("ax") status);
        status
    };
    assert_eq!(status & 0x41, 0, "no stack fault");
}

/// The segment base.
fn gs() -> u64 {
    let mut base = 0_u64;
    // SAFETY: writes only `base`; ARCH_GET_GS.
    unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1004, &raw mut base) };
    base
}

fn set_gs(base: u64) {
    // SAFETY: this thread does not use gs; ARCH_SET_GS.
    unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1001, base) };
}

#[test]
fn segment_base_is_checked_at_every_way_in_and_restored_at_every_way_out() {
    let source = format!(
        ".globl f\nf: mov $7,%eax; mov %rax,%gs:{HEAP}; sub $8,%rsp; IMPORT 0; add $8,%rsp; mov %gs:{HEAP},%rax; ret\n.globl fail\nfail: ud2"
    );
    for fsgsbase in [true, false] {
        for host_uses_gs in [true, false] {
            let builder = Builder::new(&source).imports(&["change"]);
            let options = LoadOptions { fsgsbase, host_uses_gs, ..crate::builder::options() };
            let image = cordon_loader::Image::from_bytes(&builder.build().file, &options).expect("loads");
            let imports = Imports::new().function("change", |_, _| {
                set_gs(0x1234_5000);
                0
            });
            let mut w = Window::new(&image, &imports).expect("makes a window");
            for host in [0, 0x4321_0000] {
                set_gs(host);
                assert_eq!(w.call("f", &[]).expect("returns"), 7, "an import that changes gs does not move the window");
                // A base of 0 is nobody's, so the window's may stay.
                assert!(!host_uses_gs && host == 0 || gs() == host);
                set_gs(host);
                assert!(matches!(w.call("fail", &[]), Err(Error::Fault(_))));
                assert!(!host_uses_gs && host == 0 || gs() == host);
            }
            if !host_uses_gs {
                let mut other = Window::new(&image, &imports).expect("makes a window");
                set_gs(0);
                for _ in 0..2 {
                    assert_eq!(w.call("f", &[]).expect("returns"), 7);
                    let left = gs();
                    assert_eq!(other.call("f", &[]).expect("returns"), 7);
                    assert!(left != 0 && gs() != 0 && gs() != left, "each leaves its own, also over the other's");
                    set_gs(0x4321_0000);
                    assert_eq!(other.call("f", &[]).expect("returns"), 7);
                    assert_eq!(gs(), 0x4321_0000, "what the host has set in the meantime is restored");
                    set_gs(0);
                }
            }
        }
    }
    set_gs(0);
}

#[test]
fn callee_saved_registers_come_back() {
    let text = ".globl f\nf: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15
                mov $-1,%rbx; mov $-2,%rbp; mov $-3,%r12; mov $-4,%r13; mov $-5,%r14; mov $-6,%r15
                test %edi,%edi; jz 1f; ud2\n1: pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret
                .globl g\ng: mov $-1,%rbx; mov $-2,%rbp; mov $-3,%r12; mov $-4,%r13; mov $-5,%r14; mov $-6,%r15; ret";
    let mut w = Builder::new(text).window();
    // Many live values around the calls; an optimised build keeps some of them in the callee-saved registers.
    let mut sums = [0_u64; 8];
    for round in 0..100 {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = sum.wrapping_mul(31).wrapping_add(i as u64 + round);
        }
        let before = sums;
        assert_eq!(w.call("f", &[Arg::Int(1)]).is_err(), before == sums);
        w.call("f", &[Arg::Int(0)]).expect("returns");
        // Even a handler that breaks the calling convention cannot reach the host's registers.
        w.call("g", &[]).expect("returns");
        assert_eq!(before, sums);
    }
}
