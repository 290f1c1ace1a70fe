//! The accepted set, enumerated with registers and constants collapsed: judged by a second implementation of SPEC.md, described by a
//! second decoder, and listed in `golden/accepted.lst`; what the instruction set has besides is in `golden/refused.lst` with its reason.
//!
//! `examples/exhaustive.rs` does the same without gaps. `CORDON_BLESS=1` writes the lists anew.

#[path = "oracle/census.rs"]
mod census;
#[path = "oracle/collapsed.rs"]
mod collapsed;
#[path = "oracle/explained.rs"]
mod explained;
#[path = "oracle/refused.rs"]
mod refused;
#[path = "oracle/second.rs"]
mod second;
#[path = "oracle/spec.rs"]
mod spec;

use census::{Census, Form};
use collapsed::Collapse;
use cordon_checker::Mode;
use explained::{EXPLAINED, explanation};
use iced_x86::Code;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

/// Constants of 0x10, and of 0 for the no-ops.
const FILLS: [u8; 2] = [0x10, 0];

fn census() -> &'static Census {
    static CENSUS: OnceLock<Census> = OnceLock::new();
    CENSUS.get_or_init(|| Census::take(Collapse::SLICE, &FILLS, Mode::default()))
}

/// Compares with the list in the repository, or writes it.
fn compare(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("CORDON_BLESS").is_some() {
        std::fs::write(&path, found).expect("the list can be written");
    }
    let listed = std::fs::read_to_string(&path).unwrap_or_default();
    let only = |of: &str, other: &str| -> Vec<String> {
        let known: BTreeSet<&str> = other.lines().collect();
        of.lines().filter(|line| !known.contains(line)).take(40).map(str::to_owned).collect()
    };
    let (lost, gained) = (only(&listed, found), only(found, &listed));
    assert!(found == listed, "{name} (CORDON_BLESS=1 writes it): lost {lost:#?}, gained {gained:#?}");
}

#[test]
fn checker_judges_as_the_second_implementation_of_the_specification() {
    let census = census();
    assert!(census.seen.tried > 10_000_000 && census.seen.accepted > 100_000, "{} accepted", census.seen.accepted);
    assert!(census.misjudged.is_empty(), "{:#?}", census.misjudged);
}

#[test]
fn capstone_differs_only_where_it_is_wrong() {
    assert!(census().unexplained().is_empty(), "{:#?}", census().unexplained());
    // A line of the table that nothing needs is out of date.
    for line in EXPLAINED {
        let used = census().seen.differences.keys().any(|difference| explanation(difference) == Some(line));
        assert!(used, "{line:?} explains nothing");
    }
}

#[test]
fn accepted_set_is_the_listed_one() {
    let joined = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
    let line = |(code, form): (&usize, &Form)| {
        let op_code = Code::try_from(*code).expect("a code").op_code();
        let (operands, features) = (joined(&form.operands), joined(&form.features));
        let (assembly, encoding) = (op_code.instruction_string(), op_code.op_code_string());
        format!("{assembly} | {encoding} | {operands} | {features} | {}\n", form.count)
    };
    compare("accepted.lst", &census().accepted.iter().map(line).collect::<String>());
}

/// Whether the code exists in 64-bit text at all, as one instruction that a decoder gives.
fn exists(code: Code) -> bool {
    let op_code = code.op_code();
    let data = matches!(code, Code::DeclareByte | Code::DeclareWord | Code::DeclareDword | Code::DeclareQword | Code::Zero_bytes);
    let spelled = op_code.op_code_string().starts_with("9B ");
    code != Code::INVALID && op_code.is_instruction() && op_code.mode64() && !data && !spelled
}

/// Every code is accepted in some form or refused by SPEC.md's reasons, none is both.
#[test]
fn what_the_instruction_set_has_besides_is_refused_with_a_reason() {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    // Instructions of extensions that no policy has, in numbers.
    let mut extensions: BTreeMap<String, u32> = BTreeMap::new();
    let mut wrong = Vec::new();
    for code in Code::values().filter(|code| exists(*code)) {
        let accepted = census().accepted.contains_key(&(code as usize));
        match refused::refused(code) {
            None if accepted => {}
            None => wrong.push(format!("{code:?} has no accepted encoding and no reason")),
            Some(why) => {
                if accepted {
                    wrong.push(format!("{code:?} is accepted: {why}"));
                }
                if let Some(extension) = refused::foreign_extension(code) {
                    *extensions.entry(format!("{extension:?}")).or_default() += 1;
                    continue;
                }
                reasons.entry(why).or_default().push(code.op_code().instruction_string().to_owned());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut list = String::new();
    for (why, mut instructions) in reasons {
        instructions.sort();
        instructions.dedup();
        list.extend(instructions.iter().map(|instruction| format!("{why} | {instruction}\n")));
    }
    list.extend(extensions.iter().map(|(extension, count)| format!("extension that no policy has | {extension}: {count}\n")));
    compare("refused.lst", &list);
}

/// Where Capstone knows nothing (AVX-VNNI), GNU objdump reads one instruction with the length and the operands that iced-x86 reads.
#[test]
fn objdump_agrees_where_capstone_knows_nothing() {
    use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};
    let (mut text, mut expected) = (Vec::new(), Vec::new());
    for opcode in 0x50..=0x53 {
        for (fields, extensions) in [(0x79_u8, 0xe2_u8), (0x5d, 0x02), (0x3d, 0x82), (0x01, 0x22)] {
            for tail in [&[0xc1_u8][..], &[0x3c], &[0x05], &[0x47, 0x10], &[0x84, 0xd9, 0x10, 0x20, 0x30, 0x40]] {
                let tail = if tail == [0x3c] { &[0x3c, 0x25, 0x10, 0x20, 0x30, 0x40][..] } else { tail };
                let prefix: &[u8] = match tail[0] {
                    0xc1 => &[],
                    0x3c => &[0x65],
                    _ => &[0x65, 0x67],
                };
                let bytes = [prefix, &[0xc4, extensions, fields, opcode], tail].concat();
                if cordon_checker::describe(&bytes, cordon_checker::policy::Host::User).is_ok_and(|d| d.len == bytes.len()) {
                    let mut spelled = String::new();
                    let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
                    GasFormatter::new().format(&instruction, &mut spelled);
                    expected.push((bytes.len(), spelled.replace(' ', "")));
                    text.extend(bytes);
                }
            }
        }
    }
    assert!(expected.len() > 20, "{} encodings", expected.len());
    let file = std::env::temp_dir().join(format!("cordon-vnni-{}", std::process::id()));
    std::fs::write(&file, &text).expect("writable");
    let arguments = ["-D", "-w", "-b", "binary", "-m", "i386:x86-64"];
    let output = std::process::Command::new("objdump").args(arguments).arg(&file).output().expect("objdump is installed");
    std::fs::remove_file(&file).expect("removable");
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<(usize, String)> = listing
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t').skip(1);
            let len = fields.next()?.split_whitespace().count();
            Some((len, fields.next()?.replace(' ', "").replace("{vex}", "")))
        })
        .collect();
    assert_eq!(found, expected);
}
