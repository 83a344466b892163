//! The core of Lapis: what is kept where. Pure: no I/O, no clock, no thread; time comes in as an argument.
#![forbid(unsafe_code)]

pub mod face;
pub mod kept;
