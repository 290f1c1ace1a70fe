//! The `cordon` command in the guest, and what it stands on: numbers, pins, lists, removal.

use super::events::{counter, exchange, filter, loopback};
use super::{image, load_module, unload_module};
use anyhow::{Context as _, Result, ensure};
use cordon_kernel::abi::{self, Attach, Run, event, kind};
use cordon_kernel::{Device, Event};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CORDON: &str = "/cordon";
const FILTER: &str = "/images/port_filter.sandbox.handler";

fn cordon(args: &[&str]) -> Result<Output> {
    Command::new(CORDON).args(args).output().context("the cordon command starts")
}

/// Standard output of a command that succeeds.
fn succeed(args: &[&str]) -> Result<String> {
    let output = cordon(args)?;
    ensure!(output.status.success() && output.stderr.is_empty(), "cordon {}: {output:?}", args.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

/// The number behind `"name":` in JSON.
fn number(json: &str, name: &str) -> Result<u32> {
    let (_, rest) = json.split_once(&format!("\"{name}\":")).with_context(|| format!("no {name} in {json}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{name} in {json}"))
}

/// Waits until `done`, for a machine that may be slow.
fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(start.elapsed() < Duration::from_secs(30), "still not: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A pinned filter outlives the command, counts and drops, keeps the module in the kernel, and ends with `cordon remove`.
pub fn pinned(device: &Device) -> Result<String> {
    loopback()?;
    let inserted =
        succeed(&["insert", FILTER, "--event", "netfilter:pre_routing", "--entry", "port_filter", "--pin", "--format", "json"])?;
    let id = number(&inserted, "id")?;
    ensure!(inserted.contains("\"pinned\":true"), "{inserted}");
    let handler = device.handler(id)?;
    let (other, heap) = filter(device, "sandbox", 9999)?;
    drop(other);
    handler.write(heap, &9999_u64.to_le_bytes())?;
    ensure!(exchange(9998, 30)? == 30 && exchange(9999, 30)? == 0, "the filter filters");
    ensure!(
        counter(&handler, heap, 1)? == 60 && counter(&handler, heap, 2)? == 30,
        "its counters are there for whoever opens it"
    );
    drop(handler);
    let text = succeed(&["stats", &id.to_string(), "--image", FILTER])?;
    for part in ["netfilter:pre_routing -> port_filter: fired 60, returned 60, dropped 30, stopped 0", "pinned", "calls 60"] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    let list = succeed(&["list"])?;
    ensure!(list.contains("port_filter.sandbox.handler") && list.contains("pinned") && list.lines().count() == 2, "{list}");
    ensure!(succeed(&["remove", &id.to_string()])? == format!("handler {id} removed\n"), "removal");
    ensure!(exchange(9999, 10)? == 10, "the filter goes on after its removal");
    ensure!(succeed(&["list", "--format", "json"])?.trim() == r#"{"handlers":[]}"#, "the list is empty");
    let again = cordon(&["remove", &id.to_string(), "--format", "json"])?;
    let said = String::from_utf8(again.stdout)?;
    ensure!(again.status.code() == Some(2) && said.contains("\"no-handler\""), "{said}");
    ensure!(device.totals()?.handlers == 0, "it is still there");
    Ok(format!("handler {id}"))
}

/// Starts `cordon insert` in the foreground and waits until its handler has been called.
fn hold(device: &Device, args: &[&str]) -> Result<(Child, u32)> {
    let mut command = Command::new(CORDON);
    let child = command.arg("insert").args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut id = 0;
    until("the handler is called", || {
        let list = device.list()?;
        id = list.first().map_or(0, |about| about.id);
        Ok(list.first().is_some_and(|about| about.stats.calls > 3))
    })?;
    Ok((child, id))
}

fn signal(child: &Child, number: i32) -> Result<()> {
    // SAFETY: sends a signal to our own child, which has not been waited for.
    let failed = unsafe { libc::kill(child.id().cast_signed(), number) };
    ensure!(failed == 0, "kill: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Without --pin the handler ends with the command: by Ctrl-C, by a kill that it cannot see, and when somebody else removes it.
pub fn held(device: &Device) -> Result<String> {
    let none = || -> Result<()> { until("the handler is gone", || Ok(device.totals()?.handlers == 0)) };
    let args = ["/images/faults.sandbox.image", "--event", "timer:5ms", "--entry", "fault_null", "--interval", "20ms"];

    let (child, id) = hold(device, &args)?;
    signal(&child, libc::SIGINT)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{:?} {text}", output.status);
    let first = format!("handler {id} is in the kernel; Ctrl-C removes it\n");
    let last = ["timer:5ms -> fault_null", "stopped: null-zone in entry fault_null", " in fault_null", "read of 4 bytes at"];
    ensure!(text.starts_with(&first) && last.iter().all(|part| text.contains(part)), "{text}");
    none()?;

    let (mut child, _) = hold(device, &args)?;
    signal(&child, libc::SIGKILL)?;
    child.wait()?;
    none()?;

    let (child, id) = hold(device, &args)?;
    succeed(&["remove", &id.to_string()])?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && text.contains("removed by another process"), "{text}");
    none()?;

    let (child, _) = hold(device, &[&args[..], &["--format", "json"]].concat())?;
    signal(&child, libc::SIGTERM)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.lines().count() == 1 && text.contains("\"kind\":\"null-zone\"") && number(&text, "fired")? > 0, "{text}");
    none()?;
    Ok("Ctrl-C, kill, removal".into())
}

/// What the command says when something is wrong, and its exit code.
pub fn refusals(device: &Device) -> Result<String> {
    let mut rejected = image("cksum16.sandbox.image")?;
    let text = super::text_of(&rejected)?;
    // wrmsr behind the first function's endbr64 and LIMIT.
    rejected[text.start + 16..text.start + 18].copy_from_slice(&[0x0f, 0x30]);
    std::fs::write("/rejected.image", rejected)?;
    let filter = |event: &'static str| ["insert", FILTER, "--event", event, "--entry", "port_filter"];
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["insert", "/rejected.image", "--pin"], 1, &["\"rejected\"", "\"rule\":4", "\"offset\":16", "\"symbol\"", "listing"]),
        (&["insert", "/images/user-host.refuse", "--pin"], 1, &["wrong-host"]),
        (&["insert", "/init", "--pin"], 1, &["not-an-image"]),
        (&["insert", FILTER, "--pin", "--metered"], 1, &["not-metered"]),
        (&filter("kprobe:__x64_sys_getppid"), 2, &["not-metered", "rewrite --fuel"]),
        (
            &["insert", "/images/port_filter.metered.handler", "--event", "kprobe:no_such", "--entry", "port_filter"],
            2,
            &["no-event"],
        ),
        (
            &["insert", "/images/port_filter.metered.handler", "--event", "tracepoint:a:b", "--entry", "port_filter"],
            2,
            &["no-event"],
        ),
        (&["insert", FILTER, "--event", "timer:1s", "--entry", "nobody"], 2, &["no-entry", "port_filter port_spin"]),
        (&["insert", FILTER, "--event", "timer:1s"], 2, &["no-entry", "several entries"]),
        (&["stats", "77"], 2, &["no-handler"]),
        (&["list", "--device", "/dev/null"], 2, &["not the device"]),
        (&["list", "--device", "/dev/no"], 2, &["no-device"]),
    ];
    for (args, code, parts) in cases {
        let output = cordon(&[args, &["--format", "json"][..]].concat())?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(output.status.code() == Some(*code), "{args:?}: {:?} {said}", output.status);
        for part in *parts {
            ensure!(said.contains(part), "{args:?}: no {part} in {said}");
        }
    }
    ensure!(device.totals()?.handlers == 0, "something is left");
    Ok(format!("{} cases", cases.len()))
}

/// Descriptors of a removed handler stay and do nothing; pins come and go; numbers are not used again at once.
pub fn numbers(device: &Device) -> Result<String> {
    let (first, _) = device.insert_named("first", &image("faults.sandbox.image")?, 0)?;
    let (second, _) = device.insert_named("second", &image("loops.sandbox.image")?, 0)?;
    let timer = "timer:1ms".parse::<Event>().map_err(anyhow::Error::msg)?;
    first.attach(&timer.attach("fault_null"))?;
    first.attach(&Attach { hook: 1, ..Attach::new(event::NETFILTER, "", "fault_null") })?;
    let list = device.list()?;
    let names: Vec<String> = list.iter().map(|about| abi::text_of(&about.name)).collect();
    ensure!(names == ["first", "second"] && list[0].id < list[1].id, "{list:?}");
    ensure!(list[0].events == 2 && list[0].pid == std::process::id() && list[0].uid == 0, "{list:?}");
    let events = first.events()?;
    let named: Vec<String> = events.iter().filter_map(|e| Event::of(&e.attach)).map(|e| e.to_string()).collect();
    ensure!(named == ["timer:1ms", "netfilter:local_in"], "{named:?}");

    let id = list[0].id;
    let other = device.handler(id)?;
    first.pin()?;
    first.pin()?;
    ensure!(first.about()?.flags == abi::PINNED, "pinned");
    device.remove(id)?;
    for handler in [&first, &other] {
        ensure!(handler.about()?.flags == abi::ENDED && handler.events()?.is_empty(), "ended");
        let mut run = Run::new("fault_null", [0; 6]);
        let errors = [handler.run(&mut run), handler.attach(&timer.attach("fault_null")).map(drop), handler.pin()];
        ensure!(errors.iter().all(|e| e.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENODEV))), "{errors:?}");
    }
    ensure!(device.remove(id).is_err() && device.handler(id).is_err(), "the number is still known");
    ensure!(device.totals()?.handlers == 2, "its memory is gone too early");
    drop((first, other));
    ensure!(device.totals()?.handlers == 1, "its memory stays");

    second.pin()?;
    second.unpin()?;
    drop(second);
    ensure!(device.totals()?.handlers == 0 && device.list()?.is_empty(), "unpinned and closed");

    let mut run = Run::new("fault_null", [0; 6]);
    let (third, _) = device.insert(&image("faults.sandbox.image")?, 0)?;
    third.pin()?;
    let third_id = third.about()?.id;
    drop(third);
    ensure!(third_id > list[1].id, "a number is used again");
    let third = device.handler(third_id)?;
    third.run(&mut run)?;
    ensure!(run.kind == kind::NULL_ZONE, "{}", kind::text(run.kind));
    third.unpin()?;
    drop(third);
    ensure!(device.totals()?.handlers == 0, "unpinned and closed");
    Ok("pins, removal, lists".into())
}

