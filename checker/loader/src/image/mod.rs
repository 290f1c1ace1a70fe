//! A checked image: text mapped read+execute at a random address, shared read-only data, and what windows are made from.

pub mod elf;
mod jumps;
pub mod lines;
pub mod places;
pub mod states;

use crate::context::flag;
use crate::cpu::{self, Leaf};
use crate::enter;
use crate::error::Error;
use crate::fault::FaultKind;
use crate::gates;
use crate::pages::{Access, PAGE, Pages, SharedBytes};
use cordon_checker::layout::{NULL_ZONE_END, Region, RegionKind, STACK_HEADROOM, Slot, USER_STACK_LOW};
use cordon_checker::note::{Note, NoteError};
use cordon_checker::policy::Host;
use cordon_checker::{Features, Layout, LayoutError, Mode, Policy, Summary, check, scratch_len};
use elf::{Parts, Segment};
use jumps::{IMPORT_CALL, Jumps};
use lines::{Debug, Lines};
use places::{Origin, Places};
use states::States;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Bytes of one stub in front of a gate.
const STUB: u64 = 32;
/// Where a stub keeps the address of its gate.
const STUB_POINTER: usize = 24;
/// `ud2`: the trap stub, and the filling behind text and stubs.
const UD2: [u8; 2] = [0x0f, 0x0b];

/// Terms under which images are loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// What text may contain; the host must be [`Host::User`].
    pub policy: Policy,
    /// Most bytes of memory that one window may have: all its regions and tables together, and a native stack.
    pub memory_limit: u64,
    /// Seal text and code-pointer tables with `mseal` where the kernel has it (Linux 6.10). A seal cannot be undone: the pages stay
    /// mapped to the end of the process, a few pages for every image. A host that loads images without end turns it off; text and
    /// tables are then protected by `mprotect` only.
    pub seal: bool,
    /// Every call restores the base of the segment register gs whatever it was, which costs two writes, 12 ns each, at every call. By default
    /// (false) a base that is not 0 is restored (a host that uses gs, as Wine does), but where it is 0, and so nobody's, the base of
    /// the window stays for the next call.
    pub host_uses_gs: bool,
    /// Most time that one call of a window may take, its initialisation included; see [`crate::Window::set_time_limit`].
    pub time_limit: Option<Duration>,
    /// Most instructions that one call of a window may execute; a limit makes the loader refuse images that are not metered. See
    /// [`crate::Window::set_fuel`].
    pub fuel: Option<u64>,
    /// Write the segment base by `wrgsbase` where the kernel allows it; turned off, by system calls (for tests).
    pub fsgsbase: bool,
}

impl Default for LoadOptions {
    /// [`Policy::USER`], 1 GiB, sealed, gs restored where it is in use, [`crate::DEFAULT_TIME_LIMIT`] (10 s), no fuel limit.
    fn default() -> Self {
        let time_limit = Some(crate::time::DEFAULT);
        LoadOptions {
            policy: Policy::USER,
            memory_limit: 1 << 30,
            seal: true,
            host_uses_gs: false,
            time_limit,
            fuel: None,
            fsgsbase: true,
        }
    }
}

/// An entry of an image, found by name once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    image: u64,
    offset: u32,
}

/// An import that an image lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportName {
    /// As [`crate::Imports::function`] takes it.
    pub name: String,
    /// The loader itself provides it.
    pub built_in: bool,
}

/// A sub-table: displacement of its first slot, text offset or trap of each listed slot.
pub(crate) struct SubSlots {
    pub base: u32,
    pub slots: Vec<Slot>,
}

/// Initial bytes of a writable region.
pub(crate) struct Initial {
    pub start: u32,
    pub bytes: Box<[u8]>,
}

/// A reservation whose tables are written and sealed; no region of it is mapped.
pub(crate) struct Spare {
    pub pages: Pages,
    /// Address of window offset 0.
    pub base: u64,
    /// Which imports the tables lead to, by import index.
    pub offered: Vec<bool>,
}

