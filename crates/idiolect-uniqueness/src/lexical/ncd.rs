//! Normalised compression distance.
//!
//! (C(xy) - min(C(x), C(y))) / max(C(x), C(y)), with C(x) the length of x compressed: Cilibrasi and Vitányi, "Clustering
//! by compression" (2005). C is zlib's format at level 9, with all its overhead; xy are the two texts one after the other.
//!
//! The distance is near 0 for equal texts (never exactly: the second copy costs some bytes) and near 1 for unrelated ones,
//! and may exceed 1 a little. It is not symmetric to the last byte. It is 0 for two empty texts.
//!
//! zlib looks back 32 KiB, so a text finds itself again only where it is shorter than that: of longer texts the distance
//! means little, and of equal texts of 100,000 characters that do not repeat themselves it is near 1. It costs three
//! compressions.

use super::compression::compressed_len;

/// Returns the distance of two texts.
#[must_use]
pub fn ncd(x: &str, y: &str) -> f64 {
    let (cx, cy) = (compressed_len([x]) as f64, compressed_len([y]) as f64);
    let both = compressed_len([x, y]) as f64;
    (both - cx.min(cy)) / cx.max(cy)
}
