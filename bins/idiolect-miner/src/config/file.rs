//! The file layer: TOML with the line of every value.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::key::Key;
use super::value::Raw;
use super::{BACKEND_KEYS, Config, KEYS};

/// A value of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) raw: Raw,
    pub(crate) line: usize,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FileLayer {
    /// Settings by dotted name.
    pub(crate) entries: Vec<Entry>,
    /// For each `[[backends]]` entry its line and settings.
    pub(crate) backends: Vec<(usize, Vec<Entry>)>,
    /// What is wrong: line and message.
    pub(crate) problems: Vec<(usize, String)>,
}

/// Reads TOML; whatever is wrong with it is in `problems`, and the rest is still read.
pub(crate) fn parse(text: &str) -> FileLayer {
    let mut layer = FileLayer::default();
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        layer.problems.push((line_of(text, error.span()), error.message().to_owned()));
    }
    if layer.problems.is_empty() {
        walk(text, "", table.get_ref(), &mut layer);
    }
    layer.problems.sort_by_key(|(line, _)| *line);
    layer
}

fn walk(text: &str, prefix: &str, table: &DeTable<'_>, layer: &mut FileLayer) {
    for (name, value) in table {
        let line = line_of(text, Some(name.span()));
        let key = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        if key == "backends" {
            backends(text, line, value, layer);
        } else if find(KEYS, &key).is_some() {
            layer.entries.push(Entry { key, raw: Raw::from_toml(value), line });
        } else if is_section(&key) {
            match value.get_ref() {
                DeValue::Table(inner) => walk(text, &key, inner, layer),
                _ => layer.problems.push((line, format!("{key} is a section, write [{key}] and its keys below"))),
            }
        } else {
            let known = KEYS.iter().map(|k| k.name).chain(["backends"]);
            layer.problems.push((line, unknown(&key, known)));
        }
    }
}

fn backends(text: &str, line: usize, value: &Spanned<DeValue<'_>>, layer: &mut FileLayer) {
    let DeValue::Array(items) = value.get_ref() else {
        layer.problems.push((line, "backends is a list, write [[backends]] before each entry".to_owned()));
        return;
    };
    for item in items {
        let line = line_of(text, Some(item.span()));
        let DeValue::Table(table) = item.get_ref() else {
            layer.problems.push((line, "an entry of backends is a table, write [[backends]] before it".to_owned()));
            continue;
        };
        let mut entries = Vec::new();
        for (name, value) in table {
            let line = line_of(text, Some(name.span()));
            let key = name.get_ref().to_string();
            if find(BACKEND_KEYS, &key).is_some() {
                entries.push(Entry { key, raw: Raw::from_toml(value), line });
            } else {
                layer
                    .problems
                    .push((line, format!("backends: {}", unknown(&key, BACKEND_KEYS.iter().map(|k| k.name)))));
            }
        }
        entries.sort_by_key(|e| e.line);
        layer.backends.push((line, entries));
    }
}

fn find<'k, C>(keys: &'k [Key<C>], name: &str) -> Option<&'k Key<C>> {
    keys.iter().find(|k| k.name == name)
}

fn is_section(name: &str) -> bool {
    let prefix = format!("{name}.");
    KEYS.iter().any(|k: &Key<Config>| k.name.starts_with(&prefix))
}

/// Says that a key is unknown, and which one may have been meant.
pub(crate) fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = known.map(|k| (distance(key, k), k)).filter(|(d, k)| *d <= 2.max(k.len() / 4)).min();
    match near {
        Some((_, near)) => format!("unknown key {key}, did you mean {near}?"),
        None => format!("unknown key {key}"),
    }
}

/// Edits that turn one word into another (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let at = span.map_or(0, |s| s.start).min(text.len());
    text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_their_lines() {
        let layer = parse("network = \"none\"\n\n[axon]\nport = 9000\n\n[[backends]]\nkind = \"echo\"\n");
        assert_eq!(layer.problems, []);
        let lines: Vec<_> = layer.entries.iter().map(|e| (e.key.as_str(), e.line)).collect();
        assert!(lines.contains(&("network", 1)) && lines.contains(&("axon.port", 4)), "{lines:?}");
        assert_eq!(layer.backends.len(), 1);
        assert_eq!(layer.backends[0].1[0].line, 7);
    }

    #[test]
    fn unknown_keys_are_named_with_a_neighbour() {
        let layer = parse("[axon]\nprot = 1\n[axn]\nip = 2\n[[backends]]\nmodle = \"x\"\n");
        assert_eq!(
            layer.problems,
            [
                (2, "unknown key axon.prot, did you mean axon.port?".to_owned()),
                (3, "unknown key axn".to_owned()),
                (6, "backends: unknown key modle, did you mean model?".to_owned()),
            ]
        );
    }

    #[test]
    fn broken_toml_names_every_line() {
        let layer = parse("axon = [\nx == 1\n\ny = \"open\n");
        assert!(!layer.problems.is_empty());
        assert!(layer.problems.iter().all(|(line, message)| *line >= 1 && !message.is_empty()), "{:?}", layer.problems);
    }
}
