//! One relocatable object: header, section headers, symbols and groups, all checked; section contents come later (`contents`).

use super::classify::{self, Role, Traits};
use crate::diag::{Diagnostic, Place};
use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{LittleEndian, elf};
use std::ops::Range;

type Header = elf::FileHeader64<LittleEndian>;
type Symbols<'a> = object::read::elf::SymbolTable<'a, Header>;
type Sections<'a> = object::read::elf::SectionTable<'a, Header>;

const LE: LittleEndian = LittleEndian;
/// Longest symbol or section name, bytes.
const MAX_NAME: usize = 64 << 10;
/// Common symbols of the large code model, psABI x86-64 section 4.2.
const SHN_X86_64_LCOMMON: u16 = 0xff02;

/// A section header.
#[derive(Debug)]
pub(super) struct InputSection<'a> {
    pub name: &'a str,
    pub kind: elf::SectionType,
    pub flags: u64,
    pub size: u64,
    /// Power of two unless the role is a refusal.
    pub align: u64,
    pub link: u32,
    pub info: u32,
    pub role: Role,
    /// Its bytes in the file; empty for SHT_NOBITS.
    pub file: Range<usize>,
    /// Index into [`ObjectFile::groups`].
    pub group: Option<usize>,
}

/// Where a symbol is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Undefined,
    Absolute,
    /// Tentative; the value is the alignment.
    Common,
    /// ELF section index, in range.
    Section(usize),
}

/// STB_LOCAL, STB_GLOBAL (STB_GNU_UNIQUE too) or STB_WEAK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bind {
    Local,
    Global,
    Weak,
}

/// A symbol table entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct InputSymbol<'a> {
    /// Not empty if global or weak.
    pub name: &'a str,
    pub kind: elf::SymbolType,
    pub bind: Bind,
    pub at: At,
    /// Within its section, or equal to its size.
    pub value: u64,
    pub size: u64,
}

/// A section group.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub signature: &'a str,
    pub comdat: bool,
}

/// An object as far as symbol resolution needs it.
#[derive(Debug)]
pub(super) struct ObjectFile<'a> {
    pub name: String,
    pub explicit: bool,
    pub data: &'a [u8],
    /// By ELF index; 0 is the null section.
    pub sections: Vec<InputSection<'a>>,
    /// By symbol table index; 0 is the null symbol.
    pub symbols: Vec<InputSymbol<'a>>,
    /// ELF index of the symbol table, 0 if there is none.
    pub symbol_table: usize,
    pub groups: Vec<Group<'a>>,
}

impl<'a> ObjectFile<'a> {
    /// Reads the headers, symbols and groups of `data`.
    ///
    /// # Errors
    /// The first problem; boxed because it is rare and large.
    pub fn parse(name: &str, data: &'a [u8], explicit: bool) -> Result<Self, Box<Diagnostic>> {
        let fault = Fault { object: name };
        identify(fault, data)?;
        let invalid = |e: object::read::Error| fault.at(None, "malformed-object", format!("{e}"));
        let header = Header::parse(data).map_err(invalid)?;
        check_header(fault, header)?;
        let table = header.sections(LE, data).map_err(invalid)?;
        let mut object = ObjectFile {
            name: name.to_owned(),
            explicit,
            data,
            sections: sections(fault, &table, data)?,
            symbols: Vec::new(),
            symbol_table: 0,
            groups: Vec::new(),
        };
        object.refuse_overlaps(fault)?;
        let symbols = object.read_symbols(fault, &table)?;
        object.read_groups(fault, &table, &symbols)?;
        object.refuse_bytecode(fault)?;
        Ok(object)
    }

    /// The place of `offset` in section `index`.
    pub fn place(&self, index: usize, offset: Option<u64>) -> Place {
        let section = self.sections.get(index).map(|s| s.name.to_owned());
        Place { object: self.name.clone(), section, offset, symbol: None }
    }

