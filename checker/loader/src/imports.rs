//! Host functions that handlers may call.

use crate::c_imports::CPlainFunction;
use crate::context::{Context, stop};
use crate::enter;
use crate::error::Error;
use crate::fault::Fault;
use crate::fuel;
use crate::image::Image;
use crate::jumps::{self, Landing};
use crate::thread::{self, Invocation};
use crate::time::Overrun;
use crate::window::Inner;
use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;

/// Handler-visible bytes of a window.
const WINDOW: u64 = 1 << 32;

type IntFunction = dyn Fn(&mut CallContext<'_>, [u64; 6]) -> u64 + Send + Sync;
type FloatFunction = dyn Fn(&mut CallContext<'_>, [f64; 8]) -> f64 + Send + Sync;

/// A host function behind an import.
#[derive(Clone)]
pub enum HostFunction {
    Int(Arc<IntFunction>),
    Float(Arc<FloatFunction>),
    /// Called by the gate itself.
    Plain(CPlainFunction),
}

impl HostFunction {
    /// Whether it takes or gives floating-point values.
    pub fn uses_floats(&self) -> bool {
        matches!(self, HostFunction::Float(_))
    }
}

impl fmt::Debug for HostFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HostFunction::Int(_) => "function",
            HostFunction::Float(_) => "float function",
            HostFunction::Plain(_) => "plain function",
        })
    }
}

/// The functions that a host offers to handlers, by name. The loader's own gates ([`crate::BUILT_IN_GATES`]) need
/// not be listed and cannot be replaced.
#[derive(Clone, Debug, Default)]
pub struct Imports {
    functions: HashMap<String, HostFunction>,
    missing_trap: bool,
}

impl Imports {
    /// Offers nothing.
    #[must_use]
    pub fn new() -> Imports {
        Imports::default()
    }

    /// Offers `function` as `name`. It gets the six integer argument registers and gives the result; pointers among them are window
    /// offsets, to be used through the context only.
    ///
    /// The function runs on the host's stack, in the middle of a call. It must not leave by anything but return or panic (no `longjmp`, no
    /// thread exit), must leave the signals of [`crate::SIGNALS`] and [`crate::time_signal`] unblocked, and finds the window's base in segment
    /// gs. A panic ends the call with [`Error::Import`]. Its time counts for the call's limit, but it is never interrupted for that: the
    /// call ends when it returns.
    #[must_use]
    pub fn function<F>(mut self, name: &str, function: F) -> Imports
    where
        F: Fn(&mut CallContext<'_>, [u64; 6]) -> u64 + Send + Sync + 'static,
    {
        self.functions.insert(name.to_owned(), HostFunction::Int(Arc::new(function)));
        self
    }

    /// Offers a function of up to eight `double`s that gives a `double`, such as `sin`.
    #[must_use]
    pub fn float_function<F>(mut self, name: &str, function: F) -> Imports
    where
        F: Fn(&mut CallContext<'_>, [f64; 8]) -> f64 + Send + Sync + 'static,
    {
        self.functions.insert(name.to_owned(), HostFunction::Float(Arc::new(function)));
        self
    }

    /// Offers `function` as `name`: six integers in, one out, and nothing else. Its calls cost a third of those of [`Imports::function`], for the
    /// gate calls it directly, with the handler's argument registers. (Not if the text uses x87 or may change control words, if the host's
    /// MXCSR is not the default, or where segment gs is written by system calls: then a plain function costs as much as any.)
    ///
    /// It has no context, so it cannot reach the window, call back, stop the call but by a panic, or charge it fuel; nor can it capture
    /// anything (state lies in statics). A closure that captures does not compile:
    ///
    /// ```compile_fail
    /// let n = 3;
    /// cordon_loader::Imports::new().plain_function("add", move |[a, ..]| a + n);
    /// ```
    ///
    /// All else is as for [`Imports::function`]: the stack, panics, the time limit, segment gs.
    #[must_use]
    pub fn plain_function<F>(mut self, name: &str, function: F) -> Imports
    where
        F: Fn([u64; 6]) -> u64 + Send + Sync + 'static,
    {
        const { assert!(size_of::<F>() == 0, "a plain function cannot capture anything") };
        // `plain` makes use of the value from now on.
        std::mem::forget(function);
        self.functions.insert(name.to_owned(), HostFunction::Plain(plain::<F>));
        self
    }

    /// As `plain_function`, for a function that is one for C already.
    pub(crate) fn plain(mut self, name: &str, function: CPlainFunction) -> Imports {
        self.functions.insert(name.to_owned(), HostFunction::Plain(function));
        self
    }

    /// Lets images be used that list imports which are not offered; calling one is a [`crate::FaultKind::BadCodePointer`].
    #[must_use]
    pub fn missing_as_trap(mut self) -> Imports {
        self.missing_trap = true;
        self
    }

    /// The functions behind the imports of `image`, by import index.
    ///
    /// # Errors
    /// [`Error::MissingImport`] for the first one that is not offered.
    pub(crate) fn resolve(&self, image: &Image) -> Result<Vec<Option<HostFunction>>, Error> {
        let resolve = |import: &crate::image::ImportName| match self.functions.get(&import.name) {
            _ if import.built_in => Ok(None),
            None if !self.missing_trap => Err(Error::MissingImport(import.name.clone())),
            function => Ok(function.cloned()),
        };
        image.imports().iter().map(resolve).collect()
    }
}

/// What a host function can do with the window that called it. Every access is a copy, checked against the window; the handler's
/// code-pointer table is never written.
pub struct CallContext<'a> {
    window: &'a Inner,
    cx: *mut Context,
    /// A box, which costs the usual function next to nothing.
    effects: Option<Box<Effects>>,
}

/// What a host function brings about besides its result.
#[derive(Debug, Default)]
struct Effects {
    stopped: Option<String>,
    starved: bool,
    /// Where longjmp goes on.
    landing: Option<Landing>,
}

impl CallContext<'_> {
    /// Image of the calling window.
    #[must_use]
    pub fn image(&self) -> &Arc<Image> {
        &self.window.image
    }

