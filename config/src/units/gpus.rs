//! Which GPUs are used. Pure.

use std::fmt;

use super::{Described, Raw, Unit, hosts::at_most};
use crate::mistake::Mistake;

const ALL: &str = "all";
const EXPECTED: &str =
    "a GPU: its index, its UUID (\"GPU-...\", whole) or its PCI bus id, these as nvidia-smi has them";

/// The GPUs of the HBM tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// All that the driver shows.
    All,
    /// At least one, none named twice.
    Named(Vec<GpuName>),
}

/// A way to name a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GpuName {
    /// As the driver counts them; a reboot may change it.
    Index(u16),
    Uuid([u8; 16]),
    Pci {
        domain: u32,
        bus: u8,
        device: u8,
        function: u8,
    },
}

impl GpuName {
    /// A PCI bus id: `[domain:]bus:device.function`, in hexadecimal digits.
    pub fn pci(text: &str) -> Option<Self> {
        let hex = |text: &str, digits: usize| {
            let fits = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
            u32::from_str_radix(text, 16).ok().filter(|_| fits)
        };
        let (rest, function) = text.rsplit_once('.')?;
        let (rest, device) = rest.rsplit_once(':')?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
        Some(Self::Pci {
            domain: hex(domain, 8)?,
            bus: hex(bus, 2)? as u8,
            device: hex(device, 2).filter(|device| *device < 32)? as u8,
            function: hex(function, 1).filter(|function| *function < 8)? as u8,
        })
    }

    fn uuid(text: &str) -> Option<Self> {
        let (head, rest) = text.split_at_checked(4)?;
        let groups: Vec<&str> = rest.split('-').collect();
        let shape = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
        let digits = groups.concat();
        if !head.eq_ignore_ascii_case("gpu-") || !shape || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(&digits, 16).ok().map(|number| Self::Uuid(number.to_be_bytes()))
    }

    fn read(text: &str) -> Option<Self> {
        let index = || text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit())).map(Self::Index);
        index().or_else(|| Self::uuid(text)).or_else(|| Self::pci(text))
    }
}

impl fmt::Display for GpuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Uuid(bytes) => {
                let digits = format!("{:032x}", u128::from_be_bytes(*bytes));
                let (a, b, c, d, e) = (&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]);
                write!(f, "GPU-{a}-{b}-{c}-{d}-{e}")
            }
            Self::Pci { domain, bus, device, function } => {
                write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
            }
        }
    }
}

/// The word "all", or a list of names, none twice.
pub struct GpuNames {
    pub most: usize,
}

impl Described for GpuNames {
    fn hint(&self) -> &'static str {
        "LIST"
    }
    fn bounds(&self) -> String {
        format!("\"{ALL}\", or a list of at most {} GPUs, none twice", self.most)
    }
    fn quoted(&self) -> bool {
        false
    }
}

impl Unit for GpuNames {
    type Value = Gpus;
    fn read(&self, raw: &Raw) -> Result<Gpus, Mistake> {
        if let Raw::Word(text) | Raw::Text(text) = raw
            && text.trim() == ALL
        {
            return Ok(Gpus::All);
        }
        let items = raw.items("\"all\" or a list of GPUs, like [0, \"0000:41:00.0\"]")?;
        at_most(items.len(), self.most, "GPUs")?;
        let mut names: Vec<GpuName> = Vec::with_capacity(items.len());
        for item in &items {
            let text = match item {
                Raw::Integer(number) => number.to_string(),
                other => other.text("the number of a GPU, or a text in quotes")?.to_owned(),
            };
            let Some(name) = GpuName::read(&text) else {
                return Err(Mistake::NotA { given: text, expected: EXPECTED });
            };
            if names.contains(&name) {
                return Err(Mistake::Twice { given: text });
            }
            names.push(name);
        }
        if names.is_empty() {
            return Err(Mistake::NotA { given: "[]".into(), expected: "a GPU or more (hbm.bytes = \"0B\" uses none)" });
        }
        Ok(Gpus::Named(names))
    }
    fn show(&self, value: &Gpus) -> String {
        match value {
            Gpus::All => ALL.into(),
            Gpus::Named(names) => {
                let word = |name: &GpuName| match name {
                    GpuName::Index(index) => index.to_string(),
                    name => format!("\"{name}\""),
                };
                format!("[{}]", names.iter().map(word).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "GPU-00112233-4455-6677-8899-aabbccddeeff";

    #[test]
    fn a_gpu_is_named_as_nvidia_smi_prints_it() {
        let pci = GpuName::Pci { domain: 0, bus: 0x3b, device: 0, function: 0 };
        for text in ["00000000:3B:00.0", "0000:3b:00.0", "3b:00.0"] {
            assert_eq!(GpuName::read(text), Some(pci), "{text}");
        }
        assert_eq!(pci.to_string(), "0000:3b:00.0");
        let uuid = GpuName::read(&UUID.to_lowercase()).expect("a UUID");
        assert_eq!(uuid, GpuName::Uuid(std::array::from_fn(|at| at as u8 * 0x11)));
        assert_eq!(uuid.to_string(), UUID);
        assert_eq!(GpuName::read("7"), Some(GpuName::Index(7)));
        let long = UUID.replace("-44", "-044");
        for text in
            ["", "-1", "+1", "70000", "GPU-0011", "GPU", &UUID[4..], &long, "3b:00", "3b:20.0", "g:0.0", "0:0:0:0.0"]
        {
            assert_eq!(GpuName::read(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read_again() {
        let unit = GpuNames { most: 4 };
        let list = Raw::List(vec![Raw::Integer(1), Raw::Text(UUID.into()), Raw::Text("1:0.0".into())]);
        let read = unit.read(&list).expect("a list");
        assert_eq!(unit.show(&read), format!("[1, \"{UUID}\", \"0000:01:00.0\"]"));
        let word = unit.show(&read).replace('"', "");
        assert_eq!(unit.read(&Raw::Word(word)).expect("a word"), read);
        assert_eq!(unit.read(&Raw::Word("all".into())), Ok(Gpus::All));
    }
}
