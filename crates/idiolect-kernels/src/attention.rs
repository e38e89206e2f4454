//! Keys and values in blocks, and attention to them.
//!
//! A sequence is a list of blocks of [`BLOCK_TOKENS`] positions. Blocks may be shared: sequences that begin alike hold the
//! same blocks, and [`KvCache::attend`] reads those once for all of them. The numbers of a query depend on what its own
//! sequence holds and on nothing else: scores are sums over elements in order, outputs sums over positions in order,
//! whatever else is computed beside them.

#![expect(unsafe_code, reason = "SIMD kernels over typed views of byte blocks; threads write disjoint parts")]
#![expect(clippy::inline_always, reason = "kernels must become part of the function that has the features")]
#![expect(clippy::needless_range_loop, reason = "numbers of registers, which several arrays are indexed with")]

use std::cell::RefCell;

use crate::bytes::Bytes;
use crate::lanes::{LANES, Lanes, Simd, Work, dispatch};
use crate::team::Base;
use crate::{Team, Tier};

/// Positions of a block.
pub const BLOCK_TOKENS: usize = LANES;

/// Queries that attend together, where there are as many.
const TILE_QUERIES: usize = 24;

/// Blocks of values that are read for all queries before the next are.
const VALUE_BLOCKS: usize = 8;

/// About the memory that is asked for at once.
const SLAB_BYTES: usize = 4 << 20;

/// Most blocks of a slab.
const MOST_SLAB: usize = 16;

/// Elements of a head that share a scale in eight-bit blocks.
const SCALE_LEN: usize = 32;

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

/// Queries that attend together: some rows of one span, or spans of one row each that begin with the same blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    span: usize,
    spans: usize,
    /// The first row inside the span, where it is one.
    row: usize,
    rows: usize,
    /// Blocks that all spans share.
    shared: usize,
}

