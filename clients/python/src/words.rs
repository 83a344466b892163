//! The words of calls as Python classes: what to wait for, which hits count, what is known of the future, how a put ended.

use std::{ops::Range, time::Duration};

use lapis_client as client;
use lapis_client::{GetOptions, PutResult, Refusal};
use pyo3::{
    exceptions::{PyOverflowError, PyTypeError, PyValueError},
    prelude::*,
    types::{PyBytes, PyDict, PyMapping},
};

/// Whether a get may wait for blocks that are not there yet.
#[pyclass(eq, frozen, hash, from_py_object, module = "lapis_kv", rename_all = "SCREAMING_SNAKE_CASE")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wait {
    /// No: answer from what is there.
    Present,
    /// For blocks that somebody is putting now.
    Filling,
    /// Until the deadline, for blocks that nobody has put yet, too.
    Absent,
}

impl From<Wait> for client::Wait {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::Present => Self::Present,
            Wait::Filling => Self::Filling,
            Wait::Absent => Self::Absent,
        }
    }
}

/// When bytes are checked against their sum.
#[pyclass(eq, frozen, hash, from_py_object, module = "lapis_kv", rename_all = "SCREAMING_SNAKE_CASE")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verify {
    /// When nobody has checked them since the daemon's start.
    Crossings,
    /// Always: one more pass over the bytes.
    Always,
}

impl From<Verify> for client::Verify {
    fn from(verify: Verify) -> Self {
        match verify {
            Verify::Crossings => Self::Crossings,
            Verify::Always => Self::Always,
        }
    }
}

/// How many of the keys asked count as a hit, per pool: `HitPolicy.PREFIX`, `HitPolicy.ANY`, `HitPolicy.trailing(n)`.
#[pyclass(eq, frozen, hash, module = "lapis_kv")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HitPolicy(pub client::HitPolicy);

#[pymethods]
impl HitPolicy {
    /// The leading run.
    #[classattr]
    const PREFIX: Self = Self(client::HitPolicy::Prefix);
    /// Each key for itself.
    #[classattr]
    const ANY: Self = Self(client::HitPolicy::Any);

    /// A length counts only if the last `n` keys before it are there: sliding windows, recurrent state.
    #[staticmethod]
    #[pyo3(signature = (n, /))]
    fn trailing(n: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(client::HitPolicy::Trailing(whole("n", n)?)))
    }

    fn __repr__(&self) -> String {
        match self.0 {
            client::HitPolicy::Prefix => "HitPolicy.PREFIX".into(),
            client::HitPolicy::Any => "HitPolicy.ANY".into(),
            client::HitPolicy::Trailing(n) => format!("HitPolicy.trailing({n})"),
        }
    }
}

/// What an engine knows of the future of blocks: `Hint.ENDED`, `Hint.WILL_RETURN`, `Hint.pinned(seconds)`,
/// `Hint.priority(level)`.
#[pyclass(eq, frozen, hash, module = "lapis_kv")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hint(pub client::Hint);

#[pymethods]
impl Hint {
    /// The session ended: its own blocks are the first to go.
    #[classattr]
    const ENDED: Self = Self(client::Hint::Ended);
    /// The session will be back soon (a tool call runs).
    #[classattr]
    const WILL_RETURN: Self = Self(client::Hint::WillReturn);

    /// Kept as long as anything else can go, for `ttl` seconds.
    #[staticmethod]
    #[pyo3(signature = (ttl, /))]
    fn pinned(ttl: f64) -> PyResult<Self> {
        let ttl_ms = seconds("ttl", ttl)?.as_millis();
        let ttl_ms = u32::try_from(ttl_ms).map_err(|_| PyValueError::new_err("ttl: expected at most 49 days"))?;
        Ok(Self(client::Hint::Pinned { ttl_ms }))
    }

