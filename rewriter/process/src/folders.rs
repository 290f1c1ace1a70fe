//! The program's file system: what lies below the folders that were granted. Paths are resolved by the kernel, beneath an open folder.

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No way out of the folder: neither `..` nor a symbolic link nor a magic link of `/proc`.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Type of the file system `/proc` (`linux/magic.h`).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Most tries of an opening that something came in between.
const TRIES: usize = 64;

/// A folder of the host that the program may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// As the host names it. The program names it the same way; a relative path counts from the program's current folder, which is `/`.
    pub path: PathBuf,
    /// Files in it may be written, made, renamed and removed. No folder for reading only may lie in it.
    pub writable: bool,
}

/// An open folder with its place in the program's file system.
#[derive(Debug)]
struct Grant {
    /// Names from `/` on.
    place: Vec<Vec<u8>>,
    folder: Arc<OwnedFd>,
    writable: bool,
}

/// All of the program's file system.
#[derive(Debug, Default)]
pub struct Folders {
    grants: Vec<Grant>,
}

/// Where a path leads: an open folder, a path relative to it, and whether what is there may be changed.
#[derive(Debug)]
pub struct Place {
    pub folder: Arc<OwnedFd>,
    /// Relative, not empty; may hold `..`.
    pub path: Vec<u8>,
    pub writable: bool,
}

impl Folders {
    /// Opens every folder.
    ///
    /// # Errors
    /// The first that cannot be opened, with the reason; `ENOSYS` from a kernel without `openat2` (Linux 5.6). A folder that may not be written
    /// inside one that may: `..`, a link or an open folder leads into it from there, and the kernel is only told where the outer one ends.
    pub fn open(folders: &[Folder]) -> Result<Folders, (PathBuf, io::Error)> {
        let mut grants = Vec::new();
        let real = |folder: &Folder| folder.path.canonicalize().map_err(|error| (folder.path.clone(), error));
        let writable: Vec<PathBuf> = folders.iter().filter(|f| f.writable).map(real).collect::<Result<_, _>>()?;
        for folder in folders {
            let path = real(folder)?;
            if !folder.writable && writable.iter().any(|outer| path.starts_with(outer)) {
                let error = io::Error::new(io::ErrorKind::InvalidInput, "it lies in a folder that may be written");
                return Err((folder.path.clone(), error));
            }
            let failed = |error: io::Error| (folder.path.clone(), error);
            let open = File::open(&folder.path).map_err(failed)?;
            let is_folder = open.metadata().map_err(failed)?.is_dir();
            if !is_folder {
                return Err((folder.path.clone(), io::ErrorKind::NotADirectory.into()));
            }
            // Fails here, not in the middle of a run, where the kernel cannot do it.
            beneath(open.as_fd(), b".", OFlags::PATH, Mode::empty()).map_err(|e| failed(e.into()))?;
            let place = names(folder.path.as_os_str().as_bytes()).map(<[u8]>::to_vec).collect();
            grants.push(Grant { place, folder: Arc::new(open.into()), writable: folder.writable });
        }
        // The innermost grant decides.
        grants.sort_by_key(|grant| std::cmp::Reverse(grant.place.len()));
        Ok(Folders { grants })
    }

    /// The grant that `path`, which counts from `/`, lies in.
    ///
    /// # Errors
    /// `ENOENT` if it is empty or in none.
    pub fn find(&self, path: &[u8]) -> Result<Place, Errno> {
        let all: Vec<&[u8]> = names(path).collect();
        let inside = |grant: &&Grant| all.len() >= grant.place.len() && grant.place.iter().zip(&all).all(|(a, b)| a == b);
        let grant = self.grants.iter().find(inside).filter(|_| !path.is_empty()).ok_or(Errno::NOENT)?;
        let mut rest = all[grant.place.len()..].join(&b'/');
        if rest.is_empty() {
            rest.push(b'.');
        } else if path.ends_with(b"/") {
            // Only a folder will do.
            rest.push(b'/');
        }
        Ok(Place { folder: Arc::clone(&grant.folder), path: rest, writable: grant.writable })
    }
}

