//! Why a call in the kernel was stopped: text and JSON with the fields of user mode's reports, as far as the kernel tells them.

use cordon_kernel::Places;
use cordon_kernel::abi::{self, Run, kind, text_of};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Names of `cordon_run.registers`, in their order.
const REGISTERS: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// A stopped call, with names for places where the image file is at hand.
pub struct Stop<'a> {
    pub run: &'a Run,
    pub entry: &'a str,
    pub places: Option<&'a Places>,
}

impl Stop<'_> {
    fn has(&self, flag: u32) -> bool {
        self.run.flags & flag != 0
    }

    /// Match mode: the access whose check led to the trap.
    fn stray(&self) -> Option<u32> {
        let at = self.run.text_offset;
        self.places.filter(|_| self.run.kind == kind::TRAP && self.has(abi::HAS_PLACE)).and_then(|places| places.stray_access(at))
    }

    fn kind(&self) -> &'static str {
        if self.stray().is_some() { "stray-access" } else { kind::text(self.run.kind) }
    }

    /// The text offset to show, and one inside the instruction that is meant: places behind a call belong to the call.
    fn place(&self) -> Option<(u32, u32)> {
        let called = matches!(self.run.kind, kind::NATIVE_STACK_OVERFLOW | kind::BAD_CODE_POINTER) || self.has(abi::IN_GATE);
        let at = self.stray().unwrap_or(self.run.text_offset);
        self.has(abi::HAS_PLACE).then(|| (at, at.saturating_sub(u32::from(called))))
    }

    fn function(&self, inside: u32) -> Option<&str> {
        self.places.and_then(|places| places.function(inside))
    }

    fn access(&self) -> Option<&'static str> {
        self.has(abi::HAS_ADDRESS).then(|| if self.has(abi::IS_WRITE) { "write" } else { "read" })
    }

    /// Return addresses, innermost first, with the functions that they lie in.
    fn frames(&self) -> impl Iterator<Item = (u32, Option<&str>)> {
        let count = (self.run.frames as usize).min(abi::FRAMES);
        self.run.frame[..count].iter().map(|&at| (at, self.function(at.saturating_sub(1))))
    }

    /// Lines for people, each indented.
    pub fn text(&self) -> String {
        let mut text = format!("    stopped: {} in entry {}\n", self.kind(), self.entry);
        if let Some((at, inside)) = self.place() {
            let name = self.function(inside).map_or(String::new(), |name| format!(" in {}", name.escape_debug()));
            let _ = writeln!(text, "    at text offset {at:#x}{name}");
        }
        if self.has(abi::IN_GATE) {
            let _ = writeln!(text, "    in {}", text_of(&self.run.gate).escape_debug());
        }
        if let Some(access) = self.access() {
            let (bytes, address) = (self.run.access_bytes, self.run.address);
            let _ = writeln!(text, "    {access} of {bytes} bytes at {address:#x}, window offset {:#x}", self.run.window_offset);
        }
        for (at, name) in self.frames() {
            let _ =
                writeln!(text, "    called from {at:#x}{}", name.map_or(String::new(), |n| format!(" in {}", n.escape_debug())));
        }
        text
    }

    /// The same for machines, with the registers.
    pub fn json(&self) -> Value {
        let place = self.place().map(|(at, inside)| json!({ "text_offset": at, "function": self.function(inside) }));
        let known = self.has(abi::HAS_ADDRESS);
        let registers = REGISTERS.iter().zip(&self.run.registers).map(|(name, value)| ((*name).to_owned(), json!(value)));
        let registers = self.has(abi::HAS_REGISTERS).then(|| Value::Object(registers.collect()));
        let frames = self.frames().map(|(at, name)| json!({ "text_offset": at, "function": name }));
        json!({
            "kind": self.kind(),
            "entry": self.entry,
            "place": place,
            "access": self.access(),
            "bytes": known.then_some(self.run.access_bytes),
            "address": known.then_some(self.run.address),
            "window_offset": known.then_some(self.run.window_offset),
            "gate": self.has(abi::IN_GATE).then(|| text_of(&self.run.gate)),
            "backtrace": frames.collect::<Vec<_>>(),
            "registers": registers,
            "elapsed_ns": self.run.elapsed_ns,
            "fuel_used": self.run.fuel_used,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Stop;
    use cordon_kernel::abi::{self, Run, kind};
    use serde_json::json;

    #[test]
    fn text_and_json_say_the_same() {
        let mut run = Run { kind: kind::UNMAPPED, text_offset: 0x40, ..Run::default() };
        run.flags = abi::HAS_PLACE | abi::HAS_ADDRESS | abi::IS_WRITE | abi::HAS_REGISTERS | abi::IN_GATE;
        (run.address, run.window_offset, run.access_bytes) = (0x1_0000_1000, 0x1000, 8);
        run.gate[..6].copy_from_slice(b"memset");
        (run.frames, run.frame[0], run.registers[7]) = (1, 0x80, 5);
        let stop = Stop { run: &run, entry: "handler", places: None };
        let text = stop.text();
        for part in ["unmapped", "handler", "offset 0x40", "memset", "write of 8 bytes at 0x100001000", "0x1000\n", "from 0x80"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let object = stop.json();
        assert_eq!(object["place"]["text_offset"], json!(0x40));
        assert_eq!((&object["access"], &object["gate"]), (&json!("write"), &json!("memset")));
        assert_eq!(object["registers"]["rdi"], json!(5));
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let run = Run { kind: kind::TIME_LIMIT, frames: u32::MAX, ..Run::default() };
        let stop = Stop { run: &run, entry: "spin", places: None };
        assert_eq!(stop.text().lines().count(), 1 + abi::FRAMES);
        let object = stop.json();
        assert!(["place", "access", "address", "gate", "registers"].iter().all(|name| object[name].is_null()), "{object}");
    }
}
