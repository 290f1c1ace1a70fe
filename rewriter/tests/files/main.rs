//! What goes in and comes out as files: objects and archives, images, line tables.

mod addresses;
mod image;
mod lines;
mod mutation;
mod objects;
mod reports;
mod toolchain;
