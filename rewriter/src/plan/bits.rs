//! Bit strings in memory: `bt`, `bts`, `btr`, `btc` with the bit's number in a register, which may lie in any word around the operand (SDM 3.1.1.9).

use super::{Planned, Planner, encode, ok};
use crate::body::Node;
use iced_x86::{Code, Instruction, MemoryOperand, OpKind, Register, RflagsBits};

/// Forms on a register instead of memory, by the forms on memory: operation, bits of a word, whether it writes.
const FORMS: [(Code, u32, bool); 12] = [
    (Code::Bt_rm16_r16, 16, false),
    (Code::Bt_rm32_r32, 32, false),
    (Code::Bt_rm64_r64, 64, false),
    (Code::Bts_rm16_r16, 16, true),
    (Code::Bts_rm32_r32, 32, true),
    (Code::Bts_rm64_r64, 64, true),
    (Code::Btr_rm16_r16, 16, true),
    (Code::Btr_rm32_r32, 32, true),
    (Code::Btr_rm64_r64, 64, true),
    (Code::Btc_rm16_r16, 16, true),
    (Code::Btc_rm32_r32, 32, true),
    (Code::Btc_rm64_r64, 64, true),
];

impl Planner<'_> {
    /// Plans `bt*` on a bit string in memory; false for anything else. The word with the bit is loaded, worked on and stored; a lock prefix
    /// means nothing, as one call at a time is inside a window.
    pub(crate) fn bit_string(&mut self, id: u32, node: &Node) -> Planned<bool> {
        let insn = &node.insn;
        let Some(&(code, bits, writes)) = FORMS.iter().find(|(code, ..)| *code == insn.code()) else { return Ok(false) };
        if insn.op0_kind() != OpKind::Memory {
            return Ok(false);
        }
        let refused = |why: &str| Err(("unsupported-instruction", format!("`{insn}` {why}")));
        if u32::from(self.live.after[id as usize].flags) & !RflagsBits::CF != 0 {
            return refused("with flags that it leaves alone still in use");
        }
        if insn.segment_prefix() != Register::None || insn.memory_base().is_gpr32() || insn.memory_index().is_gpr32() {
            return refused("with a segment or a 32-bit address");
        }
        let address = self.borrow(id, insn, &[]);
        let word = self.borrow(id, insn, &[address.register]);
        self.keep(address, 0)?;
        self.keep(word, 1)?;
        self.lea(id, &Node { insn: ok(address_of(insn, address.register))?, ..node.clone() })?;
        self.note("bit string: the word with the bit, found first");
        let (place, word_part) = (address.register, sized(word.register, bits));
        let number = insn.op1_register();
        let widen = match bits {
            16 => Code::Movsx_r64_rm16,
            32 => Code::Movsxd_r64_rm32,
            _ => Code::Mov_r64_rm64,
        };
        let (load, store) = match bits {
            16 => (Code::Mov_r16_rm16, Code::Mov_rm16_r16),
            32 => (Code::Mov_r32_rm32, Code::Mov_rm32_r32),
            _ => (Code::Mov_r64_rm64, Code::Mov_rm64_r64),
        };
        let mut steps = vec![
            Instruction::with2(widen, word.register, number),
            Instruction::with2(Code::Sar_rm64_imm8, word.register, bits.trailing_zeros()),
            Instruction::with2(Code::Lea_r64_m, place, MemoryOperand::with_base_index_scale(place, word.register, bits / 8)),
            Instruction::with2(load, word_part, encode::window(place, 0)),
            Instruction::with2(code, word_part, number),
        ];
        if writes {
            steps.push(Instruction::with2(store, encode::window(place, 0), word_part));
        }
        for step in steps {
            let bytes = ok(step.and_then(|step| encode::encode(&step)))?;
            self.bytes(bytes);
        }
        self.give_back(word, 1)?;
        self.give_back(address, 0)?;
        Ok(true)
    }
}

/// `lea` of the memory operand of `insn` into `to`, in its place.
fn address_of(insn: &Instruction, to: Register) -> Result<Instruction, iced_x86::IcedError> {
    let mut lea = Instruction::with2(Code::Lea_r64_m, to, encode::window(Register::None, 0))?;
    super::branch::copy_memory(insn, &mut lea);
    lea.set_memory_displacement64(insn.memory_displacement64());
    lea.set_memory_displ_size(insn.memory_displ_size());
    lea.set_len(insn.len());
    lea.set_ip(insn.ip());
    Ok(lea)
}

/// The part of `register` that has `bits` bits.
fn sized(register: Register, bits: u32) -> Register {
    let number = register.number() as u32;
    match bits {
        16 => Register::AX + number,
        32 => Register::EAX + number,
        _ => register,
    }
}
