//! Maps: tables in the kernel's memory that handlers and user space share.

use crate::abi::{self, MapAccess, MapBind, MapSpec};
use crate::{Device, Handler, ioctl};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

/// A map. It lives as long as this or a handler that it is bound to.
#[derive(Debug)]
pub struct Map {
    file: File,
    spec: MapSpec,
}

fn wrong_length() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// `None` for ENOENT.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Map {
    /// `value` is the address of as many bytes as a value of the map has, or unused.
    fn access(&self, command: u64, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        if key.len() != self.spec.key_bytes as usize {
            return Err(wrong_length());
        }
        let mut access = MapAccess { key: key.as_ptr() as u64, value, flags, ..MapAccess::default() };
        ioctl(&self.file, command, &mut access).map(drop)
    }

    /// The value under a key.
    ///
    /// # Errors
    /// EINVAL for a key of another length than the map's.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.spec.value_bytes as usize];
        let address = value.as_mut_ptr() as u64;
        found(self.access(abi::MAP_LOOKUP, key, address, 0)).map(|there| there.map(|()| value))
    }

    /// Sets the value under a key; `flags` as in [`abi::map_flag`].
    ///
    /// # Errors
    /// EEXIST, ENOENT as `flags` say; ENOSPC if the map is full; EINVAL for other lengths than the map's.
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        if value.len() != self.spec.value_bytes as usize {
            return Err(wrong_length());
        }
        self.access(abi::MAP_UPDATE, key, value.as_ptr() as u64, flags)
    }

    /// Removes a key; whether it was there.
    ///
    /// # Errors
    /// EINVAL for arrays and for a key of another length than the map's.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        found(self.access(abi::MAP_DELETE, key, 0, 0)).map(|there| there.is_some())
    }

    /// All keys and values. What others change meanwhile may be among them or not.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn entries(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (mut entries, mut cursor) = (Vec::new(), 0);
        loop {
            let mut key = vec![0_u8; self.spec.key_bytes as usize];
            let mut value = vec![0_u8; self.spec.value_bytes as usize];
            let mut access =
                MapAccess { key: key.as_mut_ptr() as u64, value: value.as_mut_ptr() as u64, cursor, ..MapAccess::default() };
            if found(ioctl(&self.file, abi::MAP_NEXT, &mut access))?.is_none() {
                return Ok(entries);
            }
            cursor = access.cursor;
            entries.push((key, value));
        }
    }
}

impl Device {
    /// Makes a map.
    ///
    /// # Errors
    /// EINVAL for sizes beyond the limits of `cordon.h`, EPERM without CAP_SYS_MODULE.
    pub fn map(&self, spec: MapSpec) -> io::Result<Map> {
        let fd = ioctl(self.file(), abi::MAP_CREATE, &mut { spec })?;
        // SAFETY: the module has just made this descriptor for us.
        Ok(Map { file: unsafe { File::from_raw_fd(fd) }, spec })
    }
}

impl Handler {
    /// Makes `map` the handler's map `number` for good.
    ///
    /// # Errors
    /// EBUSY if it has one of that number, EINVAL from 16 on.
    pub fn bind(&self, number: u32, map: &Map) -> io::Result<()> {
        ioctl(self.file(), abi::MAP_BIND, &mut MapBind { number, map: map.file.as_raw_fd() }).map(drop)
    }
}
