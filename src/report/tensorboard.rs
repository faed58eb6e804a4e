//! Event files of TensorBoard: scalars of a run, in the form that TensorFlow's summary writer gives them, which Weights &
//! Biases and others import too.
//!
//! A file is a sequence of records (TensorFlow, `core/lib/io/record_writer.h`): length (u64), masked CRC32C of the length,
//! data, masked CRC32C of the data, little endian. The data is a protocol buffer `Event` (`core/util/event.proto`).

use super::line::{EvalLine, LogLine, StepLine};

/// CRC32C (Castagnoli, RFC 3720 appendix B.4), bit by bit: a few hundred bytes a step need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}

/// The checksum as record files hold it, so that a checksum of data with checksums is still one.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

/// One record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of a protocol buffer that holds bytes: text, or another message.
fn bytes_field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(number << 3 | 2), out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// `Event.wall_time` (1, double) and `Event.step` (2, int64).
fn event(seconds: f64, step: u64) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend_from_slice(&seconds.to_le_bytes());
    out.push(2 << 3);
    varint(step, &mut out);
    out
}

/// The record that every file begins with: `Event.file_version` (3).
#[must_use]
pub fn beginning(seconds: f64) -> Vec<u8> {
    let mut data = event(seconds, 0);
    bytes_field(3, b"brain.Event:2", &mut data);
    record(&data)
}

/// A record of scalars at `step`: `Event.summary` (5), `Summary.value` (1) of `tag` (1) and `simple_value` (2, float).
/// `seconds` are those since 1970.
fn scalars(seconds: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut one = Vec::new();
        bytes_field(1, tag.as_bytes(), &mut one);
        one.push(2 << 3 | 5);
        one.extend_from_slice(&(*value as f32).to_le_bytes());
        bytes_field(1, &one, &mut summary);
    }
    let mut data = event(seconds, step);
    bytes_field(5, &summary, &mut data);
    record(&data)
}

/// The record of a line of the log, under the tags that Hugging Face's Trainer uses.
#[must_use]
pub fn logged(seconds: f64, line: &LogLine) -> Vec<u8> {
    match line {
        LogLine::Step(StepLine { step, epoch, loss, grad_norm, lr, .. }) => scalars(
            seconds,
            *step,
            &[
                ("train/loss", *loss),
                ("train/grad_norm", *grad_norm),
                ("train/learning_rate", *lr),
                ("train/epoch", *epoch),
            ],
        ),
        LogLine::Eval(EvalLine { step, eval_loss, .. }) => {
            scalars(seconds, *step, &[("eval/loss", *eval_loss)])
        }
    }
}

/// The whole records at the beginning of a file, each with its `wall_time`; what follows the first that is torn or damaged
/// is left out.
#[must_use]
pub fn read(mut bytes: &[u8]) -> Vec<(f64, &[u8])> {
    let mut records = Vec::new();
    while let Some((seconds, record)) = first_record(bytes) {
        records.push((seconds, record));
        bytes = &bytes[record.len()..];
    }
    records
}

fn first_record(bytes: &[u8]) -> Option<(f64, &[u8])> {
    let length: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    let end = usize::try_from(u64::from_le_bytes(length)).ok()?.checked_add(16)?;
    let record = bytes.get(..end)?;
    let data = &record[12..end - 4];
    let whole = record[8..12] == masked(&length) && record[end - 4..] == masked(data);
    let seconds: [u8; 8] = data.get(1..9)?.try_into().ok()?;
    (whole && data[0] == 1 << 3 | 1).then_some((f64::from_le_bytes(seconds), record))
}