/// A checked, mapped image. Many windows can be made from one; they share text and read-only data.
pub struct Image {
    id: u64,
    options: LoadOptions,
    code: Pages,
    text_len: u64,
    summary: Summary,
    mode: Mode,
    flags: u32,
    leaves: Vec<Leaf>,
    state_components: u64,
    table: Range<u32>,
    main_mask: u64,
    slots: Vec<Slot>,
    sub_tables: Vec<SubSlots>,
    entries: Vec<(String, u32)>,
    imports: Vec<ImportName>,
    regions: Vec<Region>,
    stack: Region,
    stack_size: u64,
    stack_shift: u32,
    max_depth: u32,
    rodata: Vec<(Region, SharedBytes)>,
    data: Vec<Initial>,
    places: Places,
    /// What the host calls the handler, for reports.
    name: Option<String>,
    /// The note's descriptor.
    note: Box<[u8]>,
    debug: Debug,
    lines: OnceLock<Lines>,
    jumps: Jumps,
    /// Reservations of dropped windows whose tables are sealed, for the next windows.
    spare: Mutex<Vec<Spare>>,
}

impl Image {
    /// Loads an image file: parses it, copies the text to its place, checks the copy, makes it executable.
    ///
    /// # Errors
    /// [`Error::Format`], [`Error::Note`], [`Error::Layout`], [`Error::Host`] for a bad container, [`Error::Rejected`] for text that the
    /// checker refuses, [`Error::MemoryLimit`], [`Error::Cpu`], [`Error::Memory`].
    pub fn from_bytes(file: &[u8], options: &LoadOptions) -> Result<Arc<Image>, Error> {
        Image::load(None, file, options)
    }

    /// As [`Image::from_bytes`]; reports call the handler `name`.
    ///
    /// # Errors
    /// As [`Image::from_bytes`].
    pub fn named(name: &str, file: &[u8], options: &LoadOptions) -> Result<Arc<Image>, Error> {
        Image::load(Some(name.to_owned()), file, options)
    }

