//! Tests of the loader on hand-written text.

mod builder;
mod calls;
