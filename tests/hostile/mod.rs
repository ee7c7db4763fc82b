//! Parsers against input that nobody honest wrote.

mod mutation;
mod parsers;
