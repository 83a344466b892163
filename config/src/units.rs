//! How the value of an option is written, and what it becomes: sizes, durations, counts, choices, paths. Pure.

mod devices;
mod etcd;
mod gpus;
mod hosts;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::controller::Controller;
use crate::mistake::Mistake;
use crate::quantity::{Bytes, Seconds, duration, size};

pub use devices::{Devices, LibraryFolder};
pub use etcd::{Advertised, Endpoint, Endpoints, KeyPrefix};
pub use gpus::{GpuName, GpuNames, Gpus};
pub use hosts::{FilePath, HostName, HostNames, Member, Members, host_name, host_port};

/// Longest path of a Unix socket, bytes: `sun_path` less its final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A value as it was given, before anything is known of what it should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// From a flag or a variable: no type of its own.
    Word(String),
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Raw>),
    /// Anything else that TOML has; its name.
    Other(&'static str),
}

impl Raw {
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Word(text) | Self::Text(text) => format!("the text {text:?}"),
            Self::Integer(n) => format!("the number {n}"),
            Self::Boolean(b) => format!("{b}"),
            Self::List(_) => "a list".into(),
            Self::Other(name) => format!("a {name}"),
        }
    }

    fn text(&self, expected: &'static str) -> Result<&str, Mistake> {
        match self {
            Self::Word(text) | Self::Text(text) => Ok(text.trim()),
            other => Err(Mistake::WrongType { expected, found: other.kind() }),
        }
    }

    /// The items of a list; of a word, what is between its commas.
    fn items(&self, expected: &'static str) -> Result<Vec<Raw>, Mistake> {
        match self {
            Self::List(items) => Ok(items.clone()),
            Self::Word(text) => {
                let text = text.trim().trim_start_matches('[').trim_end_matches(']');
                Ok(text.split(',').filter(|w| !w.trim().is_empty()).map(|w| Self::Word(w.into())).collect())
            }
            other => Err(Mistake::WrongType { expected, found: other.kind() }),
        }
    }

    fn integer(&self, expected: &'static str) -> Result<i64, Mistake> {
        match self {
            Self::Integer(n) => Ok(*n),
            Self::Word(text) => text.trim().parse().map_err(|_| Mistake::NotA { given: text.clone(), expected }),
            other => Err(Mistake::WrongType { expected, found: other.kind() }),
        }
    }
}

/// How values of one kind are read and shown.
pub trait Unit: Described {
    type Value;
    fn read(&self, raw: &Raw) -> Result<Self::Value, Mistake>;
    /// As in the file, without quotes.
    fn show(&self, value: &Self::Value) -> String;
}

/// What help texts say of a unit.
pub trait Described: Sync {
    /// The placeholder in `--help`.
    fn hint(&self) -> &'static str;
    /// What may be given, in words; empty if anything goes.
    fn bounds(&self) -> String;
    /// Whether the TOML file has it in quotes.
    fn quoted(&self) -> bool {
        true
    }
}

fn within<T: Ord>(value: T, least: T, most: T, show: impl Fn(&T) -> String) -> Result<T, Mistake> {
    if value < least {
        return Err(Mistake::TooSmall { given: show(&value), least: show(&least) });
    }
    if value > most {
        return Err(Mistake::TooLarge { given: show(&value), most: show(&most) });
    }
    Ok(value)
}

/// Bytes. With `auto`, the word "auto" is 0 until the configuration is loaded, which puts the number in its place.
pub struct Size {
    pub least: u64,
    pub most: u64,
    pub auto: bool,
}

impl Described for Size {
    fn hint(&self) -> &'static str {
        "SIZE"
    }
    fn bounds(&self) -> String {
        let auto = if self.auto { ", or \"auto\"" } else { "" };
        format!("{} to {}{auto}", Bytes(self.least), Bytes(self.most))
    }
}