/// Divides rows into tiles.
fn tiles(spans: &[Span<'_>], group: usize, kv_heads: usize, threads: usize) -> Vec<Tile> {
    let most = (TILE_QUERIES / group).max(1);
    let mut tiles = Vec::new();
    let mut at = 0;
    while at < spans.len() {
        let span = &spans[at];
        if span.n != 1 {
            for row in (0..span.n).step_by(most) {
                tiles.push(Tile { span: at, spans: 1, row, rows: most.min(span.n - row), shared: 0 });
            }
            at += 1;
            continue;
        }
        let alike =
            |other: &Span<'_>| other.n == 1 && other.blocks[0] == span.blocks[0] && other.position >= BLOCK_TOKENS;
        let family =
            1 + spans[at + 1..].iter().take_while(|other| span.position >= BLOCK_TOKENS && alike(other)).count();
        // As few tiles as keep all threads busy.
        let fewest = family.div_ceil(most);
        let even = (fewest..=family).find(|n| (n * kv_heads).is_multiple_of(threads) || n * kv_heads >= 3 * threads);
        let each = family.div_ceil(even.unwrap_or(family));
        for first in (at..at + family).step_by(each) {
            let members = &spans[first..(first + each).min(at + family)];
            let limit = members.iter().map(|member| member.position / BLOCK_TOKENS).min().unwrap_or(0);
            let is_shared = |block: &usize| members.iter().all(|m| m.blocks[*block] == members[0].blocks[*block]);
            let shared = if members.len() > 1 { (0..limit).take_while(is_shared).count() } else { 0 };
            tiles.push(Tile { span: first, spans: members.len(), row: 0, rows: members.len(), shared });
        }
        at += family;
    }
    tiles
}

/// How the elements of a tile are kept: `[element][position]` of keys, and `dims.values` bytes further
/// `[position][element]` of values.
///
/// # Safety
/// All functions: `tile` is the first byte of a tile of these dimensions, positions and elements are inside it, and the
/// processor has the registers of `L`.
trait Store {
    /// Element `d` of the keys of all positions.
    unsafe fn keys<L: Lanes>(tile: *const u8, dims: Dims, d: usize) -> L;
    /// Elements from `d` on of the value at `position`.
    unsafe fn value<L: Lanes>(tile: *const u8, dims: Dims, position: usize, d: usize) -> L;
    /// Stores a key and a value of `dims.padded` elements.
    unsafe fn put<L: Lanes>(tile: *mut u8, dims: Dims, position: usize, key: *const f32, value: *const f32);
}

struct F32;
struct F16;
struct Q8;

impl Store for F32 {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(tile: *const u8, _dims: Dims, d: usize) -> L {
        // SAFETY: the trait asks for a tile that holds the element.
        unsafe { L::load(tile.cast::<f32>().add(d * BLOCK_TOKENS)) }
    }

    #[inline(always)]
    unsafe fn value<L: Lanes>(tile: *const u8, dims: Dims, position: usize, d: usize) -> L {
        // SAFETY: as above.
        unsafe { L::load(tile.add(dims.values).cast::<f32>().add(position * dims.padded + d)) }
    }

    #[inline(always)]
    unsafe fn put<L: Lanes>(tile: *mut u8, dims: Dims, position: usize, key: *const f32, value: *const f32) {
        // SAFETY: as above, and `key` and `value` have as many elements as a padded head.
        unsafe {
            let (keys, values) = (tile.cast::<f32>(), tile.add(dims.values).cast::<f32>());
            for d in 0..dims.padded {
                *keys.add(d * BLOCK_TOKENS + position) = *key.add(d);
            }
            for d in (0..dims.padded).step_by(LANES) {
                L::load(value.add(d)).store(values.add(position * dims.padded + d));
            }
        }
    }
}

impl Store for F16 {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(tile: *const u8, _dims: Dims, d: usize) -> L {
        // SAFETY: the trait asks for a tile that holds the element.
        unsafe { L::load_f16(tile.cast::<u16>().add(d * BLOCK_TOKENS)) }
    }

    #[inline(always)]
    unsafe fn value<L: Lanes>(tile: *const u8, dims: Dims, position: usize, d: usize) -> L {
        // SAFETY: as above.
        unsafe { L::load_f16(tile.add(dims.values).cast::<u16>().add(position * dims.padded + d)) }
    }

    #[inline(always)]
    unsafe fn put<L: Lanes>(tile: *mut u8, dims: Dims, position: usize, key: *const f32, value: *const f32) {
        // SAFETY: as above, and `key` and `value` have as many elements as a padded head.
        unsafe {
            let (keys, values) = (tile.cast::<u16>(), tile.add(dims.values).cast::<u16>());
            let mut halves = [0; LANES];
            for d in (0..dims.padded).step_by(LANES) {
                L::load(key.add(d)).store_f16(halves.as_mut_ptr());
                for (i, half) in halves.iter().enumerate() {
                    *keys.add((d + i) * BLOCK_TOKENS + position) = *half;
                }
                L::load(value.add(d)).store_f16(values.add(position * dims.padded + d));
            }
        }
    }
}

impl Q8 {
    /// Where the parts of a tile begin: bytes of keys, their scales (`[scale][position]`), bytes of values, their scales
    /// (`[position][scale]`).
    #[inline(always)]
    const fn parts(dims: Dims) -> [usize; 4] {
        [0, dims.elements(), dims.values, dims.values + dims.elements()]
    }
}

impl Store for Q8 {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(tile: *const u8, dims: Dims, d: usize) -> L {
        let [keys, scales, ..] = Self::parts(dims);
        // SAFETY: the trait asks for a tile that holds the element.
        unsafe {
            let scale = L::load(tile.add(scales).cast::<f32>().add(d / SCALE_LEN * BLOCK_TOKENS));
            L::load_i8(tile.add(keys).cast::<i8>().add(d * BLOCK_TOKENS)).mul(scale)
        }
    }

    #[inline(always)]
    unsafe fn value<L: Lanes>(tile: *const u8, dims: Dims, position: usize, d: usize) -> L {
        let [_, _, values, scales] = Self::parts(dims);
        // SAFETY: as above.
        unsafe {
            let scale = *tile.add(scales).cast::<f32>().add(position * dims.scales + d / SCALE_LEN);
            L::load_i8(tile.add(values).cast::<i8>().add(position * dims.padded + d)).mul(L::splat(scale))
        }
    }

    #[inline(always)]
    unsafe fn put<L: Lanes>(tile: *mut u8, dims: Dims, position: usize, key: *const f32, value: *const f32) {
        let [keys, key_scales, values, value_scales] = Self::parts(dims);
        for part in 0..dims.scales {
            let elements = part * SCALE_LEN..((part + 1) * SCALE_LEN).min(dims.padded);
            // SAFETY: as above, and `key` and `value` have as many elements as a padded head.
            unsafe {
                let (scale, inverse) = scale_of(key, elements.clone());
                *tile.add(key_scales).cast::<f32>().add(part * BLOCK_TOKENS + position) = scale;
                for d in elements.clone() {
                    *tile.add(keys).cast::<i8>().add(d * BLOCK_TOKENS + position) = to_byte(*key.add(d) * inverse);
                }
                let (scale, inverse) = scale_of(value, elements.clone());
                *tile.add(value_scales).cast::<f32>().add(position * dims.scales + part) = scale;
                for d in elements {
                    *tile.add(values).cast::<i8>().add(position * dims.padded + d) = to_byte(*value.add(d) * inverse);
                }
            }
        }
    }
}

/// Returns the scale that brings some elements into bytes, and its inverse; no finite numbers where any element is none.
///
/// # Safety
/// The elements are there.
#[inline(always)]
unsafe fn scale_of(values: *const f32, elements: std::ops::Range<usize>) -> (f32, f32) {
    // Magnitudes compare like their bits, with infinity and NaN above all else.
    // SAFETY: the caller says so.
    let largest = elements.map(|d| unsafe { (*values.add(d)).abs().to_bits() }).max().unwrap_or(0);
    let scale = f32::from_bits(largest) / 127.0;
    (scale, if scale > 1e-30 { 1.0 / scale } else { 0.0 })
}

#[inline(always)]
fn to_byte(value: f32) -> i8 {
    #[expect(clippy::cast_possible_truncation, reason = "at most 127; NaN becomes 0, its scale tells")]
    let byte = value.round_ties_even() as i8;
    byte
}

thread_local! {
    /// Memory that tasks need for a moment.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

struct Scratch {
    floats: Vec<[f32; LANES]>,
    tiles: Vec<*const u8>,
    queries: Vec<*const f32>,
}

impl Scratch {
    const fn new() -> Self {
        Self { floats: Vec::new(), tiles: Vec::new(), queries: Vec::new() }
    }
}

struct Append<'a> {
    shape: KvShape,
    /// The first byte of the layer's first tile.
    block: *mut u8,
    turn: &'a Turn<'a>,
    write: Write,
    /// The first of the rows that are this task's.
    rows: *mut f32,
    row_width: usize,
}

impl Work for Append<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller says that the registers are there.
        unsafe {
            match self.shape.kv_type {
                KvType::F32 => self.rows::<L, F32>(),
                KvType::F16 => self.rows::<L, F16>(),
                KvType::Q8 => self.rows::<L, Q8>(),
            }
        }
    }
}

