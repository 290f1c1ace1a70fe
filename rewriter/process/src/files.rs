//! Open files by the program's descriptor numbers, and the calls on them.

use crate::clock::Clock;
use crate::guest::{Answer, Guest, MOST};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

/// Descriptors that a program can have.
pub const MOST_FILES: u64 = 256;
/// Most parts of a `readv` or `writev` (`IOV_MAX`).
const MOST_PARTS: u64 = 1024;
/// What a pipe with room takes without blocking (`PIPE_BUF`).
const PIPE_PART: usize = 4096;
/// Size of the kernel's `struct stat`.
const STAT: usize = 144;
/// O_RDONLY, O_WRONLY, O_RDWR.
const ACCESS_MODES: [u64; 3] = [0, 1, 2];

/// Commands of `fcntl`.
mod fcntl {
    pub const DUPFD: u64 = 0;
    pub const GETFD: u64 = 1;
    pub const SETFD: u64 = 2;
    pub const GETFL: u64 = 3;
    pub const SETFL: u64 = 4;
    pub const DUPFD_CLOEXEC: u64 = 1030;
}

/// An open file of the host.
#[derive(Debug)]
pub struct Handle {
    pub file: Arc<OwnedFd>,
    /// A standard stream: may block.
    pub stream: bool,
    pub readable: bool,
    /// Made for writing; of a folder: what is below it may be changed.
    pub writable: bool,
    pub folder: bool,
}