impl Unit for Size {
    type Value = u64;
    fn read(&self, raw: &Raw) -> Result<u64, Mistake> {
        if let Raw::Integer(n) = raw {
            let suggestion = format!("\"{n}GiB\" or \"{n}B\"");
            return Err(Mistake::NoUnit { given: n.to_string(), suggestion });
        }
        let text = raw.text("a size like \"64GiB\"")?;
        if self.auto && text == "auto" {
            return Ok(0);
        }
        within(size(text)?, self.least, self.most, |b| Bytes(*b).to_string())
    }
    fn show(&self, value: &u64) -> String {
        if self.auto && *value == 0 { "auto".into() } else { Bytes(*value).to_string() }
    }
}

pub struct Span {
    pub least: Duration,
    pub most: Duration,
}

impl Described for Span {
    fn hint(&self) -> &'static str {
        "DURATION"
    }
    fn bounds(&self) -> String {
        format!("{} to {}", Seconds(self.least), Seconds(self.most))
    }
}

impl Unit for Span {
    type Value = Duration;
    fn read(&self, raw: &Raw) -> Result<Duration, Mistake> {
        if let Raw::Integer(n) = raw {
            return Err(Mistake::NoUnit { given: n.to_string(), suggestion: format!("\"{n}ms\" or \"{n}s\"") });
        }
        let value = duration(raw.text("a duration like \"50ms\"")?)?;
        within(value, self.least, self.most, |d| Seconds(*d).to_string())
    }
    fn show(&self, value: &Duration) -> String {
        Seconds(*value).to_string()
    }
}

/// A whole number. With `auto`, the word "auto" is 0 until the configuration is loaded.
pub struct Count {
    pub least: u64,
    pub most: u64,
    pub auto: bool,
}

impl Described for Count {
    fn hint(&self) -> &'static str {
        "COUNT"
    }
    fn bounds(&self) -> String {
        let auto = if self.auto { ", or \"auto\"" } else { "" };
        format!("{} to {}{auto}", self.least, self.most)
    }
    fn quoted(&self) -> bool {
        false
    }
}

impl Unit for Count {
    type Value = u64;
    fn read(&self, raw: &Raw) -> Result<u64, Mistake> {
        if let Raw::Text(text) | Raw::Word(text) = raw
            && self.auto
            && text.trim() == "auto"
        {
            return Ok(0);
        }
        let n = raw.integer("a whole number")?;
        let n =
            u64::try_from(n).map_err(|_| Mistake::TooSmall { given: n.to_string(), least: self.least.to_string() })?;
        within(n, self.least, self.most, u64::to_string)
    }
    fn show(&self, value: &u64) -> String {
        if self.auto && *value == 0 { "auto".into() } else { value.to_string() }
    }
}

pub struct Switch;

impl Described for Switch {
    fn hint(&self) -> &'static str {
        "BOOL"
    }
    fn bounds(&self) -> String {
        "true or false".into()
    }
    fn quoted(&self) -> bool {
        false
    }
}

impl Unit for Switch {
    type Value = bool;
    fn read(&self, raw: &Raw) -> Result<bool, Mistake> {
        match raw {
            Raw::Boolean(value) => Ok(*value),
            Raw::Word(word) if word == "true" => Ok(true),
            Raw::Word(word) if word == "false" => Ok(false),
            other => Err(Mistake::WrongType { expected: "true or false", found: other.kind() }),
        }
    }
    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// One of a few words, each standing for a value.
pub struct Choice<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Sync> Choice<T> {
    fn words(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|(word, _)| format!("{word:?}")).collect();
        words.join(", ")
    }
}

impl<T: Sync> Described for Choice<T> {
    fn hint(&self) -> &'static str {
        "WORD"
    }
    fn bounds(&self) -> String {
        self.words()
    }
}

impl<T: Copy + PartialEq + Sync> Unit for Choice<T> {
    type Value = T;
    fn read(&self, raw: &Raw) -> Result<T, Mistake> {
        let text = raw.text("a text in quotes")?;
        let found = self.0.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| Mistake::NotOneOf { given: text.into(), allowed: self.words() })
    }
    fn show(&self, value: &T) -> String {
        let found = self.0.iter().find(|(_, v)| v == value);
        found.map_or("?", |(word, _)| *word).into()
    }
}

/// An absolute path of a Unix socket.
pub struct SocketPath;

