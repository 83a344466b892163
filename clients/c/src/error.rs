//! What can be wrong with a call as C made it, beside what the client says.

use std::ffi::c_int;

use lapis_client::ClientError;

use crate::codes;

/// Why a call did nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("{argument} is null")]
    Null { argument: &'static str },
    #[error("{argument}[{index}] is null")]
    NullAt { argument: &'static str, index: usize },
    #[error("{argument} is {found}, expected {expected}")]
    Value { argument: &'static str, found: u64, expected: &'static str },
    #[error("{argument} is not UTF-8")]
    Utf8 { argument: &'static str },
    /// Most often a struct that nobody initialised.
    #[error("{argument}.size is {found}, expected {least} to {most}: use LAPIS_INIT")]
    Size { argument: &'static str, found: usize, least: usize, most: usize },
    /// A program of a newer header asks for what this library does not know.
    #[error("{argument} sets fields beyond the {known} bytes that this library knows: it is older than the program")]
    Newer { argument: &'static str, known: usize },
    #[error("the pools asked are of several clients: asks[{index}]")]
    Foreign { index: usize },
    #[error("the {what} was used up by an earlier call")]
    Used { what: &'static str },
    #[error("the client of this {what} was closed")]
    Closed { what: &'static str },
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl CallError {
    /// What the caller sees.
    pub fn code(&self) -> c_int {
        match self {
            Self::Null { .. } | Self::NullAt { .. } | Self::Value { .. } | Self::Utf8 { .. } => codes::LAPIS_E_ARGUMENT,
            Self::Foreign { .. } | Self::Used { .. } => codes::LAPIS_E_ARGUMENT,
            Self::Size { .. } | Self::Newer { .. } => codes::LAPIS_E_SIZE,
            Self::Closed { .. } => codes::LAPIS_E_CLOSED,
            Self::Client(error) => codes::of_client(error),
        }
    }
}
