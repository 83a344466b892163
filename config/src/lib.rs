//! Words and numbers that every part of Lapis agrees on, and its options.
#![forbid(unsafe_code)]

pub mod planted;
pub mod sizes;
pub mod topology;
pub mod words;

mod budget;
mod check;
mod controller;
mod effective;
mod file;
mod flags;
mod load;
mod machine;
mod mistake;
mod nearest;
mod options;
mod quantity;
mod tables;
mod units;

pub use controller::Controller;
pub use effective::example;
pub use flags::Flags;
pub use load::{ConfigFile, Effective, LoadInput};
pub use machine::{Machine, RUNTIME_FOLDER};
pub use mistake::{ConfigError, ConfigErrors, Mistake, Source};
pub use options::{
    DRAM_BYTES_MIN, DRAM_STEP_BYTES, Definition, GPUS_MAX, GROUPS_MAX, Group, HugePages, Locate, LogLevel, Options,
    PEERS_MAX, PolicyName, Rdma, SSD_BYTES_MIN, SSD_PATHS_MAX, SSD_SEGMENT_BYTES_MIN, SsdEngine, Verify,
};
pub use quantity::{Bytes, Seconds, duration, size};
pub use tables::{Tables, lines};
pub use units::{Choice, Described, Endpoint, GpuName, Gpus, Member, Raw, Unit, host_name, host_port};
pub use words::*;
