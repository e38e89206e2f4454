//! What can be counted in a text without knowing what it is about.

/// How many figures [`style`] gives.
pub(super) const N: usize = 16;

/// Returns lengths, layout and turns of speech of a text.
#[expect(clippy::cast_precision_loss, reason = "counts of words")]
pub(super) fn style(text: &str) -> [f64; N] {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    let n = words.len().max(1) as f64;
    let ends = |pair: &[u8]| pair[0] == b'.' || pair[0] == b'!' || pair[0] == b'?';
    let n_sentences =
        1 + lower.as_bytes().windows(2).filter(|pair| ends(pair) && pair[1].is_ascii_whitespace()).count();
    let mut distinct = words.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let share = |count: usize| count as f64 / n;
    let is = |holds: bool| f64::from(u8::from(holds));
    let of_words = |wanted: &[&str]| words.iter().filter(|word| wanted.contains(word)).count();
    let n_characters = text.chars().count();
    [
        n.ln_1p(),
        n.ln_1p().powi(2),
        (n / n_sentences as f64).ln(),
        is(text.lines().any(is_numbered)),
        is(text.lines().any(is_bulleted)),
        is(text.contains("**")),
        share(text.matches('\n').count()),
        distinct.len() as f64 / n.powf(0.8),
        share(words.iter().map(|word| word.chars().count()).sum()),
        share(of_words(&["i", "i'm", "i've", "my"])) * 10.0,
        is(["sure", "certainly", "of course"].iter().any(|opening| lower.starts_with(opening))),
        is(lower.contains("as an ai")),
        text.chars().filter(char::is_ascii_digit).count() as f64 / (n_characters + 1) as f64 * 10.0,
        is(text.ends_with(['.', '!', '?'])),
        share(of_words(&["you", "your", "you're"])) * 10.0,
        (lower.matches("however").count() + lower.matches("overall").count() + lower.matches("in conclusion").count())
            as f64,
    ]
}

fn is_numbered(line: &str) -> bool {
    let rest = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() < line.trim_start().len() && rest.starts_with(['.', ')']) && rest[1..].starts_with([' ', '\t'])
}

fn is_bulleted(line: &str) -> bool {
    let line = line.trim_start();
    let bullet = line.chars().next().filter(|c| "-*•".contains(*c));
    bullet.is_some_and(|bullet| line[bullet.len_utf8()..].starts_with([' ', '\t']))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layout_and_turns_are_seen() {
        let list = style("Sure, here are three:\n1. One.\n2) Two.");
        assert_eq!((list[3], list[4], list[10]), (1.0, 0.0, 1.0));
        let bullets = style("As an AI I cannot. But:\n- **one**\n• two");
        assert_eq!((bullets[3], bullets[4], bullets[5], bullets[11], bullets[13]), (0.0, 1.0, 1.0, 1.0, 0.0));
        let prose = style("Air scatters light. 3.5 of it, however, passes! Why?");
        assert_eq!((prose[3], prose[4], prose[13], prose[15]), (0.0, 0.0, 1.0, 1.0));
        assert!((prose[2] - (9.0_f64 / 3.0).ln()).abs() < 1e-12, "three sentences of nine words: {}", prose[2]);
    }

    proptest! {
        #[test]
        fn any_text_has_finite_figures(text in ".{0,200}") {
            prop_assert!(style(&text).iter().all(|figure| figure.is_finite()));
        }
    }
}
