//! What happens to rows between products: norms, gates, caps.

#![expect(unsafe_code, reason = "SIMD kernels over slices whose bounds are checked before")]
#![expect(clippy::inline_always, reason = "kernels must become part of the function that has the features")]

use crate::lanes::{LANES, Lanes, Simd, Work, dispatch};
use crate::team::Base;
use crate::{Team, Tier};

/// Elements that are worth a task of their own.
const TASK: usize = 4096;

/// What bends the gate of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// `x * sigmoid(x)`.
    Silu,
    /// The approximation of GELU by a hyperbolic tangent.
    GeluTanh,
}

/// Something that is added to rows before they are normalised.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// As many rows.
    pub rows: &'a [f32],
    /// Weights of a norm that the added rows get first.
    pub norm: Option<&'a [f32]>,
}

/// Returns how many rows make a task.
fn rows_per_task(rows: usize, width: usize, threads: usize) -> usize {
    let least = TASK.div_ceil(width.max(1)).max(1);
    rows.div_ceil(4 * threads).max(least)
}

/// Adds `delta` to each row of `hidden`, and writes the rows, normalised by their root mean square, to `out`.
///
/// A row whose mean square is no finite number becomes a row of NaN.
///
/// # Panics
/// When the slices do not hold as many rows of the weights' width.
pub fn add_and_normalise(
    team: &Team,
    tier: Tier,
    hidden: &mut [f32],
    delta: Option<Delta<'_>>,
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) {
    let width = weight.len();
    assert!(width > 0 && hidden.len().is_multiple_of(width) && hidden.len() == out.len(), "rows of one width");
    if let Some(delta) = delta {
        assert!(delta.rows.len() == hidden.len(), "as many rows to add");
        assert!(delta.norm.is_none_or(|norm| norm.len() == width), "a norm as wide as the rows");
    }
    let simd = Simd::of(tier);
    let rows = hidden.len() / width;
    let each = rows_per_task(rows, width, team.threads());
    let hidden = Base(hidden.as_mut_ptr());
    team.chunks_mut(out, each * width, |task, out| {
        let first = task * each * width;
        // SAFETY: chunks of `out` do not overlap, so neither do the same parts of `hidden`, which is as long.
        let hidden = unsafe { std::slice::from_raw_parts_mut(hidden.at(first), out.len()) };
        let delta = delta.map(|delta| Delta { rows: &delta.rows[first..first + out.len()], ..delta });
        dispatch(simd, Normalise { hidden, delta, weight, epsilon, out });
    });
}

struct Normalise<'a> {
    hidden: &'a mut [f32],
    delta: Option<Delta<'a>>,
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Work for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { hidden, delta, weight, epsilon, out } = self;
        let width = weight.len();
        for (i, (hidden, out)) in hidden.chunks_exact_mut(width).zip(out.chunks_exact_mut(width)).enumerate() {
            if let Some(Delta { rows, norm }) = delta {
                let row = &rows[i * width..][..width];
                // SAFETY: the caller says that the registers are there.
                unsafe {
                    match norm {
                        Some(norm) => {
                            let scale = inverse_rms::<L>(row, epsilon);
                            add_scaled::<L>(hidden, row, scale, norm);
                        }
                        None => add::<L>(hidden, row),
                    }
                }
            }
            // SAFETY: as above.
            unsafe {
                let scale = inverse_rms::<L>(hidden, epsilon);
                scaled::<L>(hidden, scale, weight, out);
            }
        }
    }
}

/// Returns one over the root mean square; NaN where that is no finite number.
///
/// # Safety
/// The processor has the registers of `L`.
#[inline(always)]
unsafe fn inverse_rms<L: Lanes>(row: &[f32], epsilon: f32) -> f32 {
    let whole = row.len() / LANES * LANES;
    // SAFETY: the registers are there, and loads stay below `whole`.
    let mut sum = unsafe {
        let (mut even, mut odd) = (L::splat(0.0), L::splat(0.0));
        let mut i = 0;
        while i + 2 * LANES <= whole {
            let (a, b) = (L::load(row.as_ptr().add(i)), L::load(row.as_ptr().add(i + LANES)));
            (even, odd) = (a.mul_add(a, even), b.mul_add(b, odd));
            i += 2 * LANES;
        }
        if i < whole {
            let a = L::load(row.as_ptr().add(i));
            even = a.mul_add(a, even);
        }
        even.add(odd).sum()
    };
    for x in &row[whole..] {
        sum += x * x;
    }
    #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
    let mean = sum / row.len() as f32;
    if mean.is_finite() { 1.0 / (mean + epsilon).sqrt() } else { f32::NAN }
}

/// # Safety
/// The processor has the registers of `L`; all slices are equally long.
#[inline(always)]
unsafe fn add<L: Lanes>(to: &mut [f32], from: &[f32]) {
    let whole = to.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: below `whole`.
        unsafe { L::load(to.as_ptr().add(i)).add(L::load(from.as_ptr().add(i))).store(to.as_mut_ptr().add(i)) }
    }
    for (to, from) in to[whole..].iter_mut().zip(&from[whole..]) {
        *to += from;
    }
}

