//! The guest's /init: loads the module, runs the tests, prints a line for each and a last one with the sums, ends the machine.

mod change;
mod cpus;
mod events;
mod files;
mod health;
mod host;
mod machine;
mod nasty;
mod rights;
mod tool;

use anyhow::{Context as _, Result, bail, ensure};
use cordon_checker::Policy;
use cordon_checker::layout::RegionKind;
use cordon_fixtures::catalog;
use cordon_fixtures::random::Random;
use cordon_fixtures::script::{Call, Expect, FaultKind, HEADROOM, Outcome, digest};
use cordon_image::Image;
use cordon_kernel::abi::{self, Run, kind, verdict};
use cordon_kernel::{Device, Handler, InsertError, Places};
use cordon_kernel_tests::Expected;
use health::log;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

const IMAGES: &str = "/images";
/// Time limit of calls that never end, and of all others (emulated processors are slow), ns.
const ENDLESS_NS: u64 = 20_000_000;
const LONGEST_NS: u64 = 5_000_000_000;

fn mount(kind: &str, at: &str) -> Result<()> {
    fs::create_dir_all(at)?;
    let (kind, at) = (CString::new(kind)?, CString::new(at)?);
    // SAFETY: the strings are terminated; there are no data.
    let failed = unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    ensure!(failed == 0, "mount {at:?}: {}", std::io::Error::last_os_error());
    Ok(())
}

fn load_module() -> Result<()> {
    let file = File::open("/cordon.ko")?;
    // SAFETY: the descriptor is open, the parameters are an empty string.
    let failed = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    ensure!(failed == 0, "finit_module: {}", std::io::Error::last_os_error());
    Ok(())
}

fn unload_module() -> Result<()> {
    // SAFETY: the name is terminated.
    let failed = unsafe { libc::syscall(libc::SYS_delete_module, c"cordon".as_ptr(), libc::O_NONBLOCK) };
    ensure!(failed == 0, "delete_module: {}", std::io::Error::last_os_error());
    Ok(())
}

fn device() -> Result<Device> {
    Device::open(Path::new("/dev/cordon")).context("/dev/cordon")
}

fn images(extension: &str) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(IMAGES)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    found.sort();
    Ok(found)
}

/// An inserted image with what the tests need of its file.
struct Subject {
    handler: Handler,
    places: Places,
    arguments: u32,
}

impl Subject {
    fn new(device: &Device, file: &[u8]) -> Result<Subject> {
        let (handler, _) = device.insert(file, 0)?;
        let image = Image::read(file, &Policy::KERNEL).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let region = image.regions().find(|r| r.kind == RegionKind::Argument).context("an argument area")?;
        Ok(Subject { handler, places: Places::of(file), arguments: region.start })
    }

    /// One call of a script, with its report.
    fn call(&self, call: &Call) -> Result<(Outcome, Run)> {
        let mut buffer = call.buffer();
        self.handler.write(self.arguments, &buffer).context("writing the payload")?;
        let [a, b, c, d] = call.args;
        let at = u64::from(self.arguments) + HEADROOM as u64;
        let mut run = Run::new(call.entry, [at, call.payload.len() as u64, a, b, c, d]);
        run.time_limit_ns = if call.expect == Expect::Endless { ENDLESS_NS } else { LONGEST_NS };
        self.handler.run(&mut run).with_context(|| call.entry)?;
        self.handler.read(self.arguments, &mut buffer)?;
        Ok((self.outcome(&run, &buffer), run))
    }

    fn outcome(&self, run: &Run, buffer: &[u8]) -> Outcome {
        let stray = self.places.stray_access(run.text_offset).filter(|_| run.kind == kind::TRAP);
        let fault = match run.kind {
            kind::RETURNED => return Outcome::Value { result: run.result.cast_signed(), memory: digest(buffer) },
            kind::TIME_LIMIT | kind::FUEL => return Outcome::Stopped,
            kind::DIVIDE => FaultKind::Divide,
            kind::TRAP if stray.is_none() => FaultKind::Illegal,
            _ => FaultKind::Access,
        };
        // A place behind a call belongs to the call.
        let called = matches!(run.kind, kind::NATIVE_STACK_OVERFLOW | kind::BAD_CODE_POINTER) || run.flags & abi::IN_GATE != 0;
        let at = stray.unwrap_or(run.text_offset) - u32::from(called);
        let function = self.places.function(at).filter(|_| run.flags & abi::HAS_PLACE != 0);
        Outcome::Fault { kind: fault, function: function.map(str::to_owned) }
    }
}

