//! The recorded formats of all three generations; `tests/data` has the same rows from pandas and pyarrow.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use idiolect_dataset::{Counts, Entry, Generation, History, HistoryError, State, Step};

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/openvalidators").join(name)
}

fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn read(path: &Path) -> (Vec<Step>, Vec<State>, Counts) {
    let mut history = History::open(path).unwrap();
    let (mut steps, mut states) = (Vec::new(), Vec::new());
    for entry in history.by_ref() {
        match entry.unwrap() {
            Entry::Step(step) => steps.push(step),
            Entry::State(state) => states.push(state),
            other => panic!("{other:?}"),
        }
    }
    (steps, states, history.counts().clone())
}

/// Figures as text: what is not a number equals itself.
fn shown(path: &Path) -> Vec<String> {
    let (steps, states, _) = read(path);
    steps.iter().map(|step| format!("{step:?}")).chain(states.iter().map(|state| format!("{state:?}"))).collect()
}

fn product(step: &Step, i: usize, columns: &[&str]) -> f64 {
    columns.iter().map(|name| step.columns[*name][i]).product()
}

#[test]
fn every_generation_is_read_whole() {
    let counted = |rows, steps, states| Counts { rows, steps, states, ..Counts::default() };
    let (of_1_0, states, counts) = read(&recorded("history_v1.0.jsonl"));
    assert_eq!((counts, states.len()), (counted(12, 24, 0), 0));
    for pair in of_1_0.chunks(2) {
        assert_eq!((pair[0].name.as_str(), pair[1].name.as_str()), ("followup", "answer"));
        assert!(pair.iter().all(|step| step.generation == Generation::OpenValidators1_0 && step.calls.len() == 12));
        // The best one is the one of the highest reward, and the question is in the next prompt.
        for step in pair {
            let highest = step.calls.iter().max_by(|a, b| a.reward.partial_cmp(&b.reward).unwrap()).unwrap();
            assert_eq!(step.best.as_deref().map(str::trim), Some(highest.completion.trim()));
        }
        assert!(pair[1].prompt.contains(pair[0].best.as_deref().unwrap().trim()), "{}", pair[1].prompt);
    }

    let (of_1_2, states, counts) = read(&recorded("history_v1.2.0.jsonl"));
    assert_eq!((counts, states.len()), (counted(39, 36, 3), 3));
    let masks =
        ["blacklist_filter", "task_validator_filter", "nsfw_filter", "relevance_filter", "diversity_reward_model"];
    for step in &of_1_2 {
        for (i, call) in step.calls.iter().enumerate() {
            let of = |name: &str| step.columns[name][i];
            let weighed = 0.3 * of("dpo_reward_model_normalized")
                + 0.4 * of("rlhf_reward_model_normalized")
                + 0.3 * of("reciprocate_reward_model_normalized");
            assert!((weighed * product(step, i, &masks) - call.reward.unwrap()).abs() < 1e-5, "{step:?}");
        }
    }

    let (of_2_1, states, counts) = read(&recorded("history_text_prompting_2.1.jsonl"));
    assert_eq!((counts, states.len()), (counted(93, 84, 9), 9));
    let factors = [
        "blacklist_filter",
        "nsfw_filter",
        "relevance_filter",
        "diversity_reward_model_normalized",
        "task_validation_penalty_applied",
        "keyword_match_penalty_applied",
        "sentence_match_penalty_applied",
    ];
    for step in &of_2_1 {
        assert_eq!((step.generation, step.generation.profile()), (Generation::TextPrompting2, "text-prompting-2.1"));
        for (i, call) in step.calls.iter().enumerate() {
            let of = |name: &str| step.columns[name][i];
            let weighed = 0.6 * of("dpo_reward_model_normalized") + 0.4 * of("reciprocate_reward_model_normalized");
            assert!((weighed * product(step, i, &factors) - call.reward.unwrap()).abs() < 1e-5, "{step:?}");
            assert!(matches!(call.status, Some(200 | 403 | 408)), "{call:?}");
            assert_eq!(call.status == Some(200), !call.completion.is_empty());
        }
    }
    for state in states {
        assert!(
            state.weights.len() == 64
                && state.hotkeys.len() == 64
                && state.step.is_some()
                && state.origin.run.is_some()
        );
    }
}

