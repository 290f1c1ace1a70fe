//! `setjmp` and `longjmp`: references to them become two imports that the loader provides, whoever defines them in an archive.
//!
//! The C library's own would read and set the stack pointer and a return address. The loader's save the callee-saved registers, and put back
//! what is below: rsp, by proof, and where to go on. Two more things belong to the caller's state and lie in memory that the record does not
//! have, so calls of setjmp hand them over in registers and take them back each time setjmp returns:
//!
//! * the arena word (`dynamic.rs`), in eax; back in the upper half of rax;
//! * the value of r14 where r14 counts and the function has it in its frame (`count.rs`), in rdx.

use crate::plan::{Planned, Planner, encode, ok};
use iced_x86::{Code, Instruction, Register};

/// The import behind every setjmp.
pub const SETJMP: &str = "cordon.setjmp";
/// The import behind every longjmp.
pub const LONGJMP: &str = "cordon.longjmp";

/// Names of setjmp in C libraries. The signal mask is not saved: no signal is ever delivered.
const SETJMP_NAMES: [&str; 5] = ["setjmp", "_setjmp", "__setjmp", "sigsetjmp", "__sigsetjmp"];
/// Names of longjmp.
const LONGJMP_NAMES: [&str; 4] = ["longjmp", "_longjmp", "siglongjmp", "__longjmp_chk"];

/// Every name of setjmp and longjmp.
pub fn names() -> impl Iterator<Item = &'static str> {
    SETJMP_NAMES.into_iter().chain(LONGJMP_NAMES)
}

/// The import that `name` stands for, if it is a name of setjmp or longjmp.
#[must_use]
pub fn import(name: &str) -> Option<&'static str> {
    if SETJMP_NAMES.contains(&name) {
        Some(SETJMP)
    } else if LONGJMP_NAMES.contains(&name) {
        Some(LONGJMP)
    } else {
        None
    }
}

/// Whether an undefined function `name` is longjmp, which does not return.
#[must_use]
pub fn is_longjmp(name: &str) -> bool {
    import(name) == Some(LONGJMP)
}

impl Planner<'_> {
    /// In front of the call of setjmp at node `id`: eax = the arena word, or 0 (rax is then what setjmp gives, nothing above it).
    pub(crate) fn before_setjmp(&mut self, id: u32) -> Planned<()> {
        let arena = if self.env.chosen.uses_arena {
            ok(encode::load(Register::EAX, Register::None, self.env.space.arena_word.cast_signed()))?
        } else {
            ok(encode::set(Register::EAX, 0))?
        };
        self.bytes(arena);
        if let Some(at) = self.evicted_place(id) {
            let value = ok(encode::load(Register::RDX, Register::RSP, at))?;
            self.bytes(value);
        }
        Ok(())
    }

    /// Behind that call, for its first return and every later one.
    pub(crate) fn after_setjmp(&mut self, id: u32) -> Planned<()> {
        self.note("setjmp: the loader's; what it does not save is handed over in rax and rdx");
        if let Some(at) = self.evicted_place(id) {
            let value = ok(encode::store(Register::RDX, Register::RSP, at))?;
            self.bytes(value);
        }
        if !self.env.chosen.uses_arena {
            return Ok(());
        }
        for code in [
            Instruction::with2(Code::Mov_rm64_r64, Register::RCX, Register::RAX).and_then(|i| encode::encode(&i)),
            Instruction::with2(Code::Shr_rm64_imm8, Register::RCX, 32).and_then(|i| encode::encode(&i)),
            encode::store(Register::ECX, Register::None, self.env.space.arena_word.cast_signed()),
            Instruction::with2(Code::Mov_rm32_r32, Register::EAX, Register::EAX).and_then(|i| encode::encode(&i)),
        ] {
            let code = ok(code)?;
            self.bytes(code);
        }
        Ok(())
    }

    /// Where the value of r14 lies at node `id` that the function keeps in its frame, as displacement from esp.
    fn evicted_place(&self, id: u32) -> Option<i32> {
        let slot = self.body.evicted.as_ref()?.slot(id)?;
        Some(self.k() + self.body.nodes[id as usize].state.depth + slot)
    }
}