    /// Higher stays longer, 0 to 255; decays.
    #[staticmethod]
    #[pyo3(signature = (level, /))]
    fn priority(level: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(client::Hint::Priority(whole("level", level)?)))
    }

    fn __repr__(&self) -> String {
        match self.0 {
            client::Hint::Ended => "Hint.ENDED".into(),
            client::Hint::WillReturn => "Hint.WILL_RETURN".into(),
            client::Hint::Pinned { ttl_ms } => format!("Hint.pinned({:?})", f64::from(ttl_ms) / 1e3),
            client::Hint::Priority(level) => format!("Hint.priority({level})"),
        }
    }
}

macro_rules! put_status {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// What became of one block or object of a put. All but `STORED` and `EXISTS` are refusals: go on without storing.
        #[pyclass(eq, frozen, hash, module = "lapis_kv", rename_all = "SCREAMING_SNAKE_CASE")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum PutStatus {
            /// Stored by this call.
            Stored,
            /// It was there already.
            Exists,
            $($(#[$doc])* $variant,)+
        }

        impl From<PutResult> for PutStatus {
            fn from(result: PutResult) -> Self {
                match result {
                    PutResult::Stored => Self::Stored,
                    PutResult::Exists => Self::Exists,
                    $(PutResult::Refused(Refusal::$variant) => Self::$variant,)+
                }
            }
        }

        impl PutStatus {
            pub fn refusal(self) -> Option<Refusal> {
                match self {
                    Self::Stored | Self::Exists => None,
                    $(Self::$variant => Some(Refusal::$variant),)+
                }
            }

            pub fn as_str(self) -> &'static str {
                match self {
                    Self::Stored => "STORED",
                    Self::Exists => "EXISTS",
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}
put_status! {
    AllPinned = "ALL_PINNED",
    TooLarge = "TOO_LARGE",
    NoExtentFits = "NO_EXTENT_FITS",
    NoPool = "NO_POOL",
    ReadOnly = "READ_ONLY",
    NotGranted = "NOT_GRANTED",
    NoLine = "NO_LINE",
    NotReady = "NOT_READY",
    NoParent = "NO_PARENT",
    Limit = "LIMIT",
    Draining = "DRAINING",
    Gone = "GONE",
    Late = "LATE",
    Cold = "COLD",
    NoPeer = "NO_PEER",
}

#[pymethods]
impl PutStatus {
    /// Such as "STORED" or "ALL_PINNED".
    #[getter]
    fn name(&self) -> &'static str {
        self.as_str()
    }

    /// In a sentence.
    #[getter]
    fn message(&self) -> String {
        match self {
            Self::Stored => "stored by this call".into(),
            Self::Exists => "it was there already".into(),
            _ => self.refusal().map(|refusal| refusal.to_string()).unwrap_or_default(),
        }
    }

    /// Whether the block is there now: stored by this call or before.
    #[getter]
    fn is_there(&self) -> bool {
        self.refusal().is_none()
    }

    #[getter]
    fn is_refused(&self) -> bool {
        self.refusal().is_some()
    }

    /// Whether the same put may succeed later without anyone's help.
    #[getter]
    fn is_transient(&self) -> bool {
        self.refusal().is_some_and(Refusal::is_transient)
    }
}

/// All that the bytes of a block depend on and its key does not say: unlike namespaces never share a block.
///
/// Leave nothing at its default that may differ between two engines. `extra`: a dict of names and values of what else
/// shapes the bytes (LoRA policy, group spec).
#[pyclass(eq, frozen, hash, module = "lapis_kv")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Namespace {
    #[pyo3(get)]
    model: String,
    fingerprint: [u8; 32],
}

#[pymethods]
impl Namespace {
    #[new]
    #[pyo3(signature = (model, *, revision="", dtype="", layout="", tokens_per_block=None, hash_algorithm="", hash_seed="",
                        salt="", extra=None),
           text_signature = "(model, *, revision='', dtype='', layout='', tokens_per_block=0, hash_algorithm='', \
                             hash_seed='', salt='', extra=None)")]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn new(
        model: &str,
        revision: &str,
        dtype: &str,
        layout: &str,
        tokens_per_block: Option<&Bound<'_, PyAny>>,
        hash_algorithm: &str,
        hash_seed: &str,
        salt: &str,
        extra: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let mut namespace = client::Namespace::new(model)
            .revision(revision)
            .dtype(dtype)
            .layout(layout)
            .tokens_per_block(tokens_per_block.map_or(Ok(0), |tokens| whole("tokens_per_block", tokens))?)
            .hash_algorithm(hash_algorithm)
            .hash_seed(hash_seed)
            .salt(salt);
        if let Some(extra) = extra {
            let wrong = |_| PyTypeError::new_err("extra: expected a dict of str to str");
            for item in extra.cast::<PyMapping>().map_err(|error| wrong(error.into()))?.items()?.iter() {
                let (name, value): (String, String) = item.extract().map_err(wrong)?;
                namespace = namespace.extra(name, value);
            }
        }
        Ok(Self { model: model.to_owned(), fingerprint: namespace.fingerprint().0 })
    }

    /// 32 bytes: BLAKE3 of all fields. The same in every build and language.
    #[getter]
    fn fingerprint<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.fingerprint)
    }

    fn __repr__(&self) -> String {
        let start: String = self.fingerprint[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("<lapis_kv.Namespace {:?} {start}>", self.model)
    }
}

