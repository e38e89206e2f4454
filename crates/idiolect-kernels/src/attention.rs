//! Keys and values in blocks, and attention to them.
//!
//! A sequence is a list of blocks of [`BLOCK_TOKENS`] positions. Blocks may be shared: sequences that begin alike hold the
//! same blocks, and [`KvCache::attend`] reads those once for all of them. The numbers of a query depend on what its own
//! sequence holds and on nothing else: scores are sums over elements in order, outputs sums over positions in order,
//! whatever else is computed beside them.

#![expect(unsafe_code, reason = "SIMD kernels over typed views of byte blocks; threads write disjoint parts")]
#![expect(clippy::inline_always, reason = "kernels must become part of the function that has the features")]
#![expect(clippy::needless_range_loop, reason = "numbers of registers, which several arrays are indexed with")]

mod append;
mod attend;
mod store;
#[cfg(test)]
mod tests;
mod tiles;

use append::Append;
use attend::{Attend, SCRATCH};
use store::SCALE_LEN;
use tiles::tiles;

use crate::bytes::Bytes;
use crate::lanes::{LANES, Simd, dispatch};
use crate::team::Base;
use crate::{Team, Tier};

/// Positions of a block.
pub const BLOCK_TOKENS: usize = LANES;

/// About the memory that is asked for at once.
const SLAB_BYTES: usize = 4 << 20;

/// Most blocks of a slab.
const MOST_SLAB: usize = 16;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// Single precision.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// Signed bytes, with a scale for each 32 elements of a head.
    Q8,
}

/// The shape of a model's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Key heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_width: usize,
    /// How they are kept.
    pub kv_type: KvType,
}

impl KvShape {
    /// Returns the bytes of one block over all layers.
    #[must_use]
    pub const fn block_bytes(&self) -> usize {
        let padded = self.head_width.next_multiple_of(LANES);
        let dims = Dims { padded, scales: self.head_width.div_ceil(SCALE_LEN), values: 0 };
        2 * self.layers * self.kv_heads * dims.part_bytes(self.kv_type)
    }

    const fn dims(&self) -> Dims {
        let padded = self.head_width.next_multiple_of(LANES);
        let mut dims = Dims { padded, scales: self.head_width.div_ceil(SCALE_LEN), values: 0 };
        dims.values = self.slab() * dims.part_bytes(self.kv_type);
        dims
    }

    /// Blocks whose memory lies together.
    const fn slab(&self) -> usize {
        let fits = SLAB_BYTES / (self.block_bytes() + 1);
        if fits > MOST_SLAB { MOST_SLAB } else { fits + 1 }
    }
}

/// What the kernels need to know of a tile: the part of a block that belongs to one key head of one layer.
#[derive(Clone, Copy, Debug)]
struct Dims {
    /// Elements of a head, rounded up to whole registers.
    padded: usize,
    /// Scales of a head.
    scales: usize,
    /// Bytes from the first of the keys to the first of the values.
    values: usize,
}

impl Dims {
    const fn elements(self) -> usize {
        self.padded * BLOCK_TOKENS
    }

    /// Bytes of the keys of a tile, and of its values.
    const fn part_bytes(self, kv_type: KvType) -> usize {
        match kv_type {
            KvType::F32 => 4 * self.elements(),
            KvType::F16 => 2 * self.elements(),
            KvType::Q8 => self.elements() + 4 * self.scales * BLOCK_TOKENS,
        }
    }
}

/// Keys and values of all sequences of a model.
///
/// Blocks lie together in slabs: for each key head of each layer the keys of all blocks of the slab, then their values. So
/// a prompt's keys are read in long stretches, which is what memory is fast at.
pub struct KvCache {
    shape: KvShape,
    simd: Simd,
    slabs: Vec<Bytes>,
    /// For each block, the last [`append`](Self::append) that wrote to it.
    written: Vec<u64>,
    appends: u64,
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvCache").field("shape", &self.shape).field("blocks", &self.len()).finish_non_exhaustive()
    }
}

/// How queries and keys are changed before they meet: bias, norm, rotation, scale.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Query heads.
    pub heads: usize,
    /// Added to queries, keys and values.
    pub bias: Option<&'a [f32]>,
    /// Weights of the root mean square norm of each query head.
    pub q_norm: Option<&'a [f32]>,
    /// The same for keys.
    pub k_norm: Option<&'a [f32]>,
    /// What the norms add to the mean square.
    pub epsilon: f32,
    /// The rotation of each row.
    pub rotation: &'a Rotation,
    /// What queries are multiplied with in the end.
    pub query_scale: f32,
}

