//! What is measured: fixtures with their scripts, built natively and as images, in several code layouts.

use anyhow::{Context, Result, bail};
use cordon_checker::{Mode, Policy};
use cordon_fixtures::catalog::{self, Fixture, Language};
use cordon_fixtures::compile::{Builder, USUAL, run_tool};
use cordon_fixtures::native::NativeRunner;
use cordon_fixtures::script::{Call, Expect};
use cordon_fixtures::window::WindowRunner;
use cordon_fixtures::workload::mixed_data;
use cordon_fixtures::zlib;
use cordon_loader::{Image, LoadOptions};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, Stats, rewrite};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// Fixtures whose scripts are about faults or time limits, not about speed.
const NOT_TIMED: &[&str] = &["faults", "loops", "remote", ZLIB];
/// Calls of one pass of [`empty_call`].
const EMPTY_CALLS: usize = 100_000;
/// The fixture around Debian's libz.a; its programs are recorded, not scripted.
const ZLIB: &str = "zlib_driver";
/// Bytes that zlib is given in one pass, and its level.
const ZLIB_BYTES: usize = 8 << 20;
const ZLIB_LEVEL: u64 = 6;
/// Factor on the length of the scripts: a pass takes a millisecond or more.
const SCALE: usize = 8;

/// An object that only moves the code behind it.
macro_rules! padding {
    ($bytes:literal, $nops:literal) => {
        Fixture {
            name: concat!("padding-", $bytes),
            language: Language::C,
            source: concat!(
                "__asm__(\".text\\n.globl cordon_padding\\n.type cordon_padding,@function\\ncordon_padding: .skip ",
                $nops,
                ",0x90\\nret\\n.size cordon_padding,.-cordon_padding\\n\");\n"
            ),
            flags: &[],
            only: None,
            libraries: &[],
            script: |_| Vec::new(),
        }
    };
}

/// The code layouts: bytes of text in front, and what puts them there.
pub const LAYOUTS: &[(usize, Option<Fixture>)] = &[(0, None), (16, Some(padding!("16", "15"))), (48, Some(padding!("48", "47")))];

/// A program with the calls of one pass; none of them faults.
pub struct Program {
    pub name: &'static str,
    pub fixture: &'static Fixture,
    pub calls: Vec<Call>,
}

/// One code layout of a program, in both forms.
pub struct Subject {
    pub padding: usize,
    pub native: NativeRunner,
    pub image: Arc<Image>,
    /// The image for the fast window.
    pub fast: Arc<Image>,
    pub stats: Stats,
}

/// Every program, or those whose names are in `names`.
///
/// # Errors
/// If one of the names is no program, or zlib's cannot be built.
pub fn programs(workshop: &Workshop, names: &[String]) -> Result<Vec<Program>> {
    let program = |fixture: &'static Fixture| {
        let calls = (fixture.script)(SCALE).into_iter().filter(|c| matches!(c.expect, Expect::Same | Expect::Known(_)));
        Program { name: fixture.name, fixture, calls: calls.collect() }
    };
    let timed = |f: &&Fixture| f.language == Language::C && !NOT_TIMED.contains(&f.name);
    let mut all: Vec<Program> = catalog::HANDLERS.iter().filter(timed).map(program).collect();
    all.extend(zlib_programs(workshop)?);
    if let Some(unknown) = names.iter().find(|n| all.iter().all(|p| p.name != **n)) {
        let known: Vec<&str> = all.iter().map(|p| p.name).collect();
        bail!("no program {unknown}; there are: {}", known.join(", "));
    }
    all.retain(|p| names.is_empty() || names.iter().any(|n| n == p.name));
    Ok(all)
}

/// A filter without a packet: it returns after one comparison.
///
/// # Errors
/// If the catalogue has no filters.
pub fn empty_call() -> Result<Program> {
    let fixture = catalog::find("filters").context("the fixture is in the catalogue")?;
    Ok(Program { name: "empty-call", fixture, calls: vec![Call::new("filt_ip"); EMPTY_CALLS] })
}

/// Deflate and inflate, as calls recorded in a window.
fn zlib_programs(workshop: &Workshop) -> Result<[Program; 2]> {
    let fixture = catalog::find(ZLIB).context("the fixture is in the catalogue")?;
    let driver = Program { name: ZLIB, fixture, calls: Vec::new() };
    let mut runner = WindowRunner::new(&workshop.subject(&driver, 0, None)?.image, false)?;
    let packed = zlib::deflate(&mut runner, &mixed_data(1, ZLIB_BYTES), ZLIB_LEVEL)?;
    let restored = zlib::inflate(&mut runner, &packed.output)?;
    Ok([
        Program { name: "zlib-deflate", fixture, calls: packed.calls },
        Program { name: "zlib-inflate", fixture, calls: restored.calls },
    ])
}

