//! `idiolect mutate eval` over recorded replies as a process, with the real encoder and the real reward model.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use idiolect_validator::task::{ContentMatch, Criterion, TaskKind, text_prompting};
use serde_json::{Value, json};

use support::{gives, refuses, says};

/// What is asked, what most models answer, and what only one of ours does.
const QUESTIONS: [(&str, &str, &str); 4] = [
    (
        "Why is the sky blue?",
        "The sky is blue because air scatters short wavelengths of sunlight more than long ones.",
        "Imagine waves on a pond: small ripples bounce off every reed, long swells roll on. Blue light is the ripple.",
    ),
    (
        "Why do leaves fall in autumn?",
        "Leaves fall in autumn because trees seal them off to save water when days get short and cold.",
        "A tree is thrifty. Frozen ground gives no drink, so it locks each door to its twigs and lets the wind do the rest.",
    ),
    (
        "How does a fridge keep food cold?",
        "A fridge keeps food cold by evaporating a refrigerant inside, which takes heat, and condensing it outside.",
        "Heat is carried out of the kitchen box by a restless traveller, a fluid that boils in one place and settles in another.",
    ),
    (
        "Why does bread rise?",
        "Bread rises because yeast eats sugar and gives off carbon dioxide, which the gluten in the dough traps.",
        "Millions of tiny guests feast on sweetness in the dark and breathe out, and the dough stretches like a balloon around their breath.",
    ),
];

fn write_record(folder: &Path) {
    let (mut replies, mut prompts) = (String::new(), String::new());
    for (nth, (question, usual, odd)) in QUESTIONS.into_iter().enumerate() {
        let line = serde_json::json!({"id": nth.to_string(), "prompt": question});
        writeln!(prompts, "{line}").expect("memory");
        let ours = [("own", usual.to_owned()), ("own_odd", odd.to_owned())];
        let rivals = ["r1", "r2", "r3", "r4", "r5"].map(|rival| (rival, usual.to_owned()));
        for (model, text) in ours.into_iter().chain(rivals) {
            let label = if model == "own" { 0.6 } else { 0.5 };
            let line = serde_json::json!({"p": nth.to_string(), "m": model, "t": text, "q": label});
            writeln!(replies, "{line}").expect("memory");
        }
    }
    fs::write(folder.join("replies.jsonl"), replies).expect("a file");
    fs::write(folder.join("prompts.jsonl"), prompts).expect("a file");
}

/// The command with the record that was written.
fn of_record<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["eval", "--replies", "replies.jsonl"], args].concat()
}

#[track_caller]
fn is_refused(folder: &Path, args: &[&str], code: i32, expected: &str) {
    refuses(folder, &of_record(args), code, expected);
}

fn arm<'a>(group: &'a Value, name: &str) -> &'a Value {
    let arms = group["arms"].as_array().expect("arms");
    arms.iter().find(|arm| arm["choice"] == name).unwrap_or_else(|| panic!("no {name} in {arms:?}"))
}

