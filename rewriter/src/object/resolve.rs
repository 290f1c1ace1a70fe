//! Who takes part and who defines what: globals, weak and COMMON symbols, COMDAT groups, archive members on demand.

use super::archive::Archive;
use super::classify::Role;
use super::parse::{At, Bind, InputSymbol, ObjectFile};
use super::{MergeOptions, Report, Source};
use crate::diag::{Diagnostic, Place};
use object::elf;
use std::collections::{BTreeSet, HashMap, HashSet};

/// What a global name stands for so far.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Undefined {
        weak: bool,
    },
    /// By symbol `symbol` of object `object`.
    Defined {
        object: usize,
        symbol: usize,
        weak: bool,
    },
    /// The biggest so far is symbol `symbol` of object `object`; bytes.
    Common {
        object: usize,
        symbol: usize,
        size: u64,
        align: u64,
    },
}

/// A global name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Global {
    pub state: State,
    /// The object that named it first.
    pub first: usize,
}

/// The objects that take part and the meaning of their global names.
#[derive(Debug, Default)]
pub(super) struct Link<'a> {
    /// In the order in which they came in.
    pub objects: Vec<ObjectFile<'a>>,
    /// By object and ELF section index: lost to an earlier group of the same name.
    pub discarded: Vec<Vec<bool>>,
    pub globals: HashMap<&'a str, Global>,
}

/// Loads all objects, then pulls archive members until nothing changes.
pub(super) fn resolve<'a>(sources: Vec<Source<'a>>, options: &MergeOptions, report: &mut Report) -> Link<'a> {
    let mut loader = Loader { link: Link::default(), groups: HashSet::new(), linkonce: HashSet::new(), wanted: Vec::new() };
    let mut pools = Vec::new();
    for source in sources {
        match source {
            Source::Object(object) => loader.load(*object, false, report),
            Source::Archive(archive) if options.whole_archive => {
                for member in archive.members.into_iter().flatten() {
                    loader.load(member, true, report);
                }
            }
            Source::Archive(archive) => pools.push(Pool { archive, candidates: BTreeSet::new() }),
        }
    }
    pull(&mut loader, &mut pools, options, report);
    loader.link
}

/// Members that may have to be pulled out of an archive: number and the name that asks for it.
struct Pool<'a> {
    archive: Archive<'a>,
    candidates: BTreeSet<(usize, &'a str)>,
}

/// Repeats over all archives until none has a wanted member left. Within one archive the scan goes on behind the member pulled last
/// and starts over at its end, as a repeated scan of the symbol index does.
fn pull<'a>(loader: &mut Loader<'a>, pools: &mut [Pool<'a>], options: &MergeOptions, report: &mut Report) {
    let entries: HashSet<&str> = options.entries.iter().map(String::as_str).collect();
    for pool in &mut *pools {
        let asked = pool.archive.definitions.iter().filter(|(name, _)| entries.contains(**name));
        pool.candidates.extend(asked.map(|(name, definers)| (definers.any, *name)));
    }
    loader.offer(pools);
    while pools.iter().any(|pool| !pool.candidates.is_empty()) {
        for current in 0..pools.len() {
            let mut cursor = 0;
            while let Some((number, name)) = pools[current].next(cursor) {
                cursor = number;
                let archive = &mut pools[current].archive;
                let properly = archive.definitions.get(name).is_some_and(|d| d.proper == Some(number));
                if !loader.is_wanted(name, &entries, properly) {
                    continue;
                }
                if let Some(member) = archive.members[number].take() {
                    loader.load(member, true, report);
                    loader.offer(pools);
                }
            }
        }
    }
}

impl<'a> Pool<'a> {
    /// Takes out the first candidate at or behind member `cursor`, else the first.
    fn next(&mut self, cursor: usize) -> Option<(usize, &'a str)> {
        let at = self.candidates.range((cursor, "")..).next().or_else(|| self.candidates.first()).copied()?;
        self.candidates.remove(&at);
        Some(at)
    }
}

/// Takes objects in and keeps the table of globals.
struct Loader<'a> {
    link: Link<'a>,
    /// Signatures of the COMDAT groups so far.
    groups: HashSet<&'a str>,
    /// Names of the `.gnu.linkonce` sections so far.
    linkonce: HashSet<&'a str>,
    /// Names that became undefined (false) or COMMON (true) and have not been offered to the archives yet.
    wanted: Vec<(&'a str, bool)>,
}

