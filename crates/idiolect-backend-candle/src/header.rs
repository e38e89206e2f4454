//! A second look at the header of a GGUF file that candle does not read, for tensors in formats that it does not know.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Formats that candle reads, by their numbers.
const KNOWN: [u32; 15] = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 30];

/// Formats that other programs write, by their numbers.
const NAMES: [(u32, &str); 20] = [
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// Returns the first tensor whose format candle does not know, with the format's name; `None` where there is none, or the
/// header is damaged.
pub(crate) fn unknown_format(path: &Path) -> Option<(String, String)> {
    let file = File::open(path).ok()?;
    let left = file.metadata().ok()?.len();
    let mut input = Input { reader: BufReader::new(file), left };
    let magic: [u8; 4] = input.bytes()?;
    // Version 1 counts in 32 bits, and is not written any more.
    if magic != *b"GGUF" || !matches!(input.u32()?, 2 | 3) {
        return None;
    }
    let (n_tensors, n_metadata) = (input.u64()?, input.u64()?);
    for _ in 0..n_metadata {
        input.skip_text()?;
        let kind = input.u32()?;
        input.skip_value(kind)?;
    }
    for _ in 0..n_tensors {
        let name = input.text()?;
        let n_dimensions = input.u32()?;
        input.skip(u64::from(n_dimensions) * 8)?;
        let format = input.u32()?;
        input.skip(8)?;
        if !KNOWN.contains(&format) {
            let known = NAMES.iter().find(|(number, _)| *number == format).map(|(_, name)| (*name).to_owned());
            return Some((name, known.unwrap_or_else(|| format!("format {format}"))));
        }
    }
    None
}

/// Reads no more than the file has.
struct Input {
    reader: BufReader<File>,
    left: u64,
}

impl Input {
    fn take(&mut self, n: u64) -> Option<()> {
        self.left = self.left.checked_sub(n)?;
        Some(())
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn skip(&mut self, n: u64) -> Option<()> {
        self.take(n)?;
        self.reader.seek_relative(i64::try_from(n).ok()?).ok()
    }

    fn skip_text(&mut self) -> Option<()> {
        let n = self.u64()?;
        self.skip(n)
    }

    fn text(&mut self) -> Option<String> {
        let n = self.u64()?;
        self.take(n)?;
        let mut bytes = vec![0; usize::try_from(n).ok()?];
        self.reader.read_exact(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip_value(&mut self, kind: u32) -> Option<()> {
        match (kind, size(kind)) {
            (_, Some(size)) => self.skip(size),
            (8, _) => self.skip_text(),
            (9, _) => {
                let (kind, n) = (self.u32()?, self.u64()?);
                match size(kind) {
                    Some(size) => self.skip(n.checked_mul(size)?),
                    // Lists of lists are not written by anyone.
                    None if kind == 8 => (0..n).try_for_each(|_| self.skip_text()),
                    None => None,
                }
            }
            _ => None,
        }
    }
}

/// Bytes of a plain value, by the number of its kind.
const fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TinyGguf;

    #[test]
    fn tensors_in_other_formats_are_named() {
        let tiny = TinyGguf::model("llama");
        let mut bytes = tiny.bytes();
        let (_dir, path) = tiny.write();
        assert_eq!(unknown_format(&path), None);
        // Behind the name are the number of dimensions, the dimensions and then the format.
        let name = b"blk.1.ffn_up.weight";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 16;
        assert_eq!(bytes[at..at + 4], 8u32.to_le_bytes());
        for (number, expected) in [(20u32, "IQ4_NL"), (77, "format 77")] {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            std::fs::write(&path, &bytes).unwrap();
            let found = unknown_format(&path);
            assert_eq!(found, Some(("blk.1.ffn_up.weight".to_owned(), expected.to_owned())));
            let error = crate::loader::Gguf::open(&path).unwrap_err().to_string();
            assert!(
                error.contains(&format!("tensor \"blk.1.ffn_up.weight\" in {expected} is not supported")),
                "{error}"
            );
        }
        for len in (0..at).step_by(41) {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert_eq!(unknown_format(&path), None, "{len} bytes");
        }
    }
}
