//! Objects and archives become one program as `ld` would make it, or are refused with a reason.

use crate::toolchain::{archive, assembly, c, compile_with};
use cordon_rewriter::object::{Input, MergeOptions, read};
use cordon_rewriter::program::{Definition, Program, Section, SectionKind, Symbol, SymbolKind};
use object::elf;

fn inputs(list: &[(&str, Vec<u8>)]) -> Vec<Input> {
    list.iter().map(|(name, bytes)| Input { name: (*name).to_owned(), bytes: bytes.clone() }).collect()
}

fn merged(list: &[(&str, Vec<u8>)]) -> Program {
    read(&inputs(list), &MergeOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn refused(list: &[(&str, Vec<u8>)]) -> Vec<String> {
    let refusals = read(&inputs(list), &MergeOptions::default()).expect_err("the inputs are refused");
    refusals.0.iter().map(ToString::to_string).collect()
}

fn refused_code(bytes: Vec<u8>) -> &'static str {
    read(&inputs(&[("a.o", bytes)]), &MergeOptions::default()).expect_err("the object is refused").0[0].code
}

fn global<'p>(program: &'p Program, name: &str) -> &'p Symbol {
    program.symbol(program.globals[name])
}

fn home<'p>(program: &'p Program, name: &str) -> &'p Section {
    match global(program, name).definition {
        Definition::Section(id, _) => program.section(id),
        other => panic!("{name} is {other:?}"),
    }
}

fn object_of<'p>(program: &'p Program, name: &str) -> &'p str {
    &program.objects[global(program, name).object.0 as usize].name
}

#[test]
fn reads_sections_symbols_and_relocations() {
    let source = "int counter = 7; static int hidden; const char text[] = \"hi\"; int zero[100];
        extern int other(int); int f(void) { hidden++; return other(counter); }";
    let program = merged(&[("f.o", c(source, &["-O1", "-fno-pic"]))]);
    let f = global(&program, "f");
    assert_eq!((f.kind, f.global, f.size > 0), (SymbolKind::Function, true, true));
    assert_eq!(home(&program, "f").kind, SectionKind::Text);
    assert_eq!(home(&program, "counter").kind, SectionKind::Data);
    assert_eq!(home(&program, "text").kind, SectionKind::Rodata);
    let zero = home(&program, "zero");
    assert_eq!((zero.kind, zero.data.len(), zero.size >= 400), (SectionKind::Bss, 0, true));
    assert_eq!(global(&program, "other").definition, Definition::Undefined { weak: false });
    assert!(program.objects[0].explicit);
    let text = home(&program, "f");
    assert!(text.relocs.is_sorted_by_key(|r| r.offset));
    let called: Vec<_> = text.relocs.iter().map(|r| program.symbol(r.symbol).name.as_str()).collect();
    assert!(called.contains(&"other") && called.contains(&"counter"), "{called:?}");
    assert!(program.sections.iter().all(|s| !s.name.starts_with(".eh_frame") && s.name != ".comment"));
}

