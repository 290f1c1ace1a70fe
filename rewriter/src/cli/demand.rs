//! What an image must prove before it is accepted or run.

use super::rewrite::{Flavour, Protected};
use cordon_checker::{Mode, Protect};

/// The least that the image must prove.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Demand {
    /// Refuse an image that is not of this flavour; match is also sandbox
    #[arg(long, value_enum, default_value_t, value_name = "FLAVOUR")]
    pub mode: Flavour,
    /// Refuse an image that does not count its instructions
    #[arg(long)]
    pub metered: bool,
    /// Which accesses must be protected: `stores` accepts an image that may read all of this process's memory
    #[arg(long, value_enum, default_value_t, value_name = "WHICH")]
    pub protect: Protected,
}

impl Demand {
    /// The policy's form.
    pub fn mode(self) -> Mode {
        Mode {
            matched: self.mode == Flavour::Match,
            metered: self.metered,
            protect: if self.protect == Protected::Stores { Protect::Stores } else { Protect::All },
        }
    }
}

/// A mode in words: what it proves beyond the sandbox.
pub fn words(mode: Mode) -> String {
    let flavour = if mode.matched { "match" } else { "sandbox" };
    let metered = if mode.metered { ", metered" } else { "" };
    let protect = if mode.protect == Protect::Stores { ", only stores protected" } else { "" };
    format!("{flavour}{metered}{protect}")
}
