//! Calls, arguments, memory, tables, imports.

use crate::builder::{ARGUMENT, Builder, DATA, HEAP, RODATA, options};
use cordon_loader::{Arg, Error, FaultKind, Image, Imports, Window};

#[test]
fn arguments_arrive_and_results_come_back() {
    let mut w = Builder::new(
        ".globl weigh\nweigh: lea (%rdi,%rsi,2),%rax; lea (%rax,%rdx,4),%rax; lea (%rax,%rcx,8),%rax
         imul $16,%r8,%r8; add %r8,%rax; imul $32,%r9,%r9; add %r9,%rax; ret",
    )
    .window();
    let args: Vec<Arg> = (1..=6).map(Arg::Int).collect();
    assert_eq!(w.call("weigh", &args).expect("returns"), 1 + 4 + 12 + 32 + 80 + 192);
    let many: Vec<Arg> = (0..7).map(Arg::Int).collect();
    assert!(matches!(w.call("weigh", &many), Err(Error::TooManyArguments)));
    assert!(matches!(w.call("nothing", &[]), Err(Error::NoEntry(name)) if name == "nothing"));
}

#[test]
fn floats_arrive_and_come_back() {
    let mut w = Builder::new(".globl hyp\nhyp: mulsd %xmm0,%xmm0; mulsd %xmm1,%xmm1; addsd %xmm1,%xmm0; sqrtsd %xmm0,%xmm0; ret")
        .window();
    assert_eq!(w.call_float("hyp", &[Arg::Float(3.0), Arg::Float(4.0)]).expect("returns"), 5.0);
}

#[test]
fn handler_sees_its_memory_and_the_host_sees_it_too() {
    let source = format!(
        ".globl swap\nswap: mov %gs:{DATA},%rax; mov %gs:{RODATA},%rcx; mov %rcx,%gs:{DATA}; mov %rax,%gs:{HEAP}; ret
         .globl sum\nsum: xor %eax,%eax; xor %ecx,%ecx
         1: cmp %rsi,%rcx; jae 2f; movzbl %gs:(%edi,%ecx),%edx; add %rdx,%rax; add $1,%rcx; jmp 1b
         2: ret"
    );
    let mut w = Builder::new(&source).data(&7_u64.to_le_bytes()).rodata(&9_u64.to_le_bytes()).window();
    assert_eq!(w.call("swap", &[]).expect("returns"), 7);
    assert_eq!(w.bytes(DATA, 8).expect("data"), 9_u64.to_le_bytes());
    assert_eq!(w.bytes(HEAP, 8).expect("heap"), 7_u64.to_le_bytes());
    assert_eq!(w.call("swap", &[]).expect("returns"), 9);
    w.reset().expect("resets");
    assert_eq!(w.bytes(DATA, 8).expect("data"), 7_u64.to_le_bytes());
    assert_eq!(w.bytes(HEAP, 8).expect("heap"), [0; 8]);
    let bytes: Vec<u8> = (0..200).collect();
    assert_eq!(w.call("sum", &[Arg::Bytes(&bytes), Arg::Int(200)]).expect("returns"), (0..200).sum::<u64>());
    assert_eq!(w.bytes(ARGUMENT, 4).expect("arguments"), [0, 1, 2, 3]);
    let too_long = vec![0; 0x1_0001];
    assert!(matches!(w.call("sum", &[Arg::Bytes(&too_long)]), Err(Error::ArgumentArea { .. })));
    assert!(matches!(w.write(RODATA, &[1]), Err(Error::Range { .. })));
    assert!(matches!(w.bytes(0x1_0000, 8), Err(Error::Range { .. })));
}

#[test]
fn table_calls_reach_text_slots_and_nothing_else() {
    let source = ".globl through\nthrough: and $MASK,%edi; call *%gs:T(%rdi); add $1,%rax; ret
                  .globl pointer\npointer: mov $8*S0,%eax; ret
                  twenty: mov $20,%eax; ret\n thirty: mov $30,%eax; ret";
    let mut w = Builder::new(source).slots(&["twenty", "thirty"]).window();
    let pointer = w.call("pointer", &[]).expect("returns");
    assert_eq!(w.call("through", &[Arg::Int(pointer)]).expect("returns"), 21);
    assert_eq!(w.call("through", &[Arg::Int(pointer + 8)]).expect("returns"), 31);
    for bad in [0, pointer + 16, 63 * 8] {
        let fault = w.call("through", &[Arg::Int(bad)]).expect_err("stops");
        let fault = fault.fault().expect("a fault");
        assert_eq!((fault.kind, fault.function().map(|(n, _)| n)), (FaultKind::BadCodePointer, Some("through")));
    }
}