impl Described for SocketPath {
    fn hint(&self) -> &'static str {
        "PATH"
    }
    fn bounds(&self) -> String {
        format!("an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes")
    }
}

impl Unit for SocketPath {
    type Value = PathBuf;
    fn read(&self, raw: &Raw) -> Result<PathBuf, Mistake> {
        let text = raw.text("a path in quotes")?;
        if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
            return Err(Mistake::NotA { given: text.into(), expected: "an absolute path of a socket" });
        }
        if text.len() > SOCKET_PATH_BYTES_MAX {
            let (bytes, most) = (text.len(), SOCKET_PATH_BYTES_MAX);
            return Err(Mistake::PathTooLong { given: text.into(), bytes, most });
        }
        Ok(PathBuf::from(text))
    }
    fn show(&self, value: &PathBuf) -> String {
        value.display().to_string()
    }
}

/// Something that the word "off" turns off.
pub struct OrOff<U>(pub U);

impl<U: Described> Described for OrOff<U> {
    fn hint(&self) -> &'static str {
        self.0.hint()
    }
    fn bounds(&self) -> String {
        format!("{}, or \"off\"", self.0.bounds())
    }
}

impl<U: Unit> Unit for OrOff<U> {
    type Value = Option<U::Value>;
    fn read(&self, raw: &Raw) -> Result<Self::Value, Mistake> {
        match raw {
            Raw::Text(word) | Raw::Word(word) if word == "off" => Ok(None),
            other => self.0.read(other).map(Some),
        }
    }
    fn show(&self, value: &Self::Value) -> String {
        value.as_ref().map_or("off".into(), |v| self.0.show(v))
    }
}

/// Something that is found out where the word "auto" stands.
pub struct OrAuto<U>(pub U);

impl<U: Described> Described for OrAuto<U> {
    fn hint(&self) -> &'static str {
        self.0.hint()
    }
    fn bounds(&self) -> String {
        format!("{}, or \"auto\"", self.0.bounds())
    }
}

impl<U: Unit> Unit for OrAuto<U> {
    type Value = Option<U::Value>;
    fn read(&self, raw: &Raw) -> Result<Self::Value, Mistake> {
        match raw {
            Raw::Text(word) | Raw::Word(word) if word == "auto" => Ok(None),
            other => self.0.read(other).map(Some),
        }
    }
    fn show(&self, value: &Self::Value) -> String {
        value.as_ref().map_or("auto".into(), |v| self.0.show(v))
    }
}

/// An IP address with a port; no names, which could resolve to anything.
pub struct Address;

impl Described for Address {
    fn hint(&self) -> &'static str {
        "IP:PORT"
    }
    fn bounds(&self) -> String {
        "an IP address and a port".into()
    }
}

impl Unit for Address {
    type Value = SocketAddr;
    fn read(&self, raw: &Raw) -> Result<SocketAddr, Mistake> {
        let expected = "an IP address with a port, like \"127.0.0.1:7850\"";
        let text = raw.text(expected)?;
        text.parse().map_err(|_| Mistake::NotA { given: text.into(), expected })
    }
    fn show(&self, value: &SocketAddr) -> String {
        value.to_string()
    }
}

/// Permission bits of a file, in octal.
pub struct FileMode;

impl Described for FileMode {
    fn hint(&self) -> &'static str {
        "OCTAL"
    }
    fn bounds(&self) -> String {
        "octal digits, \"0600\" to \"0777\"".into()
    }
}

impl Unit for FileMode {
    type Value = u32;
    fn read(&self, raw: &Raw) -> Result<u32, Mistake> {
        let expected = "a file mode in octal, \"0600\" to \"0777\"";
        let text = raw.text(expected)?;
        let mode = u32::from_str_radix(text, 8).ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        // Without its owner's right to write, nobody but root could connect.
        mode.filter(|mode| *mode <= 0o777 && mode & 0o600 == 0o600)
            .ok_or_else(|| Mistake::NotA { given: text.into(), expected })
    }
    fn show(&self, value: &u32) -> String {
        format!("{value:04o}")
    }
}

/// A short name: it appears in file names, logs and the names of kept descriptors.
pub struct Name;

