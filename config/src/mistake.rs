//! What can be wrong with a configuration, and where it was said. Pure.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use crate::quantity::Bytes;

/// Where a value came from; also where a mistake is. Later ones beat earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    #[default]
    Default,
    /// A line (from 1) of the configuration file; 0 = the file as a whole.
    File { path: PathBuf, line: u32 },
    /// The name of an environment variable.
    Variable(String),
    /// A flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One mistake, with the option it is about and the place where it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub source: Source,
    /// Name of the option ("dram.bytes"), or as much of it as was given; empty for the file as a whole.
    pub key: String,
    pub mistake: Mistake,
}

/// In one line: what was given may hold anything, a path or a key in quotes too.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, key, mistake } = self;
        let text = if key.is_empty() { format!("{source}: {mistake}") } else { format!("{source}: {key}: {mistake}") };
        text.chars().try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_debug()) } else { f.write_char(c) })
    }
}

impl std::error::Error for ConfigError {}

/// Every mistake of one configuration, in the order of sources and lines; one a line when shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("{bytes} bytes, more than the {most} that a configuration file may have")]
    FileTooLong { bytes: u64, most: u64 },
    #[error("not TOML: {0}")]
    Syntax(String),
    #[error("unknown option{}", near(.nearest))]
    UnknownKey { nearest: Option<String> },
    #[error("unknown variable{}", near(.nearest))]
    UnknownVariable { nearest: Option<String> },
    #[error("expected {expected}, found {found}")]
    WrongType { expected: &'static str, found: String },
    #[error("{given:?} has no unit: write {suggestion}")]
    NoUnit { given: String, suggestion: String },
    #[error("unknown unit in {given:?}: use one of {units}")]
    UnknownUnit { given: String, units: &'static str },
    #[error("{given:?} is not {expected}")]
    NotA { given: String, expected: &'static str },
    #[error("{given:?} is not one of {allowed}")]
    NotOneOf { given: String, allowed: String },
    #[error("{given} is less than the least, {least}")]
    TooSmall { given: String, least: String },
    #[error("{given} is more than the most, {most}")]
    TooLarge { given: String, most: String },
    #[error("{given:?} is {bytes} bytes long; a socket's path has at most {most}")]
    PathTooLong { given: String, bytes: usize, most: usize },
    #[error("is missing in this [[group]]")]
    Missing,
    #[error("{name:?} is already used by {by}")]
    Duplicate { name: String, by: String },
    #[error("{path} is a controller for SPDK: choose the engine auto or spdk, or a path that the kernel drives")]
    NotThisEngine { path: String },
    #[error("{path} is the kernel's: for SPDK give a controller's PCI address, like pci:0000:65:00.0")]
    NotForSpdk { path: String },
    #[error("{given:?} is given twice")]
    Twice { given: String },
    #[error(
        "{} is less than {groups} groups need, {}: {} for each", Bytes(*.given), Bytes(*.needed), Bytes(*.each)
    )]
    SsdTooSmall { given: u64, groups: u64, needed: u64, each: u64 },
    #[error("the floor {} is above the group's ceiling {}", Bytes(*.floor), Bytes(*.ceiling))]
    FloorOverCeiling { floor: u64, ceiling: u64 },
    #[error("the floors of all groups add up to {}, more than dram.bytes = {}", Bytes(*.floors), Bytes(*.dram))]
    FloorsOverDram { floors: u64, dram: u64 },
    #[error("the floors of all groups add up to {}, more than the SSD tier has, {}", Bytes(*.floors), Bytes(*.tier))]
    FloorsOverSsd { floors: u64, tier: u64 },
    #[error("{} is more than the SSD tier has, {}", Bytes(*.given), Bytes(*.tier))]
    OverSsd { given: u64, tier: u64 },
    #[error("{} is less than a group needs on {paths} paths, {}", Bytes(*.given), Bytes(*.needed))]
    CeilingTooSmall { given: u64, paths: usize, needed: u64 },
    #[error("{} is more than dram.bytes = {}", Bytes(*.given), Bytes(*.dram))]
    OverDram { given: u64, dram: u64 },
    #[error(
        "{} is more than this machine can give: {} of memory less {} kept for everything else",
        Bytes(*.given), Bytes(*.memory), Bytes(*.reserve)
    )]
    OverMemory { given: u64, memory: u64, reserve: u64 },
    #[error(
        "tables of {} beside dram.bytes = {} are more than this machine can give: {} of memory less {} kept for \
         everything else", Bytes(*.tables), Bytes(*.dram), Bytes(*.memory), Bytes(*.reserve)
    )]
    TablesOverMemory { tables: u64, dram: u64, memory: u64, reserve: u64 },
    #[error(
        "{address} is not a loopback address; anyone who reaches it may read: set metrics.public = true to allow it"
    )]
    NotLoopback { address: String },
    #[error(
        "{address} can be reached by other hosts: give peers.ca, peers.certificate and peers.key (`lapis cert` makes \
         them for trying out), or a loopback address"
    )]
    ListenUncertified { address: String },
    #[error(
        "{member} is on another host: give peers.ca, peers.certificate and peers.key (`lapis cert` makes them for \
         trying out)"
    )]
    MemberUncertified { member: String },
    #[error("blocks are encrypted only with peers.ca, peers.certificate and peers.key (`lapis cert` makes them)")]
    BlocksUncertified,
    #[error(
        "{missing} missing: a host that has peers needs peers.ca, peers.certificate and peers.key, or none of them"
    )]
    CertificateIncomplete { missing: String },
    #[error(
        "without peers.listen this host is alone: give the address at which the others reach it, or \"off\" to be so"
    )]
    MembersUnheard,
    #[error("{}: give the name by which other hosts call this one", own_name(.name))]
    NoHostName { name: Option<String> },
    #[error("{name:?} is not one of peers.members{}", near(.nearest))]
    NotAMember { name: String, nearest: Option<String> },
    #[error(
        "peers.listen = {listen} is no address that others could reach: give the one that they can, as in \"10.0.0.1:7450\""
    )]
    NotAdvertised { listen: String },
    #[error("{address} is no address that others could reach: give the one that they can, as in \"10.0.0.1:7450\"")]
    AdvertisedToNobody { address: String },
    #[error("{endpoint} is known by its certificate: give peers.etcd_ca")]
    EtcdUncertified { endpoint: String },
    #[error("{missing} missing: a certificate is of no use without its key, nor a key without its certificate")]
    EtcdCertificateIncomplete { missing: &'static str },
    #[error("is for https://, and the endpoints of peers.etcd are http://")]
    EtcdPlain,
    #[error("no group may put: the cache would stay empty")]
    NobodyMayPut,
    #[error("{count} groups, the most is {most}")]
    TooManyGroups { count: usize, most: usize },
    #[error("{folder} does not exist and only root can make it: give a path with --server-socket")]
    NoRuntimeFolder { folder: String },
}

fn own_name(name: &Option<String>) -> String {
    match name {
        Some(name) => format!("this machine is called {name:?}, which cannot be in a certificate"),
        None => "this machine's name is not known".into(),
    }
}

fn near(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or(String::new(), |name| format!(", did you mean {name}?"))
}