    /// The file bytes of section `index`.
    pub fn bytes(&self, index: usize) -> &'a [u8] {
        self.sections.get(index).and_then(|s| self.data.get(s.file.clone())).unwrap_or_default()
    }

    /// No assembler makes sections share bytes. Refusing them also bounds what can be read out of a file by its size.
    fn refuse_overlaps(&self, fault: Fault) -> Result<(), Box<Diagnostic>> {
        let mut ranges: Vec<_> = self.sections.iter().filter(|s| !s.file.is_empty()).map(|s| (&s.file, s.name)).collect();
        ranges.sort_unstable_by_key(|(range, _)| (range.start, range.end));
        match ranges.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
            Some(pair) => {
                let message = format!("the section shares bytes of the file with section {}", pair[0].1);
                Err(fault.at(Some(pair[1].1), "overlapping-sections", message))
            }
            None => Ok(()),
        }
    }

    fn read_symbols(&mut self, fault: Fault, table: &Sections<'a>) -> Result<Symbols<'a>, Box<Diagnostic>> {
        let mut tables = self.sections.iter().enumerate().filter(|(_, s)| s.kind == elf::SHT_SYMTAB);
        let first = tables.next().map(|(index, s)| (index, s.name));
        if let Some((_, second)) = tables.next() {
            return Err(fault.at(Some(second.name), "malformed-object", "a second symbol table"));
        }
        let Some((index, name)) = first else { return Ok(Symbols::default()) };
        let invalid = |e: object::read::Error| fault.at(Some(name), "malformed-symbol", format!("{e}"));
        self.symbol_table = index;
        let symbols = table.symbols(LE, self.data, elf::SHT_SYMTAB).map_err(invalid)?;
        let strings = self.sections.get(symbols.string_section().0).map_or(0, |s| s.file.len());
        let mut budget = NameBudget::new(strings);
        self.symbols.reserve_exact(symbols.len());
        for (number, symbol) in symbols.enumerate() {
            let read = self.read_symbol(&symbols, number, symbol, &mut budget);
            let symbol =
                read.map_err(|message| fault.at(Some(name), "malformed-symbol", format!("symbol {}: {message}", number.0)))?;
            self.symbols.push(symbol);
        }
        Ok(symbols)
    }

    fn read_symbol(
        &self,
        table: &Symbols<'a>,
        number: object::SymbolIndex,
        symbol: &'a elf::Sym64<LittleEndian>,
        budget: &mut NameBudget,
    ) -> Result<InputSymbol<'a>, String> {
        let name = budget.take(table.symbol_name(LE, symbol).map_err(|e| e.to_string())?)?;
        let bind = match symbol.st_bind() {
            elf::STB_LOCAL => Bind::Local,
            elf::STB_WEAK => Bind::Weak,
            elf::STB_GLOBAL | elf::STB_GNU_UNIQUE => Bind::Global,
            other => return Err(format!("unknown binding {}", other.0)),
        };
        let index = symbol.st_shndx(LE);
        let at = match table.symbol_section(LE, symbol, number).map_err(|e| e.to_string())? {
            Some(section) if section.0 == 0 => At::Undefined,
            Some(section) if section.0 < self.sections.len() => At::Section(section.0),
            Some(section) => return Err(format!("section {} does not exist", section.0)),
            None if index == elf::SHN_ABS => At::Absolute,
            None if index == elf::SHN_COMMON || index.0 == SHN_X86_64_LCOMMON => At::Common,
            None if index == elf::SHN_UNDEF || index == elf::SHN_XINDEX => At::Undefined,
            None => return Err(format!("unknown section index {:#x}", index.0)),
        };
        let (value, mut size) = (symbol.st_value(LE), symbol.st_size(LE));
        match at {
            At::Section(section) => {
                let room = self.sections[section].size.checked_sub(value);
                size = size.min(room.ok_or_else(|| format!("{name} lies outside of its section"))?);
            }
            At::Common if bind == Bind::Local => return Err(format!("{name} is both local and common")),
            At::Common if !value.is_power_of_two() || value > classify::MAX_ALIGN || size > classify::MAX_SIZE => {
                return Err(format!("common symbol {name} has a bad size or alignment"));
            }
            _ => {}
        }
        if bind != Bind::Local && name.is_empty() {
            return Err("a global symbol without a name".to_owned());
        }
        if bind != Bind::Local && at != At::Undefined && ["__cordon_", "cordon."].iter().any(|r| name.starts_with(r)) {
            return Err(format!("{name} is reserved and cannot be defined"));
        }
        Ok(InputSymbol { name, kind: symbol.st_type(), bind, at, value, size })
    }

    fn read_groups(&mut self, fault: Fault, table: &Sections<'a>, symbols: &Symbols<'a>) -> Result<(), Box<Diagnostic>> {
        for (index, header) in table.enumerate() {
            let name = self.sections[index.0].name;
            let bad = |message: String| fault.at(Some(name), "malformed-group", message);
            let Some((flags, members)) = header.group(LE, self.data).map_err(|e| bad(e.to_string()))? else { continue };
            if header.sh_link(LE) as usize != symbols.section().0 {
                return Err(bad("the group's signature is not in the symbol table".to_owned()));
            }
            let symbol = self.symbols.get(header.sh_info(LE) as usize);
            let symbol = symbol.ok_or_else(|| bad("the group's signature symbol does not exist".to_owned()))?;
            let signature = match symbol.at {
                At::Section(section) if symbol.kind == elf::STT_SECTION => self.sections[section].name,
                _ => symbol.name,
            };
            let group = self.groups.len();
            self.groups.push(Group { signature, comdat: flags.0 & elf::GRP_COMDAT.0 != 0 });
            for member in members {
                let member = self.sections.get_mut(member.get(LE) as usize);
                let member = member.ok_or_else(|| bad("a member of the group does not exist".to_owned()))?;
                if member.group.replace(group).is_some() {
                    return Err(bad(format!("section {} is in two groups", member.name)));
                }
            }
        }
        Ok(())
    }

    /// Link-time optimisation without `-ffat-lto-objects` leaves no machine code in the object.
    fn refuse_bytecode(&self, fault: Fault) -> Result<(), Box<Diagnostic>> {
        let Some(bytecode) = self.sections.iter().find(|s| s.name.starts_with(".gnu.lto_")) else { return Ok(()) };
        let slim = self.symbols.iter().any(|s| s.name == "__gnu_lto_slim");
        let empty = !self.sections.iter().any(|s| matches!(s.role, Role::Kept(_)) && s.size > 0);
        if !slim && !empty {
            return Ok(());
        }
        Err(fault.at(Some(bytecode.name), "lto-bytecode", "the object holds bytecode only; compile it with -fno-lto"))
    }
}