/// A terminal or pipe opened once more, so that it never blocks: readiness is no promise, a terminal with room for one byte is ready for
/// writing, and a longer write waits until somebody reads. The flag cannot be set on `file`, which the host and others use too. `None` for
/// what needs it less, and where it cannot be opened (another user's terminal, a pipe that nobody reads, no `/proc`).
fn unblocking(file: &OwnedFd, readable: bool) -> Option<OwnedFd> {
    let stat = rustix::fs::fstat(file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo && !file.is_terminal() {
        return None;
    }
    let access = if readable { OFlags::RDONLY } else { OFlags::WRONLY };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// The program's descriptors.
#[derive(Debug, Default)]
pub struct Files {
    open: BTreeMap<i32, Arc<Handle>>,
}

impl Files {
    /// The three standard streams, as far as the host has them.
    pub fn standard() -> Files {
        let mut files = Files::default();
        let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        for (number, stream) in (0..).zip(streams) {
            if let Ok(file) = rustix::io::fcntl_dupfd_cloexec(stream, 3) {
                files.open.insert(number, Arc::new(Handle::stream(file, number == 0)));
            }
        }
        files
    }

    pub fn get(&self, number: i32) -> Result<Arc<Handle>, Errno> {
        self.open.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// The lowest free number from `from` on.
    fn free(&self, from: u64) -> Result<i32, Errno> {
        let free = (from..MOST_FILES).filter_map(|n| i32::try_from(n).ok()).find(|n| !self.open.contains_key(n));
        free.ok_or(Errno::MFILE)
    }

    pub fn add(&mut self, handle: Handle) -> Answer {
        let number = self.free(0)?;
        self.open.insert(number, Arc::new(handle));
        Ok(number as u64)
    }

    pub fn close(&mut self, number: i32) -> Answer {
        self.open.remove(&number).map(|_| 0).ok_or(Errno::BADF)
    }

    /// Another number, `from` or above, for the same open file.
    pub fn duplicate(&mut self, number: i32, from: u64) -> Answer {
        let handle = self.get(number)?;
        if from >= MOST_FILES {
            return Err(Errno::INVAL);
        }
        let new = self.free(from)?;
        self.open.insert(new, handle);
        Ok(new as u64)
    }

    /// Number `to` for the same open file; `dup3` refuses equal numbers.
    pub fn duplicate_to(&mut self, number: i32, to: i32, strict: bool) -> Answer {
        let handle = self.get(number)?;
        if strict && number == to {
            return Err(Errno::INVAL);
        }
        let wanted = u64::try_from(to).ok().filter(|to| *to < MOST_FILES).ok_or(Errno::BADF)?;
        self.open.insert(to, handle);
        Ok(wanted)
    }

    /// `fcntl`: descriptors are never inherited, locks do not exist.
    pub fn control(&mut self, number: i32, command: u64, argument: u64) -> Answer {
        let handle = self.get(number)?;
        match command {
            fcntl::DUPFD | fcntl::DUPFD_CLOEXEC => self.duplicate(number, argument),
            fcntl::GETFD | fcntl::SETFD | fcntl::SETFL => Ok(0),
            fcntl::GETFL => Ok(ACCESS_MODES[if handle.readable && handle.writable { 2 } else { usize::from(handle.writable) }]),
            _ => Err(Errno::INVAL),
        }
    }
}

impl Handle {
    /// A standard stream, for reading or for writing.
    fn stream(file: OwnedFd, readable: bool) -> Handle {
        let file = unblocking(&file, readable).unwrap_or(file);
        Handle { file: Arc::new(file), stream: true, readable, writable: !readable, folder: false }
    }

    fn for_reading(&self) -> Result<(), Errno> {
        match (self.readable, self.folder) {
            (_, true) => Err(Errno::ISDIR),
            (true, _) => Ok(()),
            (false, _) => Err(Errno::BADF),
        }
    }

    fn for_writing(&self) -> Result<(), Errno> {
        if self.writable && !self.folder { Ok(()) } else { Err(Errno::BADF) }
    }

    /// Waits until a stream is ready, at most until the call's time is over (`EINTR`, which ends the call).
    fn wait(&self, clock: &Clock, flags: PollFlags) -> Result<(), Errno> {
        if !self.stream {
            return Ok(());
        }
        loop {
            let mut fds = [PollFd::new(&self.file, flags)];
            match poll(&mut fds, clock.left().as_ref()) {
                Ok(0) => return Err(Errno::INTR),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Does `work` when a stream is ready, again if it was not after all or a signal of the host came in between.
    fn when_ready<T>(
        &self,
        clock: &Clock,
        flags: PollFlags,
        mut work: impl FnMut(&OwnedFd) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        loop {
            self.wait(clock, flags)?;
            match work(&self.file) {
                Err(Errno::AGAIN) if self.stream => clock.pause()?,
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Reads at most `len` bytes to `to`, at `offset` if there is one.
    pub fn read(&self, guest: &mut Guest<'_, '_>, clock: &Clock, to: u64, len: u64, offset: Option<u64>) -> Answer {
        self.for_reading()?;
        let mut bytes = vec![0; len.min(MOST) as usize];
        let count = match offset {
            Some(offset) => rustix::io::pread(&self.file, &mut bytes, offset)?,
            None => self.when_ready(clock, PollFlags::IN, |file| rustix::io::read(file, &mut bytes[..]))?,
        };
        guest.write(to, &bytes[..count])?;
        Ok(count as u64)
    }

    /// Writes `bytes`, at `offset` if there is one.
    pub fn write(&self, clock: &Clock, bytes: &[u8], offset: Option<u64>) -> Answer {
        self.for_writing()?;
        let count = match offset {
            Some(offset) => rustix::io::pwrite(&self.file, bytes, offset)?,
            None if self.stream => return self.write_stream(clock, bytes),
            None => rustix::io::write(&self.file, bytes)?,
        };
        Ok(count as u64)
    }

    /// Writes in parts that a pipe takes at once, so that no write waits for longer than the call may take.
    fn write_stream(&self, clock: &Clock, bytes: &[u8]) -> Answer {
        let regular =
            rustix::fs::fstat(&self.file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        let most = if regular { bytes.len() } else { PIPE_PART };
        let mut done = 0;
        while done < bytes.len() {
            let part = &bytes[done..bytes.len().min(done + most)];
            match self.when_ready(clock, PollFlags::OUT, |file| rustix::io::write(file, part)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done as u64)
    }

    /// `readv` and `writev`: `count` parts described at `parts`.
    pub fn vector(&self, guest: &mut Guest<'_, '_>, clock: &Clock, parts: u64, count: u64, writes: bool) -> Answer {
        if writes {
            self.for_writing()?
        } else {
            self.for_reading()?
        }
        if count > MOST_PARTS {
            return Err(Errno::INVAL);
        }
        let mut total: u64 = 0;
        let mut list = Vec::new();
        for index in 0..count {
            let [at, len] = guest.words(parts.checked_add(16 * index).ok_or(Errno::FAULT)?)?;
            total = total.checked_add(len).filter(|t| *t <= i64::MAX.cast_unsigned()).ok_or(Errno::INVAL)?;
            list.push((at, len));
        }
        if writes {
            let mut bytes = Vec::new();
            for (at, len) in list {
                bytes.extend(guest.read(at, len.min(MOST - bytes.len() as u64))?);
            }
            return self.write(clock, &bytes, None);
        }
        let mut done = 0;
        for (at, len) in list.into_iter().filter(|(_, len)| *len > 0) {
            let part = match self.read(guest, clock, at, len, None) {
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
                Ok(part) => part,
            };
            done += part;
            if part < len || self.stream {
                break;
            }
        }
        Ok(done)
    }

    pub fn seek(&self, offset: u64, whence: u64) -> Answer {
        let signed = offset.cast_signed();
        let to = match whence {
            0 => SeekFrom::Start(u64::try_from(signed).map_err(|_| Errno::INVAL)?),
            1 => SeekFrom::Current(signed),
            2 => SeekFrom::End(signed),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&self.file, to)
    }

    pub fn truncate(&self, length: u64) -> Answer {
        self.for_writing()?;
        rustix::fs::ftruncate(&self.file, length).map(|()| 0)
    }

    pub fn sync(&self) -> Answer {
        rustix::fs::fsync(&self.file).map(|()| 0)
    }

    /// `getdents64`: the kernel's records as they are; names and inode numbers of what lies below a granted folder.
    pub fn entries(&self, guest: &mut Guest<'_, '_>, to: u64, len: u64) -> Answer {
        if !self.folder {
            return Err(Errno::NOTDIR);
        }
        let mut buffer = vec![MaybeUninit::uninit(); len.min(1 << 16) as usize];
        let mut records = rustix::fs::RawDir::new(self.file.as_fd(), &mut buffer);
        let mut bytes: Vec<u8> = Vec::new();
        while let Some(entry) = records.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            let size = (19 + name.len()).next_multiple_of(8);
            let kind = match entry.file_type() {
                FileType::Directory => 4,
                FileType::RegularFile => 8,
                FileType::Symlink => 10,
                _ => 0,
            };
            bytes.extend(entry.ino().to_le_bytes());
            bytes.extend(entry.next_entry_cookie().to_le_bytes());
            bytes.extend((size as u16).to_le_bytes());
            bytes.push(kind);
            bytes.extend(name);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            if records.is_buffer_empty() {
                break;
            }
        }
        guest.write(to, &bytes)?;
        Ok(bytes.len() as u64)
    }
}

/// Writes the kernel's `struct stat`; device, owner and group are neutral.
pub fn write_stat(guest: &mut Guest<'_, '_>, to: u64, stat: &Stat, owner: u32) -> Answer {
    let mut bytes = [0; STAT];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &1u64.to_le_bytes());
    put(8, &stat.st_ino.to_le_bytes());
    put(16, &stat.st_nlink.to_le_bytes());
    put(24, &stat.st_mode.to_le_bytes());
    put(28, &owner.to_le_bytes());
    put(32, &owner.to_le_bytes());
    put(48, &stat.st_size.to_le_bytes());
    put(56, &4096u64.to_le_bytes());
    put(64, &stat.st_blocks.to_le_bytes());
    for (at, seconds, nanoseconds) in [
        (72, stat.st_atime, stat.st_atime_nsec),
        (88, stat.st_mtime, stat.st_mtime_nsec),
        (104, stat.st_ctime, stat.st_ctime_nsec),
    ] {
        put(at, &seconds.to_le_bytes());
        put(at + 8, &nanoseconds.to_le_bytes());
    }
    guest.write(to, &bytes)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::Handle;
    use crate::clock::Clock;
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// It takes 4096 bytes only while it has room for them, but is ready as long as it has room for one.
    #[test]
    fn a_terminal_that_nobody_reads_does_not_hold_a_write_past_the_time_limit() {
        for text in ["x", "\n"] {
            let reader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
            grantpt(&reader).expect("granted");
            unlockpt(&reader).expect("unlocked");
            let name = ptsname(&reader, Vec::new()).expect("named");
            let file = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("opened");
            let (ended, end) = channel();
            std::thread::spawn(move || {
                let terminal = Handle::stream(file, false);
                let clock = Clock::new(Some(Duration::from_millis(100)));
                let failed = (0..1000).find_map(|_| terminal.write(&clock, text.repeat(3001).as_bytes(), None).err());
                ended.send(failed)
            });
            assert_eq!(end.recv_timeout(Duration::from_secs(20)), Ok(Some(Errno::INTR)), "{text:?}");
        }
    }
}
