//! `cordon run` of a whole program: its arguments, its folders, its exit status.

use super::Format;
use super::outcome::{Exit, Failure, Problem};
use super::run::{Args, call_failure, load_failure, with_access};
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use cordon_loader::{Error as Stop, Image};
use cordon_process::{End, Error, Folder, START, Settings};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

/// Exit code of a program that sent itself signal n: this + n, as shells have it.
const SIGNALLED: i32 = 128;

/// What only whole programs are given.
#[derive(Debug, clap::Args)]
pub struct Given {
    /// A folder that a whole program may read, or with :rw also change, under the same name (repeatable); it sees no other files
    ///
    /// Relative names count from `/`, which is the program's current folder: with --dir . it finds `notes.txt` and `/notes.txt`. Nothing outside is
    /// reached, neither by `..` nor by symbolic links.
    #[arg(long, value_name = "DIR[:rw]", value_parser = OsStringValueParser::new().try_map(|text| parse_folder(&text)))]
    pub dir: Vec<Folder>,
    /// An environment variable of a whole program (repeatable); it has no others
    #[arg(long, value_name = "NAME=VALUE", value_parser = OsStringValueParser::new().try_map(parse_variable))]
    pub env: Vec<OsString>,
    /// Arguments of a whole program, behind `--`
    #[arg(last = true, value_name = "ARGS")]
    pub arguments: Vec<OsString>,
}

impl Given {
    /// Whether anything is given that other images have no use for.
    pub fn is_empty(&self) -> bool {
        self.dir.is_empty() && self.env.is_empty() && self.arguments.is_empty()
    }
}

fn parse_folder(text: &OsStr) -> Result<Folder, &'static str> {
    let (path, writable) = with_access(text);
    if path.is_empty() { Err("expected a folder") } else { Ok(Folder { path: path.into(), writable }) }
}

fn parse_variable(text: OsString) -> Result<OsString, &'static str> {
    match text.as_bytes().iter().position(|&byte| byte == b'=') {
        None | Some(0) => Err("expected NAME=VALUE"),
        Some(_) => Ok(text),
    }
}

/// Runs the program to its end and ends this process as it did; standard output is the program's alone, so that JSON goes to standard error,
/// whether the program ended by itself or not.
pub fn execute(args: &Args, image: &Arc<Image>, file: &[u8]) -> Failure {
    if !args.arg.is_empty() || args.input.is_some() || args.pcap.is_some() || !args.share.is_empty() || args.repeat != 1 {
        return Failure::usage(
            "usage",
            "a whole program takes its arguments behind `--`, not --arg, --input, --pcap, --share or --repeat",
        );
    }
    let bytes = |text: &OsString| text.as_bytes().to_vec();
    let name = args.image.as_os_str().as_bytes().to_vec();
    let settings = Settings {
        arguments: std::iter::once(name).chain(args.given.arguments.iter().map(bytes)).collect(),
        environment: args.given.env.iter().map(bytes).collect(),
        folders: args.given.dir.clone(),
        fast_window: args.fast_window,
    };
    match cordon_process::run(image, &settings) {
        Ok(end) => finish(args.format, end),
        Err(error) => Failure { aside: true, ..failure(args, file, &error) },
    }
}

/// The program's end is this process's: nothing is left to do, and its status may be any number.
fn finish(format: Format, end: End) -> ! {
    let (code, report) = match end {
        End::Exit(status) => (i32::from(status), json!({ "exit": status })),
        End::Signal(signal) => (SIGNALLED + signal, json!({ "signal": signal })),
    };
    if format == Format::Json {
        // The program's status counts, whether or not somebody reads this.
        let _ = writeln!(io::stderr(), "{report}");
    }
    std::process::exit(code)
}

fn failure(args: &Args, file: &[u8], error: &Error) -> Failure {
    let one = |exit, code: &str| Failure::one(exit, Problem::with_file(&args.image, code, error.to_string()));
    match error {
        Error::Loader(stop @ (Stop::Fault(_) | Stop::Import { .. } | Stop::Nesting | Stop::Timer(_) | Stop::Internal(_))) => {
            call_failure(&args.image, START, stop, 0)
        }
        Error::Loader(other) => load_failure(&args.image, file, other),
        Error::Folder { .. } => one(Exit::Usage, "folder"),
        Error::Arguments => one(Exit::Usage, "arguments"),
        Error::Host(_) => one(Exit::Usage, "unavailable"),
        Error::NotAProgram => one(Exit::Refused, "not-a-program"),
        Error::Returned => one(Exit::Stopped, "returned"),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_folder, parse_variable};

    #[test]
    fn folders_are_read_only_unless_said() {
        let parsed = |text: &str| parse_folder(text.as_ref()).map(|f| (f.path.display().to_string(), f.writable));
        assert_eq!(parsed("a/b"), Ok(("a/b".into(), false)));
        assert_eq!(parsed("a:rw"), Ok(("a".into(), true)));
        assert_eq!(parsed("a:ro"), Ok(("a".into(), false)));
        assert_eq!(parsed("a:b"), Ok(("a:b".into(), false)));
        assert!(parsed("").is_err() && parsed(":rw").is_err());
    }

    #[test]
    fn variables_have_a_name() {
        let parsed = |text: &str| parse_variable(text.into());
        assert!(parsed("A=").is_ok() && parsed("A=b=c").is_ok());
        assert!(parsed("A").is_err() && parsed("=b").is_err());
    }
}
