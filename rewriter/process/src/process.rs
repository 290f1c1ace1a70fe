//! A program's life: the window, the system calls, the end.

use crate::clock::Clock;
use crate::files::{Files, MOST_FILES};
use crate::folders::{Folder, Folders};
use crate::guest::{Answer, Guest, MOST, descriptor};
use crate::heap::Heap;
use crate::number as n;
use crate::number::{AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_NOFOLLOW};
use crate::signals::{Effect, SIGPIPE, Signals};
use crate::tree::Tree;
use crate::{mapping, start};
use cordon_loader::{CallContext, Image, Imports, RegionKind, Window, survive_failing_writes};
use rustix::io::Errno;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The import behind every system call.
pub const IMPORT: &str = "cordon.syscall";
/// The entry of a program.
pub const START: &str = "_start";
/// User and group that the program runs as and that owns every file.
pub const OWNER: u32 = 1000;
/// Its process and only thread.
const PROCESS: u64 = 1;
/// What `set_tid_address` and the like find: nothing was granted.
const INFINITY: u64 = u64::MAX;
/// Resource numbers of `prlimit64`.
const RLIMIT_STACK: u64 = 3;
const RLIMIT_NOFILE: u64 = 7;
/// `arch_prctl`: set the thread pointer.
const ARCH_SET_FS: u64 = 0x1002;
/// `futex` operations without flags.
const FUTEX_WAKE: u64 = 1;
const FUTEX_COMMANDS: u64 = 0x7f;
/// Bytes of a field of `struct utsname`.
const UTSNAME_FIELD: usize = 65;
const TIMER_ABSTIME: u64 = 1;

/// What a program is given.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Its name first.
    pub arguments: Vec<Vec<u8>>,
    /// `NAME=value`.
    pub environment: Vec<Vec<u8>>,
    /// Its whole file system.
    pub folders: Vec<Folder>,
    /// Put the window at address 0.
    pub fast_window: bool,
}

/// How a program ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `exit` with this status.
    Exit(u8),
    /// It sent itself this signal.
    Signal(i32),
}

/// Why a program was not started, or was stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image has no entry [`START`] or no import [`IMPORT`].
    #[error("the image is no whole program: it needs the entry `_start` and the import `cordon.syscall`")]
    NotAProgram,
    /// An argument or variable contains a NUL byte, or all together are too many or too long.
    #[error("arguments and environment do not fit, or one has a NUL byte")]
    Arguments,
    /// A folder that cannot be granted.
    #[error("{}: cannot be given to the program: {error}", path.display())]
    Folder {
        /// The folder as it was given.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The host refused something that every program needs.
    #[error("{0}")]
    Host(io::Error),
    /// `_start` came back.
    #[error("the program returned from `_start`")]
    Returned,
    /// The image got no window, or the program was stopped: a fault, or its time limit.
    #[error(transparent)]
    Loader(#[from] cordon_loader::Error),
}

/// Whether `image` is a whole program.
#[must_use]
pub fn is_program(image: &Image) -> bool {
    image.entry(START).is_some() && image.imports().iter().any(|import| import.name == IMPORT)
}

/// Runs the program `image` to its end; its time limit is that of the image's load options. It writes to the host's standard output and
/// error and reads its standard input. From the first run on, SIGPIPE and SIGXFSZ do nothing in this process if they had no action: a program
/// could raise them in its host by writing.
///
/// # Errors
/// See [`Error`].
pub fn run(image: &Arc<Image>, settings: &Settings) -> Result<End, Error> {
    if !is_program(image) {
        return Err(Error::NotAProgram);
    }
    if settings.arguments.iter().chain(&settings.environment).any(|text| text.contains(&0)) {
        return Err(Error::Arguments);
    }

    survive_failing_writes();
    let folders = Folders::open(&settings.folders).map_err(|(path, error)| Error::Folder { path, error })?;
    let process = Arc::new(Mutex::new(Process::new(image, folders)));
    let imports = Imports::new().function(IMPORT, {
        let process = Arc::clone(&process);
        move |call, [words, thread_pointer, ..]| system_call(&process, call, words, thread_pointer)
    });
    let make = if settings.fast_window { Window::new_fast } else { Window::new };
    let mut window = make(image, &imports)?;
    start::place(&mut window, &settings.arguments, &settings.environment)?;
    lock(&process).clock = Clock::new(window.time_limit());
    let ended = window.call(START, &[]);
    let end = lock(&process).end;
    match (ended, end) {
        (Err(cordon_loader::Error::Import { .. }), Some(end)) => Ok(end),
        (Err(error), _) => Err(error.into()),
        (Ok(_), _) => Err(Error::Returned),
    }
}

/// The state is whole between calls, so a panic in one spoils nothing.
fn lock(process: &Mutex<Process>) -> MutexGuard<'_, Process> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a call does to the program.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Answer(Answer),
    End(End),
    /// The program's function at this code pointer is called with this signal, then the call gives 0.
    Handler(u64, i32),
}

