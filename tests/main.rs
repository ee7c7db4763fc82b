//! The one integration test binary: the program from outside, through its command line and its mount.

// Support code outside of `#[test]` functions may unwrap like a test does.
#![allow(clippy::unwrap_used)]

// First: its macros are for all the others.
#[macro_use]
mod support;

mod backend;
mod cli;
mod deltas;
mod docs;
mod faults;
mod fidelity;
mod golden;
mod hostile;
mod model;
mod mount;
mod quickstart;
mod remote;
mod tidy;
