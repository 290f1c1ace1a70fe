//! `cordon check`: verdicts, rules, places.

use crate::{Desk, json, stderr, stdout};

const HANDLER: &str = "long handler(long *p, long n) { p[0] = n; return p[1] + 0x1234567; }";

/// The image of [`HANDLER`] with the first occurrence of `from` in its text replaced by `to`; the file offset it was at.
fn patched(desk: &Desk, from: &[u8], to: &[u8]) -> usize {
    desk.image("good", HANDLER);
    let mut bytes = desk.read("good.cordon");
    let at = bytes.windows(from.len()).position(|w| w == from).expect("the image has these bytes");
    bytes[at..at + to.len()].copy_from_slice(to);
    desk.write("bad.cordon", bytes);
    at
}

#[test]
fn accepted_images_have_code_0_and_a_summary() {
    let desk = Desk::new();
    desk.image("good", HANDLER);
    let output = desk.cordon(&["check", "good.cordon"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stdout(&output).starts_with("good.cordon: accepted; text "), "{output:?}");
    let object = json(&desk.cordon(&["check", "good.cordon", "--format", "json"]));
    assert_eq!(object["accepted"], true);
    assert!(object["instructions"].as_u64() >= Some(4), "{object}");
}

#[test]
fn a_rejection_names_rule_and_offset_and_shows_the_place() {
    let desk = Desk::new();
    // The immediate of `add $0x1234567,%rax` is 4 bytes before its end; the instruction becomes `syscall` and what follows.
    let add = [0x48, 0x05, 0x67, 0x45, 0x23, 0x01];
    patched(&desk, &add, &[0x0f, 0x05]);
    let output = desk.cordon(&["check", "bad.cordon", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = &json(&output)["error"];
    assert_eq!((&error["code"], &error["rule_name"], &error["rule"]), (&"rejected".into(), &"NotListed".into(), &4.into()));
    assert_eq!(error["symbol"], "handler", "{error}");
    let text = stderr(&desk.cordon(&["check", "bad.cordon"]));
    let offset = error["offset"].as_u64().expect("an offset");
    assert!(text.starts_with(&format!("error: bad.cordon:.text+{offset:#x} (handler): R4 ")), "{text}");
    let arrow = text.lines().find(|l| l.trim_start().starts_with("=>")).expect("an arrow");
    assert!(arrow.contains("syscall") && arrow.contains(&format!("{offset:#x}")), "{text}");
}

#[test]
fn run_refuses_what_check_rejects_with_the_same_report() {
    let desk = Desk::new();
    patched(&desk, &[0x48, 0x05, 0x67, 0x45, 0x23, 0x01], &[0x0f, 0x05]);
    let check = desk.cordon(&["check", "bad.cordon", "--format", "json"]);
    let run = desk.cordon(&["run", "bad.cordon", "--format", "json"]);
    assert_eq!(run.status.code(), Some(1));
    assert_eq!(json(&check), json(&run));
}

#[test]
fn files_that_are_no_images_have_code_1_and_missing_ones_code_2() {
    let desk = Desk::new();
    desk.image("good", HANDLER);
    let bytes = desk.read("good.cordon");
    for length in [0, 3, 64, 200, bytes.len() / 2] {
        desk.write("cut.cordon", &bytes[..length]);
        let output = desk.cordon(&["check", "cut.cordon", "--format", "json"]);
        assert_eq!(output.status.code(), Some(1), "{length} bytes: {output:?}");
        assert_eq!(json(&output)["error"]["code"], "not-an-image", "{length} bytes");
    }
    assert_eq!(desk.cordon(&["check", "good.o"]).status.code(), Some(1));
    assert_eq!(desk.cordon(&["check", "missing"]).status.code(), Some(2));
    let output = desk.cordon(&["check", "good.cordon", "--policy", "kernel", "--format", "json"]);
    assert_eq!((output.status.code(), &json(&output)["error"]["code"]), (Some(1), &"wrong-host".into()));
}

#[test]
fn a_reader_that_goes_away_changes_no_verdict() {
    let desk = Desk::new();
    desk.image("good", HANDLER);
    let cordon = env!("CARGO_BIN_EXE_cordon");
    let script = format!("{cordon} inspect good.cordon | true; echo ${{PIPESTATUS[0]}}");
    let output = std::process::Command::new("bash").args(["-c", &script]).current_dir(desk.folder()).output().expect("bash");
    assert_eq!(stdout(&output), "0\n");
}

/// The loader refuses them before it looks at the text; so does this command, which is asked first.
#[test]
fn notes_and_segments_that_no_host_takes_are_refused() {
    let desk = Desk::new();
    desk.image("good", "long table[] = {1, 2, 3}; long handler(long i) { return table[i & 1]++; }");
    let good = desk.read("good.cordon");
    let note = good.windows(4).position(|w| w == b"CRD1").expect("a note");
    // Extensions that nobody knows.
    let mut unknown = good.clone();
    unknown[note + 15] = 0x80;
    // The data a page further than its region, which is the last LOAD segment (program header 56 bytes, p_vaddr at 16).
    let mut away = good.clone();
    let mut data = (0..usize::from(good[56])).map(|i| 64 + 56 * i).filter(|&at| good[at..at + 4] == [1, 0, 0, 0]);
    let data = data.rfind(|&at| good[at + 4] & 2 != 0).expect("a data segment");
    for field in [16, 24] {
        let place = &mut away[data + field..data + field + 8];
        let address = u64::from_le_bytes(place.try_into().expect("8 bytes")) + 0x1000;
        place.copy_from_slice(&address.to_le_bytes());
    }
    for (name, bytes) in [("unknown", unknown), ("away", away)] {
        desk.write("bad.cordon", bytes);
        for command in ["check", "run"] {
            let output = desk.cordon(&[command, "bad.cordon"]);
            assert_eq!(output.status.code(), Some(1), "{name}, {command}: {output:?}");
        }
    }
}

#[test]
fn names_that_no_loader_takes_are_refused_by_all() {
    let desk = Desk::new();
    desk.object("asks", "extern long price(long); long handler(long x) { return price(x) + 1; }");
    let made = desk.shell(
        "objcopy --redefine-sym price=$'pr\\e[7mce' asks.o odd.o && $cordon rewrite odd.o --import $'pr\\e[7mce' -o odd.cordon",
    );
    assert_eq!(made.status.code(), Some(1), "{made:?}");
    assert!(stderr(&made).starts_with("error: odd.o:.text+") && stderr(&made).contains("[unprintable-name]"), "{made:?}");
    assert_eq!(desk.cordon(&["rewrite", "asks.o", "--import", "price", "-o", "asks.cordon"]).status.code(), Some(0));
    let mut bytes = desk.read("asks.cordon");
    let name = bytes.windows(6).position(|w| w == b"price\0").expect("the note has it");
    bytes[name + 2] = 0x1b;
    desk.write("asks.cordon", bytes);
    for command in ["check", "run"] {
        let output = desk.cordon(&[command, "asks.cordon", "--format", "json"]);
        assert_eq!((output.status.code(), &json(&output)["error"]["code"]), (Some(1), &"not-an-image".into()), "{command}");
    }
}