/// Nobody has the device open: a pinned handler that a timer calls keeps the module, its removal lets it go; the next one starts from nothing.
pub fn unloads() -> Result<String> {
    let open = || super::device();
    let timer = "timer:1ms".parse::<Event>().map_err(anyhow::Error::msg)?.attach("port_filter");
    for round in 0..3 {
        let (handler, _) = open()?.insert(&image("port_filter.sandbox.handler")?, 0)?;
        handler.attach(&timer)?;
        handler.pin()?;
        let id = handler.about()?.id;
        drop(handler);
        for _ in 0..5 {
            ensure!(unload_module().is_err(), "round {round}: the module unloads in spite of a pinned handler");
            std::thread::sleep(Duration::from_millis(5));
        }
        let device = open()?;
        let calls = device.handler(id)?.about()?.stats.calls;
        ensure!(calls > 0, "round {round}: the timer does not call");
        ensure!(unload_module().is_err(), "round {round}: the module unloads with its device open");
        device.remove(id)?;
        drop(device);
        unload_module()?;
        ensure!(open().is_err(), "round {round}: the device outlives the module");
        load_module()?;
        let totals = open()?.totals()?;
        ensure!((totals.handlers, totals.inserted, totals.arena_pages) == (0, 0, 0), "round {round}: {totals:?}");
    }
    Ok("3 times, 6 refusals each".into())
}

