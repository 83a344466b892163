//! What the environment asks for; see the head of the crate. A value that cannot be read ends the process: a test that runs
//! without the faults that it wanted would show nothing.

use std::{env, ops::RangeInclusive, path::PathBuf, time::Duration};

use cudarc::driver::sys::CUresult;

const DEVICE_BYTES: u64 = 256 << 20;

/// What may be made to fail, `one_in` draws at the mean and at most `times`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chance {
    /// All devices if none is named.
    pub device: Option<usize>,
    pub what: Fault,
    pub one_in: u64,
    pub times: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An allocation is refused.
    Memory,
    /// The call that asks for a copy is refused; of a batch, a part was taken.
    Copy,
    /// A copy fails as it runs, and its context with it.
    Sticky,
    /// An event is not recorded.
    Event,
    /// Memory that was shared is not taken.
    Import,
    /// What has become of an event is not said.
    Query,
}

/// When a device is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// After that many calls to its context.
    After(u64),
    /// While that file is there; the device can be used again once it is gone and its context was reset.
    While(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Options {
    pub device_bytes: Vec<u64>,
    pub seed: u64,
    pub latency_us: RangeInclusive<u64>,
    pub register: Duration,
    pub chances: Vec<Chance>,
    pub losses: Vec<(usize, Loss)>,
    pub lost_as: CUresult,
    /// Devices whose calls do not return while that file is there.
    pub hangs: Vec<(usize, PathBuf)>,
    pub has_vmm: bool,
    pub has_descriptors: bool,
    pub has_peers: bool,
    /// Of the ways between devices.
    pub link_rank: i32,
    pub has_nvlink: bool,
    pub pageable: bool,
    pub misuses: Option<PathBuf>,
}

impl Options {
    pub fn of_environment() -> Self {
        Self::read(|name| env::var(format!("LAPIS_CUDA_{name}")).ok().filter(|value| !value.is_empty()))
    }

    fn read(value: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str, default: u64| value(name).map_or(default, |text| parsed(name, &text));
        let count = number("DEVICES", 1) as usize;
        let bytes: Vec<u64> = list(value("BYTES")).iter().map(|text| parsed("BYTES", text)).collect();
        let last = bytes.last().copied().unwrap_or(DEVICE_BYTES);
        let without = list(value("WITHOUT"));
        for word in &without {
            assert!(["vmm", "descriptors", "peers"].contains(&word.as_str()), "LAPIS_CUDA_WITHOUT: {word}");
        }
        let has = |word: &str| !without.iter().any(|given| given == word);
        let link = value("LINK");
        let has_nvlink = link.as_deref() == Some("nvlink");
        let link = link.filter(|_| !has_nvlink);
        let latency = value("LATENCY_US").unwrap_or_else(|| "0-0".to_owned());
        let (low, high) = latency.split_once('-').unwrap_or((&latency, &latency));
        Self {
            device_bytes: (0..count).map(|index| bytes.get(index).copied().unwrap_or(last)).collect(),
            seed: number("SEED", 0),
            latency_us: parsed("LATENCY_US", low)..=parsed("LATENCY_US", high),
            register: Duration::from_micros(number("REGISTER_US", 0)),
            chances: list(value("ERRORS")).iter().map(|text| chance(text)).collect(),
            losses: list(value("LOSE")).iter().map(|text| loss(text)).collect(),
            lost_as: match number("LOST_AS", 46) {
                46 => CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
                214 => CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
                700 => CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
                719 => CUresult::CUDA_ERROR_LAUNCH_FAILED,
                other => panic!("LAPIS_CUDA_LOST_AS: {other} is none of 46, 214, 700, 719"),
            },
            hangs: list(value("HANG")).iter().map(|text| hang(text)).collect(),
            has_vmm: has("vmm"),
            has_descriptors: has("descriptors"),
            has_peers: has("peers"),
            link_rank: link.as_deref().map_or(0, |rank| parsed("LINK", rank) as i32),
            has_nvlink,
            pageable: match value("PAGEABLE").as_deref() {
                None | Some("refuse") => false,
                Some("allow") => true,
                Some(other) => panic!("LAPIS_CUDA_PAGEABLE: {other} is neither refuse nor allow"),
            },
            misuses: value("MISUSES").map(PathBuf::from),
        }
    }

    /// The latency that is drawn by `draw`, a number below its argument.
    pub fn latency(&self, draw: impl FnOnce(RangeInclusive<u64>) -> u64) -> Duration {
        Duration::from_micros(if *self.latency_us.end() == 0 { 0 } else { draw(self.latency_us.clone()) })
    }
}

fn list(value: Option<String>) -> Vec<String> {
    value.iter().flat_map(|text| text.split(',')).map(|item| item.trim().to_owned()).collect()
}

fn parsed(name: &str, text: &str) -> u64 {
    text.trim().parse().unwrap_or_else(|error| panic!("LAPIS_CUDA_{name}: {text:?}: {error}"))
}

/// `[DEVICE:]KIND=N[xTIMES]`.
fn chance(text: &str) -> Chance {
    let (device, rest) = match text.split_once(':') {
        Some((device, rest)) => (Some(parsed("ERRORS", device) as usize), rest),
        None => (None, text),
    };
    let (what, numbers) = rest.split_once('=').unwrap_or_else(|| panic!("LAPIS_CUDA_ERRORS: {text:?} lacks a ="));
    let what = match what {
        "memory" => Fault::Memory,
        "copy" => Fault::Copy,
        "sticky" => Fault::Sticky,
        "event" => Fault::Event,
        "import" => Fault::Import,
        "query" => Fault::Query,
        other => panic!("LAPIS_CUDA_ERRORS: {other:?} is none of memory, copy, sticky, event, import, query"),
    };
    let (one_in, times) = match numbers.split_once('x') {
        Some((one_in, times)) => (one_in, parsed("ERRORS", times)),
        None => (numbers, u64::MAX),
    };
    let one_in = parsed("ERRORS", one_in);
    assert!(one_in > 0, "LAPIS_CUDA_ERRORS: {text:?}: one in 0");
    Chance { device, what, one_in, times }
}

/// `DEVICE@CALLS` or `DEVICE@/PATH`.
fn loss(text: &str) -> (usize, Loss) {
    let (device, when) = at("LOSE", text);
    let when = if when.starts_with('/') { Loss::While(when.into()) } else { Loss::After(parsed("LOSE", when)) };
    (device, when)
}

/// `DEVICE@...`.
fn at<'a>(name: &str, text: &'a str) -> (usize, &'a str) {
    let (device, when) = text.split_once('@').unwrap_or_else(|| panic!("LAPIS_CUDA_{name}: {text:?} lacks a @"));
    (parsed(name, device) as usize, when)
}

