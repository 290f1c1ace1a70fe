//! What a program finds at its start: the argument count at the stack pointer, behind it the pointers to arguments and environment, and the
//! auxiliary vector (psABI x86-64, 3.4.1 and figure 3.9).

use crate::process::{Error, OWNER};
use cordon_checker::layout::{RegionKind, STACK_HEADROOM};
use cordon_loader::Window;

/// Bytes that can be written from where the entry's code finds its stack pointer: the return address's place on the data stack, which nothing
/// else uses, and what lies above.
const ROOM: u32 = STACK_HEADROOM + 8;

/// Keys of the auxiliary vector.
mod key {
    pub const NULL: u64 = 0;
    pub const PHDR: u64 = 3;
    pub const PHENT: u64 = 4;
    pub const PHNUM: u64 = 5;
    pub const PAGESZ: u64 = 6;
    pub const ENTRY: u64 = 9;
    pub const UID: u64 = 11;
    pub const EUID: u64 = 12;
    pub const GID: u64 = 13;
    pub const EGID: u64 = 14;
    pub const HWCAP: u64 = 16;
    pub const CLKTCK: u64 = 17;
    pub const SECURE: u64 = 23;
    pub const RANDOM: u64 = 25;
    pub const EXECFN: u64 = 31;
}

/// Puts everything into the window.
///
/// # Errors
/// [`Error::Arguments`] if the pointers or strings do not fit, [`Error::Loader`].
pub fn place(window: &mut Window, arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> Result<(), Error> {
    let mut strings = Vec::new();
    let mut pointers = |list: &[Vec<u8>]| -> Vec<usize> {
        let each = list.iter().map(|text| {
            let at = strings.len();
            strings.extend_from_slice(text);
            strings.push(0);
            at
        });
        each.collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    let random_at = strings.len().next_multiple_of(16);
    strings.resize(random_at + 16, 0);
    rustix::rand::getrandom(&mut strings[random_at..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::Host(e.into()))?;
    let base = u64::from(window.place(&strings).map_err(|_| Error::Arguments)?);
    let at = |offset: usize| base + offset as u64;
    let mut words = vec![argv.len() as u64];
    words.extend(argv.iter().map(|a| at(*a)));
    words.push(0);
    words.extend(envp.iter().map(|a| at(*a)));
    words.push(0);
    let name = argv.first().copied().map_or(0, at);
    // The image is no file in the window: no program headers. Thread-local storage lies where the rewriter put it.
    let owner = u64::from(OWNER);
    for (key, value) in [
        (key::PHDR, 0),
        (key::PHENT, 56),
        (key::PHNUM, 0),
        (key::PAGESZ, crate::heap::PAGE),
        (key::ENTRY, 0),
        (key::UID, owner),
        (key::EUID, owner),
        (key::GID, owner),
        (key::EGID, owner),
        (key::HWCAP, 0),
        (key::CLKTCK, 100),
        (key::SECURE, 0),
        (key::RANDOM, at(random_at)),
        (key::EXECFN, name),
        (key::NULL, 0),
    ] {
        words.extend([key, value]);
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    if bytes.len() > ROOM as usize {
        return Err(Error::Arguments);
    }
    let stack = window.image().regions().iter().find(|r| r.kind == RegionKind::Stack).map_or(0, |r| r.end);
    Ok(window.write(stack.saturating_sub(ROOM), &bytes)?)
}
