//! `cordon check`: the checker's verdict on an image file.

use super::Format;
use super::demand::{Demand, words};
use super::disasm::{Function, covering, listing};
use super::outcome::{Exit, Failure, Problem, Report};
use super::rewrite::read_file;
use clap::ValueEnum;
use cordon_checker::note::{FLAG_KERNEL, Note};
use cordon_checker::policy::Host;
use cordon_checker::{Features, LayoutError, Mode, Policy, Reject, Rule, Summary, check, scratch_len};
use cordon_image::ImageError;
use cordon_loader::{Parts, split};
use cordon_rewriter::diag::Place;
use cordon_rewriter::pipeline::is_hidden;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Check an image: one pass over its final bytes, yes or no
///
/// Reads a sealed image and applies every rule of the checker to its text and layout, as the loader does before it maps anything.
/// Says why on a rejection: the text offset, the rule, and the code around it. Nothing of the image is run, and nothing in it is
/// believed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cordon check handler.cordon
  cordon check handler.cordon --format json

Exit code 0: accepted; 1: rejected, or not a Cordon image; 2: the file cannot be read.")]
pub struct Args {
    /// The image
    pub image: PathBuf,
    /// The host's terms: segment, instruction sets, stack depth
    #[arg(long, value_enum, default_value_t, value_name = "POLICY")]
    pub policy: PolicyName,
    #[command(flatten)]
    pub demand: Demand,
    /// How to print the verdict
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// The policies that the command knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// A user-mode process: windows behind %gs, vector instructions up to AVX2.
    #[default]
    User,
    /// The Linux kernel: windows behind %fs, general-purpose instructions only.
    Kernel,
}

impl PolicyName {
    fn policy(self) -> Policy {
        match self {
            PolicyName::User => Policy::USER,
            PolicyName::Kernel => Policy::KERNEL,
        }
    }
}

/// Runs the subcommand.
pub fn execute(args: &Args) -> Result<Report, Failure> {
    let file = read_file(&args.image)?;
    let parts = parts(&args.image, &file)?;
    let policy = Policy { mode: args.demand.mode(), ..args.policy.policy() };
    let summary = judge(&args.image, &parts, &policy)?;
    // What is left of a host's work: data segments in regions of their kind.
    if let Err(ImageError::Format(error)) = cordon_image::Image::read(&file, &policy) {
        return Err(refused(&args.image, "not-an-image", format!("not a Cordon image: {error}")));
    }
    let mode = Note::parse(parts.note).map(|note| note.layout.mode).unwrap_or_default();
    Ok(accepted(args, parts.text.len(), mode, &summary))
}

/// Takes the file apart as the loader does.
pub fn parts<'f>(path: &Path, file: &'f [u8]) -> Result<Parts<'f>, Failure> {
    split(file).map_err(|e| refused(path, "not-an-image", e.to_string()))
}

fn refused(path: &Path, code: &str, message: String) -> Failure {
    Failure::one(Exit::Refused, Problem::with_file(path, code, message))
}

/// Applies the checker to the parts of the image at `path`.
pub fn judge(path: &Path, parts: &Parts<'_>, policy: &Policy) -> Result<Summary, Failure> {
    let note = Note::parse(parts.note).map_err(|e| refused(path, "not-an-image", format!("malformed image note: {e:?}")))?;
    if (note.flags & FLAG_KERNEL != 0) != (policy.host == Host::Kernel) {
        let made = if policy.host == Host::Kernel { "a user-mode host" } else { "a kernel host" };
        return Err(refused(path, "wrong-host", format!("the image is made for {made}; choose the policy with --policy")));
    }
    if let Err(why) = note.validate(policy) {
        if why == LayoutError::Mode {
            return Err(refused(path, "mode", proves_less(&note)));
        }
        let reject = Reject { offset: 0, rule: Rule::Layout };
        return Err(rejected(path, parts, reject, &format!("{}: {why}", reject.rule)));
    }
    if names(&note).any(|name| name.contains(is_hidden)) {
        return Err(refused(path, "not-an-image", "a name in the image note has characters that no terminal shows".into()));
    }
    let mut scratch = vec![0; scratch_len(parts.text.len())];
    check(parts.text, policy, &note.layout, &mut scratch).map_err(|reject| rejected(path, parts, reject, reject.rule.text()))
}

/// Entries and imports.
fn names<'a>(note: &Note<'a>) -> impl Iterator<Item = &'a str> {
    let entries = (0..note.layout.entries.len()).filter_map(|index| note.entry_name(index).ok());
    entries.chain((0..note.layout.imports as usize).filter_map(|index| note.import(index).ok()).map(|(_, name)| name))
}

/// Why an image is refused that does not fulfil the demands on the command line.
pub fn proves_less(note: &Note<'_>) -> String {
    format!("{}; it is {} (see --mode, --metered, --protect)", LayoutError::Mode, words(note.layout.mode))
}

/// Functions of an image, ascending by start.
pub fn functions(parts: &Parts<'_>) -> Vec<Function> {
    let function = |&(start, size, name): &(u32, u32, &str)| {
        let end = start.checked_add(size).filter(|&end| end as usize <= parts.text.len())?;
        Some(Function { start, end, name: name.escape_debug().to_string() })
    };
    let mut functions: Vec<Function> = parts.symbols.iter().filter_map(function).collect();
    functions.sort();
    functions.dedup_by_key(|f| f.start);
    functions
}

/// The failure that shows a rejection with its rule and the code around it.
pub fn rejected(path: &Path, parts: &Parts<'_>, reject: Reject, message: &str) -> Failure {
    let functions = functions(parts);
    let place = Place {
        object: path.display().to_string(),
        section: Some(".text".into()),
        offset: Some(u64::from(reject.offset)),
        symbol: covering(&functions, reject.offset).map(|f| f.name.clone()),
    };
    let problem = Problem::new("rejected", format!("R{} {message}", reject.rule.number()))
        .detail("rule", reject.rule.number())
        .detail("rule_name", reject.rule.name())
        .detail("listing", listing(parts.text, &functions, reject.offset));
    Failure::one(Exit::Refused, Problem { place: Some(place), ..problem })
}

fn accepted(args: &Args, text: usize, mode: Mode, summary: &Summary) -> Report {
    let features: Vec<&str> =
        Features::NAMES.iter().filter(|(f, _)| summary.features.contains(*f)).map(|(_, name)| *name).collect();
    let uses = if features.is_empty() { "general-purpose registers only".into() } else { features.join(" ") };
    let line = format!(
        "{}: accepted; text {text} bytes, {} instructions, stack depth at most {} bytes, uses {uses}; {}\n",
        args.image.display(),
        summary.instructions,
        summary.max_depth,
        words(mode),
    );
    let json = json!({
        "image": args.image.display().to_string(),
        "accepted": true,
        "mode": words(mode),
        "text": text,
        "instructions": summary.instructions,
        "max_depth": summary.max_depth,
        "features": features,
    });
    Report { text: line, json }
}
