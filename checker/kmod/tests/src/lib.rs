//! What the host prepares and the guest replays: images and, line by line, what each call of a fixture's script must come to.

use cordon_fixtures::script::{FaultKind, Outcome};

/// What a call in the kernel must come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// As in user mode: the value, and the buffer's digest.
    Value(i64, u64),
    /// As in user mode: the kind, and the function if user mode named one.
    Fault(FaultKind, Option<String>),
    /// Stopped by the time limit.
    Stopped,
    /// Anything: the handler only must not harm anybody.
    Any,
    /// Not made: the entry is not in the image.
    Skipped,
}

/// Names of the fault kinds in the files.
const KINDS: [(FaultKind, &str); 3] =
    [(FaultKind::Access, "access"), (FaultKind::Divide, "divide"), (FaultKind::Illegal, "illegal")];

impl Expected {
    /// The line of a file.
    #[must_use]
    pub fn to_line(&self) -> String {
        match self {
            Expected::Value(result, memory) => format!("value {result} {memory}"),
            Expected::Fault(kind, function) => {
                let name = KINDS.iter().find(|(k, _)| k == kind).map_or("", |(_, name)| name);
                format!("fault {name} {}", function.as_deref().unwrap_or("?"))
            }
            Expected::Stopped => "stopped".into(),
            Expected::Any => "any".into(),
            Expected::Skipped => "skipped".into(),
        }
    }

    /// The same back; `None` if it is no line of ours.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Expected> {
        let mut words = line.split(' ');
        Some(match words.next()? {
            "value" => Expected::Value(words.next()?.parse().ok()?, words.next()?.parse().ok()?),
            "fault" => {
                let name = words.next()?;
                let kind = KINDS.iter().find(|(_, known)| *known == name)?.0;
                Expected::Fault(kind, words.next().filter(|name| *name != "?").map(str::to_owned))
            }
            "stopped" => Expected::Stopped,
            "any" => Expected::Any,
            "skipped" => Expected::Skipped,
            _ => return None,
        })
    }

    /// Whether the kernel's outcome is what is expected.
    #[must_use]
    pub fn holds(&self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (Expected::Value(result, memory), Outcome::Value { result: r, memory: m }) => result == r && memory == m,
            (Expected::Fault(kind, function), Outcome::Fault { kind: k, function: f }) => {
                kind == k && function.as_ref().is_none_or(|name| Some(name) == f.as_ref())
            }
            (Expected::Stopped, Outcome::Stopped) | (Expected::Any, _) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back() {
        for expected in [
            Expected::Value(-3, u64::MAX),
            Expected::Fault(FaultKind::Divide, Some("f".into())),
            Expected::Fault(FaultKind::Access, None),
            Expected::Stopped,
            Expected::Any,
            Expected::Skipped,
        ] {
            assert_eq!(Expected::from_line(&expected.to_line()), Some(expected));
        }
        assert_eq!(Expected::from_line("value 1"), None);
    }
}
