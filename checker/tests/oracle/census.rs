//! One pass over enumerated encodings: what the checker says of each, what SPEC.md says by iced-x86's reading ([`crate::spec`]), what Capstone
//! says ([`crate::second`]), and the accepted set by iced-x86's codes.

use crate::collapsed::{Collapse, on_all_processors};
use crate::explained::explanation;
use crate::second::{Second, Seen};
use crate::spec;
use cordon_checker::policy::Host;
use cordon_checker::{Description, Features, Mode, describe_in};
use iced_x86::{Decoder, DecoderOptions, Encoder};
use std::collections::{BTreeMap, BTreeSet};

/// The accepted encodings of one code.
#[derive(Clone, Debug, Default)]
pub struct Form {
    pub count: u64,
    /// `r`, or bytes and access of the memory operand, with `lock` if it may have that.
    pub operands: BTreeSet<String>,
    /// General registers written besides those of its operands, and extensions.
    pub features: BTreeSet<String>,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Census {
    pub seen: Seen,
    /// Byte strings that the checker and the second implementation of SPEC.md judge differently, one of each kind.
    pub misjudged: BTreeMap<String, (u64, String)>,
    /// By number of the code.
    pub accepted: BTreeMap<usize, Form>,
}

impl Census {
    /// Judges everything that `collapse` enumerates with each of the fills.
    pub fn take(collapse: Collapse, fills: &[u8], mode: Mode) -> Census {
        let parts = on_all_processors(|worker, workers| {
            let (second, mut encoder, mut census) = (Second::new(), Encoder::new(64), Census::default());
            for &fill in fills {
                collapse.visit(fill, worker, workers, |bytes| census.judge(bytes, mode, &second, &mut encoder));
            }
            census
        });
        let mut census = Census::default();
        parts.into_iter().for_each(|part| census.add(part));
        census
    }

    fn judge(&mut self, bytes: &[u8], mode: Mode, second: &Second, encoder: &mut Encoder) {
        let ours = describe_in(bytes, Host::User, mode);
        let theirs = spec::verdict(bytes, mode, encoder);
        self.seen.tried += 1;
        if ours.map(|description| description.len).ok() != theirs.ok() {
            let code = Decoder::new(64, bytes, DecoderOptions::NONE).decode().code();
            let kind = format!("{code:?}: {:?} against {theirs:?}", ours.map(|description| description.len));
            self.misjudged.entry(kind).or_insert_with(|| (0, format!("{:02x?}", &bytes[..15]))).0 += 1;
        }
        if let Ok(ours) = ours {
            self.seen.accepted += 1;
            self.list(bytes, &ours);
            for difference in second.differences(bytes, &ours) {
                let example = || (0, format!("{:02x?}", &bytes[..ours.len]));
                self.seen.differences.entry(difference).or_insert_with(example).0 += 1;
            }
        }
    }

    fn list(&mut self, bytes: &[u8], ours: &Description) {
        let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        let form = self.accepted.entry(instruction.code() as usize).or_default();
        form.count += 1;
        let lock = if instruction.has_lock_prefix() { " lock" } else { "" };
        form.operands.insert(match ours.memory {
            None => "r".to_owned(),
            Some(m) if m.prefetch => "prefetch".to_owned(),
            Some(m) => format!("m{}{}{}{lock}", m.bytes, if m.read { "r" } else { "" }, if m.write { "w" } else { "" }),
        });
        let names = Features::NAMES.iter().filter(|(feature, _)| ours.features.contains(*feature)).map(|(_, name)| *name);
        form.features.insert(names.collect::<Vec<_>>().join("+"));
    }

    pub fn add(&mut self, other: Census) {
        self.seen.add(other.seen);
        for (kind, (count, example)) in other.misjudged {
            self.misjudged.entry(kind).or_insert((0, example)).0 += count;
        }
        for (code, form) in other.accepted {
            let mine = self.accepted.entry(code).or_default();
            mine.count += form.count;
            mine.operands.extend(form.operands);
            mine.features.extend(form.features);
        }
    }

    /// Differences from Capstone that no line of the table explains.
    pub fn unexplained(&self) -> Vec<String> {
        let unexplained = self.seen.differences.iter().filter(|(difference, _)| explanation(difference).is_none());
        unexplained.map(|((mnemonic, what), (count, example))| format!("{mnemonic}: {what} ({count}): {example}")).collect()
    }
}