/// Sines and cosines for the rotation of each row of a batch.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// Elements that turn.
    width: usize,
    /// Whether neighbours turn together, rather than the first half with the second.
    neighbours: bool,
    /// For each row `width` cosines, then `width` sines, signed so that `x * cos + partner(x) * sin` is the result.
    table: Vec<f32>,
    /// The row that is being appended.
    pairs: Vec<(f32, f32)>,
}

impl Rotation {
    /// Begins a table for pairs of neighbours, or of elements half the rotated width apart.
    pub fn begin(&mut self, neighbours: bool) {
        self.neighbours = neighbours;
        self.width = 0;
        self.table.clear();
    }

    /// Appends the rotation of one row: the sine and cosine of each pair. All rows have as many.
    pub fn push(&mut self, pairs: impl Iterator<Item = (f32, f32)>) {
        self.pairs.clear();
        self.pairs.extend(pairs);
        let half = self.pairs.len();
        self.width = 2 * half;
        let begin = self.table.len();
        self.table.resize(begin + 4 * half, 0.0);
        let (cosines, sines) = self.table[begin..].split_at_mut(2 * half);
        for (i, (sin, cos)) in self.pairs.iter().enumerate() {
            let (a, b) = if self.neighbours { (2 * i, 2 * i + 1) } else { (i, half + i) };
            (cosines[a], cosines[b]) = (*cos, *cos);
            (sines[a], sines[b]) = (-sin, *sin);
        }
    }

    fn row(&self, row: usize) -> (&[f32], &[f32]) {
        self.table[row * 2 * self.width..][..2 * self.width].split_at(self.width)
    }
}

/// Where the keys and values of some rows go.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// The block.
    pub block: u32,
    /// The first position inside the block.
    pub slot: usize,
    /// The first row.
    pub row: usize,
    /// How many rows, one position each.
    pub n: usize,
}

/// Rows of one sequence, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The sequence's blocks, from its first position on.
    pub blocks: &'a [u32],
    /// The first row.
    pub row: usize,
    /// How many rows.
    pub n: usize,
    /// The position of the first row.
    pub position: usize,
}

/// What queries see.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Query heads.
    pub heads: usize,
    /// Positions that a query sees, its own included; `None` for all before it.
    pub window: Option<usize>,
    /// `c` of `c * tanh(score / c)`.
    pub softcap: Option<f32>,
}

impl KvCache {
    /// Makes a cache without blocks.
    #[must_use]
    pub fn new(shape: KvShape, tier: Tier) -> Self {
        Self { shape, simd: Simd::of(tier), slabs: Vec::new(), written: Vec::new(), appends: 0 }
    }

    /// Returns the shape.
    #[must_use]
    pub const fn shape(&self) -> KvShape {
        self.shape
    }

