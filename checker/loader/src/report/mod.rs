//! Reports: everything that can be told about a fault, with names and source lines. As a Rust value, as text (`Display`), and through serde
//! with the feature `serde`.

pub mod backtrace;
pub mod instruction;
pub mod region;
mod text;

use crate::fault::{Fault, FaultAccess, FaultKind, FaultRegisters};
use crate::fuel::FuelUse;
use crate::image::Image;
use crate::image::lines::SourceLine;
use crate::image::places::Origin;
use crate::jumps::BadJump;
use backtrace::RawFrame;
use cordon_checker::layout::MEMORY_END;
use region::Nearest;

/// Frames of a backtrace; more are left out.
const MOST_FRAMES: usize = 256;

/// A place in the handler's code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CodePlace {
    /// Offset in the image's text.
    pub text_offset: u32,
    /// Name of the function that contains it.
    pub function: Option<String>,
    /// Distance of `text_offset` from the function's start, bytes.
    pub function_offset: Option<u32>,
    /// Where the source is, if the objects had line tables.
    pub source: Option<SourceLine>,
    /// The original instruction's object, section and offset.
    pub origin: Option<Origin>,
}

/// One step of a backtrace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Frame {
    /// A built-in gate.
    Gate(String),
    /// A host function: the one in which the call ended, or one that called back.
    Import(String),
    /// Handler code: the interrupted instruction, or the one after a call that has not returned.
    Code(CodePlace),
}

/// The time limit that ended a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TimeUse {
    /// Nanoseconds.
    pub limit_ns: u64,
    /// Nanoseconds that the call with this limit took.
    pub elapsed_ns: u64,
    /// The limit is that of a call around this one.
    pub outer: bool,
}

/// All about a fault. What is not known, or does not apply, is absent. It holds no host address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// What ended the call.
    pub kind: FaultKind,
    /// The kind in words.
    pub message: String,
    /// Name that the host gave the image ([`Image::named`]).
    pub handler: Option<String>,
    /// The entry that the host called.
    pub entry: Option<String>,
    /// The instruction that faulted or did not happen, or the call of the gate or host function.
    pub place: Option<CodePlace>,
    /// The instruction there as it was in the object, AT&T syntax; fields with relocations are as in the object, mostly 0, but for the name
    /// of a gate or host function.
    pub instruction: Option<String>,
    /// The instruction there in the image.
    pub rewritten: Option<String>,
    /// Whether it reads or writes.
    pub access: Option<FaultAccess>,
    /// Bytes of the access.
    pub bytes: Option<u64>,
    /// The 64-bit address, see [`Fault::address`].
    pub address: Option<u64>,
    /// See [`Fault::window_offset`].
    pub window_offset: Option<u32>,
    /// Where the address is, or for an access that began well its first byte that could not be accessed.
    pub region: Option<Nearest>,
    /// The built-in gate in which the fault happened.
    pub gate: Option<String>,
    /// The host function in or after which the call ended.
    pub import: Option<String>,
    /// Innermost first; the last frame is the entry's.
    pub backtrace: Vec<Frame>,
    /// No frame is missing: there are not too many.
    pub backtrace_complete: bool,
    /// Absent for faults in gates and host functions.
    pub registers: Option<FaultRegisters>,
    /// The time limit that ended the call.
    pub time: Option<TimeUse>,
    /// The fuel of the call, where the image is metered.
    pub fuel: Option<FuelUse>,
    /// See [`Fault::jump`].
    pub jump: Option<BadJump>,
    /// Further remarks for people.
    pub notes: Vec<String>,
}

impl Report {
    pub(crate) fn of(fault: &Fault) -> Report {
        let image = fault.image();
        let place = fault.place();
        let (backtrace, backtrace_complete) = frames(fault);
        let callee = fault.gate.or(fault.import());
        let origin = place.and_then(|at| image.origin_of(at)).map_or(0, |origin| u64::from(origin.offset));
        let original = place.and_then(|at| instruction::text(image.places().original(at)?, origin, callee));
        let rewritten = place.filter(|_| !fault.trace.is_called());
        let rewritten = rewritten.and_then(|at| instruction::text(image.text().get(at as usize..)?, at.into(), None));
        let time = fault.overrun.map(|o| TimeUse {
            limit_ns: o.limit.as_nanos() as u64,
            elapsed_ns: o.elapsed.as_nanos() as u64,
            outer: o.outer,
        });
        let mut report = Report {
            kind: fault.kind,
            message: fault.kind.text().to_owned(),
            handler: image.name().map(str::to_owned),
            entry: fault.trace.entry().and_then(|at| image.entry_at(at)).map(str::to_owned),
            place: place.zip(fault.text_offset).map(|(at, shown)| code_place(image, at, shown)),
            instruction: original,
            rewritten,
            access: fault.access,
            bytes: fault.bytes,
            address: fault.address,
            window_offset: fault.window_offset,
            region: nearest(fault),
            gate: fault.gate.map(str::to_owned),
            import: fault.import().map(str::to_owned),
            backtrace,
            backtrace_complete,
            registers: fault.registers,
            time,
            fuel: fault.fuel,
            jump: fault.jump,
            notes: Vec::new(),
        };
        report.notes = notes(fault, &report);
        report
    }
}

