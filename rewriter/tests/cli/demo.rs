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
