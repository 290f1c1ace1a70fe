//! Numbers on the command line: decimal or `0x…`; sizes also with a unit.

/// Parses a decimal or hexadecimal (`0x`) number; a leading `-` gives the two's complement.
///
/// # Errors
/// A text for people if it is not such a number or does not fit 64 bits.
pub fn parse_number(text: &str) -> Result<u64, String> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let unsigned_digits = hex.unwrap_or(digits);
    if unsigned_digits.is_empty() || !unsigned_digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err("expected a decimal or 0x… number".into());
    }
    let value = u64::from_str_radix(unsigned_digits, if hex.is_some() { 16 } else { 10 })
        .map_err(|_| "expected a decimal or 0x… number of at most 64 bits".to_owned())?;
    match negative {
        false => Ok(value),
        true if value <= 1 << 63 => Ok(value.wrapping_neg()),
        true => Err("below the least signed 64-bit number".into()),
    }
}

/// Parses a size in bytes: a number, or a decimal one followed by `K`, `M` or `G` (powers of 1024).
///
/// # Errors
/// A text for people if it is not such a size or is 2 GiB or more (handler memory ends there).
pub fn parse_size(text: &str) -> Result<u32, String> {
    let unit = |c| match c {
        'K' | 'k' => Some(10),
        'M' | 'm' => Some(20),
        'G' | 'g' => Some(30),
        _ => None,
    };
    let (digits, shift) = match text.chars().last().and_then(unit) {
        Some(shift) if !text.starts_with("0x") => (&text[..text.len() - 1], shift),
        _ => (text, 0),
    };
    if digits.starts_with('-') {
        return Err("a size cannot be negative".into());
    }
    let value = parse_number(digits).map_err(|_| "expected a size such as 65536, 0x10000, 64K or 16M".to_owned())?;
    value
        .checked_mul(1 << shift)
        .filter(|&bytes| bytes < 1 << 31)
        .and_then(|bytes| u32::try_from(bytes).ok())
        .ok_or_else(|| "a size must be less than 2G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{parse_number, parse_size};

    #[test]
    fn numbers_are_decimal_hexadecimal_or_negative() {
        assert_eq!(parse_number("42"), Ok(42));
        assert_eq!(parse_number("0xffffffffffffffff"), Ok(u64::MAX));
        assert_eq!(parse_number("-1"), Ok(u64::MAX));
        assert_eq!(parse_number("-0x8000000000000000"), Ok(1 << 63));
        for wrong in ["", "-", "0x", "1x", "12K", "+5", "0x+5", "--1", "18446744073709551616", "-9223372036854775809"] {
            assert!(parse_number(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_take_units_and_end_below_two_gigabytes() {
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("16m"), Ok(16 << 20));
        assert_eq!(parse_size("0x10000"), Ok(0x10000));
        assert_eq!(parse_size("2147483647"), Ok(i32::MAX.cast_unsigned()));
        for wrong in ["2G", "2147483648", "K", "-1", "-1K", "0x1G", "1T", "18446744073709551615G", "1é"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
    }
}
