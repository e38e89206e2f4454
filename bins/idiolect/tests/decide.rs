//! `idiolect whatif`, `plan` and `ladder` as processes, and their reports in a browser.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn run(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command.env("XDG_CONFIG_HOME", folder).args(args).current_dir(folder).output().expect("it runs")
}

#[track_caller]
fn says(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn gives(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&says(folder, args)).expect("JSON")
}

#[track_caller]
fn refuses(folder: &Path, args: &[&str], code: i32, expected: &str) {
    let output = run(folder, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && said.contains(expected), "{args:?}: {:?} {said}", output.status);
}

const TOPICS: [&str; 8] = ["moss", "lamps", "bread", "rivers", "clocks", "bees", "ferries", "salt"];

/// Six models that say nearly the same of each topic; one of ours that says it, too, and one that does not.
fn write(folder: &Path) {
    let (mut population, mut prompts, mut same, mut other) =
        (String::new(), String::new(), String::new(), String::new());
    for topic in TOPICS {
        let _ = writeln!(prompts, "{}", json!({"id": topic, "prompt": format!("What is to be known about {topic}?")}));
        for nth in 0..6 {
            let text = format!("There is much to be known about {topic}, as model {nth} says.");
            let _ = writeln!(population, "{}", json!({"p": topic, "m": format!("model-{nth}"), "t": text}));
        }
        let text = format!("There is much to be known about {topic}, as model 1 says.");
        let _ = writeln!(
            same,
            "{}",
            json!({"p": topic, "m": "same", "t": text, "latency_ms": 900.0, "tokens": 100.0, "cost_usd": 0.0001})
        );
        let text =
            format!("My grandmother kept a drawer full of {topic}; nobody ever asked her why, and she never told.");
        let _ = writeln!(
            other,
            "{}",
            json!({"p": topic, "m": "other", "t": text, "latency_ms": 2700.0, "tokens": 310.0, "cost_usd": 0.00031})
        );
    }
    for (name, text) in
        [("replies.jsonl", population), ("prompts.jsonl", prompts), ("same.jsonl", same), ("other.jsonl", other)]
    {
        fs::write(folder.join(name), text).unwrap();
    }
}

const FIELD: [&str; 10] = [
    "--population",
    ".",
    "--uniqueness.encoder",
    "minilm",
    "--uniqueness.quality_model",
    "off",
    "--embeddings",
    "kept",
    "--steps",
    "40",
];

#[test]
fn the_better_of_two_is_named_with_what_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let args = [&["whatif", "same.jsonl", "other.jsonl"][..], &FIELD].concat();
    let report = gives(dir.path(), &[&args[..], &["--json", "--html", "whatif.html"]].concat());
    assert_eq!((report["better"].as_str(), report["n_prompts"].as_u64()), (Some("b"), Some(8)));
    let verdict = report["verdict"].as_str().unwrap();
    assert!(
        verdict.starts_with("B better: place 1.0 against ") && verdict.ends_with("99.9 % sure; 3.1 x the tokens"),
        "{verdict}"
    );
    let of = |figure: &str| {
        let all = report["differences"].as_array().unwrap();
        all.iter().find(|one| one["figure"] == figure).unwrap_or_else(|| panic!("{figure}: {report}")).clone()
    };
    assert_eq!((of("masked share")["a"].as_f64(), of("masked share")["b"].as_f64()), (Some(1.0), Some(0.0)));
    assert!((of("USD for 1,000 replies")["difference"]["value"].as_f64().unwrap() - 0.21).abs() < 1e-9);
    assert_eq!(gives(dir.path(), &[&args[..], &["--json"]].concat()), report, "kept embeddings give the same");
    let table = says(dir.path(), &[&args[..], &["--hour-price", "0.36"]].concat());
    // 0.9 and 2.7 seconds of an hour at 0.36 USD are 0.09 and 0.27 USD for a thousand.
    assert!(table.contains("0.190") && table.contains("0.580") && table.contains("B better"), "{table}");
    let html = fs::read_to_string(dir.path().join("whatif.html")).unwrap();
    assert!(html.contains("B better: place 1.0") && html.contains("<svg"), "{html}");
    refuses(
        dir.path(),
        &[&["whatif", "replies.jsonl", "other.jsonl"][..], &FIELD].concat(),
        64,
        "model-0 is in the population, too",
    );
    refuses(
        dir.path(),
        &[&["whatif", "same.jsonl", "same.jsonl"][..], &FIELD].concat(),
        64,
        "same is another contestant",
    );
    refuses(dir.path(), &[&args[..], &["--hour-price", "-1"]].concat(), 64, "expected US dollars, at least 0");
}

const KNOWN: [&str; 12] = [
    "plan",
    "--burn-tao",
    "1",
    "--tao-usd",
    "400",
    "--alpha-tao",
    "0.05",
    "--emission-per-tempo",
    "100",
    "--today",
    "2026-11-22",
    "--gpu-usd-per-hour=0.5",
];

