//! The bytes: what is written is read back, and nothing else is accepted.

use super::{sized_state, state};
use qwentune::checkpoint::encode::file_len;
use qwentune::checkpoint::format::{decode, encode};

use std::path::Path;

#[test]
fn round_trip() {
    for state in [state(1, 0), state(7, 3), sized_state(3, 1, 300_000)] {
        let bytes = encode(&state);
        assert_eq!(bytes.len() as u64, file_len(&state));
        let back = decode(Path::new("x"), &bytes).expect("own bytes");
        assert_eq!(back, state);
        assert_eq!(encode(&back), bytes);
    }
}
