//! What accepted text must be to somebody else: each instruction what iced-x86 decodes.

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

use cordon_checker::policy::Host;
use cordon_checker::{Flow, Mode, describe_in, starts};
use oracle::{Oracle, Tally};

/// Compares all instructions of accepted text but fused units, which are two or three instructions to everyone else.
pub fn agree(text: &[u8], scratch: &[u64], host: Host, mode: Mode) {
    let (mut oracle, mut tally) = (Oracle::new(host, mode), Tally::default());
    for at in starts(scratch, text.len()) {
        let described = describe_in(&text[at..], host, mode).expect("accepted");
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
}
