//! A program that tries to get out: `fixtures/programs/attacks.c` against a folder made for it.

use crate::{Desk, feed, text};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::mpsc::{TryRecvError, channel};
use std::time::Duration;

#[test]
fn no_system_call_leads_out_of_the_window_or_the_folder() {
    let desk = Desk::new();
    std::fs::create_dir_all(desk.path("in/sub")).expect("made");
    desk.write("secret", "secret");
    desk.write("in/inside", "inside, and more than sixteen bytes");
    for (target, name) in [("../secret", "link"), ("..", "up"), ("/etc/passwd", "absolute")] {
        symlink(target, desk.path("in").join(name)).expect("linked");
    }
    crate::said(Command::new("mkfifo").arg(desk.path("in/fifo")));
    desk.image("attacks", &["attacks.c"], &["-O2"]);
    let fifo = desk.path("in/fifo");
    let (opened, open) = channel();
    let writer = std::thread::spawn({
        let fifo = fifo.clone();
        move || {
            let fifo = File::options().write(true).open(fifo);
            opened.send(()).expect("somebody looks");
            fifo
        }
    });
    // Time to get there; too little would only let a mistake pass.
    std::thread::sleep(Duration::from_millis(100));
    let output = feed(&mut desk.cordon(&["run", "attacks.img", "--dir", "in", "--", "in"]), "");
    let shown = text(&output.stdout);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{shown}");

    // Refused, and not opened for a moment: that would have let the writer go on.
    assert_eq!(open.try_recv(), Err(TryRecvError::Empty));
    drop(File::open(&fifo).expect("opened"));
    writer.join().expect("it ends").expect("opened");

    let (denied, missing, fault, invalid) = ("Permission denied", "No such file or directory", "Bad address", "Invalid argument");
    let (memory, absent, read_only) = ("Out of memory", "Function not implemented", "Read-only file system");
    let expected = |name: &str| match name {
        // The folder's own file may be opened for reading; nothing else here gives anything.
        "open /inside" | "relative to a folder" => None,
        "stat to the end" | "long name" => Some(missing),
        "break to the host" => Some("0"),
        "map executable" => Some(denied),
        "map fixed over the table" | "map fixed outside" | "map of 2^63" | "protect outside" | "remap outside" => Some(memory),
        "unmap text" | "unmap that wraps" | "too many parts" | "no end of parts" | "lengths that wrap" => Some(invalid),
        "thread pointer elsewhere" => Some(invalid),
        "out of a folder" => Some(denied),
        "open /etc/passwd" | "open /proc/self/mem" | "open /dev/mem" => Some(missing),
        "open /new" | "unlink" | "rename" | "mkdir" | "access for writing" | "write to a folder's file" => Some(read_only),
        "kill another" | "kill the parent" => Some("No such process"),
        "file 1000" | "file -1" => Some("Bad file descriptor"),
        "no end of files" => Some("No file descriptors available"),
        "parts at the end" | "part outside" => Some(fault),
        name if name.starts_with("open ") => Some(denied),
        name if ["read to", "write from", "path at", "time to", "random to", "length"].iter().any(|p| name.starts_with(p)) => {
            Some(fault)
        }
        _ => Some(absent),
    };
    let mut tries = 0;
    for line in shown.lines() {
        let (name, result) = line.split_once(": ").unwrap_or_else(|| panic!("{line}"));
        assert!(expected(name).is_none_or(|e| e == result), "{line}");
        tries += 1;
    }
    assert!(tries > 80, "{shown}");
    let inside: Vec<&str> = shown.lines().filter(|l| l.starts_with("open /inside")).collect();
    assert_eq!(inside, [&format!("open /inside: {read_only}")[..], &format!("open /inside: {read_only}"), "open /inside: OPEN"]);
    assert_eq!(std::fs::read(desk.path("secret")).expect("there"), b"secret");
    assert_eq!(std::fs::read_dir(desk.path("in")).expect("readable").count(), 6);
}

#[test]
fn random_system_calls_harm_nothing() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("in")).expect("made");
    desk.write("secret", "secret");
    desk.image("noise", &["noise.c"], &["-O2"]);
    for seed in 1..=8 {
        let words = [
            "run",
            "noise.img",
            "--time-limit",
            "60s",
            "--dir",
            "in:rw",
            "--",
            "2000",
            &format!("{}", seed * 0x9e37_79b9_u64),
            "in",
        ];
        let output = feed(&mut desk.cordon(&words), "some input\n");
        // Its standard streams may have been exchanged: the status alone tells.
        assert_eq!(output.status.code(), Some(0), "seed {seed}: {}", text(&output.stderr));
        let mut names: Vec<_> =
            std::fs::read_dir(desk.0.path()).expect("readable").map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["in", "noise.img", "secret"], "seed {seed}");
    }
}

/// The kernel answers with SIGXFSZ, which by default ends the process: the host.
#[test]
fn files_above_the_limit_of_their_size_do_not_end_the_host() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("in")).expect("made");
    desk.image("file_size", &["file_size.c"], &["-O2"]);
    let limited = format!("ulimit -f 64; exec {} run file_size.img --dir in:rw -- in > shown", env!("CARGO_BIN_EXE_cordon"));
    let output = feed(Command::new("bash").args(["-c", &limited]).current_dir(desk.0.path()), "");
    let too_large = "File too large";
    let expected = format!("write far behind the end: {too_large}\nlength: {too_large}\nstandard output: {too_large}\n");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), expected));
    assert_eq!(std::fs::metadata(desk.path("shown")).expect("there").len(), 64 << 10);
}

/// Holds a lease of the file `argv[1]` until its standard input ends; then every opening fails with `EAGAIN`, or waits, for up to
/// `/proc/sys/fs/lease-break-time` seconds.
const HOLDER: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    char byte;
    int file = open(argv[1], O_RDWR | O_CREAT, 0666);
    signal(SIGIO, SIG_IGN);
    puts(fcntl(file, F_SETLEASE, F_WRLCK) ? "no lease" : "leased");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
"#;

#[test]
fn a_lease_of_a_file_does_not_hold_an_opening_past_the_time_limit() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("in")).expect("made");
    desk.write("holder.c", HOLDER);
    crate::said(Command::new("gcc").args(["-o", "holder", "holder.c"]).current_dir(desk.0.path()));
    desk.image("opens", &["opens.c"], &["-O2"]);
    let mut holder = Command::new(desk.path("holder"));
    let mut holder =
        holder.arg(desk.path("in/leased")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the holder starts");
    let mut line = String::new();
    BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    assert_eq!(line, "leased\n");
    // Without an end to the tries this one would be ended by its time limit, when the lease has been taken away.
    let output = feed(&mut desk.cordon(&["run", "opens.img", "--time-limit", "5s", "--dir", "in", "--", "in/leased"]), "");
    drop(holder.stdin.take());
    holder.wait().expect("it ends");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("Resource temporarily unavailable\n".into(), String::new()));
}
