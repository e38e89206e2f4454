use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::testdata;

fn str_of(value: &PyValue<'_>, table: UnicodeTable) -> String {
    let mut text = String::new();
    value.write_str(&mut text, table);
    text
}

fn check(json: &str, expected: &str) {
    assert_eq!(str_of(&PyValue::from_json(json).unwrap(), UnicodeTable::Python311), expected, "{json}");
}

#[test]
fn recorded_values_print_as_in_python() {
    // The vectors are read as text, because integers of any size get lost otherwise.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vectors/body_hash.json");
    let text = std::fs::read_to_string(path).unwrap();
    let fields = crate::json_object::fields(&text).unwrap();
    let (_, single) = fields.iter().find(|(key, _)| key == "single").unwrap();
    let cases: Vec<&RawValue> = serde_json::from_str(single.get()).unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let fields: HashMap<_, _> = crate::json_object::fields(case.get()).unwrap().into_iter().collect();
        let expected: String = serde_json::from_str(fields["python_str"].get()).unwrap();
        check(fields["json"].get(), &expected);
    }
}

#[test]
fn numbers_print_as_in_python() {
    check("-0", "0");
    check("-0.0", "-0.0");
    check("1e400", "inf");
    check("-1e400", "-inf");
    check("123456789012345678901234567890", "123456789012345678901234567890");
    check("0.0001", "0.0001");
    check("0.00001234", "1.234e-05");
    check("1E5", "100000.0");
    check("9999999999999998.0", "9999999999999998.0");
    check("1.7976931348623157e308", "1.7976931348623157e+308");
    check("5e-324", "5e-324");
    assert!(matches!(PyValue::from_json(&"1".repeat(4301)), Err(PyValueError::LongInteger(4301))));
    assert!(PyValue::from_json(&"1".repeat(4300)).is_ok());
}

#[test]
fn a_repeated_key_keeps_its_place_and_takes_the_last_value() {
    check(r#"{"a": 1, "b": 2, "a": 3}"#, "{'a': 3, 'b': 2}");
}

#[test]
fn half_a_surrogate_pair_is_refused() {
    assert!(PyValue::from_json(r#"["\ud800"]"#).is_err());
}

#[test]
fn deep_nesting_is_refused() {
    assert!(PyValue::from_json(&"[".repeat(100_000)).is_err());
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    assert!(PyValue::from_json(&deep).is_err());
}

#[test]
fn every_code_point_is_printable_where_the_recording_says() {
    let recorded = testdata::vectors("python_nonprintable.json");
    let base = ranges(&recorded["base"]["non_printable"]);
    let check = |table: UnicodeTable, is_escaped: &dyn Fn(u32) -> bool| {
        for c in '\0'..=char::MAX {
            assert_eq!(table.is_printable(c), !is_escaped(u32::from(c)), "{table:?} {c:?}");
        }
    };
    let within = |ranges: &[(u32, u32)], c: u32| contains(ranges, char::from_u32(c).unwrap());
    check(UnicodeTable::Python311, &|c| within(&base, c));
    let others = recorded["other_versions"].as_object().unwrap();
    assert_eq!(UnicodeTable::all().count(), 1 + others.len());
    for (i, difference) in others.values().enumerate() {
        assert_eq!(OTHERS[i].python, difference["python"].as_str().unwrap());
        let printable = ranges(&difference["printable_there_not_in_base"]);
        let non_printable = ranges(&difference["non_printable_there_but_printable_in_base"]);
        check(UnicodeTable::Other(i), &|c| (within(&base, c) && !within(&printable, c)) || within(&non_printable, c));
    }
}

fn ranges(value: &Value) -> Vec<(u32, u32)> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Writes the table file anew from the recording and compares; with `IDIOLECT_BLESS` set it writes the file.
#[test]
fn the_tables_are_those_of_the_recording() {
    let recorded = testdata::vectors("python_nonprintable.json");
    let list = |value: &Value| {
        let pairs: Vec<_> = ranges(value).iter().map(|(first, last)| format!("({first}, {last})")).collect();
        let lines: Vec<_> = pairs.chunks(8).map(|line| format!("    {},\n", line.join(", "))).collect();
        if lines.is_empty() { "&[]".to_owned() } else { format!("&[\n{}]", lines.concat()) }
    };
    let mut text = String::from(
        "//! Generated from `python_nonprintable.json` by the test `the_tables_are_those_of_the_recording`.\n\n",
    );
    text += "use super::Difference;\n\n";
    text += "/// What Python 3.11 escapes, in inclusive ranges.\n";
    text += &format!("pub(super) const BASE: &[(u32, u32)] = {};\n\n", list(&recorded["base"]["non_printable"]));
    text += "/// What other versions do differently, oldest first.\npub(super) const OTHERS: &[Difference] = &[\n";
    for difference in recorded["other_versions"].as_object().unwrap().values() {
        text += &format!(
            "Difference {{\n    python: {},\n    printable: {},\n    non_printable: {},\n}},\n",
            difference["python"],
            list(&difference["printable_there_not_in_base"]),
            list(&difference["non_printable_there_but_printable_in_base"]),
        );
    }
    text += "];\n";
    if std::env::var_os("IDIOLECT_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/python_repr/tables.rs"), &text).unwrap();
    }
    assert!(text == include_str!("tables.rs"), "run this test with IDIOLECT_BLESS=1 to write the file anew");
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        let _ = PyValue::from_json(&text);
    }

    #[test]
    fn strings_print_without_loss_of_ascii(text in "[ -&(-\\[\\]-~]{0,40}") {
        // Without single quotes and backslashes nothing is escaped.
        let value = PyValue::List(vec![PyValue::Str(text.as_str().into())]);
        prop_assert_eq!(str_of(&value, UnicodeTable::Python311), format!("['{text}']"));
    }

    #[test]
    fn floats_read_back(value: f64) {
        let text = str_of(&PyValue::Float(value), UnicodeTable::Python311);
        let read: f64 = text.parse().unwrap();
        prop_assert!(read == value || (read.is_nan() && value.is_nan()), "{}", text);
    }

    #[test]
    fn lists_of_strings_print_as_values_do(texts in prop::collection::vec(any::<String>(), 0..5)) {
        let value = PyValue::List(texts.iter().map(|t| PyValue::Str(t.as_str().into())).collect());
        for table in UnicodeTable::all() {
            let mut text = String::new();
            PyText::write_str(texts.as_slice(), &mut text, table);
            prop_assert_eq!(text, str_of(&value, table));
        }
    }
}