impl Append<'_> {
    /// # Safety
    /// The processor has the registers of `L`.
    #[inline(always)]
    unsafe fn rows<L: Lanes, S: Store>(self) {
        let Self { shape, block, turn, write, rows, row_width } = self;
        let KvShape { kv_heads, head_width, .. } = shape;
        let dims = shape.dims();
        // Heads that do not fill their registers are stored from a copy that zeros follow.
        let mut padded = [const { Vec::new() }; 2];
        if dims.padded != head_width {
            padded = [vec![0.0; dims.padded], vec![0.0; dims.padded]];
        }
        for i in 0..write.n {
            // SAFETY: `append` checked that the rows are inside `qkv` and no other task's.
            let row = unsafe { std::slice::from_raw_parts_mut(rows.add(i * row_width), row_width) };
            if let Some(bias) = turn.bias {
                for (value, bias) in row.iter_mut().zip(bias) {
                    *value += bias;
                }
            }
            let (cosines, sines) = turn.rotation.row(write.row + i);
            let (queries, rest) = row.split_at_mut(turn.heads * head_width);
            let (keys, values) = rest.split_at_mut(kv_heads * head_width);
            for (heads, norm, scale) in [(queries, turn.q_norm, turn.query_scale), (&mut *keys, turn.k_norm, 1.0)] {
                for head in heads.chunks_exact_mut(head_width) {
                    if let Some(norm) = norm {
                        rms_norm_head(head, norm, turn.epsilon);
                    }
                    // SAFETY: the registers are there.
                    unsafe { rotate::<L>(head, cosines, sines, turn.rotation.neighbours, scale) };
                }
            }
            for (head, (key, value)) in keys.chunks_exact(head_width).zip(values.chunks_exact(head_width)).enumerate() {
                let tile = block.wrapping_add(head * 2 * dims.values);
                let (key, value) = if dims.padded == head_width {
                    (key.as_ptr(), value.as_ptr())
                } else {
                    padded[0][..head_width].copy_from_slice(key);
                    padded[1][..head_width].copy_from_slice(value);
                    (padded[0].as_ptr(), padded[1].as_ptr())
                };
                // SAFETY: `append` has the cache for itself and checked that each block is written by one task; the
                // position is inside the block.
                unsafe { S::put::<L>(tile, dims, write.slot + i, key, value) };
            }
        }
    }
}

#[inline(always)]
fn rms_norm_head(head: &mut [f32], weight: &[f32], epsilon: f32) {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = head.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            sums[i] += chunk[i] * chunk[i];
        }
    }
    let sum = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    #[expect(clippy::cast_precision_loss, reason = "a head has a few hundred elements")]
    let scale = 1.0 / (sum / head.len() as f32 + epsilon).sqrt();
    for (value, weight) in head.iter_mut().zip(weight) {
        *value *= scale * weight;
    }
}

/// Turns one head and scales all of it.
///
/// # Safety
/// The processor has the registers of `L`.
#[inline(always)]
unsafe fn rotate<L: Lanes>(head: &mut [f32], cosines: &[f32], sines: &[f32], neighbours: bool, scale: f32) {
    let width = cosines.len();
    let half = width / 2;
    let (turned, rest) = head.split_at_mut(width);
    if neighbours && width.is_multiple_of(LANES) {
        // SAFETY: the registers are there, and the slices have whole registers of elements.
        unsafe {
            let scale = L::splat(scale);
            for i in (0..width).step_by(LANES) {
                let x = L::load(turned.as_ptr().add(i));
                let (cos, sin) = (L::load(cosines.as_ptr().add(i)), L::load(sines.as_ptr().add(i)));
                x.swap_pairs().mul_add(sin, x.mul(cos)).mul(scale).store(turned.as_mut_ptr().add(i));
            }
        }
    } else if !neighbours && half.is_multiple_of(LANES) {
        // SAFETY: as above.
        unsafe {
            let scale = L::splat(scale);
            for i in (0..half).step_by(LANES) {
                let a = L::load(turned.as_ptr().add(i));
                let b = L::load(turned.as_ptr().add(half + i));
                // Both halves have the same angles; the second has the sines' own sign.
                let (cos, sin) = (L::load(cosines.as_ptr().add(i)), L::load(sines.as_ptr().add(half + i)));
                a.mul(cos).sub(b.mul(sin)).mul(scale).store(turned.as_mut_ptr().add(i));
                a.mul_add(sin, b.mul(cos)).mul(scale).store(turned.as_mut_ptr().add(half + i));
            }
        }
    } else {
        for i in 0..half {
            let (a, b) = if neighbours { (2 * i, 2 * i + 1) } else { (i, half + i) };
            let (cos, sin) = (cosines[b], sines[b]);
            let (x, y) = (turned[a], turned[b]);
            (turned[a], turned[b]) = ((x * cos - y * sin) * scale, (x * sin + y * cos) * scale);
        }
    }
    for value in rest {
        *value *= scale;
    }
}

struct Attend<'a> {
    cache: &'a KvCache,
    layer: usize,
    head: usize,
    view: &'a View,
    qkv: &'a [f32],
    in_width: usize,
    spans: &'a [Span<'a>],
    tile: Tile,
    out: &'a Base<f32>,
    out_width: usize,
    scratch: &'a mut Scratch,
}

impl Work for Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller says that the registers are there.
        unsafe {
            match self.cache.shape.kv_type {
                KvType::F32 => self.attend::<L, F32>(),
                KvType::F16 => self.attend::<L, F16>(),
                KvType::Q8 => self.attend::<L, Q8>(),
            }
        }
    }
}

