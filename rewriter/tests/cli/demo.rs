//! `cordon demo`, on few packets.

use crate::{Desk, json, stderr, stdout};

#[test]
fn the_demonstration_succeeds_in_text_and_json() {
    let desk = Desk::new();
    let output = desk.cordon(&["demo", "--packets", "300", "--rounds", "1", "--save", "trace.pcap"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).trim_end().ends_with("Everything is as it must be."), "{}", stdout(&output));
    let saved = desk.read("trace.pcap");
    assert_eq!(cordon_fixtures::pcap::read(&saved).expect("a capture").len(), 300);
    let output = desk.cordon(&["demo", "--packets", "300", "--rounds", "1", "--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let object = json(&output);
    assert_eq!(object["equal"], true);
    assert!(object["handlers"].as_array().map(Vec::len) >= Some(10), "{object}");
    assert!(object["stopped"].as_u64() > Some(10), "{object}");
}

#[test]
fn zlib_is_shown_to_restore_its_input() {
    let desk = Desk::new();
    let output = desk.cordon(&["demo", "zlib", "--mib", "2", "--rounds", "1", "--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let object = json(&output);
    assert_eq!((&object["equal"], &object["bytes"]), (&true.into(), &(2 << 20).into()));
    assert!(object["compressed"].as_u64().is_some_and(|n| n > 100_000 && n < 2 << 20), "{object}");
    let text = desk.cordon(&["demo", "zlib", "--mib", "1", "--rounds", "1"]);
    assert!(stdout(&text).contains("libz.a as Debian compiled it"), "{}", stderr(&text));
}
