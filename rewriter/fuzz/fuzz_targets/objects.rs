//! An object or archive is refused or read, and its line tables are moved or left out; nothing panics or hangs.
#![no_main]

use cordon_rewriter::dwarf;
use cordon_rewriter::emit::MapEntry;
use cordon_rewriter::object::{Input, MergeOptions, read};
use cordon_rewriter::program::SectionKind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let inputs = [Input { name: "input".to_owned(), bytes: data.to_vec() }];
    for whole_archive in [false, true] {
        let options = MergeOptions { entries: vec!["main".to_owned()], whole_archive, ..MergeOptions::default() };
        let Ok(program) = read(&inputs, &options) else { continue };
        let text = program.sections.iter().filter(|s| s.kind == SectionKind::Text);
        let places = text.flat_map(|s| (0..s.data.len() as u32).map(move |old| (s.object.0, s.index as u32, old)));
        let map: Vec<_> = (0..).zip(places).map(|(new, (object, section, old))| MapEntry { new, object, section, old }).collect();
        let _ = dwarf::lines(&program, &map, &[]);
    }
});
