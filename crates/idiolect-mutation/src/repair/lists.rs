use idiolect_validator::task::Criterion;

use super::Draft;
use super::prose::{Line, Prose, without_marker};
use crate::guard::Rules;

/// Takes markers of lists out, and what validators take for such: dashes and asterisks before spaces, numbers at sentences' ends.
pub(super) fn without_lists(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    if !rules.breaches(prose.text()).iter().any(|breach| *breach.criterion == Criterion::NoLists) {
        return Vec::new();
    }
    let mut out = String::with_capacity(prose.text().len());
    for line in prose.lines() {
        if line.is_fenced {
            push_line(&mut out, line, line.text);
            continue;
        }
        let mut rest = line.text;
        while let Some((_, after)) = without_marker(rest) {
            rest = after;
        }
        // A rule across the page.
        let is_rule = !line.text.trim().is_empty() && rest.trim().chars().all(|c| matches!(c, '-' | '*' | '+'));
        if is_rule {
            continue;
        }
        let start = line.start + line.text.len() - rest.len();
        let plain = plain_line(prose, start, rest);
        push_line(&mut out, line, &plain);
    }
    vec![Draft::new(out.trim(), "list markers taken out")]
}

fn push_line(out: &mut String, line: Line<'_>, text: &str) {
    if line.start > 0 && !out.is_empty() {
        out.push('\n');
    }
    out.push_str(text);
}

/// Rewrites what looks like a marker within a line.
fn plain_line(prose: &Prose<'_>, start: usize, line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let is_starred = line.char_indices().any(|(i, c)| {
        c == '*' && !prose.is_code(start + i) && line[i + 1..].chars().next().is_none_or(char::is_whitespace)
    });
    let mut expected = 1;
    let mut chars = line.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        let is_before_space = next.is_none_or(char::is_whitespace);
        let is_after_space = out.ends_with(char::is_whitespace);
        if prose.is_code(start + i) {
            out.push(c);
            continue;
        }
        match c {
            '-' if is_before_space => out.push('–'),
            '*' if is_before_space && is_after_space && next.is_some() => out.push('×'),
            '*' if is_starred => {}
            '+' if is_before_space && is_after_space => out.push_str("plus"),
            '•' | '‣' | '◦' if is_before_space => {
                out.truncate(out.trim_end().len());
                if out.ends_with(char::is_alphanumeric) && !line[i + c.len_utf8()..].trim().is_empty() {
                    out.push(',');
                }
            }
            '.' if is_before_space && out.ends_with(char::is_numeric) => {
                let number = out.rsplit(|c: char| !c.is_numeric()).next().unwrap_or_default();
                if number.parse() == Ok(expected) {
                    expected += 1;
                    out.push(')');
                } else if next.is_some() {
                    out.push(';');
                    while let Some((_, space)) = chars.next_if(|(_, c)| c.is_whitespace()) {
                        out.push(space);
                    }
                    let rest = chars.peek().map_or("", |(i, _)| &line[*i..]);
                    let word = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                    if prose.phrases().opens_sentence(word)
                        && let Some((_, first)) = chars.next()
                    {
                        out.extend(first.to_lowercase());
                    }
                }
                // At a line's end the number alone will do.
            }
            _ => out.push(c),
        }
    }
    out
}

/// Makes the list that is asked for: of another list, else of lines, or of sentences where lines have several.
pub(super) fn with_list(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    let breaches = rules.breaches(prose.text());
    let wanted = breaches.iter().find_map(|breach| match breach.criterion {
        Criterion::Bullets => Some(false),
        Criterion::Numbers => Some(true),
        _ => None,
    });
    let Some(is_numbered) = wanted else { return Vec::new() };
    let lines: Vec<Line<'_>> = prose.lines().collect();
    let n_lines = lines.iter().filter(|line| is_text(line)).count();
    let items: &[Items] = if lines.iter().any(|line| !line.is_fenced && without_marker(line.text).is_some()) {
        &[Items::Marked]
    } else if prose.sentences().len() * 2 > n_lines * 3 {
        &[Items::Sentences, Items::Lines]
    } else {
        &[Items::Lines]
    };
    let kind = if is_numbered { "numbers" } else { "bullets" };
    let drafts = items.iter().map(|items| {
        let (text, n_items) = listed(prose, &lines, *items, is_numbered);
        Draft::new(text, format!("{n_items} items given {kind}"))
    });
    drafts.collect()
}

/// What a list is made of.
#[derive(Clone, Copy)]
enum Items {
    /// The items of a list of another kind.
    Marked,
    Lines,
    Sentences,
}

/// Says whether a line is neither empty nor code nor what stands over others.
fn is_text(line: &Line<'_>) -> bool {
    let text = line.text.trim();
    !line.is_fenced && !text.is_empty() && !text.ends_with(':') && !text.starts_with('#')
}

fn listed(prose: &Prose<'_>, lines: &[Line<'_>], items: Items, is_numbered: bool) -> (String, usize) {
    let sentences = prose.sentences();
    let mut n_items = 0;
    let mut mark = |text: &str| {
        n_items += 1;
        if is_numbered { format!("{n_items}. {text}") } else { format!("- {text}") }
    };
    let mut out: Vec<String> = Vec::new();
    for line in lines {
        match (items, without_marker(line.text)) {
            (Items::Marked, Some((_, rest))) if !line.is_fenced => out.push(mark(rest)),
            (Items::Lines, _) if is_text(line) => out.push(mark(line.text.trim())),
            (Items::Sentences, _) if is_text(line) => {
                let within = line.start..line.start + line.text.len();
                let of_line = sentences.iter().filter(|sentence| within.contains(&sentence.start));
                out.extend(of_line.map(|sentence| mark(prose.text()[sentence.clone()].trim())));
            }
            _ => out.push(line.text.to_owned()),
        }
    }
    (out.join("\n").trim().to_owned(), n_items)
}