    /// Returns how many blocks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.written.len()
    }

    /// Says whether there is no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// Makes one more block, whose number is the former [`len`](Self::len). Returns false where there is no memory for it.
    pub fn grow(&mut self) -> bool {
        let slab = self.shape.slab();
        if self.len() == self.slabs.len() * slab {
            match Bytes::zeros(slab * self.shape.block_bytes()) {
                Some(bytes) => self.slabs.push(bytes),
                None => return false,
            }
        }
        self.written.push(0);
        true
    }

    /// Copies one block onto another.
    ///
    /// # Panics
    /// When either does not exist.
    pub fn copy(&mut self, from: u32, to: u32) {
        assert!((from as usize) < self.len() && (to as usize) < self.len(), "blocks that exist");
        let (slab, part) = (self.shape.slab(), self.shape.dims().part_bytes(self.shape.kv_type));
        let place = |block: u32| (block as usize / slab, block as usize % slab * part);
        let ((from_slab, from), (to_slab, to)) = (place(from), place(to));
        if from_slab == to_slab {
            for parts in self.slabs[to_slab].as_mut_slice().chunks_exact_mut(slab * part) {
                parts.copy_within(from..from + part, to);
            }
        } else if let Ok([from_slab, to_slab]) = self.slabs.get_disjoint_mut([from_slab, to_slab]) {
            let parts = from_slab.as_slice().chunks_exact(slab * part);
            for (from_part, to_part) in parts.zip(to_slab.as_mut_slice().chunks_exact_mut(slab * part)) {
                to_part[to..to + part].copy_from_slice(&from_part[from..from + part]);
            }
        }
    }

    /// Returns where the tiles of a block begin, in bytes from the beginning of its slab.
    fn place(shape: KvShape, block: u32, layer: usize, head: usize) -> usize {
        let (slab, part) = (shape.slab(), shape.dims().part_bytes(shape.kv_type));
        ((layer * shape.kv_heads + head) * 2 * slab + block as usize % slab) * part
    }

    /// Returns the first byte of a tile.
    fn tile(&self, block: u32, layer: usize, head: usize) -> *const u8 {
        assert!((block as usize) < self.len(), "a block that exists");
        assert!(layer < self.shape.layers && head < self.shape.kv_heads, "a tile of the model");
        let slab = self.slabs[block as usize / self.shape.slab()].as_slice();
        slab.as_ptr().wrapping_add(Self::place(self.shape, block, layer, head))
    }

    /// Prepares the queries and keys of one layer, and stores its keys and values.
    ///
    /// Each row of `qkv` holds all query heads, then all key heads, then all value heads. Queries are changed in place,
    /// keys and values are left in any state.
    ///
    /// # Panics
    /// When rows, blocks or tables do not fit each other, or two writes go to one block.
    pub fn append(&mut self, team: &Team, layer: usize, turn: &Turn<'_>, qkv: &mut [f32], writes: &[Write]) {
        let KvShape { kv_heads, head_width, layers, .. } = self.shape;
        let row_width = (turn.heads + 2 * kv_heads) * head_width;
        assert!(layer < layers, "a layer of the model");
        assert!(qkv.len().is_multiple_of(row_width), "whole rows");
        let rows = qkv.len() / row_width;
        let norms = [turn.q_norm, turn.k_norm];
        assert!(norms.iter().flatten().all(|norm| norm.len() == head_width), "norms as wide as a head");
        assert!(turn.bias.is_none_or(|bias| bias.len() == row_width), "a bias as wide as a row");
        let rotation = turn.rotation;
        assert!(rotation.width <= head_width && rotation.table.len() >= rows * 2 * rotation.width, "a rotation a row");
        self.appends += 1;
        let mut next = 0;
        let slabs: Vec<Base<u8>> = self.slabs.iter_mut().map(|slab| Base(slab.as_mut_slice().as_mut_ptr())).collect();
        let mut blocks = Vec::with_capacity(writes.len());
        for write in writes {
            let fits = |begin: usize, end: usize| begin <= end && write.n <= end - begin;
            assert!(write.row >= next && fits(write.row, rows), "rows in order, each once");
            assert!(fits(write.slot, BLOCK_TOKENS), "positions inside a block");
            let written = &mut self.written[write.block as usize];
            assert!(*written != self.appends, "one write a block");
            *written = self.appends;
            next = write.row + write.n;
            blocks.push(Base(slabs[write.block as usize / self.shape.slab()].0));
        }
        let base = Base(qkv.as_mut_ptr());
        let (shape, simd) = (self.shape, self.simd);
        team.run(writes.len(), &|index| {
            let write = writes[index];
            let rows = base.at(write.row * row_width);
            let block = blocks[index].at(Self::place(shape, write.block, layer, 0));
            dispatch(simd, Append { shape, block, turn, write, rows, row_width });
        });
    }

    /// Computes the attention of every row of `spans`: `out[row]` holds the outputs of all query heads.
    ///
    /// Rows of `qkv` begin with all query heads, as [`append`](Self::append) left them; the keys and values of the rows
    /// themselves were stored before.
    ///
    /// # Panics
    /// When rows and blocks do not fit each other.
    pub fn attend(&self, team: &Team, layer: usize, view: &View, qkv: &[f32], spans: &[Span<'_>], out: &mut [f32]) {
        let KvShape { kv_heads, head_width, layers, .. } = self.shape;
        let View { heads, .. } = *view;
        assert!(layer < layers && heads.is_multiple_of(kv_heads), "a layer and heads of the model");
        let (in_width, out_width) = ((heads + 2 * kv_heads) * head_width, heads * head_width);
        let rows = qkv.len().checked_div(in_width).unwrap_or(0);
        let mut next = 0;
        for span in spans {
            let fits = |begin: usize, end: usize| begin <= end && span.n <= end - begin;
            assert!(span.row >= next && fits(span.row, rows), "rows in order, each once");
            assert!(fits(span.position, span.blocks.len() * BLOCK_TOKENS), "a block for each position");
            next = span.row + span.n;
        }
        assert!(next * out_width <= out.len(), "room for each row");
        let tiles = tiles(spans, heads / kv_heads, kv_heads, team.threads());
        let base = Base(out.as_mut_ptr());
        team.run(tiles.len() * kv_heads, &|task| {
            let (tile, head) = (tiles[task / kv_heads], task % kv_heads);
            let out = &base;
            // The kernel is called in this closure, and not the closure by the kernel: that would leave its wide registers.
            SCRATCH.with_borrow_mut(|scratch| {
                let cache = self;
                let work = Attend { cache, layer, head, view, qkv, in_width, spans, tile, out, out_width, scratch };
                dispatch(self.simd, work);
            });
        });
    }
}