    fn load(name: Option<String>, file: &[u8], options: &LoadOptions) -> Result<Arc<Image>, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if options.policy.host != Host::User {
            return Err(Error::Host("the policy is not for a user-mode host"));
        }
        let parts = elf::split(file)?;
        // Judged and used is this copy: a file that is mapped could change in between (design-review B12).
        let descriptor = parts.note.to_vec();
        let note = Note::parse(&descriptor).map_err(Error::Note)?;
        note.validate(&options.policy).map_err(Error::Layout)?;
        let layout = note.layout;
        if options.fuel.is_some() && !layout.mode.metered {
            return Err(Error::NotMetered);
        }
        let (regions, stack) = regions(&layout, options)?;
        let imports = imports(&note, &layout)?;
        let (code, summary, jumps) = map_text(&parts, options, &layout, &imports)?;
        let (rodata, data) = contents(&parts.segments, &regions)?;
        let features = Features(options.policy.features.0 & cpu::this_cpu().features.0);
        Ok(Arc::new(Image {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            options: *options,
            code,
            text_len: parts.text.len() as u64,
            summary,
            flags: flags(&summary, &imports, layout.mode, options),
            mode: layout.mode,
            leaves: cpu::leaves(features),
            state_components: cpu::state_components(features),
            table: layout.table.cast_unsigned()..layout.table_end.cast_unsigned(),
            main_mask: 8 * ((1_u64 << layout.main_bits) - 1),
            slots: layout.slots.iter().map(Slot::from_word).collect(),
            sub_tables: sub_tables(&layout),
            entries: entries(&note, &layout)?,
            imports,
            stack_shift: layout.stack_shift,
            stack_size: u64::from(stack.end - STACK_HEADROOM - stack.start),
            regions,
            stack,
            max_depth: layout.max_depth,
            rodata,
            data,
            places: Places::new(&parts),
            name,
            debug: Debug::new(&parts.debug),
            lines: OnceLock::new(),
            jumps,
            note: descriptor.into(),
            spare: Mutex::new(Vec::new()),
        }))
    }

    /// Entry `name`, to be called without looking it up again.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<Entry> {
        let at = self.entries.binary_search_by(|(entry, _)| entry.as_str().cmp(name)).ok()?;
        Some(Entry { image: self.id, offset: self.entries[at].1 })
    }

    /// Names of the entries, ascending.
    pub fn entry_names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// What the text may call.
    #[must_use]
    pub fn imports(&self) -> &[ImportName] {
        &self.imports
    }

    /// What the checker found out about the text.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// What the text proves beyond the sandbox: the checker verified it.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The terms under which the image was loaded.
    #[must_use]
    pub fn options(&self) -> &LoadOptions {
        &self.options
    }

    /// The regions of every window of this image: ordered, disjoint, in bytes from the window's base.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Name of the function at text offset `offset` and the distance from its start, if the image has symbols.
    #[must_use]
    pub fn function_at(&self, offset: u32) -> Option<(&str, u32)> {
        self.places.function(offset)
    }

    /// Where the instruction at text offset `offset` came from, if the image tells.
    #[must_use]
    pub fn origin_of(&self, offset: u32) -> Option<Origin> {
        self.places.origin(offset)
    }

    /// Address of the text in this process, for debuggers and profilers. Handlers must not learn it.
    #[must_use]
    pub fn text_address(&self) -> u64 {
        self.code.start()
    }

    /// What the host called the handler.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The checked text.
    pub(crate) fn text(&self) -> &[u8] {
        // SAFETY: the text is mapped as long as the image lives, readable, and never changes.
        unsafe { std::slice::from_raw_parts(self.code.start() as *const u8, self.text_len as usize) }
    }

    /// Source lines of the text, read when they are first asked for.
    pub(crate) fn lines(&self) -> &Lines {
        self.lines.get_or_init(|| Lines::read(&self.debug))
    }

    /// Stack states of the text: known from the check if the image can call `cordon.longjmp`, else found out when they are first asked for.
    pub(crate) fn states(&self) -> &States {
        self.jumps.states.get_or_init(|| match Note::parse(&self.note) {
            Ok(note) => States::of(self.text(), &self.options.policy, &note.layout),
            Err(_) => States::default(),
        })
    }

    /// Whether the instruction at text offset `offset` follows a call of `cordon.setjmp`, and the image can call `cordon.longjmp`.
    pub(crate) fn is_landing(&self, offset: u32) -> bool {
        self.jumps.landings.binary_search(&offset).is_ok()
    }

    /// Name of the entry at text offset `offset`; the first of several.
    pub(crate) fn entry_at(&self, offset: u32) -> Option<&str> {
        self.entries.iter().find(|(_, at)| *at == offset).map(|(name, _)| name.as_str())
    }

    /// First offset of the data stack.
    pub(crate) fn stack_start(&self) -> u32 {
        self.stack.start
    }

    /// Lowest offset of the guard below the data stack.
    pub(crate) fn stack_guard(&self) -> u32 {
        self.stack.start.saturating_sub(self.max_depth + 8)
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    pub(crate) fn entry_target(&self, entry: Entry) -> Option<u64> {
        (entry.image == self.id).then_some(self.code.start() + u64::from(entry.offset))
    }

    /// Address of the function that code pointer `value` names: a depth-0 text slot of the main table (design-review A5).
    pub(crate) fn callback_target(&self, value: u64) -> Option<u64> {
        if value & self.main_mask != value {
            return None;
        }
        match self.slots.get(usize::try_from(value / 8).ok()?) {
            Some(Slot::Text(offset)) => Some(self.code.start() + u64::from(*offset)),
            _ => None,
        }
    }

    /// The address that a table slot holds; imports that are not offered get the trap.
    pub(crate) fn slot_address(&self, slot: Slot, offered: impl Fn(u32) -> bool) -> u64 {
        match slot {
            Slot::Text(offset) => self.code.start() + u64::from(offset),
            Slot::Import(import) if offered(import) => self.stub_range().start + STUB * (u64::from(import) + 1),
            Slot::Import(_) | Slot::Trap => self.stub_range().start,
        }
    }

    pub(crate) fn text_range(&self) -> Range<u64> {
        self.code.start()..self.code.start() + self.text_len
    }

    /// Text with its stubs: where a fault is the handler's.
    pub(crate) fn code_range(&self) -> Range<u64> {
        self.code.start()..self.code.end()
    }

    pub(crate) fn stub_range(&self) -> Range<u64> {
        self.code.start() + self.text_len.next_multiple_of(PAGE)..self.code.end()
    }

    /// Whether the text at `rip` is `ud2`.
    pub(crate) fn is_trap_instruction(&self, rip: u64) -> bool {
        // SAFETY: both bytes lie in the mapped text, which is readable and never changes.
        self.text_range().contains(&rip) && self.text_range().contains(&(rip + 1)) && unsafe { *(rip as *const [u8; 2]) } == UD2
    }

    /// Name of the import whose call ends at text offset `end`, if an import call does.
    pub(crate) fn import_called_before(&self, end: u32) -> Option<&str> {
        let slot = self.text().get(..end as usize)?.last_chunk::<8>()?.strip_prefix(&IMPORT_CALL)?;
        let offset = u32::from_le_bytes(slot.try_into().ok()?).checked_sub(self.table.start)?;
        match self.slots.get(offset as usize / 8) {
            Some(Slot::Import(import)) => Some(&self.imports.get(*import as usize)?.name),
            _ => None,
        }
    }

    /// What a page fault at window offset `offset` means.
    pub(crate) fn page_fault_kind(&self, offset: u32) -> FaultKind {
        if offset < NULL_ZONE_END {
            FaultKind::NullZone
        } else if self.table.contains(&offset) {
            FaultKind::Table
        } else if let Some(region) = self.regions.iter().find(|r| (r.start..r.end).contains(&offset)) {
            if region.kind == RegionKind::Rodata { FaultKind::ReadOnly } else { FaultKind::MemoryError }
        } else if (self.stack_guard()..self.stack.start).contains(&offset) {
            FaultKind::DataStackOverflow
        } else {
            FaultKind::Unmapped
        }
    }

    pub(crate) fn table(&self) -> Range<u32> {
        self.table.clone()
    }

    pub(crate) fn main_slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn sub_tables(&self) -> &[SubSlots] {
        &self.sub_tables
    }

    pub(crate) fn rodata(&self) -> &[(Region, SharedBytes)] {
        &self.rodata
    }

    pub(crate) fn data(&self) -> &[Initial] {
        &self.data
    }

    pub(crate) fn flags(&self) -> u32 {
        self.flags
    }

    pub(crate) fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    pub(crate) fn state_components(&self) -> u64 {
        self.state_components
    }

    /// Size of the native stack that this image's calls run on, bytes.
    pub(crate) fn stack_size(&self) -> u64 {
        self.stack_size
    }

    /// Displacement K from native to data stack.
    pub(crate) fn stack_shift(&self) -> u32 {
        self.stack_shift
    }

    /// The reservation of a dropped window with the same offer.
    pub(crate) fn take_spare(&self, fast: bool, offered: &[bool]) -> Option<Spare> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let at = spare.iter().position(|s| (s.base == 0) == fast && s.offered == offered)?;
        Some(spare.swap_remove(at))
    }

    pub(crate) fn keep_spare(&self, spare: Spare) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(spare);
    }
}