#[test]
fn imports_get_arguments_and_give_results() {
    let source = ".globl f\nf: sub $8,%rsp; mov $2,%esi; mov $3,%edx; mov $4,%ecx; mov $5,%r8d; mov $6,%r9d; IMPORT 0; add $1,%rax; add $8,%rsp; ret
                  .globl g\ng: jmp *%gs:T+16\n.globl h\nh: sub $8,%rsp; IMPORT 2; addsd %xmm0,%xmm0; add $8,%rsp; ret";
    let imports = Imports::new()
        .function("weigh", |_, [a, b, c, d, e, f]| a + 10 * b + 100 * c + 1000 * d + 10_000 * e + 100_000 * f)
        .function("double", |_, [a, ..]| 2 * a)
        .float_function("atan2", |_, [y, x, ..]| y.atan2(x));
    let builder = Builder::new(source).imports(&["weigh", "double", "atan2"]);
    let mut w = builder.window_with(&imports);
    assert_eq!(w.call("f", &[Arg::Int(1)]).expect("returns"), 654_322);
    assert_eq!(w.call("g", &[Arg::Int(21)]).expect("returns"), 42);
    assert_eq!(w.call_float("h", &[1.0.into(), 2.0.into()]).expect("returns"), 2.0 * 1.0_f64.atan2(2.0));
    let image = builder.image();
    assert!(matches!(Window::new(&image, &Imports::new()), Err(Error::MissingImport(name)) if name == "weigh"));
    let mut w = Window::new(&image, &Imports::new().missing_as_trap()).expect("makes a window");
    assert_eq!(w.call("f", &[]).expect_err("stops").fault().expect("a fault").kind, FaultKind::BadCodePointer);
}

#[test]
fn initialisation_runs_at_creation_and_reset() {
    let source = format!(
        ".globl cordon__init\ncordon__init: addl $5,%gs:{DATA}; ret\n.globl get\nget: mov %gs:{DATA},%eax; addl $1,%gs:{DATA}; ret"
    );
    let mut w = Builder::new(&source).data(&[1]).window();
    assert_eq!(w.call("get", &[]).expect("returns"), 6);
    assert_eq!(w.call("get", &[]).expect("returns"), 7);
    w.reset().expect("resets");
    assert_eq!(w.call("get", &[]).expect("returns"), 6);
}

#[test]
fn entries_belong_to_their_image() {
    let builder = Builder::new(".globl f\nf: ret");
    let (one, two) = (builder.image(), builder.image());
    let mut w = Window::new(&one, &Imports::new()).expect("makes a window");
    assert!(w.call_entry(one.entry("f").expect("entry"), [0; 6]).is_ok());
    assert!(matches!(w.call_entry(two.entry("f").expect("entry"), [0; 6]), Err(Error::NoEntry(_))));
}

#[test]
fn memory_limit_is_kept() {
    let file = Builder::new(".globl f\nf: ret").build().file;
    let options = cordon_loader::LoadOptions { memory_limit: 1 << 20, ..options() };
    assert!(matches!(Image::from_bytes(&file, &options), Err(Error::MemoryLimit { limit: 0x10_0000, .. })));
}

#[test]
fn sub_tables_switch_and_trap() {
    let source = ".globl pick\npick: push %rbx; mov %edi,%ecx; and $24,%ecx; jmp *%gs:SUB(%rcx)
                  one: .byte 0x0f,0x1f,0x84,0xc0; .long 1 | 1 << 20; pop %rbx; mov $1,%eax; ret
                  two: .byte 0x0f,0x1f,0x84,0xc0; .long 1 | 1 << 20; pop %rbx; mov $2,%eax; ret";
    let mut w = Builder::new(source).sub_table(2, 8, 1, &["one", "two"]).window();
    assert_eq!(w.call("pick", &[Arg::Int(0)]).expect("returns"), 1);
    assert_eq!(w.call("pick", &[Arg::Int(8)]).expect("returns"), 2);
    for missing in [16, 24] {
        let error = w.call("pick", &[Arg::Int(missing)]).expect_err("traps");
        assert_eq!(error.fault().expect("a fault").kind, FaultKind::BadCodePointer);
    }
}

#[test]
fn stacks_of_several_sizes_serve_one_thread() {
    // Each level takes 4 KiB of data stack and touches it.
    let source = ".globl f\nf: test %edi,%edi; jz 1f; sub $4096-8,%rsp; sub $1,%edi; movl $1,%gs:K(%esp); call f; add $4096-8,%rsp; ret\n1: xor %eax,%eax; ret";
    let mut windows: Vec<Window> =
        [0x1_0000, 0x2_0000, 0x10_0000].iter().map(|size| Builder::new(source).stack(*size).window()).collect();
    for _ in 0..3 {
        for (w, levels) in windows.iter_mut().zip([15, 31, 255]) {
            w.call("f", &[Arg::Int(levels)]).expect("fits");
            assert!(w.call("f", &[Arg::Int(levels + 2)]).is_err(), "does not fit");
        }
    }
}
