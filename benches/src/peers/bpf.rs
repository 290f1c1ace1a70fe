//! Fixtures as BPF programs: what both virtual machines load, with static data at an address of the machine's choice.

use crate::rows::Program;
use anyhow::{Context as _, Result, bail, ensure};
use cordon_fixtures::catalog::HEADERS;
use cordon_fixtures::compile::run_tool;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, RelocationTarget, SectionKind};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Bytes of one instruction; `lddw` has two.
const INSTRUCTION: usize = 8;
/// Everything in one function.
const ONE_FRAME: [&str; 3] = ["-Dnoinline=unused", "-mllvm", "-inline-threshold=1000000"];
/// Relocation of the immediate of `lddw`, and of a call.
const R_BPF_64_64: u32 = 1;
const R_BPF_64_32: u32 = 10;
/// Rewritten calls inside the program have this in the source register's place.
const PSEUDO_CALL: u8 = 1;

/// One object, its functions, and where its static data wants addresses.
pub struct Object {
    pub text: Vec<u8>,
    /// All data sections behind each other.
    pub data: Vec<u8>,
    /// Offsets in `text` of the functions, by name.
    pub functions: BTreeMap<String, usize>,
    /// Offset in `text` of each `lddw` that takes an address in `data`, and which.
    addresses: Vec<(usize, u64)>,
}

/// The function that takes a [`Context`] and calls an entry.
pub fn wrapper(entry: &str) -> String {
    format!("cordon_{entry}")
}

/// What a wrapper gets, as handlers of packets in an operating system do: one machine passes a single pointer to compiled code.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Context {
    pub payload: u64,
    pub length: u64,
    pub words: [u64; 4],
}

/// The source of a wrapper; the entry's parameters are counted in its own.
fn wrapper_source(source: &str, entry: &str) -> Result<String> {
    let head = format!("long {entry}(void *ctx, unsigned long len");
    let rest = source.split_once(&head).with_context(|| format!("no definition of {entry}"))?.1;
    let count = rest.split_once(')').context("parameters end")?.0.matches(',').count();
    let words: String = (0..count).map(|i| format!(", c->words[{i}]")).collect();
    let name = wrapper(entry);
    Ok(format!(
        "__attribute__((flatten)) long {name}(struct cordon_context *c) {{ return {entry}(c->payload, c->length{words}); }}\n"
    ))
}

impl Object {
    /// Compiles a program, once, with a wrapper for each entry; `one_frame` for machines that have 512 bytes of stack for all functions together.
    ///
    /// # Errors
    /// If clang cannot compile it, or uses what this loader does not know.
    pub fn compile(folder: &Path, program: &Program, one_frame: bool) -> Result<Object> {
        let stem = format!("{}-{}", program.name, if one_frame { "bpf1" } else { "bpf" });
        let (file, object) = (folder.join(format!("{stem}.c")), folder.join(format!("{stem}.o")));
        if object.exists() {
            return Object::parse(&std::fs::read(&object)?).with_context(|| program.name.to_owned());
        }
        for (name, text) in HEADERS {
            std::fs::write(folder.join(name), text)?;
        }
        let mut source = program.fixture.source.to_owned();
        source += "struct cordon_context { void *payload; u64 length, words[4]; };\n";
        let entries: BTreeSet<&str> = program.calls.iter().map(|c| c.entry).collect();
        for entry in entries {
            source += &wrapper_source(program.fixture.source, entry)?;
        }
        std::fs::write(&file, source)?;
        let mut command = Command::new("clang-19");
        command.args(["-target", "bpf", "-mcpu=v3", "-std=gnu11", "-O2"]).args(program.fixture.flags);
        if one_frame {
            command.args(ONE_FRAME);
        }
        run_tool(command.arg("-c").arg(&file).arg("-o").arg(&object)).with_context(|| format!("{}: to BPF", program.name))?;
        Object::parse(&std::fs::read(&object)?).with_context(|| program.name.to_owned())
    }

    fn parse(bytes: &[u8]) -> Result<Object> {
        let file = object::File::parse(bytes)?;
        let code = file.section_by_name(".text").context("no code")?;
        let mut found =
            Object { text: code.data()?.to_vec(), data: Vec::new(), functions: BTreeMap::new(), addresses: Vec::new() };
        let mut places: BTreeMap<usize, u64> = BTreeMap::new();
        for section in file.sections() {
            let keep = matches!(
                section.kind(),
                SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString | SectionKind::UninitializedData
            );
            if keep {
                found.data.resize(found.data.len().next_multiple_of(64), 0);
                places.insert(section.index().0, found.data.len() as u64);
                let end = found.data.len() + section.size() as usize;
                found.data.extend_from_slice(section.data()?);
                found.data.resize(end, 0);
                ensure!(section.relocations().next().is_none(), "addresses in static data");
            }
        }
        for symbol in file.symbols().filter(|s| s.section_index() == Some(code.index()) && s.kind() == object::SymbolKind::Text) {
            found.functions.insert(symbol.name()?.into(), symbol.address() as usize);
        }
        for (at, relocation) in code.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else { bail!("a relocation without symbol") };
            let RelocationFlags::Elf { r_type } = relocation.flags() else { bail!("not ELF") };
            let symbol = file.symbol_by_index(index)?;
            let place = symbol.section_index();
            let at = at as usize;
            let addend = immediate(&found.text, at);
            match r_type.0 {
                R_BPF_64_64 => {
                    let start = place
                        .and_then(|p| places.get(&p.0))
                        .with_context(|| format!("{} is not here", symbol.name().unwrap_or("?")))?;
                    found.addresses.push((at, start + symbol.address() + addend));
                }
                R_BPF_64_32 if place == Some(code.index()) => {
                    // A call counts instructions from behind itself; -1 stands for none yet, and is counted from the section's start.
                    let target = symbol.address() as i64 / INSTRUCTION as i64 + i64::from((addend as u32).cast_signed()) + 1;
                    let distance = target - (at / INSTRUCTION) as i64 - 1;
                    found.text[at + 4..at + 8].copy_from_slice(&i32::try_from(distance)?.to_le_bytes());
                    found.text[at + 1] = found.text[at + 1] & 0x0f | PSEUDO_CALL << 4;
                }
                _ => bail!("a relocation of type {} against {}", r_type.0, symbol.name().unwrap_or("?")),
            }
        }
        Ok(found)
    }

    /// The code of all functions, static data at `base`.
    pub fn text_at(&self, base: u64) -> Vec<u8> {
        let mut text = self.text.clone();
        for (at, offset) in &self.addresses {
            let address = base + offset;
            text[at + 4..at + 8].copy_from_slice(&(address as u32).to_le_bytes());
            text[at + 12..at + 16].copy_from_slice(&((address >> 32) as u32).to_le_bytes());
        }
        text
    }
}

/// The immediate of the instruction at `at`.
fn immediate(text: &[u8], at: usize) -> u64 {
    text.get(at + 4..at + 8).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from(u32::from_le_bytes(*b)))
}
