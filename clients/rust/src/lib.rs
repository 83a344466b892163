//! The client of Lapis for engines on the same host.