/// Queries and the blocks that all of them see.
#[derive(Clone, Copy)]
struct Segment {
    query: usize,
    queries: usize,
    /// The first block, counted from the first that the tile sees.
    block: usize,
    blocks: usize,
}

/// Where the parts of a tile's work lie.
#[derive(Clone, Copy)]
struct Board {
    dims: Dims,
    head_width: usize,
    /// The first element of each query.
    queries: *const *const f32,
    /// `[query][position]`.
    scores: *mut f32,
    stride: usize,
    /// `[query][element]`.
    sums: *mut f32,
}

impl Attend<'_> {
    /// # Safety
    /// The processor has the registers of `L`.
    #[inline(always)]
    unsafe fn attend<L: Lanes, S: Store>(self) {
        let KvShape { kv_heads, head_width, .. } = self.cache.shape;
        let dims = self.cache.shape.dims();
        let group = self.view.heads / kv_heads;
        let Tile { spans, rows, shared, .. } = self.tile;
        let n = rows * group;

        let (tile, all) = (self.tile, self.spans);
        // The row, span and position of the tile's row i.
        let row_of = |i: usize| {
            let (span, row) = if spans == 1 { (&all[tile.span], tile.row + i) } else { (&all[tile.span + i], 0) };
            (span.row + row, span, span.position + row)
        };
        // What is seen: from the first block that any row sees to the last position of the longest.
        let first_seen = |position: usize| self.view.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let mut first = usize::MAX;
        let mut last = 0;
        for i in 0..rows {
            let (_, _, position) = row_of(i);
            first = first.min(first_seen(position) / BLOCK_TOKENS);
            last = last.max(position / BLOCK_TOKENS);
        }
        // Beyond a power of two, so that the rows of scores do not compete for the same lines of the cache.
        let stride = (last + 1 - first) * BLOCK_TOKENS + LANES;

        let Scratch { floats, tiles, queries } = &mut *self.scratch;
        let needed = (n * dims.padded + n * stride).div_ceil(LANES);
        if floats.len() < needed {
            floats.resize(needed, [0.0; LANES]);
        }
        queries.clear();
        for i in 0..rows {
            let (row, ..) = row_of(i);
            let queries_of_row =
                &self.qkv[row * self.in_width + self.head * group * head_width..][..group * head_width];
            queries.extend(queries_of_row.chunks_exact(head_width).map(<[f32]>::as_ptr));
        }
        let sums = floats.as_mut_ptr().cast::<f32>();
        let board = Board {
            dims,
            head_width,
            queries: queries.as_ptr(),
            // SAFETY: `floats` has room for both parts.
            scores: unsafe { sums.add(n * dims.padded) },
            stride,
            sums,
        };

        tiles.clear();
        let mut push = |blocks: &[u32]| tiles.extend(blocks.iter().map(|b| self.cache.tile(*b, self.layer, self.head)));
        let begin = first.min(shared);
        let n_shared = shared.saturating_sub(begin);
        if shared > first {
            push(&row_of(0).1.blocks[begin..shared]);
            let segment = Segment { query: 0, queries: n, block: 0, blocks: n_shared };
            // SAFETY: these tiles hold what all queries see; the board has room for it.
            unsafe { scores::<L, S>(&board, segment, &tiles[..n_shared]) };
        }
        let own_first = first.max(shared);
        let own_rows = if spans == 1 { rows } else { 1 };
        let own = |i: usize| {
            let (_, _, position) = row_of(i + own_rows - 1);
            let blocks = position / BLOCK_TOKENS + 1 - own_first;
            Segment { query: i * group, queries: own_rows * group, block: own_first - first, blocks }
        };
        let mut at = n_shared;
        for i in (0..rows).step_by(own_rows) {
            let segment = own(i);
            let blocks = &row_of(i).1.blocks[own_first..own_first + segment.blocks];
            tiles.extend(blocks.iter().map(|b| self.cache.tile(*b, self.layer, self.head)));
            // SAFETY: as above, for the queries of these rows.
            unsafe { scores::<L, S>(&board, segment, &tiles[at..at + segment.blocks]) };
            at += segment.blocks;
        }

        for i in 0..rows {
            let (_, _, position) = row_of(i);
            let seen = first_seen(position) - first * BLOCK_TOKENS..position + 1 - first * BLOCK_TOKENS;
            let (_, _, longest) = row_of(if spans == 1 { rows - 1 } else { i });
            let end = (longest / BLOCK_TOKENS + 1 - first) * BLOCK_TOKENS;
            for query in i * group..(i + 1) * group {
                // SAFETY: a row of scores has `stride` elements, more than `end`; outputs have `dims.padded`.
                unsafe {
                    let row = std::slice::from_raw_parts_mut(board.scores.add(query * stride), end);
                    let inverse = softmax::<L>(row, seen.clone(), self.view.softcap);
                    // Weights stay as they are; the outputs are multiplied in the end. Each row has a spare register behind it.
                    *board.scores.add((query + 1) * stride - 1) = inverse;
                }
            }
        }
        // SAFETY: the second part has as many elements.
        unsafe { std::slice::from_raw_parts_mut(board.sums, n * dims.padded).fill(0.0) };

        if shared > first {
            let segment = Segment { query: 0, queries: n, block: 0, blocks: n_shared };
            // SAFETY: as for the scores.
            unsafe { outputs::<L, S>(&board, segment, &tiles[..n_shared], n_shared * BLOCK_TOKENS) };
        }
        let mut at = n_shared;
        for i in (0..rows).step_by(own_rows) {
            let segment = own(i);
            let (_, _, position) = row_of(i + own_rows - 1);
            let positions = position + 1 - own_first * BLOCK_TOKENS;
            // SAFETY: as above. Values behind the last position are not read: nobody may have written them.
            unsafe { outputs::<L, S>(&board, segment, &tiles[at..at + segment.blocks], positions) };
            at += segment.blocks;
        }

        for i in 0..rows {
            let (row, ..) = row_of(i);
            for g in 0..group {
                let query = i * group + g;
                // SAFETY: `attend` checked that the row is inside `out`; no other task has this row and head.
                unsafe {
                    let inverse = *board.scores.add((query + 1) * stride - 1);
                    let sums = board.sums.add(query * dims.padded);
                    let out = self.out.at(row * self.out_width + (self.head * group + g) * head_width);
                    for d in 0..head_width {
                        *out.add(d) = *sums.add(d) * inverse;
                    }
                }
            }
        }
    }
}

