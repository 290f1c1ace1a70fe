//! Hosts whole programs in a window: images of a C program with its C library, whose system calls are one import ([`IMPORT`]).
//!
//! [`run`] makes a window, puts arguments, environment and auxiliary vector where `_start` expects them, calls it, and answers system calls until
//! the program ends. What is not listed here does not exist (`ENOSYS`):
//!
//! * **memory**: `brk` and anonymous mappings within the window's heap region; private mappings of files are copies; protections are accepted
//!   and not enforced, because the whole heap is readable and writable;
//! * **files**: the three standard streams, and the regular files and folders below [`Settings::folders`], which are the program's whole file
//!   system; never anything of `/proc`, where the host's memory is a file;
//! * **time**: clocks (monotonic time begins with the program), sleep;
//! * **randomness**, neutral answers to `uname`, user and process numbers, limits;
//! * **signals**: actions are remembered; a program that sends itself a signal ends by it, or its handler is called at once. None ever comes from
//!   outside.
//!
//! There are no threads, processes, sockets, pipes, terminals or locks. Every pointer that a program passes is a window offset; its length is
//! checked with it against the window's mapped regions, and data are copied. A program cannot hold the host up: the call's time limit ends waits
//! for standard streams and sleep too.
//!
//! Trusted as the loader is: a mistake here is a hole in the fence, so the crate has no `unsafe` and every host path is opened with
//! `openat2(RESOLVE_BENEATH)`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod clock;
mod files;
mod folders;
mod guest;
mod heap;
mod mapping;
mod number;
mod process;
mod signals;
mod start;
mod tree;

pub use folders::Folder;
pub use process::{End, Error, IMPORT, START, Settings, is_program, run};