/// # Safety
/// As for [`add`].
#[inline(always)]
unsafe fn add_scaled<L: Lanes>(to: &mut [f32], from: &[f32], scale: f32, weight: &[f32]) {
    let whole = to.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: below `whole`.
        unsafe {
            let factor = L::splat(scale).mul(L::load(weight.as_ptr().add(i)));
            L::load(from.as_ptr().add(i)).mul_add(factor, L::load(to.as_ptr().add(i))).store(to.as_mut_ptr().add(i));
        }
    }
    for ((to, from), weight) in to[whole..].iter_mut().zip(&from[whole..]).zip(&weight[whole..]) {
        *to += from * (scale * weight);
    }
}

/// # Safety
/// As for [`add`].
#[inline(always)]
unsafe fn scaled<L: Lanes>(from: &[f32], scale: f32, weight: &[f32], out: &mut [f32]) {
    let whole = out.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: below `whole`.
        unsafe {
            let factor = L::splat(scale).mul(L::load(weight.as_ptr().add(i)));
            L::load(from.as_ptr().add(i)).mul(factor).store(out.as_mut_ptr().add(i));
        }
    }
    for ((out, from), weight) in out[whole..].iter_mut().zip(&from[whole..]).zip(&weight[whole..]) {
        *out = from * (scale * weight);
    }
}

/// Computes `gate(g) * u` for rows that hold all gates and then all values that they let through.
///
/// # Panics
/// When `gate_up` is not twice as long as `out`, or these are no rows of `width`.
pub fn gated(team: &Team, tier: Tier, gate: Gate, width: usize, gate_up: &[f32], out: &mut [f32]) {
    assert!(width > 0 && out.len().is_multiple_of(width) && gate_up.len() == 2 * out.len(), "rows of one width");
    let simd = Simd::of(tier);
    let each = rows_per_task(out.len() / width, width, team.threads());
    team.chunks_mut(out, each * width, |task, out| {
        let gate_up = &gate_up[2 * task * each * width..][..2 * out.len()];
        dispatch(simd, Gated { gate, width, gate_up, out });
    });
}

struct Gated<'a> {
    gate: Gate,
    width: usize,
    gate_up: &'a [f32],
    out: &'a mut [f32],
}

impl Work for Gated<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { gate, width, gate_up, out } = self;
        for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gates, ups) = gate_up.split_at(width);
            let whole = width / LANES * LANES;
            for i in (0..whole).step_by(LANES) {
                // SAFETY: the caller says that the registers are there; i is below `whole`.
                unsafe {
                    let (g, up) = (L::load(gates.as_ptr().add(i)), L::load(ups.as_ptr().add(i)));
                    bent::<L>(gate, g).mul(up).store(out.as_mut_ptr().add(i));
                }
            }
            if whole < width {
                let (mut g, mut up) = ([0.0; LANES], [0.0; LANES]);
                g[..width - whole].copy_from_slice(&gates[whole..]);
                up[..width - whole].copy_from_slice(&ups[whole..]);
                // SAFETY: as above, on arrays of whole registers.
                unsafe { bent::<L>(gate, L::load(g.as_ptr())).mul(L::load(up.as_ptr())).store(g.as_mut_ptr()) };
                out[whole..].copy_from_slice(&g[..width - whole]);
            }
        }
    }
}

/// # Safety
/// The processor has the registers of `L`.
#[inline(always)]
unsafe fn bent<L: Lanes>(gate: Gate, x: L) -> L {
    // SAFETY: the caller says so.
    unsafe {
        let one = L::splat(1.0);
        match gate {
            Gate::Silu => x.div(one.add(L::splat(0.0).sub(x).exp())),
            Gate::GeluTanh => {
                // 0.5 x (1 + tanh(y)) = x (1 - 1 / (e^2y + 1)) with y = sqrt(2 / pi) (x + 0.044715 x^3)
                let inner = x.mul(x).mul_add(L::splat(0.044_715), one).mul(x);
                let power = inner.mul(L::splat(2.0 * 0.797_884_6)).exp();
                x.mul(one.sub(one.div(power.add(one))))
            }
        }
    }
}

/// Computes `cap * tanh(value / cap)` in place.
pub fn soft_cap(team: &Team, tier: Tier, cap: f32, values: &mut [f32]) {
    let simd = Simd::of(tier);
    team.chunks_mut(values, TASK, |_, values| dispatch(simd, SoftCap { cap, values }));
}

struct SoftCap<'a> {
    cap: f32,
    values: &'a mut [f32],
}