impl From<Answer> for Outcome {
    fn from(answer: Answer) -> Outcome {
        Outcome::Answer(answer)
    }
}

/// The import: `words` is the window offset of the call's number and its six arguments.
fn system_call(process: &Mutex<Process>, call: &mut CallContext<'_>, words: u64, thread_pointer: u64) -> u64 {
    let error = |errno: Errno| i64::from(-errno.raw_os_error()).cast_unsigned();
    let mut guest = Guest(call);
    let [number, arguments @ ..] = match guest.words::<7>(words) {
        Ok(words) => words,
        Err(errno) => return error(errno),
    };
    // Not locked while a handler runs: it makes calls of its own.
    let outcome = lock(process).call(&mut guest, number, arguments, thread_pointer);
    match outcome {
        Outcome::Answer(Err(Errno::INTR)) => {
            // Only waits that met the time limit give this. The loader says so where it has noticed; this is for when it has not yet.
            call.stop("the time limit ended a wait");
            0
        }
        Outcome::Answer(answer) => answer.unwrap_or_else(error),
        Outcome::Handler(handler, signal) => match call.call_back(handler, [i64::from(signal).cast_unsigned(), 0, 0, 0, 0, 0]) {
            Ok(_) => 0,
            Err(_) => error(Errno::FAULT),
        },
        Outcome::End(end) => {
            lock(process).end = Some(end);
            call.stop("the program ended");
            0
        }
    }
}

/// The host's side of a program.
#[derive(Debug)]
struct Process {
    files: Files,
    folders: Folders,
    heap: Heap,
    signals: Signals,
    clock: Clock,
    umask: u32,
    stack_size: u64,
    end: Option<End>,
}

impl Process {
    fn new(image: &Image, folders: Folders) -> Process {
        let regions = image.regions();
        // An arena for `alloca` lies in front of the heap and has its kind.
        let heap = regions.iter().rfind(|r| r.kind == RegionKind::Heap).map_or(0..0, |r| u64::from(r.start)..u64::from(r.end));
        let stack = regions.iter().find(|r| r.kind == RegionKind::Stack).map_or(0, |r| u64::from(r.end - r.start));
        Process {
            files: Files::standard(),
            folders,
            heap: Heap::new(heap),
            signals: Signals::default(),
            clock: Clock::new(None),
            umask: 0o022,
            stack_size: stack,
            end: None,
        }
    }

    /// Answers one call.
    fn call(&mut self, guest: &mut Guest<'_, '_>, number: u64, arguments: [u64; 6], thread_pointer: u64) -> Outcome {
        let [a, b, c, ..] = arguments;
        match number {
            n::EXIT | n::EXIT_GROUP => Outcome::End(End::Exit(a as u8)),
            n::KILL | n::TKILL => self.signal(number == n::KILL, a, b),
            n::TGKILL if a != PROCESS => Err(Errno::SRCH).into(),
            n::TGKILL => self.signal(false, b, c),
            n::READ | n::WRITE | n::PREAD64 | n::PWRITE64 | n::READV | n::WRITEV => {
                let answer = self.transfer(guest, number, arguments);
                let writes = matches!(number, n::WRITE | n::WRITEV);
                if writes && answer == Err(Errno::PIPE) { self.broken_pipe() } else { answer.into() }
            }
            _ => self.quiet(guest, number, arguments, thread_pointer).into(),
        }
    }

