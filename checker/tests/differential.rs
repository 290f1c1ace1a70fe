//! A slice of the exhaustive comparison with iced-x86 (`examples/exhaustive.rs` runs all of it).

#[path = "oracle/heads.rs"]
mod heads;
mod oracle;

use cordon_checker::policy::Host;
use cordon_checker::{Flow, Mode, Protect, describe, describe_in};
use iced_x86::{Decoder, DecoderOptions, Encoder};
use oracle::{Oracle, Tally};

fn slice(host: Host, heads: &[heads::Head], step: usize, fill: u8) -> Tally {
    let mut oracle = Oracle::new(host, Mode::default());
    let mut tally = Tally::default();
    for head in heads.iter().step_by(step) {
        let mut one = Tally::default();
        heads::sweep(&mut oracle, head, fill, &mut one);
        tally.add(one);
    }
    tally
}

#[test]
fn legacy_encodings_agree_with_iced() {
    // A prime step visits every opcode with many prefixes.
    let tally = slice(Host::User, &heads::legacy_heads(), 139, 0x10);
    assert!(tally.accepted > 100_000, "{} accepted", tally.accepted);
    assert_eq!(tally.differences, 0, "{:#?}", tally.examples);
}

#[test]
fn vex_encodings_agree_with_iced() {
    let tally = slice(Host::User, &heads::vex_heads(), 1009, 0x10);
    assert!(tally.accepted > 100_000, "{} accepted", tally.accepted);
    assert_eq!(tally.differences, 0, "{:#?}", tally.examples);
}

#[test]
fn kernel_encodings_agree_with_iced() {
    let kernel: Vec<heads::Head> =
        heads::legacy_heads().into_iter().filter(|head| head.bytes.starts_with(&[0x64, 0x67])).collect();
    let tally = slice(Host::Kernel, &kernel, 61, 0x10);
    assert!(tally.accepted > 100_000, "{} accepted", tally.accepted);
    assert_eq!(tally.differences, 0, "{:#?}", tally.examples);
}

const STORES: Mode = Mode { matched: false, metered: false, protect: Protect::Stores };

#[test]
fn loads_with_64_bit_addresses_agree_with_iced() {
    let mut oracle = Oracle::new(Host::User, STORES);
    let mut tally = Tally::default();
    for head in heads::load_heads().iter().step_by(211) {
        let mut one = Tally::default();
        heads::sweep(&mut oracle, head, 0x10, &mut one);
        tally.add(one);
    }
    assert!(tally.accepted > 10_000, "{} accepted", tally.accepted);
    assert_eq!(tally.differences, 0, "{:#?}", tally.examples);
}

/// A load may lack its 67 and nothing else: what is accepted with 64-bit addresses is accepted with 32-bit ones in every mode, and the other
/// way round if it is a load.
#[test]
fn only_loads_may_have_64_bit_addresses() {
    let (mut wide, mut narrow) = (0, 0);
    for head in heads::legacy_heads().iter().chain(&heads::vex_heads()).filter(|head| head.bytes.starts_with(&[0x65, 0x67])) {
        for modrm in (0..8).map(|reg| 0x41 | reg << 3) {
            let mut bytes = [head.as_slice(), &[modrm, 0x10]].concat();
            bytes.resize(24, 0x10);
            let with = describe(&bytes, Host::User).ok().filter(|d| d.flow == Flow::Next && d.memory.is_some());
            bytes.remove(1);
            let without = describe_in(&bytes, Host::User, STORES).ok().filter(|d| d.memory.is_some());
            let load = with.and_then(|d| d.memory).is_some_and(|m| m.read && !m.write && !m.prefetch && m.base != Some(4));
            let memory = without.and_then(|d| d.memory);
            // The head may end in a prefix or escape; what follows then is another instruction, with perhaps no base.
            let addressed = memory.is_some_and(|m| m.wide);
            assert_eq!(
                load && with.is_some_and(|d| d.memory.is_some_and(|m| m.base.is_some() || m.index.is_some())),
                addressed,
                "{}",
                oracle::hex(&bytes)
            );
            wide += u32::from(addressed);
            narrow += u32::from(with.is_some());
            assert!(describe(&bytes, Host::User).is_err() || !addressed, "{}", oracle::hex(&bytes));
        }
    }
    assert!(wide > 5_000 && narrow > wide, "{wide} wide loads, {narrow} accesses");
}

/// Completeness for the rewriter, which encodes with iced-x86 and sorts the prefixes: what is accepted stays so.
#[test]
fn what_iced_encodes_is_accepted() {
    let rank = |byte: &u8| [0x65, 0x67, 0xf0, 0x66].iter().position(|prefix| prefix == byte).unwrap_or(9);
    let mut encoded = 0;
    for head in heads::legacy_heads().iter().step_by(7).chain(heads::vex_heads().iter().step_by(53)) {
        for modrm in [0x01, 0x0a, 0x44, 0x84, 0xc1, 0xc6, 0xd9, 0xe8, 0xf2] {
            let mut bytes = [head.as_slice(), &[modrm, 0x11]].concat();
            bytes.resize(24, 0x10);
            if describe(&bytes, Host::User).is_err() {
                continue;
            }
            let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            let mut encoder = Encoder::new(64);
            encoder.encode(&instruction, 0).expect("iced encodes what it decoded");
            let mut again = encoder.take_buffer();
            let prefixes = again.iter().take_while(|&byte| rank(byte) < 9 || matches!(byte, 0xf2 | 0xf3)).count();
            again[..prefixes].sort_by_key(rank);
            assert!(describe(&again, Host::User).is_ok(), "{} became {}", oracle::hex(&bytes), oracle::hex(&again));
            encoded += 1;
        }
    }
    assert!(encoded > 5_000, "{encoded} encoded");
}

/// Completeness: what is accepted with one addressing form is accepted with all others.
#[test]
fn acceptance_does_not_depend_on_the_addressing_form() {
    // (%ecx), 0x10(%ecx), 0x10101010(%ecx), (%ecx,%edx,2), 0x10(%esp), 0x10101010(%ecx,%edx,8)
    const FORMS: [(u8, &[u8]); 5] = [(0x41, &[]), (0x81, &[]), (0x04, &[0x51]), (0x44, &[0x24]), (0x84, &[0xd1])];
    let judged = |head: &heads::Head, modrm: u8, sib: &[u8]| {
        let mut bytes = head.as_slice().to_vec();
        bytes.push(modrm);
        bytes.extend_from_slice(sib);
        bytes.resize(24, 0x10);
        describe(&bytes, Host::User).ok().filter(|d| d.flow == Flow::Next)?.memory
    };
    let mut windows = 0;
    for head in heads::legacy_heads().iter().chain(&heads::vex_heads()).filter(|head| head.bytes.starts_with(&[0x65, 0x67])) {
        for reg in 0..8 {
            // The head may end in a prefix or escape; then ModRM is an opcode and the base another.
            let simple = judged(head, 0x01 | reg << 3, &[]).is_some_and(|m| m.base.is_some_and(|base| base & 7 == 1));
            windows += u32::from(simple);
            for (modrm, sib) in FORMS {
                assert!(
                    !simple || judged(head, modrm | reg << 3, sib).is_some(),
                    "{} {modrm:02x} /{reg}",
                    oracle::hex(head.as_slice())
                );
            }
        }
    }
    assert!(windows > 10_000, "{windows} heads with a window operand");
}