/// Replays a fixture's script on one image.
fn replay(device: &Device, path: &Path) -> Result<usize> {
    let name = path.file_name().and_then(|n| n.to_str()).context("a name")?;
    let fixture = name.split('.').next().and_then(catalog::find).context("a fixture")?;
    let expected = fs::read_to_string(Path::new(IMAGES).join(format!("{}.expected", fixture.name)))?;
    let subject = Subject::new(device, &fs::read(path)?)?;
    let (mut made, mut differ) = (0, Vec::new());
    for (index, (call, line)) in (fixture.script)(1).iter().zip(expected.lines()).enumerate() {
        let expected = Expected::from_line(line).with_context(|| line.to_owned())?;
        if expected == Expected::Skipped {
            continue;
        }
        made += 1;
        let (outcome, run) = subject.call(call)?;
        if !expected.holds(&outcome) {
            differ.push(format!(
                "call {index} {}: {outcome:?}, not {expected:?} ({} {:#x})",
                call.entry,
                kind::text(run.kind),
                run.text_offset
            ));
        }
    }
    ensure!(differ.is_empty(), "{} of {made}: {}", differ.len(), differ[..differ.len().min(3)].join("; "));
    Ok(made)
}

fn same_as_user_mode(device: &Device, mode: &str) -> Result<String> {
    let suffix = format!(".{mode}.image");
    let (mut calls, mut count, mut problems) = (0, 0, Vec::new());
    for path in images("image")?.iter().filter(|p| p.to_string_lossy().ends_with(&suffix)) {
        count += 1;
        match replay(device, path) {
            Ok(made) => calls += made,
            Err(error) => problems.push(format!("{}: {error:#}", path.display())),
        }
    }
    ensure!(problems.is_empty() && count > 0, "{count} images; {}", problems.join("\n    "));
    Ok(format!("{count} fixtures, {calls} calls"))
}

fn image(name: &str) -> Result<Vec<u8>> {
    fs::read(Path::new(IMAGES).join(name)).with_context(|| name.to_owned())
}

/// Each kind of fault with its report.
fn faults_are_reported(device: &Device) -> Result<String> {
    let subject = Subject::new(device, &image("faults.sandbox.image")?)?;
    let wanted = [
        ("fault_null", kind::NULL_ZONE, abi::HAS_ADDRESS),
        ("fault_null_write", kind::NULL_ZONE, abi::HAS_ADDRESS | abi::IS_WRITE),
        ("fault_rodata_write", kind::READ_ONLY, abi::HAS_ADDRESS | abi::IS_WRITE),
        ("fault_div0", kind::DIVIDE, 0),
        ("fault_div_overflow", kind::DIVIDE, 0),
        ("fault_ud2", kind::TRAP, 0),
        ("fault_call_null", kind::BAD_CODE_POINTER, 0),
        ("fault_stack_overflow", kind::NATIVE_STACK_OVERFLOW, 0),
    ];
    for (entry, expected, flags) in wanted {
        let call = Call::new(entry).payload([7; 16]);
        let (_, run) = subject.call(&call)?;
        let address = run.flags & (abi::HAS_ADDRESS | abi::IS_WRITE);
        ensure!(run.kind == expected && address == flags, "{entry}: {} flags {:#x}", kind::text(run.kind), run.flags);
        ensure!(run.flags & abi::HAS_PLACE != 0, "{entry}: no place");
        let secret = run.registers.iter().find(|value| is_secret(**value));
        ensure!(secret.is_none(), "{entry}: a register looks like an address of the kernel: {:x?}", run.registers);
        ensure!(run.result == 0, "{entry}: a result in spite of the fault");
    }
    Ok(format!("{} kinds", wanted.len()))
}

/// Whether a word looks like an address of the kernel, and not like a small negative number.
fn is_secret(word: u64) -> bool {
    word >> 47 == (1 << 17) - 1 && word < u64::MAX - (1 << 24)
}

