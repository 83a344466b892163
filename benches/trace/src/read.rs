//! Reads traces as a stream, plain or compressed, one or several merged by time. Whatever is wrong with a file is
//! said with its name and line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{BLOCK_TOKENS, Request};

/// No request has a longer line, bytes: 2^21 ids of 20 digits.
const LINE_BYTES_MAX: u64 = 48 << 20;
/// Files compressed with `zstd --long=27` need this much window, as a power of two.
const WINDOW_LOG_MAX: u32 = 27;
/// Ids of merged traces are kept apart above this bit.
const ID_BITS: u32 = 56;
const TRACES_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("opening {}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("reading {}, line {line}", .path.display())]
    Io { path: PathBuf, line: u64, source: io::Error },
    #[error("{}: line {line}: the compressed file ends before its end: it is cut short", .path.display())]
    CutShort { path: PathBuf, line: u64 },
    #[error("{}: line {line}: ends in the middle of a request: the file is cut short", .path.display())]
    LineCutShort { path: PathBuf, line: u64 },
    #[error("{}: line {line}: more than {LINE_BYTES_MAX} bytes long", .path.display())]
    LineTooLong { path: PathBuf, line: u64 },
    #[error("{}: line {line}: {what}", .path.display())]
    Malformed { path: PathBuf, line: u64, what: String },
    #[error("{}: line {line}: timestamp {found} ms comes after {before} ms: not in order of time", .path.display())]
    OutOfOrder { path: PathBuf, line: u64, before: u64, found: u64 },
    #[error(
        "{}: line {line}: {ids} hash_ids for {tokens} tokens, expected {expected} of {BLOCK_TOKENS} tokens each",
        .path.display()
    )]
    WrongCount { path: PathBuf, line: u64, ids: usize, tokens: u64, expected: u64 },
    #[error("{}: line {line}: id {id} does not fit {ID_BITS} bits, the most when traces are merged", .path.display())]
    IdTooLarge { path: PathBuf, line: u64, id: u64 },
    #[error("{}: holds no request", .path.display())]
    Empty { path: PathBuf },
    #[error("{count} traces, the most that can be merged is {TRACES_MAX}")]
    TooMany { count: usize },
}

/// A line as it stands in the file; other fields are passed over.
#[derive(Deserialize)]
struct Record {
    timestamp: serde_json::Number,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

/// The requests of one file, in order. After an error it ends.
pub struct TraceReader {
    path: PathBuf,
    /// `None` once the end or an error was met.
    source: Option<Box<dyn BufRead + Send>>,
    line: u64,
    text: Vec<u8>,
    timestamp_ms: u64,
    found: bool,
}

impl TraceReader {
    /// Opens a file; it counts as compressed if it begins like one, whatever its name.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let wrong = |source| TraceError::Open { path: path.into(), source };
        let file = File::open(path).map_err(wrong)?;
        if file.metadata().map_err(wrong)?.is_dir() {
            return Err(wrong(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        Self::new(path.into(), file).map_err(wrong)
    }

    /// Reads from anything; `path` is only for the errors.
    pub fn new(path: PathBuf, source: impl Read + Send + 'static) -> io::Result<Self> {
        let mut source = BufReader::with_capacity(1 << 18, source);
        let compressed = source.fill_buf()?.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        let source: Box<dyn BufRead + Send> = if compressed {
            let mut decoder = zstd::Decoder::with_buffer(source)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Box::new(BufReader::with_capacity(1 << 18, decoder))
        } else {
            Box::new(source)
        };
        Ok(Self { path, source: Some(source), line: 0, text: Vec::new(), timestamp_ms: 0, found: false })
    }

    /// The next request, `None` at the end.
    fn read(&mut self) -> Result<Option<Request>, TraceError> {
        loop {
            let Some(source) = &mut self.source else { return Ok(None) };
            self.line += 1;
            self.text.clear();
            let read = Read::take(source, LINE_BYTES_MAX + 1).read_until(b'\n', &mut self.text);
            let (path, line) = (self.path.clone(), self.line);
            match read {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(TraceError::CutShort { path, line }),
                Err(source) => return Err(TraceError::Io { path, line, source }),
                Ok(0) if self.found => return Ok(None),
                Ok(0) => return Err(TraceError::Empty { path }),
                Ok(n) if n as u64 > LINE_BYTES_MAX => return Err(TraceError::LineTooLong { path, line }),
                Ok(_) if self.text.trim_ascii().is_empty() => {}
                Ok(_) => return self.request().map(Some),
            }
        }
    }

    /// The request in `text`.
    fn request(&mut self) -> Result<Request, TraceError> {
        let (path, line) = (self.path.clone(), self.line);
        let record: Record = serde_json::from_slice(&self.text).map_err(|e| match e.classify() {
            serde_json::error::Category::Eof if !self.text.ends_with(b"\n") => {
                TraceError::LineCutShort { path: path.clone(), line }
            }
            _ => TraceError::Malformed { path: path.clone(), line, what: reason(&e) },
        })?;
        let timestamp_ms = milliseconds(&record.timestamp).ok_or_else(|| TraceError::Malformed {
            path: path.clone(),
            line,
            what: format!("timestamp {} is no time in milliseconds", record.timestamp),
        })?;
        if timestamp_ms < self.timestamp_ms {
            return Err(TraceError::OutOfOrder { path, line, before: self.timestamp_ms, found: timestamp_ms });
        }
        let expected = record.input_length.div_ceil(BLOCK_TOKENS);
        if record.hash_ids.len() as u64 != expected || expected == 0 {
            let (ids, tokens) = (record.hash_ids.len(), record.input_length);
            return Err(TraceError::WrongCount { path, line, ids, tokens, expected: expected.max(1) });
        }
        self.timestamp_ms = timestamp_ms;
        self.found = true;
        let Record { input_length, output_length, hash_ids: ids, .. } = record;
        Ok(Request { timestamp_ms, input_length, output_length, ids })
    }
}

impl Iterator for TraceReader {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.read().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.source = None;
        }
        next
    }
}

/// What serde says, less its "at line 1": the line is known better here.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("{what} (column {})", error.column())
}

