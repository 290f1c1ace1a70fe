//! An object or archive is refused or becomes an image that the loader takes, in each mode; nothing panics or hangs.
//!
//! The first byte chooses mode and masking.
#![no_main]

use cordon_loader::{Error, Image, LoadOptions, Mode, Policy, Protect};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Masking, Options, rewrite};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let protect = if choice & 4 == 0 { Protect::All } else { Protect::Stores };
    let mode = Mode { matched: choice & 1 != 0, metered: choice & 2 != 0, protect };
    let inputs = [Input { name: "input".to_owned(), bytes: bytes.to_vec() }];
    // With checks there are no masks.
    let masking = if choice & 8 == 0 || mode.matched { Masking::Prefix } else { Masking::Explicit };
    let options = Options { mode, masking, heap: 1 << 16, argument: 1 << 16, stack: 1 << 16, whole_archive: true, ..Options::default() };
    let Ok(made) = rewrite(&inputs, &options) else { return };
    let policy = Policy { mode, ..Policy::USER };
    // Sealed pages could never be given back, and every accepted input would keep some.
    let options = LoadOptions { seal: false, policy, ..LoadOptions::default() };
    match Image::from_bytes(&made.image, &options) {
        // Not every processor and every host has what an object may ask for.
        Ok(_) | Err(Error::Cpu(_) | Error::MemoryLimit { .. } | Error::MissingImport(_) | Error::Memory { .. } | Error::Mappings { .. }) => {}
        Err(error) => panic!("the loader refuses what the rewriter made: {error}"),
    }
});
