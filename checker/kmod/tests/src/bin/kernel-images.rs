//! Prepares the guest's tests: kernel images of every fixture that needs no floating point, in every mode, with what the same calls come
//! to in user mode; and images that a kernel must refuse.
//!
//! `kernel-images FOLDER`

use anyhow::{Context as _, Result, ensure};
use cordon_fixtures::catalog::{Fixture, HANDLERS, Language};
use cordon_fixtures::compile::{Builder, Compiler, Config, Level, in_parallel};
use cordon_fixtures::script::{Expect, Outcome};
use cordon_fixtures::window::WindowRunner;
use cordon_kernel_tests::Expected;
use cordon_loader::{Image, LoadOptions};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, rewrite};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const CONFIG: Config = Config { compiler: Compiler::Gcc, level: Level::O2, pic: true };
/// As for the kernel, so that user mode faults at the same places.
const HEAP: u32 = 16 << 20;
const ARGUMENT: u32 = 4 << 20;

const MODES: [(&str, bool, bool); 4] =
    [("sandbox", false, false), ("match", true, false), ("metered", false, true), ("both", true, true)];

fn options(kernel: bool, entries: &[String]) -> Options {
    let base = Options::for_kernel();
    Options { kernel, entries: entries.to_vec(), heap: HEAP, argument: ARGUMENT, ..base }
}

/// The object without floating point, or as it is if the compiler cannot do that.
fn object(builder: &Builder, fixture: &Fixture) -> Result<PathBuf> {
    let flags: Vec<&'static str> = fixture.flags.iter().copied().chain(["-mgeneral-regs-only"]).collect();
    let plain = Fixture { flags: flags.leak(), ..*fixture };
    builder.object(&plain, CONFIG).or_else(|_| builder.object(fixture, CONFIG))
}

fn entries_of(fixture: &Fixture) -> BTreeSet<&'static str> {
    (fixture.script)(1).iter().map(|call| call.entry).collect()
}

/// What the calls come to in user mode.
fn expectations(fixture: &Fixture, inputs: &[Input], entries: &[String]) -> Result<Vec<Expected>> {
    let made = rewrite(inputs, &options(false, entries)).map_err(|e| anyhow::anyhow!("{:?}", e.0))?;
    let image = Image::from_bytes(&made.image, &LoadOptions { seal: false, ..LoadOptions::default() })?;
    let mut runner = WindowRunner::new(&image, false)?;
    let mut expected = Vec::new();
    for call in (fixture.script)(1) {
        if !entries.iter().any(|entry| entry == call.entry) {
            expected.push(Expected::Skipped);
            continue;
        }
        let outcome = runner.call(&call)?.outcome;
        expected.push(match (call.expect, outcome) {
            (Expect::Confined, _) => Expected::Any,
            (_, Outcome::Value { result, memory }) => Expected::Value(result, memory),
            (_, Outcome::Fault { kind, function }) => Expected::Fault(kind, function),
            (_, Outcome::Stopped) => Expected::Stopped,
            (_, Outcome::NotRun) => Expected::Skipped,
        });
    }
    Ok(expected)
}

/// Writes the images of one fixture; false if none of its entries can be had without floating point.
fn prepare(builder: &Builder, fixture: &Fixture, folder: &Path) -> Result<bool> {
    let path = object(builder, fixture)?;
    let inputs = [Input { name: fixture.name.into(), bytes: fs::read(path)? }];
    let alone = |entry: &&str| rewrite(&inputs, &options(true, &[(*entry).to_owned()])).is_ok();
    let entries: Vec<String> = entries_of(fixture).into_iter().filter(alone).map(str::to_owned).collect();
    if entries.is_empty() {
        return Ok(false);
    }
    let expected = expectations(fixture, &inputs, &entries).with_context(|| fixture.name)?;
    let lines: String = expected.iter().map(|e| e.to_line() + "\n").collect();
    fs::write(folder.join(format!("{}.expected", fixture.name)), lines)?;
    for (mode, matched, metered) in MODES {
        let mut options = options(true, &entries);
        (options.mode.matched, options.mode.metered) = (matched, metered);
        let made = rewrite(&inputs, &options).map_err(|e| anyhow::anyhow!("{} {mode}: {:?}", fixture.name, e.0))?;
        fs::write(folder.join(format!("{}.{mode}.image", fixture.name)), made.image)?;
    }
    Ok(true)
}

