//! Code that nobody here wrote: Debian's prebuilt archives in whole programs, compared with the same archives linked natively.

use crate::{Desk, feed, source, text};
use std::os::unix::fs::symlink;
use std::process::Command;

const ARCHIVES: &str = "/usr/lib/x86_64-linux-gnu";

/// What is given to `cordon cc` and to `cordon run`: both flavours, each with a timer and with fuel; loads left alone; explicit masks.
const MODES: [(&[&str], &[&str]); 6] = [
    (&[], &["--time-limit", "600s"]),
    (&["--mode", "match"], &["--time-limit", "600s"]),
    (&["--fuel"], &["--time-limit", "600s", "--fuel", "1000000000000"]),
    (&["--mode", "match", "--fuel"], &["--time-limit", "600s", "--fuel", "1000000000000"]),
    (&["--protect", "stores"], &["--time-limit", "600s", "--protect", "stores"]),
    (&["--masking", "explicit"], &["--time-limit", "600s"]),
];

/// Runs `name.c` with `archives` natively and in every mode, with each list of words; gives what all print.
fn compared(name: &str, archives: &[&str], headers: &[&str], runs: &[&[&str]]) -> Vec<String> {
    let desk = Desk::new();
    // The archives' headers, without those of the other C library beside them.
    std::fs::create_dir(desk.path("headers")).expect("made");
    for header in headers {
        let file = header.rsplit('/').next().expect("a name");
        symlink(header, desk.path("headers").join(file)).expect("linked");
    }
    let archives: Vec<String> = archives.iter().map(|a| format!("{ARCHIVES}/lib{a}.a")).collect();
    let more: Vec<&str> = ["-O2", "-I", "headers"].into_iter().chain(archives.iter().map(String::as_str)).collect();
    let file = format!("{name}.c");
    desk.native(name, &[&file, "glibc_names.c"], &more);
    for script in runs.iter().flat_map(|words| words.iter()).filter(|word| word.ends_with(".lua")) {
        std::fs::copy(source(script), desk.path(script)).expect("copied");
    }
    let native = |words: &&[&str]| {
        let native = feed(Command::new(desk.path(name)).args(*words).current_dir(desk.0.path()), "");
        assert_eq!(native.status.code(), Some(0), "{words:?}");
        text(&native.stdout)
    };
    let native: Vec<String> = runs.iter().map(native).collect();
    for (mode, limit) in MODES {
        desk.image(name, &[&file, "glibc_names.c"], &[&more, mode].concat());
        let image = format!("{name}.img");
        let run = ["run", &image, "--dir", "."];
        for (words, native) in runs.iter().zip(&native) {
            let fenced = feed(&mut desk.cordon(&[&run, limit, &["--"], words].concat()), "");
            assert_eq!(text(&fenced.stdout), *native, "{mode:?} {words:?}: {}", text(&fenced.stderr));
            assert_eq!(fenced.status.code(), Some(0), "{mode:?} {words:?}");
        }
    }
    native
}

#[test]
fn archives_that_compress_give_the_same_bytes() {
    let headers = ["zlib.h", "zconf.h", "bzlib.h", "lzma.h", "lzma"].map(|h| format!("/usr/include/{h}"));
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let shown = compared("codecs", &["z", "bz2", "lzma"], &headers, &[&["1500000"]]).concat();
    assert!(shown.lines().count() == 3 && shown.lines().all(|l| l.contains(": 0 0, ") && l.ends_with(", same")), "{shown}");
}

#[test]
fn a_database_answers_as_natively() {
    let shown = compared("database", &["sqlite3"], &["/usr/include/sqlite3.h"], &[&[]]).concat();
    for part in ["100000|5000050000|", "\n50000\n100000\n", "3|[1,2,3,4]", "error: no such table: missing"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

/// Lua's errors are longjmps, over functions of the C library and of Lua's own.
#[test]
fn scripts_print_the_same() {
    let headers = ["lua.h", "lauxlib.h", "lualib.h", "luaconf.h"].map(|h| format!("/usr/include/lua5.4/{h}"));
    let mut headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    headers.push("/usr/include/x86_64-linux-gnu/lua5.4-deb-multiarch.h");
    let scripts = ["script.lua", "errors.lua", "coroutines.lua", "objects.lua"];
    let shown = compared("lua", &["lua5.4"], &headers, &scripts.each_ref().map(std::slice::from_ref));
    let parts = [
        ["46368\t 3.14\t1000\n", "the=3"],
        ["with place", "stack overflow"],
        ["asked to fail in 3", "negative: -3"],
        ["stack is empty", "division by zero"],
    ];
    for (shown, parts) in shown.iter().zip(parts) {
        assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
    }
}
