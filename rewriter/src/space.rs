//! Phase 6: the window map (DESIGN §2): table slots, data sections, thread-local block, GOT words, arena, areas, stack.

use crate::Options;
use crate::body::{Body, Context, Flow};
use crate::diag::{Diagnostic, Place, Refusals};
use crate::dispatch::may_be_in_order;
use crate::dynamic;
use crate::functions::CodeRef;
use crate::kernel;
use crate::program::{Program, SectionId, SectionKind};
use crate::select::{GotWord, Selection};
use crate::tables::Table;
use cordon_checker::Policy;
use cordon_checker::layout::{self, Region, RegionKind};
use foldhash::HashMap;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: u32 = 4096;
/// Unmapped bytes between areas, so that running off one faults.
const GAP: u32 = 0x1_0000;
/// Fewest bytes of arena for `alloca` and variable-length arrays; else as many as the stack has.
const LEAST_ARENA: u32 = 1 << 16;
/// Bytes of thread control block at the thread pointer: self pointer at 0, canary at 0x28 (psABI 3.4.6).
pub const TCB: u32 = 64;
/// Where in it a second self pointer lies. Addresses of thread-local variables count from this one: a program's own C library moves the other to where
/// it keeps what it knows of the thread, but the block stays.
pub const SELF: u32 = 56;
/// Number of slots that small code pointers can name below the null zone's end.
const MAX_SLOTS: usize = 8192;
/// Most bytes that sub-tables in the order of their tables' entries may take more than others: every window has a copy of all tables.
const MOST_FOR_ORDER: i64 = 1 << 16;

/// Tables of one body that the same jumps use, and labels with them: one numbering of targets.
#[derive(Clone, Debug)]
pub struct Group {
    /// Bit set of the body's tables.
    pub tables: u64,
    /// A jump of unknown origin uses it: it has the body's labels.
    pub labels: bool,
    /// Slots in front of the targets: the trap, or the main table's functions where a jump may be a tail call or a computed goto, or none.
    pub first: u32,
    /// The slots from `first` on: each target once, ascending, or the entries of the one table in their order.
    pub slots: Vec<Option<CodeRef>>,
    /// The slots are in the order of the table's entries.
    pub in_order: bool,
    pub bits: u32,
    /// Table displacement for each copy of the code that jumps through it.
    pub bases: BTreeMap<Context, i32>,
}

/// Where everything is in the window.
#[derive(Debug, Default)]
pub struct Space {
    pub sections: HashMap<SectionId, u32>,
    pub thread_pointer: u32,
    /// Start of the thread-local block.
    pub tls_start: u32,
    pub got: BTreeMap<GotWord, u32>,
    /// The word that holds the virtual stack pointer of functions with `alloca`.
    pub arena_word: u32,
    pub arena_top: u32,
    pub main_bits: u32,
    /// Slot numbers.
    pub import_slots: BTreeMap<String, u32>,
    pub function_slots: HashMap<CodeRef, u32>,
    /// Per body.
    pub groups: Vec<Vec<Group>>,
    /// Which body's table (body, table) fills the data at a place.
    pub table_places: HashMap<(SectionId, u64), (u32, u32)>,
    /// Displacements of the main table and of the end of the table pages.
    pub table: i32,
    pub table_end: i32,
    /// For a kernel host.
    pub kernel: bool,
    /// Pointers to constructors and to what runs at exit, of whole programs; start and end.
    pub init_array: (u32, u32),
    pub fini_array: (u32, u32),
    pub rodata: (u32, u32),
    pub data: (u32, u32),
    pub argument: (u32, u32),
    pub heap: (u32, u32),
    pub regions: Vec<Region>,
    /// Distance from the native to the data stack in the low halves of addresses, K.
    pub stack_shift: u32,
}

/// Lays the window out.
///
/// # Errors
/// If it does not fit, or two bodies read one table differently.
pub fn lay_out(program: &Program, chosen: &Selection, options: &Options) -> Result<Space, Refusals> {
    let mut space = Space {
        stack_shift: if options.fast_window { layout::USER_STACK_SHIFT } else { 0 },
        kernel: options.kernel,
        table: if options.kernel { kernel::TABLE } else { layout::USER_TABLE },
        ..Space::default()
    };
    space.slots(chosen)?;
    space.sub_tables(program, chosen)?;
    space.data(program, chosen)?;
    space.areas(chosen, options)?;
    Ok(space)
}