/// Whole milliseconds; some traces have fractions.
fn milliseconds(number: &serde_json::Number) -> Option<u64> {
    let fraction = || number.as_f64().filter(|ms| (0.0..1e15).contains(ms)).map(|ms| ms.round() as u64);
    number.as_u64().or_else(fraction)
}

/// Several traces on one time line. Requests of one time come in the order in which the traces were given; ids of
/// different traces are kept apart.
pub struct Merged {
    /// Each with its next request.
    traces: Vec<(TraceReader, Option<Request>)>,
    failed: Option<TraceError>,
}

impl Merged {
    pub fn open(paths: &[PathBuf]) -> Result<Self, TraceError> {
        let readers: Result<Vec<_>, _> = paths.iter().map(|path| TraceReader::open(path)).collect();
        Self::new(readers?)
    }

    pub fn new(readers: Vec<TraceReader>) -> Result<Self, TraceError> {
        if readers.len() > TRACES_MAX {
            return Err(TraceError::TooMany { count: readers.len() });
        }
        let mut traces = Vec::with_capacity(readers.len());
        for mut reader in readers {
            let first = reader.next().transpose()?;
            traces.push((reader, first));
        }
        Ok(Self { traces, failed: None })
    }

    /// The earliest request, its ids made unlike those of other traces.
    fn take(&mut self, index: usize) -> Result<Request, TraceError> {
        let apart = self.traces.len() > 1;
        let (reader, next) = &mut self.traces[index];
        let mut request = next.take().expect("the caller chose a trace that has a next request");
        let line = reader.line;
        *next = match reader.next().transpose() {
            Ok(next) => next,
            // This request is whole; the error is for the next call.
            Err(error) => {
                self.failed = Some(error);
                None
            }
        };
        for id in request.ids.iter_mut().filter(|_| apart) {
            if *id >> ID_BITS != 0 {
                return Err(TraceError::IdTooLarge { path: reader.path.clone(), line, id: *id });
            }
            *id |= (index as u64) << ID_BITS;
        }
        Ok(request)
    }
}

impl Iterator for Merged {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            self.traces.clear();
            return Some(Err(error));
        }
        let times = self.traces.iter().enumerate().filter_map(|(i, (_, next))| Some((next.as_ref()?.timestamp_ms, i)));
        let (_, index) = times.min()?;
        Some(self.take(index))
    }
}