/// All that a handler can find, in registers at its entry and behind gates and in every byte of its window, is no address of the kernel.
fn handlers_learn_no_address(device: &Device) -> Result<String> {
    let file = image("leak.handler")?;
    let (handler, _) = device.insert(&file, 0)?;
    let image = Image::read(&file, &Policy::KERNEL).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let (mut words, mut stored) = (0, 0);
    for round in 0..3 {
        let mut run = Run::new("leak", [1, 2, 3, 4, 5, 6]);
        handler.run(&mut run)?;
        ensure!((run.kind, run.result) == (kind::RETURNED, 1), "{}", kind::text(run.kind));
        for region in image.regions() {
            let mut bytes = vec![0; (region.end - region.start) as usize];
            handler.read(region.start, &mut bytes)?;
            for (at, chunk) in bytes.chunks_exact(8).enumerate() {
                let word = chunk.first_chunk().map_or(0, |c| u64::from_le_bytes(*c));
                words += 1;
                stored += u64::from(word != 0);
                ensure!(!is_secret(word), "round {round}: {word:#x} at {:#x}", region.start as usize + 8 * at);
            }
        }
    }
    ensure!(stored > 30, "the handler stored hardly anything: {stored}");
    Ok(format!("{words} words, {stored} of them not 0"))
}

fn faults_in_a_row(device: &Device) -> Result<String> {
    let subject = Subject::new(device, &image("faults.sandbox.image")?)?;
    for round in 0..20_000 {
        let mut run = Run::new(["fault_null", "fault_div0", "fault_ud2", "fault_stack_overflow"][round % 4], [0; 6]);
        subject.handler.run(&mut run)?;
        ensure!(run.kind != kind::RETURNED, "round {round} returned");
    }
    let stats = subject.handler.stats()?;
    ensure!(stats.calls == 20_000 && stats.stopped == 20_000, "{stats:?}");
    Ok("20000 of 20000".into())
}

fn endless_loops_end(device: &Device) -> Result<String> {
    let mut longest = 0;
    for mode in ["sandbox", "match", "metered", "both"] {
        let subject = Subject::new(device, &image(&format!("loops.{mode}.image"))?)?;
        for _ in 0..10 {
            let mut run = Run::new("spin_forever", [0; 6]);
            run.time_limit_ns = ENDLESS_NS;
            subject.handler.run(&mut run)?;
            ensure!(run.kind == kind::TIME_LIMIT, "{mode}: {}", kind::text(run.kind));
            ensure!(run.flags & abi::HAS_PLACE != 0 && run.elapsed_ns >= ENDLESS_NS, "{mode}: {run:?}");
            longest = longest.max(run.elapsed_ns);
        }
        if mode == "metered" || mode == "both" {
            let mut run = Run::new("spin_forever", [0; 6]);
            run.fuel = 100_000;
            subject.handler.run(&mut run)?;
            ensure!(run.kind == kind::FUEL && run.fuel_used <= 100_000, "{mode}: {} {}", kind::text(run.kind), run.fuel_used);
        }
    }
    Ok(format!("after {} ms at most, limit {} ms", longest / 1_000_000, ENDLESS_NS / 1_000_000))
}

/// Instructions that no checker may let pass, put where an entry's first instruction was.
const ATTACKS: &[(&str, &[u8])] = &[
    ("wrmsr", &[0x0f, 0x30]),
    ("rdmsr", &[0x0f, 0x32]),
    ("hlt", &[0xf4]),
    ("cli", &[0xfa]),
    ("sti", &[0xfb]),
    ("popf", &[0x9d]),
    ("int3", &[0xcc]),
    ("iretq", &[0x48, 0xcf]),
    ("syscall", &[0x0f, 0x05]),
    ("sysret", &[0x48, 0x0f, 0x07]),
    ("swapgs", &[0x0f, 0x01, 0xf8]),
    ("mov %cr3,%rax", &[0x0f, 0x20, 0xd8]),
    ("mov %rax,%cr0", &[0x0f, 0x22, 0xc0]),
    ("mov %rax,%dr7", &[0x0f, 0x23, 0xf8]),
    ("in %dx,%al", &[0xec]),
    ("wrfsbase %rax", &[0xf3, 0x48, 0x0f, 0xae, 0xd0]),
    ("rdfsbase %rax", &[0xf3, 0x48, 0x0f, 0xae, 0xc0]),
    ("mov (%rax),%rax", &[0x48, 0x8b, 0x00]),
    ("mov %rax,(%rax)", &[0x48, 0x89, 0x00]),
    ("mov %gs:0,%rax", &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0]),
    ("mov %fs:(%rax),%rax", &[0x64, 0x48, 0x8b, 0x00]),
    ("mov %fs:-8,%rax", &[0x64, 0x48, 0x8b, 0x04, 0x25, 0xf8, 0xff, 0xff, 0xff]),
    ("mov %rsp,%rax", &[0x48, 0x89, 0xe0]),
    ("mov %rax,%rsp", &[0x48, 0x89, 0xc4]),
    ("pop %rax", &[0x58]),
    ("lea (%rip),%rax", &[0x48, 0x8d, 0x05, 0, 0, 0, 0]),
    ("jmp *%rax", &[0xff, 0xe0]),
    ("call *%rax", &[0xff, 0xd0]),
    ("lock incl %fs:(%eax)", &[0x64, 0x67, 0xf0, 0xff, 0x00]),
    ("xchg %rax,%fs:(%ecx)", &[0x64, 0x67, 0x48, 0x87, 0x01]),
    ("movups %fs:(%eax),%xmm0", &[0x64, 0x67, 0x0f, 0x10, 0x00]),
    ("fld1", &[0xd9, 0xe8]),
    ("rep movsb", &[0xf3, 0xa4]),
];

