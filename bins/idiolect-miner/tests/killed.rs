//! A miner that is killed has every reply that it sent in its history.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use idiolect_protocol::dendrite::{Dendrite, QueryOptions, Target, Via};
use idiolect_protocol::{Hotkey, Keypair, Message, Prompt, Role};
use idiolect_uniqueness::{HistoryStore as _, SqliteHistory, store};
use serde_json::Value;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A miner with the echo backend and the real encoder.
fn start(data_dir: &Path, ready: &Path, history: &Path) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect-miner"));
    command.args(["--backend", "echo", "--encoder", "minilm", "--candidates", "1", "--axon.port", "0"]);
    command.args(["--metrics.addr", "off", "--policy.allow", "any", "--log.filter", "warn"]);
    command.arg("--data-dir").arg(data_dir).arg("--ready-file").arg(ready).arg("--history").arg(history);
    Running(command.stdout(Stdio::null()).spawn().expect("it starts"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_is_in_the_history_after_a_kill() {
    let dir = tempfile::tempdir().expect("a folder");
    let (ready, history) = (dir.path().join("ready.json"), dir.path().join("history.sqlite"));
    let mut n_kept = 0;
    for (round, n_least) in [1, 12, 40].into_iter().enumerate() {
        let _ = std::fs::remove_file(&ready);
        let mut miner = start(&dir.path().join("data"), &ready, &history);
        let began = Instant::now();
        while !ready.exists() {
            assert!(began.elapsed() < Duration::from_secs(300), "the miner does not start");
            assert!(miner.0.try_wait().expect("a status").is_none(), "the miner ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let said: Value = serde_json::from_slice(&std::fs::read(&ready).expect("a file")).expect("JSON");
        let address = said["axon"].as_str().and_then(|a| a.parse().ok()).expect("an address");
        let hotkey: Hotkey = said["hotkey"].as_str().and_then(|h| h.parse().ok()).expect("a hotkey");

        let (got, n_got) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (n_failed, is_killed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let askers: Vec<_> = (0..4)
            .map(|asker| {
                let (got, n_got) = (Arc::clone(&got), Arc::clone(&n_got));
                let (n_failed, is_killed) = (Arc::clone(&n_failed), Arc::clone(&is_killed));
                tokio::spawn(async move {
                    let validator = Dendrite::new(Keypair::generate());
                    let target = Target::from((address, hotkey));
                    for nth in 0.. {
                        let question = format!("Round {round}, asker {asker}, question {nth}: what is to be said?");
                        let prompt = Prompt::new(vec![Message::new(Role::User, question)]).expect("a prompt");
                        let answer = validator.query(&target, Via::Http, &prompt, &QueryOptions::default()).await;
                        let Ok(answer) = answer else {
                            // Once it is killed nobody answers; before, a busy machine may be late.
                            if is_killed.load(Ordering::SeqCst) {
                                return;
                            }
                            n_failed.fetch_add(1, Ordering::SeqCst);
                            continue;
                        };
                        got.lock().expect("texts").push(answer.text.trim().to_owned());
                        n_got.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        while n_got.load(Ordering::SeqCst) < n_least {
            assert!(began.elapsed() < Duration::from_secs(400), "too few replies");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        miner.0.kill().expect("killed");
        miner.0.wait().expect("dead");
        is_killed.store(true, Ordering::SeqCst);
        for asker in askers {
            asker.await.expect("an asker");
        }

        let store = SqliteHistory::open(store::open(&history).await.expect("a whole file")).await.expect("tables");
        let replies = store.page(0, 1_000_000).await.expect("replies").replies;
        let kept: HashSet<String> = replies.into_iter().filter_map(|reply| reply.text).collect();
        let got = got.lock().expect("texts");
        for text in got.iter() {
            assert!(kept.contains(text), "{text:?} was sent and is not kept");
        }
        // Four may have been on their way, and two are the miner's questions to itself.
        let most = n_kept + got.len() + n_failed.load(Ordering::SeqCst) + 6;
        assert!(kept.len() <= most, "{} kept, {} sent", kept.len(), got.len());
        n_kept = kept.len();
    }
}
