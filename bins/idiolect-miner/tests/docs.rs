//! The documents that are made from the code: with `IDIOLECT_BLESS=1` these tests write them anew.

use std::path::{Path, PathBuf};

use idiolect_miner::{config, metric_docs};

fn check(file: &str, generated: &str) {
    const BEGIN: &str = "<!-- generated: begin -->\n";
    const END: &str = "<!-- generated: end -->";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(file);
    let text = std::fs::read_to_string(&path).expect("the document");
    let (before, rest) = text.split_once(BEGIN).expect("the beginning of the generated part");
    let (found, after) = rest.split_once(END).expect("the end of the generated part");
    if found.trim() == generated.trim() {
        return;
    }
    if std::env::var_os("IDIOLECT_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}\n{}\n\n{END}{after}", generated.trim())).expect("written");
        return;
    }
    panic!("docs/{file} is not what the code says; run this test with IDIOLECT_BLESS=1 to write it anew");
}

#[test]
fn the_configuration_reference_is_what_the_code_reads() {
    check("configuration.md", &config::reference());
}

#[test]
fn the_list_of_metrics_is_what_the_code_reports() {
    check("metrics.md", &metric_docs::table());
}

/// Returns every run of characters in `text` that begins like the name of a metric of ours.
fn metric_names(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("idiolect_").map(|(at, _)| {
        let rest = &text[at..];
        &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())]
    })
}

#[test]
fn queries_ask_for_metrics_and_labels_that_exist() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let (_, questions) = text.split_once("## Useful questions").expect("the questions");
    let described = metric_docs::described();
    let mut n_queries = 0;
    for query in
        questions.lines().filter_map(|line| line.strip_suffix("` |")?.split_once("| `")).map(|(_, query)| query)
    {
        n_queries += 1;
        let mut asked = String::new();
        for name in metric_names(query) {
            let of = |name: &str, kind: &str| {
                described.iter().find(|doc| doc.name == name && (doc.kind == kind || kind.is_empty()))
            };
            let of_histogram =
                ["_bucket", "_sum", "_count"].iter().find_map(|suffix| of(name.strip_suffix(suffix)?, "histogram"));
            let doc = of(name, "").or(of_histogram).unwrap_or_else(|| panic!("{name} in {query} is not reported"));
            asked.push_str(&doc.meaning);
        }
        assert!(!asked.is_empty(), "{query} asks for nothing of ours");
        for matcher in query.split(['{', ',']).filter_map(|part| part.split_once("=\"")) {
            let (label, value) = (matcher.0, matcher.1.split('"').next().expect("a value"));
            assert!(asked.contains(&format!("`{label}`")), "{query}: no label {label} in {asked}");
            assert!(asked.contains(value) || asked.contains("category of the error"), "{query}: no {value} in {asked}");
        }
        for label in
            query.split("by (").skip(1).filter_map(|rest| rest.split(')').next()).filter(|label| *label != "le")
        {
            assert!(asked.contains(&format!("`{label}`")), "{query}: no label {label} in {asked}");
        }
    }
    assert!(n_queries >= 6, "{questions}");
}

#[test]
fn every_metric_in_the_sources_is_described() {
    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for group in ["bins", "crates"] {
        for member in std::fs::read_dir(root.join(group)).expect("a folder") {
            let folder = member.expect("an entry").path().join("src");
            if folder.is_dir() {
                sources(&folder, &mut files);
            }
        }
    }
    let described = metric_docs::described();
    let mut n_names = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source");
        // The constants that name metrics: a text that begins with the component's name.
        for quoted in text.split("const ").filter_map(|part| part.split_once(": &str = \"")?.1.split_once('"')) {
            let Some(name) = metric_names(quoted.0).next().filter(|name| *name == quoted.0) else { continue };
            n_names += 1;
            assert!(described.iter().any(|doc| doc.name == name), "{name} of {} is not described", file.display());
        }
    }
    assert!(n_names >= described.len(), "{n_names} names found for {} metrics", described.len());
}
