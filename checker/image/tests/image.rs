//! Image files: one good one, and what each broken field of it is refused for.

use cordon_checker::layout::TEXT_VADDR;
use cordon_checker::sample::{self, container as file, note_record};
use cordon_checker::{LayoutError, Policy};
use cordon_image::{FormatError, Image, ImageError};

const PAGE: usize = 4096;

type Load<'a> = sample::Load<&'a [u8]>;

const TEXT: &[u8] = &[0x0f, 0x0b];

fn good_with<T>(use_it: impl FnOnce(&[Load<'_>]) -> T) -> T {
    let note = note_record(&sample::kernel().to_bytes());
    use_it(&[
        (1, 6, 0x1_0000, &[1, 2, 3], 2 * PAGE as u64),
        (1, 5, TEXT_VADDR, TEXT, TEXT.len() as u64),
        (4, 4, 0, &note, note.len() as u64),
    ])
}

#[test]
fn reads_text_note_and_segments() {
    let bytes = good_with(|loads| file(loads));
    let image = Image::read(&bytes, &Policy::KERNEL).expect("good");
    assert_eq!((image.text, image.note.layout.stack_low, image.regions().count()), (TEXT, 0x7fef_fff8, 2));
    let segments: Vec<_> = image.segments().map(|s| (s.start, s.size, s.bytes, s.writable)).collect();
    assert_eq!(segments, [(0x1_0000, 0x2000, &[1, 2, 3][..], true)]);
    assert_eq!(Image::read(&bytes, &Policy::USER).err(), Some(ImageError::Layout(LayoutError::Host)));
}

/// What the good image is refused for when one segment is another.
fn refused(index: usize, change: impl FnOnce(&mut Load<'_>)) -> Option<ImageError> {
    good_with(|loads| {
        let mut loads = loads.to_vec();
        change(&mut loads[index]);
        Image::read(&file(&loads), &Policy::KERNEL).err()
    })
}

#[test]
fn refuses_segments_that_do_not_hold() {
    let format = |error| Some(ImageError::Format(error));
    for (flags, index) in [(7, 1), (1, 1)] {
        assert_eq!(refused(index, |load| load.1 = flags), format(FormatError::Text));
    }
    assert_eq!(refused(1, |load| load.2 += 1), format(FormatError::Text));
    assert_eq!(refused(1, |load| load.4 += 1), format(FormatError::Text));
    assert_eq!(refused(1, |load| load.1 = 6), format(FormatError::Segment), "far outside the window");
    assert_eq!(refused(0, |load| load.0 = 2), None, "a segment of another kind is nothing to the window");
    assert_eq!(refused(0, |load| load.1 = 5), format(FormatError::Text));
    assert_eq!(refused(0, |load| load.1 = 2), format(FormatError::Segment));
    assert_eq!(refused(0, |load| load.2 += 1), format(FormatError::Segment));
    assert_eq!(refused(0, |load| load.2 = u64::from(u32::MAX) & !0xfff), format(FormatError::Segment), "wraps");
    assert_eq!(refused(0, |load| load.4 = 2), format(FormatError::Segment));
    assert_eq!(refused(0, |load| load.1 = 4), format(FormatError::SegmentPlace), "read-only in a writable region");
    assert_eq!(refused(0, |load| load.4 = 0x1_0001), format(FormatError::SegmentPlace));
    assert_eq!(refused(0, |load| load.4 = 0x1_0000), None, "exactly the region");
    assert_eq!(refused(2, |load| load.0 = 2), format(FormatError::NoNote));
    let overlap = good_with(|loads| Image::read(&file(&[loads[0], loads[0], loads[1], loads[2]]), &Policy::KERNEL).err());
    assert_eq!(overlap, format(FormatError::SegmentOrder));
    let texts = good_with(|loads| Image::read(&file(&[loads[1], loads[1], loads[2]]), &Policy::KERNEL).err());
    assert_eq!(texts, format(FormatError::TextCount));
}

#[test]
fn broken_files_are_errors() {
    let bytes = good_with(|loads| file(loads));
    for len in 0..bytes.len() {
        assert!(Image::read(&bytes[..len], &Policy::KERNEL).is_err(), "cut to {len}");
    }
    let headers = 64 + 3 * 56;
    for at in 0..headers {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            let _ = Image::read(&bad, &Policy::KERNEL);
        }
    }
    for (at, error) in [(0, FormatError::Header), (16, FormatError::Header), (54, FormatError::ProgramHeaders)] {
        let mut bad = bytes.clone();
        bad[at] ^= 0x80;
        assert_eq!(Image::read(&bad, &Policy::KERNEL).err(), Some(ImageError::Format(error)), "byte {at}");
    }
}
