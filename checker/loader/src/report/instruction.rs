//! Text of an instruction, in AT&T syntax. For reports only: nothing here decides anything.

use iced_x86::{Decoder, DecoderOptions, Formatter as _, GasFormatter};

/// How Cordon's reports and listings write instructions: AT&T syntax, lower-case hexadecimal, no size suffixes that operands imply.
#[must_use]
pub fn instruction_formatter() -> GasFormatter {
    let mut formatter = GasFormatter::new();
    let options = formatter.options_mut();
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(false);
    options.set_small_hex_numbers_in_decimal(true);
    options.set_gas_show_mnemonic_size_suffix(false);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    formatter
}

/// The instruction at the start of `bytes`, at address `ip`; `None` if it is none. `callee` is what a direct call or jump leads to: in an object
/// the field is mostly still empty.
pub fn text(bytes: &[u8], ip: u64, callee: Option<&str>) -> Option<String> {
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let mut formatter = instruction_formatter();
    let mut text = String::new();
    if let (true, Some(callee)) = (instruction.is_call_near() || instruction.is_jmp_short_or_near(), callee) {
        formatter.format_mnemonic(&instruction, &mut text);
        return Some(format!("{text} {callee}"));
    }
    formatter.format(&instruction, &mut text);
    Some(text)
}
