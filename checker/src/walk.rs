//! The one forward pass over the text.

use crate::decode::{Action, Head, Insn, LONGEST, Machine, Window, quick, whole};
use crate::layout::{HINT_SLOTS, Layout, Slot};
use crate::modes::{Modes, covers};
use crate::policy::{Features, Host, Mode, Policy};
use crate::state::{Extra, State, Traits, Word};
use crate::tables::Tables;
use crate::validate::slots_below;
use crate::verdict::{Reject, Rule, Summary};

/// Longest text, bytes (1 GiB: every direct branch reaches every byte).
pub const TEXT_LIMIT: usize = 1 << 30;

/// Scratch words that [`check`] needs for `text_len` bytes of text.
#[must_use]
pub const fn scratch_len(text_len: usize) -> usize {
    text_len
}

/// Decides whether `text` may run under `policy` with `layout` (SPEC.md states what that proves).
///
/// `scratch` needs [`scratch_len`] words; their content does not matter before. After acceptance they tell instruction starts and
/// states ([`crate::is_start`], [`crate::state_at`], [`crate::starts`]). The layout is validated first.
///
/// # Errors
/// The first violation that the pass meets, with the rule it violates.
pub fn check(text: &[u8], policy: &Policy, layout: &Layout<'_>, scratch: &mut [u64]) -> Result<Summary, Reject> {
    if text.is_empty() || text.len() > TEXT_LIMIT {
        return Err(Reject::at(0, Rule::TextLength));
    }
    if layout.validate(policy).is_err() {
        return Err(Reject::at(0, Rule::Layout));
    }
    let scratch = scratch.get_mut(..scratch_len(text.len())).ok_or(Reject::at(0, Rule::ScratchLength))?;
    scratch.fill(0);
    let machine = Machine::new(policy.host, layout.mode);
    // Text without modes has a walk of its own, which looks at nothing that only they need.
    if layout.mode == Mode::default() {
        Walk::<false>::new(text, policy, layout, &machine, scratch).judge()
    } else {
        Walk::<true>::new(text, policy, layout, &machine, scratch).judge()
    }
}

/// The pass: what is behind `at` has been judged, words ahead of it hold what forward edges say.
struct Walk<'t, const MODES: bool> {
    text: &'t [u8],
    scratch: &'t mut [u64],
    layout: &'t Layout<'t>,
    tables: Tables<'t>,
    machine: &'t Machine,
    kernel: bool,
    /// Extensions that the policy does not allow.
    denied: u64,
    /// Greatest depth in units of 8 bytes.
    depth_limit: u64,
    /// Seeded bytes that the scan has not reached.
    pending: u32,
    /// State on the way out of the last instruction.
    state: State,
    /// Whether control falls from the last instruction into the next.
    falls: bool,
    /// Offset of the instruction being judged.
    at: usize,
    features: u64,
    deepest: u64,
    instructions: u32,
    modes: Modes<'t>,
}

type Step = Result<(), Rule>;

impl<'t, const MODES: bool> Walk<'t, MODES> {
    fn new(text: &'t [u8], policy: &Policy, layout: &'t Layout<'t>, machine: &'t Machine, scratch: &'t mut [u64]) -> Self {
        Walk {
            text,
            scratch,
            layout,
            tables: Tables::new(layout),
            machine,
            kernel: policy.host == Host::Kernel,
            denied: !policy.features.0,
            depth_limit: u64::from(layout.max_depth / 8),
            pending: 0,
            state: State::ENTRY,
            falls: false,
            at: 0,
            features: 0,
            deepest: 0,
            instructions: 0,
            modes: Modes::new(layout),
        }
    }

    #[inline(never)]
    fn judge(mut self) -> Result<Summary, Reject> {
        self.seed_layout()?;
        self.run()?;
        self.finish()
    }

    /// Seeds what the loader and the tables jump to.
    fn seed_layout(&mut self) -> Result<(), Reject> {
        let function = if self.kernel { Traits::BOTH } else { Traits::NONE };
        let label = if self.kernel { Traits::ENDBR } else { Traits::NONE };
        let layout = self.layout;
        for offset in layout.entries.iter() {
            self.seed_slot(offset, State::ENTRY, function)?;
        }
        for word in layout.slots.iter() {
            if let Slot::Text(offset) = Slot::from_word(word) {
                self.seed_slot(offset, State::ENTRY, function)?;
            }
        }
        for index in 0..layout.sub_table_count() {
            let Some(table) = layout.sub_table(index) else { continue };
            let state = State::new(table.depth / 8, table.set);
            for word in self.tables.words(&table) {
                if let Slot::Text(offset) = Slot::from_word(word) {
                    self.seed_slot(offset, state, label)?;
                }
            }
        }
        Ok(())
    }

