//! Writes traces, plain or compressed. A file appears whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use super::Request;

/// One line a request, in Mooncake's form.
pub fn write(out: &mut impl Write, trace: &[Request]) -> io::Result<()> {
    for request in trace {
        let Request { timestamp_ms, input_length, output_length, ids } = request;
        write!(out, "{{\"timestamp\":{timestamp_ms},\"input_length\":{input_length},")?;
        write!(out, "\"output_length\":{output_length},\"hash_ids\":[")?;
        for (i, id) in ids.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(out, "{comma}{id}")?;
        }
        out.write_all(b"]}\n")?;
    }
    Ok(())
}

/// Writes beside `path` and renames at the end; compressed if the name ends in ".zst".
pub fn to_file(path: &Path, trace: &[Request]) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writing = || format!("writing {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(writing)?;
    let out = BufWriter::with_capacity(1 << 18, file.as_file_mut());
    if path.extension().is_some_and(|extension| extension == "zst") {
        let mut encoder = zstd::Encoder::new(out, 9)?;
        write(&mut encoder, trace).with_context(writing)?;
        encoder.finish()?.flush().with_context(writing)?;
    } else {
        let mut out = out;
        write(&mut out, trace).with_context(writing)?;
        out.flush().with_context(writing)?;
    }
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(readable).with_context(writing)?;
    file.persist(path).with_context(writing)?;
    Ok(())
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = vec![
        Request { timestamp_ms: 0, input_length: 700, output_length: 3, ids: vec![0, 1] },
        Request { timestamp_ms: 4, input_length: 512, output_length: 0, ids: vec![u64::MAX] },
    ];
    for name in ["t.jsonl", "t.jsonl.zst"] {
        let path = folder.path().join(name);
        to_file(&path, &trace).expect("written");
        assert_eq!(super::read_all(&[path]).expect("read"), trace);
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 2, "nothing else stays");
}
