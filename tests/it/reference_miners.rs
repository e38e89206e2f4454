//! `docs/reference-miners.md` names tests that are there.

use std::path::Path;

#[test]
fn every_bug_in_the_table_has_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = std::fs::read_to_string(root.join("docs/reference-miners.md")).expect("the table");
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1).filter(|line| !line.starts_with("| -"));
    let mut n_rows = 0;
    for row in rows {
        n_rows += 1;
        let tests = row.trim_end_matches('|').rsplit('|').next().expect("a last column");
        // The parts between back quotes.
        let tests: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test in {row}");
        for test in tests {
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{test} is not FILE::TEST"));
            let source = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            let found = source.find(&format!("fn {name}(")).unwrap_or_else(|| panic!("no {name} in {file}"));
            // An attribute, a note on it, `async`: little stands between the mark of a test and its name.
            let before = source[..found].trim_end_matches("async ").trim_end();
            assert!(before.ends_with("test]") || before.ends_with(")]"), "{test} is no test");
        }
    }
    assert!(n_rows >= 20, "{n_rows} rows");
}
