//! The mount as the kernel shows it.
