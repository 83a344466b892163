//! The real calls of cudarc over the stand-in. Each scenario has a process of its own: a library is loaded once, and the
//! stand-in reads its variables once.

mod copies;
mod errors;
mod harness;
mod loading;
mod misuses;
mod raw;
mod seeds;
mod sharing;
mod suite;