    /// Calls that only give an answer.
    fn quiet(&mut self, guest: &mut Guest<'_, '_>, number: u64, arguments: [u64; 6], thread_pointer: u64) -> Answer {
        if let Some(answer) = self.named(guest, number, arguments) {
            return answer;
        }
        if let Some(answer) = self.opened(guest, number, arguments) {
            return answer;
        }
        let [a, b, c, d, ..] = arguments;
        match number {
            n::BRK => mapping::brk(&mut self.heap, guest, a),
            n::MMAP => mapping::map(&mut self.heap, &self.files, guest, arguments),
            n::MUNMAP => self.heap.unmap(a, b).map(|()| 0),
            n::MREMAP => mapping::remap(&mut self.heap, guest, a, b, c, d),
            n::MPROTECT => mapping::protect(&self.heap, a, b, c),
            n::MADVISE => mapping::advise(&self.heap, guest, a, b, c),
            n::CLOCK_GETTIME => self.clock.get(guest, a, b),
            n::CLOCK_GETRES => self.clock.resolution(guest, a, b),
            n::GETTIMEOFDAY => self.clock.time_of_day(guest, a, b),
            n::TIME => self.clock.seconds(guest, a),
            n::NANOSLEEP => self.clock.sleep(guest, 1, false, a),
            n::CLOCK_NANOSLEEP => self.clock.sleep(guest, a, b & TIMER_ABSTIME != 0, c),
            n::RT_SIGACTION => self.signals.action(guest, descriptor(a), b, c),
            n::RT_SIGPROCMASK => blocked(guest, c, d),
            n::GETRANDOM => random(guest, a, b),
            n::UNAME => name(guest, a),
            n::PRLIMIT64 => self.limit(guest, b, c, d),
            n::ARCH_PRCTL if a == ARCH_SET_FS => guest.write_words(thread_pointer, &[b]).map(|()| 0),
            n::ARCH_PRCTL => Err(Errno::INVAL),
            n::FUTEX if b & FUTEX_COMMANDS == FUTEX_WAKE => Ok(0),
            n::SCHED_YIELD | n::SET_ROBUST_LIST | n::SIGALTSTACK => Ok(0),
            n::SET_TID_ADDRESS | n::GETPID | n::GETTID => Ok(PROCESS),
            n::GETPPID => Ok(0),
            n::GETUID | n::GETGID | n::GETEUID | n::GETEGID => Ok(OWNER.into()),
            n::UMASK => Ok(std::mem::replace(&mut self.umask, a as u32 & 0o777).into()),
            _ => Err(Errno::NOSYS),
        }
    }

    /// Calls that name a file.
    fn named(&mut self, guest: &mut Guest<'_, '_>, number: u64, arguments: [u64; 6]) -> Option<Answer> {
        let [a, b, c, d, e, _] = arguments;
        let current = u64::from(AT_FDCWD.cast_unsigned());
        let mut tree = Tree { folders: &self.folders, files: &mut self.files, umask: self.umask };
        Some(match number {
            n::OPEN => tree.open(guest, AT_FDCWD, a, b, c),
            n::OPENAT => tree.open(guest, descriptor(a), b, c, d),
            n::STAT => tree.stat(guest, AT_FDCWD, a, b, 0),
            n::LSTAT => tree.stat(guest, AT_FDCWD, a, b, AT_SYMLINK_NOFOLLOW),
            n::NEWFSTATAT => tree.stat(guest, descriptor(a), b, c, d),
            n::FSTAT => tree.stat_file(guest, descriptor(a), b),
            n::ACCESS => tree.access(guest, AT_FDCWD, a, b),
            n::FACCESSAT => tree.access(guest, descriptor(a), b, c),
            n::READLINK => tree.read_link(guest, AT_FDCWD, a, b, c),
            n::READLINKAT => tree.read_link(guest, descriptor(a), b, c, d),
            n::MKDIR => tree.make_folder(guest, AT_FDCWD, a, b),
            n::MKDIRAT => tree.make_folder(guest, descriptor(a), b, c),
            n::UNLINK => tree.remove(guest, AT_FDCWD, a, 0),
            n::RMDIR => tree.remove(guest, AT_FDCWD, a, AT_REMOVEDIR),
            n::UNLINKAT => tree.remove(guest, descriptor(a), b, c),
            n::RENAME => tree.rename(guest, (current, a), (current, b), 0),
            n::RENAMEAT => tree.rename(guest, (a, b), (c, d), 0),
            n::RENAMEAT2 => tree.rename(guest, (a, b), (c, d), e),
            n::GETCWD => current_folder(guest, a, b),
            _ => return None,
        })
    }