/// Where text begins in the file, and an image with nothing in front of it changed.
fn text_of(file: &[u8]) -> Result<std::ops::Range<usize>> {
    let image = Image::read(file, &Policy::KERNEL).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let from = image.text.as_ptr() as usize - file.as_ptr() as usize;
    Ok(from..from + image.text.len())
}

fn verdict_of(device: &Device, file: &[u8]) -> Result<u32> {
    match device.insert(file, 0) {
        Ok(_) => Ok(verdict::ACCEPTED),
        Err(InsertError::Refused(insert)) => Ok(insert.verdict),
        Err(InsertError::System(error)) => bail!("insertion: {error}"),
    }
}

fn attacks_are_refused(device: &Device) -> Result<String> {
    let good = image("cksum16.sandbox.image")?;
    ensure!(verdict_of(device, &good)? == verdict::ACCEPTED);
    let text = text_of(&good)?;
    for (what, bytes) in ATTACKS {
        let mut bad = good.clone();
        // The first entry begins with the text: endbr64 and LIMIT, 16 bytes. No-ops fill what the attack leaves of the old code.
        bad[text.start + 16..text.start + 48].fill(0x90);
        bad[text.start + 16..text.start + 16 + bytes.len()].copy_from_slice(bytes);
        ensure!(verdict_of(device, &bad)? == verdict::REJECTED, "{what} was not rejected");
    }
    // The same patch with a harmless instruction is not what the checker minds: only what the rest of the text makes of it.
    for (what, at, len) in [("endbr64", 0, 4), ("cmp of LIMIT", 4, 6), ("LIMIT's branch", 10, 6)] {
        let mut bad = good.clone();
        bad[text.start + at..text.start + at + len].fill(0x90);
        ensure!(verdict_of(device, &bad)? == verdict::REJECTED, "an entry without {what} was not rejected");
    }
    for path in images("refuse")? {
        let found = verdict_of(device, &fs::read(&path)?)?;
        ensure!(found == verdict::BAD_LAYOUT, "{}: {}", path.display(), verdict::text(found));
    }
    let found = verdict_of(device, &good[..good.len() / 2])?;
    ensure!(matches!(found, verdict::BAD_FORMAT | verdict::BAD_NOTE), "half an image: {}", verdict::text(found));
    let metered = match device.insert(&good, abi::DEMAND_METERED) {
        Err(InsertError::Refused(insert)) => insert.verdict,
        _ => verdict::ACCEPTED,
    };
    ensure!(metered == verdict::NOT_METERED, "{}", verdict::text(metered));
    Ok(format!("{} instructions, 3 entries, 3 files", ATTACKS.len()))
}

/// Flips bits of good images; what is still accepted runs, and may do what it likes.
fn mutants_harm_nobody(device: &Device) -> Result<String> {
    let mut random = Random::new(61);
    let (mut accepted, mut tried) = (0, 0);
    for name in ["fsm.sandbox.image", "kv.match.image", "faults.both.image", "ds_rb.metered.image"] {
        let good = image(name)?;
        let text = text_of(&good)?;
        let fixture = name.split('.').next().and_then(catalog::find).context("a fixture")?;
        for _ in 0..250 {
            let mut bad = good.clone();
            for _ in 0..random.between(1, 3) {
                // Mostly the text; else header, note and data.
                let range = if random.below(5) > 0 { text.clone() } else { 0..bad.len() };
                let at = range.start + random.below(range.len() as u64) as usize;
                bad[at] ^= 1 << random.below(8);
            }
            tried += 1;
            let Ok(subject) = Subject::new(device, &bad) else { continue };
            accepted += 1;
            for call in (fixture.script)(1).iter().take(12) {
                let mut run = Run::new(call.entry, [u64::from(subject.arguments), 64, random.word(), random.word(), 5, 6]);
                run.time_limit_ns = 3_000_000;
                // An entry may be gone with its name.
                let _ = subject.handler.run(&mut run);
            }
        }
    }
    ensure!(accepted > 0, "no mutant was accepted");
    Ok(format!("{tried} mutants, {accepted} accepted and run"))
}

