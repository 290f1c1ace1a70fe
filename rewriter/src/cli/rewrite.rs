//! `cordon rewrite`: objects and archives in, a sealed image out.

use super::outcome::{Exit, Failure, Problem, Report, counted};
use super::{Format, size::parse_size, watch::watched};
use clap::ValueEnum;
use cordon_checker::{Mode, Protect};
use cordon_rewriter::diag::Refusals;
use cordon_rewriter::object::Input;
use cordon_rewriter::progress::Progress;
use cordon_rewriter::{Masking, Options, Rewritten, rewrite_watched};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Larger files than this cannot be one object or image of a 4 GiB window.
const MOST_INPUT: u64 = 1 << 32;

/// Turn ELF objects and archives into a sealed image
///
/// Reads relocatable x86-64 ELF objects (`gcc -c`, `clang -c`, `rustc --emit obj`) and archives of them, merges them like a
/// linker, rewrites every function so that it stays inside its window, and writes one image. No special compiler or flag is
/// needed. Archive members are taken when something refers to them. What cannot be done safely and faithfully is an error that
/// names object, section, offset, symbol and reason; then no output is written. The checker runs on the result before it
/// is written.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  gcc -O2 -c handler.c && cordon rewrite handler.o -o handler.cordon
  cordon rewrite main.o /usr/lib/x86_64-linux-gnu/libz.a -o z.cordon --heap 16M --import log_line
  cordon rewrite crt1.o program.o libc.a --syscalls -o program.img    (a whole program; see cordon cc)")]
pub struct Args {
    /// ELF relocatable objects (.o) and archives (.a), in link order
    #[arg(required = true, value_name = "IN")]
    pub inputs: Vec<PathBuf>,
    /// The image to write; left alone on any error
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub link: Link,
    /// Worker threads (default: all processors); the image is the same for any number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Show no progress bar (there is one only on a terminal, and only for long inputs)
    #[arg(short, long)]
    pub quiet: bool,
    /// How to print the summary and errors
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// The options that shape an image; `inspect` has them too.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Link {
    /// A function that the host may call (repeatable; default: every global function of the objects named on the command line)
    #[arg(long, value_name = "NAME")]
    pub entry: Vec<String>,
    /// An undefined function that the host provides (repeatable); every other undefined symbol that is used is an error
    #[arg(long, value_name = "NAME")]
    pub import: Vec<String>,
    /// Which host the image is for
    #[arg(long, value_enum, default_value_t, value_name = "HOST")]
    pub host: HostName,
    /// Handler heap in bytes, or with K, M, G: the range `__cordon_heap_start` … `__cordon_heap_end` [default: 256M, kernel 1M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub heap: Option<u32>,
    /// Argument area, where the host places a call's bytes: `__cordon_arg_start` … `__cordon_arg_end` [default: 64M, kernel 1M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub arg_area: Option<u32>,
    /// Data stack, where everything lies that the code addresses through rsp [default: 8M, kernel 64K]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub stack: Option<u32>,
    /// Lay the stack out for the fast window (base 0), where the image then is quicker on AMD Zen; its text grows by some 8 % more
    #[arg(long)]
    pub fast_window: bool,
    /// Take every member of every archive, wanted or not
    #[arg(long)]
    pub whole_archive: bool,
    /// What happens to an access outside the window's 4 GiB
    #[arg(long, value_enum, default_value_t, value_name = "FLAVOUR")]
    pub mode: Flavour,
    /// Meter instructions in r14, so that a run can be given a deterministic limit (`cordon run --fuel`)
    #[arg(long)]
    pub fuel: bool,
    /// Turn the instruction `syscall` into a call of the import `cordon.syscall`, which `cordon run` serves: for whole programs
    #[arg(long)]
    pub syscalls: bool,
    /// Which accesses are protected
    #[arg(long, value_enum, default_value_t, value_name = "WHICH")]
    pub protect: Protected,
    /// How the sandbox forces addresses into the window
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub masking: Masked,
}

/// What an image runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HostName {
    /// A process, by the loader library.
    #[default]
    User,
    /// The Linux kernel, by the module: windows behind %fs, general-purpose instructions only.
    Kernel,
}

/// The two flavours of isolation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Flavour {
    /// It is forced into the window: a stray pointer harms only the handler.
    #[default]
    Sandbox,
    /// It does not happen: the call ends with a report.
    Match,
}

/// The accesses that are protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Protected {
    /// Loads and stores.
    #[default]
    All,
    /// Stores only: loads may read whatever their 64-bit address names, host memory included.
    Stores,
}

/// What cuts an address down to the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Masked {
    /// A prefix of the access itself.
    #[default]
    Prefix,
    /// An instruction in front of each access, as in classic schemes: slower, for comparison.
    Explicit,
}

impl Link {
    /// The library's form of these options.
    pub fn options(&self) -> Options {
        let default = if self.host == HostName::Kernel { Options::for_kernel() } else { Options::default() };
        Options {
            entries: self.entry.clone(),
            imports: self.import.clone(),
            heap: self.heap.unwrap_or(default.heap),
            argument: self.arg_area.unwrap_or(default.argument),
            stack: self.stack.unwrap_or(default.stack),
            fast_window: self.fast_window,
            whole_archive: self.whole_archive,
            mode: Mode {
                matched: self.mode == Flavour::Match,
                metered: self.fuel,
                protect: if self.protect == Protected::Stores { Protect::Stores } else { Protect::All },
            },
            kernel: self.host == HostName::Kernel,
            masking: if self.masking == Masked::Explicit { Masking::Explicit } else { Masking::Prefix },
            syscalls: self.syscalls,
        }
    }
}

