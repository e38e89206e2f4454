//! The documents that are made from the code: with `IDIOLECT_BLESS=1` these tests write them anew.

use std::path::PathBuf;

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