/// The regions, the stack among them, within the memory limit and at the place that this loader offers.
fn regions(layout: &Layout<'_>, options: &LoadOptions) -> Result<(Vec<Region>, Region), Error> {
    let regions: Vec<Region> = (0..layout.region_count()).filter_map(|i| layout.region(i)).collect();
    let tables = u64::from(layout.table_end.cast_unsigned() - layout.table.cast_unsigned());
    // The native stack is as large as the data stack, but belongs to the calling thread.
    let native = regions.iter().filter(|r| r.kind == RegionKind::Stack);
    let wanted = regions.iter().chain(native).map(|r| u64::from(r.end - r.start)).sum::<u64>() + tables;
    if wanted > options.memory_limit {
        return Err(Error::MemoryLimit { wanted, limit: options.memory_limit });
    }
    if layout.stack_low != USER_STACK_LOW {
        return Err(Error::Host("its entry stack pointer is not the one of this loader"));
    }
    let stack = regions.iter().find(|r| r.kind == RegionKind::Stack).copied();
    let stack = stack.filter(|r| r.end - r.start > STACK_HEADROOM).ok_or(Error::Layout(LayoutError::Stack))?;
    Ok((regions, stack))
}

fn imports(note: &Note<'_>, layout: &Layout<'_>) -> Result<Vec<ImportName>, Error> {
    let import = |index: u32| {
        let (_, name) = note.import(index as usize).map_err(Error::Note)?;
        Ok(ImportName { name: shown(name)?, built_in: gates::built_in(name).is_some() })
    };
    (0..layout.imports).map(import).collect()
}

