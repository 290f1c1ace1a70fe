//! The relocation types that may stand in a relocatable object, and the width of the field that each one fills.

use object::elf as r;

/// Bytes that relocation type `kind` fills in, or `None` if it has no place in a relocatable object or is unknown.
/// `R_X86_64_NONE` and the marker `R_X86_64_TLSDESC_CALL` fill in nothing.
pub(super) fn width(kind: u32) -> Option<u64> {
    Some(match object::elf::RelocationType(kind) {
        r::R_X86_64_NONE | r::R_X86_64_TLSDESC_CALL => 0,
        r::R_X86_64_8 | r::R_X86_64_PC8 => 1,
        r::R_X86_64_16 | r::R_X86_64_PC16 => 2,
        r::R_X86_64_PC32
        | r::R_X86_64_GOT32
        | r::R_X86_64_PLT32
        | r::R_X86_64_GOTPCREL
        | r::R_X86_64_32
        | r::R_X86_64_32S
        | r::R_X86_64_TLSGD
        | r::R_X86_64_TLSLD
        | r::R_X86_64_DTPOFF32
        | r::R_X86_64_GOTTPOFF
        | r::R_X86_64_TPOFF32
        | r::R_X86_64_GOTPC32
        | r::R_X86_64_SIZE32
        | r::R_X86_64_GOTPC32_TLSDESC
        | r::R_X86_64_GOTPCRELX
        | r::R_X86_64_REX_GOTPCRELX => 4,
        r::R_X86_64_64
        | r::R_X86_64_DTPOFF64
        | r::R_X86_64_TPOFF64
        | r::R_X86_64_PC64
        | r::R_X86_64_GOTOFF64
        | r::R_X86_64_GOT64
        | r::R_X86_64_GOTPCREL64
        | r::R_X86_64_GOTPC64
        | r::R_X86_64_GOTPLT64
        | r::R_X86_64_PLTOFF64
        | r::R_X86_64_SIZE64 => 8,
        _ => return None,
    })
}

/// Why code cannot have a relocation of type `kind`, and what keeps compilers from emitting it; `None` for any other type.
pub(super) fn refused_in_code(kind: u32) -> Option<String> {
    let (name, cure) = match object::elf::RelocationType(kind) {
        r::R_X86_64_GOTPC64 => ("R_X86_64_GOTPC64", LARGE),
        r::R_X86_64_GOT64 => ("R_X86_64_GOT64", LARGE),
        r::R_X86_64_GOTPLT64 => ("R_X86_64_GOTPLT64", LARGE),
        r::R_X86_64_GOTPCREL64 => ("R_X86_64_GOTPCREL64", LARGE),
        r::R_X86_64_PLTOFF64 => ("R_X86_64_PLTOFF64", LARGE),
        r::R_X86_64_GOTPC32_TLSDESC => ("R_X86_64_GOTPC32_TLSDESC", DESCRIPTORS),
        r::R_X86_64_TLSDESC_CALL => ("R_X86_64_TLSDESC_CALL", DESCRIPTORS),
        _ => return None,
    };
    Some(format!("{name}: {cure}"))
}

/// The cure for the 64-bit offsets of a GOT.
const LARGE: &str = "position-independent code of the large model; compile it with -fno-pic, or with -mcmodel=medium or small";
/// The cure for descriptors of thread-local storage.
const DESCRIPTORS: &str = "thread-local storage by descriptors; compile it with -mtls-dialect=gnu";

/// What a refused type is called, for diagnostics.
pub(super) fn refused_name(kind: u32) -> String {
    let name = match object::elf::RelocationType(kind) {
        r::R_X86_64_COPY => "R_X86_64_COPY",
        r::R_X86_64_GLOB_DAT => "R_X86_64_GLOB_DAT",
        r::R_X86_64_JUMP_SLOT => "R_X86_64_JUMP_SLOT",
        r::R_X86_64_RELATIVE => "R_X86_64_RELATIVE",
        r::R_X86_64_DTPMOD64 => "R_X86_64_DTPMOD64",
        r::R_X86_64_TLSDESC => "R_X86_64_TLSDESC",
        r::R_X86_64_IRELATIVE => "R_X86_64_IRELATIVE",
        r::R_X86_64_RELATIVE64 => "R_X86_64_RELATIVE64",
        object::elf::RelocationType(43..=51) => return format!("an APX relocation (type {kind})"),
        _ => return format!("relocation type {kind}"),
    };
    name.to_owned()
}
