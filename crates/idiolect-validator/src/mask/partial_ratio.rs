use std::collections::HashMap;

/// Returns how well the shorter text matches some part of the longer one, 0 to 100.
///
/// As fuzzywuzzy's `fuzz.partial_ratio` over Python's `difflib` (its pure-Python path): each block that both share gives
/// one window of the longer text, and the best ratio counts. As in `difflib`, characters that make up more than 1 % of a
/// longer text of 200 characters or more do not start a block. No recording; by the libraries' documented algorithm.
#[must_use]
pub fn partial_ratio(a: &str, b: &str) -> u32 {
    if a == b {
        return 100;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    if short.is_empty() {
        return 0;
    }
    let mut best = 0.0_f64;
    for (i, j, _) in blocks(&short, &long) {
        let start = j.saturating_sub(i);
        let window = &long[start..long.len().min(start + short.len())];
        let matched: usize = blocks(&short, window).iter().map(|block| block.2).sum();
        let ratio = 2.0 * matched as f64 / (short.len() + window.len()) as f64;
        if ratio > 0.995 {
            return 100;
        }
        best = best.max(ratio);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
    let rounded = (100.0 * best).round_ties_even() as u32;
    rounded
}

/// Returns the matching blocks (start in `a`, start in `b`, length) in order, the empty one at the end included.
fn blocks(a: &[char], b: &[char]) -> Vec<(usize, usize, usize)> {
    let mut places: HashMap<char, Vec<usize>> = HashMap::new();
    for (j, &c) in b.iter().enumerate() {
        places.entry(c).or_default().push(j);
    }
    if b.len() >= 200 {
        let popular = b.len() / 100 + 1;
        places.retain(|_, at| at.len() <= popular);
    }
    let mut found = Vec::new();
    let mut todo = vec![(0, a.len(), 0, b.len())];
    while let Some((a_low, a_high, b_low, b_high)) = todo.pop() {
        let (i, j, n) = longest(a, b, &places, (a_low, a_high, b_low, b_high));
        if n > 0 {
            found.push((i, j, n));
            if a_low < i && b_low < j {
                todo.push((a_low, i, b_low, j));
            }
            if i + n < a_high && j + n < b_high {
                todo.push((i + n, a_high, j + n, b_high));
            }
        }
    }
    found.sort_unstable();
    let mut merged: Vec<(usize, usize, usize)> = Vec::with_capacity(found.len() + 1);
    for (i, j, n) in found {
        match merged.last_mut() {
            Some(last) if last.0 + last.2 == i && last.1 + last.2 == j => last.2 += n,
            _ => merged.push((i, j, n)),
        }
    }
    merged.push((a.len(), b.len(), 0));
    merged
}

fn longest(
    a: &[char],
    b: &[char],
    places: &HashMap<char, Vec<usize>>,
    (a_low, a_high, b_low, b_high): (usize, usize, usize, usize),
) -> (usize, usize, usize) {
    let (mut best_i, mut best_j, mut best_n) = (a_low, b_low, 0);
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    for (i, c) in a.iter().enumerate().take(a_high).skip(a_low) {
        let mut next = HashMap::new();
        for &j in places.get(c).map_or(&[][..], Vec::as_slice) {
            if j < b_low {
                continue;
            }
            if j >= b_high {
                break;
            }
            let n = 1 + if j > 0 { lengths.get(&(j - 1)).copied().unwrap_or(0) } else { 0 };
            next.insert(j, n);
            if n > best_n {
                (best_i, best_j, best_n) = (i + 1 - n, j + 1 - n, n);
            }
        }
        lengths = next;
    }
    // Popular characters extend a block on both sides.
    while best_i > a_low && best_j > b_low && a[best_i - 1] == b[best_j - 1] {
        (best_i, best_j, best_n) = (best_i - 1, best_j - 1, best_n + 1);
    }
    while best_i + best_n < a_high && best_j + best_n < b_high && a[best_i + best_n] == b[best_j + best_n] {
        best_n += 1;
    }
    (best_i, best_j, best_n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(a: &str, b: &str, expected: u32) {
        assert_eq!(partial_ratio(a, b), expected, "{a:?}, {b:?}");
    }

    #[test]
    fn known_pairs() {
        check("", "", 100);
        check("", "x", 0);
        check("abc", "abc", 100);
        check("bcd", "abcde", 100);
        check("abcd", "abxd", 75);
        check("xyz", "abc", 0);
        check("new york mets", "the wonderful new york mets", 100);
    }

    #[test]
    fn a_long_text_is_still_matched_from_rare_characters() {
        let long =
            format!("{}a quick zebra jumps{}", "the rain in spain ".repeat(20), " falls on the plain".repeat(20));
        check("a quick zebra jumps", &long, 100);
        assert!(partial_ratio("x", &"y".repeat(100_000)) == 0);
    }
}