/// The names of a path, without empty ones and `.`.
fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".")
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Opens `path` beneath `folder`.
fn beneath(folder: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    // EAGAIN: something was renamed meanwhile, so that the kernel could not be sure of `..`; or somebody has a lease of the file and may
    // take his time to give it back.
    for _ in 0..TRIES {
        match openat2(folder, as_path(path), flags | OFlags::CLOEXEC, mode, BENEATH) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::XDEV) => return Err(Errno::ACCESS),
            // There the host's own memory is a file, wherever it is mounted.
            Ok(file) if rustix::fs::fstatfs(&file)?.f_type == PROC_SUPER_MAGIC => return Err(Errno::ACCESS),
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

impl Place {
    /// Opens what is there; see [`beneath`].
    pub fn open(&self, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        beneath(self.folder.as_fd(), &self.path, flags, mode)
    }

    /// What is there without opening it for reading, `follow` a symbolic link or not.
    pub fn look(&self, follow: bool) -> Result<OwnedFd, Errno> {
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        self.open(flags, Mode::empty())
    }

    /// The folder that it lies in, and its last name: what the calls want that make, rename and remove names.
    ///
    /// # Errors
    /// `EBUSY` if it has no name of its own; what opening the folder fails with.
    pub fn parent(&self) -> Result<(OwnedFd, &OsStr), Errno> {
        let path = self.path.strip_suffix(b"/").unwrap_or(&self.path);
        let (folder, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b"."[..], path),
        };
        if name == b"." || name == b".." {
            return Err(Errno::BUSY);
        }
        let folder = beneath(self.folder.as_fd(), folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((folder, OsStr::from_bytes(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Folder, Folders};
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn folder(path: impl Into<PathBuf>, writable: bool) -> Folder {
        Folder { path: path.into(), writable }
    }

    #[test]
    fn a_path_belongs_to_the_innermost_grant() {
        let top = tempfile::tempdir().expect("a folder");
        let inner = top.path().join("a/b");
        std::fs::create_dir_all(&inner).expect("made");
        let folders = Folders::open(&[folder(top.path(), false), folder(&inner, true)]).expect("opened");
        let name = |rest: &str| format!("{}{rest}", top.path().display()).into_bytes();
        for (path, rest, writable) in [
            ("", ".", false),
            ("/x", "x", false),
            ("//a/./x/", "a/x/", false),
            ("/a/b", ".", true),
            ("/a/b/../x", "../x", true),
            ("/a/bc", "a/bc", false),
        ] {
            let place = folders.find(&name(path)).expect("in a grant");
            assert_eq!((place.path, place.writable), (rest.as_bytes().to_vec(), writable), "{path}");
        }
        for outside in [&b""[..], b"/", b"/etc/passwd", b"x"] {
            assert_eq!(folders.find(outside).map(|_| ()), Err(Errno::NOENT));
        }
    }

    #[test]
    fn a_folder_that_may_not_be_written_is_refused_inside_one_that_may() {
        let top = tempfile::tempdir().expect("a folder");
        let (outer, inner) = (top.path().join("out"), top.path().join("out/in"));
        std::fs::create_dir_all(&inner).expect("made");
        std::fs::create_dir(outer.join("other")).expect("made");
        symlink(&inner, top.path().join("link")).expect("linked");
        // Otherwise `out/other/../in/file` would be opened for writing by what `out` may.
        for inner in [inner.clone(), top.path().join("link"), outer.join("other/../in"), outer.clone()] {
            let refused = Folders::open(&[folder(&inner, false), folder(&outer, true)]).expect_err("refused");
            assert_eq!((refused.0, refused.1.kind()), (inner, std::io::ErrorKind::InvalidInput));
        }
        let folders = [folder(&outer, false), folder(&inner, true), folder(top.path().join("link"), true)];
        assert!(Folders::open(&folders).is_ok());
    }

    #[test]
    fn nothing_leads_out_of_a_grant() {
        let top = tempfile::tempdir().expect("a folder");
        let inner = top.path().join("in");
        std::fs::create_dir_all(inner.join("sub")).expect("made");
        std::fs::write(top.path().join("secret"), "s").expect("written");
        std::fs::write(inner.join("file"), "f").expect("written");
        for (target, name) in
            [("../secret", "relative"), ("/etc/passwd", "absolute"), ("file", "fine"), (".", "dot"), ("..", "up")]
        {
            symlink(target, inner.join(name)).expect("linked");
        }
        symlink("/proc/self/root", inner.join("magic")).expect("linked");
        let folders = Folders::open(&[folder(&inner, true)]).expect("opened");
        let open = |rest: &str| {
            let place = folders.find(format!("{}/{rest}", inner.display()).as_bytes())?;
            place.open(OFlags::RDONLY, Mode::empty()).map(|_| ())
        };
        for inside in ["file", "fine", "sub/../file", "dot/dot/file", "sub/.", "."] {
            assert_eq!(open(inside), Ok(()), "{inside}");
        }
        for outside in
            ["../secret", "sub/../../secret", "relative", "absolute", "up", "up/in/file", "magic", "magic/etc", "..", "dot/.."]
        {
            assert_eq!(open(outside), Err(Errno::ACCESS), "{outside}");
        }
        let parent = |rest: &str| folders.find(format!("{}/{rest}", inner.display()).as_bytes())?.parent().map(|_| ());
        assert_eq!((parent("new"), parent("sub/new"), parent("dot/new")), (Ok(()), Ok(()), Ok(())));
        assert_eq!((parent("../new"), parent("up/new")), (Err(Errno::ACCESS), Err(Errno::ACCESS)));
        assert_eq!((parent("sub/.."), parent(".")), (Err(Errno::BUSY), Err(Errno::BUSY)));
    }

    #[test]
    fn what_is_no_folder_is_not_granted() {
        let top = tempfile::tempdir().expect("a folder");
        std::fs::write(top.path().join("file"), "f").expect("written");
        assert!(Folders::open(&[folder(top.path().join("file"), false)]).is_err());
        assert!(Folders::open(&[folder(top.path().join("none"), false)]).is_err());
        assert!(Folders::open(&[folder("/proc", false)]).is_err());
        let all = Folders::open(&[folder("/", false)]).expect("opened");
        let open = |path: &[u8]| all.find(path)?.open(OFlags::RDONLY, Mode::empty()).map(|_| ());
        assert_eq!((open(b"/proc/self/mem"), open(b"/proc"), open(b"/")), (Err(Errno::ACCESS), Err(Errno::ACCESS), Ok(())));
    }
}
