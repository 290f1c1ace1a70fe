//! Windows: reservation, tables, memory, calls.

use crate::context::{Context, flag};
use crate::enter::{self, Returned};
use crate::error::Error;
use crate::fuel::Tank;
use crate::image::{Entry, Image, Spare};
use crate::imports::{HostFunction, Imports};
use crate::memory::Shares;
use crate::pages::{Access, PAGE, Pages};
use crate::thread::{self, NativeStack};
use crate::time::Limit;
use cordon_checker::layout::{Region, RegionKind, Slot, USER_STACK_SHIFT};
use cordon_checker::note::INIT_ENTRY;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Handler-visible bytes of a window.
const WINDOW: u64 = 1 << 32;
/// Control region below a window, unused in user mode but never anyone else's.
const CONTROL: u64 = 128 << 10;
/// Never mapped, above the window: an access may begin on its last byte and be 64 bytes wide (design-review B1).
const EDGE: u64 = 64 << 10;
/// All bases are multiples of this, but for [`APART`]. Below bit 28 they change only the pairs 12^27, 13^26 and 14^25 of Zen's way
/// predictor, so that windows of a busy host differ there, and leave the pair 15^20 to native and data stack.
const BASE_STEP: u64 = 32 << 20;
/// Windows of a process lie at multiples of this from one random address. Were they to lie anywhere, 20,000 of them would leave no
/// gap that another one fits in, though they fill two thirds of the address space only; on this grid there is room for 32,000.
const STRIDE: u64 = WINDOW + BASE_STEP;
/// Linear addresses of native and data stack differ in this bit: by the image's K, else by the base.
const APART: u64 = USER_STACK_SHIFT as u64;
/// Default of the kernel's `vm.mmap_min_addr`, where it cannot be read.
const LOWEST_MAPPABLE: u64 = 64 << 10;
/// Byte arguments begin at multiples of this.
const ARGUMENT_ALIGN: u64 = 16;

/// One argument of [`Window::call`].
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// An integer, or a pointer as window offset.
    Int(u64),
    /// A `double`.
    Float(f64),
    /// Bytes that are copied to the argument area; the handler gets a pointer to them (and no length).
    Bytes(&'a [u8]),
    /// As [`Arg::Bytes`], with the last byte in front of an unmapped page; see [`Window::place_exact`].
    Exact(&'a [u8]),
}

/// What [`Window::call`] passes in registers.
#[derive(Default)]
struct Registers {
    ints: [u64; 6],
    floats: Option<[f64; 8]>,
}

impl From<u64> for Arg<'_> {
    fn from(value: u64) -> Self {
        Arg::Int(value)
    }
}

impl From<f64> for Arg<'_> {
    fn from(value: f64) -> Self {
        Arg::Float(value)
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Arg::Bytes(bytes)
    }
}

/// The part of a window that running calls refer to.
pub struct Inner {
    /// Never used for another window, or for this one with another limit.
    pub id: u64,
    pub image: Arc<Image>,
    /// Address of window offset 0.
    base: u64,
    /// `None` only while dropped.
    pages: Option<Pages>,
    /// See [`flag`].
    pub flags: u32,
    /// For every call.
    pub limit: Limit,
    /// Used where the image is metered.
    pub tank: Tank,
    /// Host functions by import index; `None` for built-in gates and for imports that are not offered.
    pub functions: Vec<Option<HostFunction>>,
    /// See [`Context::plain`].
    plain: Box<[u64]>,
    /// Which imports the tables lead to, by import index.
    offered: Vec<bool>,
    sealed: bool,
    /// Memory of the host in this window.
    pub shares: Shares,
}

/// A handler's memory and a way to call it.
///
/// `&mut` on the calling methods is the lock of DESIGN §2: one invocation at a time. A window can be moved to other threads.
pub struct Window {
    inner: Box<Inner>,
    /// Bytes of the argument area in use by [`Window::place`], from its start.
    placed: u64,
    /// Bytes in use by [`Window::place_exact`], from its end.
    exact: u64,
}

impl Window {
    /// Makes a window at a random base and runs the image's initialisation, if it has one.
    ///
    /// # Errors
    /// [`Error::MissingImport`] if the image lists an import that `imports` does not offer, [`Error::Memory`], or what
    /// the initialisation ended with.
    pub fn new(image: &Arc<Image>, imports: &Imports) -> Result<Window, Error> {
        Window::create(image, imports, false)
    }

