//! A slice of the exhaustive comparison with iced-x86 (`examples/exhaustive.rs` runs all of it).

#[path = "oracle/heads.rs"]
mod heads;
mod oracle;

use cordon_checker::policy::Host;
use oracle::{Oracle, Tally};

fn slice(heads: &[heads::Head], step: usize, fill: u8) -> Tally {
    let mut oracle = Oracle::new(Host::User);
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
    let tally = slice(&heads::legacy_heads(), 139, 0x10);
    assert!(tally.accepted > 100_000, "{} accepted", tally.accepted);
    assert_eq!(tally.differences, 0, "{:#?}", tally.examples);
}

#[test]
fn vex_encodings_agree_with_iced() {
    let tally = slice(&heads::vex_heads(), 1009, 0x10);
    assert!(tally.accepted > 100_000, "{} accepted", tally.accepted);
    assert_eq!(tally.differences, 0, "{:#?}", tally.examples);
}
