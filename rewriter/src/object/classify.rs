//! What becomes of an input section, by its name, type and flags.

use crate::program::SectionKind;
use object::elf;

/// Greatest section alignment, bytes. A window's memory is placed page by page; nothing sensible asks for more.
pub(super) const MAX_ALIGN: u64 = 1 << 20;
/// Greatest section size, bytes: a window has 4 GiB.
pub(super) const MAX_SIZE: u64 = 1 << 32;

/// What a section is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Part of the program.
    Kept(SectionKind),
    /// DWARF that line tables are made from.
    Debug,
    /// RELA relocations.
    Relocations,
    /// Read by `parse` (symbols, strings, groups) or not part of the program.
    Dropped,
    /// Not accepted: code and message.
    Refused(&'static str, &'static str),
}

/// The parts of a section header that decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits<'a> {
    pub name: &'a str,
    pub kind: elf::SectionType,
    pub flags: u64,
    pub size: u64,
    pub align: u64,
}

/// DWARF sections that `crate::dwarf` reads.
const DEBUG: [&str; 5] = [".debug_info", ".debug_abbrev", ".debug_line", ".debug_str", ".debug_line_str"];

/// Allocated sections that a handler has no use for: unwinding, notes, transactional memory, old ways to run something at exit.
const UNUSED: [&str; 8] =
    [".eh_frame", ".gcc_except_table", ".note", ".comment", ".tm_clone_table", ".dtors", ".fini", ".sframe"];

/// What clang's -fsanitize=kcfi leaves beside code that reads a word in front of the functions it calls; code is nothing that can be read.
const TYPE_CHECKS: &str = ".kcfi_traps";

/// Constructor arrays, see [`run_order`].
const CONSTRUCTORS: [&str; 3] = [".preinit_array", ".init_array", ".ctors"];

/// What runs at exit, last one first.
const DESTRUCTORS: &str = ".fini_array";

/// Fragments of the old `_init` function.
pub(super) const INIT: &str = ".init";

