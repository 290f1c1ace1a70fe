//! What a line of the allow-list says.

use super::quick::Quick;
use super::sets::{AVX, AVX2, BASE, SSE2};

/// How the walk and the decoder treat an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not listed.
    Deny,
    /// A legacy prefix or REX in a place where an opcode is expected: wrong order, repetition, or a prefix that has no use here.
    StrayPrefix,
    /// A segment override other than the policy's.
    StraySegment,
    /// Falls through and touches nothing but its operands.
    Plain,
    /// ModRM selects the line in the map's group `group`.
    Group,
    /// C4, C5: VEX.
    Vex,
    /// x87, D8 to DF.
    Fpu,
    /// 90: `nop`, with F3 `pause`, with REX.B an exchange.
    Nop,
    /// 0F 1F: only the listed multi-byte no-ops and the state hint.
    LongNop,
    /// F3 0F 1E: only `endbr64`.
    Endbr,
    /// Address arithmetic: the one ModRM form that is no access.
    Lea,
    /// `add`/`sub` with an immediate: with rsp a depth change.
    AddImm,
    SubImm,
    /// `and` with an immediate: may begin a table unit.
    AndImm,
    /// `cmp` with a 32-bit immediate: with esp it begins LIMIT.
    CmpImm,
    Push,
    Pop,
    Ret,
    Ud2,
    /// Conditional and unconditional direct branches and calls; the immediate is the displacement.
    Jcc,
    Jmp,
    Call,
    /// `call`/`jmp` through memory: only in import form.
    CallMem,
    JmpMem,
}

/// What a ModRM, opcode or VEX.vvvv field names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// Nothing: absent, or (VEX.vvvv) must be 1111.
    None,
    /// Must be 0.
    Zero,
    /// Selects the line (groups).
    Extension,
    /// 8-bit general-purpose register.
    Gpr8,
    /// General-purpose register of operand size: 16 with 66, 64 with W, else 32.
    GprV,
    /// General-purpose register of 32 bits, 64 with W; no 66.
    GprY,
    /// 32-bit general-purpose register whatever W.
    Gpr32,
    /// xmm or ymm.
    Vector,
    /// mm.
    Mmx,
}

/// A field and how the instruction accesses what it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    pub(crate) field: Field,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// Bytes of the memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// No memory form.
    No,
    B1,
    B2,
    B4,
    B8,
    B10,
    B16,
    /// 2, 4 or 8 by operand size.
    V,
    /// 4, 8 with W.
    Y,
    /// 8, 16 with W (`cmpxchg8b`, `cmpxchg16b`).
    Pair,
    /// Vector length: 16, 32 with L.
    L,
    /// Half, a quarter, an eighth of it.
    L2,
    L4,
    L8,
    /// `vmovddup`: 8, 32 with L.
    Dup,
    /// Scalar by VEX.W: 4, 8.
    Scalar,
}

/// Form of the immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Imm {
    No,
    /// One byte.
    B1,
    /// Register number in bits 7:4, bits 3:0 zero.
    Register,
    /// 2 bytes with 66, else 4.
    Z,
    /// 2 with 66, 8 with W, else 4.
    V,
    /// 4 bytes.
    B4,
}

/// What a line's result in a general register is, for match mode ([`crate::facts`]). It speaks of every general register that the
/// instruction writes; of 8-bit and 16-bit results nothing is ever known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Anything; also where the manuals leave the upper half of a 32-bit result open (`bsf`, `bsr` of 0, a failed `cmpxchg`), where the
    /// instruction may write nothing (shifts by cl), and where two operands may be the same register (`xchg`, `xadd`, `mulx`).
    Any,
    /// A 32-bit result is zero-extended (APM volume 1, 3.1.2; SDM volume 1, 3.4.1.1); a 64-bit one is anything.
    Extended,
    /// As `Extended`, if the count in the immediate (or 1 without one) is not 0 modulo 32.
    Shifted,
    /// Below 2^16 (`movzx`).
    Small,
    /// The immediate (`mov`).
    Immediate,
    /// The other operand (`mov`).
    Copy,
    /// At most the old value and at most the immediate (`and`).
    Masked,
    /// The old value without its low bits (`shr`), as `Shifted`.
    ShiftedRight,
    /// The old value and the immediate: sum and difference (`add`, `sub`), or without an immediate 1 (`inc`, `dec`).
    Moved,
    /// 0 if both operands are the same register (`xor`, `sub`), else as `Extended`.
    Difference,
}

