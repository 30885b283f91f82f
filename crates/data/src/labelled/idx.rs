//! IDX files, the format of MNIST (LeCun, Cortes and Burges): a magic number, sizes, then unsigned bytes; plain or gzip.

use std::io::Read;
use std::path::Path;

use crate::error::{DataError, Place};
use crate::files::{open_contents, read_exactly};

const UNSIGNED_BYTE: u8 = 0x08;

/// An IDX array of unsigned bytes.
#[derive(Debug)]
pub(crate) struct IdxArray {
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl IdxArray {
    /// Bytes before the data.
    pub fn header_bytes(&self) -> u64 {
        header_bytes(self.shape.len())
    }
}

fn header_bytes(dimensions: usize) -> u64 {
    4 + 4 * dimensions as u64
}

/// Reads an array of a number of dimensions in `dimensions`; `holds` says what it should be, for messages.
pub(crate) fn read(
    path: &Path,
    dimensions: std::ops::RangeInclusive<usize>,
    holds: &str,
) -> Result<IdxArray, DataError> {
    let mut contents = open_contents(path)?;
    let short = |found: u64, wanted: u64| {
        DataError::content(
            path,
            Place::Byte(found),
            format!("the file ends: {holds} need {wanted} bytes"),
            "the file is incomplete: fetch it again",
        )
    };
    let mut take = |count: u64| read_exactly(&mut contents.reader, count).map_err(DataError::io("read", path));
    let magic = take(4)?.ok_or_else(|| short(0, 4))?;
    let (zeros, kind, rank) = (&magic[..2], magic[2], usize::from(magic[3]));
    if zeros != [0, 0] || kind != UNSIGNED_BYTE || !dimensions.contains(&rank) {
        return Err(bad_magic(path, &magic, &dimensions, holds));
    }
    let header = header_bytes(rank);
    let sizes = take(4 * rank as u64)?.ok_or_else(|| short(4, header))?;
    let shape: Vec<usize> =
        sizes.chunks_exact(4).map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize).collect();
    let total = shape
        .iter()
        .try_fold(1u64, |total, &size| total.checked_mul(size as u64))
        .filter(|total| contents.length.is_none_or(|length| total.saturating_add(header) <= length));
    let total = match (total, contents.length) {
        (Some(total), _) => total,
        (None, length) => {
            return Err(DataError::content(
                path,
                Place::Byte(4),
                format!(
                    "the header says {shape:?} bytes, the file has {} after it",
                    length.map_or("far fewer".to_owned(), |l| l.saturating_sub(header).to_string())
                ),
                "the file is incomplete or no IDX file: fetch it again",
            ));
        }
    };
    let bytes = take(total)?.ok_or_else(|| short(header, total.saturating_add(header)))?;
    let mut more = [0];
    let extra = contents.reader.read(&mut more).map_err(DataError::io("read", path))?;
    if extra > 0 {
        return Err(DataError::content(
            path,
            Place::Byte(header + total),
            format!("the header says {shape:?} bytes, but more follow"),
            "the file is damaged or no IDX file: fetch it again",
        ));
    }
    Ok(IdxArray { shape, bytes })
}

fn bad_magic(path: &Path, magic: &[u8], dimensions: &std::ops::RangeInclusive<usize>, holds: &str) -> DataError {
    let kinds = [
        (UNSIGNED_BYTE, "unsigned bytes"),
        (0x09, "signed bytes"),
        (0x0b, "16-bit integers"),
        (0x0c, "32-bit integers"),
        (0x0d, "32-bit floats"),
        (0x0e, "64-bit floats"),
    ];
    let kind = kinds.iter().find(|(code, _)| *code == magic[2]);
    let found = match (magic, kind) {
        ([0, 0, _, rank], Some((_, kind))) => format!("an array of {kind} with {rank} dimensions"),
        _ => format!("the bytes {magic:02x?}, which start no IDX file"),
    };
    let (low, high) = dimensions.clone().into_inner();
    let wanted = if low == high { low.to_string() } else { format!("{low} or {high}") };
    DataError::content(
        path,
        Place::Byte(0),
        format!("{holds} must be an IDX array of unsigned bytes with {wanted} dimensions; found {found}"),
        "check that the images' and the labels' file are not exchanged",
    )
}
