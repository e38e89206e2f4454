//! Putting a reply's text together from tokens: whole characters only, and nothing from a stop text on.

use std::collections::VecDeque;

use idiolect_backend::TokenLogprob;

/// What is known of one token.
#[derive(Clone, Debug)]
struct Entry {
    /// Where its bytes begin in the whole text.
    begin: usize,
    logprob: f32,
    detail: Option<TokenLogprob>,
}

/// Text that may leave now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Release {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
}

/// The growing text of one candidate.
#[derive(Clone, Debug)]
pub(crate) struct Assembly {
    stops: Vec<String>,
    drop_space: bool,
    /// Bytes of a character that is not complete.
    partial: Vec<u8>,
    /// Text that waits because it may be the beginning of a stop text.
    held: String,
    /// Bytes of text that have left.
    released: usize,
    entries: VecDeque<Entry>,
    n_tokens: u32,
    sum: f64,
}

impl Assembly {
    /// Begins a text. With `drop_space` a space before the first word is left out.
    pub(crate) fn new(stops: &[String], drop_space: bool) -> Self {
        Self {
            stops: stops.to_vec(),
            drop_space,
            partial: Vec::new(),
            held: String::new(),
            released: 0,
            entries: VecDeque::new(),
            n_tokens: 0,
            sum: 0.0,
        }
    }

    /// Appends a token. Returns true when a stop text is complete: then [`finish`](Self::finish) is next.
    pub(crate) fn push(&mut self, bytes: &[u8], logprob: f32, detail: Option<TokenLogprob>) -> bool {
        let begin = self.released + self.held.len() + self.partial.len();
        self.entries.push_back(Entry { begin, logprob, detail });
        let bytes =
            if std::mem::take(&mut self.drop_space) { bytes.strip_prefix(b" ").unwrap_or(bytes) } else { bytes };
        self.partial.extend_from_slice(bytes);
        self.decode();
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            self.partial.clear();
            let end = self.released + at;
            while self.entries.back().is_some_and(|entry| entry.begin >= end) {
                self.entries.pop_back();
            }
        }
        found.is_some()
    }

    /// Moves whole characters from `partial` to `held`; bytes that can't be part of one become U+FFFD.
    fn decode(&mut self) {
        let mut rest = self.partial.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.held.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        rest = after;
                        break;
                    };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[bad..];
                }
            }
        }
        self.partial = rest.to_vec();
    }

    /// Takes what can't become part of a stop text any more.
    pub(crate) fn release(&mut self) -> Release {
        let waiting = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let keep = self.held.split_off(self.held.len() - waiting);
        let text = std::mem::replace(&mut self.held, keep);
        self.take(text)
    }

    /// Takes all that is left. Bytes of an incomplete character are lost.
    pub(crate) fn finish(&mut self) -> Release {
        self.partial.clear();
        let text = std::mem::take(&mut self.held);
        let mut release = self.take(text);
        while let Some(entry) = self.entries.pop_front() {
            self.count(entry, &mut release);
        }
        release
    }

    fn take(&mut self, text: String) -> Release {
        self.released += text.len();
        let mut release = Release { text, logprobs: Vec::new() };
        while self.entries.front().is_some_and(|entry| entry.begin < self.released) {
            if let Some(entry) = self.entries.pop_front() {
                self.count(entry, &mut release);
            }
        }
        release
    }

    fn count(&mut self, entry: Entry, release: &mut Release) {
        self.n_tokens += 1;
        self.sum += f64::from(entry.logprob);
        release.logprobs.extend(entry.detail);
    }

    /// Says whether there is text that has not left yet.
    pub(crate) const fn holds_text(&self) -> bool {
        !self.held.is_empty()
    }

    /// Returns how many tokens the text that has left is made of.
    pub(crate) const fn n_tokens(&self) -> u32 {
        self.n_tokens
    }

    /// Returns the mean log-probability of those tokens.
    pub(crate) fn mean_logprob(&self) -> Option<f32> {
        #[expect(clippy::cast_possible_truncation, reason = "a mean of f32 values fits f32")]
        (self.n_tokens > 0).then(|| (self.sum / f64::from(self.n_tokens)) as f32)
    }
}

/// Returns the length of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len().saturating_sub(1));
    (1..=most).rev().find(|n| text.as_bytes()[text.len() - n..] == stop.as_bytes()[..*n]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds pieces; returns the text, whether a stop ended it, and the tokens counted.
    fn run(stops: &[&str], pieces: &[&[u8]]) -> (String, bool, u32) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut assembly = Assembly::new(&stops, false);
        let mut text = String::new();
        let mut stopped = false;
        for piece in pieces {
            if assembly.push(piece, -1.0, None) {
                stopped = true;
                break;
            }
            text += &assembly.release().text;
        }
        text += &assembly.finish().text;
        (text, stopped, assembly.n_tokens())
    }

    #[test]
    fn stops_are_found_across_tokens_and_cut_before() {
        assert_eq!(run(&["END"], &[b"one E", b"N", b"D two"]), ("one ".to_owned(), true, 1));
        assert_eq!(run(&["END"], &[b"one E", b"N", b"X"]), ("one ENX".to_owned(), false, 3));
        assert_eq!(run(&["b", "ab"], &[b"xa", b"b"]), ("x".to_owned(), true, 1), "the earliest stop wins");
        assert_eq!(run(&["one"], &[b"one"]), (String::new(), true, 0));
        assert_eq!(run(&["aab"], &[b"a", b"a", b"a", b"b"]), ("a".to_owned(), true, 1));
    }

    #[test]
    fn characters_leave_whole() {
        let e = "é😀".as_bytes();
        let mut assembly = Assembly::new(&[], false);
        assembly.push(&e[..1], 0.0, None);
        assert_eq!(assembly.release().text, "");
        assembly.push(&e[1..4], 0.0, None);
        assert_eq!(assembly.release().text, "é");
        assembly.push(&e[4..], 0.0, None);
        assert_eq!(assembly.release().text, "😀");
        assert_eq!(run(&[], &[&e[..3]]).0, "é", "an unfinished character is dropped");
        assert_eq!(run(&[], &[&[0xff, b'a']]).0, "\u{fffd}a");
    }

    #[test]
    fn a_dummy_space_is_dropped_once() {
        let mut assembly = Assembly::new(&[], true);
        assembly.push(b" a", 0.0, None);
        assembly.push(b" b", 0.0, None);
        assert_eq!(assembly.finish().text, "a b");
    }

    #[test]
    fn log_probabilities_leave_with_their_text() {
        let detail = |token: &str| Some(TokenLogprob { token: token.to_owned(), logprob: -1.0, top: Vec::new() });
        let mut assembly = Assembly::new(&["xy".to_owned()], false);
        assembly.push(b"a", -1.0, detail("a"));
        assembly.push(b"x", -2.0, detail("x"));
        let release = assembly.release();
        assert_eq!((release.text.as_str(), release.logprobs.len()), ("a", 1));
        assert!(assembly.push(b"y", -3.0, detail("y")));
        assert_eq!(assembly.finish(), Release::default());
        assert_eq!((assembly.n_tokens(), assembly.mean_logprob()), (1, Some(-1.0)));
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_text_up_to_the_first_stop(text in "[ab€😀]{0,40}", stop in "[ab€]{1,4}", cuts in prop::collection::vec(1usize..5, 60)) {
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            let (got, stopped, _) = run(&[&stop], &pieces);
            let expected = text.split(&stop).next().unwrap_or_default();
            prop_assert_eq!(got, expected);
            prop_assert_eq!(stopped, text.contains(&stop));
        }
    }
}