fn window_memory_is_shared(device: &Device) -> Result<String> {
    let subject = Subject::new(device, &image("cksum16.sandbox.image")?)?;
    let length = 8192;
    // SAFETY: a new mapping of the handler's memory, unmapped below.
    let map = |protection| unsafe {
        let file = subject.handler.file().as_raw_fd();
        libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file, subject.arguments.into())
    };
    let shared = map(libc::PROT_READ | libc::PROT_WRITE);
    ensure!(shared != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    // SAFETY: the mapping has `length` bytes; nobody else touches them while the slice lives.
    let bytes = unsafe { std::slice::from_raw_parts_mut(shared.cast::<u8>(), length) };
    bytes[4095..4099].copy_from_slice(b"here");
    let mut read = [0; 4];
    subject.handler.read(subject.arguments + 4095, &mut read)?;
    ensure!(&read == b"here", "pread sees {read:?}");
    subject.handler.write(subject.arguments + 4095, b"back")?;
    ensure!(&bytes[4095..4099] == b"back", "the mapping sees {:?}", &bytes[4095..4099]);
    // SAFETY: as mapped above.
    unsafe { libc::munmap(shared, length) };
    ensure!(map(libc::PROT_READ | libc::PROT_EXEC) == libc::MAP_FAILED, "executable");
    let mut byte = [0];
    ensure!(subject.handler.read(0, &mut byte).is_err(), "the null zone is readable");
    ensure!(subject.handler.write(0xffff_ffff, &byte).is_err(), "the window's end is writable");
    Ok("mmap, pread, pwrite".into())
}

fn cycles_leak_nothing(device: &Device) -> Result<String> {
    let file = image("md5.sandbox.image")?;
    let cycle = || -> Result<()> {
        let subject = Subject::new(device, &file)?;
        subject.call(&Call::new("md5").payload([1; 100]))?;
        Ok(())
    };
    cycle()?;
    let free = |_: ()| -> Result<u64> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let line = text.lines().find(|l| l.starts_with("MemFree:")).context("MemFree")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
    };
    let before = (device.totals()?, free(())?);
    ensure!(before.0.handlers == 0 && before.0.arena_pages == 0 && before.0.window_pages == 0, "{:?}", before.0);
    let rounds = 100;
    for _ in 0..rounds {
        cycle()?;
    }
    let after = (device.totals()?, free(())?);
    ensure!(after.0.handlers == 0 && after.0.arena_pages == 0 && after.0.window_pages == 0, "{:?}", after.0);
    ensure!(after.0.table_entries == before.0.table_entries, "{:?}, before {:?}", after.0, before.0);
    // One window is 21 MiB; what the kernel keeps in caches is far less than one in ten rounds would lose.
    ensure!(after.1 + 100_000 > before.1, "{} KiB free, before {}", after.1, before.1);
    Ok(format!("{rounds} cycles"))
}

fn many_handlers_at_once(device: &Device) -> Result<String> {
    let file = image("loops.sandbox.image")?;
    let subjects: Vec<Subject> = (0..8).map(|_| Subject::new(device, &file)).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let work = |subject: &Subject| -> Result<BTreeMap<u64, u32>> {
            let mut results = BTreeMap::new();
            for _ in 0..50 {
                let mut run = Run::new("nested_loops", [0, 0, 40, 0, 0, 0]);
                run.time_limit_ns = LONGEST_NS;
                subject.handler.run(&mut run)?;
                ensure!(run.kind == kind::RETURNED, "{}", kind::text(run.kind));
                *results.entry(run.result).or_default() += 1;
            }
            Ok(results)
        };
        let threads: Vec<_> = subjects.iter().map(|subject| scope.spawn(move || work(subject))).collect();
        let results: Vec<_> = threads.into_iter().map(|t| t.join().expect("no panic")).collect::<Result<_>>()?;
        ensure!(results.iter().all(|r| r.len() == 1 && *r == results[0]), "results differ: {results:?}");
        Ok(format!("{} handlers in as many threads", results.len()))
    })
}

