//! Attention of whole texts: every token looks at every token of its text.

#![expect(unsafe_code, reason = "tasks write to different rows and columns of one matrix")]
#![expect(clippy::inline_always, reason = "what is not inlined is not compiled for the wider instructions")]

use std::cell::Cell;

use super::lanes::{Lanes, MAX_PANEL, Tile, Width, Work, dispatch, exp, panel};
use super::rows::{LINE, Line, Rows, Source, Target};
use crate::Team;

/// What is added to the scores of a query and a key, by head and distance.
#[derive(Clone, Debug)]
pub struct PositionBias {
    /// For each head the biases of the distances `1 - span` to `span - 1`, then room for a panel.
    values: Vec<f32>,
    span: usize,
    heads: usize,
}

impl PositionBias {
    /// Tabulates `bias(head, distance)` for texts of up to `span` tokens; the distance is the key's position less the
    /// query's.
    pub fn new(heads: usize, span: usize, bias: impl Fn(usize, isize) -> f32) -> Self {
        let mut values = Vec::with_capacity(heads * Self::per_head(span));
        for head in 0..heads {
            let least = 1 - span.cast_signed();
            values.extend((least..span.cast_signed()).map(|distance| bias(head, distance)));
            values.resize((head + 1) * Self::per_head(span), 0.0);
        }
        Self { values, span, heads }
    }

    const fn per_head(span: usize) -> usize {
        2 * span + MAX_PANEL
    }
}

/// Attends from each token to all tokens of its own text.
///
/// Each row of `qkv` holds a token's queries, keys and values side by side, each with `heads` heads; the queries are
/// already scaled. `lens` are the texts' numbers of tokens, one text after the other. A row of `out` gets the heads'
/// results side by side.
///
/// # Panics
/// When sizes do not match, or a text is longer than the bias's span.
pub fn attend_within_texts(
    team: &Team,
    qkv: &Rows,
    lens: &[usize],
    heads: usize,
    bias: Option<&PositionBias>,
    out: &mut Rows,
) {
    attend_for(Width::detect(), team, qkv, lens, heads, bias, out);
}

pub(super) fn attend_for(
    width: Width,
    team: &Team,
    qkv: &Rows,
    lens: &[usize],
    heads: usize,
    bias: Option<&PositionBias>,
    out: &mut Rows,
) {
    let model = out.width();
    assert_eq!(qkv.width(), 3 * model, "width of queries, keys and values");
    assert!(heads > 0 && model.is_multiple_of(heads), "{heads} heads in {model} columns");
    let sum = lens.iter().try_fold(0_usize, |sum, len| sum.checked_add(*len));
    assert_eq!((sum, out.n()), (Some(qkv.n()), qkv.n()), "number of tokens");
    if let Some(bias) = bias {
        assert_eq!(bias.heads, heads, "heads of the bias");
        assert!(lens.iter().all(|len| *len <= bias.span), "no text is longer than {}", bias.span);
    }
    let begins: Vec<usize> = lens
        .iter()
        .scan(0, |begin, len| {
            let this = *begin;
            *begin += len;
            Some(this)
        })
        .collect();
    let (qkv, qkv_stride) = (Source(qkv.as_ptr()), qkv.stride());
    let (out_stride, out) = (out.stride(), out.target());
    team.run(lens.len() * heads, &|task| {
        let (text, head) = (task / heads, task % heads);
        if lens[text] == 0 {
            return;
        }
        let attend = Attend {
            qkv: qkv.shifted(begins[text] * qkv_stride),
            qkv_stride,
            out: out.shifted(begins[text] * out_stride),
            out_stride,
            len: lens[text],
            model,
            head,
            head_width: model / heads,
            bias,
        };
        // SAFETY: the width was detected (or is lesser). The matrices have the sizes that were checked above, and each
        // task writes to its own text's rows and its own head's columns.
        unsafe { dispatch(width, attend) };
    });
}

thread_local! {
    /// Kept between calls, as large as the longest text needed.
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// One head of one text.
struct Attend<'a> {
    qkv: Source,
    qkv_stride: usize,
    out: Target,
    out_stride: usize,
    len: usize,
    model: usize,
    head: usize,
    head_width: usize,
    bias: Option<&'a PositionBias>,
}

/// A buffer's parts, each a whole number of lines.
struct Parts {
    keys: usize,
    values: usize,
    scores: usize,
    results: usize,
    end: usize,
}

impl Work for Attend<'_> {
    /// # Safety
    /// The addresses must be those of matrices that have the text's rows.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let padded_len = self.len.next_multiple_of(panel::<V>());
        let padded_width = self.head_width.next_multiple_of(panel::<V>());
        let line = |values: usize| values.next_multiple_of(LINE);
        let keys = 0;
        let values = keys + line(padded_len * self.head_width);
        let scores = values + line(self.len * padded_width);
        let results = scores + line(V::ROWS * padded_len);
        let parts = Parts { keys, values, scores, results, end: results + line(V::ROWS * padded_width) };
        // Taken out, not worked on inside a closure, which would be compiled without the wider instructions.
        let mut scratch = SCRATCH.take();
        if scratch.len() < parts.end / LINE {
            scratch.resize(parts.end / LINE, Line::ZERO);
        }
        // SAFETY: the caller's promise; the buffer has room for all parts.
        unsafe { self.attend::<V>(scratch.as_mut_ptr().cast(), &parts, padded_len, padded_width) };
        SCRATCH.set(scratch);
    }
}

