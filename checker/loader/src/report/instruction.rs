//! Text of an instruction, in AT&T syntax. For reports only: nothing here decides anything.

use iced_x86::{Decoder, DecoderOptions, Formatter as _, GasFormatter};

/// The instruction at the start of `bytes`, at address `ip`; `None` if it is none.
pub fn text(bytes: &[u8], ip: u64) -> Option<String> {
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let mut formatter = GasFormatter::new();
    let options = formatter.options_mut();
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(false);
    options.set_small_hex_numbers_in_decimal(true);
    options.set_gas_show_mnemonic_size_suffix(false);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    let mut text = String::new();
    formatter.format(&instruction, &mut text);
    Some(text)
}