/// Computes the scores of a segment.
///
/// # Safety
/// The processor has the registers of `L`; the tiles are of the board's dimensions, and the board has room for the scores.
#[inline(always)]
unsafe fn scores<L: Lanes, S: Store>(board: &Board, segment: Segment, tiles: &[*const u8]) {
    let mut block = 0;
    while block < tiles.len() {
        let pair = L::WIDE && tiles.len() - block >= 2;
        let mut done = 0;
        while done < segment.queries {
            let left = segment.queries - done;
            let query = segment.query + done;
            let at = segment.block + block;
            // SAFETY: as the caller says.
            unsafe {
                if pair {
                    let two = [tiles[block], tiles[block + 1]];
                    done += match left {
                        8.. => score::<L, S, 8, 2>(board, query, at, two),
                        4.. => score::<L, S, 4, 2>(board, query, at, two),
                        3 => score::<L, S, 3, 2>(board, query, at, two),
                        2 => score::<L, S, 2, 2>(board, query, at, two),
                        _ => score::<L, S, 1, 2>(board, query, at, two),
                    };
                } else {
                    let one = [tiles[block]];
                    done += match left {
                        8.. if L::WIDE => score::<L, S, 8, 1>(board, query, at, one),
                        4.. => score::<L, S, 4, 1>(board, query, at, one),
                        3 => score::<L, S, 3, 1>(board, query, at, one),
                        2 => score::<L, S, 2, 1>(board, query, at, one),
                        _ => score::<L, S, 1, 1>(board, query, at, one),
                    };
                }
            }
        }
        block += if pair { 2 } else { 1 };
    }
}

/// Computes the scores of `Q` queries with all positions of `B` blocks; returns `Q`.
///
/// # Safety
/// As for [`scores`].
#[inline(always)]
unsafe fn score<L: Lanes, S: Store, const Q: usize, const B: usize>(
    board: &Board,
    query: usize,
    block: usize,
    tiles: [*const u8; B],
) -> usize {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [[L::splat(0.0); B]; Q];
        let mut queries = [std::ptr::null(); Q];
        for q in 0..Q {
            queries[q] = *board.queries.add(query + q);
        }
        for d in 0..board.head_width {
            let mut keys = [L::splat(0.0); B];
            for b in 0..B {
                keys[b] = S::keys::<L>(tiles[b], board.dims, d);
            }
            for q in 0..Q {
                let x = L::splat(*queries[q].add(d));
                for b in 0..B {
                    sums[q][b] = x.mul_add(keys[b], sums[q][b]);
                }
            }
        }
        for (q, sums) in sums.iter().enumerate() {
            for (b, sum) in sums.iter().enumerate() {
                sum.store(board.scores.add((query + q) * board.stride + (block + b) * BLOCK_TOKENS));
            }
        }
    }
    Q
}

/// Turns scores into weights (0 for what is not seen); returns one over their sum.
///
/// # Safety
/// The processor has the registers of `L`; the row has whole registers of elements.
#[inline(always)]
unsafe fn softmax<L: Lanes>(row: &mut [f32], seen: std::ops::Range<usize>, softcap: Option<f32>) -> f32 {
    let n = row.len();
    let p = row.as_mut_ptr();
    // SAFETY: the caller says that the registers are there and filled by the row.
    unsafe {
        if let Some(cap) = softcap {
            // tanh(x) = 1 - 2 / (e^2x + 1)
            let (double, cap, one, two) = (L::splat(2.0 / cap), L::splat(cap), L::splat(1.0), L::splat(2.0));
            for i in (0..n).step_by(LANES) {
                let power = L::load(p.add(i)).mul(double).exp();
                one.sub(two.div(power.add(one))).mul(cap).store(p.add(i));
            }
        }
        row[..seen.start].fill(f32::NEG_INFINITY);
        row[seen.end..].fill(f32::NEG_INFINITY);
        let mut greatest = L::splat(f32::NEG_INFINITY);
        for i in (0..n).step_by(LANES) {
            greatest = L::load(p.add(i)).max(greatest);
        }
        let greatest = L::splat(greatest.maximum());
        let mut sum = L::splat(0.0);
        for i in (0..n).step_by(LANES) {
            let weight = L::load(p.add(i)).sub(greatest).exp();
            weight.store(p.add(i));
            sum = sum.add(weight);
        }
        1.0 / sum.sum()
    }
}

