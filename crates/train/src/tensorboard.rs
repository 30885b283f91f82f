//! Event files that TensorBoard opens.
//!
//! A file is a row of TFRecords: length (u64), its masked CRC-32C, the bytes, their masked CRC-32C, all little-endian
//! (tensorflow/core/lib/io/record_writer.h). The bytes are `Event` messages of tensorflow/core/util/event.proto, encoded
//! here by hand.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::files::FileError;

/// One event file, open for appending.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Begins an event file in `folder`. A run that goes on after step `step` (0: that begins) begins a new one, and tells
    /// TensorBoard to forget what the older files have after it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(folder: &Path, step: u64) -> Result<EventWriter, FileError> {
        let now = wall_time();
        // The name must have "tfevents"; the numbers keep the files of one run apart and in order.
        let path = folder.join(format!("events.out.tfevents.{:020}.tenon.{step}", (now * 1e6) as u64));
        let file = File::create_new(&path).map_err(FileError::of("create", &path))?;
        let mut writer = EventWriter { path, file };
        writer.append(&event(now, 0, &text_field(3, "brain.Event:2")))?;
        if step > 0 {
            // session_log { status: START }: what has this step or a later one is dropped.
            writer.append(&event(now, step + 1, &bytes_field(7, &varint_field(1, 1))))?;
        }
        Ok(writer)
    }

    /// Appends one point to each named curve.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), FileError> {
        self.append(&event(wall_time(), step, &scalar_summary(values)))
    }

    /// Appends a text, which TensorBoard shows as Markdown.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<(), FileError> {
        self.append(&event(wall_time(), step, &text_summary(tag, text)))
    }

    fn append(&mut self, event: &[u8]) -> Result<(), FileError> {
        self.file.write_all(&record(event)).map_err(FileError::of("write", &self.path))
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// `Event { wall_time = 1, step = 2, what }`.
fn event(wall_time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut bytes = vec![(1 << 3) | FIXED64];
    bytes.extend(wall_time.to_le_bytes());
    bytes.extend(varint_field(2, step));
    bytes.extend(what);
    bytes
}

/// `summary = 5 { value = 1 { tag = 1, simple_value = 2 } ... }`.
fn scalar_summary<'a>(values: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let value = |(tag, value): (&str, f64)| {
        let mut bytes = text_field(1, tag);
        bytes.push((2 << 3) | FIXED32);
        bytes.extend((value as f32).to_le_bytes());
        bytes_field(1, &bytes)
    };
    bytes_field(5, &values.into_iter().flat_map(value).collect::<Vec<u8>>())
}

/// `summary = 5 { value = 1 { tag = 1, metadata = 9 { plugin_data = 1 { plugin_name = 1: "text" } }, tensor = 8 } }`.
fn text_summary(tag: &str, text: &str) -> Vec<u8> {
    const DT_STRING: u64 = 7;
    // TensorProto { dtype = 1, tensor_shape = 2 (a scalar: empty), string_val = 8 }.
    let tensor = [varint_field(1, DT_STRING), bytes_field(2, &[]), text_field(8, text)].concat();
    let metadata = bytes_field(1, &text_field(1, "text"));
    let value = [text_field(1, tag), bytes_field(9, &metadata), bytes_field(8, &tensor)].concat();
    bytes_field(5, &bytes_field(1, &value))
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    [vec![(number << 3) | VARINT], varint(value)].concat()
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![(number << 3) | LENGTH], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn text_field(number: u8, text: &str) -> Vec<u8> {
    bytes_field(number, text.as_bytes())
}

fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(bytes.len() + 16);
    record.extend(length);
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(bytes);
    record.extend(masked(crc32c(bytes)).to_le_bytes());
    record
}

/// TFRecord's masking: a checksum of bytes that have checksums in them is otherwise weak.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut crc = index as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

#[cfg(test)]
mod tests;