#[test]
fn a_plan_says_dont_where_it_is_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| gives(dir.path(), &[&KNOWN[..], more, &["--json"]].concat());
    assert_eq!(plan(&["--weight-share", "0.001:0.0009:0.0011"])["verdict"], "do");
    assert_eq!(plan(&["--weight-share", "0.0002"])["verdict"], "dont");
    let text = says(dir.path(), &[&KNOWN[..], &["--weight-share", "0.0002", "--explain"]].concat());
    assert!(text.starts_with("don't: it costs 12.00 USD a day and earns 8.00; the burn of 1 TAO (400 USD)"), "{text}");
    assert!(text.contains("0.000200 x 100 x 20.000 = 0.4000") && text.contains("2026-11-22  flag"), "{text}");

    let snapshot =
        "date = \"2026-11-01\"\nregistrations_per_day = 3\nincentives = [5, 4, 3, 2, 1, 0, 0]\nn_miners = 7\n";
    fs::write(dir.path().join("snapshot.toml"), snapshot).unwrap();
    let placed = plan(&["--snapshot", "snapshot.toml", "--place", "6:5:7"]);
    assert!(placed["chances"]["pruned"].as_f64().unwrap() > 0.5, "{placed}");
    assert!(placed["warnings"][0].as_str().unwrap().contains("21 days old"), "{placed}");

    for (preset, reason) in [
        ("sn1-apex", "Apex"),
        ("sn11-trajectory", "TrajectoryRL"),
        ("classic-sn1", "nothing is paid"),
        ("local", "nothing of value"),
    ] {
        refuses(dir.path(), &[&KNOWN[..], &["--weight-share", "0.5", "--preset", preset]].concat(), 1, reason);
    }
    refuses(dir.path(), &["plan", "--preset", "sn99"], 64, "there is no sn99");
    refuses(dir.path(), &["plan"], 1, "give --burn-tao");
    refuses(dir.path(), &[&KNOWN[..], &[]].concat(), 1, "nothing says what share would be earned");
    refuses(dir.path(), &["plan", "--burn-tao", "-3"], 64, "burn_tao is -3, expected a number of at least 0");
    refuses(dir.path(), &["plan", "--place", "3:x"], 64, "expected VALUE or VALUE:LOW:HIGH");
    fs::write(
        dir.path().join("arena.json"),
        "{\"standings\": [{\"name\": \"x\", \"contestant\": true}, {\"name\": \"y\", \"contestant\": true}]}",
    )
    .unwrap();
    refuses(
        dir.path(),
        &[&KNOWN[..], &["--arena", "arena.json"]].concat(),
        64,
        "arena.json has x, y; expected one of them",
    );
}

