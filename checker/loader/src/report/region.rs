//! Which part of handler memory an address lies in or next to.

use crate::image::Image;
use cordon_checker::layout::{MEMORY_END, NULL_ZONE_END, RegionKind};
use std::fmt;

/// A part of the window.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Area {
    /// As in `argument area`, or `memory NAME` for the host's.
    pub name: String,
    /// First window offset.
    pub start: u32,
    /// First window offset past it.
    pub end: u32,
}

/// How an address lies to an [`Area`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum Relation {
    /// It is in the area.
    Inside,
    /// Bytes before its first byte, at least 1.
    Before(u64),
    /// Bytes past its last byte: 1 for the first byte past the end.
    Past(u64),
}

/// The area that an address lies in, or the nearest one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Nearest {
    /// The area.
    pub area: Area,
    /// How the address lies to it.
    pub relation: Relation,
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.area.name;
        let bytes = |n: u64| if n == 1 { "byte" } else { "bytes" };
        match self.relation {
            Relation::Inside => write!(f, "in the {name}"),
            Relation::Before(n) => write!(f, "{n} {} before the {name}", bytes(n)),
            Relation::Past(n) => write!(f, "{n} {} past the end of the {name}", bytes(n)),
        }
    }
}

const fn name(kind: RegionKind) -> &'static str {
    match kind {
        RegionKind::Rodata => "read-only data",
        RegionKind::Data => "data",
        RegionKind::Argument => "argument area",
        RegionKind::Heap => "heap",
        RegionKind::Stack => "data stack",
    }
}

/// Finds the area of `address`, a handler pointer of 64 bits. `others` is what the host has added to the window.
pub fn nearest(image: &Image, others: impl Iterator<Item = Area>, address: u64) -> Option<Nearest> {
    let area = |name: &str, start, end| Area { name: name.to_owned(), start, end };
    let (table, stack) = (image.table(), image.stack_start());
    let special = [
        area("null zone", 0, NULL_ZONE_END),
        area("code-pointer table", table.start, table.end),
        area("guard below the data stack", image.stack_guard(), stack),
    ];
    let regions = image.regions().iter().map(|r| area(name(r.kind), r.start, r.end)).chain(others);
    let regions: Vec<Area> = regions.filter(|area| area.start < area.end).collect();
    let holds = |area: &&Area| (u64::from(area.start)..area.end.into()).contains(&address);
    if let Some(found) = regions.iter().chain(&special).find(holds) {
        return Some(Nearest { area: found.clone(), relation: Relation::Inside });
    }
    let relation = |area: &Area| match address.checked_sub(area.end.into()) {
        Some(past) => Relation::Past(past.saturating_add(1)),
        None => Relation::Before(u64::from(area.start) - address),
    };
    let distance = |area: &Area| match relation(area) {
        Relation::Inside => 0,
        Relation::Before(n) | Relation::Past(n) => n,
    };
    // What lies beyond all handler memory is near to nothing.
    if address >= u64::from(MEMORY_END) + u64::from(NULL_ZONE_END) {
        return None;
    }
    let [_, table, _] = special;
    let found = regions.into_iter().chain([table]).min_by_key(distance)?;
    Some(Nearest { relation: relation(&found), area: found })
}
