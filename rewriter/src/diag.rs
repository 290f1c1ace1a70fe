//! Diagnostics: what could not be done safely and faithfully, and where.

use std::fmt;

/// Where in the input a problem lies. Every part that is known is filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// File name, and `(member)` for an archive member.
    pub object: String,
    /// Section name.
    pub section: Option<String>,
    /// Byte offset in the section.
    pub offset: Option<u64>,
    /// Symbol that contains the place, or that the problem is about.
    pub symbol: Option<String>,
}

/// One refusal. `code` is stable and machine-readable, `message` is for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// Where it is.
    pub place: Place,
    /// Kebab-case reason, e.g. `privileged-instruction`, `undefined-symbol`.
    pub code: &'static str,
    /// Why, and the cure where there is one.
    pub message: String,
}

impl Diagnostic {
    /// A refusal at `place`.
    pub fn new(place: Place, code: &'static str, message: impl Into<String>) -> Self {
        Diagnostic { place, code, message: message.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        if let Some(section) = &self.section {
            write!(f, ":{section}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, "+{offset:#x}")?;
        }
        if let Some(symbol) = &self.symbol {
            write!(f, " ({symbol})")?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.place, self.message, self.code)
    }
}

/// Why an instruction or relocation cannot be carried over, before its place is known: code and message.
pub type Reason = (&'static str, String);

/// The refusals of one run, in input order. Never empty as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals(pub Vec<Diagnostic>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "error: {d}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusals {}