/// A name of the note, which errors show: nothing in it may act on a terminal.
fn shown(name: &str) -> Result<String, Error> {
    if places::is_printable(name) { Ok(name.to_owned()) } else { Err(Error::Note(NoteError::Name)) }
}

/// Names and text offsets, ascending by name.
fn entries(note: &Note<'_>, layout: &Layout<'_>) -> Result<Vec<(String, u32)>, Error> {
    let entry = |(index, offset)| Ok((shown(note.entry_name(index).map_err(Error::Note)?)?, offset));
    let mut entries: Vec<_> = layout.entries.iter().enumerate().map(entry).collect::<Result<_, Error>>()?;
    entries.sort();
    Ok(entries)
}

fn sub_tables(layout: &Layout<'_>) -> Vec<SubSlots> {
    let table = |index| {
        let table = layout.sub_table(index)?;
        let words = layout.sub_slots.slice(table.first as usize, table.count as usize)?;
        Some(SubSlots { base: table.base.cast_unsigned(), slots: words.iter().map(Slot::from_word).collect() })
    };
    (0..layout.sub_table_count()).filter_map(table).collect()
}

/// Sorts the data segments into regions: read-only ones become shared memory files, writable ones keep their initial bytes.
#[expect(clippy::type_complexity, reason = "a pair of two simple lists")]
fn contents(segments: &[Segment<'_>], regions: &[Region]) -> Result<(Vec<(Region, SharedBytes)>, Vec<Initial>), Error> {
    let mut sorted: Vec<&Segment<'_>> = segments.iter().filter(|s| s.size > 0).collect();
    sorted.sort_by_key(|s| s.start);
    if sorted.windows(2).any(|pair| pair[1].start < pair[0].start + pair[0].size) {
        return Err(Error::Format { what: "data segments overlap", offset: 0 });
    }
    let inside = |segment: &Segment<'_>| {
        let kind = if segment.writable { RegionKind::Data } else { RegionKind::Rodata };
        regions.iter().any(|r| r.kind == kind && r.start <= segment.start && segment.start + segment.size <= r.end)
    };
    if !sorted.iter().all(|segment| inside(segment)) {
        return Err(Error::Format { what: "a data segment does not lie in a region of its kind", offset: 0 });
    }
    let mut rodata = Vec::new();
    for region in regions.iter().filter(|r| r.kind == RegionKind::Rodata) {
        let here = sorted.iter().filter(|s| !s.writable && region.start <= s.start && s.start < region.end);
        let bytes: Vec<(u64, &[u8])> = here.map(|s| (u64::from(s.start - region.start), s.bytes)).collect();
        rodata.push((*region, SharedBytes::new(&bytes, u64::from(region.end - region.start))?));
    }
    let data = sorted.iter().filter(|s| s.writable && !s.bytes.is_empty());
    let data = data.map(|s| Initial { start: s.start, bytes: s.bytes.into() }).collect();
    Ok((rodata, data))
}