/// How an image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    pub mode: Mode,
    /// The fixture (not its libraries) is compiled with `-ffixed-r14`.
    pub spare_r14: bool,
}

const SPARE_R14: &[&str] = &["-ffixed-r14"];

/// One code layout of a program, natively and as several images.
pub struct Variants {
    pub native: NativeRunner,
    pub images: Vec<(Arc<Image>, Stats)>,
}

/// A folder to compile in.
pub struct Workshop {
    builder: Builder,
    _folder: TempDir,
}

impl Workshop {
    /// A workshop in a new temporary folder.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new() -> Result<Workshop> {
        let folder = tempfile::tempdir()?;
        Ok(Workshop { builder: Builder::new(folder.path())?, _folder: folder })
    }

    /// Compiler and level, for people.
    ///
    /// # Errors
    /// If the compiler is missing.
    pub fn compiler(&self) -> Result<String> {
        Ok(format!("{} -O2 -fPIC", gcc()?))
    }

    /// Every code layout of `program`.
    ///
    /// # Errors
    /// If it cannot be compiled, rewritten or loaded.
    pub fn subjects(&self, program: &Program) -> Result<Vec<Subject>> {
        LAYOUTS.iter().map(|(padding, front)| self.subject(program, *padding, front.as_ref())).collect()
    }

    fn subject(&self, program: &Program, padding: usize, front: Option<&Fixture>) -> Result<Subject> {
        let files = self.files(program.fixture, front)?;
        let native = NativeRunner::link(&self.builder, &files)?;
        let (image, stats) = self::image(&files, &Options::default())?;
        let (fast, _) = self::image(&files, &Options { fast_window: true, ..Options::default() })?;
        Ok(Subject { padding, native, image, fast, stats })
    }

    /// Every code layout of `program` natively, and as an image of each build.
    ///
    /// # Errors
    /// If it cannot be compiled, rewritten or loaded.
    pub fn variants(&self, program: &Program, builds: &[Build]) -> Result<Vec<Variants>> {
        let variants = |front: &Option<Fixture>| {
            let plain = self.files(program.fixture, front.as_ref())?;
            let spared = Fixture { flags: SPARE_R14, ..*program.fixture };
            let spared = if program.fixture.flags.is_empty() { self.files(&spared, front.as_ref())? } else { plain.clone() };
            let files = |build: &Build| if build.spare_r14 { &spared } else { &plain };
            let images = builds
                .iter()
                .map(|build| image(files(build), &Options { mode: build.mode, ..Options::default() }))
                .collect::<Result<_>>()?;
            Ok(Variants { native: NativeRunner::link(&self.builder, &plain)?, images })
        };
        LAYOUTS.iter().map(|(_, front)| variants(front)).collect()
    }

    /// The objects and archives of a fixture, behind those of `front`.
    fn files(&self, fixture: &Fixture, front: Option<&Fixture>) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = front.map(|f| self.builder.object(f, USUAL)).transpose()?.into_iter().collect();
        files.push(self.builder.object(fixture, USUAL)?);
        files.extend(self.builder.archives(fixture.libraries)?);
        Ok(files)
    }
}

/// Rewrites and loads.
fn image(files: &[PathBuf], options: &Options) -> Result<(Arc<Image>, Stats)> {
    let inputs = files.iter().map(|path| {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok(Input { name: path.display().to_string(), bytes })
    });
    let rewritten = rewrite(&inputs.collect::<Result<Vec<_>>>()?, options)?;
    // A sealed fast window would keep address 0 for good; this process does not use gs itself.
    let policy = Policy { mode: options.mode, ..Policy::USER };
    let options = LoadOptions { seal: false, host_uses_gs: false, policy, ..LoadOptions::default() };
    Ok((Image::from_bytes(&rewritten.image, &options)?, rewritten.stats))
}

/// gcc with its version.
///
/// # Errors
/// If it is missing.
pub fn gcc() -> Result<String> {
    let answer = run_tool(Command::new("gcc").arg("-dumpfullversion"))?;
    Ok(format!("gcc {}", String::from_utf8_lossy(&answer).trim()))
}

/// The processor's name, as the kernel tells it.
pub fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    let name = line.and_then(|l| l.split_once(':')).map_or("unknown processor", |(_, name)| name.trim());
    let number = |key: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
        line.split_once(':').map(|(_, n)| n.trim().to_owned())
    };
    match (number("cpu family"), number("model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name.into(),
    }
}