/// Makes diagnostics about one object.
#[derive(Clone, Copy)]
struct Fault<'n> {
    object: &'n str,
}

impl Fault<'_> {
    fn at(self, section: Option<&str>, code: &'static str, message: impl Into<String>) -> Box<Diagnostic> {
        let place = Place { object: self.object.to_owned(), section: section.map(str::to_owned), ..Place::default() };
        Box::new(Diagnostic::new(place, code, message))
    }
}

/// Refuses what is not a 64-bit little-endian ELF file, saying what it is instead.
fn identify(fault: Fault, data: &[u8]) -> Result<(), Box<Diagnostic>> {
    let refuse = |code, message| Err(fault.at(None, code, message));
    if data.starts_with(b"BC\xc0\xde") || data.starts_with(b"\xde\xc0\x17\x0b") {
        return refuse("lto-bytecode", "the file is LLVM bitcode; compile it with -fno-lto");
    }
    if !data.starts_with(&elf::ELFMAG) {
        return refuse("not-elf", "the file is not an ELF object");
    }
    let (class, order) = (data.get(4), data.get(5));
    if class == Some(&elf::ELFCLASS32.0) {
        return refuse("wrong-class", "a 32-bit object; only 64-bit ones are supported");
    }
    if order == Some(&elf::ELFDATA2MSB.0) {
        return refuse("wrong-byte-order", "a big-endian object; only little-endian ones are supported");
    }
    if class != Some(&elf::ELFCLASS64.0) || order != Some(&elf::ELFDATA2LSB.0) || data.get(6) != Some(&1) {
        return refuse("malformed-object", "the ELF identification is not valid");
    }
    Ok(())
}

