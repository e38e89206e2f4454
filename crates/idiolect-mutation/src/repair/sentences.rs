use idiolect_validator::task::{ContentMatch, Criterion};

use super::Draft;
use super::prose::{Prose, n_words};
use crate::guard::Rules;

/// Takes out the sentences with words that must not be there.
pub(super) fn without_words(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for breach in rules.breaches(prose.text()) {
        let Criterion::Words { place: ContentMatch::Includes, negated: true, words } = breach.criterion else {
            continue;
        };
        let words: Vec<String> = words.iter().map(|word| word.to_lowercase()).collect();
        let has_words = |sentence: &str| {
            let sentence = sentence.to_lowercase();
            words.iter().any(|word| sentence.contains(word))
        };
        if let Some((text, n_sentences)) = without_sentences(prose, has_words) {
            drafts.push(Draft::new(text, format!("{n_sentences} sentences with unwanted words taken out")));
        }
    }
    drafts
}

/// Takes out the sentences that are so; `None` where there is none, or where more than a third of the words would go.
pub(super) fn without_sentences(prose: &Prose<'_>, is_unwanted: impl Fn(&str) -> bool) -> Option<(String, usize)> {
    let text = prose.text();
    let unwanted: Vec<_> =
        prose.sentences().into_iter().filter(|sentence| is_unwanted(&text[sentence.clone()])).collect();
    let n_lost: usize = unwanted.iter().map(|sentence| n_words(&text[sentence.clone()])).sum();
    if unwanted.is_empty() || n_lost * 3 > n_words(text) {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for sentence in &unwanted {
        out.push_str(&text[from..sentence.start]);
        from = sentence.end;
        // A line of which nothing is left goes as a whole.
        if (out.is_empty() || out.ends_with('\n')) && text[from..].starts_with('\n') {
            from += 1;
        }
    }
    out.push_str(&text[from..]);
    Some((out.trim().to_owned(), unwanted.len()))
}
