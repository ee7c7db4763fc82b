//! The mount as the kernel shows it.

mod conformance;
mod ending;
mod faults;
mod reading;
mod slow_store;
mod straight;
