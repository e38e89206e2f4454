use std::ops::Range;

use crate::guard::StockPhrases;

/// A text of which the parts that are code are known.
pub(super) struct Prose<'a> {
    text: &'a str,
    phrases: &'a StockPhrases,
    fences: Vec<Range<usize>>,
    /// Fences, and code within lines.
    code: Vec<Range<usize>>,
}

/// A line without its end.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) start: usize,
    pub(super) text: &'a str,
    pub(super) is_fenced: bool,
}

impl<'a> Prose<'a> {
    pub(super) fn new(text: &'a str, phrases: &'a StockPhrases) -> Self {
        let mut prose = Self { text, phrases, fences: Vec::new(), code: Vec::new() };
        prose.find_code();
        prose
    }

    pub(super) const fn text(&self) -> &'a str {
        self.text
    }

    pub(super) const fn phrases(&self) -> &'a StockPhrases {
        self.phrases
    }

    fn find_code(&mut self) {
        let mut open: Option<(usize, &str)> = None;
        let mut start = 0;
        for line in self.text.split_inclusive('\n') {
            let end = start + line.len();
            let trimmed = line.trim();
            match open {
                Some((from, mark)) => {
                    let is_close =
                        trimmed.starts_with(mark) && trimmed.trim_matches(|c| mark.starts_with(c)).is_empty();
                    if is_close {
                        self.fences.push(from..end);
                        self.code.push(from..end);
                        open = None;
                    }
                }
                None => match ["```", "~~~"].into_iter().find(|mark| trimmed.starts_with(mark)) {
                    Some(mark) => open = Some((start, mark)),
                    None => self.code.extend(spans(line).map(|span| start + span.start..start + span.end)),
                },
            }
            start = end;
        }
        if let Some((from, _)) = open {
            self.fences.push(from..self.text.len());
            self.code.push(from..self.text.len());
        }
    }

    pub(super) fn is_code(&self, at: usize) -> bool {
        let next = self.code.partition_point(|range| range.end <= at);
        self.code.get(next).is_some_and(|range| range.contains(&at))
    }

    fn is_fenced(&self, at: usize) -> bool {
        let next = self.fences.partition_point(|range| range.end <= at);
        self.fences.get(next).is_some_and(|range| range.contains(&at))
    }

    pub(super) fn fenced_blocks(&self) -> impl Iterator<Item = &'a str> {
        let text = self.text;
        self.fences.clone().into_iter().map(move |range| &text[range])
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'a>> {
        let mut start = 0;
        self.text.split('\n').map(move |text| {
            let line = Line { start, text, is_fenced: self.is_fenced(start) };
            start += text.len() + 1;
            line
        })
    }

    /// Returns where sentences and items of lists end, in order: places right after their last characters.
    pub(super) fn ends(&self) -> Vec<usize> {
        let mut ends = Vec::new();
        for line in self.lines().filter(|line| !line.is_fenced) {
            let body = line.text.len() - without_marker(line.text).map_or(line.text, |(_, rest)| rest).len();
            let mut chars = line.text.char_indices().skip_while(|(i, _)| *i < body).peekable();
            while let Some((i, c)) = chars.next() {
                if !matches!(c, '.' | '?' | '!') || self.is_code(line.start + i) {
                    continue;
                }
                let mut end = i + c.len_utf8();
                while let Some((j, closing)) = chars.next_if(|(_, c)| is_closing(*c)) {
                    end = j + closing.len_utf8();
                }
                let is_end = chars.peek().is_none_or(|(_, next)| next.is_whitespace());
                if is_end && (c != '.' || self.is_full_stop(&line.text[..i])) {
                    ends.push(line.start + end);
                }
            }
            let line_end = line.start + line.text.trim_end().len();
            let is_item = body > 0 && line_end > line.start + body;
            if is_item && !self.is_code(line_end.saturating_sub(1)) && ends.last() != Some(&line_end) {
                ends.push(line_end);
            }
        }
        ends
    }

    /// Says whether a full stop after these words ends a sentence.
    fn is_full_stop(&self, before: &str) -> bool {
        let word = before.rsplit(char::is_whitespace).next().unwrap_or(before);
        let word = word.trim_start_matches(|c: char| !c.is_alphanumeric());
        !before.chars().next_back().is_some_and(|b| b.is_ascii_uppercase())
            && !self.phrases.is_abbreviation(&format!("{word}."))
    }

    /// Returns the sentences of all lines outside of code blocks, white space after them included but not the line's end.
    pub(super) fn sentences(&self) -> Vec<Range<usize>> {
        let ends = self.ends();
        let mut sentences = Vec::new();
        for line in self.lines().filter(|line| !line.is_fenced) {
            let line_end = line.start + line.text.len();
            let mut start = line.start;
            let first = ends.partition_point(|end| *end <= line.start);
            for end in ends[first..].iter().copied().take_while(|end| *end < line_end) {
                let next = end + self.text[end..line_end].len() - self.text[end..line_end].trim_start().len();
                sentences.push(start..next);
                start = next;
            }
            if start < line_end {
                sentences.push(start..line_end);
            }
        }
        sentences
    }
}