/// Maps the text with its stubs at a random address, checks the bytes where they will run, and makes them executable.
fn map_text(
    parts: &Parts<'_>,
    options: &LoadOptions,
    layout: &Layout<'_>,
    imports: &[ImportName],
) -> Result<(Pages, Summary, Jumps), Error> {
    let text_len = parts.text.len() as u64;
    let text_pages = text_len.next_multiple_of(PAGE);
    let stubs = stubs(imports, layout.mode.metered);
    let pages = Pages::reserve_random(text_pages + stubs.len() as u64, PAGE, 0, Access::ReadWrite)?;
    let filling = UD2.repeat((text_pages - text_len).div_ceil(2) as usize);
    // SAFETY: the pages are new, writable and ours.
    unsafe {
        pages.write(pages.start(), parts.text)?;
        pages.write(pages.start() + text_len, &filling[..(text_pages - text_len) as usize])?;
        pages.write(pages.start() + text_pages, &stubs)?;
    }
    // SAFETY: these bytes were just written; nothing changes them while the slice is alive, or ever after.
    let text = unsafe { std::slice::from_raw_parts(pages.start() as *const u8, parts.text.len()) };
    let mut scratch = vec![0_u64; scratch_len(text.len())];
    let summary = check(text, &options.policy, layout, &mut scratch).map_err(Error::Rejected)?;
    let jumps = Jumps::of(text, &scratch, layout, imports);
    let lacking = Features(summary.features.0 & !cpu::this_cpu().features.0);
    if lacking != Features::NONE {
        let name = Features::NAMES.iter().find(|(feature, _)| lacking.contains(*feature)).map_or("a feature", |(_, name)| name);
        return Err(Error::Cpu(name));
    }
    pages.protect(pages.start(), pages.end() - pages.start(), Access::ReadExecute)?;
    if options.seal {
        // Older kernels have no mseal; the protection holds all the same.
        pages.seal(pages.start(), pages.end() - pages.start());
    }
    Ok((pages, summary, jumps))
}

/// Whole pages of stubs: the trap, then one per import. A slot is readable for the handler, so it holds a stub's address, which says
/// nothing about the host (design-review G2); the stub jumps through a pointer beside it, in memory that no handler can read.
fn stubs(imports: &[ImportName], metered: bool) -> Vec<u8> {
    let len = (STUB * (imports.len() as u64 + 1)).next_multiple_of(PAGE) as usize;
    let mut bytes = UD2.repeat(len / 2);
    for (index, (import, stub)) in imports.iter().zip(bytes.chunks_exact_mut(STUB as usize).skip(1)).enumerate() {
        let (code, gate) = match gates::address(&import.name, metered) {
            Some(gate) if import.name != gates::LONGJMP => (Vec::new(), gate),
            // mov $index, %eax
            gate => {
                let code = [&[0xb8][..], &(index as u32).to_le_bytes()].concat();
                (code, gate.unwrap_or_else(enter::host_gate_address))
            }
        };
        // jmp *pointer(%rip)
        let distance = (STUB_POINTER - code.len() - 6) as u32;
        let code = [&code[..], &[0xff, 0x25], &distance.to_le_bytes()].concat();
        stub[..code.len()].copy_from_slice(&code);
        stub[STUB_POINTER..].copy_from_slice(&gate.to_le_bytes());
    }
    bytes
}

/// Work for entry, exit and gates that follows from what the text can do.
fn flags(summary: &Summary, imports: &[ImportName], mode: Mode, options: &LoadOptions) -> u32 {
    let cpu = cpu::this_cpu();
    let uses = |feature: Features| summary.features.0 & feature.0 != 0;
    let calls = |name: &str| imports.iter().any(|i| i.name == name);
    let mut flags = 0;
    let mut set = |condition: bool, bit: u32| flags |= if condition { bit } else { 0 };
    set(cpu.features.contains(Features::AVX), flag::AVX);
    set(uses(Features::X87.with(Features::MMX)) || calls("cordon.fldcw"), flag::X87);
    set(uses(Features::NT), flag::NT);
    set(uses(Features(!Features::GENERAL.0)) || calls("cordon.fldcw") || calls("cordon.ldmxcsr"), flag::VECTORS);
    set(uses(Features::AVX), flag::UPPER);
    set(uses(Features::CONTROL) || calls("cordon.fldcw") || calls("cordon.ldmxcsr"), flag::CONTROL);
    set(!(cpu.fsgsbase && options.fsgsbase), flag::SYSTEM_CALLS);
    set(!options.host_uses_gs, flag::KEEP_GS);
    set(mode.metered, flag::METERED);
    flags
}
