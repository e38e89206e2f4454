//! Making a cut text end well.

/// Returns the text up to its last whole sentence, or the text itself where that would lose more than half of it, or
/// where it is code.
///
/// A text without any whole sentence loses at most a word that may be unfinished.
pub(crate) fn to_whole_sentence(text: &str) -> &str {
    let text = text.trim_end();
    if ends_sentence(text) || text.matches("```").count() % 2 == 1 {
        return text;
    }
    let mut ends = text
        .char_indices()
        .filter(|&(i, c)| is_end(c) && breaks_after(&text[i + c.len_utf8()..]) && !is_list_number(&text[..i]));
    if let Some((i, c)) = ends.next_back() {
        let whole = include_closing(text, i + c.len_utf8());
        if whole.chars().count() * 2 >= text.chars().count() {
            return whole;
        }
    }
    match text.rfind(char::is_whitespace) {
        Some(i) if !text[..i].trim_end().is_empty() => text[..i].trim_end(),
        _ => text,
    }
}

const fn is_end(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？')
}

const fn is_closing(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '”' | '’' | '»' | '*' | '`')
}

fn ends_sentence(text: &str) -> bool {
    text.trim_end_matches(is_closing).ends_with(is_end)
}

/// Says whether a sentence may end before `rest`: not inside "3.14" or "e.g.".
fn breaks_after(rest: &str) -> bool {
    rest.trim_start_matches(is_closing).chars().next().is_none_or(char::is_whitespace) || {
        // Scripts without spaces.
        rest.chars().next().is_some_and(|c| !c.is_ascii() && !is_end(c))
    }
}

/// Says whether a full stop after `before` only numbers a line: "2." is no sentence.
fn is_list_number(before: &str) -> bool {
    let line = before.rsplit('\n').next().unwrap_or_default().trim_start();
    !line.is_empty() && line.chars().all(|c| c.is_ascii_digit())
}

fn include_closing(text: &str, end: usize) -> &str {
    let rest = &text[end..];
    let closing = rest.len() - rest.trim_start_matches(is_closing).len();
    &text[..end + closing]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(to_whole_sentence(text), expected);
    }

    #[test]
    fn sentences_end_where_readers_would_end_them() {
        check("One two three. Four five six. Sev", "One two three. Four five six.");
        check("He said \"go home.\" And th", "He said \"go home.\"");
        check("Pi is about 3.14 and that is the num", "Pi is about 3.14 and that is the");
        check("Whole already.  ", "Whole already.");
        check("Whole (already.)", "Whole (already.)");
        check(
            "Short. A very long second sentence that was cut in the mid",
            "Short. A very long second sentence that was cut in the",
        );
        check("unfinish", "unfinish");
        check("", "");
        check("見よ。それは長い話だ。そして", "見よ。それは長い話だ。");
        check("Look:\n```\nlet x = 1. + y", "Look:\n```\nlet x = 1. + y");
        check("1. First thing\n2. Second thi", "1. First thing\n2. Second");
    }

    proptest! {
        #[test]
        fn the_result_is_a_prefix_and_never_empty(text in ".{0,80}") {
            let trimmed = to_whole_sentence(&text);
            prop_assert!(text.starts_with(trimmed));
            prop_assert_eq!(trimmed.is_empty(), text.trim().is_empty() && trimmed.is_empty());
            if !text.trim().is_empty() {
                prop_assert!(!trimmed.trim().is_empty());
            }
        }
    }
}