#[test]
fn same_named_locals_stay_separate() {
    let source = |n: u32| format!("static int v = {n}; int *get{n}(void) {{ return &v; }}");
    let program = merged(&[("a.o", c(&source(1), &[])), ("b.o", c(&source(2), &[]))]);
    let values: Vec<u8> = program
        .symbols
        .iter()
        .filter(|s| s.name == "v")
        .map(|s| match s.definition {
            Definition::Section(id, at) => program.section(id).data[at as usize],
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(values, [1, 2]);
}

#[test]
fn strong_goes_before_common_before_weak() {
    let weak = c("__attribute__((weak)) int v = 1; __attribute__((weak)) int w = 1;", &[]);
    let common = c("int v; int w;", &["-fcommon"]);
    let strong = c("int v = 2;", &[]);
    let program = merged(&[("weak.o", weak.clone()), ("common.o", common.clone()), ("strong.o", strong.clone())]);
    assert_eq!((object_of(&program, "v"), object_of(&program, "w")), ("strong.o", "common.o"));
    assert_eq!(home(&program, "w").name, "COMMON");
    let program = merged(&[("strong.o", strong), ("common.o", common), ("weak.o", weak)]);
    assert_eq!((object_of(&program, "v"), object_of(&program, "w")), ("strong.o", "common.o"));
}

#[test]
fn biggest_common_wins() {
    let small = c("char v[8] __attribute__((aligned(64)));", &["-fcommon"]);
    let big = c("char v[800];", &["-fcommon"]);
    let program = merged(&[("small.o", small), ("big.o", big)]);
    let section = home(&program, "v");
    assert_eq!((section.kind, section.size, section.align), (SectionKind::Bss, 800, 64));
    assert_eq!((object_of(&program, "v"), global(&program, "v").size), ("big.o", 800));
}

#[test]
fn duplicate_strong_definitions_name_both_objects() {
    let one = c("int f(void) { return 1; }", &[]);
    let message = refused(&[("a.o", one.clone()), ("b.o", one)]).remove(0);
    assert_eq!(message, "b.o:.text+0x0 (f): f is already defined in a.o [duplicate-symbol]");
}

#[test]
fn equal_absolute_symbols_may_repeat() {
    let absolute = |value: u32| assembly(&format!(".globl level\nlevel = {value}\n"));
    let program = merged(&[("a.o", absolute(5)), ("b.o", absolute(5))]);
    assert_eq!(global(&program, "level").definition, Definition::Absolute(5));
    assert!(refused(&[("a.o", absolute(5)), ("b.o", absolute(6))])[0].contains("duplicate-symbol"));
}

#[test]
fn first_comdat_group_wins() {
    let source = |name: &str| {
        format!("template<class T> T twice(T x) {{ static T n; n += x; return x + n; }} int {name}() {{ return twice(2); }}")
    };
    let build = |name: &str| compile_with("gcc", "c++", &source(name), &["-O0", "-g"]);
    let program = merged(&[("a.o", build("a")), ("b.o", build("b"))]);
    let twice = program.globals.keys().find(|n| n.contains("twice") && !n.contains("E1n")).expect("the instance");
    assert_eq!(object_of(&program, twice), "a.o");
    let copies = program.sections.iter().filter(|s| s.name.contains("twice") && s.kind == SectionKind::Text).count();
    assert_eq!(copies, 1);
    let caller = home(&program, "_Z1bv");
    let target = caller.relocs.iter().map(|r| program.symbol(r.symbol)).find(|s| s.name == *twice).expect("b calls it");
    assert!(matches!(target.definition, Definition::Section(..)));
}

#[test]
fn first_linkonce_section_wins() {
    let once =
        |value: u32| assembly(&format!(".section .gnu.linkonce.t.f,\"ax\",@progbits\n.weak f\nf: mov ${value}, %eax\nret\n"));
    let program = merged(&[("a.o", once(1)), ("b.o", once(2))]);
    assert_eq!((object_of(&program, "f"), home(&program, "f").data[1]), ("a.o", 1));
    assert_eq!(program.sections.iter().filter(|s| s.name.contains("linkonce")).count(), 1);
}

#[test]
fn archives_give_what_is_asked_for() {
    let member = |name: &str, needs: &str| c(&format!("int {needs}(void); int {name}(void) {{ return {needs}(); }}"), &[]);
    // `second` needs `first`, which lies before it in the other archive and needs `third` behind.
    let one = archive("rcs", &[("first.o", &member("first", "third")), ("unused.o", &member("unused", "nothing"))]);
    let two = archive("rcs", &[("second.o", &member("second", "first")), ("third.o", &member("third", "host"))]);
    let main = c("int second(void); int maybe(void) __attribute__((weak)); int main(void) { return maybe ? 1 : second(); }", &[]);
    let program = merged(&[("one.a", one.clone()), ("main.o", main.clone()), ("two.a", two.clone())]);
    let names: Vec<_> = program.objects.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["main.o", "two.a(second.o)", "one.a(first.o)", "two.a(third.o)"]);
    assert_eq!(program.objects.iter().map(|o| o.explicit).collect::<Vec<_>>(), [true, false, false, false]);
    assert_eq!(global(&program, "maybe").definition, Definition::Undefined { weak: true });
    assert!(!program.globals.contains_key("unused"));

    let options = MergeOptions { entries: vec!["unused".into()], known_undefined: vec!["maybe".into()], ..Default::default() };
    let program = read(&inputs(&[("one.a", one.clone()), ("main.o", main)]), &options).expect("readable");
    assert_eq!(object_of(&program, "unused"), "one.a(unused.o)");
    assert_eq!(global(&program, "maybe").definition, Definition::Undefined { weak: false });

    let options = MergeOptions { whole_archive: true, ..Default::default() };
    let program = read(&inputs(&[("one.a", one), ("two.a", two)]), &options).expect("readable");
    assert_eq!(program.objects.len(), 4);
    assert!(program.objects.iter().all(|o| o.explicit));
}

#[test]
fn weak_references_pull_nothing_but_strong_ones_pull_weak_definitions() {
    let weak = archive("rcs", &[("w.o", &c("__attribute__((weak)) int f(void) { return 1; }", &[]))]);
    let asks = |attribute: &str| c(&format!("{attribute} int f(void); int g(void) {{ return f(); }}"), &[]);
    let program = merged(&[("g.o", asks("__attribute__((weak))")), ("w.a", weak.clone())]);
    assert_eq!(program.objects.len(), 1);
    let program = merged(&[("g.o", asks("")), ("w.a", weak)]);
    assert_eq!(program.objects.len(), 2);
}

#[test]
fn a_common_symbol_pulls_only_a_proper_definition() {
    let tentative = archive("rcs", &[("c.o", &c("int v;", &["-fcommon"]))]);
    let proper = archive("rcs", &[("d.o", &c("int v = 4;", &[]))]);
    let main = c("int v; int f(void) { return v; }", &["-fcommon"]);
    let program = merged(&[("main.o", main), ("c.a", tentative), ("d.a", proper)]);
    let names: Vec<_> = program.objects.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["main.o", "d.a(d.o)"]);
}