/// Adds the weighted values of a segment's first `positions` positions.
///
/// # Safety
/// As for [`scores`]; the positions were written.
#[inline(always)]
unsafe fn outputs<L: Lanes, S: Store>(board: &Board, segment: Segment, tiles: &[*const u8], positions: usize) {
    for begin in (0..tiles.len()).step_by(VALUE_BLOCKS) {
        let tiles = &tiles[begin..(begin + VALUE_BLOCKS).min(tiles.len())];
        let n = (positions - begin * BLOCK_TOKENS).min(tiles.len() * BLOCK_TOKENS);
        let mut d = 0;
        while d < board.dims.padded {
            let wide = L::WIDE && board.dims.padded - d >= 4 * LANES;
            let mut done = 0;
            while done < segment.queries {
                let left = segment.queries - done;
                let (query, at) = (segment.query + done, (segment.block + begin) * BLOCK_TOKENS);
                // SAFETY: as the caller says.
                unsafe {
                    done += if wide {
                        match left {
                            6.. => output::<L, S, 6, 4>(board, query, at, d, tiles, n),
                            4.. => output::<L, S, 4, 4>(board, query, at, d, tiles, n),
                            3 => output::<L, S, 3, 4>(board, query, at, d, tiles, n),
                            2 => output::<L, S, 2, 4>(board, query, at, d, tiles, n),
                            _ => output::<L, S, 1, 4>(board, query, at, d, tiles, n),
                        }
                    } else {
                        match left {
                            4.. => output::<L, S, 4, 1>(board, query, at, d, tiles, n),
                            3 => output::<L, S, 3, 1>(board, query, at, d, tiles, n),
                            2 => output::<L, S, 2, 1>(board, query, at, d, tiles, n),
                            _ => output::<L, S, 1, 1>(board, query, at, d, tiles, n),
                        }
                    };
                }
            }
            d += if wide { 4 * LANES } else { LANES };
        }
    }
}

