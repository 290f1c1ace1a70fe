//! A canary that dies of nothing is no canary: text that does harm, passed off as accepted, is found out.

use cordon_canary::{Counts, Outcome, Pace, Place, Random, Subject, run_from, set_up};
use cordon_checker::note::NoteSpec;
use cordon_checker::{Mode, Protect, sample};
use std::process::Command;

/// Set in the process that runs text.
const CHILD: &str = "CORDON_CANARY_CHILD";
const SANDBOX: Mode = Mode { matched: false, metered: false, protect: Protect::All };

/// What the checker would have to say: an instruction starts at each offset, with so many units of depth.
fn forged(len: usize, starts: &[(usize, u64)]) -> Vec<u64> {
    let mut scratch = vec![0; len];
    starts.iter().for_each(|&(at, units)| scratch[at] = 1 << 63 | units << 16);
    scratch
}

/// Harm, in hexadecimal, its starts and depths, and the mode.
type Text = (&'static str, &'static [(usize, u64)], Mode);
/// What is said of it by a free run and step by step; empty: nothing need be.
type Case = (Text, &'static str, &'static str);

/// Said step by step of what the checker does not know.
const UNKNOWN: &str = "no instruction start";
const METERED: Mode = Mode { metered: true, ..SANDBOX };
const MATCH: Mode = Mode { matched: true, ..SANDBOX };

const CASES: [Case; 12] = [
    // mov %rsp,%rax; ret
    (("48 89 e0 c3", &[(0, 0), (3, 0)], SANDBOX), "in a register", UNKNOWN),
    // movq %rsp,%xmm0; ret
    (("66 48 0f 6e c4 c3", &[(0, 0), (5, 0)], SANDBOX), "in a register", UNKNOWN),
    // mov %rsp,%gs:0x12000; ret
    (("65 48 89 24 25 00 20 01 00 c3", &[(0, 0), (9, 0)], SANDBOX), "in memory", UNKNOWN),
    // mov -16(%rsp),%rax; ret: what the host left below
    (("48 8b 44 24 f0 c3", &[(0, 0), (5, 0)], SANDBOX), "in a register", UNKNOWN),
    // mov %eax,8(%rsp); ret: the host's frame
    (("89 44 24 08 c3", &[(0, 0), (4, 0)], SANDBOX), "changed the host's stack", UNKNOWN),
    // mov (%rax),%eax; ret: not in the window
    (("8b 00 c3", &[(0, 0), (2, 0)], SANDBOX), "signal 11", UNKNOWN),
    // sub $8,%rsp; ret
    (("48 83 ec 08 c3", &[(0, 0), (4, 1)], SANDBOX), "signal 11", "signal 11"),
    // push %rax; nop as if nothing had been pushed; pop %rax; ret
    (("50 90 58 c3", &[(0, 0), (1, 0), (2, 1), (3, 0)], SANDBOX), "", "rsp is not where"),
    // jmp into the next instruction
    (("eb 01 b8 90 90 90 90 c3", &[(0, 0), (2, 0), (7, 0)], SANDBOX), "", UNKNOWN),
    // jmp out of the text
    (("e9 00 10 00 00", &[(0, 0)], SANDBOX), "signal 11", UNKNOWN),
    // jmp to itself, unpaid
    (("eb fe", &[(0, 0)], METERED), "without paying", "than are paid for"),
    // mov %gs:(%eax),%eax; jmp back: unchecked
    (("65 67 8b 00 eb fa", &[(0, 0), (4, 0)], MATCH), "", "not exact"),
];

/// Whether one of some runs finds the text out and says so.
fn is_found(place: &mut Place, text: Text, says: &str, pace: Pace, random: &mut Random) -> Result<(), String> {
    let (text, starts, mode) = text;
    let bytes: Vec<u8> = text.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    let (scratch, spec) = (forged(bytes.len(), starts), NoteSpec { mode, ..sample::user() });
    let subject = Subject { text: &bytes, scratch: &scratch, spec: &spec };
    let mut said = Vec::new();
    for _ in 0..40 {
        match run_from(place, &subject, 0, pace, random, &mut Counts::default()) {
            Err(what) if what.contains(says) => return Ok(()),
            other => said.push(format!("{other:?}")),
        }
    }
    said.dedup();
    Err(format!("{text}, {pace:?}: {said:?}"))
}

#[test]
fn harm_is_found() {
    if std::env::var_os(CHILD).is_none() {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"));
        let status = child.args(["--exact", "harm_is_found", "--nocapture"]).env(CHILD, "1").status().expect("starts");
        assert!(status.success(), "{status}");
        return;
    }
    let mut place = Place::new(&sample::user(), &[], 0x1000);
    set_up();
    let mut random = Random(0x5eed_cafe_f00d_0001);
    let mut missed = Vec::new();
    for (text, free, steps) in CASES {
        for (says, pace) in [(free, Pace::Free), (steps, Pace::Steps(64))] {
            if !says.is_empty() {
                missed.extend(is_found(&mut place, text, says, pace, &mut random).err());
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
    // And what is harmless is left alone: xor %eax,%eax; ret.
    let (text, scratch) = ([0x31, 0xc0, 0xc3], forged(3, &[(0, 0), (2, 0)]));
    let subject = Subject { text: &text, scratch: &scratch, spec: &sample::user() };
    for pace in [Pace::Free, Pace::Steps(64)] {
        let outcome = run_from(&mut place, &subject, 0, pace, &mut random, &mut Counts::default());
        assert_eq!(outcome, Ok(Outcome::Returned));
    }
}