#[test]
fn constructors_come_last_in_run_order() {
    let source = "
        .macro ctor name, section
        .section \\section, \"aw\"
        .quad \\name
        .text
        \\name: ret
        .endm
        ctor plain, .init_array
        ctor late, .init_array.00900
        ctor early, .init_array.00101
        ctor old_early, .ctors.65434
        ctor first, .preinit_array
        .section .init, \"ax\"
        call from_init
        .text
        from_init: ret
        .section .ctors, \"aw\"
        .quad last_of_ctors
        .quad first_of_ctors
        .text
        last_of_ctors: ret
        first_of_ctors: ret
        .globl f
        f: ret
        .section .fini_array, \"aw\"
        .quad f
";
    let program = merged(&[("a.o", assembly(source)), ("b.o", c("int late_object;", &[]))]);
    let from = program.sections.iter().position(|s| s.kind == SectionKind::InitArray).expect("constructors");
    let (last, constructors) = program.sections[from..].split_last().expect("sections");
    assert!(constructors.iter().all(|s| s.kind == SectionKind::InitArray));
    assert_eq!((last.kind, &last.name[..]), (SectionKind::FiniArray, ".fini_array"));
    let target = |s: &Section, at: u64| {
        let r = s.relocs.iter().find(|r| r.offset == at).expect("a pointer");
        let symbol = program.symbol(r.symbol);
        let offset = match symbol.definition {
            Definition::Section(_, value) => value.wrapping_add_signed(r.addend),
            other => panic!("{other:?}"),
        };
        let named = |s: &&Symbol| !s.name.is_empty() && matches!(s.definition, Definition::Section(_, v) if v == offset);
        program.symbols.iter().filter(|s| !s.global).find(named).expect("a name").name.clone()
    };
    let order: Vec<String> =
        constructors.iter().flat_map(|s| (0..s.size / 8).map(move |i| (s, i * 8))).map(|(s, at)| target(s, at)).collect();
    assert_eq!(order, ["first", "from_init", "early", "old_early", "late", "plain", "first_of_ctors", "last_of_ctors"]);
}

