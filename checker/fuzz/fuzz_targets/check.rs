//! Arbitrary text under the sample layouts, in all modes: never a panic, and accepted text is what iced-x86 decodes.
#![no_main]

mod agree;

use agree::agree;
use cordon_checker::note::mode_of;
use cordon_checker::policy::Host;
use cordon_checker::{Mode, Policy, check, sample};
use libfuzzer_sys::fuzz_target;

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
    if sample::with_layout(&spec, |layout| check(text, &policy, layout, &mut scratch)).is_ok() {
        agree(text, &scratch, host, mode);
    }
});
