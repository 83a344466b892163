//! Request traces, plain or compressed.

use std::io::Cursor;

use lapis_trace::{Merged, TraceReader};

/// Longer compressed input may become gigabytes of empty lines: right, and slow.
const COMPRESSED_BYTES_MAX: usize = 512;

pub fn trace(bytes: &[u8]) {
    if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) && bytes.len() > COMPRESSED_BYTES_MAX {
        return;
    }
    let reader = || TraceReader::new("t".into(), Cursor::new(bytes.to_vec()));
    let Ok(alone) = reader() else { return };
    let mut time = 0;
    for request in alone.map_while(Result::ok) {
        assert!(request.timestamp_ms >= time && !request.ids.is_empty());
        assert!(request.tokens_of(request.ids.len()) == request.input_length);
        assert!(request.full_ids().len() <= request.ids.len());
        time = request.timestamp_ms;
    }
    let readers = [reader(), reader()].into_iter().collect::<Result<Vec<_>, _>>().expect("as before");
    let Ok(merged) = Merged::new(readers) else { return };
    let mut time = 0;
    for request in merged.map_while(Result::ok) {
        assert!(request.timestamp_ms >= time);
        time = request.timestamp_ms;
    }
}

pub fn traces() -> Vec<Vec<u8>> {
    let one = "{\"timestamp\":0,\"input_length\":600,\"output_length\":5,\"hash_ids\":[0,1]}\n";
    let more = "{\"session\":4,\"timestamp\":1.6,\"input_length\":512,\"output_length\":0,\"hash_ids\":[7]}";
    let wrong = "{\"timestamp\":-5,\"input_length\":9,\"output_length\":0,\"hash_ids\":[1]}\n";
    let large = "{\"timestamp\":1e14,\"input_length\":1,\"output_length\":0,\"hash_ids\":[18446744073709551615]}\n";
    let texts = [one.to_owned(), format!("{one}\n{more}"), format!("{one}{wrong}"), large.into(), more[..30].into()];
    let mut traces: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
    traces.push(stored(one.as_bytes()));
    traces
}

/// A zstd frame of one block that is not compressed (RFC 8878): magic, one byte of length, last block, raw.
fn stored(text: &[u8]) -> Vec<u8> {
    let block = (text.len() as u32) << 3 | 1;
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, text.len() as u8], &block.to_le_bytes()[..3], text].concat()
}
