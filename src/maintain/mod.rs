//! Looking after a repository.

pub mod check;
