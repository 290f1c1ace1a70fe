//! `cordon insert`, `list`, `stats`, `remove` where there is no module; with one, `scripts/kernel` tests them.

use crate::{Desk, json, stderr};

#[test]
fn without_the_module_the_command_says_so() {
    let desk = Desk::new();
    desk.write("any.cordon", "no image, but nobody looks");
    let node = ["--device", "nowhere/cordon", "--format", "json"];
    for command in [
        &["insert", "any.cordon", "--event", "timer:1ms"][..],
        &["insert", "any.cordon", "--pin"],
        &["list"],
        &["stats"],
        &["stats", "1"],
        &["remove", "1", "2"],
    ] {
        let output = desk.cordon(&[command, &node].concat());
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        let code = json(&output)["error"]["code"].clone();
        assert!(code == "no-module" || code == "no-device", "{command:?}: {code}");
    }
}

#[test]
fn insertion_asks_for_something_that_calls_the_handler() {
    let desk = Desk::new();
    desk.write("any.cordon", "");
    for (args, part) in [
        (&["insert", "any.cordon"][..], "--event"),
        (&["insert", "any.cordon", "--pin", "--entry", "f"], "--event"),
        (&["insert", "any.cordon", "--event", "netfilter:nowhere"], "pre_routing"),
        (&["insert", "any.cordon", "--event", "tracepoint:syscalls:sys_enter_openat"], "raw_syscalls:sys_enter"),
        (&["insert", "any.cordon", "--event", "timer:10us"], "100us"),
        (&["insert", "missing.cordon", "--event", "timer:1s"], "missing.cordon"),
        (&["stats", "--image", "any.cordon"], "ID"),
        (&["remove"], "ID"),
    ] {
        let output = desk.cordon(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
    }
}