/// Attributes of a line; bits of [`Line::flags`].
pub(crate) mod flag {
    /// A ModRM byte follows the opcode.
    pub(crate) const MODRM: u16 = 1 << 0;
    /// The opcode's low 3 bits name the `rm` operand.
    pub(crate) const IN_OPCODE: u16 = 1 << 1;
    /// 66 is the operand size.
    pub(crate) const OPSIZE: u16 = 1 << 2;
    /// W may be 0 or 1.
    pub(crate) const W_ANY: u16 = 1 << 3;
    /// W must be 1.
    pub(crate) const W_ONE: u16 = 1 << 4;
    /// `lock` is allowed on the memory form.
    pub(crate) const LOCK: u16 = 1 << 5;
    /// The memory form locks by itself.
    pub(crate) const LOCKS: u16 = 1 << 6;
    /// No register form.
    pub(crate) const MEMORY_ONLY: u16 = 1 << 7;
    /// VEX.L must be 1.
    pub(crate) const L_ONE: u16 = 1 << 8;
    /// VEX.vvvv is used in the register form only.
    pub(crate) const VVVV_REGISTER: u16 = 1 << 9;
    /// The register form needs AVX2 (broadcasts).
    pub(crate) const AVX2_REGISTER: u16 = 1 << 10;
    /// Writes rax (or a part) besides its operands.
    pub(crate) const WRITES_A: u16 = 1 << 11;
    /// Writes rcx besides its operands.
    pub(crate) const WRITES_C: u16 = 1 << 12;
    /// Writes rdx besides its operands.
    pub(crate) const WRITES_D: u16 = 1 << 13;
    /// A prefetch: it tells nothing of what it reads, and never faults.
    pub(crate) const PREFETCH: u16 = 1 << 14;
}

/// One encoding of the allow-list.
#[repr(align(32))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) kind: Kind,
    /// [`Kind::Group`]: number of the group.
    pub(crate) group: u8,
    pub(crate) reg: Operand,
    /// The register form's operand; its access is also the memory form's.
    pub(crate) rm: Operand,
    pub(crate) vvvv: Operand,
    pub(crate) size: Size,
    pub(crate) imm: Imm,
    /// Extensions needed; with VEX.L = 1 those of `wide`.
    pub(crate) set: u8,
    /// [`NO_WIDE`] = VEX.L must be 0.
    pub(crate) wide: u8,
    pub(crate) value: Value,
    pub(crate) flags: u16,
    /// What [`Line::seal`] makes of the rest.
    pub(crate) quick: Quick,
}

/// [`Line::wide`]: there is no 256-bit form.
pub(crate) const NO_WIDE: u8 = u8::MAX;

const fn operand(field: Field, read: bool, write: bool) -> Operand {
    Operand { field, read, write }
}

pub(crate) const NONE: Operand = operand(Field::None, false, false);
pub(crate) const ZERO: Operand = operand(Field::Zero, false, false);
pub(crate) const EXT: Operand = operand(Field::Extension, false, false);
/// Read, written, both: 8-bit register.
pub(crate) const R8: Operand = operand(Field::Gpr8, true, false);
pub(crate) const W8: Operand = operand(Field::Gpr8, false, true);
pub(crate) const U8: Operand = operand(Field::Gpr8, true, true);
/// Register of operand size.
pub(crate) const RV: Operand = operand(Field::GprV, true, false);
pub(crate) const WV: Operand = operand(Field::GprV, false, true);
pub(crate) const UV: Operand = operand(Field::GprV, true, true);
/// Register of 32 or 64 bits.
pub(crate) const RY: Operand = operand(Field::GprY, true, false);
pub(crate) const WY: Operand = operand(Field::GprY, false, true);
pub(crate) const UY: Operand = operand(Field::GprY, true, true);
/// 32-bit register.
pub(crate) const RD: Operand = operand(Field::Gpr32, true, false);
pub(crate) const WD: Operand = operand(Field::Gpr32, false, true);
/// Vector register (or memory, in `rm`).
pub(crate) const RX: Operand = operand(Field::Vector, true, false);
pub(crate) const WX: Operand = operand(Field::Vector, false, true);
pub(crate) const UX: Operand = operand(Field::Vector, true, true);
/// MMX register (or memory, in `rm`).
pub(crate) const RM: Operand = operand(Field::Mmx, true, false);
pub(crate) const WM: Operand = operand(Field::Mmx, false, true);
pub(crate) const UM: Operand = operand(Field::Mmx, true, true);

/// An instruction without ModRM.
pub(crate) const fn plain() -> Line {
    Line {
        kind: Kind::Plain,
        group: 0,
        reg: NONE,
        rm: NONE,
        vvvv: NONE,
        size: Size::No,
        imm: Imm::No,
        set: BASE,
        wide: NO_WIDE,
        value: Value::Any,
        flags: 0,
        quick: Quick::NEVER,
    }
}