#[test]
fn lines_tables_and_parquet_say_the_same() {
    for generation in ["v1.0", "v1.2", "v2.1"] {
        let lines = shown(&own(&format!("{generation}.jsonl")));
        assert!(lines.len() > 4);
        for kind in ["csv", "parquet"] {
            assert_eq!(shown(&own(&format!("{generation}.{kind}"))), lines, "{generation}.{kind}");
        }
    }
}

#[test]
fn packed_files_are_unpacked_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let lines = shown(&own("v2.1.jsonl"));
    for kind in ["jsonl", "csv"] {
        let plain = std::fs::read(own(&format!("v2.1.{kind}"))).unwrap();
        let zst = dir.path().join(format!("a.{kind}.zst"));
        std::fs::write(&zst, zstd::encode_all(&plain[..], 3).unwrap()).unwrap();
        assert_eq!(shown(&zst), lines);
        let gz = dir.path().join(format!("a.{kind}.gz"));
        // Several members behind each other, as append-only logs have them.
        let mut out = File::create(&gz).unwrap();
        for part in plain.chunks(plain.len() / 2 + 1) {
            let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap();
        }
        assert_eq!(shown(&gz), lines);
    }
}

#[test]
fn broken_rows_are_counted_and_stop_nothing() {
    let good = std::fs::read_to_string(own("v2.1.jsonl")).unwrap();
    let good = good.lines().next().unwrap();
    let mut file = Vec::new();
    for (nth, line) in [good, "{\"task_type\": ", "[1]", "null", "", "   ", "{\"a\": 1}", "{\"name\": \"\u{7f}", good]
        .iter()
        .enumerate()
    {
        file.extend_from_slice(line.as_bytes());
        file.push(b'\n');
        if nth == 3 {
            file.extend_from_slice(b"{\"task_type\": \"\xff\"}\n");
        }
    }
    let mut history = History::of_json_lines("made", &file[..]);
    assert_eq!(history.by_ref().filter(Result::is_ok).count(), 2);
    let counts = history.counts();
    assert_eq!((counts.rows, counts.steps, counts.unknown, counts.broken), (8, 2, 1, 5));
    assert_eq!(counts.described[0], "line 2: EOF while parsing a value, at column 13");
    assert!(counts.described[1].starts_with("line 3: invalid type: sequence"), "{counts:?}");

    let table = "name,task_type,prompt,completions,uids\naugment,t,p,\"['a', 'b']\",\"[1, 2]\"\naugment,t,p\naugment,t,p,\"['a', \",[1]\naugment,t,p,\"[\"\"a\"\"]\",[1]\n";
    let mut history = History::of_csv("made", table.as_bytes()).unwrap();
    assert_eq!(history.by_ref().filter(Result::is_ok).count(), 2);
    let counts = history.counts();
    assert_eq!((counts.rows, counts.broken), (4, 2));
    assert_eq!(
        counts.described,
        ["line 3: 3 fields, expected 5", "line 4: completions: the list does not end, at character 6"]
    );
}

#[test]
fn files_that_are_no_histories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let made = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let refused = |path: &Path| match History::open(path) {
        Ok(mut history) => history.find_map(Result::err).map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    assert!(refused(&made("a.txt", b"x")).unwrap().contains("a.txt is no history by its name, expected .jsonl"));
    assert!(refused(&dir.path().join("none.jsonl")).unwrap().contains("cannot read"));
    assert!(refused(&made("a.parquet", b"PAR1 but not really")).unwrap().ends_with("a.parquet is no Parquet"));
    assert!(refused(&made("a.jsonl.zst", b"not packed")).unwrap().contains("cannot read"));
    assert!(refused(&made("a.csv.gz", b"not packed")).unwrap().contains("a.csv.gz is no CSV"));
    assert_eq!(refused(&made("empty.jsonl", b"")), None);
    assert_eq!(refused(&made("empty.csv", b"")), None);
    let cut = std::fs::read(own("v2.1.parquet")).unwrap();
    assert!(refused(&made("cut.parquet", &cut[..cut.len() / 2])).unwrap().ends_with("is no Parquet"));
    let error = History::open(&made("b.txt", b"")).unwrap_err();
    assert!(matches!(error, HistoryError::Kind { .. }));
}
