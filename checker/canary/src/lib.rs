//! Canary process: runs text that the checker accepted in a process whose memory around the window, the native stack and the text is unmapped
//! or poisoned. At the end of a run control must be where it may be, nothing outside may have changed, and no address or poison may have become
//! visible. Step by step, each instruction must lead to one of its successors, with rsp where the static depth says, and hold what the text's
//! mode promises: exact addresses (match), no instruction that is not paid for (metered). A metered run must end by itself.
//!
//! A run may begin at any instruction: the state that the checker proved there (depth, pushed slots, low registers, credit) is set up, all
//! else is random. So a damaged place in a long text is reached at once.
//!
//! A process has one [`Place`] at a time, in one thread, and is not to be used for anything else: faults, traps and `SIGALRM` are the canary's.

#[path = "../../loader/tests/common/features.rs"]
mod features;
pub mod grammar;
mod machine;
pub mod mutants;
pub mod mutate;
mod place;
#[allow(clippy::should_implement_trait, reason = "an iterator would have no end to ask for")]
#[path = "../../loader/tests/common/random.rs"]
mod random;
#[path = "../../loader/tests/common/registers.rs"]
mod registers;
mod run;
#[path = "../../loader/tests/common/signals.rs"]
mod signals;
mod watch;

pub use features::lacking;
pub use machine::{Outcome, Pace, set_up};
pub use place::Place;
pub use random::Random;
pub use run::{Counts, Program, Subject, judge, modes, run_from, start_before};
