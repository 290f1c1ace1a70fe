//! The Rust structures are those of the C header.

use cordon_kernel::abi::{self, About, Attach, EventStats, Insert, MapAccess, MapBind, MapSpec, Run, Stats, Totals};
use std::mem::offset_of;
use std::process::Command;

#[test]
fn structures_and_commands_are_those_of_the_header() {
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/../include");
    let mut source = String::from("#include <stddef.h>\n#include \"cordon.h\"\n");
    let mut check = |what: &str, value: u64| source += &format!("_Static_assert({what} == {value}ull, \"{what}\");\n");
    check("sizeof(struct cordon_run)", size_of::<Run>() as u64);
    check("sizeof(struct cordon_insert)", size_of::<Insert>() as u64);
    check("sizeof(struct cordon_stats)", size_of::<Stats>() as u64);
    check("sizeof(struct cordon_totals)", size_of::<Totals>() as u64);
    macro_rules! fields {
        ($type:ident $name:literal: $($field:ident),*) => {
            $(check(concat!("offsetof(struct ", $name, ", ", stringify!($field), ")"), offset_of!($type, $field) as u64);)*
        };
    }
    fields!(Run "cordon_run": entry, args, time_limit_ns, fuel, result, elapsed_ns, fuel_used, kind, flags, text_offset, access_bytes,
        address, window_offset, registers, frames, frame, depth, gate, cpu);
    fields!(Insert "cordon_insert": image, length, name, flags, verdict, rule, offset, instructions, max_depth, features, run);
    fields!(Stats "cordon_stats": calls, returned, stopped, busy, refused, pages, text_bytes);
    fields!(Totals "cordon_totals": handlers, inserted, removed, arena_pages, window_pages, table_entries, maps);
    check("sizeof(struct cordon_attach)", size_of::<Attach>() as u64);
    check("sizeof(struct cordon_event_stats)", size_of::<EventStats>() as u64);
    fields!(Attach "cordon_attach": kind, hook, flags, bytes, offset, period_ns, time_limit_ns, fuel, name, entry);
    fields!(EventStats "cordon_event_stats": number, flags, attach, fired, returned, stopped, missed, zero, changed, unchanged, last);
    check("sizeof(struct cordon_about)", size_of::<About>() as u64);
    fields!(About "cordon_about": id, flags, uid, pid, process, name, events, stats);
    check("CORDON_UNPRIVILEGED", abi::UNPRIVILEGED.into());
    check("CORDON_TIMER", abi::event::TIMER.into());
    check("CORDON_NETFILTER6", abi::event::NETFILTER6.into());
    check("CORDON_WRITABLE", abi::WRITABLE.into());
    check("CORDON_PER_CPU", abi::PER_CPU.into());
    check("sizeof(struct cordon_map_spec)", size_of::<MapSpec>() as u64);
    check("sizeof(struct cordon_map_bind)", size_of::<MapBind>() as u64);
    check("sizeof(struct cordon_map_access)", size_of::<MapAccess>() as u64);
    fields!(MapSpec "cordon_map_spec": kind, key_bytes, value_bytes, entries, reserved);
    fields!(MapBind "cordon_map_bind": number, map);
    fields!(MapAccess "cordon_map_access": key, value, flags, cursor);
    check("CORDON_MAP_HASH", abi::map_kind::HASH.into());
    check("CORDON_MAP_EXIST", abi::map_flag::EXIST);
    let commands = [
        ("CORDON_INSERT", abi::INSERT),
        ("CORDON_TOTALS", abi::TOTALS),
        ("CORDON_RUN", abi::RUN),
        ("CORDON_STATS", abi::STATS),
        ("CORDON_ATTACH", abi::ATTACH),
        ("CORDON_DETACH", abi::DETACH),
        ("CORDON_EVENT", abi::EVENT),
        ("CORDON_NEXT", abi::NEXT),
        ("CORDON_OPEN", abi::OPEN),
        ("CORDON_REMOVE", abi::REMOVE),
        ("CORDON_ABOUT", abi::ABOUT),
        ("CORDON_PIN", abi::PIN),
        ("CORDON_UNPIN", abi::UNPIN),
        ("CORDON_MAP_CREATE", abi::MAP_CREATE),
        ("CORDON_MAP_BIND", abi::MAP_BIND),
        ("CORDON_MAP_LOOKUP", abi::MAP_LOOKUP),
        ("CORDON_MAP_UPDATE", abi::MAP_UPDATE),
        ("CORDON_MAP_DELETE", abi::MAP_DELETE),
        ("CORDON_MAP_NEXT", abi::MAP_NEXT),
    ];
    for (name, value) in commands {
        check(name, value);
    }
    check("CORDON_OVER_QUOTA", abi::verdict::OVER_QUOTA.into());
    check("CORDON_BAD_JUMP", abi::kind::BAD_JUMP.into());
    check("CORDON_NO_INTERRUPTS", abi::NO_INTERRUPTS.into());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("abi.c");
    std::fs::write(&path, source).expect("written");
    let output = Command::new("cc").args(["-fsyntax-only", "-I", include]).arg(&path).output().expect("cc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