#[test]
fn refuses_init_code_that_is_no_call() {
    let init = |code: &str| assembly(&format!(".section .init,\"ax\"\n{code}\n"));
    assert_eq!(refused_code(init("sub $8, %rsp\ncall f")), "init-section");
    assert_eq!(refused_code(init("call f\nret")), "init-section");
    assert_eq!(refused_code(init("jmp f\n")), "init-section");
    assert_eq!(merged(&[("a.o", init("call f"))]).sections.last().map(|s| s.size), Some(8));
}

#[test]
fn thread_local_and_relro_sections_keep_their_kind() {
    let source = "__thread int a = 3; __thread int b; extern int far; int *const p = &far; int *q = &far;";
    let program = merged(&[("a.o", c(source, &["-fPIC"]))]);
    assert_eq!(home(&program, "a").kind, SectionKind::TlsData);
    assert_eq!(home(&program, "b").kind, SectionKind::TlsBss);
    assert_eq!(global(&program, "a").kind, SymbolKind::Tls);
    assert_eq!(home(&program, "p").kind, SectionKind::Rodata);
    assert_eq!(home(&program, "q").kind, SectionKind::Data);
}

#[test]
fn debug_sections_are_kept_apart_and_dropped_if_compressed() {
    let source = "int f(int x) { return x * 3; }";
    let program = merged(&[("a.o", c(source, &["-g", "-gz=none"]))]);
    let names: Vec<_> = program.objects[0].debug.iter().map(|d| d.name.as_str()).collect();
    assert!(names.contains(&".debug_line") && names.contains(&".debug_info"), "{names:?}");
    let program = merged(&[("a.o", c(source, &["-g", "-gz=zlib"]))]);
    assert!(program.objects[0].debug.is_empty());
}

#[test]
fn more_than_65280_sections_are_numbered_by_the_extended_table() {
    let mut source = String::new();
    for i in 0..66_000 {
        source += &format!(".section .text.f{i},\"ax\",@progbits\n.globl f{i}\nf{i}: mov ${i}, %eax\n");
    }
    let program = merged(&[("many.o", assembly(&source))]);
    let last = home(&program, "f65999");
    assert_eq!((last.name.as_str(), last.data[1..5].to_vec()), (".text.f65999", 65_999_u32.to_le_bytes().to_vec()));
}

#[test]
fn the_same_inputs_give_the_same_program() {
    let x = c("int y(void); int z(void); int x(void) { return y() + z(); }", &[]);
    let y = c("int y(void) { return 0; }", &[]);
    let z = c("int z(void) { return 0; }", &[]);
    let main = c("int x(void); int v, w, u; int main(void) { return x(); }", &["-g", "-fcommon"]);
    let library = archive("rcs", &[("z.o", &z), ("x.o", &x), ("y.o", &y)]);
    let build = || format!("{:?}", merged(&[("main.o", main.clone()), ("l.a", library.clone())]));
    let first = build();
    assert!((0..20).all(|_| build() == first));
}

