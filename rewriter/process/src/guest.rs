//! The program's memory as system calls see it: checked copies, in the sizes and types that calls have.

use cordon_loader::CallContext;
use rustix::io::Errno;

/// What a system call gives: rax, or an error number.
pub type Answer = Result<u64, Errno>;

/// Most bytes that one call moves; more is a short read or write, as POSIX allows.
pub const MOST: u64 = 1 << 20;
/// Longest path, its NUL included (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// Bytes of zeros that are written at once.
const ZEROS: usize = 1 << 16;

/// The calling program's memory.
#[derive(Debug)]
pub struct Guest<'a, 'c>(pub &'a mut CallContext<'c>);

impl Guest<'_, '_> {
    /// `N` bytes at `at`.
    pub fn get<const N: usize>(&self, at: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        self.0.read(at, &mut bytes).map_err(|_| Errno::FAULT)?;
        Ok(bytes)
    }

    /// The 64-bit words at `at`.
    pub fn words<const N: usize>(&self, at: u64) -> Result<[u64; N], Errno> {
        let mut words = [0; N];
        for (word, place) in words.iter_mut().zip((0..).step_by(8)) {
            *word = u64::from_le_bytes(self.get(at.checked_add(place).ok_or(Errno::FAULT)?)?);
        }
        Ok(words)
    }

    /// `len` bytes at `at`, at most [`MOST`].
    pub fn read(&self, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let len = usize::try_from(len.min(MOST)).map_err(|_| Errno::INVAL)?;
        self.0.read_vec(at, len).map_err(|_| Errno::FAULT)
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.0.write(at, bytes).map_err(|_| Errno::FAULT)
    }

    pub fn write_words(&mut self, at: u64, words: &[u64]) -> Result<(), Errno> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(at, &bytes)
    }

    /// Writes zeros over `len` bytes at `at`.
    pub fn zero(&mut self, mut at: u64, mut len: u64) -> Result<(), Errno> {
        let zeros = [0; ZEROS];
        while len > 0 {
            let part = len.min(ZEROS as u64);
            self.write(at, &zeros[..part as usize])?;
            at += part;
            len -= part;
        }
        Ok(())
    }

    /// The path at `at`, without its NUL.
    pub fn path(&self, at: u64) -> Result<Vec<u8>, Errno> {
        match self.0.read_c_string(at, PATH_MAX) {
            Ok(path) => Ok(path),
            // A long string that is all readable, or one that is not.
            Err(_) if self.0.read_vec(at, PATH_MAX).is_ok() => Err(Errno::NAMETOOLONG),
            Err(_) => Err(Errno::FAULT),
        }
    }
}

/// A file descriptor argument: the kernel looks at 32 bits.
pub fn descriptor(argument: u64) -> i32 {
    (argument as u32).cast_signed()
}