impl<'a> Loader<'a> {
    /// Tells the archives which names are newly wanted.
    fn offer(&mut self, pools: &mut [Pool<'a>]) {
        for (name, common) in self.wanted.drain(..) {
            for pool in &mut *pools {
                let Some(definers) = pool.archive.definitions.get(name) else { continue };
                let member = if common { definers.proper } else { Some(definers.any) };
                pool.candidates.extend(member.map(|number| (number, name)));
            }
        }
    }

    /// Whether `name` still asks for an archive member, which defines it `properly` or as COMMON.
    fn is_wanted(&self, name: &str, entries: &HashSet<&str>, properly: bool) -> bool {
        match self.link.globals.get(name).map(|g| g.state) {
            None => entries.contains(name),
            Some(State::Undefined { weak }) => !weak || entries.contains(name),
            Some(State::Common { .. }) => properly,
            Some(State::Defined { .. }) => false,
        }
    }

    /// Takes `object` in; `member`: out of an archive, some of whose names give way.
    fn load(&mut self, object: ObjectFile<'a>, member: bool, report: &mut Report) {
        let number = self.link.objects.len();
        let discarded = self.discard(&object);
        for (index, symbol) in object.symbols.iter().enumerate() {
            if symbol.bind == Bind::Local {
                continue;
            }
            let lost = matches!(symbol.at, At::Section(s) if discarded[s] || !matches!(object.sections[s].role, Role::Kept(_)));
            let replaced = member && super::archive::gives_way(symbol.name);
            let new = incoming(symbol, number, index, lost || replaced);
            match self.link.globals.get(symbol.name).copied() {
                None => {
                    self.link.globals.insert(symbol.name, Global { state: new, first: number });
                    self.want(symbol.name, None, new);
                }
                Some(old) => match self.combine(&object, symbol, old.state, new) {
                    Ok(state) => {
                        self.link.globals.insert(symbol.name, Global { state, ..old });
                        self.want(symbol.name, Some(old.state), state);
                    }
                    Err(diagnostic) => report.push(*diagnostic),
                },
            }
        }
        self.link.discarded.push(discarded);
        self.link.objects.push(object);
    }

    fn want(&mut self, name: &'a str, old: Option<State>, new: State) {
        match (old, new) {
            (Some(State::Undefined { weak: false }), State::Undefined { .. }) => {}
            (_, State::Undefined { weak: false }) => self.wanted.push((name, false)),
            (Some(State::Common { .. }), State::Common { .. }) => {}
            (_, State::Common { .. }) => self.wanted.push((name, true)),
            _ => {}
        }
    }

    /// The sections of `object` that lose to an earlier group or `.gnu.linkonce` section of the same name.
    fn discard(&mut self, object: &ObjectFile<'a>) -> Vec<bool> {
        let lost: Vec<bool> = object.groups.iter().map(|g| g.comdat && !self.groups.insert(g.signature)).collect();
        let mut linkonce = Vec::new();
        let mut discarded = Vec::with_capacity(object.sections.len());
        for section in &object.sections {
            let once = section.name.strip_prefix(".gnu.linkonce.").filter(|_| section.group.is_none());
            let known = |once: &str| {
                let key = once.split_once('.').map_or(once, |(_, key)| key);
                self.linkonce.contains(section.name) || self.groups.contains(key)
            };
            discarded.push(section.group.is_some_and(|g| lost[g]) || once.is_some_and(known));
            linkonce.extend(once.map(|_| section.name));
        }
        self.linkonce.extend(linkonce);
        discarded
    }

    /// What a name stands for after one more appearance. Strong goes before COMMON before weak; the biggest COMMON wins.
    fn combine(&self, object: &ObjectFile, symbol: &InputSymbol, old: State, new: State) -> Result<State, Box<Diagnostic>> {
        Ok(match (old, new) {
            (State::Undefined { weak: a }, State::Undefined { weak: b }) => State::Undefined { weak: a && b },
            (State::Undefined { .. }, new) => new,
            (old, State::Undefined { .. }) => old,
            (State::Defined { weak: false, object: o, symbol: s }, State::Defined { weak: false, .. }) => {
                let first = self.link.objects.get(o).map_or(object, |first| first);
                let earlier = &first.symbols[s];
                if earlier.at == At::Absolute && symbol.at == At::Absolute && earlier.value == symbol.value {
                    return Ok(old);
                }
                let section = match symbol.at {
                    At::Section(s) => Some(object.sections[s].name.to_owned()),
                    _ => None,
                };
                let name = symbol.name.to_owned();
                let message = format!("{name} is already defined in {}", first.name);
                let place = Place { object: object.name.clone(), section, offset: Some(symbol.value), symbol: Some(name) };
                return Err(Box::new(Diagnostic::new(place, "duplicate-symbol", message)));
            }
            (State::Defined { weak: false, .. }, _) => old,
            (_, State::Defined { weak: false, .. }) => new,
            (State::Defined { .. }, State::Defined { .. }) => old,
            (State::Common { .. }, State::Defined { .. }) => old,
            (State::Defined { .. }, State::Common { .. }) => new,
            (
                State::Common { object, symbol, size, align },
                State::Common { object: o, symbol: s, size: other_size, align: other_align },
            ) => {
                let (object, symbol) = if other_size > size { (o, s) } else { (object, symbol) };
                State::Common { object, symbol, size: size.max(other_size), align: align.max(other_align) }
            }
        })
    }
}

/// What one symbol says of its name. A symbol in a section that is not kept is a mere reference.
fn incoming(symbol: &InputSymbol, object: usize, index: usize, lost: bool) -> State {
    let weak = symbol.bind == Bind::Weak;
    match symbol.at {
        _ if lost => State::Undefined { weak },
        At::Undefined => State::Undefined { weak },
        At::Common => State::Common { object, symbol: index, size: symbol.size, align: symbol.value },
        At::Absolute | At::Section(_) => State::Defined { object, symbol: index, weak },
    }
}

impl Link<'_> {
    /// Whether symbol `symbol` of object `object` is a function that picks its implementation at load time.
    pub fn is_ifunc(&self, object: usize, symbol: usize) -> bool {
        self.objects[object].symbols[symbol].kind == elf::STT_GNU_IFUNC
    }
}