/// Whether `name` is `base` or `base.something`.
fn is_or_below(name: &str, base: &str) -> bool {
    name.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The role of a section.
pub(super) fn role(section: Traits) -> Role {
    let has = |flag: elf::SectionFlags| section.flags & flag.0 != 0;
    match section.kind {
        elf::SHT_RELA => return Role::Relocations,
        elf::SHT_REL => return Role::Refused("rel-relocations", "SHT_REL relocations do not belong to x86-64"),
        elf::SHT_RELR | elf::SHT_CREL | elf::SHT_ANDROID_REL | elf::SHT_ANDROID_RELA | elf::SHT_ANDROID_RELR => {
            return Role::Refused("packed-relocations", "packed relocations are not supported");
        }
        _ => {}
    }
    if has(elf::SHF_EXCLUDE) {
        return Role::Dropped;
    }
    if section.name == TYPE_CHECKS {
        return Role::Refused("reads-code", "calls read a word in front of the function (-fsanitize=kcfi); compile it without");
    }
    if !has(elf::SHF_ALLOC) {
        return if has(elf::SHF_EXECINSTR) && section.name == ".note.GNU-stack" {
            Role::Refused(
                "executable-stack",
                "the object wants an executable stack (for nested functions whose address is taken): code made at run time cannot be checked",
            )
        } else if has(elf::SHF_EXECINSTR) {
            Role::Refused("unallocated-code", "the section holds code but no memory (SHF_EXECINSTR without SHF_ALLOC)")
        } else if DEBUG.contains(&section.name) && section.kind == elf::SHT_PROGBITS {
            Role::Debug
        } else {
            Role::Dropped
        };
    }
    allocated(section)
}

fn allocated(section: Traits) -> Role {
    let has = |flag: elf::SectionFlags| section.flags & flag.0 != 0;
    let unwind = elf::SHT_X86_64_UNWIND;
    if matches!(section.kind, elf::SHT_NOTE | elf::SHT_GNU_SFRAME)
        || section.kind == unwind
        || UNUSED.iter().any(|base| is_or_below(section.name, base))
    {
        return Role::Dropped;
    }
    if has(elf::SHF_COMPRESSED) {
        return Role::Refused("compressed-section", "an allocated section cannot be compressed");
    }
    if has(elf::SHF_OS_NONCONFORMING) {
        return Role::Refused("unsupported-section", "the section needs processing that only another system knows");
    }
    if has(elf::SHF_WRITE) && has(elf::SHF_EXECINSTR) {
        return Role::Refused("writable-code", "the section is both writable and executable");
    }
    if section.align > 1 && !section.align.is_power_of_two() {
        return Role::Refused("bad-alignment", "the alignment is not a power of two");
    }
    if section.align > MAX_ALIGN {
        return Role::Refused("bad-alignment", "the alignment is greater than 1 MiB");
    }
    if section.size > MAX_SIZE {
        return Role::Refused("section-too-large", "the section is larger than a window");
    }
    if section.kind == elf::SHT_FINI_ARRAY || is_or_below(section.name, DESTRUCTORS) {
        return Role::Kept(SectionKind::FiniArray);
    }
    if section.name == INIT {
        // `contents` makes constructors of the calls in it.
        return Role::Kept(SectionKind::InitArray);
    }
    contents(section)
}

fn contents(section: Traits) -> Role {
    let has = |flag: elf::SectionFlags| section.flags & flag.0 != 0;
    let constructors = CONSTRUCTORS.iter().any(|base| is_or_below(section.name, base));
    let empty = match section.kind {
        elf::SHT_PROGBITS if !constructors => false,
        elf::SHT_NOBITS if !constructors => true,
        elf::SHT_PROGBITS | elf::SHT_INIT_ARRAY | elf::SHT_PREINIT_ARRAY => return Role::Kept(SectionKind::InitArray),
        _ => return Role::Refused("unsupported-section", "an allocated section of this type is not supported"),
    };
    if has(elf::SHF_EXECINSTR) {
        return if empty || has(elf::SHF_TLS) {
            Role::Refused("unsupported-section", "a code section without bytes or for thread-local storage")
        } else {
            Role::Kept(SectionKind::Text)
        };
    }
    let relro = is_or_below(section.name, ".data.rel.ro") || section.name.starts_with(".gnu.linkonce.d.rel.ro");
    Role::Kept(match (has(elf::SHF_TLS), empty) {
        (true, false) => SectionKind::TlsData,
        (true, true) => SectionKind::TlsBss,
        (false, true) => SectionKind::Bss,
        (false, false) if has(elf::SHF_WRITE) && !relro => SectionKind::Data,
        (false, false) => SectionKind::Rodata,
    })
}

/// When the constructors of an `InitArray` section run; sections with equal keys run in link order. `.preinit_array` goes first, then
/// `.init`, then numbered ones by ascending priority (`.ctors.N` counts down from 65535), then plain ones, as in `ld`'s default script; what runs at
/// exit is sorted alike, behind them.
pub(super) fn run_order(name: &str, kind: elf::SectionType) -> (u8, u32) {
    if kind == elf::SHT_PREINIT_ARRAY || is_or_below(name, ".preinit_array") {
        return (0, 0);
    }
    if name == INIT {
        return (0, 1);
    }
    let number = |suffix: &str| suffix.parse::<u32>().unwrap_or(65536);
    if kind == elf::SHT_FINI_ARRAY || is_or_below(name, DESTRUCTORS) {
        return (3, name.strip_prefix(".fini_array.").map_or(65537, number));
    }
    if let Some(suffix) = name.strip_prefix(".init_array.") {
        (1, number(suffix))
    } else if let Some(suffix) = name.strip_prefix(".ctors.") {
        (1, 65535_u32.saturating_sub(number(suffix)))
    } else {
        (2, 0)
    }
}

/// Whether the array runs from its end to its start.
pub(super) fn runs_backward(name: &str) -> bool {
    is_or_below(name, ".ctors")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(name: &str, flags: u64) -> Traits<'_> {
        Traits { name, kind: elf::SHT_PROGBITS, flags, size: 8, align: 8 }
    }

    const A: u64 = elf::SHF_ALLOC.0;
    const W: u64 = elf::SHF_WRITE.0;
    const X: u64 = elf::SHF_EXECINSTR.0;
    const T: u64 = elf::SHF_TLS.0;

    #[test]
    fn kinds_follow_names_and_flags() {
        let kept = |name, flags| role(traits(name, flags));
        assert_eq!(kept(".text.unlikely.f", A | X), Role::Kept(SectionKind::Text));
        assert_eq!(kept(".rodata.str1.1", A), Role::Kept(SectionKind::Rodata));
        assert_eq!(kept(".data.rel.ro.local", A | W), Role::Kept(SectionKind::Rodata));
        assert_eq!(kept(".data.rel.local", A | W), Role::Kept(SectionKind::Data));
        assert_eq!(kept(".tdata", A | W | T), Role::Kept(SectionKind::TlsData));
        assert_eq!(kept(".ctors.00100", A | W), Role::Kept(SectionKind::InitArray));
        assert_eq!(kept(".eh_frame", A), Role::Dropped);
        assert_eq!(kept(".fini_array.1", A | W), Role::Kept(SectionKind::FiniArray));
        assert_eq!(kept(".finite", A | W), Role::Kept(SectionKind::Data));
        assert_eq!(kept(".debug_line", 0), Role::Debug);
        assert_eq!(kept(".data", A | W | elf::SHF_EXCLUDE.0), Role::Dropped);
    }

    #[test]
    fn refuses_unsound_sections() {
        let code = |section| match role(section) {
            Role::Refused(code, _) => code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(traits(".text", A | W | X)), "writable-code");
        assert_eq!(code(traits(".text", X)), "unallocated-code");
        assert_eq!(code(traits(".note.GNU-stack", X)), "executable-stack");
        assert_eq!(code(traits(".kcfi_traps", A)), "reads-code");
        assert_eq!(code(Traits { align: 24, ..traits(".data", A | W) }), "bad-alignment");
        assert_eq!(code(Traits { align: 1 << 63, ..traits(".data", A | W) }), "bad-alignment");
        assert_eq!(code(Traits { size: u64::MAX, ..traits(".data", A | W) }), "section-too-large");
        assert_eq!(code(Traits { kind: elf::SHT_REL, ..traits(".rel.text", 0) }), "rel-relocations");
        assert_eq!(code(Traits { kind: elf::SHT_DYNAMIC, ..traits(".dynamic", A | W) }), "unsupported-section");
        assert_eq!(code(Traits { kind: elf::SHT_NOBITS, ..traits(".text", A | X) }), "unsupported-section");
    }

    #[test]
    fn constructors_run_by_priority() {
        let key = |name| run_order(name, elf::SHT_PROGBITS);
        let sorted = [".preinit_array", ".init", ".init_array.00101", ".ctors.65433", ".init_array.200", ".init_array"];
        assert!(sorted.is_sorted_by_key(|name| key(name)));
        assert_eq!(key(".ctors"), key(".init_array"));
        assert!(runs_backward(".ctors.65433") && !runs_backward(".init_array"));
    }
}
