//! `cordon cc`: compiles C against musl's headers and rewrites the result with musl's startup code and C library.

use super::outcome::{Exit, Failure, Problem, Report};
use super::rewrite::{self, Link, refuse_output_over_input};
use super::{Format, usage_text};
use clap::Parser as _;
use cordon_rewriter::object::Input;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiled and linked in front of the C library.
const SUPPORT: &str = include_str!("support.c");
/// Where Debian's musl-dev puts headers and libraries.
const INCLUDE: &str = "/usr/include/x86_64-linux-musl";
const LIBRARIES: &str = "/usr/lib/x86_64-linux-musl";
/// Options of the compiler whose argument may be the next word.
const WITH_ARGUMENT: [&str; 20] = [
    "-I",
    "-D",
    "-U",
    "-include",
    "-imacros",
    "-isystem",
    "-iquote",
    "-idirafter",
    "-isysroot",
    "--sysroot",
    "-x",
    "--param",
    "-MF",
    "-MT",
    "-MQ",
    "-Xpreprocessor",
    "-Xassembler",
    "-Xclang",
    "-mllvm",
    "-target",
];
/// Options that make no program, or are a linker's.
const REFUSED: [&str; 11] = ["-c", "-S", "-E", "-M", "-MM", "-shared", "-r", "-Xlinker", "-T", "-u", "-z"];
/// Options that say what a linker would make, which is an image in any case.
const MEANINGLESS: [&str; 6] = ["-static", "-no-pie", "-pie", "-static-pie", "-s", "-pthread"];
/// Options of this command that take the next word, and those that do not.
const OWN_WITH_ARGUMENT: [&str; 11] =
    ["-o", "--cc", "--musl", "--heap", "--stack", "--arg-area", "--import", "--mode", "--protect", "--masking", "--format"];
const OWN: [&str; 2] = ["--fuel", "--fast-window"];

/// Compile a whole C program and turn it into an image that `cordon run` hosts
///
/// Compiles the C and assembly files against musl's headers (Debian: musl-dev), and rewrites them together with objects and archives given, musl's
/// startup code, libc.a and the compiler's support library, system calls turned into an import: one command from source to image. Everything
/// that is not an option of this command goes to the compiler: -O2, -g, -I, -D, -march=native … Libraries are found by -L and -l or named by path.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Options of this command, anywhere among the others:
  -o FILE           the image (default: a.img)
  --cc COMPILER     gcc (default) or clang, in any version
  --musl DIR        a musl installation with include/ and lib/ (default: Debian's)
  --heap, --stack, --arg-area, --import, --mode, --fuel, --protect, --masking, --fast-window, --format: as for cordon rewrite

Examples:
  cordon cc -O2 hello.c -o hello.img && cordon run hello.img
  cordon cc --cc clang-19 -O3 -march=native main.c sort.c -o sort.img --heap 512M
  cordon run sort.img --dir data -- data/names.txt")]
pub struct Args {
    /// Sources, objects, archives and compiler options
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS AND FILES")]
    pub words: Vec<OsString>,
}

impl Args {
    /// How results are printed, known before the words are sorted.
    pub fn format(&self) -> Format {
        let json = |pair: &[OsString]| pair[0] == "--format" && pair[1] == "json";
        if self.words.windows(2).any(json) || self.words.iter().any(|w| w == "--format=json") {
            Format::Json
        } else {
            Format::Text
        }
    }
}

/// This command's own options.
#[derive(Debug, clap::Parser)]
#[command(name = "cordon cc", no_binary_name = true)]
struct Own {
    #[arg(short, default_value = "a.img")]
    output: PathBuf,
    #[arg(long, default_value = "gcc")]
    cc: OsString,
    #[arg(long)]
    musl: Option<PathBuf>,
    #[command(flatten)]
    link: Link,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One thing to link, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Source(PathBuf),
    /// An object or archive.
    Binary(PathBuf),
    /// `-lNAME`.
    Library(OsString),
}

impl Part {
    /// The file that the command line names.
    fn path(&self) -> Option<&Path> {
        match self {
            Part::Source(path) | Part::Binary(path) => Some(path),
            Part::Library(_) => None,
        }
    }
}

/// The command line taken apart.
#[derive(Debug, Default)]
struct Words {
    own: Vec<OsString>,
    compiler: Vec<OsString>,
    parts: Vec<Part>,
    folders: Vec<PathBuf>,
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::usage("usage", message)
}

/// Sorts the words by who they are for.
fn sort(words: &[OsString]) -> Result<Words, Failure> {
    let mut sorted = Words::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let text = word.to_str().unwrap_or("");
        let mut next = || rest.next().cloned().ok_or_else(|| usage(format!("{text} needs an argument")));
        if OWN_WITH_ARGUMENT.contains(&text) {
            sorted.own.extend([word.clone(), next()?]);
        } else if OWN.contains(&text) || own_with_value(text) {
            sorted.own.push(word.clone());
        } else if text == "-l" {
            sorted.parts.push(Part::Library(next()?));
        } else if text == "-L" {
            sorted.folders.push(next()?.into());
        } else if let Some(name) = text.strip_prefix("-l") {
            sorted.parts.push(Part::Library(name.into()));
        } else if let Some(folder) = text.strip_prefix("-L") {
            sorted.folders.push(folder.into());
        } else if REFUSED.contains(&text) || text.starts_with("-Wl,") {
            return Err(usage(format!(
                "{text}: cordon cc makes whole programs and calls no linker; compile with the compiler itself"
            )));
        } else if MEANINGLESS.contains(&text) {
        } else if WITH_ARGUMENT.contains(&text) {
            sorted.compiler.extend([word.clone(), next()?]);
        } else if word.as_bytes().starts_with(b"-") {
            sorted.compiler.push(word.clone());
        } else {
            let path = PathBuf::from(word);
            let binary = matches!(path.extension().and_then(OsStr::to_str), Some("o" | "a" | "lo"));
            sorted.parts.push(if binary { Part::Binary(path) } else { Part::Source(path) });
        }
    }
    if sorted.parts.is_empty() { Err(usage("no source, object or archive is named")) } else { Ok(sorted) }
}

