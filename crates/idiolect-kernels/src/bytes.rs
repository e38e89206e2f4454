//! Memory for weights: all of a model's matrices lie in few stretches of large pages.
//!
//! A model is read from end to end for every token, a few megabytes a matrix; with small pages, a good part of that time
//! goes into finding out where the pages are.

#![expect(unsafe_code, reason = "memory that several matrices share, each with a stretch of its own")]

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::tile::LINE;

/// The least that is asked of the system at once. Pages that are never touched take no memory.
const CHUNK: usize = 64 << 20;

/// The large pages of x86-64 and most others.
const PAGE: usize = 2 << 20;

/// The chunk that the next matrix may get its memory from, and how much of that is given away.
static CURRENT: Mutex<(Weak<Chunk>, usize)> = Mutex::new((Weak::new(), 0));

/// Bytes, all zero at first, that begin where a cache line does.
pub(crate) struct Bytes {
    chunk: Arc<Chunk>,
    start: usize,
    len: usize,
}

impl Bytes {
    /// Returns `len` zeros, or nothing where there is no memory for them.
    pub(crate) fn zeros(len: usize) -> Option<Self> {
        let size = len.checked_next_multiple_of(LINE)?;
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, used) = &mut *current;
        if let Some(chunk) = chunk.upgrade()
            && chunk.len - *used >= size
        {
            let start = *used;
            *used += size;
            return Some(Self { chunk, start, len });
        }
        let new = Arc::new(Chunk::new(size.checked_next_multiple_of(PAGE)?.max(CHUNK))?);
        // The rest of the fuller chunk is of less use.
        let left = chunk.upgrade().map_or(0, |chunk| chunk.len - *used);
        if new.len - size >= left {
            (*chunk, *used) = (Arc::downgrade(&new), size);
        }
        Some(Self { chunk: new, start: 0, len })
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: the stretch is inside the chunk, which is initialised and lives as long as `self`, and no other `Bytes`
        // was given any of it.
        unsafe { std::slice::from_raw_parts(self.chunk.start.add(self.start), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.add(self.start), self.len) }
    }
}

/// Zeros that stretches are given away of.
struct Chunk {
    start: *mut u8,
    len: usize,
}

// SAFETY: a chunk is no more than memory that its owner may free from any thread; `Bytes` are the only way to its
// contents, each to a stretch of its own.
unsafe impl Send for Chunk {}
// SAFETY: as above; a shared chunk gives away nothing but its bounds.
unsafe impl Sync for Chunk {}

#[cfg(all(target_os = "linux", not(miri)))]
impl Chunk {
    /// `len` is a multiple of a page.
    fn new(len: usize) -> Option<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

        // One page more leaves room to begin at a large page.
        let size = len.checked_add(PAGE)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the system's choice touches nothing that is in use.
        let mapping = unsafe { mmap_anonymous(std::ptr::null_mut(), size, access, MapFlags::PRIVATE) }.ok()?;
        let before = mapping.align_offset(PAGE);
        let mapping = mapping.cast::<u8>();
        // SAFETY: both ends lie inside the mapping and nothing points to them; the rest stays. What is not given back
        // stays mapped but untouched, and advice that is not taken changes nothing but the speed.
        unsafe {
            let start = mapping.add(before);
            if before > 0 {
                let _ = munmap(mapping.cast(), before);
            }
            if before < PAGE {
                let _ = munmap(start.add(len).cast(), PAGE - before);
            }
            let _ = madvise(start.cast(), len, Advice::LinuxHugepage);
            Some(Self { start, len })
        }
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: the mapping is this chunk's alone, and no `Bytes` is left.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.len) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
impl Chunk {
    const fn layout(len: usize) -> Option<std::alloc::Layout> {
        match std::alloc::Layout::from_size_align(len, LINE) {
            Ok(layout) => Some(layout),
            Err(_) => None,
        }
    }

    /// `len` is not zero.
    fn new(len: usize) -> Option<Self> {
        // SAFETY: the size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(Self::layout(len)?) };
        (!start.is_null()).then_some(Self { start, len })
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: it was allocated with this layout, and no `Bytes` is left.
            unsafe { std::alloc::dealloc(self.start, layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_zero_aligned_and_apart() {
        let mut all: Vec<Bytes> = [0, 1, 64, 4097, 3 << 20, CHUNK + 1, 100].map(|n| Bytes::zeros(n).unwrap()).into();
        for (i, bytes) in all.iter_mut().enumerate() {
            assert!(bytes.as_slice().iter().all(|byte| *byte == 0));
            assert!(bytes.as_slice().as_ptr().addr().is_multiple_of(LINE));
            bytes.as_mut_slice().fill(i as u8 + 1);
        }
        drop(all.remove(2));
        for (i, bytes) in [0u8, 1, 3, 4, 5, 6].into_iter().zip(&all) {
            assert!(bytes.as_slice().iter().all(|byte| *byte == i + 1));
        }
        assert!(Bytes::zeros(usize::MAX / 2).is_none());
        assert!(Bytes::zeros(usize::MAX).is_none());
    }
}
