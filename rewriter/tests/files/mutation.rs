//! Damaged objects are refused or read into a sound program: no panic, no hang, no reference to what does not exist.

use crate::toolchain::{archive, assembly, c, compile_with};
use cordon_rewriter::dwarf::lines;
use cordon_rewriter::emit::MapEntry;
use cordon_rewriter::object::{Input, MergeOptions, read};
use cordon_rewriter::program::{Definition, Program, SectionKind};
use cordon_rewriter::{Options, rewrite};
use std::time::{Duration, Instant};

/// Marsaglia's xorshift64: the same mutants in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Files with everything that the reader looks at.
fn seeds() -> Vec<Vec<u8>> {
    let source = "
        __thread int t = 3; __thread int u; int common; extern int far; int *const relro = &far; static int hidden[9];
        __attribute__((constructor(200))) void early(void) { hidden[1] = t + u; }
        __attribute__((weak)) int pick(int x) { switch (x) { case 0: return 5; case 1: return 9; case 2: return common;
            case 3: return *relro; case 4: return hidden[x]; case 5: return 77; default: return -1; } }
        int main(void) { return pick(far); }";
    let template = "template<class T> T twice(T x) { static T n; n += x; return x + n; } int f() { return twice(2); }
        inline int shared(int x) { return x; } int g(int x) { return shared(x); }";
    let plain = c(source, &["-O1", "-g", "-gz=none", "-fcommon", "-fPIC"]);
    let older = c(source, &["-Os", "-gdwarf-4", "-gz=none", "-ffunction-sections", "-fdata-sections"]);
    let comdat = compile_with("gcc", "c++", template, &["-O0", "-g", "-gz=none"]);
    let odd = assembly(
        ".section .ctors,\"aw\"\n.quad f\n.quad g\n.section .init,\"ax\"\ncall f\n.section .gnu.linkonce.t.f,\"ax\"\n.globl f\nf: ret\n
         .text\n.globl g\ng: call h@plt\nmov far@gottpoff(%rip), %rax\n.weak h\nlevel = 7\n.globl level\n.comm area, 64, 32\n",
    );
    let library = archive("rcs", &[("plain.o", &plain), ("a_rather_long_member_name.o", &comdat), ("odd.o", &odd)]);
    vec![plain, older, comdat, odd, library]
}

/// Byte ranges that decide: the file header and the section headers, symbols, relocations and groups, of the first object in the file.
fn structure(file: &[u8]) -> Vec<std::ops::Range<usize>> {
    let base = file.windows(4).position(|w| w == b"\x7fELF").expect("an object");
    let word = |at: usize, n: usize| file[at..at + n].iter().rev().fold(0, |v, b| v << 8 | usize::from(*b));
    let (table, count) = (base + word(base + 40, 8), word(base + 60, 2));
    let mut ranges = vec![base..base + 64, table..table + count * 64];
    for header in (0..count).map(|i| table + i * 64) {
        // SHT_SYMTAB, SHT_RELA, SHT_GROUP, and SHT_PROGBITS for line tables.
        if [1, 2, 4, 17].contains(&word(header + 4, 4)) {
            let start = base + word(header + 24, 8);
            ranges.push(start..start + word(header + 32, 8));
        }
    }
    ranges.retain(|r| !r.is_empty());
    ranges
}

fn mutate(seed: &[u8], ranges: &[std::ops::Range<usize>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(3) {
        let range = &ranges[random.below(ranges.len())];
        let at = match random.below(4) {
            0 => random.below(bytes.len()),
            _ => range.start + random.below(range.len()),
        };
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 if random.below(4) == 0 => bytes.truncate(at),
            3 => {
                // One 8-byte field takes the value of another.
                let from = (range.start + random.below(range.len())) & !7;
                if let Some(field) = bytes.get(from..from + 8).map(<[u8]>::to_vec) {
                    overwrite(&mut bytes, at & !7, &field);
                }
            }
            _ => {
                let length = bytes.len() as u64;
                let values =
                    [0, 1, 2, 7, 0xff, 0xff00, 0xffff, 1 << 31, u64::from(u32::MAX), 1 << 63, u64::MAX, length, length - 1];
                let value = values[random.below(values.len())].wrapping_add_signed(random.below(3) as i64 - 1);
                let width = 1 << random.below(4);
                overwrite(&mut bytes, at & !(width - 1), &value.to_le_bytes()[..width]);
            }
        }
        if bytes.len() < 64 {
            break;
        }
        bytes.resize(bytes.len().max(seed.len()), 0);
    }
    bytes
}

