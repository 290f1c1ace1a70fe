//! Handlers that are wrong or mean harm: each is stopped with a report or confined to its window, and the host goes on.

use super::build::Workshop;
use super::{Console, Wrong, broken};
use crate::cli::outcome::Failure;
use cordon_fixtures::catalog;
use cordon_fixtures::script::{Call, Expect, Outcome, judge};
use cordon_fixtures::window::{Answer, WindowRunner};

/// What was shown.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub stopped: usize,
    pub confined: usize,
    pub wrong: Wrong,
}

/// Runs the faulty fixtures, then an attack on this very process.
pub fn show(workshop: &Workshop, console: Console) -> Result<Shown, Failure> {
    let mut shown = Shown::default();
    console.line(format_args!("\nWrong handlers"));
    script("faults", workshop, console, true, &mut shown)?;
    console.line(format_args!("\nA handler that writes where the sender says"));
    script("remote", workshop, console, false, &mut shown)?;
    attack(workshop, console, &mut shown)?;
    console.line(format_args!(
        "  {} calls stopped, {} returned without touching anything outside their window",
        shown.stopped, shown.confined
    ));
    Ok(shown)
}

/// Runs a fixture's own script and judges every call; the calls that must fault or stay confined are counted.
fn script(name: &str, workshop: &Workshop, console: Console, verbose: bool, shown: &mut Shown) -> Result<(), Failure> {
    let built = workshop.build(name)?;
    let calls = catalog::find(name).map_or_else(Vec::new, |f| (f.script)(1));
    let native = built.native.run(&calls).map_err(broken)?;
    let mut runner = WindowRunner::new(&built.image, false).map_err(broken)?;
    for (call, native) in calls.iter().zip(&native) {
        let Answer { outcome, fault, .. } = runner.call(call).map_err(broken)?;
        shown.wrong.extend(judge(call, native, &outcome).err());
        match (&call.expect, &outcome) {
            (Expect::Same | Expect::Known(_) | Expect::Endless, _) => continue,
            (_, Outcome::Fault { .. }) => shown.stopped += 1,
            _ => shown.confined += 1,
        }
        if verbose {
            let what = fault.map_or_else(|| "returned, confined to its window".into(), |f| f.to_string());
            console.line(format_args!("  {:<22} {what}", call.entry));
        }
    }
    Ok(())
}

/// Tells `remote_write` to overwrite memory of this process.
fn attack(workshop: &Workshop, console: Console, shown: &mut Shown) -> Result<(), Failure> {
    const PATTERN: u8 = 0x5a;
    let secret = vec![PATTERN; 4096];
    let on_stack = [PATTERN; 64];
    let built = workshop.build("remote")?;
    let mut runner = WindowRunner::new(&built.image, false).map_err(broken)?;
    for (what, address) in
        [("heap", secret.as_ptr() as u64), ("stack", on_stack.as_ptr() as u64), ("code", show as *const () as u64)]
    {
        // struct am_header: operation (0: absolute address), length, address; then the data.
        let mut message = [0u32.to_le_bytes(), 16u32.to_le_bytes()].concat();
        message.extend(address.to_le_bytes());
        message.extend([0xee; 16]);
        let Answer { outcome, fault, .. } =
            runner.call(&Call::new("remote_write").payload(message).expect(Expect::Confined)).map_err(broken)?;
        match outcome {
            Outcome::Fault { .. } => shown.stopped += 1,
            _ => shown.confined += 1,
        }
        let result = fault.map_or_else(|| "wrote into its own window instead".into(), |f| format!("stopped: {f}"));
        console.line(format_args!("  told to overwrite the host's {what:<6} {result}"));
    }
    // The compiler must not assume that nothing could have written there.
    let intact = |bytes: &[u8]| std::hint::black_box(bytes).iter().all(|&b| b == PATTERN);
    if !intact(&secret) || !intact(&on_stack) {
        shown.wrong.push("remote_write reached memory of the host".into());
    }
    Ok(())
}