fn check_header(fault: Fault, header: &Header) -> Result<(), Box<Diagnostic>> {
    if header.e_machine(LE) != elf::EM_X86_64 {
        return Err(fault.at(None, "wrong-machine", format!("an object for ELF machine {}, not x86-64", header.e_machine(LE).0)));
    }
    let what = match header.e_type(LE) {
        elf::ET_REL => return Ok(()),
        elf::ET_EXEC => "an executable",
        elf::ET_DYN => "a shared object or position-independent executable",
        elf::ET_CORE => "a core dump",
        _ => "of an unknown file type",
    };
    Err(fault.at(None, "not-relocatable", format!("the file is {what}; only relocatable objects are supported")))
}

/// The section headers, with file ranges inside the file.
fn sections<'a>(fault: Fault, table: &Sections<'a>, data: &'a [u8]) -> Result<Vec<InputSection<'a>>, Box<Diagnostic>> {
    let names = table.iter().map(|s| s.sh_name(LE)).max().unwrap_or(0);
    let mut budget = NameBudget::new(usize::try_from(names).unwrap_or(usize::MAX).min(data.len()));
    let mut sections = Vec::with_capacity(table.len());
    for (index, header) in table.enumerate() {
        let bad = |message: String| fault.at(None, "malformed-section", format!("section {}: {message}", index.0));
        // Section 0 has no name, and objects without sections no table of names.
        let name = if index.0 == 0 { Ok(&b""[..]) } else { table.section_name(LE, header) };
        let name = name.map_err(|e| e.to_string()).and_then(|n| budget.take(n)).map_err(bad)?;
        let kind = header.sh_type(LE);
        let has_bytes = index.0 != 0 && kind != elf::SHT_NOBITS && kind != elf::SHT_NULL;
        let file = if has_bytes { file_range(header, data) } else { Some(0..0) };
        let file = file.ok_or_else(|| fault.at(Some(name), "malformed-section", "the section lies outside of the file"))?;
        let size = if index.0 == 0 { 0 } else { header.sh_size(LE) };
        let (flags, align) = (header.sh_flags(LE).0, header.sh_addralign(LE).max(1));
        let role = classify::role(Traits { name, kind, flags, size, align });
        let (link, info) = (header.sh_link(LE), header.sh_info(LE));
        sections.push(InputSection { name, kind, flags, size, align, link, info, role, file, group: None });
    }
    Ok(sections)
}

fn file_range(header: &elf::SectionHeader64<LittleEndian>, data: &[u8]) -> Option<Range<usize>> {
    let start = usize::try_from(header.sh_offset(LE)).ok()?;
    let end = start.checked_add(usize::try_from(header.sh_size(LE)).ok()?)?;
    (end <= data.len()).then_some(start..end)
}

/// Bounds the total length of names: entries of a hostile table may all share one long string.
struct NameBudget(usize);

impl NameBudget {
    fn new(table: usize) -> Self {
        NameBudget(table.saturating_mul(16).max(16 << 20))
    }

    fn take<'a>(&mut self, name: &'a [u8]) -> Result<&'a str, String> {
        if name.len() > MAX_NAME {
            return Err(format!("a name of {} bytes", name.len()));
        }
        self.0 = self.0.checked_sub(name.len()).ok_or("the names are too long in total")?;
        std::str::from_utf8(name).map_err(|_| format!("the name {} is not UTF-8", String::from_utf8_lossy(name)))
    }
}