impl Attend<'_> {
    /// # Safety
    /// As [`Work::run`]; and the buffer must have room for the parts.
    #[inline(always)]
    unsafe fn attend<V: Lanes>(&self, buffer: *mut f32, parts: &Parts, padded_len: usize, padded_width: usize) {
        let Self { qkv, qkv_stride, out, out_stride, len, model, head, head_width, bias } = *self;
        let queries = qkv.at(head * head_width);
        let [keys, values, scores, results] =
            [parts.keys, parts.values, parts.scores, parts.results].map(|part| buffer.wrapping_add(part));
        // SAFETY: the caller's promise, for every address below.
        unsafe {
            self.pack::<V>(keys, values, padded_len, padded_width);
            let blocks = len.div_ceil(V::ROWS);
            for block in 0..blocks {
                let first = len * block / blocks;
                let rows = len * (block + 1) / blocks - first;
                for key in (0..padded_len).step_by(panel::<V>()) {
                    let tile = Tile {
                        a: queries.add(first * qkv_stride),
                        a_stride: qkv_stride,
                        b: keys.add(key * head_width),
                        b_stride: panel::<V>(),
                        k: head_width,
                        out: scores.add(key),
                        out_stride: padded_len,
                    };
                    V::tile(rows, &tile);
                }
                let mut sums = [0f32; 12];
                for (r, sum) in sums.iter_mut().enumerate().take(rows) {
                    let row = scores.add(r * padded_len);
                    let bias = bias.map(|bias| {
                        let at = head * PositionBias::per_head(bias.span) + bias.span - 1 - (first + r);
                        bias.values.as_ptr().add(at)
                    });
                    *sum = softmax::<V>(row, len, padded_len, bias);
                }
                for column in (0..padded_width).step_by(panel::<V>()) {
                    let tile = Tile {
                        a: scores,
                        a_stride: padded_len,
                        b: values.add(column),
                        b_stride: padded_width,
                        k: len,
                        out: results.add(column),
                        out_stride: padded_width,
                    };
                    V::tile(rows, &tile);
                }
                for (r, sum) in sums.iter().enumerate().take(rows) {
                    let row = results.add(r * padded_width);
                    let scale = V::splat(1.0 / sum);
                    for i in (0..padded_width).step_by(V::LANES) {
                        V::load(row.add(i)).mul(scale).store(row.add(i));
                    }
                    let target = out.at((first + r) * out_stride + head * head_width);
                    std::ptr::copy_nonoverlapping(row, target, head_width);
                }
            }
        }
        debug_assert!(model >= (head + 1) * head_width);
    }

    /// Lays out keys in panels, and values in rows of whole panels.
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    #[inline(always)]
    unsafe fn pack<V: Lanes>(&self, keys: *mut f32, values: *mut f32, padded_len: usize, padded_width: usize) {
        let Self { qkv, qkv_stride, len, model, head, head_width, .. } = *self;
        let key = |token: usize| qkv.at(token * qkv_stride + model + head * head_width);
        for token in 0..len {
            let (value, row) = (key(token).wrapping_add(model), values.wrapping_add(token * padded_width));
            // SAFETY: the caller's promise.
            unsafe {
                std::ptr::copy_nonoverlapping(value, row, head_width);
                std::slice::from_raw_parts_mut(row.add(head_width), padded_width - head_width).fill(0.0);
            }
        }
        let whole = head_width / 4 * 4;
        // Squares of four tokens and four elements; panels are whole squares, and zeros stand for missing tokens.
        for first in (0..padded_len).step_by(4) {
            let at = keys.wrapping_add(first / panel::<V>() * panel::<V>() * head_width + first % panel::<V>());
            let tokens = [first, first + 1, first + 2, first + 3];
            // SAFETY: the caller's promise.
            unsafe {
                for i in (0..whole).step_by(4) {
                    let square = tokens.map(|token| match token < len {
                        true => key(token).add(i).cast::<[f32; 4]>().read_unaligned(),
                        false => [0.0; 4],
                    });
                    for j in 0..4 {
                        let column = square.map(|row| row[j]);
                        at.add((i + j) * panel::<V>()).cast::<[f32; 4]>().write_unaligned(column);
                    }
                }
                for i in whole..head_width {
                    let column = tokens.map(|token| if token < len { *key(token).add(i) } else { 0.0 });
                    at.add(i * panel::<V>()).cast::<[f32; 4]>().write_unaligned(column);
                }
            }
        }
    }
}

/// Turns a row of scores into exponentials and returns their sum. Beyond `len` it leaves what does not count.
///
/// # Safety
/// As [`Lanes`]; row and bias must have `padded` values, a whole number of vectors.
#[inline(always)]
unsafe fn softmax<V: Lanes>(row: *mut f32, len: usize, padded: usize, bias: Option<*const f32>) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(bias) = bias {
            for i in (0..len).step_by(V::LANES) {
                V::load(row.add(i)).add(V::load(bias.add(i))).store(row.add(i));
            }
        }
        for i in len..padded {
            *row.add(i) = f32::MIN;
        }
        let mut largest = V::splat(f32::MIN);
        for i in (0..len).step_by(V::LANES) {
            largest = largest.max(V::load(row.add(i)));
        }
        let largest = V::splat(largest.largest());
        let mut sum = V::splat(0.0);
        for i in (0..len).step_by(V::LANES) {
            let value = exp(V::load(row.add(i)).sub(largest));
            value.store(row.add(i));
            sum = sum.add(value);
        }
        // What the padding adds, e^-87 at most each, is lost in the last bit of the largest one's 1.
        sum.sum()
    }
}
