//! What the checker answers.

use crate::policy::Features;

/// Why and where text was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Byte offset into the text: the first byte of the offending instruction or unit, or the bad target where [`Rule`] says so.
    pub offset: u32,
    pub rule: Rule,
}

impl Reject {
    pub(crate) const fn at(offset: u32, rule: Rule) -> Reject {
        Reject { offset, rule }
    }
}

impl core::fmt::Display for Reject {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "offset {:#x}: R{} {}", self.offset, self.rule.number(), self.rule)
    }
}

impl core::error::Error for Reject {}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// The violated rule; variant `X` is the numbered rule of SPEC.md that [`Rule::number`] gives.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// Every rule, lowest number first.
            pub const ALL: &'static [Rule] = &[$(Rule::$name),*];

            /// Number in SPEC.md (R1 is 1).
            #[must_use]
            pub const fn number(self) -> u8 {
                match self { $(Rule::$name => $number,)* }
            }

            /// The variant's name, for reports that machines read.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Rule::$name => stringify!($name),)* }
            }

            /// One sentence for a person.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Rule::$name => $text,)* }
            }
        }
    };
}

rules! {
    /// Text length is 0 or above [`crate::TEXT_LIMIT`].
    TextLength = 1, "the text is empty or longer than the limit";
    /// Fewer than [`crate::scratch_len`] scratch words.
    ScratchLength = 2, "the scratch buffer is too short";
    /// [`crate::Layout::validate`] refused the layout (call it for the reason).
    Layout = 3, "the layout is not valid for this policy";
    /// The bytes are no instruction of the allow-list.
    NotListed = 4, "not an instruction of the allow-list";
    /// A listed instruction, but not in its one encoding: prefix order or repetition, a prefix, REX, VEX or SIB bit without effect.
    NotCanonical = 5, "not the canonical encoding";
    /// The text ends inside the instruction.
    Truncated = 6, "the text ends inside this instruction";
    /// A memory operand that is not a window operand (segment, address size, rip, bare displacement).
    MemoryForm = 7, "the memory operand is not a window operand";
    /// rsp, esp, sp or spl outside the listed forms.
    StackPointer = 8, "names the stack pointer outside the listed forms";
    /// An extension that the policy does not allow.
    Feature = 9, "uses an instruction-set extension that the policy does not allow";
    /// A depth below 0, above D, or not a multiple of 8.
    DepthRange = 10, "leaves the stack depths 0 to D or is not a multiple of 8";
    /// `pop` of a slot that was not pushed on every path.
    PopUnwritten = 11, "pops a slot that was not pushed on every path";
    /// `ret` at depth other than 0.
    RetDepth = 12, "returns at a depth other than 0";
    /// A direct branch or call leaves the text.
    TargetOutside = 13, "branches outside the text";
    /// A branch, call, slot or entry goes into the middle of an instruction or unit. The offset is the target's, or that of the
    /// branch if it goes backward.
    TargetNotStart = 14, "is a target but not the start of an instruction";
    /// Two ways to the same place disagree about the depth. The offset is the branch's, or the label's for a fall-through, slot or entry.
    DepthMismatch = 15, "paths that meet disagree about the stack depth";
    /// A backward branch lacks pushed slots that its target counts on.
    SetMismatch = 16, "branches back without slots that the target counts as pushed";
    /// A hint that does not follow an end of flow, or names an impossible state; in metered text also one that a forward edge leads to.
    Hint = 17, "a state hint in a wrong place or with an impossible state";
    /// A table call or jump whose mask and displacement are no listed table (or a call through a sub-table).
    Table = 18, "a table call or jump that names no listed table";
    /// A table or import jump at a depth other than the table's, or without slots that the table counts as pushed.
    TableState = 19, "a table or import jump in a state that its targets do not expect";
    /// An import call or jump whose slot is not a listed import.
    Import = 20, "calls a slot that is not a listed import";
    /// The last instruction lets control run off the end. The offset is that instruction's.
    RunsOff = 21, "control runs off the end of the text";
    /// An entry or slot lies outside the text. The offset is the one the layout gives.
    SlotOutside = 22, "an entry or table slot lies outside the text";
    /// Kernel: a call target, slot or entry without LIMIT, or LIMIT with a wrong constant or target.
    Limit = 23, "a function entry without the stack limit check, or a malformed one";
    /// Kernel: a slot or entry that does not begin with `endbr64`.
    Endbr = 24, "an indirect target does not begin with endbr64";
    /// Match mode: a window operand whose address is neither known nor checked to be below the limit.
    UncheckedAccess = 25, "an address that is neither checked nor known to be in range";
    /// A forget record at a place where no instruction starts. The offset is the record's.
    BadForget = 26, "a forget record at a place that is no instruction";
    /// Metered text: something else than METER writes r14.
    CountWritten = 27, "writes the count in r14";
    /// Metered text: `sub` from r14 that is no METER: its constant, the jump behind it, or what that leads to.
    Meter = 28, "a malformed charge to the count in r14";
    /// Metered text: an instruction that a path reaches without having paid for it, or a branch back that brings too little.
    Unpaid = 29, "an instruction that is not paid for on every path";
    /// Match mode: a backward branch that lacks knowledge of registers which its target counts on.
    FactMismatch = 30, "branches back without what the target counts on in registers";
}

impl core::fmt::Display for Rule {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

/// What a loader needs to know of accepted text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Extensions that the text uses; the loader refuses what CPUID lacks.
    pub features: Features,
    /// Greatest static depth in bytes.
    pub max_depth: u32,
    /// Number of instruction starts (a fused unit counts once).
    pub instructions: u32,
}