/// An instruction with ModRM: `reg` and `rm`, whose memory form has `size`.
pub(crate) const fn modrm(reg: Operand, rm: Operand, size: Size) -> Line {
    let line = Line { reg, rm, size, flags: flag::MODRM, ..plain() };
    line.sized(reg).sized(rm)
}

/// An instruction whose opcode's low 3 bits name `rm`.
pub(crate) const fn in_opcode(rm: Operand) -> Line {
    Line { rm, flags: flag::IN_OPCODE, ..plain() }.sized(rm)
}

/// The group `number` of this map.
pub(crate) const fn group_of(number: u8) -> Line {
    Line { kind: Kind::Group, group: number, ..modrm(EXT, NONE, Size::No) }
}

/// A legacy SSE2 instruction: xmm `reg`, xmm/memory `rm`.
pub(crate) const fn sse(reg: Operand, rm: Operand, size: Size) -> Line {
    modrm(reg, rm, size).set(SSE2)
}

/// A VEX instruction without a second source: `reg`, `rm`.
pub(crate) const fn vex2(reg: Operand, rm: Operand, size: Size) -> Line {
    Line { wide: AVX, ..modrm(reg, rm, size).set(AVX) }
}

/// A VEX instruction with a second source: `reg`, VEX.vvvv, `rm`.
pub(crate) const fn vex3(reg: Operand, vvvv: Operand, rm: Operand, size: Size) -> Line {
    Line { vvvv, ..vex2(reg, rm, size) }.sized(vvvv)
}

impl Line {
    /// The line of everything that has none.
    pub(crate) const DENY: Line = Line { kind: Kind::Deny, ..plain() };

    pub(crate) const fn is_deny(&self) -> bool {
        matches!(self.kind, Kind::Deny)
    }

    /// Whether the attribute is set.
    #[inline]
    pub(crate) const fn has(&self, attribute: u16) -> bool {
        self.flags & attribute != 0
    }

    /// Mask of the registers written besides the operands: rax, rcx, rdx are 0, 1, 2, as are their attributes.
    #[inline]
    pub(crate) const fn implicit_writes(&self) -> u16 {
        self.flags >> flag::WRITES_A.trailing_zeros() & 7
    }

    const fn sized(self, operand: Operand) -> Line {
        match operand.field {
            Field::GprV => self.with(flag::OPSIZE | flag::W_ANY),
            Field::GprY => self.with(flag::W_ANY),
            _ => self,
        }
    }

    pub(crate) const fn with(self, attributes: u16) -> Line {
        Line { flags: self.flags | attributes, ..self }
    }

    pub(crate) const fn kind(self, kind: Kind) -> Line {
        Line { kind, ..self }
    }

    pub(crate) const fn imm(self, imm: Imm) -> Line {
        Line { imm, ..self }
    }

    /// One immediate byte.
    pub(crate) const fn ib(self) -> Line {
        self.imm(Imm::B1)
    }

    /// Needs `set` (for VEX: at 128 bits).
    pub(crate) const fn set(self, set: u8) -> Line {
        Line { set, ..self }
    }

    pub(crate) const fn lock(self) -> Line {
        self.with(flag::LOCK)
    }

    pub(crate) const fn memory_only(self) -> Line {
        self.with(flag::MEMORY_ONLY)
    }

    /// VEX: 128 bits only.
    pub(crate) const fn l0(self) -> Line {
        Line { wide: NO_WIDE, ..self }
    }

    /// VEX: 256 bits only, needs `wide`.
    pub(crate) const fn l1(self, wide: u8) -> Line {
        Line { wide, ..self }.with(flag::L_ONE)
    }

    /// VEX integer operation: 256 bits need AVX2.
    pub(crate) const fn int(self) -> Line {
        self.sets(AVX, AVX2)
    }

    /// VEX: needs `set` at 128 bits, `wide` at 256.
    pub(crate) const fn sets(self, set: u8, wide: u8) -> Line {
        Line { set, wide, ..self }
    }

    pub(crate) const fn value(self, value: Value) -> Line {
        Line { value, ..self }
    }

    /// A 32-bit result is zero-extended.
    pub(crate) const fn extended(self) -> Line {
        self.value(Value::Extended)
    }

    pub(crate) const fn w1(self) -> Line {
        self.with(flag::W_ONE)
    }

    /// As it goes into a map at `opcode`, or into a group.
    pub(crate) const fn seal(self, opcode: usize) -> Line {
        Line { quick: Quick::of(&self, opcode), ..self }
    }
}
