//! Disassembly for people: iced-x86 in AT&T syntax. Nothing here decides anything.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter as _, GasFormatter, Instruction};
use std::fmt::Write as _;

/// A named range of text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Text offsets, end exclusive.
    pub start: u32,
    pub end: u32,
    pub name: String,
}

/// The function that covers `offset`; `functions` ascends by start.
pub fn covering(functions: &[Function], offset: u32) -> Option<&Function> {
    let next = functions.partition_point(|f| f.start <= offset);
    functions[..next].iter().rev().find(|f| offset < f.end)
}

/// Turns instructions into text.
pub struct Printer<'a> {
    formatter: GasFormatter,
    functions: &'a [Function],
}

impl<'a> Printer<'a> {
    /// A printer that names the targets of branches after `functions` (ascending by start).
    pub fn new(functions: &'a [Function]) -> Printer<'a> {
        Printer { formatter: cordon_loader::instruction_formatter(), functions }
    }

    /// One instruction.
    pub fn print_bare(&mut self, instruction: &Instruction) -> String {
        if instruction.is_invalid() {
            return "(bad)".into();
        }
        let mut text = String::new();
        self.formatter.format(instruction, &mut text);
        text
    }

    /// One instruction, with the name of the function that it branches to.
    pub fn print(&mut self, instruction: &Instruction) -> String {
        let mut text = self.print_bare(instruction);
        let direct = matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        );
        if direct
            && let Ok(target) = u32::try_from(instruction.near_branch_target())
            && let Some(function) = covering(self.functions, target)
        {
            let _ = match target - function.start {
                0 => write!(text, " <{}>", function.name),
                inside => write!(text, " <{}+{inside:#x}>", function.name),
            };
        }
        text
    }

    /// Every instruction of `bytes`, the first at address `start`.
    pub fn sequence(&mut self, bytes: &[u8], start: u64) -> Vec<(u64, String)> {
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let mut lines = Vec::new();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            lines.push((instruction.ip(), self.print(&instruction)));
        }
        lines
    }
}

/// Instructions before and after the offender in a listing.
const AROUND: usize = 5;

/// The instructions around text offset `offset`, an arrow at the offender. Decoding starts at the function's (or the text's) start,
/// and again at `offset`, whatever the instructions before make of it.
pub fn listing(text: &[u8], functions: &[Function], offset: u32) -> String {
    let here = (offset as usize).min(text.len());
    let start = covering(functions, offset).map_or(0, |f| f.start as usize).min(here);
    let mut printer = Printer::new(functions);
    let mut lines = Vec::new();
    let before = boundaries(&text[start..here], start);
    for &(at, end) in &before[before.len().saturating_sub(AROUND)..] {
        lines.push(line(&mut printer, text, at, end, false));
    }
    let after = &text[here..text.len().min(here + 15 * (AROUND + 1))];
    for (i, &(at, end)) in boundaries(after, here).iter().take(AROUND + 1).enumerate() {
        lines.push(line(&mut printer, text, at, end, i == 0));
    }
    if lines.is_empty() || here == text.len() {
        lines.push(format!("=> {here:#8x}  (end of the text)"));
    }
    lines.join("\n")
}

/// Start and end of each instruction of `bytes`, the first at `base`; an instruction that is cut off ends with the bytes.
fn boundaries(bytes: &[u8], base: usize) -> Vec<(usize, usize)> {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let mut found = Vec::new();
    while decoder.can_decode() {
        let at = decoder.position();
        let length = decoder.decode().len().max(1);
        let end = (at + length).min(bytes.len());
        found.push((base + at, base + end));
        if decoder.set_position(end).is_err() {
            break;
        }
    }
    found
}

fn line(printer: &mut Printer<'_>, text: &[u8], at: usize, end: usize, arrow: bool) -> String {
    let bytes = &text[at..end];
    let hex: String = bytes.iter().map(|b| format!("{b:02x} ")).collect();
    let shown = printer.sequence(bytes, at as u64).into_iter().next().map_or_else(|| "(bad)".into(), |(_, s)| s);
    format!("{} {at:#8x}  {hex:<36}{shown}", if arrow { "=>" } else { "  " })
}

#[cfg(test)]
mod tests {
    use super::{Function, covering, listing};

    fn functions() -> Vec<Function> {
        vec![
            Function { start: 0, end: 4, name: "a".into() },
            Function { start: 4, end: 12, name: "b".into() },
            Function { start: 16, end: 17, name: "c".into() },
        ]
    }

    #[test]
    fn offsets_belong_to_the_function_around_them() {
        let name = |o| covering(&functions(), o).map(|f| f.name.clone());
        assert_eq!((name(0).as_deref(), name(3).as_deref(), name(4).as_deref()), (Some("a"), Some("a"), Some("b")));
        assert_eq!((name(12), name(15), name(16).as_deref(), name(17)), (None, None, Some("c"), None));
    }

    #[test]
    fn listings_point_at_the_offender_even_inside_an_instruction() {
        // nop; nop; nop; nop; mov $0x90909090,%eax; syscall; ret
        let text = [0x90, 0x90, 0x90, 0x90, 0xb8, 0x90, 0x90, 0x90, 0x90, 0x0f, 0x05, 0xc3];
        let shown = listing(&text, &functions(), 9);
        let arrows: Vec<&str> = shown.lines().filter(|l| l.starts_with("=>")).collect();
        assert_eq!(arrows.len(), 1, "{shown}");
        assert!(arrows[0].contains("0x9") && arrows[0].contains("syscall"), "{shown}");
        assert!(listing(&text, &functions(), 6).lines().any(|l| l.starts_with("=>") && l.contains("nop")));
        assert!(listing(&text, &functions(), 12).contains("end of the text"));
        assert!(listing(&text, &functions(), u32::MAX).contains("end of the text"));
        assert!(listing(&[], &[], 0).contains("end of the text"));
        // An instruction that the end cuts off.
        assert!(listing(&text[..7], &[], 4).contains("=>"));
    }
}
