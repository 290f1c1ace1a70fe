//! The text form of a report, like a compiler's error.

use super::{CodePlace, Frame, Report};
use crate::fault::{FaultAccess, FaultKind, FaultRegisters};
use std::fmt;
use std::time::Duration;

/// Frames that are shown at each end of a long backtrace.
const SHOWN_FRAMES: usize = 12;

impl fmt::Display for CodePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.function, self.function_offset) {
            (Some(function), Some(offset)) => write!(f, "{function}+{offset:#x}")?,
            _ => write!(f, "text offset {:#x}", self.text_offset)?,
        }
        if let Some(source) = &self.source {
            write!(f, " at {source}")?;
        }
        Ok(())
    }
}

impl fmt::Display for crate::SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        if self.column > 0 { write!(f, ":{}", self.column) } else { Ok(()) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error[{}]: {}", self.kind.code(), self.message)?;
        if let Some(place) = &self.place {
            match &place.source {
                Some(source) => writeln!(f, "  --> {source}")?,
                None => writeln!(f, "  --> {place}")?,
            }
        }
        writeln!(f, "   |")?;
        if let Some(instruction) = self.instruction.as_ref().or(self.rewritten.as_ref()) {
            writeln!(f, "   |     {instruction}")?;
            if let Some(line) = self.access_line() {
                writeln!(f, "   |     {} {line}", "^".repeat(instruction.chars().count().max(1)))?;
            }
            writeln!(f, "   |")?;
        } else if let Some(line) = self.access_line() {
            writeln!(f, "   |     {line}\n   |")?;
        }
        for (what, text) in self.facts() {
            writeln!(f, "   = {what}: {text}")?;
        }
        self.write_backtrace(f)?;
        self.registers.iter().try_for_each(|registers| write_registers(f, registers))
    }
}

impl Report {
    /// What the instruction tried to do, in one line.
    fn access_line(&self) -> Option<String> {
        let verb = match (self.access?, self.kind) {
            (FaultAccess::Read, _) => "reads",
            (FaultAccess::Write, _) => "writes",
        };
        let size = match self.bytes {
            Some(1) => "1 byte at ".to_owned(),
            Some(bytes) => format!("{bytes} bytes at "),
            None => String::new(),
        };
        let region = match &self.region {
            Some(region) => format!(": {region}"),
            None => ": far from all handler memory".to_owned(),
        };
        let address = self.address?;
        let happened = !matches!(self.kind, FaultKind::StrayAccess | FaultKind::GateRange);
        let cut = self.window_offset.filter(|offset| happened && u64::from(*offset) != address);
        let cut = cut.map_or(String::new(), |offset| format!(", cut to {offset:#x}"));
        Some(format!("{verb} {size}{address:#x}{cut}{region}"))
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = Vec::new();
        let mut add = |what, text: Option<String>| facts.extend(text.map(|text| (what, text)));
        let names = (self.handler.as_ref(), self.entry.as_ref());
        add("handler", names.0.cloned());
        add("entry", names.1.cloned());
        add("in", self.gate.as_ref().map(|gate| format!("gate {gate}")));
        add("in", self.import.as_ref().map(|import| format!("host function {import}")));
        if let Some(place) = &self.place {
            let function = place.function.as_ref().zip(place.function_offset);
            let function = function.map(|(name, offset)| format!("{name}+{offset:#x}, ")).unwrap_or_default();
            add("code", Some(format!("{function}text offset {:#x}", place.text_offset)));
            add("original", place.origin.as_ref().map(ToString::to_string));
        }
        add(
            "time",
            self.time.map(|time| {
                let whose = if time.outer { " of an outer call" } else { "" };
                let elapsed = Duration::from_micros(time.elapsed_ns / 1000);
                format!("limit {:?}{whose}, ended after {elapsed:?}", Duration::from_nanos(time.limit_ns))
            }),
        );
        let fuel = self.fuel.map(|fuel| match self.kind {
            FaultKind::Fuel => format!("all of {} instructions used", fuel.limit),
            _ => format!("{} instructions used", fuel.used),
        });
        add("fuel", fuel);
        self.notes.iter().for_each(|note| add("note", Some(note.clone())));
        facts
    }

    fn write_backtrace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.backtrace.is_empty() {
            return Ok(());
        }
        writeln!(f, "   = backtrace, innermost first:")?;
        let count = self.backtrace.len();
        for (number, frame) in self.backtrace.iter().enumerate() {
            if number == SHOWN_FRAMES && count > 2 * SHOWN_FRAMES {
                writeln!(f, "          … {} more", count - 2 * SHOWN_FRAMES)?;
            }
            if (SHOWN_FRAMES..count.saturating_sub(SHOWN_FRAMES)).contains(&number) {
                continue;
            }
            match frame {
                Frame::Gate(name) => writeln!(f, "     {number:4}: gate {name}")?,
                Frame::Import(name) => writeln!(f, "     {number:4}: host function {name}")?,
                Frame::Code(place) => writeln!(f, "     {number:4}: {place}")?,
            }
        }
        if self.backtrace_complete { Ok(()) } else { writeln!(f, "           and callers that are not shown") }
    }
}

fn write_registers(f: &mut fmt::Formatter<'_>, registers: &FaultRegisters) -> fmt::Result {
    writeln!(f, "   = registers, flags {:#x}:", registers.flags)?;
    for (names, values) in FaultRegisters::NAMES.chunks(4).zip(registers.general.chunks(4)) {
        write!(f, "    ")?;
        for (name, value) in names.iter().zip(values) {
            write!(f, " {name:>3} {value:016x}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}