/// Runs the subcommand.
pub fn execute(args: &Args) -> Result<Report, Failure> {
    refuse_output_over_input(&args.output, args.inputs.iter().map(PathBuf::as_path))?;
    link(args, &read_inputs(&args.inputs)?)
}

/// Rewrites `inputs` and writes the image.
pub fn link(args: &Args, inputs: &[Input]) -> Result<Report, Failure> {
    let progress = Progress::default();
    let run = || rewrite_watched(inputs, &args.link.options(), &progress);
    let rewritten = watched(&progress, args.quiet, || on_threads(args.threads, run))?;
    write_atomically(&args.output, &rewritten.image)?;
    Ok(summary(args, &rewritten))
}

/// Rewrites with the wanted number of threads.
fn on_threads(threads: Option<u16>, work: impl FnOnce() -> Result<Rewritten, Refusals> + Send) -> Result<Rewritten, Failure> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.map_or(0, usize::from)).build();
    let pool = pool.map_err(|e| Failure::usage("threads", format!("cannot start worker threads: {e}")))?;
    Ok(pool.install(work)?)
}

/// Reads the objects and archives named on the command line.
pub fn read_inputs(paths: &[PathBuf]) -> Result<Vec<Input>, Failure> {
    let read = |path: &PathBuf| {
        let bytes = read_file(path)?;
        Ok(Input { name: path.display().to_string(), bytes })
    };
    paths.iter().map(read).collect()
}

/// Reads a file, a pipe or a device, at most [`MOST_INPUT`] bytes.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_INPUT + 1).read_to_end(&mut bytes));
    read.map_err(|e| Failure::file(path, "read", &e))?;
    if bytes.len() as u64 > MOST_INPUT {
        return Err(Failure::one(Exit::Usage, Problem::with_file(path, "file", "larger than 4 GiB")));
    }
    Ok(bytes)
}

/// As [`read_file`], for a name that an image gives, which may be anything: only a file is read, no device and no pipe.
pub fn read_named(path: &Path) -> Option<Vec<u8>> {
    path.metadata().ok().filter(fs::Metadata::is_file).and_then(|_| read_file(path).ok())
}

/// A typing slip must not cost the only copy of an object or source.
pub fn refuse_output_over_input<'p>(output: &Path, mut inputs: impl Iterator<Item = &'p Path>) -> Result<(), Failure> {
    let Ok(place) = fs::canonicalize(output) else { return Ok(()) };
    if inputs.any(|input| fs::canonicalize(input).is_ok_and(|input| input == place)) {
        return Err(Failure::one(Exit::Usage, Problem::with_file(output, "file", "the output is one of the inputs")));
    }
    Ok(())
}

/// Writes `bytes` to `path` so that a reader sees the old file or the whole new one: a neighbour is written, then renamed.
/// What is no regular file (`/dev/null`, a pipe) is written in place.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |e: &io::Error| Failure::file(path, "write", e);
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if target.metadata().is_ok_and(|m| !m.is_file()) {
        return fs::write(&target, bytes).map_err(|e| failed(&e));
    }
    let folder = target.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As any compiler's output: readable as the umask says.
    let open = |name: &Path| File::options().write(true).create_new(true).mode(0o666).open(name);
    // The crate's own errors name the neighbour, of which nobody has heard.
    let mut why = None;
    let made =
        tempfile::Builder::new().prefix(".cordon").make_in(folder, |name| open(name).inspect_err(|e| why = e.raw_os_error()));
    let mut file = made.map_err(|e| failed(&why.map_or(e, io::Error::from_raw_os_error)))?;
    file.write_all(bytes).map_err(|e| failed(&e))?;
    file.persist(&target).map_err(|e| failed(&e.error))?;
    Ok(())
}

fn summary(args: &Args, rewritten: &Rewritten) -> Report {
    let stats = &rewritten.stats;
    let growth = if stats.text_in == 0 { 1.0 } else { stats.text_out as f64 / stats.text_in as f64 };
    let text = format!(
        "{}: {}, {}, text {} -> {} bytes ({:+.1} %), accepted by the checker\n",
        args.output.display(),
        counted(stats.functions, "function"),
        counted(stats.instructions, "instruction"),
        stats.text_in,
        stats.text_out,
        (growth - 1.0) * 100.0
    );
    let json = json!({
        "output": args.output.display().to_string(),
        "bytes": rewritten.image.len(),
        "functions": stats.functions,
        "instructions": stats.instructions,
        "text_in": stats.text_in,
        "text_out": stats.text_out,
        "growth": growth,
        "slots": stats.slots,
        "tables": stats.tables,
    });
    Report { text, json }
}

#[cfg(test)]
mod tests {
    use super::Link;
    use clap::Parser as _;
    use cordon_rewriter::Options;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        link: Link,
    }

    #[test]
    fn defaults_on_the_command_line_are_those_of_the_library() {
        let options = Command::parse_from(["rewrite"]).link.options();
        let default = Options::default();
        assert_eq!((options.heap, options.argument, options.stack), (default.heap, default.argument, default.stack));
        assert!(options.entries.is_empty() && options.imports.is_empty() && !options.whole_archive);
    }
}
