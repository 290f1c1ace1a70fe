//! Judges the cases of `golden/*.txt` and checks that the corpus covers every rule with a reject and each group with a near miss.

use cordon_checker::layout::{Forget, Slot};
use cordon_checker::note::NoteSpec;
use cordon_checker::{Features, Mode, Policy, Protect, Rule, sample};
use std::collections::BTreeSet;
use std::path::Path;

struct Case {
    place: String,
    expected: String,
    text: Vec<u8>,
    options: String,
}

fn parse(place: String, line: &str) -> Case {
    let parts: Vec<&str> = line.split('|').map(str::trim).collect();
    let byte = |hex: &str| u8::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("{place}: {hex} is no byte"));
    Case {
        expected: parts[0].to_owned(),
        text: parts[1].split_whitespace().map(byte).collect(),
        options: parts.get(3).copied().unwrap_or("").to_owned(),
        place,
    }
}

fn apply(options: &str, spec: &mut NoteSpec, policy: &mut Policy) {
    for option in options.split_whitespace() {
        let (name, value) = option.split_once('=').expect("options are name=value");
        let offset = || u32::from_str_radix(value, 16).expect("offsets are hex");
        match name {
            "entry" => spec.entries.push((offset(), "entry".into())),
            "slot" => spec.slots.push(Slot::Text(offset())),
            "sub" => spec.sub_tables[0].1.push(Slot::Text(offset())),
            "depth" => spec.max_depth = offset(),
            "mode" => spec.mode = mode(value),
            "demand" => policy.mode = mode(value),
            "forget" => {
                let (at, keep) = value.split_once(':').expect("forget=OFF:MASK");
                let hex = |digits| u32::from_str_radix(digits, 16).expect("hex");
                spec.forgets.push(Forget { offset: hex(at), keep: hex(keep) as u16 });
            }
            "without" => {
                let (feature, _) = Features::NAMES.iter().find(|(_, name)| *name == value).expect("a feature's name");
                policy.features.0 &= !feature.0;
            }
            _ => panic!("unknown option {name}"),
        }
    }
}

/// `match`, `metered` and `stores`, joined by `+`.
fn mode(names: &str) -> Mode {
    names.split('+').fold(Mode::default(), |mode, name| match name {
        "match" => Mode { matched: true, ..mode },
        "metered" => Mode { metered: true, ..mode },
        "stores" => Mode { protect: Protect::Stores, ..mode },
        "sandbox" => mode,
        _ => panic!("unknown mode {name}"),
    })
}

/// Judges a case of the file `file`, whose name begins with the host if that is the kernel, else perhaps with the mode.
fn verdict(case: &Case, file: &str) -> String {
    let kernel = file.starts_with("kernel");
    let (mut spec, mut policy) = if kernel { (sample::kernel(), Policy::KERNEL) } else { (sample::user(), Policy::USER) };
    if let Some(name) = ["match", "metered", "stores"].iter().find(|name| file.contains(*name)) {
        spec.mode = mode(name);
        // A claim that falls short of the policy's default.
        policy.mode.protect = spec.mode.protect;
    }
    apply(&case.options, &mut spec, &mut policy);
    match sample::judge(&case.text, &policy, &spec) {
        Ok(_) => "accept".to_owned(),
        Err(reject) => format!("{}@{:x}", reject.rule.name(), reject.offset),
    }
}

#[test]
fn every_case_gets_its_verdict() {
    let mut wrong = Vec::new();
    let mut rules = BTreeSet::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for entry in std::fs::read_dir(folder).expect("the corpus is there") {
        let path = entry.expect("a readable entry").path();
        if path.extension().is_none_or(|e| e != "txt") {
            continue;
        }
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("readable");
        let mut accepts_in_group = true;
        let mut group = String::new();
        for (number, line) in text.lines().enumerate().chain([(usize::MAX, "# end")]) {
            let place = format!("{name}:{}", number.wrapping_add(1));
            if let Some(title) = line.strip_prefix('#') {
                if !accepts_in_group {
                    wrong.push(format!("{name}: group without a near miss: {group}"));
                }
                (accepts_in_group, group) = (false, title.to_owned());
                continue;
            }
            if line.trim().is_empty() {
                continue;
            }
            let case = parse(place, line);
            let found = verdict(&case, &name);
            accepts_in_group |= case.expected == "accept";
            rules.insert(case.expected.split('@').next().unwrap_or_default().to_owned());
            if found != case.expected {
                wrong.push(format!("{}: {line}\n    found {found}", case.place));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    for rule in Rule::ALL {
        // These two are about the call, not the text: tests/interface.rs.
        if !matches!(rule, Rule::ScratchLength | Rule::Layout) {
            assert!(rules.contains(rule.name()), "no case for {}", rule.name());
        }
    }
}
