//! Enumerates encodings: every prefix, map and opcode, and after each every ModRM and SIB.

use crate::oracle::{Oracle, Tally};

/// Everything in front of ModRM: prefixes, maps, opcode.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub bytes: [u8; 10],
    pub len: usize,
    /// Try all SIB bytes, not only those close to the form without base and index.
    pub all_sibs: bool,
}

impl Head {
    fn new(all_sibs: bool, parts: &[&[u8]]) -> Head {
        let mut head = Head { bytes: [0; 10], len: 0, all_sibs };
        for &byte in parts.iter().copied().flatten() {
            head.bytes[head.len] = byte;
            head.len += 1;
        }
        head
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// All heads with legacy prefixes: every subset in canonical order, every REX, the four maps.
pub fn legacy_heads() -> Vec<Head> {
    let mut heads = Vec::new();
    let optional = |byte: u8| [Vec::new(), vec![byte]];
    let rexes: Vec<Vec<u8>> = std::iter::once(Vec::new()).chain((0x40..=0x4f).map(|rex| vec![rex])).collect();
    for segment in [vec![], vec![0x65], vec![0x64]] {
        for short in optional(0x67) {
            for lock in optional(0xf0) {
                for opsize in optional(0x66) {
                    for rep in [vec![], vec![0xf3], vec![0xf2]] {
                        for rex in &rexes {
                            for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
                                for opcode in 0..=255 {
                                    heads.push(Head::new(true, &[&segment, &short, &lock, &opsize, &rep, rex, map, &[opcode]]));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    heads
}

/// All heads with a VEX prefix: both lengths, all register extensions, maps 0 to 4, all W, vvvv, L, pp.
pub fn vex_heads() -> Vec<Head> {
    let mut heads = Vec::new();
    for prefix in [&[0x65, 0x67][..], &[], &[0x65]] {
        // VEX has no instruction like `lea`, so only these two prefixes admit any base or index.
        let window = prefix.len() == 2;
        for opcode in 0..=255 {
            for fields in 0..=255 {
                heads.push(Head::new(window, &[prefix, &[0xc5, fields, opcode]]));
                for extensions in 0..8 {
                    for map in 1..=3 {
                        heads.push(Head::new(window, &[prefix, &[0xc4, extensions << 5 | map, fields, opcode]]));
                    }
                }
            }
        }
    }
    heads
}

/// All heads with the segment and without 67: the loads that [`cordon_checker::Protect::Stores`] leaves alone.
pub fn load_heads() -> Vec<Head> {
    let wide = |head: &Head| head.bytes[0] == 0x65 && head.bytes[1] != 0x67;
    let heads = legacy_heads().into_iter().chain(vex_heads()).filter(wide);
    heads.map(|head| Head { all_sibs: true, ..head }).collect()
}

/// Tries every ModRM and SIB after `head`, the rest of the bytes being `fill`.
pub fn sweep(oracle: &mut Oracle, head: &Head, fill: u8, tally: &mut Tally) {
    let mut bytes = [fill; 24];
    bytes[..head.len].copy_from_slice(head.as_slice());
    for modrm in 0..=255_u8 {
        bytes[head.len] = modrm;
        if modrm < 0xc0 && modrm & 7 == 4 {
            let close = |sib: &u8| sib & 7 == 5 || sib & 0x38 == 0x20;
            for sib in (0..=255_u8).filter(|sib| head.all_sibs || close(sib)) {
                bytes[head.len + 1] = sib;
                oracle.compare(&bytes, tally);
            }
            bytes[head.len + 1] = fill;
        } else {
            oracle.compare(&bytes, tally);
        }
    }
}
