//! The mount as the kernel shows it.

mod ending;
mod reading;
mod slow_store;
