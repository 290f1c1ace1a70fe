//! From fixture source to a loaded image.

use super::broken;
use crate::cli::outcome::Failure;
use crate::cli::run::load_failure;
use anyhow::Context as _;
use cordon_fixtures::catalog::{self, Fixture};
use cordon_fixtures::compile::{Builder, USUAL};
use cordon_fixtures::native::NativeRunner;
use cordon_loader::{Image, LoadOptions};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, Stats, rewrite};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A folder to compile in.
#[derive(Debug)]
pub struct Workshop {
    builder: Builder,
    _folder: TempDir,
}

/// A fixture in both forms.
#[derive(Debug)]
pub struct Built {
    name: &'static str,
    pub native: NativeRunner,
    /// The image file.
    pub file: Vec<u8>,
    pub image: Arc<Image>,
    pub stats: Stats,
}

impl Workshop {
    /// A workshop in a new temporary folder, removed when it is dropped.
    pub fn new() -> anyhow::Result<Workshop> {
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        Ok(Workshop { builder: Builder::new(folder.path())?, _folder: folder })
    }

    /// Compiles fixture `name` with gcc -O2, links it natively, rewrites it and loads (so checks) the image.
    pub fn build(&self, name: &str) -> Result<Built, Failure> {
        let fixture = catalog::find(name).with_context(|| format!("no fixture {name}")).map_err(broken)?;
        let files = self.files(fixture).map_err(broken)?;
        let native = NativeRunner::link(&self.builder, &files).map_err(broken)?;
        let mut inputs: Vec<Input> = files.iter().map(|path| input(path)).collect::<anyhow::Result<_>>().map_err(broken)?;
        if let Some(own) = inputs.first_mut() {
            // Reports are easier to read without the workshop's file names.
            own.name = format!("{name}.o");
        }
        let rewritten = rewrite(&inputs, &Options::default())?;
        let image = load(name, &rewritten.image, &LoadOptions::default())?;
        Ok(Built { name: fixture.name, native, file: rewritten.image, image, stats: rewritten.stats })
    }

    fn files(&self, fixture: &Fixture) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = vec![self.builder.object(fixture, USUAL)?];
        files.extend(self.builder.archives(fixture.libraries)?);
        Ok(files)
    }
}

/// Reads an object or archive; it is known by its file name, without the temporary folder.
fn input(path: &Path) -> anyhow::Result<Input> {
    let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    Ok(Input { name, bytes: std::fs::read(path).with_context(|| path.display().to_string())? })
}

fn load(name: &str, file: &[u8], options: &LoadOptions) -> Result<Arc<Image>, Failure> {
    Image::from_bytes(file, options).map_err(|e| load_failure(Path::new(name), file, &e))
}

impl Built {
    /// The same image, loaded so that its window can be at address 0 and leave the place to the next one: a sealed page stays for good.
    pub fn unsealed(&self) -> Result<Arc<Image>, Failure> {
        load(self.name, &self.file, &LoadOptions { seal: false, ..LoadOptions::default() })
    }
}