type Test = (&'static str, fn(&Device) -> Result<String>);

const TESTS: &[Test] = &[
    ("fixtures as in user mode, sandbox", |d| same_as_user_mode(d, "sandbox")),
    ("fixtures as in user mode, match", |d| same_as_user_mode(d, "match")),
    ("fixtures as in user mode, metered", |d| same_as_user_mode(d, "metered")),
    ("fixtures as in user mode, match and metered", |d| same_as_user_mode(d, "both")),
    ("faults are reported", faults_are_reported),
    ("faults in a row", faults_in_a_row),
    ("handlers learn no address", handlers_learn_no_address),
    ("endless loops end", endless_loops_end),
    ("attacks are refused", attacks_are_refused),
    ("broken files are refused", files::broken),
    ("mutants harm nobody", mutants_harm_nobody),
    ("window memory is shared", window_memory_is_shared),
    ("many handlers at once", many_handlers_at_once),
    ("cycles leak nothing", cycles_leak_nothing),
    ("a timer calls in softirqs", events::timer),
    ("kprobes and tracepoints call", events::probes),
    ("packets are filtered", events::packets),
    ("cycles under traffic", events::cycles_under_traffic),
    ("the command pins and removes", tool::pinned),
    ("the command holds a handler", tool::held),
    ("the command says what is wrong", tool::refusals),
    ("handlers have numbers", tool::numbers),
    ("whoever lets go last ends a handler", tool::races),
    ("users insert only where they are let", rights::off),
    ("users have their own handlers and tighter limits", rights::on),
    ("users together leave half of the room", rights::shares),
    ("handlers read the time", host::time),
    ("handlers log lines", host::lines),
    ("maps hold what a model holds", host::maps),
    ("maps are shared by all CPUs", host::shared_map),
    ("packets load as they are", host::packets),
    ("host functions in kprobes", host::from_probes),
    ("packets are changed", change::rewritten),
    ("TCP passes and is changed", change::tcp),
    ("no change harms the kernel", change::destroyed),
    ("each CPU has its window", cpus::windows),
    ("string instructions stop exactly", machine::strings),
    ("longjmp lands or is refused", machine::jumps),
    ("cpuid names no machine", machine::identity),
    ("breakpoints call with interrupts off", machine::breakpoints),
    ("CPUs come and go", cpus::hotplug),
    ("nasty places call", nasty::places),
    ("events come and go while they fire", nasty::come_and_go),
];

fn tell(name: &str, result: Result<String>, sums: &mut (u32, u32)) {
    match result {
        Ok(details) => {
            sums.0 += 1;
            println!("ok: {name}: {details}");
        }
        Err(error) => {
            sums.1 += 1;
            println!("FAILED: {name}: {error:#}");
        }
    }
}

fn run() -> (u32, u32) {
    let mut sums = (0, 0);
    let prepared = mount("devtmpfs", "/dev")
        .and_then(|()| mount("proc", "/proc"))
        .and_then(|()| mount("sysfs", "/sys"))
        .and_then(|()| load_module());
    let leaks = health::Leaks::new();
    let device = prepared.and_then(|()| device());
    match device {
        Ok(device) => {
            // The kernel hands on what it does not know of its command line.
            let wanted = std::env::var("cordon_tests").unwrap_or_default();
            let chosen: Vec<_> = TESTS.iter().filter(|(name, _)| name.contains(&wanted)).collect();
            if chosen.is_empty() {
                tell("a test is chosen", Err(anyhow::anyhow!("no test's name contains {wanted:?}")), &mut sums);
            }
            for (name, test) in chosen {
                let start = std::time::Instant::now();
                let result = test(&device).map(|details| format!("{details} ({} s)", start.elapsed().as_secs()));
                tell(name, result, &mut sums);
            }
            drop(device);
            tell("the module unloads when nothing holds it", tool::unloads(), &mut sums);
        }
        Err(error) => tell("the module loads", Err(error), &mut sums),
    }
    if let Some(leaks) = leaks {
        tell("kmemleak finds nothing", leaks.unreferenced(), &mut sums);
    }
    tell("the kernel's log is clean", health::log_is_clean(), &mut sums);
    sums
}

fn main() {
    // What the firmware printed does not end its line.
    println!();
    let (passed, failed) = run();
    println!("cordon kernel tests: {passed} passed, {failed} failed");
    // SAFETY: ends the virtual machine; with -no-reboot QEMU ends as well.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_AUTOBOOT);
    }
}
