//! Products of eight-bit weight matrices with eight-bit activations, on the CPU.
//!
//! Weights and activations are kept in blocks of 32 signed bytes with one `f32` scale each. A row's result does not
//! depend on how many other rows are in the batch: every path adds the blocks in the same order.

use rayon::prelude::*;

/// Values that share a scale.
pub(crate) const BLOCK: usize = 32;

/// Weight rows that one task takes at least.
const MIN_ROWS: usize = 16;

/// Which instructions the products use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Plain Rust.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 and FMA with the byte dot product of AVX-512 VNNI on 256-bit registers.
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Level {
    /// Returns the best level of this processor.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl") {
                return Self::Vnni;
            }
            return Self::Avx2;
        }
        Self::Portable
    }
}

/// Plain code that gains from wide registers.
pub(crate) trait Wide {
    /// What it results in.
    type Output;

    /// Does the work. Implementations are `inline(always)`, and so is what they call: otherwise [`wide`] has no effect.
    fn run(self) -> Self::Output;
}

/// Runs code compiled for wider registers, where the processor has them.
pub(crate) fn wide<W: Wide>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if Level::detect() != Level::Portable {
        return x86::wide(work);
    }
    work.run()
}

/// Rounds a value of at most 2²² in magnitude to the nearest integer and returns its low byte.
#[inline]
fn round_to_i8(value: f32) -> i8 {
    // Adding 1.5 · 2²³ leaves the integer in the low bits of the mantissa.
    const MAGIC: f32 = 12_582_912.0;
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is what is wanted")]
    let low = (value + MAGIC).to_bits() as u8;
    low.cast_signed()
}

/// Encodes one block of up to [`BLOCK`] values; returns its scale, which is no finite number when any value is none.
#[inline]
pub(crate) fn encode_block(values: &[f32], quants: &mut [i8]) -> f32 {
    // Magnitudes compare like their bits, and then infinity and NaN are the greatest instead of getting lost.
    let largest = values.iter().fold(0, |largest, value| value.abs().to_bits().cast_signed().max(largest));
    let scale = f32::from_bits(largest.cast_unsigned()) / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = round_to_i8(value * inverse);
    }
    scale
}

/// A weight matrix, row-major, each row ready to be multiplied with activations.
pub(crate) struct Matrix {
    rows: usize,
    cols: usize,
    scales: Vec<f32>,
    quants: Vec<i8>,
    level: Level,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} x {})", self.rows, self.cols)
    }
}

impl Matrix {
    /// Makes a matrix of zeros to be filled through [`blocks_mut`](Self::blocks_mut); `cols` is a multiple of [`BLOCK`].
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        debug_assert!(cols.is_multiple_of(BLOCK));
        Self {
            rows,
            cols,
            scales: vec![0.0; rows * cols / BLOCK],
            quants: vec![0; rows * cols],
            level: Level::detect(),
        }
    }

    /// Returns scales and bytes, block after block.
    pub(crate) fn blocks_mut(&mut self) -> (&mut [f32], &mut [i8]) {
        (&mut self.scales, &mut self.quants)
    }

    /// Returns the number of rows, which is the length of a product.
    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    /// Says whether every scale is a finite number.
    pub(crate) fn is_finite(&self) -> bool {
        self.scales.iter().all(|s| s.is_finite())
    }

    /// Decodes one row into `out`.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let blocks = self.cols / BLOCK;
        let scales = &self.scales[row * blocks..(row + 1) * blocks];
        let quants = &self.quants[row * self.cols..(row + 1) * self.cols];
        for ((out, quants), scale) in out.chunks_exact_mut(BLOCK).zip(quants.chunks_exact(BLOCK)).zip(scales) {
            for (out, quant) in out.iter_mut().zip(quants) {
                *out = f32::from(*quant) * scale;
            }
        }
    }

    /// Multiplies every activation row with every weight row: `out[j][r] = self[r] · activations[j]`.
    ///
    /// Runs on the current thread pool. `scratch` only saves allocations.
    pub(crate) fn multiply(&self, activations: &Activations, out: &mut [f32], scratch: &mut Vec<f32>) {
        let n = activations.rows;
        assert_eq!(activations.cols, self.cols, "activation width");
        assert_eq!(out.len(), n * self.rows, "product size");
        if n == 0 || self.rows == 0 {
            return;
        }
        let tasks = rayon::current_num_threads() * 4;
        let per_task = self.rows.div_ceil(tasks).next_multiple_of(MIN_ROWS);
        if n == 1 {
            out.par_chunks_mut(per_task).enumerate().for_each(|(i, out)| self.span(i * per_task, activations, out));
            return;
        }
        // Tasks own whole weight rows, so they write the transposed product; it is turned around after.
        scratch.clear();
        scratch.resize(n * self.rows, 0.0);
        scratch.par_chunks_mut(per_task * n).enumerate().for_each(|(i, out)| self.span(i * per_task, activations, out));
        let transposed = &*scratch;
        out.par_chunks_mut(self.rows).enumerate().for_each(|(j, out)| {
            for (out, column) in out.iter_mut().zip(transposed.chunks_exact(n)) {
                *out = column[j];
            }
        });
    }

    /// Multiplies the weight rows from `first` on; `out` is `[weight row][activation row]`.
    fn span(&self, first: usize, activations: &Activations, out: &mut [f32]) {
        let blocks = self.cols / BLOCK;
        let rows = out.len() / activations.rows;
        let span = Span {
            blocks,
            weights: &self.quants[first * self.cols..(first + rows) * self.cols],
            weight_scales: &self.scales[first * blocks..(first + rows) * blocks],
            activations: &activations.quants,
            activation_scales: &activations.scales,
        };
        span.multiply(self.level, out);
    }
}

