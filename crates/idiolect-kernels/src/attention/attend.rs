//! Scores, softmax and sums of values for the queries of one tile.

use std::cell::RefCell;

use super::store::{F16, F32, Q8, Store};
use super::tiles::Tile;
use super::{BLOCK_TOKENS, Dims, KvCache, KvShape, KvType, Span, View};
use crate::lanes::{LANES, Lanes, Work};
use crate::team::Base;

/// Blocks of values that are read for all queries before the next are.
const VALUE_BLOCKS: usize = 8;

thread_local! {
    /// Memory that tasks need for a moment.
    pub(super) static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

pub(super) struct Scratch {
    floats: Vec<[f32; LANES]>,
    tiles: Vec<*const u8>,
    queries: Vec<*const f32>,
}

impl Scratch {
    const fn new() -> Self {
        Self { floats: Vec::new(), tiles: Vec::new(), queries: Vec::new() }
    }
}

pub(super) struct Attend<'a> {
    pub(super) cache: &'a KvCache,
    pub(super) layer: usize,
    pub(super) head: usize,
    pub(super) view: &'a View,
    pub(super) qkv: &'a [f32],
    pub(super) in_width: usize,
    pub(super) spans: &'a [Span<'a>],
    pub(super) tile: Tile,
    pub(super) out: &'a Base<f32>,
    pub(super) out_width: usize,
    pub(super) scratch: &'a mut Scratch,
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