/// Adds `n` weighted values to `D` registers of the outputs of `Q` queries; returns `Q`.
///
/// # Safety
/// As for [`outputs`].
#[inline(always)]
unsafe fn output<L: Lanes, S: Store, const Q: usize, const D: usize>(
    board: &Board,
    query: usize,
    at: usize,
    d: usize,
    tiles: &[*const u8],
    n: usize,
) -> usize {
    let padded = board.dims.padded;
    // SAFETY: as the caller says.
    unsafe {
        let out = board.sums.add(query * padded + d);
        let mut sums = [[L::splat(0.0); D]; Q];
        for q in 0..Q {
            for i in 0..D {
                sums[q][i] = L::load(out.add(q * padded + i * LANES));
            }
        }
        let mut weights = board.scores.add(query * board.stride + at).cast_const();
        let mut left = n;
        for tile in tiles {
            for position in 0..left.min(BLOCK_TOKENS) {
                let mut values = [L::splat(0.0); D];
                for i in 0..D {
                    values[i] = S::value::<L>(*tile, board.dims, position, d + i * LANES);
                }
                for q in 0..Q {
                    let weight = L::splat(*weights.add(q * board.stride));
                    for i in 0..D {
                        sums[q][i] = weight.mul_add(values[i], sums[q][i]);
                    }
                }
                weights = weights.add(1);
            }
            left = left.saturating_sub(BLOCK_TOKENS);
        }
        for q in 0..Q {
            for i in 0..D {
                sums[q][i].store(out.add(q * padded + i * LANES));
            }
        }
    }
    Q
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next rows of a sequence: its seeds by position, its blocks, and which positions.
    type Rows<'a> = (&'a dyn Fn(usize) -> u64, &'a [u32], std::ops::Range<usize>);

    /// A model's attention and some sequences, with numbers that look random.
    struct Setting {
        shape: KvShape,
        heads: usize,
        view: View,
        neighbours: bool,
        rotated: usize,
    }

    fn noise(seed: u64) -> f32 {
        let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    impl Setting {
        fn new(kv_type: KvType, heads: usize, kv_heads: usize, head_width: usize) -> Self {
            let shape = KvShape { layers: 2, kv_heads, head_width, kv_type };
            let view = View { heads, window: None, softcap: None };
            Self { shape, heads, view, neighbours: false, rotated: head_width / 4 * 2 }
        }

        fn row_width(&self) -> usize {
            (self.heads + 2 * self.shape.kv_heads) * self.shape.head_width
        }

        /// Queries, keys and values of a token of a sequence.
        fn row(&self, seed: u64, position: usize) -> Vec<f32> {
            let seed = seed * 1000 + position as u64;
            (0..self.row_width()).map(|i| noise(seed * 10_000 + i as u64) * 2.0).collect()
        }

        /// Says whether rows of a token each are refused.
        fn refuses(&self, writes: &[Write], spans: &[Span<'_>]) -> bool {
            let team = Team::new(1).unwrap();
            let mut cache = KvCache::new(self.shape, Tier::detect());
            assert!(cache.grow());
            let (mut qkv, mut out) = (vec![0.5; self.row_width()], vec![0.0; self.row_width()]);
            let rotation = Rotation::default();
            let turn = Turn {
                heads: self.heads,
                bias: None,
                q_norm: None,
                k_norm: None,
                epsilon: 1e-5,
                rotation: &rotation,
                query_scale: 1.0,
            };
            let work = std::panic::AssertUnwindSafe(|| {
                cache.append(&team, 0, &turn, &mut qkv, writes);
                cache.attend(&team, 0, &self.view, &qkv, spans, &mut out);
            });
            std::panic::catch_unwind(work).is_err()
        }

        fn rotation(&self, positions: &[usize]) -> Rotation {
            let mut rotation = Rotation::default();
            rotation.begin(self.neighbours);
            for position in positions {
                let angles = (0..self.rotated / 2).map(|i| (*position as f32 * 0.7f32.powi(i as i32)).sin_cos());
                rotation.push(angles);
            }
            rotation
        }

        /// Computes the next rows of sequences.
        fn forward(&self, cache: &mut KvCache, team: &Team, sequences: &[Rows<'_>]) -> Vec<f32> {
            let mut positions = Vec::new();
            let mut qkv = Vec::new();
            let (mut writes, mut spans) = (Vec::new(), Vec::new());
            for (seed, blocks, range) in sequences {
                spans.push(Span { blocks, row: positions.len(), n: range.len(), position: range.start });
                let mut position = range.start;
                while position < range.end {
                    let slot = position % BLOCK_TOKENS;
                    let n = (BLOCK_TOKENS - slot).min(range.end - position);
                    let row = positions.len() + position - range.start;
                    writes.push(Write { block: blocks[position / BLOCK_TOKENS], slot, row, n });
                    position += n;
                }
                qkv.extend(range.clone().flat_map(|position| self.row(seed(position), position)));
                positions.extend(range.clone());
            }
            let rotation = self.rotation(&positions);
            let turn = Turn {
                heads: self.heads,
                bias: None,
                q_norm: None,
                k_norm: None,
                epsilon: 1e-5,
                rotation: &rotation,
                query_scale: 0.3,
            };
            cache.append(team, 1, &turn, &mut qkv, &writes);
            let mut out = vec![f32::NAN; positions.len() * self.heads * self.shape.head_width];
            cache.attend(team, 1, &self.view, &qkv, &spans, &mut out);
            out
        }

        /// The same in the plainest way, in double precision.
        fn expected(&self, seed: &dyn Fn(usize) -> u64, position: usize) -> Vec<f64> {
            let (width, group) = (self.shape.head_width, self.heads / self.shape.kv_heads);
            let turned = |position: usize| {
                let mut row: Vec<f64> = self.row(seed(position), position).into_iter().map(f64::from).collect();
                for head in row[..(self.heads + self.shape.kv_heads) * width].chunks_exact_mut(width) {
                    let half = self.rotated / 2;
                    for i in 0..half {
                        let (a, b) = if self.neighbours { (2 * i, 2 * i + 1) } else { (i, half + i) };
                        let (sin, cos) = (position as f64 * 0.7f64.powi(i as i32)).sin_cos();
                        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                    }
                }
                row
            };
            let queries = turned(position);
            let first = self.view.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let rows: Vec<Vec<f64>> = (first..=position).map(turned).collect();
            let mut out = Vec::new();
            for head in 0..self.heads {
                let query = &queries[head * width..(head + 1) * width];
                let key = (self.heads + head / group) * width;
                let value = key + self.shape.kv_heads * width;
                let mut weights: Vec<f64> = rows
                    .iter()
                    .map(|row| {
                        let score = 0.3 * query.iter().zip(&row[key..key + width]).map(|(a, b)| a * b).sum::<f64>();
                        self.view.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                weights.iter_mut().for_each(|weight| *weight /= sum);
                out.extend(
                    (0..width).map(|d| weights.iter().zip(&rows).map(|(w, row)| w * row[value + d]).sum::<f64>()),
                );
            }
            out
        }

        fn check(&self, tolerance: f64) {
            let seed = |_: usize| 7;
            let expected: Vec<f64> = (0..50).flat_map(|position| self.expected(&seed, position)).collect();
            for tier in Tier::available() {
                for threads in [1, 3] {
                    let team = Team::new(threads).unwrap();
                    let mut cache = KvCache::new(self.shape, tier);
                    (0..9).for_each(|_| assert!(cache.grow()));
                    let blocks = [3, 1, 8, 0];
                    let whole = self.forward(&mut cache, &team, &[(&seed, &blocks, 0..50)]);
                    for (i, (got, expected)) in whole.iter().zip(&expected).enumerate() {
                        let off = (f64::from(*got) - expected).abs();
                        assert!(off < tolerance, "{tier} {:?} {i}: {got}, expected {expected}", self.shape);
                    }
                    // In pieces, and with blocks that hold other numbers where nothing was written.
                    let mut cache = KvCache::new(self.shape, tier);
                    (0..9).for_each(|_| assert!(cache.grow()));
                    self.forward(&mut cache, &team, &[(&|p| p as u64, &[7, 2, 6, 5], 0..64)]);
                    let blocks = [7, 2, 6, 5];
                    let mut pieces = Vec::new();
                    for range in [0..1, 1..2, 2..17, 17..18, 18..45, 45..46, 46..47, 47..50] {
                        pieces.extend(self.forward(&mut cache, &team, &[(&seed, &blocks, range)]));
                    }
                    assert_eq!(pieces, whole, "{tier}: bit for bit");
                }
            }
        }
    }

    #[test]
    fn places_that_are_nowhere_are_refused() {
        let setting = Setting::new(KvType::F32, 2, 1, 32);
        let write = |slot, row, n| [Write { block: 0, slot, row, n }];
        let span = |row, n, position| [Span { blocks: &[0], row, n, position }];
        let good = (write(0, 0, 1), span(0, 1, 0));
        assert!(!setting.refuses(&good.0, &good.1));
        const MAX: usize = usize::MAX;
        for (slot, row, n) in [(MAX, 0, 1), (0, MAX, 1), (16, 0, 1), (0, 1, 1), (0, 0, MAX), (1, 0, MAX), (0, 1, MAX)] {
            assert!(setting.refuses(&write(slot, row, n), &good.1), "{slot} {row} {n}");
        }
        for (row, n, position) in [(MAX, 1, 0), (0, 1, MAX), (0, MAX, 0), (1, MAX, 1), (1, 1, 0), (0, 1, 16)] {
            assert!(setting.refuses(&good.0, &span(row, n, position)), "{row} {n} {position}");
        }
    }

    #[test]
    fn outputs_are_those_of_plain_attention() {
        for (heads, kv_heads, width) in [(9, 3, 64), (4, 4, 32), (8, 1, 80), (6, 2, 20), (2, 1, 128), (3, 3, 96)] {
            for (kv_type, tolerance) in [(KvType::F32, 2e-5), (KvType::F16, 3e-3), (KvType::Q8, 5e-2)] {
                let mut setting = Setting::new(kv_type, heads, kv_heads, width);
                setting.check(tolerance);
                setting.view = View { window: Some(19), softcap: Some(1.5), ..setting.view };
                (setting.neighbours, setting.rotated) = (true, width);
                setting.check(tolerance);
            }
        }
    }

    #[test]
    fn sequences_that_share_blocks_compute_what_each_would_alone() {
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
            for window in [None, Some(30), Some(5)] {
                let mut setting = Setting::new(kv_type, 6, 2, 64);
                setting.view.window = window;
                for (tier, threads) in Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 2)]) {
                    let team = Team::new(threads).unwrap();
                    // A prompt of 40 positions, with the third block copied for each of eleven continuations.
                    let seed = |i: u64| move |position: usize| if position < 40 { 3 } else { 100 + i };
                    let seeds: Vec<_> = (0..11).map(seed).collect();
                    let mut cache = KvCache::new(setting.shape, tier);
                    (0..40).for_each(|_| assert!(cache.grow()));
                    setting.forward(&mut cache, &team, &[(&seeds[0], &[0, 1, 2], 0..40)]);
                    let blocks: Vec<[u32; 4]> = (0..11).map(|i| [0, 1, 3 + i, 20 + i]).collect();
                    blocks.iter().for_each(|blocks| cache.copy(2, blocks[2]));
                    let mut together = Vec::new();
                    for position in 40..52 {
                        let batch: Vec<Rows<'_>> = seeds
                            .iter()
                            .zip(&blocks)
                            .map(|(seed, blocks)| (seed as &dyn Fn(usize) -> u64, &blocks[..], position..position + 1))
                            .collect();
                        together.push(setting.forward(&mut cache, &team, &batch));
                    }
                    for (i, seed) in seeds.iter().enumerate() {
                        let mut alone = KvCache::new(setting.shape, tier);
                        (0..4).for_each(|_| assert!(alone.grow()));
                        let alone = setting.forward(&mut alone, &team, &[(seed, &[0, 1, 2, 3], 0..52)]);
                        let width = setting.heads * setting.shape.head_width;
                        for (step, together) in together.iter().enumerate() {
                            let (a, b) = (&alone[(40 + step) * width..][..width], &together[i * width..][..width]);
                            assert_eq!(a, b, "{tier} {kv_type:?} {window:?}: continuation {i}, step {step}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_shows_and_stays_in_its_sequence() {
        let setting = Setting::new(KvType::F16, 2, 1, 16);
        for tier in Tier::available() {
            let team = Team::new(1).unwrap();
            let mut cache = KvCache::new(setting.shape, tier);
            (0..4).for_each(|_| assert!(cache.grow()));
            let rotation = setting.rotation(&[0, 0]);
            let turn = Turn {
                heads: 2,
                bias: None,
                q_norm: None,
                k_norm: None,
                epsilon: 1e-5,
                rotation: &rotation,
                query_scale: 1.0,
            };
            for (at, bad) in [(0, f32::NAN), (33, f32::INFINITY), (50, f32::NAN), (50, 1e9)] {
                let mut qkv = vec![1.0; 2 * setting.row_width()];
                qkv[at] = bad;
                let writes = [Write { block: 0, slot: 0, row: 0, n: 1 }, Write { block: 1, slot: 0, row: 1, n: 1 }];
                cache.append(&team, 0, &turn, &mut qkv, &writes);
                let mut out = vec![0.0; 2 * 32];
                let spans = [0u32, 1].map(|block| [block]);
                let spans = [
                    Span { blocks: &spans[0], row: 0, n: 1, position: 0 },
                    Span { blocks: &spans[1], row: 1, n: 1, position: 0 },
                ];
                cache.attend(&team, 0, &setting.view, &qkv, &spans, &mut out);
                assert!(out[..32].iter().any(|v| !v.is_finite()), "{tier}: {bad} at {at}: {out:?}");
                assert!(out[32..].iter().all(|v| *v == 1.0), "{tier}: {bad} at {at}");
            }
        }
    }

    #[test]
    fn tiles_cover_every_row_once() {
        let common: Vec<u32> = (0..10).collect();
        let own: Vec<Vec<u32>> = (0..30).map(|i| [&common[..5], &[100 + i]].concat()).collect();
        let mut spans = vec![Span { blocks: &common, row: 0, n: 100, position: 7 }];
        for (i, blocks) in own.iter().enumerate() {
            spans.push(Span { blocks, row: 100 + i, n: 1, position: 80 + i % 10 });
        }
        for (group, kv_heads, threads) in [(1, 1, 1), (3, 3, 2), (4, 8, 3), (40, 2, 16)] {
            let mut next = 0;
            for tile in tiles(&spans, group, kv_heads, threads) {
                for i in 0..tile.rows {
                    let row =
                        if tile.spans == 1 { spans[tile.span].row + tile.row + i } else { spans[tile.span + i].row };
                    assert_eq!(row, next);
                    next += 1;
                }
                assert!(tile.spans == 1 || tile.shared == 5);
            }
            assert_eq!(next, 130);
        }
    }
}