    fn seed_slot(&mut self, offset: u32, state: State, wants: Traits) -> Result<(), Reject> {
        let target = usize::try_from(offset).map_err(|_| Reject::at(offset, Rule::SlotOutside))?;
        if target >= self.text.len() {
            return Err(Reject::at(offset, Rule::SlotOutside));
        }
        self.seed(target, state, Extra::NONE, wants).map_err(|rule| Reject::at(offset, rule))
    }

    /// Records an edge to `target`, which the scan has not reached.
    #[inline]
    fn seed(&mut self, target: usize, state: State, extra: Extra, wants: Traits) -> Step {
        let word = self.scratch.get_mut(target).ok_or(Rule::TargetOutside)?;
        let old = Word(*word);
        if old.is_seeded() {
            let met = old.state().meet(state).ok_or(Rule::DepthMismatch)?;
            let extra = if MODES { old.extra().meet(extra) } else { Extra::NONE };
            *word = Word::seeded(met, extra, old.traits().with(wants)).0;
        } else {
            self.pending = self.pending.saturating_add(1);
            *word = Word::seeded(state, extra, wants).0;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), Reject> {
        let mut at = 0;
        while at < self.text.len() {
            self.at = at;
            at = self.step().map_err(|rule| self.reject(rule))?;
        }
        Ok(())
    }

    /// What the instruction at `self.at`, or a forget record before it, violates.
    #[cold]
    fn reject(&self, rule: Rule) -> Reject {
        let record = if rule == Rule::BadForget { self.modes.unused_record() } else { None };
        Reject::at(record.unwrap_or(offset_of(self.at)), rule)
    }

    /// Judges the instruction at `self.at`; gives the offset after it.
    #[inline(always)]
    fn step(&mut self) -> Result<usize, Rule> {
        let rest = self.text.get(self.at..).unwrap_or(&[]);
        let tail;
        let window = match rest.first_chunk::<LONGEST>() {
            Some(window) => window,
            None => {
                tail = padded(rest);
                &tail
            }
        };
        let head = Head::of(window, self.machine);
        if let Some(insn) = quick(&head, MODES) {
            let next = self.count(&insn)?;
            if self.goes_on() {
                let (extra, closed) = if MODES {
                    self.modes.pass(&head.operands(), window, insn.len, self.low_stack())?
                } else {
                    (Extra::NONE, false)
                };
                self.mark(Word::start(self.state, extra, Traits::NONE, closed));
                return Ok(next);
            }
            self.arrive(&insn)?;
            if MODES {
                self.modes.step(&insn, Some(&head.operands()), window, self.low_stack())?;
            }
            return Ok(next);
        }
        let mut operands = None;
        let decoded =
            if MODES { whole(head, self.machine, true, &mut operands) } else { whole(head, self.machine, false, &mut ()) };
        // Not copied: what has just been written in parts is slow to read as a whole.
        let insn = match &decoded {
            Ok(insn) => insn,
            Err(rule) => return Err(*rule),
        };
        if insn.action == Action::Nop && !self.falls && !self.is_seeded() {
            // Padding: nothing falls or jumps here, and since it is no start nothing can later.
            return self.inside(insn);
        }
        let next = self.count(insn)?;
        if self.goes_on() && !matches!(insn.action, Action::Hint | Action::Ud2) {
            let (extra, closed) = if MODES { self.modes.go_on(insn.action)? } else { (Extra::NONE, false) };
            self.mark(Word::start(self.state, extra, offers(insn.action), closed));
        } else {
            self.arrive(insn)?;
        }
        if MODES {
            self.modes.step(insn, operands.as_ref(), window, self.low_stack())?;
        }
        if insn.action != Action::Next {
            self.act(insn, next)?;
        }
        Ok(next)
    }

    /// The offset after the instruction at `self.at`, which the text must have.
    #[inline(always)]
    fn inside(&self, insn: &Insn) -> Result<usize, Rule> {
        let next = self.at.wrapping_add(insn.len);
        if next > self.text.len() { Err(Rule::Truncated) } else { Ok(next) }
    }

    /// Takes note of an instruction that may run; the offset after it.
    #[inline(always)]
    fn count(&mut self, insn: &Insn) -> Result<usize, Rule> {
        let next = self.inside(insn)?;
        if insn.features.0 & self.denied != 0 {
            return Err(Rule::Feature);
        }
        self.features |= insn.features.0;
        self.instructions = self.instructions.wrapping_add(1);
        Ok(next)
    }

    /// Greatest low half of rsp at the instruction that has been arrived at: that of a function which the host entered.
    fn low_stack(&self) -> u32 {
        let depth = u32::try_from(self.state.units()).unwrap_or(0).wrapping_mul(8);
        self.layout.stack_low.wrapping_sub(depth)
    }

    /// Whether an edge from before, an entry or a slot leads to `self.at`.
    fn is_seeded(&self) -> bool {
        self.scratch.get(self.at).is_some_and(|word| Word(*word).is_seeded())
    }

    /// Whether nothing but falling through leads to `self.at`, as far as the scan has come, and no forget record does.
    #[inline(always)]
    fn goes_on(&self) -> bool {
        self.falls && !self.is_seeded() && (!MODES || self.modes.is_straight(self.at))
    }

    #[inline(always)]
    fn mark(&mut self, start: Word) {
        if let Some(word) = self.scratch.get_mut(self.at) {
            *word = start.0;
        }
    }

    /// Joins what leads here and marks the start.
    #[inline(never)]
    fn arrive(&mut self, insn: &Insn) -> Step {
        let word = self.scratch.get_mut(self.at).ok_or(Rule::TargetOutside)?;
        let seen = Word(*word);
        let fell = self.falls;
        if !fell {
            self.state = match insn.action {
                Action::Hint => hinted(insn.number, self.depth_limit)?,
                _ if seen.is_seeded() => seen.state(),
                _ => State::ENTRY,
            };
            self.falls = true;
        } else if insn.action == Action::Hint {
            return Err(Rule::Hint);
        }
        let offers = offers(insn.action);
        if seen.is_seeded() {
            self.pending = self.pending.saturating_sub(1);
            self.state = self.state.meet(seen.state()).ok_or(Rule::DepthMismatch)?;
            seen.traits().satisfied_by(offers)?;
        }
        let (extra, closed) = if MODES { self.modes.arrive(self.at, insn.action, seen, fell)? } else { (Extra::NONE, false) };
        *word = Word::start(self.state, extra, offers, closed).0;
        Ok(())
    }

    /// What the instruction does to depth and control flow.
    fn act(&mut self, insn: &Insn, next: usize) -> Step {
        let Insn { action, disp, number, .. } = *insn;
        match action {
            Action::Next | Action::Nop | Action::Endbr | Action::Hint => Ok(()),
            Action::Push => {
                self.state = self.state.push();
                self.bound_depth()
            }
            Action::Pop => {
                self.state = self.state.pop().ok_or(Rule::PopUnwritten)?;
                Ok(())
            }
            Action::Down => self.deepen(i64::from(disp)),
            Action::Up => self.deepen(i64::from(disp).wrapping_neg()),
            Action::Ret => {
                self.falls = false;
                if self.state.units() == 0 { Ok(()) } else { Err(Rule::RetDepth) }
            }
            Action::Ud2 => {
                self.falls = false;
                Ok(())
            }
            Action::Jcc => self.branch(next, disp),
            Action::Jmp => {
                self.falls = false;
                self.branch(next, disp)
            }
            Action::Call => {
                let wants = if self.kernel { Traits::LIMIT } else { Traits::NONE };
                self.edge(next, disp, State::ENTRY, Extra::NONE, wants)
            }
            Action::TableCall => {
                if self.tables.is_main(number, disp) {
                    Ok(())
                } else {
                    Err(Rule::Table)
                }
            }
            Action::TableJmp => {
                self.falls = false;
                let expected = self.tables.state_of(number, disp).ok_or(Rule::Table)?;
                if self.state.covers(expected) == Some(true) { Ok(()) } else { Err(Rule::TableState) }
            }
            Action::ImportCall => self.tables.import(disp).ok_or(Rule::Import),
            Action::ImportJmp => {
                self.falls = false;
                self.tables.import(disp).ok_or(Rule::Import)?;
                if self.state.units() == 0 { Ok(()) } else { Err(Rule::TableState) }
            }
            Action::Limit | Action::EndbrLimit => {
                if number != self.layout.limit || !self.is_ud2(next, disp) {
                    return Err(Rule::Limit);
                }
                self.branch(next, disp)
            }
            Action::Check => {
                self.branch(next, disp)?;
                if self.is_ud2(next, disp) {
                    self.modes.checked(number);
                }
                Ok(())
            }
            Action::Meter => {
                if !self.is_ud2(next, disp) {
                    return Err(Rule::Meter);
                }
                self.branch(next, disp)?;
                self.modes.charged(number);
                Ok(())
            }
        }
    }

    fn bound_depth(&mut self) -> Step {
        let units = self.state.units();
        if units > self.depth_limit {
            return Err(Rule::DepthRange);
        }
        self.deepest = self.deepest.max(units);
        Ok(())
    }

    /// rsp moves down by `bytes`.
    fn deepen(&mut self, bytes: i64) -> Step {
        let depth = i64::try_from(self.state.units()).map_err(|_| Rule::DepthRange)?;
        // Whole units both, so the sum is exact; |bytes| <= 2^31.
        let units = depth.saturating_add(bytes >> 3);
        let units = u32::try_from(units).map_err(|_| Rule::DepthRange)?;
        if bytes & 7 != 0 || u64::from(units) > self.depth_limit {
            return Err(Rule::DepthRange);
        }
        self.state = self.state.resized(units);
        self.bound_depth()
    }

    /// A jump, perhaps conditional, from the instruction before `next`.
    #[inline]
    fn branch(&mut self, next: usize, rel: i32) -> Step {
        let extra = if MODES { self.modes.edge() } else { Extra::NONE };
        self.edge(next, rel, self.state, extra, Traits::NONE)
    }

    /// A direct edge from the instruction before `next`.
    #[inline]
    fn edge(&mut self, next: usize, rel: i32, state: State, extra: Extra, wants: Traits) -> Step {
        let target = self.target(next, rel).ok_or(Rule::TargetOutside)?;
        if target > self.at {
            return self.seed(target, state, extra, wants);
        }
        let word = Word(self.scratch.get(target).copied().unwrap_or(0));
        if !word.is_start() {
            return Err(Rule::TargetNotStart);
        }
        match state.covers(word.state()) {
            None => return Err(Rule::DepthMismatch),
            Some(false) => return Err(Rule::SetMismatch),
            Some(true) => wants.satisfied_by(word.traits())?,
        }
        if MODES { covers(extra, word) } else { Ok(()) }
    }

    #[inline]
    fn target(&self, next: usize, rel: i32) -> Option<usize> {
        let target = i64::try_from(next).ok()?.checked_add(i64::from(rel))?;
        usize::try_from(target).ok().filter(|&target| target < self.text.len())
    }

    /// Whether the bytes at a branch target are `ud2`. That an instruction starts there is for the edge to prove.
    fn is_ud2(&self, next: usize, rel: i32) -> bool {
        self.target(next, rel).and_then(|target| self.text.get(target..)).is_some_and(|rest| rest.starts_with(&[0x0f, 0x0b]))
    }

    /// After the last instruction: nothing may fall off, no edge may lead into the middle of an instruction.
    fn finish(self) -> Result<Summary, Reject> {
        if self.falls {
            return Err(Reject::at(offset_of(self.at), Rule::RunsOff));
        }
        if self.pending != 0 {
            let inside = |word: &u64| Word(*word).is_seeded();
            let target = self.scratch.iter().position(inside).unwrap_or(0);
            return Err(Reject::at(offset_of(target), Rule::TargetNotStart));
        }
        if let Some(offset) = self.modes.unused_record() {
            return Err(Reject::at(offset, Rule::BadForget));
        }
        let max_depth = u32::try_from(self.deepest.saturating_mul(8)).unwrap_or(u32::MAX);
        Ok(Summary { features: Features(self.features), max_depth, instructions: self.instructions })
    }
}

/// What a place offers to indirect and call edges (only the kernel asks).
#[inline]
const fn offers(action: Action) -> Traits {
    match action {
        Action::Endbr => Traits::ENDBR,
        Action::EndbrLimit => Traits::BOTH,
        Action::Limit => Traits::LIMIT,
        _ => Traits::NONE,
    }
}

/// State that a hint states: 20 bits of depth in units of 8 bytes, then [`HINT_SLOTS`] bits of set.
fn hinted(immediate: u32, depth_limit: u64) -> Result<State, Rule> {
    let units = immediate & 0xf_ffff;
    let set = u64::from(immediate >> (32_u32.wrapping_sub(HINT_SLOTS)));
    if u64::from(units) > depth_limit || set & !slots_below(units) != 0 {
        return Err(Rule::Hint);
    }
    Ok(State::new(units, set))
}

/// Fewer than [`LONGEST`] bytes, zeros behind them.
#[cold]
fn padded(rest: &[u8]) -> Window {
    let mut window: Window = [0; LONGEST];
    for (to, from) in window.iter_mut().zip(rest) {
        *to = *from;
    }
    window
}

/// Text offsets fit 32 bits ([`TEXT_LIMIT`]).
fn offset_of(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
