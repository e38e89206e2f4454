//! What a history said that it keeps survives the death of the process, at whatever moment that comes.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use idiolect_uniqueness::{HistoryStore as _, SqliteHistory, StoreError, StoredReply, store};

const FOLDER: &str = "IDIOLECT_TEST_KILLED_FOLDER";
const NAME: &str = "IDIOLECT_TEST_KILLED_NAME";
/// Completions of each reply, which are kept together or not at all.
const PARTS: u32 = 3;

fn parts(id: &str) -> Vec<StoredReply> {
    let part = |part: u32| StoredReply {
        reply_id: id.to_owned(),
        part,
        caller: String::new(),
        prompt_hash: "hash".to_owned(),
        encoder: "test".to_owned(),
        embedding: vec![0.5; 384],
        text: Some(id.repeat(50)),
        time_ms: 1,
    };
    (0..PARTS).map(part).collect()
}

async fn open(folder: &Path) -> SqliteHistory {
    loop {
        let opened = match store::open(&folder.join("history.sqlite")).await {
            Ok(pool) => SqliteHistory::open(pool).await,
            Err(error) => Err(error),
        };
        match opened {
            // On a busy machine another process may hold it for longer than a store waits.
            Err(StoreError::Busy(_)) => {}
            opened => return opened.unwrap(),
        }
    }
}

/// Writes a reply as a miner does that shares its history: after a look at what others wrote.
async fn claim(history: &SqliteHistory, place: &mut i64, replies: &[StoredReply]) -> Result<bool, StoreError> {
    if history.append_at(*place, replies).await? {
        *place += i64::from(PARTS);
        return Ok(true);
    }
    *place = history.since("test", *place, 0).await?.place;
    Ok(false)
}

/// Not a test by itself: what the next one runs and kills.
#[tokio::test]
async fn child_that_writes() {
    let (Some(folder), Ok(name)) = (std::env::var_os(FOLDER), std::env::var(NAME)) else { return };
    let history = open(Path::new(&folder)).await;
    let (mut place, mut out) = (0, std::io::stdout());
    out.write_all(b"\n").unwrap();
    for nth in 0.. {
        let id = format!("{name}/{nth}");
        let replies = parts(&id);
        loop {
            match claim(&history, &mut place, &replies).await {
                Ok(true) => break,
                Ok(false) | Err(StoreError::Busy(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        // In one piece: this is the reply that is sent.
        out.write_all(format!("sent {id}\n").as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

struct Writer {
    process: Child,
    out: BufReader<ChildStdout>,
    said: String,
}

impl Writer {
    fn start(folder: &Path, name: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child_that_writes", "--exact", "--nocapture"]).env(FOLDER, folder).env(NAME, name);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        Self { process, out, said: String::new() }
    }

    fn read_replies(&mut self, n: usize) {
        while sent(&self.said).count() < n {
            assert_ne!(self.out.read_line(&mut self.said).unwrap(), 0, "it ended by itself: {}", self.said);
        }
    }

    /// Returns all replies that were sent.
    fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.out.read_to_string(&mut self.said).unwrap();
        sent(&self.said).map(str::to_owned).collect()
    }
}

/// The ids of whole lines.
fn sent(said: &str) -> impl Iterator<Item = &str> {
    said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.strip_prefix("sent "))
}

async fn check(folder: &Path, all_sent: &HashSet<String>, n_writers: usize) {
    let pool = store::open(&folder.join("history.sqlite")).await.unwrap();
    let history = SqliteHistory::open(pool.clone()).await.unwrap();
    let (whole,): (String,) = sqlx::query_as("PRAGMA integrity_check").fetch_one(&pool).await.unwrap();
    assert_eq!(whole, "ok");
    let kept: Vec<(String, u32)> =
        sqlx::query_as("SELECT reply_id, count(*) FROM replies GROUP BY reply_id").fetch_all(&pool).await.unwrap();
    let kept: HashMap<String, u32> = kept.into_iter().collect();
    for id in all_sent {
        assert!(kept.contains_key(id), "{id} was sent and is not kept");
    }
    assert!(kept.values().all(|n| *n == PARTS), "all completions or none");
    // What a writer was about to send when it was killed.
    assert!(kept.len() <= all_sent.len() + n_writers, "{} sent, {} kept", all_sent.len(), kept.len());
    // The next writer goes on where the last one was.
    let place = history.since("test", 0, 0).await.unwrap().place;
    assert_eq!(place, i64::try_from(kept.len()).unwrap() * i64::from(PARTS));
    pool.close().await;
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it waits for other processes")]
fn what_was_sent_survives_a_kill_at_any_moment() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (mut all_sent, mut n_writers) = (HashSet::new(), 0);
    for moment in 0..48_u32 {
        // One by itself, or two miners that share the file.
        let mut writers: Vec<Writer> =
            (0..=moment % 2).map(|i| Writer::start(folder.path(), &format!("{moment}.{i}"))).collect();
        n_writers += writers.len();
        if moment % 3 == 0 {
            // While they start, make the tables, or write their first replies.
            sleep(Duration::from_millis(u64::from(moment)));
        } else {
            writers[0].read_replies(moment as usize * 2);
            sleep(Duration::from_micros(u64::from(moment) * 17));
        }
        for writer in writers {
            all_sent.extend(writer.kill());
        }
        runtime.block_on(check(folder.path(), &all_sent, n_writers));
    }
    assert!(all_sent.len() > 1000, "{}", all_sent.len());
}
