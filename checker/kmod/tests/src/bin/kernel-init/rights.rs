//! What users without CAP_SYS_MODULE may do: nothing by default; where they are let, little.

use super::image;
use anyhow::{Context as _, Result, ensure};
use cordon_kernel::abi::{self, Run, kind, verdict};
use cordon_kernel::{Device, Event, Handler, InsertError};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const NODE: &str = "/dev/cordon";

/// Runs `work` in a thread that belongs to a user without any privilege; the other threads stay root's.
fn as_user<R: Send>(uid: libc::uid_t, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    std::thread::scope(|scope| {
        let work = || {
            // SAFETY: the bare system calls take numbers and change this thread's identity only. 0 groups.
            let failed = unsafe {
                libc::syscall(libc::SYS_setgroups, 0, 0)
                    | libc::syscall(libc::SYS_setresgid, uid, uid, uid)
                    | libc::syscall(libc::SYS_setresuid, uid, uid, uid)
            };
            ensure!(failed == 0, "becoming a user: {}", io::Error::last_os_error());
            work()
        };
        scope.spawn(work).join().map_err(|_| anyhow::anyhow!("a panic"))?
    })
}

fn open() -> io::Result<Device> {
    Device::open(Path::new(NODE))
}

/// Lets users open the device, and insert.
fn let_users(mode: u32, allowed: bool) -> Result<()> {
    fs::set_permissions(NODE, fs::Permissions::from_mode(mode))?;
    fs::write("/sys/module/cordon/parameters/unprivileged", if allowed { "1" } else { "0" }).context("the module's option")
}

fn is<T>(result: &io::Result<T>, number: i32) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(number))
}

/// The verdict on an image, or what the system says.
fn refusal(result: Result<(Handler, Box<abi::Insert>), InsertError>) -> Result<u32, io::Error> {
    match result {
        Ok(_) => Ok(verdict::ACCEPTED),
        Err(InsertError::Refused(insert)) => Ok(insert.verdict),
        Err(InsertError::System(error)) => Err(error),
    }
}

/// As the module comes: the node is root's, and whoever may open it all the same inserts, sees and ends nothing.
pub fn off(device: &Device) -> Result<String> {
    let node = fs::metadata(NODE)?.permissions().mode();
    ensure!(node & 0o777 == 0o600, "mode {node:o}");
    let file = image("port_filter.sandbox.handler")?;
    as_user(1000, || {
        ensure!(is(&open(), libc::EACCES), "a user opens the device");
        ensure!(is(&refusal(device.insert(&file, 0)), libc::EPERM), "a user with root's descriptor inserts");
        Ok(())
    })?;
    let_users(0o666, false)?;
    let (handler, _) = device.insert(&file, 0)?;
    let id = handler.about()?.id;
    let event = "timer:1s".parse::<Event>().map_err(anyhow::Error::msg)?.attach("port_filter");
    as_user(1000, || {
        let device = open()?;
        ensure!(is(&refusal(device.insert(&file, 0)), libc::EPERM), "a user inserts");
        ensure!(device.list()?.is_empty(), "a user sees root's handlers");
        ensure!(is(&device.handler(id), libc::ENOENT) && is(&device.remove(id), libc::ENOENT), "a user opens or ends one");
        // Who was given a descriptor may call, not attach or pin.
        handler.run(&mut Run::new("port_filter", [0; 6]))?;
        ensure!(is(&handler.attach(&event), libc::EPERM), "a user attaches");
        ensure!(is(&handler.pin(), libc::EPERM) && is(&handler.unpin(), libc::EPERM), "a user pins or unpins");
        Ok(())
    })?;
    ensure!(handler.about()?.stats.calls == 1, "the call was not made");
    let_users(0o600, false)?;
    Ok("insertion, lists, removal, events, pins".into())
}

/// Inserts as often as the module lets; the last verdict must be that there are too many.
fn fill(device: &Device, name: &str) -> Result<Vec<Handler>> {
    let (file, mut kept) = (image(name)?, Vec::new());
    loop {
        match device.insert(&file, 0) {
            Ok((handler, _)) => kept.push(handler),
            Err(InsertError::Refused(insert)) if insert.verdict == verdict::OVER_QUOTA => return Ok(kept),
            Err(error) => return Err(error.into()),
        }
        ensure!(kept.len() < 100, "{name}: no end");
    }
}

