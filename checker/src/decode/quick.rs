//! The test that most instructions pass at once: what they show against the line's masks, without a branch on any of it. A processor
//! cannot predict what comes next in code, and each wrong guess costs it as much as this test.
//!
//! What passes is what [`super::whole`] would accept, with the same length, extensions and operands (a test below compares them); what
//! does not pass, that one accepts or refuses.

use super::{Extension, Head, Insn, LONGEST_INSTRUCTION, Memory, Opcode, Operands, Prefixes, Window, dword};
use crate::decode::Action;
use crate::table::{self, Kind, flag, mark};

/// Passes no test.
static REFUSED: table::Shown = table::Shown { marks: mark::LOCK, more: 0, sib: 0 };

/// The instruction, if the line's test lets it pass; then it falls through and touches nothing but its operands. `units`: a mode may have
/// fused units, which are for [`super::whole`].
#[inline(always)]
pub(crate) fn quick(head: &Head<'_>, units: bool) -> Option<Insn> {
    let Head { op, modrm, sib, .. } = *head;
    let Opcode { prefixes, extension, line, .. } = op;
    let test = &line.quick;
    let shown = table::MODRM.get(usize::from(extension.0 & 7) << 8 | usize::from(modrm)).unwrap_or(&REFUSED);
    let of_sib = usize::from(modrm < 0x40) << 10 | usize::from(extension.0 & 3) << 8 | usize::from(sib);
    let of_sib = table::SIB.get(of_sib).copied().unwrap_or(mark::LOCK);
    let marks = u16::from(prefixes.0)
        | u16::from(extension.0 & 8) << 6
        | u16::from(extension.is_bare()) << 10
        | shown.marks
        | of_sib & shown.sib;
    let [register, memory] = test.forms;
    let form = if modrm < 0xc0 { memory } else { register };
    let which = u32::from(prefixes.0 & Prefixes::OPSIZE) >> 1 | u32::from(extension.0 & 8);
    let length = usize::from(test.lengths >> which & 15);
    let len = op.at.wrapping_add(length).wrapping_add(usize::from(shown.more & test.address));
    let passes = ((marks ^ form.value) & form.mask == 0) & (len <= LONGEST_INSTRUCTION);
    // CHECK and METER begin with these.
    let unit = units && matches!(line.kind, Kind::CmpImm | Kind::SubImm);
    let features = table::SETS.get(usize::from(line.set)).copied().unwrap_or_default();
    if passes & !unit { Some(Insn::new(len, Action::Next, features)) } else { None }
}

impl Head<'_> {
    /// The operands of an instruction that passed.
    #[inline(always)]
    pub(crate) fn operands(&self) -> Operands {
        let Head { window, op: Opcode { prefixes, extension, line, byte, at, .. }, modrm, sib } = *self;
        let with_modrm = line.has(flag::MODRM);
        let is_memory = with_modrm & (modrm < 0xc0);
        let low = if line.has(flag::IN_OPCODE) { byte } else { modrm } & 7;
        let named = line.has(flag::MODRM | flag::IN_OPCODE) & !is_memory;
        Operands {
            memory: if is_memory { Some(memory(window, at, modrm, sib, extension)) } else { None },
            reg: if with_modrm { modrm >> 3 & 7 | extension.r() } else { 0 },
            rm: if named { low | extension.b() } else { 0 },
            w: extension.w(),
            opsize: prefixes.has(Prefixes::OPSIZE),
            rex: extension.present(),
            ..Operands::none(line)
        }
    }
}

#[inline(always)]
fn memory(window: &Window, at: usize, modrm: u8, sib: u8, extension: Extension) -> Memory {
    let with_sib = modrm & 7 == 4;
    let behind = at.wrapping_add(if with_sib { 2 } else { 1 });
    let index = sib >> 3 & 7 | extension.x();
    let indexed = with_sib & (index != 4);
    let disp = dword(window, behind).cast_signed();
    Memory {
        base: if with_sib { sib } else { modrm } & 7 | extension.b(),
        index: if indexed { index } else { Memory::NONE },
        scale: if indexed { sib >> 6 } else { 0 },
        disp: match modrm >> 6 {
            0 => 0,
            1 => disp << 24 >> 24,
            _ => disp,
        },
        wide: false,
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, reason = "a test")]
mod tests {
    use super::*;
    use crate::decode::{Machine, whole};
    use crate::policy::{Host, Mode};
    use crate::table::{Field, Size};

