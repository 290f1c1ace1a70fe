//! `cordon run`: arguments, inputs, captures, faults.

use crate::{Desk, json, stderr, stdout};
use cordon_fixtures::pcap;

const ADD: &str = "long handler(long a, long b, long c) { return a + 10 * b + 100 * c; }";

const BYTES: &str = "
static unsigned long seen;
unsigned long sum(const unsigned char *p, unsigned long n, unsigned long factor)
{
    unsigned long s = 0;
    for (unsigned long i = 0; i < n; i++)
        s += p[i];
    seen++;
    return s * factor;
}
unsigned long calls(void) { return seen; }
unsigned long bad(const unsigned char *p, unsigned long n) { return ++seen < 3 ? 1 : p[0x60000000 + n]; }
";

#[test]
fn arguments_are_decimal_hexadecimal_or_negative_and_the_result_is_the_last_line() {
    let desk = Desk::new();
    desk.image("add", ADD);
    for extra in [&[][..], &["--fast-window"], &["--repeat", "3"]] {
        let args = [&["run", "add.cordon", "--arg", "1", "--arg", "0x10", "--arg", "-1"][..], extra].concat();
        let output = desk.cordon(&args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stdout(&output).lines().last(), Some("result = 61"), "{output:?}");
    }
    let object = json(&desk.cordon(&["run", "add.cordon", "--arg", "-1", "--format", "json"]));
    assert_eq!(object["result"], u64::MAX);
    assert_eq!(object["entry"], "handler");
    let output = desk.cordon(&["run", "add.cordon", "--arg", "ten"]);
    assert_eq!(output.status.code(), Some(2));
    let seven = ["--arg", "1"].repeat(7);
    let output = desk.cordon(&[&["run", "add.cordon"], &seven[..]].concat());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn the_entry_is_the_only_one_or_the_one_asked_for() {
    let desk = Desk::new();
    desk.image("bytes", BYTES);
    let output = desk.cordon(&["run", "bytes.cordon", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let names = json(&output)["error"]["entries"].as_str().expect("names").to_owned();
    assert!(["sum", "calls", "bad"].iter().all(|n| names.contains(n)), "{names}");
    assert_eq!(desk.cordon(&["run", "bytes.cordon", "--entry", "none"]).status.code(), Some(2));
    assert_eq!(stdout(&desk.cordon(&["run", "bytes.cordon", "--entry", "calls"])), "result = 0\n");
}

#[test]
fn an_input_file_is_given_as_address_and_length() {
    let desk = Desk::new();
    desk.image("bytes", BYTES);
    desk.write("in", [1, 2, 3, 250]);
    let args = ["run", "bytes.cordon", "--entry", "sum", "--input", "in", "--arg", "2"];
    assert_eq!(stdout(&desk.cordon(&args)), "result = 512\n");
    let object = json(&desk.cordon(&[&args[..], &["--repeat", "5", "--format", "json"]].concat()));
    assert_eq!((&object["calls"], &object["result"]), (&5.into(), &512.into()));
    desk.write("in", "");
    assert_eq!(stdout(&desk.cordon(&args)), "result = 0\n");
    let output = desk.cordon(&["run", "bytes.cordon", "--entry", "sum", "--input", "missing"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_capture_is_given_packet_by_packet_and_results_are_summed() {
    let desk = Desk::new();
    desk.image("bytes", BYTES);
    desk.write("three.pcap", pcap::write(&[vec![1, 2], vec![], vec![7; 100]]));
    let args = ["run", "bytes.cordon", "--entry", "sum", "--pcap", "three.pcap", "--arg", "1"];
    let output = desk.cordon(&args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
    assert_eq!((&lines[0][..], &lines[1][..]), ("calls = 3", "nonzero = 2"));
    assert_eq!(lines.last().map(String::as_str), Some("result = 703"));
    desk.write("broken.pcap", "no capture at all, really");
    let output = desk.cordon(&["run", "bytes.cordon", "--entry", "sum", "--pcap", "broken.pcap", "--format", "json"]);
    assert_eq!((output.status.code(), &json(&output)["error"]["code"]), (Some(2), &"pcap".into()));
}

#[test]
fn a_stopped_handler_has_code_4_and_a_report() {
    let desk = Desk::new();
    desk.image("bytes", BYTES);
    desk.write("five.pcap", pcap::write(&vec![vec![1]; 5]));
    let args = ["run", "bytes.cordon", "--entry", "bad", "--pcap", "five.pcap"];
    let output = desk.cordon(&[&args[..], &["--format", "json"]].concat());
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let error = &json(&output)["error"];
    let report = &error["report"];
    assert_eq!((&error["code"], &error["calls_before"]), (&"fault".into(), &2.into()), "{error}");
    assert_eq!((&report["kind"], &report["access"], &report["bytes"]), (&"unmapped".into(), &"read".into(), &1.into()));
    assert_eq!((&report["handler"], &report["entry"]), (&"bytes.cordon".into(), &"bad".into()), "{error}");
    assert!(report["address"].as_u64() > Some(0x6000_0000) && report["place"]["text_offset"].is_u64(), "{error}");
    assert_eq!((&report["place"]["function"], &report["place"]["origin"]["object"]), (&"bad".into(), &"bytes.o".into()));
    assert!(report["instruction"].as_str().expect("the original").contains("0x60000000("), "{error}");
    assert!(report["registers"]["rsi"] == 1 && report["backtrace"].as_array().expect("frames").len() == 1, "{error}");
    let text = desk.cordon(&args);
    assert_eq!(text.status.code(), Some(4));
    for field in ["error[unmapped]: ", "reads 1 byte at 0x6", "entry: bad", "calls before this one: 2", "0x60000000("] {
        assert!(stderr(&text).contains(field), "{field} in {}", stderr(&text));
    }
}

#[test]
fn a_call_that_takes_too_long_has_code_4_and_a_report() {
    let desk = Desk::new();
    desk.image("spin", "long handler(long n) { volatile long i = 0; while (i < n) i++; return i; }");
    let endless = ["run", "spin.cordon", "--arg", "0x7fffffffffffffff", "--time-limit", "5ms"];
    let output = desk.cordon(&[&endless[..], &["--format", "json"]].concat());
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let error = &json(&output)["error"];
    let report = &error["report"];
    assert_eq!((&error["code"], &report["kind"]), (&"time-limit".into(), &"time-limit".into()), "{error}");
    assert_eq!((&report["place"]["function"], &report["time"]["limit_ns"]), (&"handler".into(), &5_000_000.into()), "{error}");
    assert!(report["time"]["elapsed_ns"].as_u64() >= Some(5_000_000) && report["place"]["text_offset"].is_u64(), "{error}");
    let text = desk.cordon(&endless);
    assert_eq!(text.status.code(), Some(4));
    for field in ["error[time-limit]: time limit exceeded", "limit 5ms, ended after ", "entry: handler"] {
        assert!(stderr(&text).contains(field), "{field} in {}", stderr(&text));
    }
    for limit in ["none", "100s"] {
        let output = desk.cordon(&["run", "spin.cordon", "--arg", "100000", "--time-limit", limit]);
        assert_eq!(stdout(&output), "result = 100000\n", "{output:?}");
    }
    let output = desk.cordon(&["run", "spin.cordon", "--time-limit", "5"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn an_exact_input_ends_where_the_first_bad_access_is_reported() {
    let desk = Desk::new();
    desk.image("bytes", BYTES);
    desk.write("in", [1, 2, 3]);
    desk.write("two.pcap", pcap::write(&[vec![1; 60], vec![2; 61]]));
    let source = "int last(const char *p, unsigned long n, long more) { return p[n - 1 + more]; }";
    desk.image("last", source);
    for input in [["--input", "in"], ["--pcap", "two.pcap"]] {
        let inside = desk.cordon(&[&["run", "last.cordon", "--exact", "--arg", "0"], &input[..]].concat());
        assert_eq!(stdout(&inside).lines().last(), Some("result = 3"), "{inside:?}");
        let outside = desk.cordon(&[&["run", "last.cordon", "--exact", "--arg", "1"], &input[..]].concat());
        assert_eq!(outside.status.code(), Some(4));
        assert!(
            stderr(&outside).contains("reads 1 byte at ")
                && stderr(&outside).contains(": 1 byte past the end of the argument area")
        );
        let unseen = desk.cordon(&[&["run", "last.cordon", "--arg", "1"], &input[..]].concat());
        assert_eq!(unseen.status.code(), Some(0), "without --exact the area goes on");
    }
}

#[test]
fn shared_files_are_arguments_and_written_back_if_wanted() {
    let desk = Desk::new();
    desk.image("bytes", BYTES);
    desk.image("fill", "void fill(char *p, unsigned long n, int c) { while (n--) p[n] = c; }");
    desk.write("table", [1; 5000]);
    let sum = ["run", "bytes.cordon", "--entry", "sum", "--share", "table", "--arg", "2"];
    assert_eq!(stdout(&desk.cordon(&sum)).lines().last(), Some("result = 10000"));
    let fill = |share: &str| desk.cordon(&["run", "fill.cordon", "--share", share, "--arg", "7"]);
    let refused = fill("table:ro");
    assert_eq!(refused.status.code(), Some(4));
    assert!(stderr(&refused).contains("error[read-only]") && stderr(&refused).contains("in the memory table"), "{refused:?}");
    assert_eq!(desk.read("table"), [1; 5000]);
    assert_eq!(fill("table:rw").status.code(), Some(0));
    assert_eq!(desk.read("table"), [7; 5000]);
    desk.write("empty", "");
    assert_eq!(
        (fill("empty").status.code(), fill("missing").status.code(), fill(":rw").status.code()),
        (Some(2), Some(2), Some(2))
    );
    let four = ["--share", "table"].repeat(4);
    assert_eq!(desk.cordon(&[&["run", "fill.cordon"], &four[..]].concat()).status.code(), Some(2), "too many arguments");
}

const STRAY: &str = "
struct packet { const unsigned char *data; unsigned long len; };
static int option(const unsigned char *p, unsigned long i) { return p[i]; }
__attribute__((noinline)) int parse(const struct packet *p, unsigned long bias)
{
    int sum = 0;
    for (unsigned long i = 0; i < p->len; i++)
        sum += option(p->data + bias, i);
    return sum;
}
__attribute__((noinline)) int outer(const struct packet *p, unsigned long bias) { return parse(p, bias) + 1; }
int handler(const unsigned char *data, unsigned long len, unsigned long bias)
{
    struct packet p = { data, len };
    return outer(&p, bias);
}
";

/// Compiles `stray.o` with line tables and rewrites it with `options`.
fn stray(desk: &Desk, options: &[&str]) {
    desk.write("stray.c", STRAY);
    let gcc = std::process::Command::new("gcc").args(["-O2", "-g", "-c", "stray.c"]).current_dir(desk.folder()).status();
    assert!(gcc.expect("gcc is installed: run scripts/setup").success());
    let output = desk.cordon(&[&["rewrite", "stray.o", "-o", "stray.cordon", "--entry", "handler"], options].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    desk.write("in", [1; 40]);
}

#[test]
fn a_stray_access_is_reported_like_a_compiler_error() {
    let desk = Desk::new();
    stray(&desk, &["--mode", "match"]);
    let good = desk.cordon(&["run", "stray.cordon", "--mode", "match", "--input", "in", "--arg", "0"]);
    assert_eq!(stdout(&good), "result = 41\n", "{good:?}");
    let args = ["run", "stray.cordon", "--mode", "match", "--input", "in", "--arg", "0x500000000000"];
    let output = desk.cordon(&args);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let text = stderr(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "error[stray-access]: access outside the handler's memory");
    assert!(lines[1].starts_with("  --> ") && lines[1].contains("/stray.c:3:"), "{text}");
    assert!(lines[3].contains("movz") && lines[4].contains("^^^ reads 1 byte at 0x5000"), "{text}");
    for part in
        ["stray.o section 1 offset 0x", "is no handler pointer; cut to 32 bits", "0: parse+", "1: outer+", "2: handler+", "rdi "]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let json = json(&desk.cordon(&[&args[..], &["--format", "json"]].concat()));
    let report = &json["error"]["report"];
    assert_eq!((&json["error"]["code"], &report["kind"]), (&"stray-access".into(), &"stray-access".into()));
    assert_eq!((&report["place"]["source"]["line"], &report["bytes"], &report["access"]), (&3.into(), &1.into(), &"read".into()));
    let address = report["address"].as_u64().expect("told");
    assert_eq!((address >> 32, report["window_offset"].as_u64()), (0x5000, Some(address & 0xffff_ffff)));
    assert_eq!(report["backtrace"][2]["code"]["source"]["line"], 15);
    assert_eq!(report["registers"].as_object().expect("all").len(), 17);
}

#[test]
fn fuel_ends_a_call_at_the_same_instruction_every_time() {
    let desk = Desk::new();
    stray(&desk, &["--fuel"]);
    let run = |extra: &[&str]| desk.cordon(&[&["run", "stray.cordon", "--input", "in", "--arg", "0"], extra].concat());
    let used = json(&run(&["--metered", "--format", "json"]))["fuel"].as_u64().expect("metered");
    assert!(used > 4 * 40, "{used}");
    let exactly = used.to_string();
    let output = run(&["--fuel", &exactly]);
    assert_eq!(stdout(&output), format!("fuel = {used}\nresult = 41\n"), "{output:?}");
    let less = (used - 1).to_string();
    let stopped = run(&["--fuel", &less]);
    assert_eq!(stopped.status.code(), Some(4));
    let text = stderr(&stopped);
    assert!(text.starts_with("error[fuel]: out of fuel\n  --> ") && text.contains("/stray.c:"), "{text}");
    assert!(text.contains(&format!("= fuel: all of {less} instructions used")), "{text}");
    assert_eq!(stderr(&run(&["--fuel", &less])), text, "registers and all");
}

#[test]
fn images_that_prove_less_than_is_demanded_are_not_run() {
    let desk = Desk::new();
    desk.image("add", ADD);
    let run = |extra: &[&str]| desk.cordon(&[&["run", "add.cordon"], extra].concat()).status.code();
    assert_eq!(
        (run(&[]), run(&["--mode", "match"]), run(&["--metered"]), run(&["--fuel", "1000"])),
        (Some(0), Some(1), Some(1), Some(1))
    );
    let check = |extra: &[&str]| desk.cordon(&[&["check", "add.cordon"], extra].concat()).status.code();
    assert_eq!((check(&[]), check(&["--mode", "match"]), check(&["--metered"])), (Some(0), Some(1), Some(1)));
    let why = |command: &str| json(&desk.cordon(&[command, "add.cordon", "--metered", "--format", "json"]))["error"].clone();
    assert_eq!((&why("check")["code"], &why("run")["code"]), (&"mode".into(), &"mode".into()));
    assert!(why("check")["message"].as_str().is_some_and(|m| m.contains("it is sandbox (see --mode")), "{}", why("check"));
    let stores = ["rewrite", "add.o", "-o", "add.cordon", "--protect", "stores"];
    assert_eq!(desk.cordon(&stores).status.code(), Some(0));
    assert_eq!((run(&[]), run(&["--protect", "stores"])), (Some(1), Some(0)), "a host must say that it trusts loads");
}

#[test]
fn ranges_that_memcpy_refuses_are_reported_at_its_call() {
    let desk = Desk::new();
    let declared = "void *memcpy(void *, const void *, unsigned long);";
    desk.object("big", &format!("{declared}\nint handler(char *p, unsigned long n) {{ return memcpy(p, p + 64, n) == p; }}"));
    desk.object("tail", &format!("{declared}\nvoid *handler(char *p, unsigned long n) {{ return memcpy(p, p + 64, n); }}"));
    for mode in ["sandbox", "match"] {
        let run = |name: &str, len: &str| {
            let image = format!("{name}.cordon");
            let output = desk.cordon(&["rewrite", &format!("{name}.o"), "-o", &image, "--mode", mode]);
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
            desk.cordon(&["run", &image, "--arg", "0x700000000000", "--arg", len])
        };
        let text = stderr(&run("big", "8"));
        for part in [
            "error[gate-range]: ",
            "call memcpy",
            "writes 8 bytes at 0x700000000000",
            "= in: gate memcpy",
            "is no handler pointer",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let text = stderr(&run("tail", "8"));
        assert!(text.contains("writes 8 bytes at 0x700000000000") && text.contains("left no return address"), "{text}");
        assert_eq!(run("big", "0").status.code(), Some(0), "nothing is copied, so nothing is checked");
    }
}

#[test]
fn words_that_would_do_nothing_are_usage_errors() {
    let desk = Desk::new();
    desk.image("add", ADD);
    let run = |words: &[&str]| {
        let output = desk.cordon(&[&["run", "add.cordon"], words].concat());
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        stderr(&output)
    };
    assert!(run(&["--exact"]).contains("--input"));
    assert!(run(&["--share", "."]).contains("is a directory"));
    let four = ["--share", "add.o"].repeat(4);
    assert!(run(&four).contains("a call has 6 integer arguments"));
    desk.write("empty", "");
    assert!(run(&["--pcap", "empty"]).contains("ends inside its header"));
    desk.write("ng", b"\x0a\x0d\x0d\x0a and more");
    assert!(run(&["--pcap", "ng"]).contains("pcapng"));
}

#[test]
fn images_that_need_another_host_say_which() {
    let desk = Desk::new();
    desk.object("asks", "extern long price(long); long handler(long x) { return price(x) + 1; }");
    assert_eq!(desk.cordon(&["rewrite", "asks.o", "-o", "asks.cordon", "--import", "price"]).status.code(), Some(0));
    desk.object("kernel", ADD);
    assert_eq!(desk.cordon(&["rewrite", "kernel.o", "-o", "kernel.cordon", "--host", "kernel"]).status.code(), Some(0));
    for (image, code, words) in [("asks", "missing-import", "cordon-loader"), ("kernel", "wrong-host", "cordon insert")] {
        let output = desk.cordon(&["run", &format!("{image}.cordon"), "--format", "json"]);
        let error = &json(&output)["error"];
        assert_eq!((output.status.code(), &error["code"]), (Some(1), &code.into()), "{output:?}");
        assert!(error["message"].as_str().is_some_and(|m| m.contains(words)), "{error}");
    }
}
