//! Relocation types (psABI x86-64 table 4.9) as plain numbers, the form in which [`crate::program::Reloc`] keeps them.

macro_rules! types {
    ($($name:ident)*) => { $(#[allow(missing_docs, reason = "the name is the psABI's")] pub const $name: u32 = object::elf::$name.0;)* };
}

types! {
    R_X86_64_64 R_X86_64_PC32 R_X86_64_PLT32 R_X86_64_32 R_X86_64_32S R_X86_64_PC64 R_X86_64_PC16 R_X86_64_PC8
    R_X86_64_GOTPCREL R_X86_64_GOTPCRELX R_X86_64_REX_GOTPCRELX
    R_X86_64_TPOFF32 R_X86_64_TPOFF64 R_X86_64_GOTTPOFF R_X86_64_TLSGD R_X86_64_TLSLD R_X86_64_DTPOFF32 R_X86_64_DTPOFF64
    R_X86_64_GOTPC32 R_X86_64_GOTOFF64
    R_X86_64_SIZE32 R_X86_64_SIZE64
}
