//! The functions that the header declares are those that the rewriter knows and the module offers, and no more.

use cordon_rewriter::kernel::FUNCTIONS;

#[test]
fn header_rewriter_and_module_name_the_same_functions() {
    let header = include_str!("../../include/cordon_handler.h");
    let declared = header.lines().filter(|line| line.ends_with(");") && !line.starts_with(['#', '/', ' ']));
    let declared: Vec<&str> = declared.filter_map(|line| line.split('(').next()?.rsplit([' ', '*']).next()).collect();
    assert_eq!(declared, FUNCTIONS);
    let module = include_str!("../../src/gates.c");
    let offered = module.lines().filter_map(|line| line.strip_prefix("\t{ \"")?.split('"').next());
    // What is not for authors has a dot in its name.
    assert_eq!(offered.filter(|name| !name.contains('.')).collect::<Vec<_>>(), FUNCTIONS);
}