    /// Address of window range `offset..offset + len`, if it ends inside the window.
    fn address(&self, offset: u64, len: usize) -> Result<u64, Error> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= WINDOW => Ok(self.window.base() + offset),
            _ => Err(Error::Range { offset, len: len as u64 }),
        }
    }

    /// Copies window memory at `offset` to `to`.
    ///
    /// # Errors
    /// [`Error::Range`] if part of it lies outside the window or is not mapped; `to` is then undefined handler data.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        let from = self.address(offset, to.len())?;
        // SAFETY: `to` is ours; the source lies inside the window's reservation.
        let done = unsafe { enter::try_copy(to.as_mut_ptr(), from as *const u8, to.len()) };
        if done { Ok(()) } else { Err(Error::Range { offset, len: to.len() as u64 }) }
    }

    /// Copies `from` to window memory at `offset`.
    ///
    /// # Errors
    /// [`Error::Range`] if part of it lies outside the window, in the table pages or below, is read-only or not mapped; a part may have
    /// been written then.
    pub fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
        let to = self.address(offset, from.len())?;
        let table = self.window.image.table();
        // SAFETY: `from` is ours; the destination lies inside the window's reservation, above the table pages.
        let done = offset >= u64::from(table.end) && unsafe { enter::try_copy(to as *mut u8, from.as_ptr(), from.len()) };
        if done || from.is_empty() { Ok(()) } else { Err(Error::Range { offset, len: from.len() as u64 }) }
    }

    /// Copies `len` bytes of window memory at `offset`. Check `len` against what makes sense first: that much memory is allocated.
    ///
    /// # Errors
    /// [`Error::Range`] as for [`CallContext::read`].
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.address(offset, len)?;
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies the NUL-terminated string at `offset`, without its NUL.
    ///
    /// # Errors
    /// [`Error::Range`] if there is no NUL among the first `limit` bytes or the string is not readable.
    pub fn read_c_string(&self, offset: u64, limit: usize) -> Result<Vec<u8>, Error> {
        const CHUNK: u64 = 256;
        let mut bytes = Vec::new();
        while bytes.len() < limit {
            let at = offset + bytes.len() as u64;
            let len = (CHUNK - at % CHUNK).min((limit - bytes.len()) as u64) as usize;
            let chunk = self.read_vec(at, len)?;
            if let Some(end) = chunk.iter().position(|&b| b == 0) {
                bytes.extend_from_slice(&chunk[..end]);
                return Ok(bytes);
            }
            bytes.extend_from_slice(&chunk);
        }
        Err(Error::Range { offset, len: limit as u64 })
    }

    /// Calls the handler function that code pointer `value` names, below the running call on the same stacks.
    ///
    /// # Errors
    /// [`Error::BadCodePointer`] and [`Error::Nesting`] leave the running call as it is. Anything else (a fault, a stop by a nested
    /// import) ends the running call when the host function returns, whatever it returns; then [`Error::Import`] says so here.
    pub fn call_back(&mut self, value: u64, ints: [u64; 6]) -> Result<u64, Error> {
        let target = self.window.image.callback_target(value).ok_or(Error::BadCodePointer(value))?;
        self.nested(target, ints)
    }

    /// Calls entry `name`, as [`CallContext::call_back`].
    ///
    /// # Errors
    /// [`Error::NoEntry`], else as [`CallContext::call_back`].
    pub fn call_entry(&mut self, name: &str, ints: [u64; 6]) -> Result<u64, Error> {
        let entry = self.window.image.entry(name).and_then(|entry| self.window.image.entry_target(entry));
        self.nested(entry.ok_or_else(|| Error::NoEntry(name.to_owned()))?, ints)
    }

    fn nested(&mut self, target: u64, ints: [u64; 6]) -> Result<u64, Error> {
        // SAFETY: this context exists only while the host function runs; the invocation outlives it.
        let invocation = unsafe { (*self.cx).invocation as *mut Invocation };
        // SAFETY: as above.
        let (cx, outcome) = unsafe { (&*self.cx, &mut (*invocation).outcome) };
        if let (Some(overrun), None) = (cx.clock.pending(), &outcome) {
            *outcome = Some(late(self.window, cx, overrun));
        }
        if outcome.is_some() {
            return Err(ending());
        }
        // SAFETY: the target is an entry or a depth-0 text slot, and a host function of this invocation is running.
        match unsafe { enter::enter_again(self.window, self.cx, target, &ints) } {
            Ok(returned) => Ok(returned.int),
            Err(Error::Nesting) => Err(Error::Nesting),
            Err(error) => {
                // SAFETY: as above.
                unsafe { (*invocation).outcome = Some(error) };
                Err(ending())
            }
        }
    }

    #[cold]
    fn effects(&mut self) -> &mut Effects {
        self.effects.get_or_insert_default()
    }

    /// Fuel that the running call has left, in instructions; `None` if the image does not count its instructions.
    #[must_use]
    pub fn fuel_left(&self) -> Option<u64> {
        // SAFETY: this context exists only while the host function runs; the invocation outlives it.
        self.window.image.mode().metered.then(|| fuel::sound(unsafe { (*self.cx).frame.fuel }))
    }

    /// Makes the running call pay `units` of fuel for what the host function does; gives whether it could. If not, it has none left, and
    /// ends with [`crate::FaultKind::Fuel`] when the host function returns. An image that is not metered pays nothing and always can.
    pub fn charge(&mut self, units: u64) -> bool {
        let Some(left) = self.fuel_left() else { return true };
        // SAFETY: as above; nothing else refers to the context now.
        unsafe { (*self.cx).frame.fuel = left.saturating_sub(units) };
        if units > left {
            self.effects().starved = true;
        }
        units <= left
    }

    /// Serves `cordon.longjmp`, which was called with `args`: sets where to go on, or the fault that ends the call; gives the result.
    fn jump(&mut self, args: [u64; 6]) -> u64 {
        if !self.charge(jumps::FUEL) {
            return 0;
        }
        // SAFETY: this context exists only while the host function runs; the invocation outlives it.
        unsafe { (*self.cx).frame.args = args };
        // SAFETY: as above.
        let cx = unsafe { &*self.cx };
        match Landing::find(self.window, cx) {
            Ok(landing) => self.effects().landing = Some(landing),
            Err(why) => {
                // SAFETY: as above; nothing else refers to the outcome now.
                let outcome = unsafe { &mut (*(cx.invocation as *mut Invocation)).outcome };
                outcome.get_or_insert_with(|| Error::Fault(Box::new(Fault::lost(self.window, cx, why))));
            }
        }
        jumps::result(cx)
    }

    /// Ends the call with [`Error::Import`] and this message when the host function returns.
    pub fn stop(&mut self, message: impl fmt::Display) {
        self.effects().stopped = Some(message.to_string());
    }
}

