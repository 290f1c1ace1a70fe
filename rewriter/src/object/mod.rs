//! Reads objects and archives and merges them into a [`crate::program::Program`].