    /// Makes the process's one window at base 0, in which memory accesses are fastest.
    ///
    /// On AMD Zen, images made for it (`cordon rewrite --fast-window`) keep native and data stack apart there; with others, stack accesses may
    /// miss the way predictor.
    ///
    /// Nothing else may lie below 4 GiB + 64 KiB, which is so in position-independent programs. With [`crate::LoadOptions::seal`] on a kernel
    /// that has `mseal`, base 0 stays with this image even after the window is dropped.
    ///
    /// # Errors
    /// [`Error::FastWindow`] if there is one already or something else lies there; else as [`Window::new`].
    pub fn new_fast(image: &Arc<Image>, imports: &Imports) -> Result<Window, Error> {
        Window::create(image, imports, true)
    }

    fn create(image: &Arc<Image>, imports: &Imports, fast: bool) -> Result<Window, Error> {
        let functions = imports.resolve(image)?;
        let floats = functions.iter().flatten().any(HostFunction::uses_floats);
        let offered: Vec<bool> = image.imports().iter().zip(&functions).map(|(i, f)| i.built_in || f.is_some()).collect();
        let spare = image.take_spare(fast, &offered);
        let sealed = spare.is_some();
        let (pages, base) = match spare {
            Some(spare) => (spare.pages, spare.base),
            None => reserve(fast, image.stack_shift())?,
        };
        let mut inner = Box::new(Inner {
            id: new_id(),
            image: Arc::clone(image),
            base,
            pages: Some(pages),
            flags: image.flags() | if floats { flag::FLOAT_IMPORTS } else { 0 } | thread::stack_flags(image.stack_size()),
            limit: Limit::new(image.options().time_limit),
            tank: Tank::new(image.options().fuel),
            plain: plain(&functions, image.flags()),
            functions,
            offered,
            sealed,
            shares: Shares::default(),
        });
        inner.map_regions()?;
        if !sealed {
            inner.write_tables()?;
        }
        let mut window = Window { inner, placed: 0, exact: 0 };
        window.initialise()?;
        Ok(window)
    }

    /// The image that the window was made from.
    #[must_use]
    pub fn image(&self) -> &Arc<Image> {
        &self.inner.image
    }