/// Finds code within a line: between two runs of as many backticks.
fn spans(line: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let from = at + line[at..].find('`')?;
            let run = line[from..].bytes().take_while(|byte| *byte == b'`').count();
            let mark = &line[from..from + run];
            at = from + run;
            if let Some(to) = line[at..].find(mark) {
                let range = from..at + to + run;
                at = range.end;
                return Some(range);
            }
        }
    })
}

const fn is_closing(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '”' | '’' | '»' | '*' | '_')
}

/// Divides a line that is an item of a list: the marker without white space, and the rest.
pub(super) fn without_marker(line: &str) -> Option<(&str, &str)> {
    let trimmed = line.trim_start();
    let mut chars = trimmed.char_indices();
    let (_, first) = chars.next()?;
    let end = if matches!(first, '*' | '-' | '+' | '•' | '‣' | '◦' | '●' | '·' | '–') {
        first.len_utf8()
    } else {
        let digits = trimmed.find(|c: char| !c.is_numeric()).filter(|digits| (1..=8).contains(digits))?;
        let stop = trimmed[digits..].chars().next().filter(|c| matches!(c, '.' | ')'))?;
        digits + stop.len_utf8()
    };
    let rest = &trimmed[end..];
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then(|| (&trimmed[..end], rest.trim_start()))
}

/// Puts a capital letter at a text's beginning, where it has one to put.
pub(super) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).collect()
}

pub(super) fn n_words(text: &str) -> usize {
    text.split_whitespace().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<&str> {
        let phrases = StockPhrases::built_in();
        Prose::new(text, phrases).sentences().into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn sentences_end_where_readers_see_an_end() {
        assert_eq!(parts("It is. \"Is it?\" Yes!"), ["It is. ", "\"Is it?\" ", "Yes!"]);
        assert_eq!(parts("Some (e.g. this) of Dr. No. End"), ["Some (e.g. this) of Dr. No. End"]);
        assert_eq!(parts("The U.S. has 3.5 parts. So"), ["The U.S. has 3.5 parts. ", "So"]);
        assert_eq!(parts("1. Mix\n2. Bake"), ["1. Mix", "2. Bake"]);
        assert_eq!(parts("See `a. b` there. Yes."), ["See `a. b` there. ", "Yes."]);
        assert_eq!(parts("One.\n```\nTwo. Three.\n```\nFour."), ["One.", "Four."]);
    }

    #[test]
    fn markers_are_told_from_words() {
        assert_eq!(without_marker("  - it"), Some(("-", "it")));
        assert_eq!(without_marker("12) it"), Some(("12)", "it")));
        assert_eq!(without_marker("-"), Some(("-", "")));
        for plain in ["", "it", "-it", "**It** is", "1.5 parts", "1999 was"] {
            assert_eq!(without_marker(plain), None, "{plain}");
        }
    }
}
