//! Phase 7b: the checks that the modes ask for, put into the planned code of one body at a time (DESIGN §7, §8).
//!
//! The plan's bytes are taken apart into items ([`code`]), liveness is refined to them ([`live`]), checks are inserted, and the items become
//! pieces again, with a stub for every check placed where no control passes.

pub mod code;
pub mod live;

use crate::body::Key;
use crate::diag::Diagnostic;
use crate::liveness::Liveness;
use crate::plan::{Env, Plan};
use code::Code;
use cordon_checker::Mode;
use std::collections::BTreeSet;

/// Instruments the plan of body `index` for `mode`; the sandbox alone needs nothing.
///
/// # Errors
/// Bugs of the planner only.
pub fn instrument(env: Env<'_>, index: usize, mut plan: Plan, live: &Liveness, mode: Mode) -> Result<Plan, Vec<Diagnostic>> {
    if !mode.matched && !mode.metered {
        return Ok(plan);
    }
    let code = Code::read(&plan, entered(env, index)).map_err(|bytes| vec![internal(env, index, &bytes)])?;
    let before = live::live(&code, live);
    debug_assert_eq!(before.len(), code.items.len());
    code.write(&mut plan);
    Ok(plan)
}

/// The nodes of a body that calls or tables lead to.
fn entered(env: Env<'_>, index: usize) -> BTreeSet<u32> {
    let body = &env.chosen.bodies[index];
    let entry = body.node(Key { context: crate::body::Context::default(), at: body.entry });
    let mut found = BTreeSet::from([entry]);
    for group in &env.space.groups[index] {
        for context in group.bases.keys() {
            found.extend(group.targets.iter().filter_map(|at| body.index.get(&Key { context: *context, at: *at })));
        }
    }
    found
}

fn internal(env: Env<'_>, index: usize, bytes: &[u8]) -> Diagnostic {
    let body = &env.chosen.bodies[index];
    let place = env.program.place(body.entry.section, body.entry.offset);
    Diagnostic::new(place, "internal", format!("planned bytes that are no instruction: {bytes:02x?}"))
}