/// Where `cordon_handler.h` is.
const INCLUDE: &str = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/../include");

/// Handlers of the guest's tests, in the modes that events take.
const EVENT_HANDLERS: [(&str, &str); 4] = [
    ("port_filter", include_str!("../../handlers/port_filter.c")),
    ("host", include_str!("../../handlers/host.c")),
    ("packets", include_str!("../../handlers/packets.c")),
    ("jumps", include_str!("../../handlers/jumps.c")),
];

fn event_handler(builder: &Builder, name: &'static str, source: &'static str, folder: &Path) -> Result<()> {
    let flags = &["-mgeneral-regs-only", INCLUDE];
    let fixture = Fixture { name, language: Language::C, source, flags, only: None, libraries: &[], script: |_| Vec::new() };
    in_both_modes(name, fs::read(builder.object(&fixture, CONFIG)?)?, folder)
}

fn in_both_modes(name: &str, object: Vec<u8>, folder: &Path) -> Result<()> {
    let inputs = [Input { name: name.into(), bytes: object }];
    let mut options = Options::for_kernel();
    for (mode, metered) in [("sandbox", false), ("metered", true)] {
        options.mode.metered = metered;
        let made = rewrite(&inputs, &options).map_err(|e| anyhow::anyhow!("{:?}", e.0))?;
        fs::write(folder.join(format!("{name}.{mode}.handler")), made.image)?;
    }
    Ok(())
}

/// The handlers of events, and the one that looks for secrets.
fn handlers(builder: &Builder, folder: &Path) -> Result<()> {
    for (name, source) in EVENT_HANDLERS {
        event_handler(builder, name, source, folder)?;
    }
    let strings = builder.assemble("strings", include_str!("../../handlers/strings.s"))?;
    in_both_modes("strings", fs::read(strings)?, folder)?;
    let leak = builder.assemble("leak", include_str!("../../handlers/leak.s"))?;
    let leak = [Input { name: "leak".into(), bytes: fs::read(leak)? }];
    let made = rewrite(&leak, &Options::for_kernel()).map_err(|e| anyhow::anyhow!("{:?}", e.0))?;
    fs::write(folder.join("leak.handler"), made.image)?;
    // More than a user's 256 KiB of text, and more than half of what all users' handlers may have of the exception table.
    for (name, count) in [("long", 80_000), ("half", 50_000)] {
        let source = format!(
            ".globl long\n.type long,@function\nlong:\n.rept {count}\nadd $1,%rdi\n.endr\nmov %rdi,%rax\nret\n.size long,.-long\n"
        );
        let inputs = [Input { name: name.into(), bytes: fs::read(builder.assemble(name, &source)?)? }];
        let made = rewrite(&inputs, &Options::for_kernel()).map_err(|e| anyhow::anyhow!("{:?}", e.0))?;
        fs::write(folder.join(format!("{name}.handler")), made.image)?;
    }
    Ok(())
}

/// Images that the kernel must refuse: for user hosts, and of the kernel's with changed text.
fn hostile(builder: &Builder, folder: &Path) -> Result<()> {
    let fixture = HANDLERS.iter().find(|f| f.name == "cksum16").context("there is cksum16")?;
    let inputs = [Input { name: fixture.name.into(), bytes: fs::read(object(builder, fixture)?)? }];
    let user = rewrite(&inputs, &options(false, &[])).map_err(|e| anyhow::anyhow!("{:?}", e.0))?;
    fs::write(folder.join("user-host.refuse"), user.image)?;
    Ok(())
}

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("usage: kernel-images FOLDER")?);
    fs::create_dir_all(&folder)?;
    let objects = folder.with_extension("objects");
    let builder = Builder::new(&objects)?;
    let fixtures: Vec<&Fixture> =
        HANDLERS.iter().filter(|f| f.language == Language::C && f.libraries.is_empty() && f.only.is_none()).collect();
    let done = in_parallel(&fixtures, |fixture| prepare(&builder, fixture, &folder));
    let (mut made, mut without) = (0, Vec::new());
    for (fixture, result) in fixtures.iter().zip(done) {
        if result? { made += 1 } else { without.push(fixture.name) }
    }
    hostile(&builder, &folder)?;
    handlers(&builder, &folder)?;
    println!("{made} fixtures; these need floating point: {}", without.join(" "));
    ensure!(made >= 15, "hardly any fixture is left");
    Ok(())
}