/// `DEVICE@/PATH`.
fn hang(text: &str) -> (usize, PathBuf) {
    let (device, path) = at("HANG", text);
    assert!(path.starts_with('/'), "LAPIS_CUDA_HANG: {text:?} lacks a path");
    (device, path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[(&str, &str)]) -> Options {
        Options::read(|name| values.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let options = with(&[]);
        assert_eq!(options.device_bytes, [DEVICE_BYTES]);
        assert_eq!((options.latency_us, options.register), (0..=0, Duration::ZERO));
        assert!(options.has_vmm && options.has_descriptors && !options.pageable && options.chances.is_empty());
    }

    #[test]
    fn all_that_can_be_said_is_understood() {
        let options = with(&[
            ("DEVICES", "3"),
            ("BYTES", "100,200"),
            ("LATENCY_US", "5-50"),
            ("REGISTER_US", "70"),
            ("ERRORS", "memory=7,1:sticky=1x2"),
            ("LOSE", "0@12,2@/run/gone"),
            ("HANG", "1@/run/busy"),
            ("WITHOUT", "vmm,descriptors"),
            ("LINK", "2"),
        ]);
        assert_eq!((options.device_bytes.as_slice(), options.latency_us), (&[100, 200, 200][..], 5..=50));
        assert_eq!(options.register, Duration::from_micros(70));
        let memory = Chance { device: None, what: Fault::Memory, one_in: 7, times: u64::MAX };
        assert_eq!(options.chances, [memory, Chance { device: Some(1), what: Fault::Sticky, one_in: 1, times: 2 }]);
        assert_eq!(options.losses, [(0, Loss::After(12)), (2, Loss::While("/run/gone".into()))]);
        assert_eq!(options.hangs, [(1, PathBuf::from("/run/busy"))]);
        assert!(!options.has_vmm && !options.has_descriptors && options.has_peers);
        assert_eq!((options.link_rank, options.has_nvlink), (2, false));
        let (nvlink, none) = (with(&[("LINK", "nvlink")]), with(&[]));
        assert_eq!((nvlink.link_rank, nvlink.has_nvlink, none.link_rank, none.has_nvlink), (0, true, 0, false));
    }

    #[test]
    #[should_panic(expected = "LAPIS_CUDA_ERRORS")]
    fn a_word_that_is_not_understood_ends_the_process() {
        with(&[("ERRORS", "memroy=7")]);
    }
}