/// With the option on: handlers of one's own, for direct calls, within limits.
pub fn on(device: &Device) -> Result<String> {
    let_users(0o666, true)?;
    let (filter, loops) = (image("port_filter.sandbox.handler")?, image("loops.sandbox.image")?);
    let (of_root, _) = device.insert_named("root's", &filter, 0)?;
    let roots = of_root.about()?.id;
    let (counts, mine, kept) = as_user(1000, || {
        let device = open()?;
        let (handler, _) = device.insert_named("mine", &loops, 0)?;
        let mut run = Run::new("spin_forever", [0; 6]);
        run.time_limit_ns = 5_000_000_000;
        handler.run(&mut run)?;
        // The limit is 10 ms; the bound is that of a privileged handler.
        ensure!(run.kind == kind::TIME_LIMIT && run.elapsed_ns < 4_000_000_000, "{} {}", kind::text(run.kind), run.elapsed_ns);
        let event = "timer:1s".parse::<Event>().map_err(anyhow::Error::msg)?;
        ensure!(is(&handler.attach(&event.attach("spin_forever")), libc::EPERM), "a user attaches");
        ensure!(is(&handler.pin(), libc::EPERM), "a user pins");
        let list = device.list()?;
        ensure!(list.len() == 1 && list[0].flags == abi::UNPRIVILEGED && list[0].uid == 1000, "{list:?}");
        ensure!(is(&device.handler(roots), libc::ENOENT) && is(&device.remove(roots), libc::ENOENT), "root's handler");
        // The image wants 20 MiB, of 32.
        ensure!(refusal(device.insert(&loops, 0))? == verdict::OVER_QUOTA, "memory");
        let large = refusal(device.insert(&image("long.handler")?, 0))?;
        ensure!(large == verdict::TOO_LARGE, "much text: {}", verdict::text(large));
        drop(handler);
        let (host, _) = device.insert(&image("host.sandbox.handler")?, 0)?;
        for (entry, expected) in [("host_time", kind::RETURNED), ("host_log", kind::BAD_CODE_POINTER)] {
            let mut run = Run::new(entry, [0; 6]);
            host.run(&mut run)?;
            ensure!(run.kind == expected, "{entry}: {}", kind::text(run.kind));
        }
        drop(host);
        let kept = fill(&device, "port_filter.sandbox.handler")?;
        Ok((kept.len(), kept[0].about()?.id, kept))
    })?;
    ensure!(counts == 8, "{counts} handlers");
    as_user(1001, || {
        let device = open()?;
        ensure!(device.list()?.is_empty() && is(&device.handler(mine), libc::ENOENT), "another user's handlers are seen");
        ensure!(is(&device.remove(mine), libc::ENOENT), "another user's handler is ended");
        ensure!(refusal(device.insert(&filter, 0))? == verdict::ACCEPTED, "the other one's limits count");
        Ok(())
    })?;
    ensure!(device.list()?.len() == 9 && device.handler(mine)?.about()?.flags == abi::UNPRIVILEGED, "root does not see all");
    as_user(1000, || {
        let device = open()?;
        device.handler(mine)?.run(&mut Run::new("port_filter", [0; 6]))?;
        ensure!(is(&device.remove(mine + 100), libc::ENOENT), "a number that nobody has");
        device.remove(mine)?;
        Ok(device.list()?.len())
    })
    .and_then(|left| if left == 7 { Ok(()) } else { Err(anyhow::anyhow!("{left} are left")) })?;
    let (long, _) = device.insert(&image("long.handler")?, 0)?;
    let mut run = Run::new("long", [2, 0, 0, 0, 0, 0]);
    long.run(&mut run)?;
    ensure!((run.kind, run.result) == (kind::RETURNED, 80_002), "root's long text: {} {}", kind::text(run.kind), run.result);
    drop((kept, long, of_root));
    ensure!(device.totals()?.handlers == 0, "something is left");
    let_users(0o600, false)?;
    Ok(format!("{counts} handlers of a user"))
}

/// Many users together leave half of the text and the exception table to others.
pub fn shares(device: &Device) -> Result<String> {
    let_users(0o666, true)?;
    let mut kept = Vec::new();
    let mut users = 0;
    for uid in 1000..1100 {
        let more = as_user(uid, || fill(&open()?, "half.handler"))?;
        users += 1;
        if more.is_empty() {
            break;
        }
        kept.extend(more);
    }
    let totals = device.totals()?;
    ensure!(!kept.is_empty() && users < 20 && totals.table_entries <= 0x30000 / 2 + 100, "{users} users, {totals:?}");
    let (half, _) = device.insert(&image("half.handler")?, 0)?;
    drop((kept, half));
    ensure!(device.totals()?.handlers == 0, "something is left");
    let_users(0o600, false)?;
    Ok(format!("{users} users, {} entries", totals.table_entries))
}