    /// Prefixes of window operands, others behind them, every REX or none.
    fn fronts() -> impl Iterator<Item = ([u8; 6], usize)> {
        const WINDOW: [&[u8]; 4] = [&[], &[0x65], &[0x67], &[0x65, 0x67]];
        const OTHER: [&[u8]; 6] = [&[], &[0x66], &[0xf2], &[0xf3], &[0xf0], &[0x66, 0xf3]];
        let pairs = WINDOW.into_iter().flat_map(|window| OTHER.into_iter().map(move |other| (window, other)));
        pairs.flat_map(|(window, other)| {
            (0x3f..0x50_u8).map(move |rex| {
                let rex = if rex == 0x3f { None } else { Some(rex) };
                let (mut front, mut len) = ([0; 6], 0);
                for byte in window.iter().chain(other).copied().chain(rex) {
                    front[len] = byte;
                    len += 1;
                }
                (front, len)
            })
        })
    }

    /// Whether the quick test must pass an instruction that the whole decoder accepts: a line of its own with registers other than ah, or a
    /// window operand with a base; no `lock`, explicit or not; nothing that depends on the form, or that looks like a unit.
    fn is_ordinary(head: &Head<'_>, operands: &Operands) -> bool {
        let (line, memory) = (head.op.line, operands.memory);
        let kind = match line.kind {
            Kind::Plain | Kind::AddImm | Kind::SubImm | Kind::CmpImm => true,
            Kind::AndImm => memory.is_some(),
            Kind::Lea => memory.is_some_and(|memory| memory.base != 4 && operands.reg != 4),
            _ => false,
        };
        let depends = line.has(flag::LOCKS | flag::AVX2_REGISTER) || line.size == Size::Pair;
        let zero = line.reg.field == Field::Zero || line.rm.field == Field::Zero;
        let ah = |field: Field, number: u8| field == Field::Gpr8 && number == 4;
        let named = ah(line.reg.field, operands.reg) || memory.is_none() && ah(line.rm.field, operands.rm);
        let odd = operands.lock || head.op.extension.is_bare() || memory.is_some_and(|memory| memory.base == Memory::NONE);
        kind && !depends && !zero && !named && !odd
    }

    /// Compares the two for every opcode, ModRM and the SIBs that differ; gives how many passed.
    fn compare(maps: &[u8]) -> u64 {
        const SIBS: [u8; 12] = [0x00, 0x04, 0x05, 0x0c, 0x20, 0x24, 0x25, 0x2d, 0x64, 0x65, 0xa3, 0xe5];
        let machine = Machine::new(Host::User, Mode::default());
        let mut passed = 0;
        for (front, len) in fronts() {
            // Fronts of which nothing is ordinary are many, and tell nothing.
            let may_be_ordinary =
                matches!(front, [0x65, 0x67, ..] | [0x66 | 0xf2 | 0xf3, 0 | 0x40..=0x4f, ..] | [0 | 0x40..=0x4f, ..]);
            for code in 0..=u16::MAX {
                let [opcode, modrm] = code.to_be_bytes();
                let sibs = if modrm & 7 == 4 && modrm < 0xc0 { &SIBS[..] } else { &SIBS[..1] };
                for &sib in sibs {
                    let mut window: Window = [0x13; 16];
                    window[..len].copy_from_slice(&front[..len]);
                    window[len..len + maps.len()].copy_from_slice(maps);
                    let at = len + maps.len();
                    window[at..at + 3].copy_from_slice(&[opcode, modrm, sib]);
                    let head = Head::of(&window, &machine);
                    let quick = quick(&head, false);
                    if quick.is_none() && !may_be_ordinary {
                        continue;
                    }
                    let mut operands = None;
                    let other = whole(head, &machine, false, &mut operands);
                    let Some(insn) = quick else {
                        let ordinary = operands.filter(|_| other.is_ok()).is_some_and(|operands| is_ordinary(&head, &operands));
                        assert!(!ordinary, "{window:02x?}");
                        continue;
                    };
                    assert_eq!(other, Ok(insn), "{window:02x?}");
                    assert_eq!(operands, Some(head.operands()), "{window:02x?}");
                    passed += 1;
                }
            }
        }
        passed
    }

    #[test]
    fn passes_what_the_whole_decoder_accepts_alike_and_all_that_is_ordinary() {
        // Some of what it must pass, or it is of no use.
        for bytes in [&[0x65, 0x67, 0x48, 0x8b, 0x44, 0x24, 8][..], &[0x4d, 0x89, 0xe5], &[0x83, 0xfb, 4], &[0x8d, 0x14, 0x88]] {
            let mut window = [0; 16];
            window[..bytes.len()].copy_from_slice(bytes);
            let insn = quick(&Head::of(&window, &Machine::new(Host::User, Mode::default())), false);
            assert_eq!(insn.map(|insn| insn.len), Some(bytes.len()), "{bytes:02x?}");
        }
        for maps in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
            assert!(compare(maps) > 10_000, "{maps:02x?}");
        }
    }
}