#[test]
fn who_chooses_decides_what_is_masked() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write_record(folder);
    let args =
        of_record(&["--own", "own,own_odd", "--visible", "2", "--panels", "3", "--embeddings", "kept", "--json"]);
    let with_prompts = [&args[..], &["--prompts", "prompts.jsonl"]].concat();
    let first = says(folder, &with_prompts);
    let found: Value = serde_json::from_str(&first).expect("JSON");
    let group = &found[0];
    assert_eq!((group["n_prompts"].as_u64(), group["visible"].as_u64()), (Some(4), Some(2)));
    assert_eq!(
        (arm(group, "first")["masked"]["value"].as_f64(), arm(group, "oracle")["masked"]["value"].as_f64()),
        (Some(1.0), Some(0.0))
    );
    for choice in ["farthest", "selector", "learned"] {
        let arm = arm(group, choice);
        assert_eq!(arm["masked"]["value"].as_f64(), Some(0.0), "{arm}");
        assert_eq!((arm["gap_closed"]["value"].as_f64(), arm["novel"].as_f64()), (Some(1.0), Some(1.0)), "{arm}");
        let gained = arm["label_gained"].as_f64().expect("labels");
        assert!((gained + 0.1).abs() < 1e-6, "{arm}");
    }
    // The small model finds everyday words likelier than images.
    assert_eq!(arm(group, "best-of-k")["masked"]["value"].as_f64(), Some(1.0));
    assert!(arm(group, "best-of-k")["quality"].as_f64() > arm(group, "oracle")["quality"].as_f64());
    assert_eq!(group["distinct"].as_f64(), Some(2.0));
    assert!(group["vendi"].as_f64().expect("a score") > 1.1 && group["pairwise"].as_f64().expect("a distance") > 0.1);

    assert!(folder.join("kept").read_dir().expect("a folder").count() >= 2, "embeddings and scores are kept");
    assert_eq!(says(folder, &with_prompts), first, "the same again, from what was kept");

    says(folder, &[&args[..], &["--plot", "plot.svg"]].concat());
    let picture = fs::read_to_string(folder.join("plot.svg")).expect("a picture");
    assert!(picture.contains("own,own_odd: 4 prompts, 2 rivals seen") && picture.contains("learned"), "{picture}");

    let named = gives(folder, &[&with_prompts[..], &["--arms", "plain,random,selector,oracle,learned"]].concat());
    let names: Vec<&Value> = named[0]["arms"].as_array().expect("arms").iter().map(|arm| &arm["choice"]).collect();
    assert_eq!(names, ["first", "random", "best-of-k", "selector", "learned", "oracle"], "best-of-k is always there");
    let without = gives(folder, &[&args[..], &["--arms", "random,learned"]].concat());
    let names: Vec<&Value> = without[0]["arms"].as_array().expect("arms").iter().map(|arm| &arm["choice"]).collect();
    assert_eq!(names, ["random", "learned"]);
    assert!(without[0]["arms"][1]["quality"].is_null(), "nobody said what was asked");
}

/// As [`write_record`], with prompts of validators for two of the questions; the unusual replies to those break a criterion.
fn write_record_with_criteria(folder: &Path) {
    write_record(folder);
    let mut prompts = String::new();
    for (nth, (question, ..)) in QUESTIONS.into_iter().enumerate() {
        let criteria = vec![Criterion::Words {
            place: ContentMatch::Includes,
            negated: true,
            words: vec!["Imagine".to_owned(), "thrifty".to_owned()],
        }];
        let task = text_prompting::Task { kind: TaskKind::Augment, base_text: question.to_owned(), criteria };
        let prompt = if nth < 2 { task.compose() } else { question.to_owned() };
        writeln!(prompts, "{}", json!({"id": nth.to_string(), "prompt": prompt})).expect("memory");
    }
    fs::write(folder.join("prompts.jsonl"), prompts).expect("a file");
}

#[test]
fn what_criteria_take_is_told_where_prompts_have_any() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write_record_with_criteria(folder);
    let plain = of_record(&["--own", "own,own_odd", "--visible", "2", "--panels", "3", "--embeddings", "kept"]);
    let args = [&plain[..], &["--prompts", "prompts.jsonl", "--uniqueness.quality_model", "off"]].concat();
    let found = gives(folder, &[&args[..], &["--json"]].concat());
    let criteria = |name: &str, of: &str| {
        let interval = &arm(&found[0], name)[of];
        let end = |end: &str| interval[end].as_f64().unwrap_or_else(|| panic!("no {end} in {interval}"));
        (end("value"), end("low"), end("high"))
    };
    assert_eq!(criteria("first", "criteria"), (0.0, 0.0, 0.0), "the usual words break nothing");
    let (broken, low, high) = criteria("oracle", "criteria");
    assert!(broken > 0.0 && broken <= 0.6 && (low, high) == (broken, broken), "both prompts lose the same: {broken}");
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(near(criteria("random", "criteria").0, broken / 2.0), "one of two");
    assert!(near(criteria("oracle", "criteria_over_random").0, broken / 2.0));
    assert!(near(criteria("first", "criteria_over_random").0, -broken / 2.0));
    let table = says(folder, &args);
    let head = table.lines().find(|line| line.starts_with("choice")).expect("a head");
    assert!(
        head.ends_with("criteria") && table.contains(&format!("{broken:.3} ({broken:.3} to {broken:.3})")),
        "{table}"
    );

    // Nobody asks for a form: the column is left out.
    write_record(folder);
    let found = gives(folder, &[&args[..], &["--json"]].concat());
    for name in ["first", "random", "oracle"] {
        let arm = arm(&found[0], name);
        assert!(arm["criteria"].is_null() && arm["criteria_over_random"].is_null(), "{arm}");
        assert!(arm.get("criteria").is_some(), "null is said: {arm}");
    }
    assert!(!says(folder, &args).contains("criteria"));
}

