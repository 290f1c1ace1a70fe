//! Hostile bytes: random ones never panic, and whatever mutant of accepted text is accepted still agrees with iced-x86.

mod oracle;

use cordon_checker::policy::Host;
use cordon_checker::{Flow, Policy, check, describe, sample, starts};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use oracle::{Oracle, Tally};
use proptest::prelude::*;

/// Accepted cases of the golden corpus, joined: each ends with an end of flow, so the whole is accepted.
fn accepted_text() -> Vec<u8> {
    let mut text = Vec::new();
    for file in [include_str!("golden/instructions.txt"), include_str!("golden/memory.txt"), include_str!("golden/encoding.txt")]
    {
        for line in file.lines().filter(|line| line.starts_with("accept")) {
            let parts: Vec<&str> = line.split('|').collect();
            text.extend(parts[1].split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("hex")));
        }
    }
    // push %rbx; and $0x78,%eax; call *%gs:0x10000(%rax); jz 1f; call import; 1: pop %rbx; jmp *%gs:0x10000(%rax)
    text.extend([0x53, 0x83, 0xe0, 0x78, 0x65, 0xff, 0x90, 0, 0, 1, 0, 0x74, 8, 0x65, 0xff, 0x14, 0x25, 8, 0, 1, 0, 0x5b]);
    text.extend([0x83, 0xe0, 0x78, 0x65, 0xff, 0xa0, 0, 0, 1, 0]);
    text
}

/// Judges `text`; if it is accepted, every instruction must be what iced-x86 sees when it decodes from the text's start.
fn agrees(text: &[u8]) -> Result<bool, TestCaseError> {
    let mut scratch = vec![u64::MAX; text.len()];
    if sample::with_layout(&sample::user(), |layout| check(text, &Policy::USER, layout, &mut scratch)).is_err() {
        return Ok(false);
    }
    let ours: Vec<usize> = starts(&scratch, text.len()).collect();
    let (mut oracle, mut tally) = (Oracle::new(Host::User), Tally::default());
    let mut theirs = Decoder::new(64, text, DecoderOptions::NONE);
    for &at in &ours {
        while theirs.position() < at {
            // Padding.
            prop_assert_eq!(theirs.decode().mnemonic(), Mnemonic::Nop);
        }
        prop_assert_eq!(theirs.position(), at);
        let described = describe(&text[at..], Host::User).expect("accepted");
        // A table unit is two instructions to everyone else.
        let unit = matches!(described.flow, Flow::TableCall { mask, .. } | Flow::TableJump { mask, .. } if mask != 0);
        if !unit {
            let mut one = Tally::default();
            oracle.compare(&text[at..], &mut one);
            tally.add(one);
        }
        while theirs.position() < at + described.len {
            prop_assert!(!theirs.decode().is_invalid());
        }
        prop_assert_eq!(theirs.position(), at + described.len);
    }
    prop_assert_eq!(tally.differences, 0, "{:?}", tally.examples);
    Ok(true)
}

#[test]
fn the_unmutated_text_is_accepted() {
    assert!(agrees(&accepted_text()).expect("agrees"));
}

#[test]
fn single_bit_flips_are_refused_or_agree() {
    let text = accepted_text();
    let mut accepted = 0;
    for bit in 0..text.len() * 8 {
        let mut mutant = text.clone();
        mutant[bit / 8] ^= 1 << (bit % 8);
        accepted += usize::from(agrees(&mutant).expect("agrees"));
    }
    assert!(accepted > 0, "the comparison never ran");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = agrees(&text)?;
    }

    #[test]
    fn shuffled_and_cut_text_is_refused_or_agrees(from in 0_usize..1000, len in 0_usize..40, to in 0_usize..1000) {
        let mut text = accepted_text();
        let from = from % text.len();
        let cut: Vec<u8> = text.drain(from..(from + len).min(text.len())).collect();
        let to = to % (text.len() + 1);
        text.splice(to..to, cut);
        let _ = agrees(&text)?;
    }

    #[test]
    fn likely_bytes_agree_with_iced(bytes in prop::collection::vec(likely(), 1..24)) {
        let (mut oracle, mut tally) = (Oracle::new(Host::User), Tally::default());
        oracle.compare(&bytes, &mut tally);
        prop_assert_eq!(tally.differences, 0, "{:?}", tally.examples);
    }
}

/// Bytes with prefixes and escapes in front more often than chance.
fn likely() -> impl Strategy<Value = u8> {
    prop_oneof![
        prop::sample::select(
            &[0x65, 0x67, 0x66, 0xf0, 0xf2, 0xf3, 0x48, 0x41, 0x0f, 0x38, 0x3a, 0xc4, 0xc5, 0x04, 0x24, 0x25][..]
        ),
        any::<u8>()
    ]
}
