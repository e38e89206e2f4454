//! Memory that begins where a cache line does.

use crate::tile::LINE;

/// Bytes, all zero at first.
#[derive(Default)]
pub(crate) struct Bytes {
    bytes: Vec<u8>,
    start: usize,
}

impl Bytes {
    /// Makes `len` zeros, or nothing where there is no memory for them.
    pub(crate) fn zeros(len: usize) -> Option<Self> {
        let size = len.checked_add(LINE)?;
        Vec::<u8>::new().try_reserve_exact(size).ok()?;
        // Zeros of a new allocation cost nothing before they are first touched.
        let bytes = vec![0; size];
        let start = bytes.as_ptr().align_offset(LINE).min(LINE);
        Some(Self { bytes, start })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len().saturating_sub(LINE)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len()]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        let len = self.len();
        &mut self.bytes[self.start..self.start + len]
    }
}