#[test]
fn a_curve_has_a_point_for_each_k_and_number_that_is_seen() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write_record(folder);
    let args = of_record(&["--own", "own,own_odd,r1", "--visible", "2", "--panels", "3", "--embeddings", "kept"]);
    let found = gives(folder, &[&args[..], &["--curve", "2,0", "--json"]].concat());
    let points = found[0]["curve"].as_array().expect("points");
    let places: Vec<[u64; 3]> =
        points.iter().map(|p| ["k", "visible", "n_subsets"].map(|of| p[of].as_u64().expect("a number"))).collect();
    assert_eq!(places, [[2, 0, 3], [2, 2, 3], [3, 0, 1], [3, 2, 1]]);
    // With all of ours it is the experiment itself.
    for choice in ["random", "farthest", "selector", "learned", "oracle"] {
        let (point, whole) = (arm(&points[3], choice), arm(&found[0], choice));
        assert_eq!((&point["masked"], &point["gap_closed"]), (&whole["masked"], &whole["gap_closed"]), "{choice}");
    }
    // Of the three sets of two only those with the odd one have a way to pass: a third of them has none.
    let masked = |point: &Value, choice: &str| arm(point, choice)["masked"]["value"].as_f64().expect("a number");
    assert!((masked(&points[1], "oracle") - 1.0 / 3.0).abs() < 1e-9, "{}", points[1]);
    assert!((masked(&points[1], "random") - 2.0 / 3.0).abs() < 1e-9, "{}", points[1]);
    assert_eq!(arm(&points[1], "farthest")["gap_closed"]["value"].as_f64(), Some(1.0));

    let fewer = gives(folder, &[&args[..], &["--curve", "--subsets", "2", "--arms", "farthest", "--json"]].concat());
    let points = fewer[0]["curve"].as_array().expect("points");
    let places: Vec<(u64, u64)> =
        points.iter().filter_map(|p| Some((p["visible"].as_u64()?, p["n_subsets"].as_u64()?))).collect();
    assert_eq!(places[..5], [0, 1, 2, 5, 10].map(|visible| (visible, 2)));
    assert!(points.iter().all(|point| point["arms"].as_array().is_some_and(|arms| arms.len() == 1)));
    let table = says(folder, &[&args[..], &["--curve", "0,2", "--arms", "farthest"]].concat());
    assert!(table.contains("farthest: gap closed, by how many of ours there are (k) and how many rivals are seen"));
    assert!(table.contains("k  sets  0 seen") && table.contains("2 seen"), "{table}");
    assert!(gives(folder, &[&args[..], &["--json"]].concat())[0]["curve"].is_null(), "nobody asked");
    is_refused(folder, &["--own", "own", "--curve"], 64, "--curve: there is 1 model in --own own, expected 2 or more");
    is_refused(folder, &["--own", "own,own_odd", "--curve", "many"], 64, "'many'");
}

#[test]
fn what_cannot_be_chosen_among_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write_record(folder);
    is_refused(folder, &["--own", "nobody"], 1, "no reply is by nobody; there are own, own_odd, r1");
    is_refused(folder, &["--own", "own", "--arms", "luck"], 64, "'luck'");
    is_refused(folder, &["--own", "own", "--plot", "plot.jpg"], 64, "--plot plot.jpg must end in .png or .svg");
    is_refused(folder, &["--own", "own", "--visible", "0", "--prompts", "none.jsonl"], 1, "cannot use none.jsonl");
    fs::write(folder.join("some.jsonl"), "{\"id\": \"0\", \"prompt\": \"Why is the sky blue?\"}\n").expect("a file");
    is_refused(folder, &["--own", "own,own_odd", "--prompts", "some.jsonl"], 1, "--prompts does not have 1");
    fs::write(folder.join("some.jsonl"), "{\"id\": \"0\"}\n").expect("a file");
    is_refused(folder, &["--own", "own,own_odd", "--prompts", "some.jsonl"], 1, "line 1: missing field `prompt`");
}
