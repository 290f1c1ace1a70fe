//! What a command answers: a report, or a failure made of problems. Text and JSON carry the same fields.

use super::Format;
use cordon_rewriter::diag::{Diagnostic, Place, Refusals};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

/// Problems that a text shows; a wrong build flag can make thousands of the same.
const MOST_SHOWN: usize = 50;

/// The exit codes of every subcommand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Written, accepted, finished.
    Done = 0,
    /// Refused by the rewriter or rejected by the checker.
    Refused = 1,
    /// Wrong arguments or a file that cannot be read or written.
    Usage = 2,
    /// A bug of cordon itself.
    Internal = 3,
    /// The handler was stopped.
    Stopped = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// The answer of a command that succeeded.
#[derive(Debug, Default)]
pub struct Report {
    /// For people, each line ended.
    pub text: String,
    /// One object.
    pub json: Value,
}

impl Report {
    /// Prints the report on standard output.
    pub fn print(&self, format: Format) -> Exit {
        let text = match format {
            Format::Text => printable(&self.text),
            Format::Json => format!("{}\n", self.json),
        };
        emit(&mut io::stdout().lock(), &text, Exit::Done)
    }
}

/// One thing that went wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Stable, kebab-case.
    pub code: String,
    /// For people.
    pub message: String,
    /// In which file, section and so on, if it has such a place.
    pub place: Option<Place>,
    /// Further fields in the order of printing; strings may have several lines.
    pub details: Map<String, Value>,
    /// The whole text for people, where it is more than the fields one by one.
    pub text: Option<String>,
}

impl Problem {
    /// A problem without a place or details.
    pub fn new(code: &str, message: impl Into<String>) -> Problem {
        Problem { code: code.into(), message: message.into(), place: None, details: Map::new(), text: None }
    }

    /// A problem with the file `path`.
    pub fn with_file(path: &Path, code: &str, message: impl Into<String>) -> Problem {
        let place = Place { object: path.display().to_string(), ..Place::default() };
        Problem { place: Some(place), ..Problem::new(code, message) }
    }

    /// The same problem with one more field.
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.details.insert(name.into(), value.into());
        self
    }

    fn text(&self) -> String {
        if let Some(text) = &self.text {
            return text.clone();
        }
        let mut text = String::from("error: ");
        if let Some(place) = &self.place {
            let _ = write!(text, "{place}: ");
        }
        let _ = writeln!(text, "{} [{}]", self.message, self.code);
        for (name, value) in &self.details {
            match value {
                Value::String(s) if s.contains('\n') => {
                    let _ = writeln!(text, "  {name}:");
                    s.lines().for_each(|line| {
                        let _ = writeln!(text, "    {line}");
                    });
                }
                Value::String(s) => {
                    let _ = writeln!(text, "  {name}: {s}");
                }
                // Places are easier to find in other tools' output in hexadecimal.
                Value::Number(n) if name.ends_with("offset") || name.ends_with("address") => {
                    let _ = writeln!(text, "  {name}: {:#x}", n.as_u64().unwrap_or_default());
                }
                other => {
                    let _ = writeln!(text, "  {name}: {other}");
                }
            }
        }
        text
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("code".into(), json!(self.code));
        object.insert("message".into(), json!(self.message));
        if let Some(place) = &self.place {
            object.insert("object".into(), json!(place.object));
            object.extend(place.section.iter().map(|s| ("section".into(), json!(s))));
            object.extend(place.offset.iter().map(|o| ("offset".into(), json!(o))));
            object.extend(place.symbol.iter().map(|s| ("symbol".into(), json!(s))));
        }
        object.extend(self.details.clone());
        Value::Object(object)
    }
}

impl From<Diagnostic> for Problem {
    fn from(d: Diagnostic) -> Problem {
        Problem { place: Some(d.place), ..Problem::new(d.code, d.message) }
    }
}

/// The answer of a command that did not succeed: at least one problem.
#[derive(Clone, Debug)]
pub struct Failure {
    pub exit: Exit,
    pub problems: Vec<Problem>,
    /// Standard output is a whole program's, so that JSON too goes to standard error.
    pub aside: bool,
}

impl Failure {
    /// A failure with one problem.
    pub fn one(exit: Exit, problem: Problem) -> Failure {
        Failure { exit, problems: vec![problem], aside: false }
    }

    /// Wrong arguments.
    pub fn usage(code: &str, message: impl Into<String>) -> Failure {
        Failure::one(Exit::Usage, Problem::new(code, message))
    }

    /// A file that could not be read or written.
    pub fn file(path: &Path, what: &str, error: &io::Error) -> Failure {
        Failure::one(Exit::Usage, Problem::with_file(path, "file", format!("cannot {what}: {error}")))
    }

    /// Prints the problems: text on standard error (the first [`MOST_SHOWN`] of them), JSON on standard output (but see `aside`).
    pub fn print(&self, format: Format) -> Exit {
        match format {
            Format::Text => emit(&mut io::stderr().lock(), &printable(&self.text()), self.exit),
            Format::Json => {
                let errors: Vec<Value> = self.problems.iter().map(Problem::json).collect();
                let object = json!({ "error": errors.first(), "errors": errors });
                let stream: &mut dyn io::Write = if self.aside { &mut io::stderr().lock() } else { &mut io::stdout().lock() };
                emit(stream, &format!("{object}\n"), self.exit)
            }
        }
    }

    fn text(&self) -> String {
        let mut text: String = self.problems.iter().take(MOST_SHOWN).map(Problem::text).collect();
        let rest = self.problems.len().saturating_sub(MOST_SHOWN);
        if rest > 0 {
            let _ = writeln!(text, "error: and {rest} more; --format json shows all");
        }
        text
    }
}

impl From<Refusals> for Failure {
    fn from(refusals: Refusals) -> Failure {
        if refusals.0.is_empty() {
            return Failure::one(
                Exit::Internal,
                Problem::new("internal", "the rewriter refused without a reason; please report it"),
            );
        }
        // What only a bug of the rewriter can say is not the input's fault.
        let internal = refusals.0.iter().any(|refusal| refusal.code == "internal");
        let exit = if internal { Exit::Internal } else { Exit::Refused };
        Failure { exit, problems: refusals.0.into_iter().map(Problem::from).collect(), aside: false }
    }
}

/// A number of things, in words.
pub fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Writes all of `text`; gives the exit code, which is `exit` if that could be done.
fn emit(stream: &mut dyn io::Write, text: &str, exit: Exit) -> Exit {
    let written = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
    written.map_or_else(|why| unwritten(&why, exit), |()| exit)
}

/// The exit code of a command that wanted to end with `exit` and could not print what it had to say. A reader that went away
/// (`cordon … | head`) has seen enough and changes nothing; an answer that is lost (a full disk) must not look like success.
pub fn unwritten(why: &io::Error, exit: Exit) -> Exit {
    if why.kind() == io::ErrorKind::BrokenPipe {
        return exit;
    }
    // Nobody may hear this either.
    let _ = writeln!(io::stderr(), "error: standard output: cannot write: {why} [file]");
    if exit == Exit::Done { Exit::Usage } else { exit }
}

/// `text` without anything but lines and tabs that a terminal would act on: names in objects and images are their makers'.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}
