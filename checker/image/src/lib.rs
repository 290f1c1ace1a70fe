//! Takes an image file apart and proves what a loader needs besides the checker's verdict: text, note and data segments lie in the file,
//! segments in regions of their kind, the layout is valid for the host's policy (DESIGN §9). For hosts without std; it allocates nothing
//! and copies nothing.
//!
//! ```
//! use cordon_checker::{Policy, check};
//! use cordon_image::{Image, ImageError};
//!
//! /// What a host does before it maps anything: container and layout here, then the text.
//! fn accepted(file: &[u8], scratch: &mut [u64]) -> Result<bool, ImageError> {
//!     let image = Image::read(file, &Policy::USER)?;
//!     Ok(check(image.text, &Policy::USER, &image.note.layout, scratch).is_ok())
//! }
//! assert!(matches!(accepted(b"\x7fELF and nothing else", &mut []), Err(ImageError::Format(_))));
//! ```
//!
//! Everything in the file is untrusted. What only reports need (symbols, maps, line tables) is not looked at.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used
)]

mod elf;

pub use elf::{FormatError, Segment, Segments};

use cordon_checker::layout::{Region, RegionKind};
use cordon_checker::note::{Note, NoteError};
use cordon_checker::{LayoutError, Policy};

/// Why a file is no image for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The container.
    Format(FormatError),
    /// The note has no valid form.
    Note(NoteError),
    /// The note does not hold for the policy.
    Layout(LayoutError),
}

/// An image file whose container and layout hold. Its text is not judged.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Unchecked text.
    pub text: &'a [u8],
    /// The image note's descriptor.
    pub descriptor: &'a [u8],
    /// The same, taken apart and validated.
    pub note: Note<'a>,
    segments: Segments<'a>,
}

impl<'a> Image<'a> {
    /// Reads `file` for a host with `policy`. Work is linear in the file.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn read(file: &'a [u8], policy: &Policy) -> Result<Image<'a>, ImageError> {
        let parts = elf::split(file).map_err(ImageError::Format)?;
        let note = Note::parse(parts.note).map_err(ImageError::Note)?;
        note.validate(policy).map_err(ImageError::Layout)?;
        let image = Image { text: parts.text, descriptor: parts.note, note, segments: parts.segments };
        if image.segments().all(|segment| image.has_place_for(&segment)) {
            Ok(image)
        } else {
            Err(ImageError::Format(FormatError::SegmentPlace))
        }
    }

    /// The data segments that have bytes in memory, ascending and disjoint.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        self.segments.filter(|segment| segment.size > 0)
    }

    /// The regions of a window.
    pub fn regions(&self) -> impl Iterator<Item = Region> + use<'a> {
        let layout = self.note.layout;
        (0..layout.region_count()).filter_map(move |index| layout.region(index))
    }

    fn has_place_for(&self, segment: &Segment<'_>) -> bool {
        let kind = if segment.writable { RegionKind::Data } else { RegionKind::Rodata };
        let end = segment.start.saturating_add(segment.size);
        self.regions().any(|region| region.kind == kind && region.start <= segment.start && end <= region.end)
    }
}