fn overwrite(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}

/// What later phases rely on.
fn check(program: &Program) {
    let zeroed = |kind| matches!(kind, SectionKind::Bss | SectionKind::TlsBss);
    for section in &program.sections {
        assert!(section.align.is_power_of_two() && (section.object.0 as usize) < program.objects.len());
        assert_eq!(section.data.len() as u64, if zeroed(section.kind) { 0 } else { section.size });
        assert!(section.relocs.is_sorted_by_key(|r| r.offset));
        for reloc in &section.relocs {
            assert!(reloc.offset <= section.size && (reloc.symbol.0 as usize) < program.symbols.len());
        }
    }
    for (name, id) in &program.globals {
        assert_eq!(&program.symbol(*id).name, name);
    }
    for symbol in &program.symbols {
        assert!((symbol.object.0 as usize) < program.objects.len());
        if let Definition::Section(id, at) = symbol.definition {
            let end = at.checked_add(symbol.size).expect("the symbol ends");
            assert!(end <= program.section(id).size, "{} leaves its section", symbol.name);
        }
    }
}

/// One entry for each byte of code.
fn identity(program: &Program) -> Vec<MapEntry> {
    let text = program.sections.iter().filter(|s| s.kind == SectionKind::Text);
    let places = text.flat_map(|s| (0..s.data.len() as u32).map(move |old| (s.object.0, s.index as u32, old)));
    (0..).zip(places).map(|(new, (object, section, old))| MapEntry { new, object, section, old }).collect()
}

