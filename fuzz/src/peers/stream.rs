//! Heads on streams of blocks.

use lapis_transport::peers::streams::head::{
    ANSWER_BYTES, ASK_BYTES, Answer, Ask, GREETING_BYTES, Greeting, Said, WELCOME_BYTES, Welcome,
};

/// The start of a stream, at either end of it. What is taken is what would be said, but for bytes that nobody looks at.
pub fn stream(bytes: &[u8]) {
    if let Some(Ok(greeting)) = bytes.first_chunk::<GREETING_BYTES>().map(Greeting::decode) {
        assert_eq!(greeting.encode()[..16], bytes[..16]);
    }
    if let Some(Ok(welcome)) = bytes.first_chunk::<WELCOME_BYTES>().map(Welcome::decode) {
        assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
        assert_eq!(welcome.encode()[6..8], bytes[6..8]);
    }
    if let Some(Ok(ask)) = bytes.first_chunk::<ASK_BYTES>().map(Ask::decode) {
        assert_eq!(ask.encode(), bytes[..ASK_BYTES]);
    }
    if let Some(Ok(answer)) = bytes.first_chunk::<ANSWER_BYTES>().map(Answer::decode) {
        let again = answer.encode();
        assert_eq!(again[..12], bytes[..12]);
        assert_eq!(Answer::decode(&again), Ok(answer));
    }
}

pub fn heads() -> Vec<Vec<u8>> {
    let greeting = Greeting { stream: 3, word: 0x0102_0304_0506_0708 }.encode();
    let ask = Ask { number: 1, token: 2, first: 3, count: 4, bytes: 4 << 16 }.encode();
    let mut heads = vec![greeting.to_vec(), ask.to_vec()];
    heads.extend([Welcome::In, Welcome::Unknown, Welcome::Version(2)].map(|welcome| welcome.encode().to_vec()));
    let said = [Said::Here { bytes: 4 << 16 }, Said::Gone, Said::Differs { bytes: 3 << 16 }];
    heads.extend(said.map(|said| Answer { number: 1, said }.encode().to_vec()));
    heads
}