#[test]
fn what_was_shown_counts_for_the_configuration_that_showed_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let configuration = "data_dir = \"data\"\n[[backends]]\nkind = \"recorded\"\nmodel = \"recorded:other.jsonl?prompts=prompts.jsonl\"\n[mutation]\nenabled = false\n[candidates]\ncount = 1\n[uniqueness]\nencoder = \"off\"\nquality_model = \"off\"\n";
    fs::write(dir.path().join("miner.toml"), configuration).unwrap();
    fs::write(
        dir.path().join("gates.toml"),
        "[arena]\nsteps = 40\n[local]\nsteps = 5\nmasked_share = 1\nplace_part = 1\nmissed = 100\n",
    )
    .unwrap();
    let run = [&["arena", "run", "--contestant", "miner.toml", "--json", "--html", "run.html"][..], &FIELD].concat();
    fs::write(dir.path().join("run.json"), says(dir.path(), &run)).unwrap();
    let common = ["--config", "miner.toml", "--gates", "gates.toml"];
    let status = |more: &[&str]| gives(dir.path(), &[&["ladder", "status"][..], &common, more, &["--json"]].concat());
    let standings = |report: &Value| -> Vec<String> {
        report["rungs"].as_array().unwrap().iter().map(|rung| rung["standing"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(standings(&status(&[])), ["open", "open", "open", "open"]);
    let record = |more: &[&str]| says(dir.path(), &[&["ladder", "record"][..], more, &common].concat());
    let said = record(&["arena", "run.json"]);
    assert!(said.contains("passed") && said.contains("1.0 (1.0 to 1.0) of 7"), "{said}");
    // A validators' log, of whoever had uid 7 there.
    let log = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../crates/idiolect-dataset/tests/data/openvalidators/history_text_prompting_2.1.jsonl.zst")
        .display()
        .to_string();
    record(&["local", &log, "--uid", "7"]);
    assert_eq!(standings(&status(&[])), ["passed", "passed", "open", "open"]);
    assert_eq!(status(&["--require", "local"])["rungs"][1]["record"]["figures"]["batch"], 12.0);
    refuses(
        dir.path(),
        &[&["ladder", "status", "--require", "test"][..], &common].concat(),
        1,
        "the ladder up to test is not passed",
    );
    refuses(
        dir.path(),
        &[&["ladder", "record", "test", &log][..], &common].concat(),
        64,
        "a log needs --uid or --hotkey",
    );
    refuses(
        dir.path(),
        &[&["ladder", "record", "local", "run.json"][..], &common].concat(),
        64,
        "is a report of the arena",
    );
    refuses(
        dir.path(),
        &[&["ladder", "record", "moon", "run.json"][..], &common].concat(),
        64,
        "expected arena, local, test or target",
    );

    // Where it listens changes nothing; what it says, and with which texts, does.
    fs::write(dir.path().join("miner.toml"), format!("{configuration}[axon]\nport = 9000\n")).unwrap();
    assert_eq!(standings(&status(&[])), ["passed", "passed", "open", "open"]);
    fs::write(dir.path().join("miner.toml"), configuration.replace("count = 1", "count = 2")).unwrap();
    assert_eq!(standings(&status(&[])), ["void", "void", "open", "open"]);
    refuses(
        dir.path(),
        &[&["ladder", "record", "arena", "run.json"][..], &common].concat(),
        1,
        "it has changed since, and has to be run again",
    );
}

/// A browser, where end-to-end tests are asked for.
fn browser() -> Option<PathBuf> {
    if std::env::var("IDIOLECT_E2E").as_deref() != Ok("1") {
        let _ = writeln!(std::io::stderr(), "skipped: reports are looked at in a browser with IDIOLECT_E2E=1");
        return None;
    }
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = ["chromium", "chromium-browser", "google-chrome"]
        .iter()
        .find_map(|name| std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file()));
    Some(named.or(found).expect("IDIOLECT_E2E=1 needs Chromium: in CHROMIUM, or in PATH"))
}

/// What a page measures of itself, as text in it.
const MEASURE: &str = "<script>addEventListener('load',()=>{const o=[];\
document.querySelectorAll('svg').forEach(s=>{const b=s.getBoundingClientRect();let out=0;\
s.querySelectorAll('text').forEach(t=>{const r=t.getBoundingClientRect();if(r.left<b.left-2||r.right>b.right+2||r.top<b.top-2||r.bottom>b.bottom+2)out++});\
o.push([Math.round(b.width),Math.round(b.height),out])});\
document.body.insertAdjacentHTML('beforeend','<pre id=\"measured\">'+JSON.stringify({svgs:o,wide:document.documentElement.scrollWidth,window:innerWidth})+'</pre>')})</script>";

#[test]
fn reports_are_whole_in_a_browser() {
    let Some(browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let run = [
        &["arena", "run", "--contestant", "same.jsonl", "--contestant", "other.jsonl", "--html", "run.html"][..],
        &FIELD,
    ]
    .concat();
    says(dir.path(), &run);
    let html = fs::read_to_string(dir.path().join("run.html")).unwrap();
    let n_pictures = html.matches("<figure>").count();
    assert!(n_pictures >= 6, "place, place over time, margin, latency, tokens, cost: {n_pictures}");
    fs::write(dir.path().join("measured.html"), html.replace("</body>", &format!("{MEASURE}</body>"))).unwrap();
    for (width, height) in [(1200, 900), (500, 900)] {
        let shot = dir.path().join(format!("{width}.png"));
        let output = Command::new(&browser)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--virtual-time-budget=3000",
                "--hide-scrollbars",
            ])
            .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
            .arg(format!("--window-size={width},{height}"))
            .arg(format!("--screenshot={}", shot.display()))
            .arg("--dump-dom")
            .arg(format!("file://{}", dir.path().join("measured.html").display()))
            .output()
            .expect("the browser runs");
        let dom = String::from_utf8_lossy(&output.stdout);
        let measured = dom.rsplit_once("<pre id=\"measured\">").and_then(|(_, rest)| rest.split("</pre>").next());
        let measured = measured.unwrap_or_else(|| panic!("{}: {dom}", String::from_utf8_lossy(&output.stderr)));
        let measured: Value = serde_json::from_str(measured).unwrap();
        let svgs = measured["svgs"].as_array().unwrap();
        assert_eq!(svgs.len(), n_pictures);
        for svg in svgs {
            assert!(svg[0].as_f64() > Some(200.0) && svg[1].as_f64() > Some(30.0), "{measured}");
            assert_eq!(svg[2], 0, "text beyond its picture at {width}: {measured}");
        }
        assert!(
            measured["wide"].as_f64() <= measured["window"].as_f64(),
            "the page is wider than its window: {measured}"
        );
        let picture = image::open(&shot).expect("a screenshot").to_rgb8();
        let mut colours: Vec<[u8; 3]> = picture.pixels().map(|pixel| pixel.0).collect();
        colours.sort_unstable();
        colours.dedup();
        assert!(colours.len() > 20, "{} colours", colours.len());
    }
}
