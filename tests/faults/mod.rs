//! What goes wrong in the field: killed processes, full disks, damaged objects, damaged local files.
//!
//! Everywhere the same promise: an error that names the thing, or the right data; never wrong data, never a panic.

pub mod damage;
mod disk;
mod kill;
mod local;