/// `--heap=…` and the like, or `-oFILE`.
fn own_with_value(text: &str) -> bool {
    text.len() > 2 && text.starts_with("-o") && !text.starts_with("--")
        || text.split_once('=').is_some_and(|(name, _)| name.starts_with("--") && OWN_WITH_ARGUMENT.contains(&name))
}

/// Runs the subcommand.
pub fn execute(args: &Args) -> Result<Report, Failure> {
    let words = sort(&args.words)?;
    let own = Own::try_parse_from(&words.own).map_err(|e| usage(usage_text(&e)))?;
    let (include, libraries) = match &own.musl {
        Some(folder) => (folder.join("include"), folder.join("lib")),
        None => (INCLUDE.into(), LIBRARIES.into()),
    };
    let first = libraries.join("crt1.o");
    if !first.exists() {
        let message = format!("{} is not there: install musl-dev, or name an installation with --musl", first.display());
        return Err(Failure::one(Exit::Usage, Problem::new("no-musl", message)));
    }
    refuse_output_over_input(&own.output, words.parts.iter().filter_map(Part::path))?;
    let compiler = Compiler { command: &own.cc, options: &words.compiler, include: &include };
    let folder = tempfile::tempdir().map_err(|e| usage(format!("no folder for the compiler's output: {e}")))?;
    let mut inputs = rewrite::read_inputs(&[first])?;
    for (number, part) in words.parts.iter().enumerate() {
        let path = match part {
            Part::Source(source) => {
                let object = folder.path().join(format!("{number}.o"));
                compiler.compile(source, &object)?;
                let bytes = rewrite::read_file(&object)?;
                inputs.push(Input { name: source.display().to_string(), bytes });
                continue;
            }
            Part::Binary(path) => path.clone(),
            Part::Library(name) => library(name, &words.folders, &libraries)?,
        };
        inputs.extend(rewrite::read_inputs(&[path])?);
    }
    inputs.push(compiler.support(folder.path())?);
    let mut last = vec![libraries.join("libc.a")];
    last.extend(compiler.support_library());
    inputs.extend(rewrite::read_inputs(&last)?);
    let link = Link { syscalls: true, ..own.link };
    let args = rewrite::Args { inputs: Vec::new(), output: own.output, link, threads: None, quiet: false, format: own.format };
    rewrite::link(&args, &inputs)
}

/// The archive that `-lNAME` means.
fn library(name: &OsStr, folders: &[PathBuf], last: &Path) -> Result<PathBuf, Failure> {
    let mut file = OsString::from("lib");
    file.push(name);
    file.push(".a");
    let found = folders.iter().map(PathBuf::as_path).chain([last]).map(|folder| folder.join(&file)).find(|path| path.exists());
    found.ok_or_else(|| usage(format!("{} is in no folder given with -L", file.display())))
}

