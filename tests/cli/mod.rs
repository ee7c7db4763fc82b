//! The command line from outside: exit codes, JSON, selectors, and what is said to whom.

mod backup;
mod browse;
mod check;
mod excludes;
mod generated;
mod keys;
mod mount;
mod opening;
mod restore;
mod snapshots;
mod streams;
mod terminal;
