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
    best_ratio(&short, &Indexed::new(&long), &mut Matcher::default(), 0)
}

/// A text in which several phrases are looked for.
#[derive(Debug)]
pub(super) struct Searched {
    indexed: Indexed<Vec<char>>,
    matcher: Matcher,
}

impl Searched {
    pub(super) fn new(text: &str) -> Self {
        Self { indexed: Indexed::new(text.chars().collect()), matcher: Matcher::default() }
    }

    /// Says whether the phrase and the text have a partial ratio above a bound.
    pub(super) fn has(&mut self, phrase: &str, bound: u32) -> bool {
        let phrase: Vec<char> = phrase.chars().collect();
        let text = &self.indexed.chars;
        let ratio = if phrase == *text {
            100
        } else if phrase.is_empty() || text.is_empty() {
            0
        } else if phrase.len() <= text.len() {
            best_ratio(&phrase, &self.indexed, &mut self.matcher, bound)
        } else {
            best_ratio(text, &Indexed::new(&phrase), &mut self.matcher, bound)
        };
        ratio > bound
    }
}

/// Returns the best ratio of a window of the longer text; of windows that cannot be above `bound`, 0.
fn best_ratio<L: AsRef<[char]>>(short: &[char], long: &Indexed<L>, matcher: &mut Matcher, bound: u32) -> u32 {
    let tally = Tally::of(short);
    let mut best = 0.0_f64;
    let text = long.chars.as_ref();
    for (i, j, _) in matcher.blocks(short, long) {
        let start = j.saturating_sub(i);
        let window = &text[start..text.len().min(start + short.len())];
        let ratio_of = |matched: usize| 2.0 * matched as f64 / (short.len() + window.len()) as f64;
        let most = ratio_of(tally.shared(window));
        if most <= best || rounded(most) <= bound {
            continue;
        }
        let ratio = ratio_of(matcher.blocks(short, &Indexed::new(window)).iter().map(|block| block.2).sum());
        if ratio > 0.995 {
            return 100;
        }
        best = best.max(ratio);
    }
    rounded(best)
}

fn rounded(ratio: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
    let rounded = (100.0 * ratio).round_ties_even() as u32;
    rounded
}

/// How often characters occur, those that share their last seven bits taken together.
struct Tally([u32; 128]);

impl Tally {
    fn of(text: &[char]) -> Self {
        let mut counts = [0; 128];
        text.iter().for_each(|&c| counts[c as usize % 128] += 1);
        Self(counts)
    }

    /// Returns a bound on how many characters of another text can be matched.
    fn shared(&self, text: &[char]) -> usize {
        let other = Self::of(text);
        self.0.iter().zip(&other.0).map(|(a, b)| *a.min(b) as usize).sum()
    }
}

/// A text and where in it each character is, but for popular ones.
#[derive(Debug)]
struct Indexed<T> {
    chars: T,
    /// Of characters of ASCII, by their number.
    ascii: [Vec<usize>; 128],
    others: HashMap<char, Vec<usize>>,
}

impl<T: AsRef<[char]>> Indexed<T> {
    fn new(chars: T) -> Self {
        let text = chars.as_ref();
        let mut ascii = [const { Vec::new() }; 128];
        let mut others: HashMap<char, Vec<usize>> = HashMap::new();
        for (j, &c) in text.iter().enumerate() {
            match ascii.get_mut(c as usize) {
                Some(places) => places.push(j),
                None => others.entry(c).or_default().push(j),
            }
        }
        if text.len() >= 200 {
            let popular = text.len() / 100 + 1;
            ascii.iter_mut().filter(|places| places.len() > popular).for_each(Vec::clear);
            others.retain(|_, places| places.len() <= popular);
        }
        Self { chars, ascii, others }
    }

    fn places(&self, c: char) -> &[usize] {
        self.ascii.get(c as usize).or_else(|| self.others.get(&c)).map_or(&[], Vec::as_slice)
    }
}

/// Room for comparing two texts.
#[derive(Debug, Default)]
struct Matcher {
    /// Of the last and of the current character of the one text, how long the match is that ends at each place of the
    /// other, beside the number of the character that the entry was written for.
    rows: [Vec<(u64, usize)>; 2],
    n_characters: u64,
}

impl Matcher {
    /// Returns the matching blocks (start in `a`, start in `b`, length) in order, the empty one at the end included.
    fn blocks<T: AsRef<[char]>>(&mut self, a: &[char], b: &Indexed<T>) -> Vec<(usize, usize, usize)> {
        let n_b = b.chars.as_ref().len();
        let mut found = Vec::new();
        let mut todo = vec![(0, a.len(), 0, n_b)];
        while let Some((a_low, a_high, b_low, b_high)) = todo.pop() {
            let (i, j, n) = self.longest(a, b, (a_low, a_high, b_low, b_high));
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
        merged.push((a.len(), n_b, 0));
        merged
    }

    fn longest<T: AsRef<[char]>>(
        &mut self,
        a: &[char],
        b: &Indexed<T>,
        (a_low, a_high, b_low, b_high): (usize, usize, usize, usize),
    ) -> (usize, usize, usize) {
        let text = b.chars.as_ref();
        self.rows.iter_mut().filter(|row| row.len() < text.len()).for_each(|row| row.resize(text.len(), (0, 0)));
        let (mut best_i, mut best_j, mut best_n) = (a_low, b_low, 0);
        // What was written for other ranges is two numbers away at least.
        self.n_characters += 2;
        for (i, &c) in a.iter().enumerate().take(a_high).skip(a_low) {
            self.n_characters += 1;
            let (before, now) = (self.n_characters - 1, self.n_characters);
            let [last, current] = &mut self.rows;
            for &j in b.places(c) {
                if j < b_low {
                    continue;
                }
                if j >= b_high {
                    break;
                }
                let n = 1 + if j > 0 && last[j - 1].0 == before { last[j - 1].1 } else { 0 };
                current[j] = (now, n);
                if n > best_n {
                    (best_i, best_j, best_n) = (i + 1 - n, j + 1 - n, n);
                }
            }
            self.rows.swap(0, 1);
        }
        // Popular characters extend a block on both sides.
        while best_i > a_low && best_j > b_low && a[best_i - 1] == text[best_j - 1] {
            (best_i, best_j, best_n) = (best_i - 1, best_j - 1, best_n + 1);
        }
        while best_i + best_n < a_high && best_j + best_n < b_high && a[best_i + best_n] == text[best_j + best_n] {
            best_n += 1;
        }
        (best_i, best_j, best_n)
    }
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
        let (a, b) = ("abcd", "abxd");
        assert!(Searched::new(b).has(a, 74) && !Searched::new(b).has(a, 75) && Searched::new("abc").has("abcd", 80));
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
