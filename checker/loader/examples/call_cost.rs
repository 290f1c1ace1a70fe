//! Prints what an empty call costs, with and without restoring the segment base, with and without a time limit.
//!
//! Usage: call_cost IMAGE ENTRY. The import `nothing` is offered, so that an entry can show what host calls cost.

use cordon_loader::{Image, Imports, LoadOptions, Window};
use std::time::{Duration, Instant};

const CALLS: u32 = 20_000;
const BATCHES: u32 = 400;

fn measure(name: &str, window: &mut Window, entry: cordon_loader::Entry) -> Result<(), cordon_loader::Error> {
    let mut best = f64::MAX;
    for _ in 0..BATCHES {
        let start = Instant::now();
        for i in 0..CALLS {
            window.call_entry(entry, [u64::from(i), 0, 0, 0, 0, 0])?;
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
    }
    println!("{name}: {best:.1} ns");
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(file), Some(entry)) = (args.next(), args.next()) else { return Err("usage: call_cost IMAGE ENTRY".into()) };
    let bytes = std::fs::read(file)?;
    for host_uses_gs in [true, false] {
        let image = Image::from_bytes(&bytes, &LoadOptions { host_uses_gs, seal: false, ..LoadOptions::default() })?;
        let imports = Imports::new().function("nothing", |_, _| 0).missing_as_trap();
        let entry = image.entry(&entry).ok_or("no such entry")?;
        let kept = if host_uses_gs { "restored" } else { "left" };
        for limit in [None, Some(Duration::from_secs(1)), Some(Duration::from_millis(1))] {
            let text = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {limit:?}"));
            let mut window = Window::new(&image, &imports)?;
            window.set_time_limit(limit);
            measure(&format!("window, gs {kept}, {text}"), &mut window, entry)?;
            drop(window);
            if let Ok(mut window) = Window::new_fast(&image, &imports) {
                window.set_time_limit(limit);
                measure(&format!("fast window, gs {kept}, {text}"), &mut window, entry)?;
            }
        }
    }
    Ok(())
}
