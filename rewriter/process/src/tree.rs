//! Calls that name files: opening, looking, making, renaming, removing.

use crate::files::{Files, Handle, write_stat};
use crate::folders::{Folders, Place};
use crate::guest::{Answer, Guest, descriptor};
use crate::number::{AT_EMPTY_PATH, AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_NOFOLLOW};
use crate::process::OWNER;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// `access` modes.
const W_OK: u64 = 2;
const ALL_MODES: u64 = 7;
/// Flags of `open` that a program may ask for; others are ignored as an old kernel would.
const OPEN_FLAGS: OFlags = OFlags::CREATE
    .union(OFlags::EXCL)
    .union(OFlags::TRUNC)
    .union(OFlags::APPEND)
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::SYNC);
/// O_PATH and O_TMPFILE's own bit: other kinds of opening, which do not exist here.
const REFUSED_FLAGS: u64 = 0x20_0000 | 0x40_0000;

/// What the calls work on.
#[derive(Debug)]
pub struct Tree<'t> {
    pub folders: &'t Folders,
    pub files: &'t mut Files,
    /// Permissions that new files do not get.
    pub umask: u32,
}

fn kind(file: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

impl Tree<'_> {
    /// The place of the path at `path`, relative to `folder` if it does not begin with `/`.
    fn place(&self, guest: &Guest<'_, '_>, folder: i32, path: u64) -> Result<Place, Errno> {
        let path = guest.path(path)?;
        if folder == AT_FDCWD || path.starts_with(b"/") {
            return self.folders.find(&path);
        }
        let handle = self.files.get(folder)?;
        if !handle.folder {
            return Err(Errno::NOTDIR);
        }
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        Ok(Place { folder: Arc::clone(&handle.file), path, writable: handle.writable })
    }

    /// The same for a call that changes something.
    fn changed(&self, guest: &Guest<'_, '_>, folder: i32, path: u64) -> Result<Place, Errno> {
        let place = self.place(guest, folder, path)?;
        if place.writable { Ok(place) } else { Err(Errno::ROFS) }
    }

    fn mode(&self, asked: u64) -> Mode {
        Mode::from_raw_mode(asked as u32 & 0o777 & !self.umask)
    }

    /// `open` and `openat`: regular files and folders only.
    pub fn open(&mut self, guest: &Guest<'_, '_>, folder: i32, path: u64, flags: u64, mode: u64) -> Answer {
        let place = self.place(guest, folder, path)?;
        if flags & REFUSED_FLAGS != 0 {
            return Err(Errno::INVAL);
        }
        let (readable, writable) = match flags & 3 {
            0 => (true, false),
            1 => (false, true),
            2 => (true, true),
            _ => return Err(Errno::INVAL),
        };
        let wanted = OFlags::from_bits_truncate(flags as u32) & OPEN_FLAGS;
        if (writable || wanted.intersects(OFlags::CREATE.union(OFlags::TRUNC))) && !place.writable {
            return Err(Errno::ROFS);
        }
        let access = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR][(flags & 3) as usize];
        let mode = if wanted.contains(OFlags::CREATE) { self.mode(mode) } else { Mode::empty() };
        // To open a FIFO or a device is to act on it: whoever waits to write to a FIFO would go on and lose what it writes.
        if let Ok(there) = place.look(!wanted.contains(OFlags::NOFOLLOW)) {
            match kind(&there)? {
                FileType::Directory | FileType::RegularFile | FileType::Symlink => {}
                _ => return Err(Errno::ACCESS),
            }
        }
        // What somebody has put in its place meanwhile does not block and is closed again at once.
        let file = place.open(access | wanted | OFlags::NONBLOCK | OFlags::NOCTTY, mode)?;
        let is_folder = match kind(&file)? {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return Err(Errno::ACCESS),
        };
        let writable = if is_folder { place.writable } else { writable };
        self.files.add(Handle { file: Arc::new(file), stream: false, readable, writable, folder: is_folder })
    }

    /// `fstat`.
    pub fn stat_file(&self, guest: &mut Guest<'_, '_>, number: i32, to: u64) -> Answer {
        let stat = rustix::fs::fstat(&self.files.get(number)?.file)?;
        write_stat(guest, to, &stat, OWNER)
    }

    /// `newfstatat` and its older kin.
    pub fn stat(&self, guest: &mut Guest<'_, '_>, folder: i32, path: u64, to: u64, flags: u64) -> Answer {
        if flags & AT_EMPTY_PATH != 0 && folder != AT_FDCWD && guest.get::<1>(path)? == [0] {
            return self.stat_file(guest, folder, to);
        }
        let place = self.place(guest, folder, path)?;
        let stat = rustix::fs::fstat(place.look(flags & AT_SYMLINK_NOFOLLOW == 0)?)?;
        write_stat(guest, to, &stat, OWNER)
    }

    /// `access` and `faccessat`: what is there may be read; it may be written where its folder may.
    pub fn access(&self, guest: &Guest<'_, '_>, folder: i32, path: u64, mode: u64) -> Answer {
        let place = self.place(guest, folder, path)?;
        if mode & !ALL_MODES != 0 {
            return Err(Errno::INVAL);
        }
        place.look(true)?;
        if mode & W_OK != 0 && !place.writable { Err(Errno::ROFS) } else { Ok(0) }
    }

    /// `readlinkat`.
    pub fn read_link(&self, guest: &mut Guest<'_, '_>, folder: i32, path: u64, to: u64, len: u64) -> Answer {
        let place = self.place(guest, folder, path)?;
        let (parent, name) = place.parent().map_err(|e| if e == Errno::BUSY { Errno::INVAL } else { e })?;
        let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
        let bytes = target.as_bytes();
        let bytes = &bytes[..bytes.len().min(len as usize)];
        guest.write(to, bytes)?;
        Ok(bytes.len() as u64)
    }

    /// `mkdirat`.
    pub fn make_folder(&self, guest: &Guest<'_, '_>, folder: i32, path: u64, mode: u64) -> Answer {
        let place = self.changed(guest, folder, path)?;
        let (parent, name) = place.parent().map_err(|e| if e == Errno::BUSY { Errno::EXIST } else { e })?;
        rustix::fs::mkdirat(parent, name, self.mode(mode)).map(|()| 0)
    }

    /// `unlinkat`.
    pub fn remove(&self, guest: &Guest<'_, '_>, folder: i32, path: u64, flags: u64) -> Answer {
        let place = self.changed(guest, folder, path)?;
        let (parent, name) = place.parent()?;
        let flags = if flags & AT_REMOVEDIR != 0 { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(parent, name, flags).map(|()| 0)
    }

    /// `renameat2`; folders and paths as (descriptor argument, path).
    pub fn rename(&self, guest: &Guest<'_, '_>, from: (u64, u64), to: (u64, u64), flags: u64) -> Answer {
        let old = self.changed(guest, descriptor(from.0), from.1)?;
        let new = self.changed(guest, descriptor(to.0), to.1)?;
        let (old_parent, old_name) = old.parent()?;
        let (new_parent, new_name) = new.parent()?;
        let flags = RenameFlags::from_bits(flags as u32).filter(|f| RenameFlags::NOREPLACE.contains(*f)).ok_or(Errno::INVAL)?;
        rustix::fs::renameat_with(old_parent, old_name, new_parent, new_name, flags).map(|()| 0)
    }
}
