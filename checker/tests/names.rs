//! The mnemonics in the table's rows are what iced-x86 calls the encodings.

use cordon_checker::describe;
use cordon_checker::policy::Host;
use iced_x86::{Decoder, DecoderOptions};

/// A row `[prefixes:] opcode[..=opcode] => line, "names";` of a map.
struct Row<'a> {
    columns: Vec<usize>,
    opcodes: std::ops::RangeInclusive<u8>,
    names: &'a str,
}

fn rows(source: &str) -> Vec<Row<'_>> {
    let opcode = |text: &str| u8::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    let parse = |line: &'_ str| -> Option<(Vec<usize>, std::ops::RangeInclusive<u8>)> {
        let (head, _) = line.trim().split_once(" => ")?;
        let (columns, range) = head.split_once(": ").unwrap_or(("NP", head));
        let columns =
            columns.split('|').map(|name| ["NP", "P66", "PF3", "PF2"].iter().position(|c| c == &name)).collect::<Option<_>>()?;
        let (first, last) = range.split_once("..=").unwrap_or((range, range));
        Some((columns, opcode(first)?..=opcode(last)?))
    };
    let named = source.lines().filter(|line| line.ends_with("\";") && line.trim().contains("0x"));
    named
        .filter_map(|line| {
            let (columns, opcodes) = parse(line)?;
            Some(Row { columns, opcodes, names: line.rsplit('"').nth(1)? })
        })
        .collect()
}

fn matches(names: &str, mnemonic: &str) -> bool {
    names.split('|').any(|name| match name.split_once('*') {
        Some((front, back)) => mnemonic.starts_with(front) && mnemonic.ends_with(back),
        None => mnemonic == name,
    })
}

/// Compares all accepted encodings of the row's opcodes in a few ModRM forms; gives how many there were.
fn compare(row: &Row<'_>, encode: impl Fn(usize, u8, bool) -> Vec<Vec<u8>>) -> usize {
    let mut compared = 0;
    for &column in &row.columns {
        for opcode in row.opcodes.clone() {
            for (memory, modrm) in [(true, 0x01), (true, 0x29), (false, 0xc1), (false, 0xd9)] {
                for mut bytes in encode(column, opcode, memory) {
                    bytes.push(modrm);
                    bytes.resize(24, 0x10);
                    if describe(&bytes, Host::User).is_err() {
                        continue;
                    }
                    let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
                    let mnemonic = format!("{:?}", instruction.mnemonic()).to_lowercase();
                    assert!(matches(row.names, &mnemonic), "{column} {opcode:02x} is {mnemonic}, not {}", row.names);
                    compared += 1;
                }
            }
        }
    }
    compared
}

const MANDATORY: [&[u8]; 4] = [&[], &[0x66], &[0xf3], &[0xf2]];

fn legacy(map: &[u8], column: usize, opcode: u8, memory: bool) -> Vec<Vec<u8>> {
    let window: &[u8] = if memory { &[0x65, 0x67] } else { &[] };
    let rexes: [&[u8]; 2] = [&[], &[0x48]];
    rexes.iter().map(|rex| [window, MANDATORY[column], rex, map, &[opcode]].concat()).collect()
}

fn vex(map: u8, column: usize, opcode: u8, memory: bool) -> Vec<Vec<u8>> {
    let window: &[u8] = if memory { &[0x65, 0x67] } else { &[] };
    let mut all = Vec::new();
    for fields in [0x78, 0x7c, 0x70, 0x74, 0xf8, 0xfc, 0xf0, 0xf4] {
        let fields = fields | u8::try_from(column).expect("a column");
        all.push([window, &[0xc4, 0xe0 | map, fields, opcode]].concat());
        if map == 1 && fields & 0x80 == 0 {
            all.push([window, &[0xc5, fields | 0x80, opcode]].concat());
        }
    }
    all
}

#[test]
fn rows_are_named_as_iced_names_them() {
    let mut compared = 0;
    for (source, map) in [
        (include_str!("../src/table/one_byte.rs"), &[][..]),
        (include_str!("../src/table/map_0f.rs"), &[0x0f]),
        (include_str!("../src/table/map_0f38.rs"), &[0x0f, 0x38]),
        (include_str!("../src/table/map_0f3a.rs"), &[0x0f, 0x3a]),
    ] {
        for row in rows(source).iter().filter(|row| !row.names.is_empty()) {
            compared += compare(row, |column, opcode, memory| legacy(map, column, opcode, memory));
        }
    }
    for (source, map) in [
        (include_str!("../src/table/vex_0f.rs"), 1),
        (include_str!("../src/table/vex_0f38.rs"), 2),
        (include_str!("../src/table/vex_0f3a.rs"), 3),
    ] {
        for row in rows(source).iter().filter(|row| !row.names.is_empty()) {
            compared += compare(row, |column, opcode, memory| vex(map, column, opcode, memory));
        }
    }
    assert!(compared > 2_000, "{compared} compared");
}