fn refusal(code: &'static str, message: impl Into<String>) -> Refusals {
    Refusals(vec![Diagnostic::new(Place { object: "image".into(), ..Place::default() }, code, message)])
}

fn too_big(what: &str) -> Refusals {
    refusal("window-full", format!("{what} does not fit into the window's 2 GiB"))
}

impl Space {
    fn slots(&mut self, chosen: &Selection) -> Result<(), Refusals> {
        let mut next = 1;
        for name in &chosen.imports {
            self.import_slots.insert(name.clone(), next);
            next += 1;
        }
        for at in &chosen.address_taken {
            self.function_slots.insert(*at, next);
            next += 1;
        }
        let count = next as usize;
        if count > MAX_SLOTS {
            return Err(refusal(
                "too-many-slots",
                format!("{count} functions have their address taken; {MAX_SLOTS} fit the table"),
            ));
        }
        self.main_bits = count.next_power_of_two().trailing_zeros();
        Ok(())
    }

    fn sub_tables(&mut self, program: &Program, chosen: &Selection) -> Result<(), Refusals> {
        let mut at = self.table + (8 << self.main_bits);
        let end = if self.kernel { kernel::TABLE_END } else { 0x4000_0000 };
        let slots = 1 + self.import_slots.len() + self.function_slots.len();
        let mut all: Vec<Vec<Group>> = chosen.bodies.iter().map(|body| groups(body, slots as u32)).collect();
        let compact: i64 = all.iter().flatten().map(Group::bytes).sum();
        let mut room = (i64::from(end) - i64::from(at) - compact).min(MOST_FOR_ORDER);
        for ((index, body), mut groups) in chosen.bodies.iter().enumerate().zip(all.drain(..)) {
            for group in &mut groups {
                if let Some(ordered) = in_order(program, body, group)
                    && ordered.bytes() - group.bytes() <= room
                {
                    room -= ordered.bytes() - group.bytes();
                    *group = ordered;
                }
                for base in group.bases.values_mut() {
                    *base = at;
                    at = at.checked_add(8 << group.bits).filter(|a| *a < end).ok_or_else(|| too_big("the jump tables"))?;
                }
            }
            for (id, table) in body.tables.iter().enumerate() {
                for (place, _) in &table.entries {
                    let value = (index as u32, id as u32);
                    let old = self.table_places.insert((table.section, *place), value).filter(|o| *o != value);
                    if let Some((other, _)) = old {
                        let place = program.place(table.section, *place);
                        let other = &chosen.bodies[other as usize].name;
                        let message = format!("a jump table is used by both `{other}` and `{}`", body.name);
                        return Err(Refusals(vec![Diagnostic::new(place, "shared-table", message)]));
                    }
                }
            }
            self.groups.push(groups);
        }
        if at > end {
            return Err(too_big("the jump tables"));
        }
        self.table_end = at.cast_unsigned().next_multiple_of(PAGE).cast_signed();
        Ok(())
    }

    fn data(&mut self, program: &Program, chosen: &Selection) -> Result<(), Refusals> {
        let of = |kinds: &[SectionKind]| -> Vec<SectionId> {
            chosen.sections.iter().copied().filter(|s| kinds.contains(&program.section(*s).kind)).collect()
        };
        // The kernel's tables lie below the window.
        let mut at = u32::try_from(self.table_end).unwrap_or(layout::NULL_ZONE_END);
        self.rodata.0 = at;
        at = self.place(program, &of(&[SectionKind::Rodata]), at)?.next_multiple_of(8);
        self.init_array.0 = at;
        at = self.place(program, &of(&[SectionKind::InitArray]), at)?.next_multiple_of(8);
        (self.init_array.1, self.fini_array.0) = (at, at);
        at = self.place(program, &of(&[SectionKind::FiniArray]), at)?.next_multiple_of(8);
        self.fini_array.1 = at;
        for word in &chosen.got {
            self.got.insert(*word, at);
            at += 8;
        }
        self.rodata.1 = at.next_multiple_of(PAGE);
        at = self.rodata.1;
        self.data.0 = at;
        at = self.thread_block(program, &of(&[SectionKind::TlsData]), &of(&[SectionKind::TlsBss]), at)?;
        self.arena_word = at;
        at += 8;
        at = self.place(program, &of(&[SectionKind::Data]), at)?;
        at = self.place(program, &of(&[SectionKind::Bss]), at)?;
        self.data.1 = at.checked_next_multiple_of(PAGE).ok_or_else(|| too_big("the data"))?;
        Ok(())
    }

