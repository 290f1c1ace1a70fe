//! Builds the C interface, links a C program with it and runs it; the link also proves that no panic can be reached.

mod frames;

use cordon_checker::layout::TEXT_VADDR;
use cordon_checker::note::{FLAG_MATCH, FLAG_METERED, FLAG_STORES, NoteSpec};
use cordon_checker::{Mode, Rule, sample};
use std::path::{Path, PathBuf};
use std::process::Command;

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?} failed:\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn ffi() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ffi")
}

/// The static library, built for `target` (`None` = the host), perhaps with the function that can panic.
fn library(target: Option<&str>, control: bool) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(if control { "ffi-control" } else { "ffi" });
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--offline", "--manifest-path"]).arg(ffi().join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&out).env_remove("CARGO_ENCODED_RUSTFLAGS");
    if let Some(target) = target {
        cargo.args(["--target", target]);
    }
    if control {
        cargo.args(["--features", "control"]);
    }
    run(&mut cargo);
    out.join(target.unwrap_or("")).join("release/libcordon_checker_ffi.a")
}

/// The program of `examples/NAME.c`.
fn example(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-Werror", "-std=c11", "-O2", "-I"]).arg(ffi().join("include"));
    let source = ffi().join(format!("examples/{name}.c"));
    run(cc.arg(source).arg(library(None, false)).args(["-Wl,--gc-sections", "-o"]).arg(&program));
    program
}

