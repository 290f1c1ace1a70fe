//! Backtraces of sandbox frames. Every accepted instruction has one static depth (DESIGN §4), so the return address of a frame lies at a
//! known distance from rsp: nothing is guessed.

use super::region::Area;
use crate::context::{Context, Frame as EntryFrame};
use crate::image::Image;
use crate::window::Inner;
use std::ptr;
use std::sync::Arc;

/// Words of the native stack that are kept of a fault, from rsp upwards; deeper callers are left out.
const KEPT_WORDS: u64 = 4096;
/// Words that are searched for the return address of an interrupted gate.
const SEARCHED_WORDS: usize = 8;
/// A word that is no text address.
const OTHER: u32 = u32::MAX;
/// Entries that a backtrace can cross; their nesting is bounded.
const MOST_HOSTS: usize = crate::enter::NESTING_LIMIT as usize;

/// How the innermost frame is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing ran.
    Nowhere,
    /// The text instruction at `rip` was interrupted.
    Instruction { rip: u32 },
    /// A gate or stub ran; its return address is this many words above rsp.
    Called { words: u64 },
    /// A gate was interrupted anywhere; the return address of its call is near rsp.
    Search,
}

/// What is kept of the native stack at a fault. No host address: return addresses into text are kept as text offsets, nothing else is.
#[derive(Clone)]
pub struct Trace {
    pub image: Arc<Image>,
    /// Memory that the host had shared.
    pub shared: Arc<[Area]>,
    /// Text offset that the outermost entry called.
    entry: Option<u32>,
    /// Import index of the host function in which the call ended.
    pub import: Option<u32>,
    /// First byte of the access that could not be accessed, as window offset.
    pub failed: Option<u32>,
    start: Start,
    /// Text offsets of the stack's words, the first one at `first`.
    words: Box<[u32]>,
    /// Words between rsp and the first one kept: rsp may be below the mapped stack.
    skipped: u64,
    /// Nothing above was left out.
    complete: bool,
    /// Host functions of the outer entries on this stack, innermost first: index of the return address of the import's call, and the import.
    hosts: Vec<(usize, u32)>,
}

/// A frame of a backtrace, innermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawFrame {
    /// The interrupted instruction.
    Instruction(u32),
    /// A return address: the instruction after a call.
    Return(u32),
    /// A host function that called back.
    Host(u32),
}

impl Trace {
    /// Nothing to trace.
    pub fn none(window: &Inner) -> Trace {
        let (image, shared, words) = (Arc::clone(&window.image), Arc::clone(window.shares.areas()), Box::default());
        let (entry, import, failed, hosts) = (None, None, None, Vec::new());
        Trace { image, shared, entry, import, failed, start: Start::Nowhere, words, skipped: 0, complete: true, hosts }
    }

    /// Keeps the stack of the entry that `cx` describes, which ended with this rsp.
    pub fn of(window: &Inner, cx: &Context, rsp: u64, start: Start) -> Trace {
        let top = ptr::from_ref(cx) as u64;
        let text = |word: u64| word.checked_sub(cx.text_start).filter(|at| *at < cx.text_end - cx.text_start);
        let offset = |word: u64| text(word).and_then(|at| u32::try_from(at).ok()).unwrap_or(OTHER);
        let entry = Some(offset(cx.target)).filter(|at| *at != OTHER);
        if rsp < cx.guard_start || rsp >= top || !rsp.is_multiple_of(8) {
            return Trace { entry, ..Trace::none(window) };
        }
        let from = rsp.max(cx.stack_start);
        let end = top.min(from + 8 * KEPT_WORDS);
        // SAFETY: every address lies in the mapped part of the native stack of `cx`, on which nothing runs now.
        let words = (from..end).step_by(8).map(|at| offset(unsafe { *(at as *const u64) })).collect();
        let mut trace = Trace { entry, start, words, skipped: (from - rsp) / 8, complete: end == top, ..Trace::none(window) };
        let mut frame = cx.frame.previous as *const EntryFrame;
        // SAFETY: not null means the frame that a running `enter_again` saved.
        while let (Some(outer), true) = (unsafe { frame.as_ref() }, trace.hosts.len() < MOST_HOSTS) {
            trace.hosts.push(((outer.gate_rsp.wrapping_sub(from) / 8) as usize, outer.import));
            frame = outer.previous as *const EntryFrame;
        }
        if trace.start == Start::Search {
            trace.start = trace.searched();
        }
        trace
    }

    /// A gate's handler values lie above rsp too: only what follows the call of an import is its return address, if there is such a word.
    fn searched(&self) -> Start {
        let near = || (0_u64..).zip(self.words.iter().take(SEARCHED_WORDS)).filter(|(_, word)| **word != OTHER);
        let called = near().find(|(_, word)| self.image.import_called_before(**word).is_some());
        called.or_else(|| near().next()).map_or(Start::Nowhere, |(words, _)| Start::Called { words })
    }

    /// The text offset of the innermost frame.
    pub fn place(&self) -> Option<u32> {
        match self.start {
            Start::Instruction { rip } => Some(rip),
            Start::Called { words } => self.word(words.checked_sub(self.skipped)? as usize),
            Start::Nowhere | Start::Search => None,
        }
    }

    /// Whether [`Trace::place`] is a return address.
    pub fn is_called(&self) -> bool {
        matches!(self.start, Start::Called { .. })
    }

    /// Text offset that the host called.
    pub fn entry(&self) -> Option<u32> {
        self.entry
    }

    fn word(&self, index: usize) -> Option<u32> {
        self.words.get(index).copied().filter(|word| *word != OTHER)
    }

    /// The frames, at most `most`, and whether that is all of them.
    pub fn frames(&self, most: usize) -> (Vec<RawFrame>, bool) {
        let states = self.image.states();
        let index = |words: u64| words.checked_sub(self.skipped).map(|at| at as usize);
        let mut frames = Vec::new();
        // Where the next return address is.
        let mut slot = match self.start {
            Start::Nowhere | Start::Search => return (frames, true),
            Start::Called { words } => index(words),
            Start::Instruction { rip } => {
                frames.push(RawFrame::Instruction(rip));
                index(u64::from(states.at(rip).depth / 8))
            }
        };
        let mut hosts = self.hosts.iter();
        while let Some(at) = slot.filter(|at| *at < self.words.len()) {
            if frames.len() >= most {
                return (frames, false);
            }
            if let Some(back) = self.word(at) {
                frames.push(RawFrame::Return(back));
                slot = at.checked_add(1 + states.at(back).depth as usize / 8);
            } else if let Some((outer, import)) = hosts.next() {
                frames.push(RawFrame::Host(*import));
                slot = Some(*outer);
            } else {
                return (frames, true);
            }
        }
        (frames, self.complete)
    }
}
