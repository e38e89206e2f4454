//! Products of one point with many scalars, none of which is secret.

use std::iter;

use curve25519_dalek::ristretto::RistrettoPoint;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::Identity as _;

/// Bits that digits must cover: scalars are below 2^253, and signed digits carry into one bit more.
const BITS: u32 = 254;

/// The multiples of a point that any of a scalar's digits can ask for, so that a product is one addition a digit.
///
/// Additions and the places that are read depend on the scalar: not for secrets.
pub(super) struct Multiples {
    /// Bits of a digit.
    width: u32,
    /// `d * 2^(width * i)` times the point, for all digits' numbers `i`, and for `d` from 1 to `2^(width - 1)` each.
    points: Vec<RistrettoPoint>,
}

impl Multiples {
    /// Takes `2^(width - 1) * ceil(254 / width)` points of 160 bytes.
    pub(super) fn new(point: RistrettoPoint, width: u32) -> Self {
        let largest = 1 << (width - 1);
        let mut points = Vec::with_capacity(largest * BITS.div_ceil(width) as usize);
        let mut unit = point;
        for _ in 0..BITS.div_ceil(width) {
            points.extend(iter::successors(Some(unit), |multiple| Some(multiple + unit)).take(largest));
            unit = points.last().map_or(unit, |half| half + half);
        }
        Self { width, points }
    }

    /// Returns the product with a scalar.
    pub(super) fn product(&self, scalar: &Scalar) -> RistrettoPoint {
        self.add_product(RistrettoPoint::identity(), scalar)
    }

    /// Returns `sum` and the product with a scalar.
    pub(super) fn add_product(&self, mut sum: RistrettoPoint, scalar: &Scalar) -> RistrettoPoint {
        let largest = 1_usize << (self.width - 1);
        for (multiples, digit) in self.points.chunks_exact(largest).zip(digits(scalar, self.width)) {
            let magnitude = digit.unsigned_abs() as usize;
            if let Some(multiple) = magnitude.checked_sub(1).and_then(|place| multiples.get(place)) {
                sum = if digit > 0 { sum + multiple } else { sum - multiple };
            }
        }
        sum
    }
}

/// Writes a scalar in digits of `width` bits, from -2^(width - 1) + 1 to 2^(width - 1), the least significant first.
fn digits(scalar: &Scalar, width: u32) -> impl Iterator<Item = i32> {
    let bytes = *scalar.as_bytes();
    let base = 1 << width;
    let mut carry = 0;
    (0..BITS.div_ceil(width)).map(move |index| {
        let bit = index * width;
        let byte = |i: u32| i32::from(bytes.get((bit / 8 + i) as usize).copied().unwrap_or(0));
        let bits = (byte(0) | byte(1) << 8) >> (bit % 8);
        let digit = bits % base + carry;
        carry = i32::from(digit > base / 2);
        digit - carry * base
    })
}

#[cfg(test)]
mod tests {
    use curve25519_dalek::constants::RISTRETTO_BASEPOINT_POINT;

    use super::*;

    fn check(scalar: &Scalar) {
        for width in 2..=8 {
            let half = 1 << (width - 1);
            let written = digits(scalar, width).collect::<Vec<_>>();
            assert!(written.iter().all(|digit| (-half + 1..=half).contains(digit)), "{width}: {written:?}");
            let value = written.iter().rev().fold(Scalar::ZERO, |value, digit| {
                let magnitude = Scalar::from(digit.unsigned_abs());
                value * Scalar::from(2 * half.unsigned_abs()) + if *digit < 0 { -magnitude } else { magnitude }
            });
            assert_eq!(value, *scalar, "{width}");
        }
    }

    #[test]
    fn extreme_scalars_are_written_in_digits() {
        for scalar in [Scalar::ZERO, Scalar::ONE, -Scalar::ONE, Scalar::from(u128::MAX), -Scalar::from(u128::MAX)] {
            check(&scalar);
        }
        let half = Scalar::from(2_u8).invert();
        check(&half);
        check(&-half);
    }

    #[test]
    fn products_with_extreme_scalars() {
        let point = RISTRETTO_BASEPOINT_POINT;
        for width in [2, 5, 6, 8] {
            let multiples = Multiples::new(point, width);
            for scalar in [Scalar::ZERO, Scalar::ONE, -Scalar::ONE, Scalar::from(128_u8), Scalar::from(u64::MAX)] {
                assert_eq!(multiples.product(&scalar), point * scalar, "{width}: {scalar:?}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_scalar_is_written_in_digits(bytes: [u8; 32]) {
            check(&Scalar::from_bytes_mod_order(bytes));
        }

        #[test]
        fn sums_with_products(point: [u8; 32], sum: [u8; 32], bytes: [u8; 32]) {
            let point_of = |bytes| RISTRETTO_BASEPOINT_POINT * Scalar::from_bytes_mod_order(bytes);
            let (point, sum, scalar) = (point_of(point), point_of(sum), Scalar::from_bytes_mod_order(bytes));
            proptest::prop_assert_eq!(Multiples::new(point, 6).add_product(sum, &scalar), sum + point * scalar);
        }
    }
}