/// A batch of activation rows, encoded like weights.
#[derive(Default)]
pub(crate) struct Activations {
    rows: usize,
    cols: usize,
    scales: Vec<f32>,
    quants: Vec<i8>,
}

impl Activations {
    /// Encodes rows of `cols` values, replacing what was held.
    pub(crate) fn encode(&mut self, values: &[f32], cols: usize) {
        self.rows = values.len() / cols;
        self.cols = cols;
        self.scales.clear();
        self.scales.resize(values.len() / BLOCK, 0.0);
        self.quants.clear();
        self.quants.resize(values.len(), 0);
        let blocks = values.chunks_exact(BLOCK).zip(self.quants.chunks_exact_mut(BLOCK));
        for ((values, quants), scale) in blocks.zip(&mut self.scales) {
            *scale = encode_block(values, quants);
        }
    }
}

/// Some weight rows and all activation rows.
struct Span<'a> {
    blocks: usize,
    weights: &'a [i8],
    weight_scales: &'a [f32],
    activations: &'a [i8],
    activation_scales: &'a [f32],
}

impl Span<'_> {
    fn multiply(&self, level: Level, out: &mut [f32]) {
        match level {
            Level::Portable => self.multiply_portable(out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Vnni => x86::multiply(self, level == Level::Vnni, out),
        }
    }

    fn n_activations(&self) -> usize {
        self.activations.len() / (self.blocks * BLOCK)
    }

    fn multiply_portable(&self, out: &mut [f32]) {
        let (blocks, cols) = (self.blocks, self.blocks * BLOCK);
        let rows = self.weights.chunks_exact(cols).zip(self.weight_scales.chunks_exact(blocks));
        for ((weights, weight_scales), out) in rows.zip(out.chunks_exact_mut(self.n_activations())) {
            let columns = self.activations.chunks_exact(cols).zip(self.activation_scales.chunks_exact(blocks));
            for ((activations, scales), out) in columns.zip(out) {
                let pairs = weights.chunks_exact(BLOCK).zip(activations.chunks_exact(BLOCK));
                *out = pairs
                    .zip(weight_scales.iter().zip(scales))
                    .map(|((w, a), (ws, s))| {
                        let dot: i32 = w.iter().zip(a).map(|(w, a)| i32::from(*w) * i32::from(*a)).sum();
                        #[expect(clippy::cast_precision_loss, reason = "at most 32 · 128 · 127, below 2^24")]
                        let dot = dot as f32;
                        dot * (ws * s)
                    })
                    .sum();
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps, _mm256_abs_epi8,
        _mm256_broadcast_ss, _mm256_castps256_ps128, _mm256_cvtepi32_ps, _mm256_dpbusd_epi32, _mm256_extractf128_ps,
        _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi16,
        _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8,
    };

    use super::{BLOCK, Span, Wide};

    /// Multiplies a span with AVX2, or with VNNI where `vnni` says the processor has it.
    pub(super) fn multiply(span: &Span<'_>, vnni: bool, out: &mut [f32]) {
        let cols = span.blocks * BLOCK;
        let n = span.n_activations();
        // The kernels index without checks inside these bounds.
        assert_eq!(span.activations.len(), n * cols);
        assert_eq!(span.activation_scales.len(), n * span.blocks);
        assert_eq!(span.weights.len() * n, out.len() * cols);
        assert_eq!(span.weight_scales.len() * BLOCK, span.weights.len());
        // SAFETY: `Level::detect` found avx2 and fma, and for `vnni` also avx512vnni and avx512vl; the asserts above
        // are the bounds that the kernels rely on.
        unsafe {
            if vnni {
                multiply_vnni(span, out);
            } else {
                multiply_avx2(span, out);
            }
        }
    }

    /// Runs code compiled for AVX2. Callers checked that the processor has it.
    pub(super) fn wide<W: Wide>(work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma")]
        fn run<W: Wide>(work: W) -> W::Output {
            work.run()
        }
        // SAFETY: the only caller asks `Level::detect` first, and every level of this module has avx2 and fma.
        unsafe { run(work) }
    }

    /// Adds the eight lanes.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn sum(v: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    /// Where one weight row is, and some activation rows that lie one after the other.
    #[derive(Clone, Copy)]
    struct Operands {
        weights: *const i8,
        weight_scales: *const f32,
        activations: *const i8,
        activation_scales: *const f32,
        /// Blocks in a row.
        blocks: usize,
    }

    macro_rules! kernel {
        ($multiply:ident, $dots:ident, $features:literal, |$magnitude:ident, $signed:ident| $byte_dot:expr) => {
            /// Multiplies each weight row with four activation rows at a time, then with the rest.
            #[target_feature(enable = $features)]
            fn $multiply(span: &Span<'_>, out: &mut [f32]) {
                let blocks = span.blocks;
                let n = span.n_activations();
                for (row, out) in out.chunks_exact_mut(n).enumerate() {
                    let operands = |first: usize| Operands {
                        weights: span.weights[row * blocks * BLOCK..][..blocks * BLOCK].as_ptr(),
                        weight_scales: span.weight_scales[row * blocks..][..blocks].as_ptr(),
                        activations: span.activations[first * blocks * BLOCK..].as_ptr(),
                        activation_scales: span.activation_scales[first * blocks..].as_ptr(),
                        blocks,
                    };
                    let (fours, rest) = out.as_chunks_mut::<4>();
                    let first_of_rest = fours.len() * 4;
                    for (i, four) in fours.iter_mut().enumerate() {
                        // SAFETY: activation rows 4 i to 4 i + 3 are below n, as `out` has n entries.
                        *four = unsafe { $dots(operands(4 * i)) };
                    }
                    for (i, one) in rest.iter_mut().enumerate() {
                        // SAFETY: activation row first_of_rest + i is below n.
                        [*one] = unsafe { $dots(operands(first_of_rest + i)) };
                    }
                }
            }

            /// Multiplies one weight row with `N` activation rows.
            ///
            /// # Safety
            /// The operands must hold one weight row, and `N` activation rows one after the other.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn $dots<const N: usize>(operands: Operands) -> [f32; N] {
                let Operands { weights, weight_scales, activations, activation_scales, blocks } = operands;
                let mut sums = [_mm256_setzero_ps(); N];
                for b in 0..blocks {
                    // SAFETY: b is below the blocks of a row, which the caller says are there.
                    let (w, weight_scale) = unsafe {
                        (
                            _mm256_loadu_si256(weights.add(b * BLOCK).cast::<__m256i>()),
                            _mm256_broadcast_ss(&*weight_scales.add(b)),
                        )
                    };
                    let $magnitude = _mm256_abs_epi8(w);
                    for (j, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: as above, in activation row j, which is below N.
                        let (a, scale) = unsafe {
                            (
                                _mm256_loadu_si256(activations.add((j * blocks + b) * BLOCK).cast::<__m256i>()),
                                _mm256_broadcast_ss(&*activation_scales.add(j * blocks + b)),
                            )
                        };
                        let $signed = _mm256_sign_epi8(a, w);
                        let dot = _mm256_cvtepi32_ps($byte_dot);
                        *sum = _mm256_fmadd_ps(_mm256_mul_ps(dot, scale), weight_scale, *sum);
                    }
                }
                sums.map(|v| sum(v))
            }
        };
    }

    kernel!(multiply_avx2, dots_avx2, "avx2,fma", |magnitude, signed| _mm256_madd_epi16(
        _mm256_maddubs_epi16(magnitude, signed),
        _mm256_set1_epi16(1)
    ));
    kernel!(multiply_vnni, dots_vnni, "avx2,fma,avx512vnni,avx512vl", |magnitude, signed| _mm256_dpbusd_epi32(
        _mm256_setzero_si256(),
        magnitude,
        signed
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn matrix(rows: usize, cols: usize, values: &[f32]) -> Matrix {
        let mut matrix = Matrix::zeros(rows, cols);
        let (scales, quants) = matrix.blocks_mut();
        for (i, values) in values.chunks_exact(BLOCK).enumerate() {
            scales[i] = encode_block(values, &mut quants[i * BLOCK..(i + 1) * BLOCK]);
        }
        matrix
    }

    fn levels() -> Vec<Level> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        match Level::detect() {
            Level::Vnni => levels.extend([Level::Avx2, Level::Vnni]),
            Level::Avx2 => levels.push(Level::Avx2),
            Level::Portable => {}
        }
        levels
    }

    #[test]
    fn products_are_close_to_exact_ones_on_every_level_and_batch_size() {
        let (rows, cols) = (37, 96);
        let weights = noise(rows * cols, 1);
        for n in [1, 2, 4, 7, 9] {
            let values = noise(n * cols, 2);
            let mut activations = Activations::default();
            activations.encode(&values, cols);
            for level in levels() {
                let mut matrix = matrix(rows, cols, &weights);
                matrix.level = level;
                let mut out = vec![0.0; n * rows];
                matrix.multiply(&activations, &mut out, &mut Vec::new());
                for j in 0..n {
                    for r in 0..rows {
                        let exact: f32 = (0..cols).map(|c| weights[r * cols + c] * values[j * cols + c]).sum();
                        let got = out[j * rows + r];
                        assert!((got - exact).abs() < 0.08, "{level:?} n={n} [{j}][{r}]: {got} against {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let (rows, cols) = (64, 576);
        let weights = noise(rows * cols, 3);
        let values = noise(7 * cols, 4);
        for level in levels() {
            let mut matrix = matrix(rows, cols, &weights);
            matrix.level = level;
            let mut activations = Activations::default();
            let mut together = vec![0.0; 7 * rows];
            activations.encode(&values, cols);
            matrix.multiply(&activations, &mut together, &mut Vec::new());
            for j in 0..7 {
                let mut alone = vec![0.0; rows];
                activations.encode(&values[j * cols..(j + 1) * cols], cols);
                matrix.multiply(&activations, &mut alone, &mut Vec::new());
                assert_eq!(alone, together[j * rows..(j + 1) * rows], "{level:?} row {j}");
            }
        }
    }

    #[test]
    fn extreme_bytes_do_not_overflow() {
        for level in levels() {
            let mut matrix = Matrix::zeros(1, BLOCK);
            matrix.level = level;
            let (scales, quants) = matrix.blocks_mut();
            scales.fill(1.0);
            quants.fill(-128);
            let activations = Activations { rows: 1, cols: BLOCK, scales: vec![1.0], quants: vec![-127; BLOCK] };
            let mut out = [0.0];
            matrix.multiply(&activations, &mut out, &mut Vec::new());
            assert_eq!(out[0], 32.0 * 128.0 * 127.0, "{level:?}");
        }
    }

    #[test]
    fn encoding_is_within_half_a_step() {
        let values = noise(BLOCK, 5);
        let mut quants = [0i8; BLOCK];
        let scale = encode_block(&values, &mut quants);
        for (value, quant) in values.iter().zip(quants) {
            assert!((value - f32::from(quant) * scale).abs() <= scale * 0.5001);
        }
        assert_eq!(encode_block(&[0.0; BLOCK], &mut quants), 0.0);
        assert_eq!(quants, [0; BLOCK]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; BLOCK];
            values[7] = bad;
            assert!(!encode_block(&values, &mut quants).is_finite(), "{bad} shows in the scale");
        }
    }
}
