//! `/dev/cordon` from user space: inserts images, calls their entries, reads and writes window memory, names the places of faults.
//!
//! [`abi`] mirrors `../include/cordon.h`; [`Device`] and [`Handler`] are safe; [`Places`] tells which function a text offset belongs to.

pub mod abi;
mod places;

pub use places::Places;

use abi::{Attach, EventStats, Insert, Run, Stats, Totals};
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
        let mut insert = Box::new(Insert::default());
        (insert.image, insert.length, insert.flags) = (image.as_ptr() as u64, image.len() as u64, flags);
        match ioctl(&self.0, abi::INSERT, &mut *insert) {
            // SAFETY: the module has just made this descriptor for us.
            Ok(fd) => Ok((Handler(unsafe { File::from_raw_fd(fd) }), insert)),
            Err(_) if insert.verdict != 0 => Err(InsertError::Refused(insert)),
            Err(error) => Err(error.into()),
        }
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
    /// ENOENT for an entry that does not exist, EBUSY if the window is in use, as `ioctl(2)` else. Faults are no errors.
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

    /// The descriptor, for `mmap`: file offset = window offset.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }
}
