//! Table and import units (SPEC "Fused units", R18 to R20) judged a second time: every byte of each is given all values, and straight-line text
//! around it is followed by iced-x86's reading and the second implementation of R4 to R9.

#[path = "oracle/refused.rs"]
mod refused;
#[path = "oracle/spec.rs"]
mod spec;

use cordon_checker::{Mode, Policy, sample};
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, OpKind, Register};

/// The sample layout's tables: MASK and place, and the depth in slots (all pushed) of the second.
const MAIN: (u32, u32) = (0x78, 0x1_0000);
const SUB: (u32, u32) = (0x18, 0x1_0080);
const SUB_DEPTH: usize = 2;
const IMPORTS: [u32; 2] = [0x1_0008, 0x1_0010];

fn decode(text: &[u8]) -> Instruction {
    Decoder::with_ip(64, text, 0, DecoderOptions::NONE).decode()
}

/// `and $mask,%r32; call|jmp *%gs:disp(%r64)` at the start of `text`: mask, displacement, whether it calls, length.
fn unit(text: &[u8]) -> Option<(u32, u32, bool, usize)> {
    let first = decode(text);
    let mask = match first.code() {
        Code::And_rm32_imm8 if first.immediate8() < 0x80 => u32::from(first.immediate8()),
        Code::And_rm32_imm32 if first.immediate32() >= 0x80 => first.immediate32(),
        _ => return None,
    };
    let second = decode(&text[first.len()..]);
    let calls = second.code() == Code::Call_rm64;
    let register = first.op0_kind() == OpKind::Register && first.op0_register().full_register() == second.memory_base();
    let memory =
        second.op0_kind() == OpKind::Memory && second.memory_index() == Register::None && second.memory_index_scale() == 1;
    let form = second.segment_prefix() == Register::GS && second.memory_displ_size() != 1 && !second.has_repne_prefix();
    let mut encoder = Encoder::new(64);
    let canonical = [(&first, 0), (&second, first.len())]
        .iter()
        .all(|(instruction, at)| spec::canonical(instruction, &text[*at..at + instruction.len()], &mut encoder).is_ok());
    let known = calls || second.code() == Code::Jmp_rm64;
    let unit = register && memory && form && known && canonical && first.op0_register() != Register::ESP;
    unit.then(|| (mask, second.memory_displacement32(), calls, first.len() + second.len()))
}

/// Whether straight-line text is right; `None` if it is more than this test follows (branches, depths by arithmetic).
fn reference(text: &[u8]) -> Option<bool> {
    let (mut at, mut depth, mut falls) = (0, 0, false);
    let mut encoder = Encoder::new(64);
    while at < text.len() {
        if !falls {
            depth = if at == 0 { depth } else { 0 };
        }
        let rest = &text[at..];
        if let Some((mask, disp, calls, len)) = unit(rest) {
            let right = match (mask, disp) {
                MAIN => calls || depth == 0,
                SUB => !calls && depth == SUB_DEPTH,
                _ => false,
            };
            if !right {
                return Some(false);
            }
            (at, falls) = (at + len, calls);
            continue;
        }
        let Ok(len) = spec::verdict(rest, Mode::default(), &mut encoder) else { return Some(false) };
        let instruction = decode(rest);
        let import = IMPORTS.contains(&instruction.memory_displacement32());
        let (right, goes_on) = match instruction.code() {
            Code::Push_r64 => {
                depth += 1;
                (true, true)
            }
            Code::Pop_r64 => {
                let right = depth > 0;
                depth = depth.saturating_sub(1);
                (right, true)
            }
            Code::Retnq => (depth == 0, false),
            Code::Ud2 => (true, false),
            Code::Call_rm64 => (import, true),
            Code::Jmp_rm64 => (import && depth == 0, false),
            _ if instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near() || instruction.is_call_near() => {
                return None;
            }
            _ if matches!(instruction.op0_register(), Register::RSP) || instruction.mnemonic() == iced_x86::Mnemonic::Nop => {
                return None;
            }
            _ => (true, true),
        };
        if !right {
            return Some(false);
        }
        (at, falls) = (at + len, goes_on);
    }
    Some(!falls)
}

/// Units with every register, in front of what ends the text at their depth.
fn texts() -> Vec<Vec<u8>> {
    let mut texts = Vec::new();
    for register in (0..16_u8).filter(|register| *register != 4) {
        let (rex, low): (&[u8], u8) = (if register < 8 { &[] } else { &[0x41] }, register & 7);
        let sib: &[u8] = if low == 4 { &[0x24] } else { &[] };
        let unit = |mask: u8, kind: u8, disp: u8| {
            [rex, &[0x83, 0xe0 | low, mask, 0x65], rex, &[0xff, kind | low], sib, &[disp, 0, 1, 0]].concat()
        };
        texts.push([&unit(0x78, 0x90, 0)[..], &[0xc3]].concat());
        texts.push(unit(0x78, 0xa0, 0));
        texts.push([&[0x50, 0x53], &unit(0x18, 0xa0, 0x80)[..]].concat());
        texts.push([&[0x50, 0x53], &unit(0x78, 0x90, 0)[..], &[0x5b, 0x58, 0xc3]].concat());
    }
    texts.push(vec![0x65, 0xff, 0x14, 0x25, 8, 0, 1, 0, 0xc3]);
    texts.push(vec![0x65, 0xff, 0x24, 0x25, 0x10, 0, 1, 0]);
    texts.push(vec![0x50, 0x65, 0xff, 0x14, 0x25, 8, 0, 1, 0, 0x58, 0xc3]);
    texts
}

#[test]
fn every_byte_of_a_unit_counts() {
    let (mut judged, mut accepted, mut beyond) = (0, 0, 0);
    for text in texts() {
        assert_eq!(reference(&text), Some(true), "{text:02x?}");
        for at in 0..text.len() {
            for value in 0..=255 {
                let mut mutant = text.clone();
                mutant[at] = value;
                let ours = sample::judge(&mutant, &Policy::USER, &sample::user()).is_ok();
                match reference(&mutant) {
                    Some(theirs) => assert_eq!(ours, theirs, "{mutant:02x?}"),
                    None => beyond += 1,
                }
                judged += 1;
                accepted += u32::from(ours);
            }
        }
    }
    assert!(accepted > 500 && beyond < judged / 10, "{judged} judged, {accepted} accepted, {beyond} beyond");
}
