//! Arbitrary text under the sample layouts, in all modes: never a panic, and accepted text is what iced-x86 decodes.
#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

use cordon_checker::policy::Host;
use cordon_checker::{Flow, Mode, Policy, check, describe_in, note::mode_of, sample, starts};
use libfuzzer_sys::fuzz_target;
use oracle::{Oracle, Tally};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, text)) = data.split_first() else { return };
    let (host, mut policy, mut spec) = match choice & 1 {
        0 => (Host::User, Policy::USER, sample::user()),
        _ => (Host::Kernel, Policy::KERNEL, sample::kernel()),
    };
    // Bits 1 to 3 are those of the note's modes.
    let mode: Mode = mode_of(u32::from(choice));
    (policy.mode, spec.mode) = (mode, mode);
    let mut scratch = vec![u64::MAX; text.len()];
    if sample::with_layout(&spec, |layout| check(text, &policy, layout, &mut scratch)).is_err() {
        return;
    }
    let (mut oracle, mut tally) = (Oracle::new(host, mode), Tally::default());
    for at in starts(&scratch, text.len()) {
        let described = describe_in(&text[at..], host, mode).expect("accepted");
        // A fused unit is two or three instructions to everyone else.
        let unit = matches!(described.flow, Flow::TableCall { mask, .. } | Flow::TableJump { mask, .. } if mask != 0)
            || matches!(described.flow, Flow::Conditional(_) if described.len > 6)
            || matches!(described.flow, Flow::Check { .. } | Flow::Meter { .. });
        if !unit {
            let mut one = Tally::default();
            oracle.compare(&text[at..], &mut one);
            tally.add(one);
        }
    }
    assert_eq!(tally.differences, 0, "{} tried, {} accepted: {:#?}", tally.tried, tally.accepted, tally.examples);
});
