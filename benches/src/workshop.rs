//! Builds programs: natively, as images, as modules and as BPF, in several code layouts.

use crate::columns::{Column, Kind};
use crate::peers::bpf::Object;
use crate::peers::rbpf::Rbpf;
use crate::peers::sbpf::Sbpf;
use crate::peers::wasmi::Wasmi;
use crate::peers::{Runner, Windowed, wasm, wasm2c, wasmtime};
use crate::rows::Program;
use anyhow::{Context as _, Result};
use cordon_checker::Policy;
use cordon_fixtures::catalog::{Fixture, Language};
use cordon_fixtures::compile::{Builder, Compiler, Config, USUAL};
use cordon_fixtures::native::NativeRunner;
use cordon_fixtures::window::WindowRunner;
use cordon_loader::{Image, LoadOptions};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, Stats, rewrite};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

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

/// A folder to compile in.
pub struct Workshop {
    builder: Builder,
    /// The runner of wasmtime, where it was built.
    wasmtime: Option<PathBuf>,
    folder: TempDir,
}

/// A program in one column and layout.
pub struct Built {
    pub runner: Box<dyn Runner>,
    /// Of the rewriter, where there is an image.
    pub stats: Option<Stats>,
}

impl Workshop {
    /// A workshop in a new temporary folder.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new() -> Result<Workshop> {
        let folder = tempfile::tempdir()?;
        Ok(Workshop { builder: Builder::new(folder.path())?, wasmtime: wasmtime::executable()?, folder })
    }

    /// Where sources and results of compilers lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The runner of wasmtime, where it was built.
    pub fn wasmtime(&self) -> Option<&Path> {
        self.wasmtime.as_deref()
    }

    /// The native program of a column.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn native(&self, program: &Program, compiler: Compiler) -> Result<NativeRunner> {
        NativeRunner::link(&self.builder, &self.files(program.fixture, compiler, None)?)
    }

    /// The image of a window's column, as a file.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn image_file(&self, program: &Program, compiler: Compiler, options: &Options) -> Result<Vec<u8>> {
        Ok(rewrite(&inputs(&self.files(program.fixture, compiler, None)?)?, options)?.image)
    }

    /// The object of one fixture, as in all columns of `compiler`.
    ///
    /// # Errors
    /// If it cannot be compiled.
    pub fn object(&self, fixture: &Fixture, compiler: Compiler) -> Result<PathBuf> {
        self.builder.object(fixture, Config { compiler, ..USUAL })
    }

    /// Why there is nothing in `column` on this machine.
    pub fn lacks(&self, column: &Column) -> Option<&'static str> {
        (matches!(column.kind, Kind::Wasmtime(_)) && self.wasmtime.is_none()).then_some("wasmtime's runner was not built")
    }

    /// A window of the program, to record what is called in it.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn window(&self, program: &Program) -> Result<WindowRunner> {
        let files = self.files(program.fixture, Compiler::Gcc, None)?;
        WindowRunner::new(&image(&files, &Options::default())?.0, false)
    }

    /// Builds `program` for `column`, behind `front` of `padding` bytes.
    ///
    /// # Errors
    /// If it cannot be compiled, rewritten or loaded.
    pub fn build(&self, program: &Program, column: &Column, padding: usize, front: Option<&Fixture>) -> Result<Built> {
        let native = |compiler| NativeRunner::link(&self.builder, &self.files(program.fixture, compiler, front)?);
        let module = || wasm::module(self.folder.path(), program, padding);
        let object = |one_frame| Object::compile(self.folder.path(), program, one_frame);
        let runner: Box<dyn Runner> = match column.kind {
            Kind::Native(compiler) => Box::new(native(compiler)?),
            Kind::Process(remote) => Box::new(native(Compiler::Gcc)?.remote(remote)),
            Kind::Window(rewriting) => {
                let files = self.files(program.fixture, rewriting.compiler, front)?;
                let (image, stats) = image(&files, &rewriting.options())?;
                return Ok(Built { runner: Box::new(Windowed { image, fast: rewriting.fast }), stats: Some(stats) });
            }
            Kind::Wasm2c => Box::new(wasm2c::runner(self.folder.path(), &self.builder, &module()?)?),
            Kind::Wasmtime(limit) => {
                let executable = self.wasmtime.as_deref().context("wasmtime's runner was not built")?;
                Box::new(wasmtime::runner(executable, &module()?, limit)?)
            }
            Kind::Wasmi => Box::new(Wasmi::new(&module()?)?),
            Kind::Rbpf { compiled } => Box::new(Rbpf::new(object(true)?, compiled)),
            Kind::Sbpf { compiled } => Box::new(Sbpf::new(object(false)?, compiled)),
        };
        Ok(Built { runner, stats: None })
    }

    /// The objects and archives of a fixture, behind those of `front`.
    fn files(&self, fixture: &Fixture, compiler: Compiler, front: Option<&Fixture>) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = front.map(|f| self.object(f, compiler)).transpose()?.into_iter().collect();
        files.push(self.object(fixture, compiler)?);
        files.extend(self.builder.archives(fixture.libraries)?);
        Ok(files)
    }
}

fn inputs(files: &[PathBuf]) -> Result<Vec<Input>> {
    let input = |path: &PathBuf| {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok(Input { name: path.display().to_string(), bytes })
    };
    files.iter().map(input).collect()
}

/// Rewrites and loads.
///
/// # Errors
/// If the rewriter or the loader refuse.
pub fn image(files: &[PathBuf], options: &Options) -> Result<(Arc<Image>, Stats)> {
    let rewritten = rewrite(&inputs(files)?, options)?;
    Ok((Image::from_bytes(&rewritten.image, &loading(options))?, rewritten.stats))
}

/// How the benches load: a sealed fast window would keep address 0 for good, and this process does not use gs itself.
pub fn loading(options: &Options) -> LoadOptions {
    let policy = Policy { mode: options.mode, ..Policy::USER };
    LoadOptions { seal: false, policy, ..LoadOptions::default() }
}
