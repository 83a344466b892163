//! The Lapis daemon: one per GPU host.
