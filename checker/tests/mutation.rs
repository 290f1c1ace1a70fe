//! Hostile bytes: random ones never panic, and whatever mutant of accepted text is accepted still agrees with iced-x86.

mod oracle;

use cordon_checker::note::NoteSpec;
use cordon_checker::policy::Host;
use cordon_checker::{Flow, Mode, Policy, Protect, check, describe_in, sample, starts};
use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use oracle::{Oracle, Tally};
use proptest::prelude::*;

const SANDBOX: Mode = Mode { matched: false, metered: false, protect: Protect::All };
const MODES: [Mode; 3] =
    [Mode { matched: true, ..SANDBOX }, Mode { metered: true, ..SANDBOX }, Mode { protect: Protect::Stores, ..SANDBOX }];

/// Accepted cases of a file of the golden corpus that need no options.
fn accepted_cases(file: &str) -> Vec<u8> {
    let cases = file.lines().filter(|line| line.starts_with("accept") && line.split('|').count() == 3);
    let bytes = cases.flat_map(|line| line.split('|').nth(1).unwrap_or_default().split_whitespace());
    bytes.map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect()
}

/// Accepted text of each mode.
fn text_of(mode: Mode) -> Vec<u8> {
    accepted_cases(match mode {
        Mode { matched: true, .. } => include_str!("golden/match.txt"),
        Mode { metered: true, .. } => include_str!("golden/metered.txt"),
        Mode { protect: Protect::Stores, .. } => include_str!("golden/stores.txt"),
        _ => return accepted_text(),
    })
}

/// Accepted cases of the golden corpus, joined: each ends with an end of flow, so the whole is accepted.
fn accepted_text() -> Vec<u8> {
    let mut text = Vec::new();
    for file in [include_str!("golden/instructions.txt"), include_str!("golden/memory.txt"), include_str!("golden/encoding.txt")]
    {
        text.extend(accepted_cases(file));
    }
    // push %rbx; and $0x78,%eax; call *%gs:0x10000(%rax); jz 1f; call import; 1: pop %rbx; jmp *%gs:0x10000(%rax)
    text.extend([0x53, 0x83, 0xe0, 0x78, 0x65, 0xff, 0x90, 0, 0, 1, 0, 0x74, 8, 0x65, 0xff, 0x14, 0x25, 8, 0, 1, 0, 0x5b]);
    text.extend([0x83, 0xe0, 0x78, 0x65, 0xff, 0xa0, 0, 0, 1, 0]);
    text
}

/// Judges `text`; if it is accepted, every instruction must be what iced-x86 sees when it decodes from the text's start.
fn agrees(text: &[u8], mode: Mode) -> Result<bool, TestCaseError> {
    let mut scratch = vec![u64::MAX; text.len()];
    let (spec, policy) = (NoteSpec { mode, ..sample::user() }, Policy { mode, ..Policy::USER });
    if sample::with_layout(&spec, |layout| check(text, &policy, layout, &mut scratch)).is_err() {
        return Ok(false);
    }
    let ours: Vec<usize> = starts(&scratch, text.len()).collect();
    let (mut oracle, mut tally) = (Oracle::new(Host::User, mode), Tally::default());
    let mut factory = InstructionInfoFactory::new();
    let mut theirs = Decoder::new(64, text, DecoderOptions::NONE);
    for &at in &ours {
        while theirs.position() < at {
            // Padding.
            prop_assert_eq!(theirs.decode().mnemonic(), Mnemonic::Nop);
        }
        prop_assert_eq!(theirs.position(), at);
        let described = describe_in(&text[at..], Host::User, mode).expect("accepted");
        // A unit is two instructions to everyone else.
        let table = matches!(described.flow, Flow::TableCall { mask, .. } | Flow::TableJump { mask, .. } if mask != 0);
        let meter = matches!(described.flow, Flow::Meter { .. });
        let unit = table || meter || matches!(described.flow, Flow::Check { .. });
        if !unit {
            let mut one = Tally::default();
            oracle.compare(&text[at..], &mut one);
            tally.add(one);
        }
        while theirs.position() < at + described.len {
            let instruction = theirs.decode();
            prop_assert!(!instruction.is_invalid());
            let writes = |access| !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            let used = factory.info(&instruction).used_registers();
            let counts = used.iter().any(|used| used.register().full_register() == Register::R14 && writes(used.access()));
            prop_assert!(!mode.metered || meter || !counts, "{instruction} writes the count");
        }
        prop_assert_eq!(theirs.position(), at + described.len);
    }
    prop_assert_eq!(tally.differences, 0, "{:?}", tally.examples);
    Ok(true)
}

#[test]
fn the_unmutated_text_is_accepted() {
    for mode in MODES.into_iter().chain([SANDBOX]) {
        assert!(agrees(&text_of(mode), mode).expect("agrees"), "{mode:?}");
    }
}

#[test]
fn single_bit_flips_are_refused_or_agree() {
    for mode in MODES.into_iter().chain([SANDBOX]) {
        let text = text_of(mode);
        let mut accepted = 0;
        for bit in 0..text.len() * 8 {
            let mut mutant = text.clone();
            mutant[bit / 8] ^= 1 << (bit % 8);
            accepted += usize::from(agrees(&mutant, mode).expect("agrees"));
        }
        assert!(accepted > 0, "the comparison never ran");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
        for mode in MODES.into_iter().chain([SANDBOX]) {
            let _ = agrees(&text, mode)?;
        }
    }

    #[test]
    fn shuffled_and_cut_text_is_refused_or_agrees(
        mode in 0_usize..4, from in 0_usize..2000, len in 0_usize..40, to in 0_usize..2000,
    ) {
        let mode = MODES.get(mode).copied().unwrap_or(SANDBOX);
        let mut text = text_of(mode);
        let from = from % text.len();
        let cut: Vec<u8> = text.drain(from..(from + len).min(text.len())).collect();
        let to = to % (text.len() + 1);
        text.splice(to..to, cut);
        let _ = agrees(&text, mode)?;
    }

    #[test]
    fn likely_bytes_agree_with_iced(bytes in prop::collection::vec(likely(), 1..24)) {
        let (mut oracle, mut tally) = (Oracle::new(Host::User, Mode::default()), Tally::default());
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
