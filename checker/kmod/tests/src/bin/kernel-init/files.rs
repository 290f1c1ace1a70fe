//! Files that are not what they say, given to the module itself (`tests/interface.rs` has many more for its reader).

use super::{image, text_of, verdict_of};
use anyhow::{Result, ensure};
use cordon_kernel::Device;
use cordon_kernel::abi::verdict;

/// Cut at every length of the headers and some beyond; each byte of the headers and of the note changed. What is accepted is taken back.
pub fn broken(device: &Device) -> Result<String> {
    let good = image("port_filter.sandbox.handler")?;
    let text = text_of(&good)?;
    let name = good.windows(8).position(|w| w == b"Cordon\0\0").unwrap_or(0);
    ensure!(name > 0, "no note");
    let headers = 0..64 + 56 * usize::from(good[56]);
    let (mut accepted, mut refused) = (0, 0);
    let mut count = |verdict| if verdict == verdict::ACCEPTED { accepted += 1 } else { refused += 1 };
    for length in headers.clone().chain((headers.end..good.len()).step_by(997)) {
        let verdict = if length == 0 { continue } else { verdict_of(device, &good[..length])? };
        // Behind text, note and data come sections that the kernel does not look at.
        ensure!(length >= text.end || verdict != verdict::ACCEPTED, "cut to {length}");
        count(verdict);
    }
    for at in headers.chain(name - 12..name + 8 + 200) {
        for value in [good[at] ^ 1, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            count(verdict_of(device, &bad)?);
        }
    }
    let totals = device.totals()?;
    ensure!((totals.handlers, totals.arena_pages, totals.window_pages) == (0, 0, 0), "{totals:?}");
    ensure!(refused > 200 && accepted > 0, "{refused} refused, {accepted} accepted");
    Ok(format!("{refused} refused, {accepted} accepted"))
}