    fn place(&mut self, program: &Program, ids: &[SectionId], mut at: u32) -> Result<u32, Refusals> {
        for &id in ids {
            let section = program.section(id);
            let align = u32::try_from(section.align.max(1)).map_err(|_| too_big(&section.name))?;
            let start = at.checked_next_multiple_of(align).ok_or_else(|| too_big(&section.name))?;
            let end = u64::from(start) + section.size;
            at = u32::try_from(end).ok().filter(|e| *e < layout::MEMORY_END).ok_or_else(|| too_big(&section.name))?;
            self.sections.insert(id, start);
        }
        Ok(at)
    }

    /// The one thread-local block (variant II: the block ends at the thread pointer) and the thread control block behind it.
    fn thread_block(&mut self, program: &Program, data: &[SectionId], bss: &[SectionId], at: u32) -> Result<u32, Refusals> {
        let align = data.iter().chain(bss).map(|s| program.section(*s).align).max().unwrap_or(1).clamp(16, 4096) as u32;
        self.tls_start = at.next_multiple_of(align);
        let end = self.place(program, data, self.tls_start)?;
        let end = self.place(program, bss, end)?;
        self.thread_pointer = end.next_multiple_of(align);
        Ok(self.thread_pointer + TCB)
    }

    fn areas(&mut self, chosen: &Selection, options: &Options) -> Result<(), Refusals> {
        let page = |n: u32| n.checked_next_multiple_of(PAGE).ok_or_else(|| too_big("an area"));
        let mut at = self.data.1;
        let headroom = dynamic::MOST.cast_unsigned().min(self.policy().max_depth);
        let mut area = |size: u32, what: &str| -> Result<(u32, u32), Refusals> {
            let start = at.checked_add(GAP).ok_or_else(|| too_big(what))?;
            let end = start.checked_add(page(size)?).ok_or_else(|| too_big(what))?;
            at = end;
            Ok((start, end))
        };
        self.argument = area(options.argument, "the argument area")?;
        // The headroom is for stack arguments that calls take along from above the arena pointer's start, where there are none.
        let size = options.stack.max(LEAST_ARENA).saturating_add(headroom);
        let arena = if chosen.uses_arena { Some(area(size, "the arena")?) } else { None };
        self.heap = area(options.heap, "the heap")?;
        let stack_top = layout::USER_STACK_LOW + 8 + self.stack_shift;
        let stack = (
            stack_top.checked_sub(page(options.stack)?).ok_or_else(|| too_big("the stack"))?,
            stack_top + layout::STACK_HEADROOM,
        );
        if stack.0.checked_sub(self.policy().max_depth + GAP).is_none_or(|low| low < self.heap.1) {
            return Err(too_big("heap and stack"));
        }
        self.arena_top = arena.map_or(0, |a| a.1 - headroom);
        let region = |(start, end): (u32, u32), kind| Region { start, end, kind };
        let mut all = vec![
            region(self.rodata, RegionKind::Rodata),
            region(self.data, RegionKind::Data),
            region(self.argument, RegionKind::Argument),
        ];
        all.extend(arena.map(|a| region(a, RegionKind::Heap)));
        all.extend([region(self.heap, RegionKind::Heap), region(stack, RegionKind::Stack)]);
        self.regions = all.into_iter().filter(|r| r.start < r.end).collect();
        Ok(())
    }

