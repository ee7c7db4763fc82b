//! Fuzzes `delta` of the parsers.
#![no_main]

#[allow(dead_code)]
#[path = "../../../tests/hostile/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|input: &[u8]| parsers::delta(input));