#[test]
fn a_c_host_links_without_a_panic_and_judges() {
    let program = example("check");
    let note = Path::new(env!("CARGO_TARGET_TMPDIR")).join("note");
    std::fs::write(&note, sample::user().to_bytes()).expect("writable");
    let judge = |host: &str, bytes: &str| {
        let output = Command::new(&program).arg(&note).arg(host).args(bytes.split_whitespace()).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(judge("user", "50 58 c3"), (Some(0), "accepted: 3 instructions, depth 8, features 0, starts 0 1 2\n".to_owned()));
    let stack = format!("rejected: offset 1, R{} {}\n", Rule::StackPointer.number(), Rule::StackPointer);
    assert_eq!(judge("user", "90 48 89 e0 c3"), (Some(1), stack));
    assert_eq!(judge("kernel", "c3"), (Some(3), "refused: 3\n".to_owned()));
    // The policy's mode: a demand that the note does not meet, one that it does, and a bit that means nothing.
    assert_eq!(judge(&format!("user:{FLAG_METERED}"), "c3"), (Some(3), "refused: 3\n".to_owned()));
    let mode = Mode { matched: true, metered: true, ..Mode::default() };
    std::fs::write(&note, NoteSpec { mode, ..sample::user() }.to_bytes()).expect("writable");
    let both = format!("user:{}", FLAG_MATCH | FLAG_METERED);
    let charge = "49 83 ee 02 72 01 c3 0f 0b";
    assert_eq!(judge(&both, charge), (Some(0), "accepted: 3 instructions, depth 0, features 0, starts 0 6 7\n".to_owned()));
    let unpaid = format!("rejected: offset 0, R{} {}\n", Rule::Unpaid.number(), Rule::Unpaid);
    assert_eq!(judge(&both, "c3"), (Some(1), unpaid));
    assert_eq!(judge(&format!("user:{FLAG_STORES}"), charge).0, Some(0), "more than is demanded");
    assert_eq!(judge("user:1", "c3"), (Some(4), "refused: 4\n".to_owned()));
    std::fs::write(&note, [0; 8]).expect("writable");
    assert_eq!(judge("user", "c3"), (Some(2), "refused: 2\n".to_owned()));
}

/// An image file as small as can be: text and note.
fn image(text: &[u8], descriptor: &[u8]) -> Vec<u8> {
    let (note, len) = (sample::note_record(descriptor), |bytes: &[u8]| bytes.len() as u64);
    sample::container(&[(1, 5, TEXT_VADDR, text, len(text)), (4, 4, 0, &note, len(&note))])
}

#[test]
fn a_c_loader_checks_image_files_and_survives_broken_ones() {
    let program = example("check_image");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image.cordon");
    let judge = |file: &[u8], host: &str| {
        std::fs::write(&path, file).expect("writable");
        let output = Command::new(&program).arg(&path).arg(host).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let note = sample::user().to_bytes();
    let good = image(&[0x50, 0x58, 0xc3], &note);
    let accepted = "accepted: text 3 bytes, 3 instructions, depth 8, features 0\n";
    assert_eq!(judge(&good, "user"), (Some(0), accepted.into()));
    let rejected = format!("rejected: offset 0x1: R{} {}\n", Rule::RetDepth.number(), Rule::RetDepth);
    assert_eq!(judge(&image(&[0x50, 0xc3], &note), "user"), (Some(1), rejected));
    assert_eq!(judge(&good, "kernel"), (Some(1), "bad-layout\n".into()));
    assert_eq!(judge(&image(&[0xc3], &[0; 8]), "user"), (Some(1), "bad-note\n".into()));
    assert_eq!(judge(b"", "user"), (Some(1), "no image: not a little-endian ELF64 file\n".into()));
    assert_eq!(judge(&good, "other").0, Some(2));
    // Cut anywhere, and with each byte of its headers changed: a verdict each time, never a signal.
    for len in (0..good.len()).step_by(7) {
        assert_eq!(judge(&good[..len], "user").0, Some(1), "cut to {len}");
    }
    for at in 0..64 + 2 * 56 {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        assert!(matches!(judge(&bad, "user").0, Some(0 | 1)), "byte {at} changed");
    }
}

const BARE: &str = "x86_64-unknown-none";

/// The bare-metal target if its core library is installed; else the host stands in, with libc for `memcpy` and its kin.
fn bare_target() -> Option<&'static str> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", BARE]).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    Path::new(folder.trim()).is_dir().then_some(BARE)
}

/// Links the library, with every exported function kept, to the program at `path`.
fn link(target: Option<&str>, control: bool, path: &Path) -> std::process::Output {
    let mut exported =
        vec!["cordon_check", "cordon_next_start", "cordon_rule_text", "cordon_default_policy", "cordon_scratch_words"];
    if control {
        exported.push("cordon_panic_control");
    }
    let mut cc = Command::new("cc");
    cc.args(["-nostartfiles", "-no-pie", "-Wl,--gc-sections", "-Wl,-e,cordon_check"]);
    if target.is_some() {
        cc.args(["-nostdlib", "-static"]);
    }
    cc.args(exported.iter().map(|symbol| format!("-Wl,-u,{symbol}"))).arg(library(target, control));
    cc.arg("-o").arg(path).output().expect("cc runs")
}

#[test]
fn bare_metal_code_has_no_panic_path() {
    let target = bare_target();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bare");
    let clean = link(target, false, &path);
    assert!(clean.status.success(), "{}", String::from_utf8_lossy(&clean.stderr));
    // The proof means something only if a function that can panic does fail the link.
    let control = link(target, true, &path);
    let complaint = String::from_utf8_lossy(&control.stderr).into_owned();
    assert!(!control.status.success() && complaint.contains("cordon_checker_panic_is_reachable"), "{complaint}");
}

/// Bytes of stack that `check` and what it calls may need below its return address, and `cordon_check`, which also takes the note apart.
const CHECK_STACK: u64 = 832;
const C_STACK: u64 = 1312;

/// On bare metal only: elsewhere `memset` is in a shared library.
#[test]
fn stack_is_bounded() {
    let Some(target) = bare_target() else { return };
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stack");
    assert!(link(Some(target), false, &path).status.success());
    let file = std::fs::read(&path).expect("linked");
    for (function, limit) in [("cordon_checker4walk5check", CHECK_STACK), ("cordon_check", C_STACK)] {
        let (bytes, names) = frames::deepest(&file, function);
        println!("{function}: {bytes} bytes, {names:?}");
        assert!((64..=limit).contains(&bytes), "{function}: {bytes} bytes, {names:?}");
    }
}