#[test]
fn refuses_what_is_no_x86_64_relocatable_object() {
    let good = c("int f(void) { return 0; }", &[]);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        refused_code(bytes)
    };
    assert_eq!(refused_code(Vec::new()), "not-elf");
    assert_eq!(refused_code(b"int f(void);".to_vec()), "not-elf");
    assert_eq!(refused_code(b"BC\xc0\xde1234".to_vec()), "lto-bytecode");
    assert_eq!(with(4, 1), "wrong-class");
    assert_eq!(with(5, 2), "wrong-byte-order");
    assert_eq!(with(18, 183), "wrong-machine");
    assert_eq!(with(16, 2), "not-relocatable");
    assert_eq!(with(16, 3), "not-relocatable");
    assert_eq!(with(6, 0), "malformed-object");
    assert_eq!(refused_code(good[..40].to_vec()), "malformed-object");
    assert_eq!(refused_code(good[..good.len() - 1].to_vec()), "malformed-object");
    assert_eq!(refused_code(c("int f(void) { return 0; }", &["-flto", "-fno-fat-lto-objects"])), "lto-bytecode");
    assert!(
        read(&inputs(&[("fat.o", c("int f(void) { return 0; }", &["-flto", "-ffat-lto-objects"]))]), &MergeOptions::default())
            .is_ok()
    );
}

/// Offset in the file of the header of the section called `name`.
fn header_of(bytes: &[u8], name: &str) -> usize {
    let word = |at: usize, n: usize| bytes[at..at + n].iter().rev().fold(0, |v, b| v << 8 | usize::from(*b));
    let (table, count, names) = (word(40, 8), word(60, 2), word(62, 2));
    let strings = word(table + names * 64 + 24, 8);
    (0..count)
        .map(|i| table + i * 64)
        .find(|at| bytes[strings + word(*at, 4)..].starts_with(&[name.as_bytes(), b"\0"].concat()))
        .expect("the section exists")
}

