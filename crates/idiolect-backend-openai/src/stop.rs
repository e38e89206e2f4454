//! Stop texts, for servers that run over them.

/// Passes text on until a stop text, and holds back what may be the beginning of one.
#[derive(Debug)]
pub(crate) struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new() }
    }

    /// Returns what can be passed on, and whether a stop text was reached.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        if self.stops.is_empty() {
            return (text.to_owned(), false);
        }
        self.held.push_str(text);
        if let Some(end) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            let mut out = std::mem::take(&mut self.held);
            out.truncate(end);
            return (out, true);
        }
        let sure = self.held.len() - self.unsure();
        let rest = self.held.split_off(sure);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Returns what was held back, when nothing more comes.
    pub(crate) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Returns how many bytes at the end may be the beginning of a stop text.
    fn unsure(&self) -> usize {
        let begins = |stop: &String| {
            (stop.char_indices().map(|(i, _)| i).rev())
                .find(|&length| length > 0 && self.held.ends_with(&stop[..length]))
                .unwrap_or(0)
        };
        self.stops.iter().map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stops: &[&str], pieces: &[&str], expected: &str, expect_hit: bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut filter = StopFilter::new(&stops);
        let mut out = String::new();
        let mut hit = false;
        for piece in pieces {
            let (text, now) = filter.push(piece);
            out.push_str(&text);
            if now {
                hit = true;
                break;
            }
        }
        if !hit {
            out.push_str(&filter.flush());
        }
        assert_eq!((out.as_str(), hit), (expected, expect_hit), "{stops:?} in {pieces:?}");
    }

    #[test]
    fn cuts_before_the_first_stop_text_wherever_it_is_split() {
        check(&[], &["a", "b"], "ab", false);
        check(&["STOP"], &["say ST", "OP now"], "say ", true);
        check(&["STOP"], &["S", "T", "O", "X"], "STOX", false);
        check(&["STOP"], &["STSTO", "P"], "ST", true);
        check(&["b", "abc"], &["xa", "b"], "xa", true);
        check(&["\n\n"], &["a\n", "b\n", "\nc"], "a\nb", true);
        check(&["é!"], &["caf", "é", "s"], "cafés", false);
        check(&["é!"], &["café", "!"], "caf", true);
    }

    proptest::proptest! {
        #[test]
        fn pieces_give_the_same_as_the_whole(
            pieces in proptest::collection::vec("[abé]{0,3}", 0..8),
            stops in proptest::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let text = pieces.concat();
            let end = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
            let mut filter = StopFilter::new(&stops);
            let (mut out, mut hit) = (String::new(), false);
            for piece in &pieces {
                let (more, now) = filter.push(piece);
                out.push_str(&more);
                hit = now;
                if hit {
                    break;
                }
            }
            if !hit {
                out.push_str(&filter.flush());
            }
            proptest::prop_assert_eq!(hit, end.is_some());
            // A longer stop text that begins earlier may still be open when a shorter one is complete.
            proptest::prop_assert!(text.starts_with(&out));
            if let Some(end) = end {
                proptest::prop_assert!(out.len() >= end);
                proptest::prop_assert!(stops.iter().all(|stop| !out.contains(stop.as_str())));
            } else {
                proptest::prop_assert_eq!(out, text);
            }
        }
    }
}
