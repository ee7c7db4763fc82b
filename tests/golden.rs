//! Repositories that earlier versions wrote.