/// The place of the instruction at text offset `at`, shown as `shown`: for a return address the call before it is looked up.
fn code_place(image: &Image, at: u32, shown: u32) -> CodePlace {
    let function = image.function_at(at);
    CodePlace {
        text_offset: shown,
        function: function.map(|(name, _)| name.to_owned()),
        function_offset: function.map(|(_, distance)| distance + (shown - at)),
        source: image.lines().at(at),
        origin: image.origin_of(at),
    }
}

fn frames(fault: &Fault) -> (Vec<Frame>, bool) {
    let image = fault.image();
    let import = |index: u32| image.imports().get(index as usize).map(|i| i.name.clone()).unwrap_or_default();
    let mut frames: Vec<Frame> = fault.gate.map(|gate| Frame::Gate(gate.to_owned())).into_iter().collect();
    frames.extend(fault.import().map(|name| Frame::Import(name.to_owned())));
    let (raw, complete) = fault.trace.frames(MOST_FRAMES);
    frames.extend(raw.into_iter().enumerate().map(|(index, frame)| match frame {
        // The access or meter that a check or count belongs to says more than the `ud2`.
        RawFrame::Instruction(at) => {
            let at = fault.text_offset.filter(|_| index == 0).unwrap_or(at);
            Frame::Code(code_place(image, at, at))
        }
        RawFrame::Return(at) => Frame::Code(code_place(image, at.saturating_sub(1), at)),
        RawFrame::Host(index) => Frame::Import(import(index)),
    }));
    (frames, complete)
}

/// Where the first byte lies that could not be accessed.
fn nearest(fault: &Fault) -> Option<Nearest> {
    let address = fault.trace.failed.map(u64::from).or(fault.address)?;
    region::nearest(fault.image(), fault.trace.shared.iter().cloned(), address)
}

fn notes(fault: &Fault, report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(address), Some(offset)) = (fault.address, fault.window_offset)
        && address != u64::from(offset)
    {
        let signed = address.cast_signed();
        let negative = if signed < 0 { format!(" (-{:#x})", signed.unsigned_abs()) } else { String::new() };
        let went = if matches!(fault.kind, FaultKind::StrayAccess | FaultKind::GateRange) { "would have gone" } else { "went" };
        notes.push(format!("{address:#x}{negative} is no handler pointer; cut to 32 bits the access {went} to {offset:#x}"));
    } else if report.region.is_none() && fault.address.is_some_and(|a| a >= MEMORY_END.into()) {
        notes.push(format!("handler memory ends at {MEMORY_END:#x}"));
    }
    let partly = fault.trace.failed.zip(fault.window_offset).filter(|(failed, start)| failed != start);
    if let Some((failed, _)) = partly {
        notes.push(format!("the access begins well; its first bad byte is {failed:#x}"));
    }
    if report.place.is_none() && (report.gate.is_some() || report.import.is_some()) {
        notes.push("it was reached by a jump at the end of the entry, which left no return address".to_owned());
    }
    match fault.kind {
        FaultKind::GateRange => notes.extend(range_note(fault)),
        FaultKind::Misaligned => {
            notes.push("an aligned vector access needs an address that is a multiple of its size".to_owned())
        }
        FaultKind::BadJump => notes.extend(fault.jump.map(|why| why.to_string())),
        FaultKind::TimeLimit if fault.trace.import.is_some() => {
            notes.push("the call ended when the host function returned".to_owned())
        }
        FaultKind::Fuel if fault.gate.is_some() => notes.push("the gate would have cost more than was left".to_owned()),
        _ => {}
    }
    notes
}

/// Where a range ends whose start is good.
fn range_note(fault: &Fault) -> Option<String> {
    let (start, bytes) = (fault.address.filter(|at| *at <= u32::MAX.into())?, fault.bytes?);
    let end = start.checked_add(bytes).map_or_else(|| "beyond 64 bits".to_owned(), |end| format!("at {end:#x}"));
    Some(format!("the range ends {end}, past the window's 4 GiB"))
}

#[cfg(feature = "serde")]
impl serde::Serialize for FaultRegisters {
    /// A map from register names to values, and the flags.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(Some(FaultRegisters::NAMES.len() + 1))?;
        for (name, value) in FaultRegisters::NAMES.iter().zip(&self.general) {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("flags", &self.flags)?;
        map.end()
    }
}
