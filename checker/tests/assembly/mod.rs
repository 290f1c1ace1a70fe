//! What the tests of generated programs share: operations become bytes, programs are judged and counted.

use cordon_checker::note::NoteSpec;
use cordon_checker::{Policy, sample};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

/// Encodes operations one after the other: the text, and where each begins and the last ends. `encode` gets an operation, its offset and
/// the offsets of all (none in the first round, when only lengths count).
pub fn assemble<T: Copy>(ops: &[T], encode: fn(T, usize, &[usize]) -> Vec<u8>) -> (Vec<u8>, Vec<usize>) {
    let mut offsets = vec![0];
    for &op in ops {
        offsets.push(offsets[offsets.len() - 1] + encode(op, 0, &[]).len());
    }
    let mut text = Vec::new();
    for &op in ops {
        text.extend(encode(op, text.len(), &offsets));
    }
    (text, offsets)
}

/// `head` and a displacement of 4 bytes to operation `to`; the instruction begins at `at`.
pub fn branch(head: &[u8], to: usize, at: usize, offsets: &[usize]) -> Vec<u8> {
    let target = offsets.get(to).copied().unwrap_or(0) as i64;
    let rel = (target - (at + head.len() + 4) as i64) as i32;
    [head, &rel.to_le_bytes()].concat()
}

/// Whether the checker accepts assembled text in the layout.
pub fn accepts((text, spec): (Vec<u8>, NoteSpec)) -> bool {
    sample::judge(&text, &Policy::USER, &spec).is_ok()
}

/// Cases of one property: 40,000, or 2,000 for each second of `CORDON_TEST_SECONDS`.
pub fn cases() -> u32 {
    let seconds = std::env::var("CORDON_TEST_SECONDS").ok().and_then(|text| text.parse::<u32>().ok());
    seconds.map_or(40_000, |seconds| seconds.saturating_mul(2_000))
}

/// The first values that the strategy gives.
pub fn samples<S: Strategy>(strategy: &S, count: usize) -> Vec<S::Value> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).expect("a program").current()).collect()
}