    /// Whether this is the window at base 0.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.inner.base == 0
    }

    /// Most time that one call may take, `None` for no limit.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        self.inner.limit.duration()
    }

    /// Sets the time that each later call may take, with the host functions that it calls and their sleep; before, it is that of
    /// [`crate::LoadOptions::time_limit`].
    ///
    /// A call that takes longer ends with a fault of [`crate::FaultKind::TimeLimit`], never early, and late by at most about half the limit
    /// (500 µs for limits below 1 ms, 20 ms for limits above 40 ms), plus what the kernel takes to deliver a signal. In a host function it
    /// ends when that returns. A call from inside a host function also ends at the limits of the calls around it.
    ///
    /// A long pause in which the thread had no processor (a busy machine, a debugger) counts as a fraction of itself.
    ///
    /// Calls that finish pay next to nothing for a limit, but the timer of a short one interrupts the thread up to 4000 times a second.
    pub fn set_time_limit(&mut self, limit: Option<Duration>) {
        self.inner.limit = Limit::new(limit);
        // What contexts hold of this window is no longer true.
        self.inner.id = new_id();
    }

    /// Most instructions that one call may execute, `None` for no limit.
    #[must_use]
    pub fn fuel(&self) -> Option<u64> {
        self.inner.tank.limit()
    }

    /// Sets how many instructions each later call may execute; before, it is [`crate::LoadOptions::fuel`]. Without a limit, and above it,
    /// that is 2^63 - 1.
    ///
    /// A call that would execute more ends with a fault of [`crate::FaultKind::Fuel`], at the same instruction on every machine and in every
    /// run. Instructions are paid for some at a time, before they are executed, so a call may end up to 1023 of them early. Built-in
    /// gates take one unit for 16 bytes (`memcpy` and its like) or 4 elements (string instructions), host functions what they ask for
    /// ([`crate::CallContext::charge`]). A call from inside a host function gets at most what the calls around it have left, and they pay.
    ///
    /// # Errors
    /// [`Error::NotMetered`] for a limit if the image does not count its instructions.
    pub fn set_fuel(&mut self, limit: Option<u64>) -> Result<(), Error> {
        if limit.is_some() && !self.inner.image.mode().metered {
            return Err(Error::NotMetered);
        }
        self.inner.tank.set_limit(limit);
        Ok(())
    }

    /// Fuel that the last call used, however it ended; `None` if the image does not count its instructions.
    #[must_use]
    pub fn fuel_used(&self) -> Option<u64> {
        self.inner.image.mode().metered.then(|| self.inner.tank.used())
    }

    /// Calls entry `name` with up to six integers (byte slices among them) and eight `double`s; gives the integer result (rax).
    ///
    /// # Errors
    /// [`Error::NoEntry`], [`Error::TooManyArguments`], [`Error::ArgumentArea`], or what the call ended with: [`Error::Fault`],
    /// [`Error::Import`], [`Error::Nesting`], [`Error::Timer`]. The window can be used again after every error.
    pub fn call(&mut self, name: &str, args: &[Arg<'_>]) -> Result<u64, Error> {
        Ok(self.call_with(name, args)?.int)
    }

    /// As [`Window::call`], for entries that return a `double` (xmm0).
    ///
    /// # Errors
    /// As [`Window::call`].
    pub fn call_float(&mut self, name: &str, args: &[Arg<'_>]) -> Result<f64, Error> {
        Ok(self.call_with(name, args)?.float)
    }

    fn call_with(&mut self, name: &str, args: &[Arg<'_>]) -> Result<Returned, Error> {
        let entry = self.inner.image.entry(name).ok_or_else(|| Error::NoEntry(name.to_owned()))?;
        let placed = (self.placed, self.exact);
        let registers = self.registers(args);
        (self.placed, self.exact) = placed;
        let registers = registers?;
        self.run(entry, &registers.ints, registers.floats.as_ref())
    }

    /// Calls `entry` with integer arguments only, the quickest way in.
    ///
    /// # Errors
    /// As [`Window::call`].
    #[inline]
    pub fn call_entry(&mut self, entry: Entry, ints: [u64; 6]) -> Result<u64, Error> {
        Ok(self.run(entry, &ints, None)?.int)
    }

    /// Part of its callers: as the result of a function the numbers would be written one by one and read at once (see [`enter::enter`]).
    #[inline(always)]
    fn run(&mut self, entry: Entry, ints: &[u64; 6], floats: Option<&[f64; 8]>) -> Result<Returned, Error> {
        let target = self.inner.image.entry_target(entry).ok_or_else(|| Error::NoEntry("of another image".to_owned()))?;
        let mut returned = Returned::default();
        enter::enter(&self.inner, target, ints, floats, &mut returned)?;
        Ok(returned)
    }

    /// Distributes arguments over registers (psABI x86-64, 3.2.3), placing byte slices.
    fn registers(&mut self, args: &[Arg<'_>]) -> Result<Registers, Error> {
        let mut registers = Registers::default();
        let mut floats = [0.0; 8];
        let (mut next_int, mut next_float) = (0, 0);
        for arg in args {
            let value = match arg {
                Arg::Float(value) => {
                    *floats.get_mut(next_float).ok_or(Error::TooManyArguments)? = *value;
                    next_float += 1;
                    continue;
                }
                Arg::Int(value) => *value,
                Arg::Bytes(bytes) => u64::from(self.place(bytes)?),
                Arg::Exact(bytes) => u64::from(self.place_exact(bytes)?),
            };
            *registers.ints.get_mut(next_int).ok_or(Error::TooManyArguments)? = value;
            next_int += 1;
        }
        registers.floats = (next_float > 0).then_some(floats);
        Ok(registers)
    }

    /// Copies `bytes` to the argument area behind what was placed there before; gives their window offset, a multiple of 16. They stay
    /// until [`Window::clear_arguments`] or [`Window::reset`]; byte arguments of a call go behind them.
    ///
    /// # Errors
    /// [`Error::ArgumentArea`] if they do not fit.
    pub fn place(&mut self, bytes: &[u8]) -> Result<u32, Error> {
        let area = self.argument_area();
        let available = u64::from(area.end - area.start).saturating_sub(self.placed + self.exact);
        let wanted = (bytes.len() as u64).next_multiple_of(ARGUMENT_ALIGN);
        if wanted > available {
            return Err(Error::ArgumentArea { wanted, available });
        }
        let offset = area.start + self.placed as u32;
        self.write(offset, bytes)?;
        self.placed += wanted;
        Ok(offset)
    }

    /// Copies `bytes` to the end of the argument area, so that their last byte lies in front of an unmapped page and an access to the first
    /// byte past them is reported; gives their window offset, which has no alignment. Code that counts on an alignment of its input
    /// faults or runs slower. Bytes before the first one stay accessible. One such argument is possible at a time; [`crate::Memory::exact`]
    /// has no such limit.
    ///
    /// # Errors
    /// [`Error::ArgumentArea`] if they do not fit, [`Error::Exact`] if there is an exact argument already or the area is followed by another.
    pub fn place_exact(&mut self, bytes: &[u8]) -> Result<u32, Error> {
        let area = self.argument_area();
        if self.exact > 0 {
            return Err(Error::Exact("there is one already"));
        }
        if self.inner.image.regions().iter().any(|r| r.start == area.end) {
            return Err(Error::Exact("no unmapped page follows the argument area of this image"));
        }
        let available = u64::from(area.end - area.start).saturating_sub(self.placed);
        let wanted = bytes.len() as u64;
        if wanted > available {
            return Err(Error::ArgumentArea { wanted, available });
        }
        let offset = area.end - wanted as u32;
        self.write(offset, bytes)?;
        self.exact = wanted;
        Ok(offset)
    }

    fn argument_area(&self) -> Region {
        self.region(RegionKind::Argument).unwrap_or(Region { start: 0, end: 0, kind: RegionKind::Argument })
    }

    /// Forgets what [`Window::place`] and [`Window::place_exact`] placed; the bytes stay until they are written over.
    pub fn clear_arguments(&mut self) {
        (self.placed, self.exact) = (0, 0);
    }

    /// The first region of `kind`.
    #[must_use]
    pub fn region(&self, kind: RegionKind) -> Option<Region> {
        self.inner.image.regions().iter().copied().find(|r| r.kind == kind)
    }

    /// Window memory `offset..offset + len`, which must lie in one region.
    ///
    /// # Errors
    /// [`Error::Range`] if it does not.
    pub fn bytes(&self, offset: u32, len: u32) -> Result<&[u8], Error> {
        let at = self.inner.address_in(offset, len, |_| true)?;
        // SAFETY: the range lies in a mapped, readable region; nothing writes it while the window is borrowed: its handler does not run.
        Ok(unsafe { std::slice::from_raw_parts(at as *const u8, len as usize) })
    }

    /// Window memory `offset..offset + len`, which must lie in one writable region.
    ///
    /// # Errors
    /// [`Error::Range`] if it does not.
    pub fn bytes_mut(&mut self, offset: u32, len: u32) -> Result<&mut [u8], Error> {
        let at = self.inner.address_in(offset, len, |kind| kind != RegionKind::Rodata)?;
        // SAFETY: the range lies in a mapped, writable region, and the window is borrowed mutably.
        Ok(unsafe { std::slice::from_raw_parts_mut(at as *mut u8, len as usize) })
    }

    /// Copies window memory at `offset` to `to`.
    ///
    /// # Errors
    /// [`Error::Range`] if the range is not in one region or shared memory.
    pub fn read(&self, offset: u32, to: &mut [u8]) -> Result<(), Error> {
        let failed = Error::Range { offset: offset.into(), len: to.len() as u64 };
        let Ok(len) = u32::try_from(to.len()) else { return Err(failed) };
        if self.inner.shares.holds(offset, len, false) {
            let from = (self.inner.base + u64::from(offset)) as *const u8;
            // SAFETY: `to` is ours; the source lies inside the window's reservation.
            return if unsafe { enter::try_copy(to.as_mut_ptr(), from, to.len()) } { Ok(()) } else { Err(failed) };
        }
        to.copy_from_slice(self.bytes(offset, len)?);
        Ok(())
    }

    /// Copies `from` to window memory at `offset`.
    ///
    /// # Errors
    /// [`Error::Range`] if the range is not in one writable region or shared memory.
    pub fn write(&mut self, offset: u32, from: &[u8]) -> Result<(), Error> {
        let failed = Error::Range { offset: offset.into(), len: from.len() as u64 };
        let Ok(len) = u32::try_from(from.len()) else { return Err(failed) };
        if self.inner.shares.holds(offset, len, true) {
            let to = (self.inner.base + u64::from(offset)) as *mut u8;
            // SAFETY: `from` is ours; the destination lies inside the window's reservation, in memory of which no reference exists.
            return if unsafe { enter::try_copy(to, from.as_ptr(), from.len()) } { Ok(()) } else { Err(failed) };
        }
        self.bytes_mut(offset, len)?.copy_from_slice(from);
        Ok(())
    }

    /// Brings memory back to the image's initial state, but for what the host has shared ([`Window::share`]), and runs the initialisation again.
    ///
    /// # Errors
    /// [`Error::Memory`], or what the initialisation ended with.
    pub fn reset(&mut self) -> Result<(), Error> {
        (self.placed, self.exact) = (0, 0);
        let pages = self.inner.pages()?;
        for region in self.inner.image.regions().iter().filter(|r| r.kind != RegionKind::Rodata) {
            pages.discard(self.inner.base + u64::from(region.start), u64::from(region.end - region.start))?;
        }
        self.inner.write_data()?;
        self.initialise()
    }

    pub(crate) fn inner_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }

    fn initialise(&mut self) -> Result<(), Error> {
        match self.inner.image.entry(INIT_ENTRY) {
            Some(entry) => self.call_entry(entry, [0; 6]).map(|_| ()),
            None => Ok(()),
        }
    }
}

impl Inner {
    pub fn pages(&self) -> Result<&Pages, Error> {
        self.pages.as_ref().ok_or(Error::Internal("a window without its reservation"))
    }

    /// Address of window offset 0.
    pub fn base(&self) -> u64 {
        self.base
    }

    fn address_in(&self, offset: u32, len: u32, kinds: impl Fn(RegionKind) -> bool) -> Result<u64, Error> {
        let end = u64::from(offset) + u64::from(len);
        let fits = |r: &&Region| kinds(r.kind) && r.start <= offset && end <= u64::from(r.end);
        match self.image.regions().iter().find(fits) {
            Some(_) => Ok(self.base + u64::from(offset)),
            None => Err(Error::Range { offset: offset.into(), len: len.into() }),
        }
    }

    /// Maps every region; the rest of the window stays inaccessible.
    fn map_regions(&self) -> Result<(), Error> {
        let pages = self.pages()?;
        let place = |region: &Region| (self.base + u64::from(region.start), u64::from(region.end - region.start));
        for region in self.image.regions().iter().filter(|r| r.kind != RegionKind::Rodata) {
            let (start, len) = place(region);
            pages.map_zero(start, len, Access::ReadWrite)?;
        }
        for (region, file) in self.image.rodata() {
            let (start, len) = place(region);
            pages.map_shared_read_only(start, len, file)?;
        }
        self.write_data()
    }

    /// Writes the initial bytes of the data regions, which are zero besides.
    fn write_data(&self) -> Result<(), Error> {
        let pages = self.pages()?;
        for initial in self.image.data() {
            // SAFETY: every initial range lies in a data region, mapped writable; no slice of it is alive: the caller has the window alone.
            unsafe { pages.write(self.base + u64::from(initial.start), &initial.bytes)? };
        }
        Ok(())
    }

    /// Writes the code-pointer tables and makes their pages read-only.
    fn write_tables(&mut self) -> Result<(), Error> {
        let bytes = self.tables();
        let (start, len) = (self.base + u64::from(self.image.table().start), bytes.len() as u64);
        let pages = self.pages()?;
        pages.map_zero(start, len, Access::ReadWrite)?;
        // SAFETY: just mapped writable, nobody refers to it.
        unsafe { pages.write(start, &bytes)? };
        pages.protect(start, len, Access::Read)?;
        self.sealed = self.image.options().seal && pages.seal(start, len);
        Ok(())
    }

    /// Content of the table pages: every word that is not a listed slot is the trap stub.
    fn tables(&self) -> Vec<u8> {
        let offered = |import: u32| self.offered.get(import as usize) == Some(&true);
        let address = |slot| self.image.slot_address(slot, offered);
        let range = self.image.table();
        let mut bytes = address(Slot::Trap).to_le_bytes().repeat((range.end - range.start) as usize / 8);
        let mut fill = |first: u32, slots: &[Slot]| {
            let words = bytes.chunks_exact_mut(8).skip((first - range.start) as usize / 8);
            for (word, slot) in words.zip(slots) {
                word.copy_from_slice(&address(*slot).to_le_bytes());
            }
        };
        fill(range.start, self.image.main_slots());
        for table in self.image.sub_tables() {
            fill(table.base, &table.slots);
        }
        bytes
    }

    /// Fills in what stays the same for every call of this window on `stack`.
    #[cold]
    pub fn fill(&self, cx: &mut Context, stack: &NativeStack) {
        let code = self.image.code_range();
        cx.base = self.base;
        cx.standing = self.flags | if thread::has_shadow_stack() { flag::SHADOWED } else { 0 };
        cx.table_end = u64::from(self.image.table().end);
        cx.gate_limit = stack.gate_limit();
        cx.plain = self.plain.as_ptr() as u64;
        cx.mxcsr_mask = if self.flags & flag::CONTROL != 0 { 0xffff_ffff } else { 0xffff_ffc0 };
        cx.leaves = self.image.leaves().as_ptr() as u64;
        cx.leaf_count = self.image.leaves().len() as u64;
        cx.xcr0 = self.image.state_components();
        cx.clock.set(self.limit);
        cx.window = ptr::from_ref(self) as u64;
        cx.invocation = stack.invocation() as u64;
        cx.text_start = code.start;
        cx.text_end = code.end;
        cx.stack_start = stack.start();
        cx.guard_start = stack.guard();
        cx.owner = self.id;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(pages) = self.pages.take() else { return };
        if !self.sealed {
            drop(pages);
            if self.base == 0 {
                FAST_TAKEN.store(false, Ordering::Release);
            }
            return;
        }
        // The table pages cannot be unmapped, so the reservation serves the image's next window. Handler memory goes back now.
        let regions = self.image.regions().iter().map(|r| (r.start, r.end));
        for (start, end) in regions.chain(self.shares.ranges()) {
            let (start, len) = (self.base + u64::from(start), u64::from(end - start));
            if pages.map_zero(start, len, Access::None).is_err() {
                return;
            }
        }
        self.image.keep_spare(Spare { pages, base: self.base, offered: std::mem::take(&mut self.offered) });
    }
}

/// Addresses of the plain functions by import index, for the gate. It compares the segment base afterwards, so it needs its instructions.
fn plain(functions: &[Option<HostFunction>], flags: u32) -> Box<[u64]> {
    let readable = flags & flag::SYSTEM_CALLS == 0;
    let address = |function: &Option<HostFunction>| match function {
        Some(HostFunction::Plain(function)) if readable => *function as usize as u64,
        _ => 0,
    };
    functions.iter().map(address).collect()
}

/// An identity that no window has had; 0 is none.
fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether base 0 is in use in this process.
static FAST_TAKEN: AtomicBool = AtomicBool::new(false);

/// Reserves control region, window and edge for an image with this K; gives them with the window's base.
fn reserve(fast: bool, stack_shift: u32) -> Result<(Pages, u64), Error> {
    if fast {
        if FAST_TAKEN.swap(true, Ordering::AcqRel) {
            return Err(Error::FastWindow("this process has one already"));
        }
        let reserved = reserve_low();
        if reserved.is_err() {
            FAST_TAKEN.store(false, Ordering::Release);
        }
        return Ok((reserved?, 0));
    }
    let offset = grid()? + (APART & !u64::from(stack_shift));
    let pages = Pages::reserve_random(CONTROL + WINDOW + EDGE, STRIDE, offset.wrapping_sub(CONTROL), Access::None)?;
    let base = pages.start() + CONTROL;
    Ok((pages, base))
}

/// Where in a [`STRIDE`] the windows of this process begin: a multiple of [`BASE_STEP`], drawn once.
fn grid() -> Result<u64, Error> {
    static GRID: OnceLock<u64> = OnceLock::new();
    let drawn = crate::pages::random()? % (STRIDE / BASE_STEP) * BASE_STEP;
    Ok(*GRID.get_or_init(|| drawn))
}

/// Reserves everything below 4 GiB + 64 KiB that can be mapped; below, where the kernel lets nobody map, needs no reservation.
fn reserve_low() -> Result<Pages, Error> {
    let taken = Error::FastWindow("something else lies below 4 GiB + 64 KiB");
    if let Ok(pages) = Pages::reserve_at(0, WINDOW + EDGE, Access::None) {
        return pages.ok_or(taken);
    }
    let lowest = std::fs::read_to_string("/proc/sys/vm/mmap_min_addr").ok().and_then(|text| text.trim().parse().ok());
    let lowest: u64 = lowest.unwrap_or(LOWEST_MAPPABLE);
    let lowest = lowest.next_multiple_of(PAGE);
    if lowest > LOWEST_MAPPABLE {
        return Err(Error::FastWindow("the kernel lets nothing be mapped where handler memory begins"));
    }
    Pages::reserve_at(lowest, WINDOW + EDGE - lowest, Access::None)?.ok_or(taken)
}