impl Described for Name {
    fn hint(&self) -> &'static str {
        "NAME"
    }
    fn bounds(&self) -> String {
        "1 to 32 of a-z, 0-9, - and _".into()
    }
}

impl Unit for Name {
    type Value = String;
    fn read(&self, raw: &Raw) -> Result<String, Mistake> {
        let text = raw.text("a name in quotes")?;
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if text.is_empty() || text.len() > 32 || !text.bytes().all(fits) {
            return Err(Mistake::NotA { given: text.into(), expected: "a name of 1 to 32 of a-z, 0-9, - and _" });
        }
        Ok(text.into())
    }
    fn show(&self, value: &String) -> String {
        value.clone()
    }
}

/// Numbers of users.
pub struct Uids;

impl Described for Uids {
    fn hint(&self) -> &'static str {
        "LIST"
    }
    fn bounds(&self) -> String {
        "a list of numbers of users".into()
    }
    fn quoted(&self) -> bool {
        false
    }
}

impl Unit for Uids {
    type Value = Vec<u32>;
    fn read(&self, raw: &Raw) -> Result<Vec<u32>, Mistake> {
        let items = raw.items("a list of numbers of users, like [1000, 1001]")?;
        let uid = |item: &Raw| {
            let n = item.integer("the number of a user")?;
            // The last number is the kernel's word for "no user".
            u32::try_from(n)
                .ok()
                .filter(|uid| *uid != u32::MAX)
                .ok_or_else(|| Mistake::NotA { given: n.to_string(), expected: "the number of a user" })
        };
        items.iter().map(uid).collect()
    }
    fn show(&self, value: &Vec<u32>) -> String {
        let words: Vec<String> = value.iter().map(u32::to_string).collect();
        format!("[{}]", words.join(", "))
    }
}

fn path_of_log(text: &str) -> Result<PathBuf, Mistake> {
    if Controller::is_meant(Path::new(text)) {
        let expected =
            "a controller's PCI address, like pci:0000:65:00.0, or with its namespace, like pci:0000:65:00.0/2";
        let controller = Controller::parse(text).ok_or_else(|| Mistake::NotA { given: text.into(), expected })?;
        return Ok(controller.to_string().into());
    }
    if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
        return Err(Mistake::NotA { given: text.into(), expected: "an absolute path of a file or a device" });
    }
    // As paths, not as texts: "/a//b" is "/a/b".
    Ok(PathBuf::from(text))
}

/// Absolute paths of files or devices, and controllers; none twice.
pub struct Paths {
    pub most: usize,
}

impl Described for Paths {
    fn hint(&self) -> &'static str {
        "LIST"
    }
    fn bounds(&self) -> String {
        format!("a list of at most {} absolute paths, none twice", self.most)
    }
    fn quoted(&self) -> bool {
        false
    }
}

impl Unit for Paths {
    type Value = Vec<PathBuf>;
    fn read(&self, raw: &Raw) -> Result<Vec<PathBuf>, Mistake> {
        let items = raw.items("a list of paths, like [\"/dev/nvme1n1\", \"/data/lapis.ssd\"]")?;
        if items.len() > self.most {
            return Err(Mistake::TooLarge { given: items.len().to_string(), most: format!("{} paths", self.most) });
        }
        let mut paths: Vec<PathBuf> = Vec::with_capacity(items.len());
        for item in &items {
            let text = item.text("a path in quotes")?;
            let path = path_of_log(text)?;
            let same = |other: &PathBuf| match (Controller::of_path(other), Controller::of_path(&path)) {
                // One controller has one user, whichever of its namespaces.
                (Some(other), Some(this)) => other.address == this.address,
                _ => *other == path,
            };
            if paths.iter().any(same) {
                return Err(Mistake::Twice { given: text.into() });
            }
            paths.push(path);
        }
        Ok(paths)
    }
    fn show(&self, value: &Vec<PathBuf>) -> String {
        let words: Vec<String> = value.iter().map(|path| format!("{:?}", path.display().to_string())).collect();
        format!("[{}]", words.join(", "))
    }
}