    /// Calls on an open file that move no data.
    fn opened(&mut self, guest: &mut Guest<'_, '_>, number: u64, arguments: [u64; 6]) -> Option<Answer> {
        let [a, b, c, ..] = arguments;
        let file = descriptor(a);
        Some(match number {
            n::CLOSE => self.files.close(file),
            n::DUP => self.files.duplicate(file, 0),
            n::DUP2 => self.files.duplicate_to(file, descriptor(b), false),
            n::DUP3 => self.files.duplicate_to(file, descriptor(b), true),
            n::FCNTL => self.files.control(file, b, c),
            n::LSEEK => self.files.get(file).and_then(|f| f.seek(b, c)),
            n::FTRUNCATE => self.files.get(file).and_then(|f| f.truncate(b)),
            n::FSYNC | n::FDATASYNC => self.files.get(file).and_then(|f| f.sync()),
            n::GETDENTS64 => self.files.get(file).and_then(|f| f.entries(guest, b, c)),
            // No file is a terminal.
            n::IOCTL => self.files.get(file).and(Err(Errno::NOTTY)),
            _ => return None,
        })
    }

    /// Calls that read or write a file.
    fn transfer(&self, guest: &mut Guest<'_, '_>, number: u64, [a, b, c, d, ..]: [u64; 6]) -> Answer {
        let file = self.files.get(descriptor(a))?;
        let offset = || if d > i64::MAX.cast_unsigned() { Err(Errno::INVAL) } else { Ok(Some(d)) };
        match number {
            n::READ => file.read(guest, &self.clock, b, c, None),
            n::PREAD64 => file.read(guest, &self.clock, b, c, offset()?),
            n::WRITE => file.write(&self.clock, &guest.read(b, c)?, None),
            n::PWRITE64 => file.write(&self.clock, &guest.read(b, c)?, offset()?),
            _ => file.vector(guest, &self.clock, b, c, number == n::WRITEV),
        }
    }

    /// The program sends `signal` to process or thread `target`: itself, or nobody that it can see.
    fn signal(&self, process: bool, target: u64, signal: u64) -> Outcome {
        let itself = descriptor(target) == PROCESS as i32 || process && matches!(descriptor(target), 0 | -1);
        if !itself {
            return Err(Errno::SRCH).into();
        }
        let signal = descriptor(signal);
        match self.signals.effect(signal) {
            Ok(Effect::Nothing) => Ok(0).into(),
            Ok(Effect::End) => Outcome::End(End::Signal(signal)),
            Ok(Effect::Call(handler)) => Outcome::Handler(handler, signal),
            Err(error) => Err(error).into(),
        }
    }

    /// Writing to a stream that nobody reads raises SIGPIPE.
    fn broken_pipe(&self) -> Outcome {
        match self.signals.effect(SIGPIPE) {
            Ok(Effect::End) => Outcome::End(End::Signal(SIGPIPE)),
            _ => Err(Errno::PIPE).into(),
        }
    }

    /// `prlimit64`: nothing can be set.
    fn limit(&self, guest: &mut Guest<'_, '_>, resource: u64, new: u64, old: u64) -> Answer {
        if new != 0 {
            return Err(Errno::PERM);
        }
        let most = match resource {
            RLIMIT_STACK => self.stack_size,
            RLIMIT_NOFILE => MOST_FILES,
            _ => INFINITY,
        };
        if old != 0 {
            guest.write_words(old, &[most, most])?;
        }
        Ok(0)
    }
}

/// `rt_sigprocmask`: the old mask is always empty.
fn blocked(guest: &mut Guest<'_, '_>, old: u64, size: u64) -> Answer {
    if size != 8 {
        return Err(Errno::INVAL);
    }
    if old != 0 {
        guest.write_words(old, &[0])?;
    }
    Ok(0)
}

fn random(guest: &mut Guest<'_, '_>, to: u64, len: u64) -> Answer {
    let mut bytes = vec![0; len.min(MOST) as usize];
    let mut done = 0;
    while done < bytes.len() {
        done += rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty())?;
    }
    guest.write(to, &bytes)?;
    Ok(done as u64)
}

/// `uname`: the same everywhere.
fn name(guest: &mut Guest<'_, '_>, to: u64) -> Answer {
    let fields = ["Linux", "cordon", "6.0.0", "#1", "x86_64", "(none)"];
    let mut bytes = [0; 6 * UTSNAME_FIELD];
    for (place, text) in bytes.chunks_exact_mut(UTSNAME_FIELD).zip(fields) {
        place[..text.len()].copy_from_slice(text.as_bytes());
    }
    guest.write(to, &bytes)?;
    Ok(0)
}

/// `getcwd`: the root of the granted folders.
fn current_folder(guest: &mut Guest<'_, '_>, to: u64, len: u64) -> Answer {
    if len < 2 {
        return Err(Errno::RANGE);
    }
    guest.write(to, b"/\0")?;
    Ok(2)
}
