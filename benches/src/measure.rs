//! Interleaved timing: every round times every code layout natively, in a window and in the fast window, each in a fresh state.

use crate::report::{Layout, Row};
use crate::stats::median;
use crate::subject::{Program, Subject, Workshop};
use anyhow::{Context, Result};
use cordon_fixtures::script::judge;
use cordon_fixtures::window::WindowRunner;

/// Passes over a script in one run; the first warms caches and is not counted.
const PASSES: u32 = 4;

/// Times of one code layout, nanoseconds per pass.
#[derive(Default)]
struct Times {
    native: Vec<u64>,
    window: Vec<u64>,
    fast: Vec<u64>,
}

/// Measures one program.
///
/// # Errors
/// If it cannot be built, or gives other results in a window than natively: times of wrong code mean nothing.
pub fn row(workshop: &Workshop, program: &Program, rounds: u32) -> Result<Row> {
    let subjects = workshop.subjects(program)?;
    for subject in &subjects {
        verify(program, subject)?;
    }
    let mut times: Vec<Times> = subjects.iter().map(|_| Times::default()).collect();
    let mut fast_to_be_had = true;
    for _ in 0..rounds {
        for (subject, times) in subjects.iter().zip(&mut times) {
            times.native.extend(subject.native.time(&program.calls, PASSES)?.into_iter().skip(1));
            times.window.extend(window(program, subject, false)?);
            match fast_to_be_had.then(|| window(program, subject, true)) {
                Some(Ok(passes)) => times.fast.extend(passes),
                Some(Err(error)) => {
                    eprintln!("no fast window: {error:#}");
                    fast_to_be_had = false;
                }
                None => {}
            }
        }
    }
    let layout = |(subject, times): (&Subject, &Times)| {
        Ok(Layout {
            padding: subject.padding,
            native: median(&times.native).context("no native time")?,
            window: median(&times.window).context("no time in a window")?,
            fast: median(&times.fast).filter(|_| fast_to_be_had),
        })
    };
    let layouts = subjects.iter().zip(&times).map(layout).collect::<Result<_>>()?;
    let stats = subjects.first().context("no code layout")?.stats;
    Ok(Row { name: program.name.into(), layouts, calls: program.calls.len(), text_in: stats.text_in, text_out: stats.text_out })
}

fn window(program: &Program, subject: &Subject, fast: bool) -> Result<impl Iterator<Item = u64> + use<>> {
    let image = if fast { &subject.fast } else { &subject.image };
    let times = WindowRunner::new(image, fast)?.time(&program.calls, PASSES)?;
    Ok(times.into_iter().skip(1))
}

/// Compares every result and buffer of one pass with native.
fn verify(program: &Program, subject: &Subject) -> Result<()> {
    let native = subject.native.run(&program.calls)?;
    let window = WindowRunner::new(&subject.image, false)?.run(&program.calls)?;
    for (call, (native, window)) in program.calls.iter().zip(native.iter().zip(&window)) {
        judge(call, native, window).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}
