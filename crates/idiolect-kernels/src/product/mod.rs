//! Products of packed matrices with activations: how the work is dealt out, and who does it.

use std::marker::PhantomData;
use std::ops::Range;

use crate::Team;
use crate::activations::{Activations, GROUP, Group};
use crate::format::BLOCK;
use crate::matrix::{Matrix, Section};
use crate::tier::Tier;
use crate::tile::ROWS;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod simd;

/// Tasks for each thread, so that a slow one leaves some to the others.
const TASKS_PER_THREAD: usize = 4;

/// Bytes of activations that stay in a core's own cache while the weights pass by.
const ACTIVATION_BYTES: usize = 384 << 10;

/// Multiplies and writes to `out`, whose length was checked.
pub(crate) fn multiply(matrix: &Matrix, team: &Team, activations: &Activations, out: &mut [f32]) {
    let (tiles, groups) = (matrix.tiles(), activations.groups());
    if tiles == 0 || groups.is_empty() {
        return;
    }
    let out = Output { start: out.as_mut_ptr(), len: out.len(), rows: matrix.rows(), lifetime: PhantomData };
    let stretch = (ACTIVATION_BYTES / (GROUP * matrix.cols())).clamp(4, groups.len().max(4));
    let stretches = groups.len().div_ceil(stretch);
    let shares = if team.threads() == 1 { 1 } else { (team.threads() * TASKS_PER_THREAD).min(tiles) };
    team.run(stretches * shares, &|task| {
        let (stretch_index, share) = (task / shares, task % shares);
        let from = stretch_index * stretch;
        let groups = &groups[from..groups.len().min(from + stretch)];
        let tiles = tiles * share / shares..tiles * (share + 1) / shares;
        for section in matrix.sections() {
            let end = section.first_tile + section.tiles();
            let tiles = tiles.start.max(section.first_tile)..tiles.end.min(end);
            if !tiles.is_empty() {
                let work = Work { data: matrix.data(), section, tiles, groups, first: from * GROUP, out: &out };
                work.run(matrix.tier());
            }
        }
    });
}

/// The product that all tasks write to.
struct Output<'a> {
    start: *mut f32,
    len: usize,
    rows: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "tasks write columns of one slice")]
// SAFETY: no two tasks have the same tile and the same activation rows, so they write different elements.
unsafe impl Sync for Output<'_> {}

/// One task: some tiles of a section with some groups of activation rows.
struct Work<'a> {
    data: &'a [u8],
    section: &'a Section,
    /// Counted in the whole matrix.
    tiles: Range<usize>,
    groups: &'a [Group],
    /// The first activation row.
    first: usize,
    out: &'a Output<'a>,
}

impl<'a> Work<'a> {
    fn run(&self, tier: Tier) {
        match tier {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Vnni => avx512::run(self),
            #[cfg(all(test, target_arch = "x86_64"))]
            Tier::AvxVnni if !tier.is_available() => avx2::vnni_of_avx512::run(self),
            #[cfg(target_arch = "x86_64")]
            Tier::AvxVnni => avx2::vnni::run(self),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => avx2::plain::run(self),
            #[cfg(target_arch = "aarch64")]
            Tier::NeonDot => neon::run(self),
            _ => portable::run(self),
        }
    }

    /// Checks the bounds that kernels without checks of their own rely on.
    fn check(&self) {
        let layout = self.section.layout;
        for group in self.groups {
            assert!((1..=GROUP).contains(&group.rows), "rows in a group");
            if layout.format.is_quantised() {
                assert!(group.again.iter().all(|block| (*block as usize) < layout.blocks()));
                let blocks = group.rows * (layout.blocks() + group.again.len());
                assert_eq!(group.quants.len(), blocks * BLOCK);
                assert_eq!([group.scales.len(), group.sums.len(), group.halves.len()], [blocks; 3]);
                assert!(group.starts.iter().all(|starts| starts.len() == blocks));
            } else {
                assert_eq!(group.floats.len(), group.rows * layout.cols);
            }
        }
    }

    /// Returns the bytes of a tile.
    fn tile(&self, tile: usize) -> &'a [u8] {
        let size = self.section.layout.tile_bytes();
        &self.data[self.section.start + (tile - self.section.first_tile) * size..][..size]
    }

    /// Returns where the products of a tile begin with one row of a group, and how many they are.
    ///
    /// The pointer is good for writing that many numbers, which no other task touches.
    #[expect(unsafe_code, reason = "tasks write columns of one slice")]
    fn output(&self, tile: usize, group: usize, row: usize) -> (*mut f32, usize) {
        let inside = (tile - self.section.first_tile) * ROWS;
        let n = (self.section.rows - inside).min(ROWS);
        let at = (self.first + group * GROUP + row) * self.out.rows + self.section.first_row + inside;
        assert!(at + n <= self.out.len, "products are inside the output");
        // SAFETY: the assertion keeps it inside the slice that the output was made from.
        (unsafe { self.out.start.add(at) }, n)
    }

    /// Stores the products of a tile with one row of a group.
    #[expect(unsafe_code, reason = "tasks write columns of one slice")]
    fn store(&self, tile: usize, group: usize, row: usize, products: &[f32; ROWS]) {
        let (to, n) = self.output(tile, group, row);
        // SAFETY: `output` gives room for n numbers that only this task writes, and n is at most `ROWS`.
        unsafe { std::ptr::copy_nonoverlapping(products.as_ptr(), to, n) };
    }
}

/// Returns which unit of a tile a walk comes to at its `visit`th step, and which of its blocks: all there are, or after
/// the last unit one block that comes again.
#[inline]
fn visited(visit: usize, unit_blocks: usize, blocks: usize, again: &[u32]) -> (usize, Range<usize>) {
    let units = blocks.div_ceil(unit_blocks);
    if visit < units {
        return (visit, 0..unit_blocks.min(blocks - visit * unit_blocks));
    }
    let block = again[visit - units] as usize;
    (block / unit_blocks, block % unit_blocks..block % unit_blocks + 1)
}

#[cfg(test)]
mod tests;
