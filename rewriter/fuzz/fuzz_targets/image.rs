//! Any file is loaded as an image or refused; the loader neither panics nor maps what the checker did not accept.
#![no_main]

use cordon_loader::{Image, LoadOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Sealed pages could never be given back, and every accepted input would keep some.
    let _ = Image::from_bytes(data, &LoadOptions { seal: false, ..LoadOptions::default() });
});
