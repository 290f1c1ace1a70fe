//! Edited programs of the grammar, in all modes: never a panic, and what is accepted is what iced-x86 decodes.
#![no_main]

mod agree;
mod edits;

use cordon_checker::policy::Host;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(program) = edits::program(data) else { return };
    if let Some(scratch) = program.judge() {
        agree::agree(&program.text, &scratch, Host::User, program.spec.mode);
    }
});
