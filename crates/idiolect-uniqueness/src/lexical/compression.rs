//! Compression ratio: how much texts repeat themselves and each other.
//!
//! Bytes of the texts joined by single spaces, by the bytes of that compressed: Shaib et al., "Standardizing the
//! measurement of text diversity" (2024, arXiv 2403.00553). A higher ratio means more repetition. The compressor is zlib's
//! format at level 9; between compressors, and between processors, lengths differ by a few bytes.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// Returns the ratio of the texts joined by spaces. `None` when there is nothing to compress: no texts, or a single empty
/// one. Below 1 for short texts, which the format's overhead makes longer.
#[must_use]
pub fn compression_ratio<T: AsRef<str>>(texts: &[T]) -> Option<f64> {
    let bytes = texts.iter().map(|text| text.as_ref().len()).sum::<usize>() + texts.len().saturating_sub(1);
    if bytes == 0 {
        return None;
    }
    let spaced = texts.iter().enumerate().flat_map(|(i, text)| [if i > 0 { " " } else { "" }, text.as_ref()]);
    Some(bytes as f64 / compressed_len(spaced) as f64)
}

/// Returns how many bytes the texts, one after the other, take compressed.
pub(super) fn compressed_len<'a>(texts: impl IntoIterator<Item = &'a str>) -> usize {
    let mut encoder = ZlibEncoder::new(Counter(0), Compression::best());
    let written = texts.into_iter().try_for_each(|text| encoder.write_all(text.as_bytes()));
    let counter = written.and_then(|()| encoder.finish());
    counter.expect("a counter takes whatever is written").0
}

/// Counts what is written to it.
struct Counter(usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