#[test]
fn damaged_objects_are_refused_or_read_soundly() {
    let mut random = Random(0x5eed_0b1e_c700_0001);
    let (mut read_well, mut refused, mut slowest) = (0, 0, Duration::ZERO);
    for seed in seeds() {
        let ranges = structure(&seed);
        for _ in 0..1500 {
            let bytes = mutate(&seed, &ranges, &mut random);
            let inputs = [Input { name: "mutant".to_owned(), bytes }];
            let began = Instant::now();
            let options = MergeOptions {
                entries: vec!["main".into(), "f".into()],
                whole_archive: random.below(2) == 0,
                ..Default::default()
            };
            match read(&inputs, &options) {
                Ok(program) => {
                    check(&program);
                    let debug = lines(&program, &identity(&program), &[]);
                    assert!(debug.line.len() < 1 << 20);
                    read_well += 1;
                }
                Err(refusals) => {
                    assert!(!refusals.0.is_empty() && refusals.0.len() < 1000);
                    refused += 1;
                }
            }
            slowest = slowest.max(began.elapsed());
        }
    }
    // Both ways must have been tried, or the mutants are no good.
    assert!(read_well > 500 && refused > 1000, "{read_well} read, {refused} refused");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

/// An object with the given section headers, for inputs that try to make the reader work hard.
fn object(sections: &[[u64; 8]], contents: &[u8]) -> Vec<u8> {
    // ELF64, little-endian, ET_REL, x86-64; section headers behind the contents, the last one is the table of names.
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\x3e\0\x01\0\0\0".to_vec();
    bytes.resize(64, 0);
    let extended = sections.len() >= 0xff00;
    overwrite(&mut bytes, 40, &(64 + contents.len() as u64).to_le_bytes());
    overwrite(&mut bytes, 52, &64_u16.to_le_bytes());
    overwrite(&mut bytes, 58, &64_u16.to_le_bytes());
    overwrite(&mut bytes, 60, &if extended { 0 } else { sections.len() as u16 }.to_le_bytes());
    overwrite(&mut bytes, 62, &if extended { 0xffff } else { sections.len() as u16 - 1 }.to_le_bytes());
    bytes.extend(contents);
    for (i, [name_and_kind, flags, address, offset, size, link_and_info, align, entry]) in sections.iter().copied().enumerate() {
        let first = i == 0 && extended;
        let size = if first { sections.len() as u64 } else { size };
        let link = if first { sections.len() as u64 - 1 } else { link_and_info };
        bytes.extend([name_and_kind, flags, address, offset, size, link, align, entry].iter().flat_map(|w| w.to_le_bytes()));
    }
    bytes
}

#[test]
fn inputs_made_to_be_slow_are_not() {
    let began = Instant::now();
    let null = [0; 8];
    // 100,000 sections with one name of 60,000 bytes.
    let name = vec![b'n'; 60_000];
    let contents = [&[0], name.as_slice(), &[0]].concat();
    let strings = [3 << 32, 0, 0, 64, contents.len() as u64, 0, 1, 0];
    let mut sections = vec![null];
    sections.extend(vec![[1 | 1 << 32, 2, 0, 64, 0, 0, 1, 0]; 100_000]);
    sections.push(strings);
    let refusals = read(&[Input { name: "names".into(), bytes: object(&sections, &contents) }], &MergeOptions::default());
    assert!(refusals.expect_err("refused").to_string().contains("too long in total"));

    // 100,000 sections with the same megabyte.
    let contents = [&[0; 2], vec![1; 1 << 20].as_slice()].concat();
    let mut sections = vec![null];
    sections.extend(vec![[1 << 32, 2, 0, 66, 1 << 20, 0, 1, 0]; 100_000]);
    sections.push([3 << 32, 0, 0, 64, 2, 0, 1, 0]);
    let refusals = read(&[Input { name: "bytes".into(), bytes: object(&sections, &contents) }], &MergeOptions::default());
    assert_eq!(refusals.expect_err("refused").0[0].code, "overlapping-sections");

    // 100,000 sections that are all refused.
    let mut sections = vec![null];
    sections.extend(vec![[1 << 32, 7, 0, 0, 0, 0, 1, 0]; 100_000]);
    sections.push([3 << 32, 0, 0, 64, 2, 0, 1, 0]);
    let refusals = read(&[Input { name: "many".into(), bytes: object(&sections, &[0; 2]) }], &MergeOptions::default());
    assert!(refusals.expect_err("refused").0.len() < 1000);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_chain_of_archive_members_is_pulled_in_linear_time() {
    // Each member needs the one before it, so that a scan of the index per round would find one member each.
    let count = 3000;
    let member = assembly(".globl m_own\nm_own: call m_next\n");
    let (own, next) = (position(&member, b"m_own\0"), position(&member, b"m_next\0"));
    let mut library = b"!<arch>\n".to_vec();
    for i in (0..count).rev() {
        let mut bytes = member.clone();
        overwrite(&mut bytes, own, format!("{i:05}").as_bytes());
        overwrite(&mut bytes, next, format!("{:05}\0", i + 1).as_bytes());
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        library.extend(format!("{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", format!("{i}.o/"), 0, 0, 0, 644, bytes.len()).bytes());
        library.extend(bytes);
    }
    let began = Instant::now();
    let options = MergeOptions { entries: vec!["00000".into()], ..Default::default() };
    let program = read(&[Input { name: "chain.a".into(), bytes: library }], &options).expect("readable");
    assert_eq!(program.objects.len(), count);
    assert_eq!(program.objects[1].name, "chain.a(1.o)");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

fn position(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|w| w == wanted).expect("the name is there")
}

/// Found by fuzzing (`rewriter/fuzz/fuzz_targets/rewrite.rs`): the rewriter made an image whose entry no loader takes.
#[test]
fn an_entry_whose_name_cannot_be_shown_is_refused() {
    let mut object = assembly(".globl m_own\nm_own: ret\n");
    let name = position(&object, b"m_own\0");
    for hidden in [b"m\x08own", b"\xe2\x80\xaeow"] {
        overwrite(&mut object, name, hidden);
        let refusals = rewrite(&[Input { name: "a.o".into(), bytes: object.clone() }], &Options::default()).expect_err("refused");
        assert_eq!(refusals.0[0].code, "unprintable-name");
        assert!(!refusals.to_string().contains(['\x08', '\u{202e}']), "{refusals}");
    }
}

/// Found by fuzzing: sums of addends and displacements overflowed.
#[test]
fn an_addend_beyond_all_memory_is_refused() {
    let mut object = assembly(".globl f\nf: mov d(%rip), %eax\nret\n.data\nd: .long 1\n");
    let addend = position(&object, &(-4_i64).to_le_bytes());
    for far in [i64::MAX, i64::MIN, 1 << 41] {
        overwrite(&mut object, addend, &far.to_le_bytes());
        let refusals = rewrite(&[Input { name: "a.o".into(), bytes: object.clone() }], &Options::default()).expect_err("refused");
        assert_eq!(refusals.0[0].code, "relocation-out-of-range");
    }
}
