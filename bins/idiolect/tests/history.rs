//! `idiolect history` as a process.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The tool in a folder of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("written");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a text")
    }

    fn tool(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
        command.env_clear().env("HOME", self.0.path()).current_dir(self.0.path()).arg("history").args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.tool(args).spawn().expect("it runs");
        // What is refused before anything is read breaks the pipe.
        drop(child.stdin.take().expect("a pipe").write_all(input));
        child.wait_with_output().expect("it ends")
    }

    #[track_caller]
    fn says(&self, args: &[&str], input: &[u8]) -> String {
        let output = self.run(args, input);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Expects a failure that says each of `words`, in one line where it is not about the command line.
    #[track_caller]
    fn fails(&self, args: &[&str], input: &[u8], code: i32, words: &[&str]) {
        let output = self.run(args, input);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
        for word in words {
            assert!(errors.contains(word), "{args:?}: {errors}\nlacks {word:?}");
        }
        assert!(code == 64 || errors.lines().count() == 1, "{errors}");
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    }

    /// Says how many replies a history has.
    #[track_caller]
    fn n_replies(&self, history: &str) -> usize {
        self.says(&["export", "--history", history, "-"], b"").lines().count()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn reply(id: &str, part: u32, text: Option<&str>, time_ms: i64) -> Value {
    json!({
        "reply_id": id, "part": part, "caller": "5Caller", "prompt_hash": "hash", "encoder": "test",
        "embedding": [0.6, -0.8], "text": text, "time_ms": time_ms,
    })
}

/// As many lines of an export.
fn lines(n: usize) -> String {
    (0..n).fold(String::new(), |lines, i| format!("{lines}{}\n", reply(&i.to_string(), 0, Some("text"), 1)))
}

#[test]
fn a_history_moves_as_text() {
    let place = Place::new();
    let others = json!({
        "reply_id": "x", "part": 0, "caller": "", "prompt_hash": "", "encoder": "another",
        "embedding": [1.0e-38, 3.0e38, 0.333_333_34], "text": "ünïcode \"🦀\"\n\u{1}", "time_ms": -5,
    });
    let all = [reply("a", 0, Some("one"), 1), reply("a", 1, None, 2), others];
    // Blank lines, the ends of lines of other systems and none at the end.
    let written = format!("{}\r\n\n  \n{}\n{}", all[0], all[1], all[2]);
    place.write("in.jsonl", &written);
    let said = place.says(&["import", "--history", "one.sqlite", "in.jsonl"], b"");
    assert_eq!(said, "imported 3 replies into one.sqlite, which has 3 now\n");
    let said = place.says(&["export", "--history", "one.sqlite", "out.jsonl"], b"");
    assert_eq!(said, "exported 3 replies to out.jsonl\n");
    let exported = place.read("out.jsonl");
    let as_f32 = |value: &Value| -> Value {
        let mut value = value.clone();
        let values = value["embedding"].as_array().expect("a list");
        #[expect(clippy::cast_possible_truncation, reason = "as it is kept")]
        let values: Vec<f32> = values.iter().map(|v| v.as_f64().expect("a number") as f32).collect();
        value["embedding"] = json!(values);
        value
    };
    for (line, expected) in exported.lines().zip(&all) {
        assert_eq!(as_f32(&serde_json::from_str(line).expect("JSON")), as_f32(expected));
    }
    assert_eq!(exported.lines().count(), 3);

    // Through a pipe into a second history, of a miner's data directory.
    let through = place.run(&["export", "--history", "one.sqlite", "-"], b"").stdout;
    assert_eq!(text(&through), exported);
    let said: Value = serde_json::from_str(&place.says(&["import", "--data-dir", "data", "-", "--json"], &through))
        .expect("one object");
    assert_eq!(said, json!({ "imported": 3, "replies": 3 }));
    assert!(place.path("data/idiolect.sqlite").exists());
    place.says(&["export", "--data-dir", "data", "again.jsonl"], b"");
    assert_eq!(place.read("again.jsonl"), exported);

    // What is there already is replaced.
    place.write("more.jsonl", format!("{}\n{}", reply("a", 0, Some("other"), 1), reply("b", 0, Some("new"), 2)));
    let said = place.says(&["import", "--history", "one.sqlite", "more.jsonl"], b"");
    assert_eq!(said, "imported 2 replies into one.sqlite, which has 4 now\n");
    let now = place.says(&["export", "--history", "one.sqlite", "-"], b"");
    assert!(now.contains("\"other\"") && !now.contains("\"one\""), "{now}");
    let nothing = place.says(&["import", "--history", "one.sqlite", "-"], b"\n");
    assert_eq!(nothing, "imported 0 replies into one.sqlite, which has 4 now\n");
}

#[cfg(unix)]
#[test]
fn only_the_owner_reads_an_export_and_no_half_of_one_is_left() {
    use std::os::unix::fs::PermissionsExt as _;

    let place = Place::new();
    place.says(&["import", "--history", "history.sqlite", "-"], lines(2000).as_bytes());
    place.says(&["export", "--history", "history.sqlite", "out.jsonl"], b"");
    for name in ["out.jsonl", "history.sqlite"] {
        let mode = fs::metadata(place.path(name)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let before = place.read("out.jsonl");
    // Those of SQLite come and go.
    let names = || {
        let names = fs::read_dir(place.path("")).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        names.filter(|name| !name.to_string_lossy().starts_with("history.sqlite")).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["out.jsonl"]);
    place.fails(
        &["export", "--history", "history.sqlite", "out.jsonl"],
        b"",
        1,
        &["cannot export to out.jsonl", "there already"],
    );
    place.fails(&["export", "--history", "history.sqlite", "."], b"", 1, &["there already"]);
    place.fails(&["export", "--history", "history.sqlite", "none/out.jsonl"], b"", 1, &["none/out.jsonl", "No such"]);
    assert!(place.read("out.jsonl") == before, "it is as it was");
    assert_eq!(names(), ["out.jsonl"]);

    // The reader of an export may go away.
    let mut child = place.tool(&["export", "--history", "history.sqlite", "-"]).spawn().expect("it runs");
    let mut out = child.stdout.take().expect("a pipe");
    out.read_exact(&mut [0; 10]).expect("some bytes");
    drop(out);
    let ended = child.wait_with_output().expect("it ends");
    assert!(ended.status.success() && ended.stderr.is_empty(), "{}", text(&ended.stderr));
}

#[test]
fn of_a_bad_file_nothing_is_imported() {
    let place = Place::new();
    let good = reply("a", 0, Some("text"), 1).to_string();
    let with = |key: &str, value: Value| {
        let mut bad = reply("a", 0, Some("text"), 1);
        bad[key] = value;
        bad.to_string()
    };
    let half = &good[..good.len() / 2];
    for (bad, words) in [
        (b"nonsense".to_vec(), "expected ident at column 2"),
        (half.as_bytes().to_vec(), "EOF while parsing"),
        ([good.as_bytes(), b"x"].concat(), "trailing characters"),
        (good.replace("text\"", "text\u{0}\"").replace('\0', "\u{1}").into_bytes(), "control character"),
        ([&good.as_bytes()[..20], b"\xff", &good.as_bytes()[20..]].concat(), "is not a reply"),
        (with("reply_id", json!(3)).into_bytes(), "invalid type: integer `3`, expected a string"),
        (with("part", json!(-1)).into_bytes(), "invalid value: integer `-1`"),
        (with("time_ms", json!(1.5)).into_bytes(), "floating point `1.5`"),
        (with("mood", json!("good")).into_bytes(), "unknown field `mood`"),
        (with("embedding", json!([0.0, 0.0])).into_bytes(), "an embedding needs a value that is not zero"),
        (with("embedding", json!([])).into_bytes(), "an embedding needs a value that is not zero"),
        (with("embedding", json!([1e39])).into_bytes(), "no other than finite ones"),
        (with("embedding", json!([null])).into_bytes(), "expected f32"),
    ] {
        let file = [good.as_bytes(), b"\n\n", &bad].concat();
        place.write("bad.jsonl", &file);
        let refused = ["cannot import bad.jsonl: nothing was imported: line 3", words];
        place.fails(&["import", "--history", "h.sqlite", "bad.jsonl"], b"", 1, &refused);
        assert!(!place.path("h.sqlite").exists(), "{words}");
        let refused = ["cannot import standard input: nothing was imported: line 3", words];
        place.fails(&["import", "--history", "of-input.sqlite", "-"], &file, 1, &refused);
    }
    place.fails(&["import", "--history", "h.sqlite", "none.jsonl"], b"", 1, &["none.jsonl", "No such file"]);
    place.fails(&["import", "--history", "h.sqlite", "."], b"", 1, &["cannot import ."]);
    assert!(!place.path("h.sqlite").exists());

    // What comes in once is imported as it comes.
    let long = [lines(1300).as_bytes(), b"{\"reply_id\":"].concat();
    let refused = ["standard input: only the first 1000 replies were imported: line 1301 is not a reply"];
    place.fails(&["import", "--history", "long.sqlite", "-"], &long, 1, &refused);
    assert_eq!(place.n_replies("long.sqlite"), 1000);
}

/// A pipe under a name cannot be read twice.
#[cfg(target_os = "linux")]
#[test]
fn a_pipe_under_a_name_is_imported_as_it_comes() {
    let place = Place::new();
    let said = place.says(&["import", "--history", "h.sqlite", "/dev/stdin"], lines(1203).as_bytes());
    assert_eq!(said, "imported 1203 replies into h.sqlite, which has 1203 now\n");
    let refused = ["cannot import /dev/stdin: nothing was imported: line 4 is not a reply"];
    place.fails(
        &["import", "--history", "h.sqlite", "/dev/stdin"],
        format!("{}nonsense", lines(3)).as_bytes(),
        1,
        &refused,
    );
}

#[test]
fn old_replies_are_erased() {
    const DAY_MS: i64 = 86_400_000;

    let place = Place::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let now = i64::try_from(now).expect("not so far from 1970");
    // Half a day older each, the oldest first.
    let history: Vec<String> =
        (0..10).rev().map(|i| reply(&i.to_string(), 0, None, now - i * DAY_MS / 2 - 1000).to_string()).collect();
    place.says(&["import", "--history", "h.sqlite", "-"], history.join("\n").as_bytes());
    let prune = |args: &[&str]| place.says(&[&["prune", "--history", "h.sqlite"], args].concat(), b"");
    assert_eq!(prune(&["--days", "100000"]), "erased 0 replies of h.sqlite, which has 10 now\n");
    assert_eq!(prune(&["--days", "3"]), "erased 4 replies of h.sqlite, which has 6 now\n");
    let said: Value = serde_json::from_str(&prune(&["--keep", "4", "--json"])).expect("one object");
    assert_eq!(said, json!({ "erased": 2, "replies": 4 }));
    assert_eq!(prune(&["--keep", "3", "--days", "1"]), "erased 2 replies of h.sqlite, which has 2 now\n");
    assert_eq!(prune(&["--keep", "18446744073709551615"]), "erased 0 replies of h.sqlite, which has 2 now\n");
    let left = place.says(&["export", "--history", "h.sqlite", "-"], b"");
    let ids: Vec<Value> =
        left.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["reply_id"].clone()).collect();
    assert_eq!(ids, ["1", "0"]);

    for (args, words) in [
        (&[][..], "--keep"),
        (&["--keep", "-1"], "'-1' for '--keep"),
        (&["--keep", "1e3"], "'1e3'"),
        (&["--keep", "99999999999999999999"], "too large"),
        (&["--keep", ""], "--keep"),
        (&["--days", "-1"], "-1 is not in 0..=100000"),
        (&["--days", "100001"], "100001 is not in 0..=100000"),
        (&["--days", "0.5"], "'0.5'"),
    ] {
        place.fails(&[&["prune", "--history", "h.sqlite"], args].concat(), b"", 64, &[words]);
    }
    assert_eq!(place.n_replies("h.sqlite"), 2);
    assert_eq!(prune(&["--days", "0"]), "erased 2 replies of h.sqlite, which has 0 now\n");
}

#[test]
fn what_is_no_history_is_named() {
    let place = Place::new();
    place.write(
        "text",
        "nothing that a database would begin with, and longer than its head, which is a hundred bytes long",
    );
    for command in [&["export", "-"][..], &["prune", "--keep", "1"]] {
        let with = |more: &[&'static str]| [command, more].concat();
        let nowhere = ["there is no history at none.sqlite", "a miner makes it when it starts"];
        place.fails(&with(&["--history", "none.sqlite"]), b"", 1, &nowhere);
        place.fails(&with(&["--data-dir", "none"]), b"", 1, &["there is no history at", "none/idiolect.sqlite"]);
        place.fails(&with(&["--history", "text"]), b"", 1, &["text is not a SQLite database"]);
        place.fails(&with(&["--history", "."]), b"", 1, &["cannot open the store"]);
        let unreachable = with(&["--history", "postgres://u:hunter2@[::1/x"]);
        let output = place.run(&unreachable, b"");
        assert!(!output.status.success() && !text(&output.stderr).contains("hunter2"), "{}", text(&output.stderr));
        place.fails(&with(&["--history", "mysql://h/x"]), b"", 64, &["an URL of mysql", "postgres://"]);
    }
    assert!(!place.path("none.sqlite").exists() && !place.path("none").exists());
    place.fails(&["import", "--history", "text", "-"], b"", 1, &["text is not a SQLite database"]);
    for args in [&[][..], &["export"], &["import"], &["shrink"]] {
        place.fails(args, b"", 64, &["Usage"]);
    }
}
