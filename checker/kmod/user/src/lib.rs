//! `/dev/cordon` from user space: inserts images, calls their entries, reads and writes window memory, names the places of faults.
//!
//! [`abi`] mirrors `../include/cordon.h`; [`Device`], [`Handler`] and [`Map`] are safe; [`Places`] tells which function a text offset belongs to.

pub mod abi;
mod event;
mod interrupt;
mod map;
mod places;

pub use event::Event;
pub use interrupt::Interrupts;
pub use map::Map;
pub use places::Places;

use abi::{About, Attach, EventStats, Insert, Run, Stats, Totals};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Why an image was not inserted.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// The module looked at the image and refused it; see [`abi::verdict`].
    #[error("refused: {} (rule {}, text offset {:#x})", abi::verdict::text(.0.verdict), .0.rule, .0.offset)]
    Refused(Box<Insert>),
    /// The kernel refused before or after that.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// The open device.
#[derive(Debug)]
pub struct Device(File);

fn ioctl<T>(file: &File, command: u64, argument: &mut T) -> io::Result<i32> {
    // SAFETY: every caller passes the structure that `command` names, which the module reads and writes within its size.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command as _, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Device {
    /// Opens `/dev/cordon` or another node of the module.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open(path: &Path) -> io::Result<Device> {
        File::options().read(true).write(true).open(path).map(Device)
    }

    /// Inserts an image; the handler lives as long as the result does. Gives what the checker found out as well.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn insert(&self, image: &[u8], flags: u32) -> Result<(Handler, Box<Insert>), InsertError> {
        self.insert_named("", image, flags)
    }

    /// The same with a name for lists.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn insert_named(&self, name: &str, image: &[u8], flags: u32) -> Result<(Handler, Box<Insert>), InsertError> {
        let mut insert = Box::new(Insert::named(name));
        (insert.image, insert.length, insert.flags) = (image.as_ptr() as u64, image.len() as u64, flags);
        match ioctl(&self.0, abi::INSERT, &mut *insert) {
            // SAFETY: the module has just made this descriptor for us.
            Ok(fd) => Ok((Handler(unsafe { File::from_raw_fd(fd) }), insert)),
            Err(_) if insert.verdict != 0 => Err(InsertError::Refused(insert)),
            Err(error) => Err(error.into()),
        }
    }

    /// The handlers that the caller may see, ascending by number.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn list(&self) -> io::Result<Vec<About>> {
        let (mut found, mut id) = (Vec::new(), 1);
        loop {
            let mut about = About::of(id);
            match ioctl(&self.0, abi::NEXT, &mut about) {
                Ok(_) => id = about.id.saturating_add(1),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
                Err(error) => return Err(error),
            }
            found.push(about);
        }
    }

    /// A descriptor of a handler in the list.
    ///
    /// # Errors
    /// ENOENT if the caller sees none of that number.
    pub fn handler(&self, id: u32) -> io::Result<Handler> {
        let fd = ioctl(&self.0, abi::OPEN, &mut { id })?;
        // SAFETY: the module has just made this descriptor for us.
        Ok(Handler(unsafe { File::from_raw_fd(fd) }))
    }

    /// Ends a handler: its events, its pin, its number. Descriptors that others have of it stay, and refuse calls.
    ///
    /// # Errors
    /// ENOENT if the caller sees none of that number.
    pub fn remove(&self, id: u32) -> io::Result<()> {
        ioctl(&self.0, abi::REMOVE, &mut { id }).map(drop)
    }

    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    /// What the module holds.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn totals(&self) -> io::Result<Totals> {
        let mut totals = Totals::default();
        ioctl(&self.0, abi::TOTALS, &mut totals).map(|_| totals)
    }
}

/// An inserted handler.
#[derive(Debug)]
pub struct Handler(File);

impl Handler {
    /// Calls the entry that `run` names; what came of it is in `run`.
    ///
    /// # Errors
    /// ENOENT for an entry that does not exist, EBUSY if the window is in use, ENODEV if the handler was removed, as `ioctl(2)` else. Faults are
    /// no errors.
    pub fn run(&self, run: &mut Run) -> io::Result<()> {
        ioctl(&self.0, abi::RUN, run).map(drop)
    }

    /// Counts since insertion.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn stats(&self) -> io::Result<Stats> {
        let mut stats = Stats::default();
        ioctl(&self.0, abi::STATS, &mut stats).map(|_| stats)
    }

    /// Fills `bytes` from window memory.
    ///
    /// # Errors
    /// If not all of it is memory.
    pub fn read(&self, offset: u32, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset.into())
    }

    /// Writes window memory.
    ///
    /// # Errors
    /// If not all of it is writable memory.
    pub fn write(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset.into())
    }

    /// Fills `bytes` from the memory of a CPU's window (0: the only one).
    ///
    /// # Errors
    /// If not all of it is memory, or there is no such window.
    pub fn read_of(&self, cpu: u32, offset: u32, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(bytes, u64::from(cpu) << 32 | u64::from(offset))
    }

    /// Writes the memory of a CPU's window (0: the only one).
    ///
    /// # Errors
    /// If not all of it is writable memory, or there is no such window.
    pub fn write_of(&self, cpu: u32, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, u64::from(cpu) << 32 | u64::from(offset))
    }

    /// Has an entry called by an event; gives the event's number.
    ///
    /// # Errors
    /// ENOENT for an entry or tracepoint that does not exist, EPERM for kprobes and tracepoints of images that are not metered, and what the
    /// kernel says to the event.
    pub fn attach(&self, attach: &Attach) -> io::Result<u32> {
        ioctl(&self.0, abi::ATTACH, &mut attach.clone()).map(i32::cast_unsigned)
    }

    /// Ends an event; no call of it is on its way afterwards.
    ///
    /// # Errors
    /// ENOENT if there is none of that number.
    pub fn detach(&self, number: u32) -> io::Result<()> {
        ioctl(&self.0, abi::DETACH, &mut { number }).map(drop)
    }

    /// Counts of an event.
    ///
    /// # Errors
    /// ENOENT if there is none of that number.
    pub fn event(&self, number: u32) -> io::Result<EventStats> {
        let mut stats = EventStats { number, ..EventStats::default() };
        ioctl(&self.0, abi::EVENT, &mut stats).map(|_| stats)
    }

    /// Counts of all events, ascending by number.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn events(&self) -> io::Result<Vec<EventStats>> {
        let (mut found, mut number) = (Vec::new(), 0);
        loop {
            let mut stats = EventStats { number, flags: abi::OR_ABOVE, ..EventStats::default() };
            match ioctl(&self.0, abi::EVENT, &mut stats) {
                Ok(_) => number = stats.number.saturating_add(1),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
                Err(error) => return Err(error),
            }
            found.push(stats);
        }
    }

    /// What the list says of it.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn about(&self) -> io::Result<About> {
        let mut about = About::of(0);
        ioctl(&self.0, abi::ABOUT, &mut about).map(|_| about)
    }

    /// Lets the handler outlive its descriptors, until it is unpinned or removed; the module does not unload before.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_MODULE, ENODEV if it was removed.
    pub fn pin(&self) -> io::Result<()> {
        ioctl(&self.0, abi::PIN, &mut 0_u32).map(drop)
    }

    /// Takes that back.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_MODULE.
    pub fn unpin(&self) -> io::Result<()> {
        ioctl(&self.0, abi::UNPIN, &mut 0_u32).map(drop)
    }

    /// The descriptor, for `mmap`: file offset = window offset.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }
}
