//! Every stored byte: encoding, decoding, magics and limits. No input or output happens here, so all of it can be fuzzed.
//!
//! bygone-format(5) is the specification; these files follow it section by section.

pub mod codec;
pub mod content;
pub mod delta;
pub mod header;
pub mod index;
pub mod limits;
pub mod object;
pub mod pack;
pub mod snapshot;
pub mod tree;
