//! Edited programs of the grammar that the checker accepts run among canaries and harm nothing.
//!
//! The fuzzer's own handlers of faults and of the alarm stay off: scripts/fuzz says so to it.
#![no_main]

mod edits;

use cordon_canary::{Counts, Pace, Place, Random, Subject, run_from, set_up, start_before};
use cordon_checker::sample;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

/// Most bytes of text.
const ROOM: usize = 0x4000;
/// Instructions that a run step by step takes.
const STEPS: u32 = 40;

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new({
        set_up();
        Place::new(&sample::user(), &[], ROOM)
    });
}

fuzz_target!(|data: &[u8]| {
    let Some(program) = edits::program(data).filter(|program| program.text.len() <= ROOM) else { return };
    let Some(scratch) = program.judge() else { return };
    let subject = Subject { text: &program.text, scratch: &scratch, spec: &program.spec };
    let mut random = Random(data.iter().fold(0x5eed, |hash: u64, byte| hash.rotate_left(7) ^ u64::from(*byte)) | 1);
    let from = random.below(program.text.len());
    let pace = if random.one_in(4) { Pace::Steps(STEPS) } else { Pace::Free };
    for at in [0, from] {
        let Some(start) = start_before(&subject, at, 0) else { continue };
        let outcome = PLACE.with_borrow_mut(|place| run_from(place, &subject, start, pace, &mut random, &mut Counts::default()));
        if let Err(wrong) = outcome {
            panic!("{wrong}, from {start:#x}, {:?}: {:02x?}", program.spec.mode, program.text);
        }
    }
});