/// The fingerprint that a pool is opened with: of a [`Namespace`], or its 32 bytes.
pub(crate) fn fingerprint(namespace: &Bound<'_, PyAny>) -> PyResult<client::Fingerprint> {
    if let Ok(namespace) = namespace.cast::<Namespace>() {
        return Ok(client::Fingerprint(namespace.get().fingerprint));
    }
    let bytes = namespace.cast::<PyBytes>().ok().and_then(|bytes| bytes.as_bytes().try_into().ok());
    bytes
        .map(client::Fingerprint)
        .ok_or_else(|| PyTypeError::new_err("namespace: expected a Namespace, or the 32 bytes of a fingerprint"))
}

/// A whole number from 0 to the most that its type has.
pub(crate) fn whole<'py, T>(name: &str, number: &Bound<'py, PyAny>) -> PyResult<T>
where
    T: FromPyObjectOwned<'py, Error = PyErr>,
{
    number.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(number.py()) {
            let most = u64::MAX >> (64 - 8 * size_of::<T>());
            PyValueError::new_err(format!("{name} of {number}: expected 0 to {most}"))
        } else {
            PyTypeError::new_err(format!("{name}: expected a whole number, not {number:?}"))
        }
    })
}

/// A duration given in seconds.
pub(crate) fn seconds(name: &str, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("{name} of {seconds:e} seconds: expected 0 to 1e19")))
}

pub(crate) fn deadline(given: Option<f64>) -> PyResult<Option<Duration>> {
    given.map(|given| seconds("deadline", given)).transpose()
}

/// How a get is to go, in the client's words.
pub(crate) fn get_options(
    pieces: Option<&Bound<'_, PyAny>>,
    wait: Wait,
    given: Option<f64>,
    verify: Option<Verify>,
) -> PyResult<GetOptions> {
    let pieces = pieces.map(range).transpose()?;
    Ok(GetOptions { pieces, from: None, wait: wait.into(), deadline: deadline(given)?, verify: verify.map(Into::into) })
}

/// Pieces of blocks: a pair (first, end).
fn range(pieces: &Bound<'_, PyAny>) -> PyResult<Range<u16>> {
    let pair: (Bound<'_, PyAny>, Bound<'_, PyAny>) =
        pieces.extract().map_err(|_| PyTypeError::new_err("pieces: expected a pair (first, end) of piece numbers"))?;
    Ok(whole("pieces", &pair.0)?..whole("pieces", &pair.1)?)
}

/// Numbers by name, as a dict.
pub(crate) fn dict<'py>(py: Python<'py>, numbers: &[(&str, u64)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, number) in numbers {
        dict.set_item(name, number)?;
    }
    Ok(dict)
}
