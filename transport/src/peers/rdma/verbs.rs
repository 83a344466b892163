//! The part of the verbs API that READs need: own declarations, and `libibverbs.so.1` loaded when it is there. Neither a
//! header nor the library is needed to build or to start.
//!
//! `types` are the structs as the library lays them out; `transport/verbs-check` compares each with the library's own
//! header. `library` has its functions, `nic` is the safe face of both.

pub mod library;
mod nic;
pub mod types;

pub use library::{Library, NoVerbs};
pub use nic::VerbsNic;