impl Work for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { cap, values } = self;
        let (whole, rest) = values.as_chunks_mut::<LANES>();
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        for chunk in whole.iter_mut().chain(std::iter::once(&mut last)) {
            // SAFETY: the caller says that the registers are there; a chunk fills one.
            unsafe {
                let (one, two) = (L::splat(1.0), L::splat(2.0));
                let power = L::load(chunk.as_ptr()).mul(L::splat(2.0 / cap)).exp();
                one.sub(two.div(power.add(one))).mul(L::splat(cap)).store(chunk.as_mut_ptr());
            }
        }
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 250.0 - 4.0).collect()
    }

    fn check(got: &[f32], expected: impl Iterator<Item = f64>, what: &str) {
        let mut n = 0;
        for (got, expected) in got.iter().zip(expected) {
            assert!(
                (f64::from(*got) - expected).abs() < 2e-5 * (1.0 + expected.abs()),
                "{what}: {got}, not {expected}"
            );
            n += 1;
        }
        assert_eq!(n, got.len());
    }

    fn rms(row: &[f64]) -> f64 {
        (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + 1e-5).sqrt()
    }

    #[test]
    fn rows_are_added_and_normalised() {
        for (rows, width) in [(1, 64), (7, 37), (40, 576), (3, 16)] {
            let (hidden, delta) = (values(rows * width, 1), values(rows * width, 2));
            let (weight, post) = (values(width, 3), values(width, 4));
            for (norm, tier) in [None, Some(&post[..])]
                .into_iter()
                .flat_map(|norm| Tier::available().into_iter().map(move |tier| (norm, tier)))
            {
                let team = Team::new(2).unwrap();
                let (mut sum, mut out) = (hidden.clone(), vec![0.0; rows * width]);
                add_and_normalise(&team, tier, &mut sum, Some(Delta { rows: &delta, norm }), &weight, 1e-5, &mut out);
                for row in 0..rows {
                    let part = |values: &[f32]| -> Vec<f64> {
                        values[row * width..][..width].iter().map(|x| f64::from(*x)).collect()
                    };
                    let mut added = part(&delta);
                    if let Some(norm) = norm {
                        let scale = rms(&added);
                        added.iter_mut().zip(norm).for_each(|(x, w)| *x = *x / scale * f64::from(*w));
                    }
                    let total: Vec<f64> = part(&hidden).iter().zip(&added).map(|(a, b)| a + b).collect();
                    check(&sum[row * width..][..width], total.iter().copied(), "sum");
                    let scale = rms(&total);
                    let expected = total.iter().zip(&weight).map(|(x, w)| x / scale * f64::from(*w));
                    check(&out[row * width..][..width], expected, "norm");
                }
                let mut alone = vec![0.0; width];
                let last = (rows - 1) * width;
                let mut row = sum[last..].to_vec();
                add_and_normalise(&team, tier, &mut row, None, &weight, 1e-5, &mut alone);
                assert_eq!(alone, out[last..], "a row alone, bit for bit");
            }
        }
    }

    #[test]
    fn what_is_no_number_fills_its_row() {
        for bad in [f32::NAN, f32::INFINITY, 3e38] {
            for tier in Tier::available() {
                let team = Team::new(1).unwrap();
                let (mut hidden, mut out) = (vec![1.0; 3 * 40], vec![0.0; 3 * 40]);
                hidden[45] = bad;
                add_and_normalise(&team, tier, &mut hidden, None, &[1.0; 40], 1e-5, &mut out);
                assert!(out[..40].iter().chain(&out[80..]).all(|x| x.is_finite()));
                assert!(out[40..80].iter().all(|x| x.is_nan()));
            }
        }
    }

    #[test]
    fn gates_and_caps_are_what_their_formulas_say() {
        for tier in Tier::available() {
            let team = Team::new(2).unwrap();
            for (rows, width) in [(1, 48), (5, 33), (9, 1536)] {
                let gate_up = values(rows * width * 2, 5);
                for gate in [Gate::Silu, Gate::GeluTanh] {
                    let mut out = vec![0.0; rows * width];
                    gated(&team, tier, gate, width, &gate_up, &mut out);
                    let expected = (0..rows * width).map(|i| {
                        let at = i / width * 2 * width + i % width;
                        let (g, up) = (f64::from(gate_up[at]), f64::from(gate_up[at + width]));
                        let bent = match gate {
                            Gate::Silu => g / (1.0 + (-g).exp()),
                            Gate::GeluTanh => {
                                let y = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3));
                                0.5 * g * (1.0 + y.tanh())
                            }
                        };
                        bent * up
                    });
                    check(&out, expected, "gate");
                }
            }
            let mut capped = values(9000, 6);
            let expected: Vec<f64> = capped.iter().map(|x| 3.0 * (f64::from(*x) / 3.0).tanh()).collect();
            soft_cap(&team, tier, 3.0, &mut capped);
            check(&capped, expected.into_iter(), "cap");
            let mut far = [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, f32::NAN];
            soft_cap(&team, tier, 30.0, &mut far);
            assert_eq!(far[..4], [30.0, -30.0, 30.0, -30.0]);
            assert!(far[4].is_nan());
        }
    }
}