/// Threads insert, pin, open, call, attach and remove what they find; in the end nothing is left.
pub fn races(device: &Device) -> Result<String> {
    const ROUNDS: u64 = 60;
    let file = image("port_filter.sandbox.handler")?;
    let timer = "timer:1ms".parse::<Event>().map_err(anyhow::Error::msg)?.attach("port_filter");
    let (opened, removed, inserting) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(2));
    let insert = |seed: u64| -> Result<()> {
        for round in 0..ROUNDS {
            let (handler, _) = device.insert(&file, 0)?;
            if (round + seed).is_multiple_of(2) {
                // Somebody may have removed it.
                let _ = handler.attach(&timer);
            }
            if (round + seed).is_multiple_of(3) {
                let _ = handler.pin();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    };
    let insert = |seed| {
        let done = insert(seed);
        inserting.fetch_sub(1, Ordering::Relaxed);
        done
    };
    let meddle = |first: u64| -> Result<()> {
        let mut round = 0;
        while inserting.load(Ordering::Relaxed) > 0 {
            round += 1;
            for about in device.list()? {
                if let Ok(handler) = device.handler(about.id) {
                    opened.fetch_add(1, Ordering::Relaxed);
                    let _ = (handler.run(&mut Run::new("port_filter", [0; 6])), handler.events()?);
                    let _ = if (u64::from(about.id) + round).is_multiple_of(2) { handler.pin() } else { handler.unpin() };
                }
                if (u64::from(about.id) + round + first).is_multiple_of(3) && device.remove(about.id).is_ok() {
                    removed.fetch_add(1, Ordering::Relaxed);
                }
            }
            std::thread::yield_now();
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let (insert, meddle) = (&insert, &meddle);
        let inserters: Vec<_> = (0..2).map(|seed| scope.spawn(move || insert(seed))).collect();
        let meddlers: Vec<_> = (0..2).map(|first| scope.spawn(move || meddle(first))).collect();
        inserters.into_iter().chain(meddlers).try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a panic"))?)
    })?;
    for about in device.list()? {
        device.remove(about.id)?;
    }
    let totals = device.totals()?;
    ensure!((totals.handlers, totals.arena_pages, totals.window_pages) == (0, 0, 0), "{totals:?}");
    let (opened, removed) = (opened.into_inner(), removed.into_inner());
    ensure!(opened > 20 && removed > 20, "{opened} opened, {removed} removed");
    Ok(format!("{} handlers, {opened} opened, {removed} removed", 2 * ROUNDS))
}