/// The end of a call that met its time limit in the running host function.
fn late(window: &Inner, cx: &Context, overrun: Overrun) -> Error {
    Error::Fault(Box::new(Fault::late(window, cx, overrun)))
}

fn ending() -> Error {
    Error::Import { import: String::new(), message: "the call is ending".to_owned() }
}

/// What the gate calls for a plain function.
///
/// # Safety
/// A value of `F` has been forgotten, and the running invocation of this thread is in a call of this import.
unsafe extern "C" fn plain<F: Fn([u64; 6]) -> u64>(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> u64 {
    const { assert!(size_of::<F>() == 0) };
    // SAFETY: a value without bytes lies at any aligned address, and there is one, which may be shared between threads.
    let function: &F = unsafe { NonNull::dangling().as_ref() };
    catch_unwind(AssertUnwindSafe(|| function([a, b, c, d, e, f]))).unwrap_or_else(plain_panicked)
}

/// Makes the running call end when the plain function that panicked returns, now.
#[cold]
#[inline(never)]
fn plain_panicked(panic: Box<dyn Any + Send>) -> u64 {
    // SAFETY: `plain` runs only within an invocation, which is the thread's current one again whatever the function has called.
    let (cx, outcome) = unsafe {
        let cx = &*thread::current();
        (cx, &mut (*(cx.invocation as *mut Invocation)).outcome)
    };
    // SAFETY: the window outlives the invocation.
    let window = unsafe { &*(cx.window as *const Inner) };
    outcome.get_or_insert_with(|| import_ended(window, cx.frame.import as usize, panicked(&*panic)));
    cx.clock.fail();
    0
}

/// What the gate calls when a plain function has returned and the call is to end.
pub extern "C" fn plain_ended(high_half: u64) {
    // SAFETY: as in `host_import`.
    let cx = unsafe { &mut *((high_half + crate::context::HOME) as *mut Context) };
    // SAFETY: as there.
    let (window, outcome) = unsafe { (&*(cx.window as *const Inner), &mut (*(cx.invocation as *mut Invocation)).outcome) };
    if let (Some(overrun), None) = (cx.clock.pending(), &outcome) {
        *outcome = Some(late(window, cx, overrun));
    }
    cx.frame.stop = stop::IMPORT;
}

/// What a host function brought about: in rax and rdx.
#[repr(C)]
pub struct Answer {
    /// For the handler's rax.
    result: u64,
    /// 0 to return to the handler, else the call ends.
    end: u64,
}

/// What the host gate calls, on the host's stack, with the handler's integer arguments.
pub extern "C" fn host_import(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, high_half: u64) -> Answer {
    // SAFETY: the gate passes the half of the context it found from the native stack pointer of this thread's running invocation.
    let cx = (high_half + crate::context::HOME) as *mut Context;
    // SAFETY: as above; the window outlives the invocation.
    let (window, import) = unsafe { (&*((*cx).window as *const Inner), (*cx).frame.import as usize) };
    let function = window.functions.get(import).and_then(Option::as_ref);
    let mut context = CallContext { window, cx, effects: None };
    let mut result = (0, 0.0);
    let ended = catch_unwind(AssertUnwindSafe(|| match function {
        Some(HostFunction::Int(function)) => result.0 = function(&mut context, [a, b, c, d, e, f]),
        // SAFETY: it takes any six integers, and this is a call of its import.
        Some(HostFunction::Plain(function)) => result.0 = unsafe { function(a, b, c, d, e, f) },
        // SAFETY: the gate stored the arguments; they are copied before anything else runs.
        Some(HostFunction::Float(function)) => result.1 = function(&mut context, unsafe { (*cx).frame.float_args }),
        None if window.image.imports().get(import).is_some_and(|i| i.built_in) => result.0 = context.jump([a, b, c, d, e, f]),
        None => context.stop("the host does not offer it"),
    }));
    // SAFETY: the invocation is running; nothing else refers to its context now.
    let cx = unsafe { &mut *cx };
    if window.flags & crate::context::flag::SYSTEM_CALLS != 0 {
        // SAFETY: the thread goes back into the window or to the exit path, which restores the host's base.
        unsafe { thread::set_segment_base(window.base()) };
    }
    cx.frame.float_result = result.1;
    // SAFETY: the invocation's state lies beside the native stack of the entry that is running.
    let outcome = unsafe { &mut (*(cx.invocation as *mut Invocation)).outcome };
    let usual = context.effects.is_none() && outcome.is_none();
    if usual && ended.is_ok() && cx.clock.pending().is_none() {
        return Answer { result: result.0, end: 0 };
    }
    let panic = ended.err().map(|panic| panicked(&*panic));
    Answer { result: result.0, end: after(context, import, panic, outcome) }
}

/// What else a host function brought about than its result; as [`host_import`].
#[cold]
fn after(context: CallContext<'_>, import: usize, panic: Option<String>, outcome: &mut Option<Error>) -> u64 {
    let CallContext { window, cx, effects } = context;
    let Effects { stopped, starved, landing } = effects.map(|effects| *effects).unwrap_or_default();
    // SAFETY: the invocation is running; nothing else refers to its context now.
    let cx = unsafe { &mut *cx };
    if let (Some(message), None) = (panic.or(stopped), &outcome) {
        *outcome = Some(import_ended(window, import, message));
    }
    if let (Some(overrun), None) = (cx.clock.pending(), &outcome) {
        *outcome = Some(late(window, cx, overrun));
    }
    if starved && outcome.is_none() {
        *outcome = Some(Error::Fault(Box::new(Fault::starved(window, cx))));
    }
    if outcome.is_some() {
        cx.frame.stop = stop::IMPORT;
        return 1;
    }
    if let Some(landing) = landing {
        // SAFETY: found for the state in which the context still is.
        unsafe { landing.go(cx) };
    }
    0
}

fn import_ended(window: &Inner, import: usize, message: String) -> Error {
    let import = window.image.imports().get(import).map(|i| i.name.clone()).unwrap_or_default();
    Error::Import { import, message }
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("no message"))
}
