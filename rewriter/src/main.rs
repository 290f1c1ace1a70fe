//! The `cordon` command: rewrites, checks, runs, inspects and demonstrates sealed images.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