    /// What the host allows at most.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        if self.kernel { Policy::KERNEL } else { Policy::USER }
    }

    /// Greatest depth of the image in bytes, D.
    #[must_use]
    pub const fn max_depth(&self) -> u32 {
        self.policy().max_depth
    }

    /// The group of table `id` of body `index`.
    #[must_use]
    pub fn group_of_table(&self, index: usize, id: u32) -> Option<&Group> {
        self.groups[index].iter().find(|g| g.tables >> id & 1 == 1)
    }

    /// The window offset of a jump table.
    #[must_use]
    pub fn start_of_table(&self, table: &Table) -> Option<i64> {
        Some(i64::from(*self.sections.get(&table.section)?) + table.offset.cast_signed())
    }

    /// The value (8 × index) of label `to` in body `index`'s computed gotos.
    #[must_use]
    pub fn label_value(&self, index: usize, to: CodeRef) -> Option<u32> {
        let group = self.groups[index].iter().find(|g| g.labels)?;
        group.value(to)
    }
}

impl Group {
    /// 8 × the slot of `to`, where each target has one.
    fn value(&self, to: CodeRef) -> Option<u32> {
        self.slots.binary_search(&Some(to)).ok().map(|i| 8 * (self.first + i as u32))
    }

    /// 8 × the slot of a table's entry, the `index`-th one, for `to`; the trap's for a case that cannot occur.
    #[must_use]
    pub fn entry_value(&self, index: usize, to: Option<CodeRef>) -> Option<u32> {
        if self.in_order {
            return Some(8 * (self.first + index as u32));
        }
        to.map_or(Some(0), |to| self.value(to))
    }

    /// Size of the sub-tables, one for each copy of the code.
    fn bytes(&self) -> i64 {
        (8 << self.bits) * self.bases.len() as i64
    }
}

/// The group with the entries of its table in their order, if it has only one and nothing else than jumps counts on equal numbers of equal entries.
fn in_order(program: &Program, body: &Body, group: &Group) -> Option<Group> {
    let table = group.tables.trailing_zeros();
    if group.labels || group.tables != 1 << table || group.bases.is_empty() || !may_be_in_order(program, body, table) {
        return None;
    }
    let slots: Vec<Option<CodeRef>> = body.tables[table as usize].entries.iter().map(|(_, to)| *to).collect();
    let bits = slots.len().next_power_of_two().trailing_zeros().max(1);
    Some(Group { slots, in_order: true, first: 0, bits, ..group.clone() })
}

/// Joins tables that one jump may use.
fn groups(body: &Body, slots: u32) -> Vec<Group> {
    let mut sets: Vec<(u64, bool)> = (0..body.tables.len()).map(|i| (1 << i, false)).collect();
    let mut uses: Vec<(u64, bool, Context)> = Vec::new();
    for node in &body.nodes {
        if let Flow::Switch(through) = node.flow {
            let all = if body.tables.is_empty() { 0 } else { u64::MAX >> (64 - body.tables.len()) };
            uses.push((through.unwrap_or(all), through.is_none(), node.key.context));
        }
    }
    for &(set, labels, _) in &uses {
        let (hit, mut rest): (Vec<_>, Vec<_>) = sets.into_iter().partition(|(s, l)| s & set != 0 || (labels && *l));
        let joined = hit.into_iter().fold((set, labels), |(s, l), (s2, l2)| (s | s2, l | l2));
        rest.push(joined);
        sets = rest;
    }
    let mixed = body.nodes.iter().any(|n| n.flow == Flow::Switch(None) && n.state.depth == 0);
    let mut made = Vec::new();
    for (tables, labels) in sets {
        let mut targets: BTreeSet<CodeRef> = BTreeSet::new();
        for (_, table) in body.tables.iter().enumerate().filter(|(id, _)| tables >> id & 1 == 1) {
            targets.extend(table.entries.iter().filter_map(|(_, to)| *to));
        }
        if labels {
            targets.extend(body.labels.iter().map(|&offset| CodeRef { section: body.entry.section, offset }));
        }
        let bases = uses.iter().filter(|(s, l, _)| s & tables != 0 || (*l && labels)).map(|(_, _, c)| (*c, 0)).collect();
        // Slot 0 stays the trap, so that an entry nobody filled in cannot go anywhere.
        let first = if labels && mixed { slots } else { 1 };
        let bits = (first as usize + targets.len()).next_power_of_two().trailing_zeros();
        let slots = targets.into_iter().map(Some).collect();
        made.push(Group { tables, labels, first, slots, in_order: false, bits, bases });
    }
    made
}
