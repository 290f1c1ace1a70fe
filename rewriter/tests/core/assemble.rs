//! From assembly text to a rewritten function.

use cordon_checker::Mode;
use cordon_rewriter::diag::Diagnostic;
use cordon_rewriter::{Options, Rewritten, object::Input};
use std::io::Write;
use std::process::{Command, Stdio};

/// Assembles `source` with the machine's `as`.
pub fn assemble(source: &str) -> Vec<u8> {
    let out = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut child = Command::new("as")
        .args(["--64", "-o"])
        .arg(out.path())
        .stdin(Stdio::piped())
        .spawn()
        .expect("the assembler runs (scripts/setup installs binutils)");
    child.stdin.take().expect("piped").write_all(source.as_bytes()).expect("written");
    assert!(child.wait().expect("ends").success(), "does not assemble:\n{source}");
    std::fs::read(out.path()).expect("readable")
}

/// One rewritten function `f`.
pub struct Made(pub Rewritten);

impl Made {
    /// The new code.
    pub fn text(&self) -> &[u8] {
        &self.0.parts.text
    }

    /// New bytes and change of the `index`-th original instruction of the first copy.
    pub fn step(&self, index: usize) -> (&[u8], &str) {
        let e = &self.0.explanations[index];
        let from = e.new as usize;
        (&self.0.parts.text[from..from + e.new_length as usize], e.change)
    }
}

fn source(body: &str) -> String {
    format!(".globl f\n.type f,@function\nf:\n {body}\n.size f,.-f\n")
}

fn attempt(body: &str, mode: Mode) -> Result<Rewritten, Vec<Diagnostic>> {
    attempt_with(&Options { imports: vec!["host".into()], mode, ..Options::default() }, body)
}

fn attempt_with(options: &Options, body: &str) -> Result<Rewritten, Vec<Diagnostic>> {
    let inputs = [Input { name: "f.o".into(), bytes: assemble(&source(body)) }];
    cordon_rewriter::rewrite(&inputs, options).map_err(|r| r.0)
}

/// Rewrites a function with this body (and whatever follows it in the text).
pub fn rewrite(body: &str) -> Made {
    rewrite_in(Mode::default(), body)
}

/// As [`rewrite`], in a mode.
pub fn rewrite_in(mode: Mode, body: &str) -> Made {
    Made(attempt(body, mode).unwrap_or_else(|problems| panic!("refused: {problems:?}")))
}

/// As [`rewrite`], with these options.
pub fn rewrite_with(options: &Options, body: &str) -> Made {
    Made(attempt_with(options, body).unwrap_or_else(|problems| panic!("refused: {problems:?}")))
}

/// The first reason for refusing this body with these options.
pub fn refusal_with(options: &Options, body: &str) -> Diagnostic {
    let problems = attempt_with(options, body).err().unwrap_or_else(|| panic!("accepted:\n{body}"));
    problems[0].clone()
}

/// The code and offset of the first reason for refusing this body.
pub fn refusal(body: &str) -> (&'static str, u64) {
    refusal_in(Mode::default(), body)
}

/// As [`refusal`], in a mode.
pub fn refusal_in(mode: Mode, body: &str) -> (&'static str, u64) {
    let problems = attempt(body, mode).err().unwrap_or_else(|| panic!("accepted:\n{body}"));
    (problems[0].code, problems[0].place.offset.expect("has a place"))
}