fn patched(bytes: &[u8], at: usize, value: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn refuses_section_headers_that_lie() {
    let good = c("int v = 1; int f(void) { return v; }", &["-O1"]);
    let text = header_of(&good, ".text");
    let data = header_of(&good, ".data");
    let flags = |f: u64| refused_code(patched(&good, text + 8, f));
    assert_eq!(flags(7), "writable-code");
    assert_eq!(flags(4), "unallocated-code");
    assert_eq!(flags(6 | u64::from(elf::SHF_OS_NONCONFORMING.0 as u32)), "unsupported-section");
    assert_eq!(refused_code(patched(&good, text + 24, u64::MAX)), "malformed-section");
    assert_eq!(refused_code(patched(&good, text + 32, u64::MAX - 63)), "malformed-section");
    assert_eq!(refused_code(patched(&good, text + 48, 3)), "bad-alignment");
    assert_eq!(refused_code(patched(&good, text + 48, 1 << 63)), "bad-alignment");
    assert!(read(&inputs(&[("a.o", patched(&good, text + 48, 0))]), &MergeOptions::default()).is_ok());
    let offset = u64::from_le_bytes(good[text + 24..text + 32].try_into().expect("8 bytes"));
    assert_eq!(refused_code(patched(&good, data + 24, offset)), "overlapping-sections");
    assert_eq!(refused_code(patched(&good, header_of(&good, ".rela.text") + 40, 0)), "malformed-relocation");
    let kind = |at: usize, kind: u32| {
        let mut bytes = good.clone();
        bytes[at + 4..at + 8].copy_from_slice(&kind.to_le_bytes());
        refused_code(bytes)
    };
    assert_eq!(kind(header_of(&good, ".rela.text"), elf::SHT_REL.0), "rel-relocations");
    assert_eq!(kind(data, elf::SHT_DYNAMIC.0), "unsupported-section");
    // More sections than the file holds.
    assert_eq!(refused_code([&good[..60], &[0xff, 0xfe], &good[62..]].concat()), "malformed-object");
}

#[test]
fn refuses_relocations_that_make_no_sense() {
    // An assembler writes no such thing, so patch what it wrote: fields at 1..5 and 5..13.
    let good = assembly(".globl f\nf: call g\n .quad h\n");
    let table = header_of(&good, ".rela.text");
    let start = u64::from_le_bytes(good[table + 24..table + 32].try_into().expect("8 bytes")) as usize;
    let g = u64::from(good[start + 12]);
    let message = |at: usize, value: u64| refused(&[("a.o", patched(&good, start + at, value))]).remove(0);
    assert!(message(0, 3).contains("overlapping-relocations"));
    assert_eq!(message(0, 14), "a.o:.text+0xe (g): the relocation lies outside of its section [relocation-out-of-range]");
    assert!(message(0, u64::MAX).contains("relocation-out-of-range"));
    assert!(message(8, 99 << 32 | 4).contains("malformed-relocation"));
    assert_eq!(message(8, g << 32 | 37), "a.o:.text+0x1 (g): R_X86_64_IRELATIVE is not supported [unsupported-relocation]");
    assert!(message(8, g << 32 | 43).contains("APX"));
    assert!(message(8, g << 32 | 0xffff_ffff).contains("unsupported-relocation"));
}

#[test]
fn many_problems_are_reported_in_one_go() {
    let bad = assembly(".section .a,\"awx\"\n.byte 0\n.section .b,\"awx\"\n.byte 0\n");
    let list = refused(&[("x.o", bad), ("y.o", c("int f(void) { return 0; }", &["-m32"]))]);
    // The second object is refused before sections are looked at.
    assert_eq!(list, ["y.o: a 32-bit object; only 64-bit ones are supported [wrong-class]"]);
    let bad = assembly(".section .a,\"awx\"\n.byte 0\n.section .b,\"awx\"\n.byte 0\n");
    assert_eq!(refused(&[("x.o", bad)]).len(), 2);
}

#[test]
fn refuses_ifuncs_only_when_they_are_used() {
    let source = |uses: &str| {
        c(
            &format!(
                "static int one(void) {{ return 1; }} static void *pick(void) {{ return one; }}
            int f(void) __attribute__((ifunc(\"pick\"))); int g(void) {{ return {uses}; }}"
            ),
            &[],
        )
    };
    assert!(read(&inputs(&[("a.o", source("1"))]), &MergeOptions::default()).is_ok());
    let message = refused(&[("a.o", source("f()"))]).remove(0);
    assert!(message.contains("(f)") && message.ends_with("[ifunc]"), "{message}");
    let options = MergeOptions { entries: vec!["f".into()], ..Default::default() };
    assert_eq!(read(&inputs(&[("a.o", source("1"))]), &options).expect_err("refused").0[0].code, "ifunc");
}

#[test]
fn refuses_archives_of_other_kinds() {
    let object = c("int f(void) { return 0; }", &[]);
    let inner = archive("rcs", &[("f.o", &object)]);
    assert_eq!(refused_code(archive("rcs", &[("inner.a", &inner)])), "unsupported-archive");
    assert_eq!(refused_code(archive("rcsT", &[("f.o", &object)])), "unsupported-archive");
    assert_eq!(refused_code(b"<bigaf>\n".to_vec()), "malformed-archive");
    assert_eq!(refused_code(inner[..inner.len() - 8].to_vec()), "malformed-archive");
    let slim = c("int f(void) { return 0; }", &["-flto", "-fno-fat-lto-objects"]);
    assert_eq!(refused_code(archive("rcs", &[("slim.o", &slim)])), "lto-bytecode");
}

#[test]
fn reserved_names_cannot_be_defined() {
    assert_eq!(refused_code(c("char __cordon_heap_start[4];", &[])), "malformed-symbol");
    let program = merged(&[("a.o", c("extern char __cordon_heap_start[]; char *f(void) { return __cordon_heap_start; }", &[]))]);
    assert_eq!(global(&program, "__cordon_heap_start").definition, Definition::Undefined { weak: false });
}