/// The compiler with what every call of it is given.
struct Compiler<'a> {
    command: &'a OsStr,
    options: &'a [OsString],
    include: &'a Path,
}

impl Compiler<'_> {
    /// What the compiler prints when it is asked for `option`.
    fn ask(&self, option: &str) -> Result<PathBuf, Failure> {
        let output = Command::new(self.command).arg(option).output();
        let output = output.map_err(|e| usage(format!("cannot run the compiler {}: {e}", self.command.display())))?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && !text.is_empty() {
            return Ok(text.into());
        }
        Err(usage(format!("{} does not answer {option}", self.command.display())))
    }

    /// Headers of the compiler itself (`stddef.h`, intrinsics).
    fn own_include(&self) -> Result<PathBuf, Failure> {
        let is_clang = Path::new(self.command).file_name().is_some_and(|name| name.to_string_lossy().contains("clang"));
        if is_clang { Ok(self.ask("-print-resource-dir")?.join("include")) } else { self.ask("-print-file-name=include") }
    }

    /// Arithmetic that the compiler calls functions for; not every compiler has it as a file.
    fn support_library(&self) -> Option<PathBuf> {
        self.ask("-print-libgcc-file-name").ok().filter(|path| path.exists())
    }

    /// [`SUPPORT`] as an object, compiled without the user's options.
    fn support(&self, folder: &Path) -> Result<Input, Failure> {
        let (source, object) = (folder.join("support.c"), folder.join("support.o"));
        std::fs::write(&source, SUPPORT).map_err(|e| Failure::file(&source, "write", &e))?;
        let plain = [OsString::from("-O2"), OsString::from("-w")];
        Compiler { options: &plain, ..*self }.compile(&source, &object)?;
        Ok(Input { name: "cordon cc".into(), bytes: rewrite::read_file(&object)? })
    }

    fn compile(&self, source: &Path, object: &Path) -> Result<(), Failure> {
        let mut command = Command::new(self.command);
        command.args(self.options).arg("-nostdinc").arg("-isystem").arg(self.include);
        command.arg("-isystem").arg(self.own_include()?).arg("-c").arg(source).arg("-o").arg(object);
        let output = command.output();
        let output = output.map_err(|e| usage(format!("cannot run the compiler {}: {e}", self.command.display())))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() && !object.exists() {
            let message = format!("{} makes no object of it: not a source that it knows", self.command.display());
            return Err(Failure::one(Exit::Refused, Problem::with_file(source, "compiler", message)));
        }
        if output.status.success() {
            // Warnings that nobody reads do not keep the image from being made.
            let _ = io::stderr().write_all(said.as_bytes());
            return Ok(());
        }
        let problem = Problem::with_file(source, "compiler", format!("{} failed", self.command.display()));
        Err(Failure::one(Exit::Refused, problem.detail("output", format!("{}\n", said.trim_end()))))
    }
}

#[cfg(test)]
mod tests {
    use super::{Own, Part, sort};
    use clap::Parser as _;
    use std::ffi::OsString;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn words_go_to_whom_they_are_for() {
        let sorted =
            sort(&words("-O2 a.c -I inc -Iinc2 -o p.img b.o --heap=1M -L lib -lz --cc clang --masking explicit -static -DX=1 --fast-window -x c -MMD -MF a.d"))
                .expect("sorted");
        assert_eq!(sorted.own, words("-o p.img --heap=1M --cc clang --masking explicit --fast-window"));
        assert_eq!(sorted.compiler, words("-O2 -I inc -Iinc2 -DX=1 -x c -MMD -MF a.d"));
        assert_eq!(sorted.parts, [Part::Source("a.c".into()), Part::Binary("b.o".into()), Part::Library("z".into())]);
        let own = Own::try_parse_from(sorted.own).expect("parsed");
        assert_eq!((own.output.to_str(), own.cc.to_str(), own.link.heap), (Some("p.img"), Some("clang"), Some(1 << 20)));
    }

    #[test]
    fn what_makes_no_program_is_refused() {
        for wrong in
            ["-c a.c", "a.c -o", "-O2", "a.c -Wl,-x", "a.c -Xlinker -x", "a.c -z now", "-M a.c", "a.c -MF", "-shared a.c"]
        {
            assert!(sort(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