/// All requests of `paths`, merged; read to their ends first, so that a broken file is found before anything is done.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Request>, TraceError> {
    Merged::open(paths)?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"timestamp":0,"input_length":600,"output_length":5,"hash_ids":[0,1]}"#;

    fn read(bytes: &[u8]) -> Result<Vec<Request>, String> {
        let reader = TraceReader::new("t".into(), io::Cursor::new(bytes.to_vec())).map_err(|e| e.to_string())?;
        reader.collect::<Result<_, _>>().map_err(|e| e.to_string())
    }

    #[test]
    fn a_trace_is_read_plain_or_compressed_with_other_fields_passed_over() {
        let more = r#"{"session":4,"timestamp":1.6,"input_length":512,"output_length":0,"hash_ids":[7]}"#;
        let text = format!("{GOOD}\n\n{more}");
        let requests = read(text.as_bytes()).expect("a good trace");
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[1], Request { timestamp_ms: 2, input_length: 512, output_length: 0, ids: vec![7] });
        assert_eq!((requests[0].full_ids(), requests[0].tokens_of(2), requests[0].tokens_of(1)), (&[0][..], 600, 512));
        let packed = zstd::encode_all(text.as_bytes(), 1).expect("compression in memory");
        assert_eq!(read(&packed).expect("the same"), requests);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let cases = [
            ("{\"timestamp\":5}\n", "t: line 2: missing field `input_length` (column"),
            ("{\"timestamp\":5,\"input_length\":-1,\"output_length\":0,\"hash_ids\":[]}\n", "line 2: invalid value"),
            ("{\"timestamp\":5,\"input_length\":9,\"output_length\":0,\"hash_ids\":[\"a\"]}\n", "line 2: invalid type"),
            ("{\"timestamp\":5,\"input_length\":9,\"outp", "line 2: ends in the middle of a request"),
            ("{\"timestamp\":5,\"input_length\":9,\"outp\n", "line 2: "),
            (
                "{\"timestamp\":-5,\"input_length\":9,\"output_length\":0,\"hash_ids\":[1]}",
                "line 2: timestamp -5 is no time",
            ),
            (
                "{\"timestamp\":5,\"input_length\":513,\"output_length\":0,\"hash_ids\":[1]}",
                "1 hash_ids for 513 tokens, expected 2",
            ),
            ("{\"timestamp\":5,\"input_length\":0,\"output_length\":0,\"hash_ids\":[]}", "0 hash_ids for 0 tokens"),
            ("[1,2]\n", "line 2: "),
            ("\u{0}\u{1}\n", "line 2: "),
        ];
        for (second, expected) in cases {
            let error = read(format!("{GOOD}\n{second}").as_bytes()).expect_err("a broken trace");
            assert!(error.contains(expected) && !error.contains('\n'), "{error:?} does not say {expected:?}");
        }
        assert!(read(b"\n").expect_err("nothing").contains("holds no request"));
    }

    #[test]
    fn time_does_not_go_back() {
        let later = GOOD.replace("\"timestamp\":0", "\"timestamp\":9");
        let error = read(format!("{later}\n{GOOD}\n").as_bytes()).expect_err("out of order");
        assert_eq!(error, "t: line 2: timestamp 0 ms comes after 9 ms: not in order of time");
    }

    #[test]
    fn a_compressed_file_cut_anywhere_is_an_error() {
        let text = format!("{GOOD}\n").repeat(2000);
        let packed = zstd::encode_all(text.as_bytes(), 1).expect("compression in memory");
        for bytes in 4..packed.len() {
            let error = read(&packed[..bytes]).expect_err("cut short");
            assert!(error.contains("cut short"), "{bytes}: {error}");
        }
    }

    #[test]
    fn a_flipped_byte_is_never_a_panic() {
        let packed = zstd::encode_all(format!("{GOOD}\n").repeat(50).as_bytes(), 1).expect("compression in memory");
        for i in 0..packed.len() {
            let mut broken = packed.clone();
            broken[i] ^= 0x41;
            let _ = read(&broken);
        }
    }

    #[test]
    fn traces_merge_by_time_with_ties_in_the_order_given_and_ids_apart() {
        let line = |t: u64, id: u64| {
            format!("{{\"timestamp\":{t},\"input_length\":1,\"output_length\":0,\"hash_ids\":[{id}]}}\n")
        };
        let trace = |lines: &[(u64, u64)]| {
            let text: String = lines.iter().map(|(t, id)| line(*t, *id)).collect();
            TraceReader::new("t".into(), io::Cursor::new(text.into_bytes())).expect("in memory")
        };
        let merged = Merged::new(vec![trace(&[(0, 1), (5, 2), (5, 3)]), trace(&[(5, 1), (6, 2)])]).expect("traces");
        let order: Vec<(u64, u64)> = merged.map(|r| r.map(|r| (r.timestamp_ms, r.ids[0])).expect("good")).collect();
        let other = 1 << ID_BITS;
        assert_eq!(order, [(0, 1), (5, 2), (5, 3), (5, other + 1), (6, other + 2)]);
        let alone = Merged::new(vec![trace(&[(0, u64::MAX)])]).expect("a trace").next();
        assert_eq!(alone.expect("one").expect("good").ids, [u64::MAX], "one trace keeps its ids");
        let too_large = Merged::new(vec![trace(&[(0, u64::MAX)]), trace(&[(0, 0)])]).expect("traces").next();
        assert!(matches!(too_large, Some(Err(TraceError::IdTooLarge { .. }))));
    }
}
