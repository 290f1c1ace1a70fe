//! Any file is taken apart as a kernel host does, or refused: segments lie in the file and in regions.
#![no_main]

use cordon_checker::Policy;
use cordon_image::Image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for policy in [Policy::USER, Policy::KERNEL] {
        let Ok(image) = Image::read(data, &policy) else { continue };
        let regions: Vec<_> = image.regions().collect();
        for segment in image.segments() {
            let end = segment.start as usize + segment.bytes.len();
            assert!(regions.iter().any(|r| segment.start >= r.start && end <= r.end as usize), "{segment:?}");
        }
    }
});
