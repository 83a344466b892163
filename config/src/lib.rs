//! Words and numbers that every part of Lapis agrees on, and its options.

pub mod words;

pub use words::*;
