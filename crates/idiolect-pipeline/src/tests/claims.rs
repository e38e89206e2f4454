//! The history: written before a reply is sent, shared by several miners, and what others said.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use idiolect_axon::Handler as _;
use idiolect_backend::{Embedder as _, HashEmbedder};
use idiolect_protocol::Category;
use idiolect_uniqueness::{HistoryStore, Neighbour, Panels, SqliteHistory, store};
use idiolect_validator::task::openvalidators;

use super::double::{OTHER, SKY, SKY_AGAIN, Scripted, ask, config, parts, prompt, says};
use super::records::{call, caller};
use crate::{Ask, Parts, Pipeline, PipelineConfig};

async fn history(dir: &Path) -> Arc<dyn HistoryStore> {
    let pool = store::open(&dir.join("history.sqlite")).await.unwrap();
    Arc::new(SqliteHistory::open(pool).await.unwrap())
}

async fn sharing(dir: &Path, texts: &[&str]) -> Pipeline {
    let says = texts.iter().map(|text| says(text)).collect();
    let parts = Parts { shared_history: Some(history(dir).await), ..parts(Scripted::new(says)) };
    Pipeline::start(config(texts.len()), parts).await.unwrap()
}

#[tokio::test]
async fn what_another_miner_sent_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (sharing(dir.path(), &[SKY]).await, sharing(dir.path(), &[SKY, OTHER]).await);
    let third = sharing(dir.path(), &[SKY, OTHER]).await;
    assert_eq!(first.forward(call(caller("//Bob"), "Why?")).await.unwrap().completions, [SKY]);
    let to_second = second.answer(Ask::new(prompt("Why?"))).await.unwrap();
    assert_eq!(to_second.reply.completions, [OTHER]);
    assert_eq!(to_second.provenance.candidates[0].score.as_ref().unwrap().distance, Some(0.0));
    // Nothing is left for the third.
    let error = third.forward(call(caller("//Bob"), "Why?")).await.unwrap_err();
    assert_eq!((error.category, error.message.as_str()), (Category::Unavailable, "the model is not available"));
    // To another question the same words are no copy, and a miner may repeat itself.
    third.forward(call(caller("//Bob"), "Why, though?")).await.unwrap();
    assert_eq!(first.forward(call(caller("//Bob"), "Why?")).await.unwrap().completions, [SKY]);
}

#[tokio::test]
async fn a_shared_history_needs_an_encoder() {
    let dir = tempfile::tempdir().unwrap();
    let parts = Parts {
        shared_history: Some(history(dir.path()).await),
        ..Parts::new(Arc::new(Scripted::new(vec![says(SKY)])))
    };
    let error = Pipeline::start(config(1), parts).await.unwrap_err();
    assert!(error.to_string().contains("there is no encoder"), "{error}");
}

/// The way of the prompts of openvalidators 1.2 and text-prompting 2.1: what won before stands in what is asked now.
#[tokio::test]
async fn quoted_winners_are_kept_away_from() {
    let context = SKY.to_owned();
    let task = openvalidators::Task::Answer { context, question: "Why does light scatter in the air?".to_owned() };
    let parts = parts(Scripted::new(vec![says(SKY_AGAIN), says(OTHER)]));
    let pipeline = Pipeline::start(config(2), parts).await.unwrap();
    let quoting = pipeline.answer(Ask::new(prompt(&task.compose()))).await.unwrap();
    assert_eq!(quoting.reply.completions, [OTHER]);
    let score = quoting.provenance.candidates[0].score.as_ref().unwrap();
    assert_eq!(score.nearest, Some(Neighbour::Quoted("quoted augment 1".to_owned())));
    assert!(!score.clears && score.n_compared == 3);
    assert!(quoting.provenance.to_string().contains("(quoted augment 1)"));
    let plain = pipeline.answer(Ask::new(prompt("Why does light scatter in the air?"))).await.unwrap();
    assert_eq!(plain.reply.completions, [SKY_AGAIN]);
    assert_eq!(plain.provenance.nearest_source.as_deref(), Some("no_op"));
}

#[tokio::test]
async fn recorded_rivals_count_for_their_prompt() {
    let recorded = HashEmbedder::new(256).embed(&[SKY_AGAIN.to_owned()]).await.unwrap();
    let mut panels = Panels::new("hash-256", 256);
    panels.push(Some("Why?"), "rival 7", &recorded[0]);
    let parts = Parts { panels: Some(Arc::new(panels)), ..parts(Scripted::new(vec![says(SKY)])) };
    let pipeline = Pipeline::start(PipelineConfig { rivals: 9, ..config(1) }, parts).await.unwrap();
    let near = pipeline.answer(Ask::new(prompt(" Why? "))).await.unwrap().provenance;
    assert_eq!(near.nearest_source.as_deref(), Some("panel"));
    assert_eq!(near.candidates[0].score.as_ref().unwrap().nearest, Some(Neighbour::Panel("rival 7".to_owned())));
    let other = pipeline.answer(Ask::new(prompt("How?"))).await.unwrap().provenance;
    assert_eq!((other.nearest_source, other.candidates[0].score.as_ref().unwrap().distance), (None, None));
}

const CHILD_DIR: &str = "IDIOLECT_TEST_CLAIMS_DIR";

/// Not a test by itself: what [`what_was_sent_survives_a_kill`] runs and kills.
#[tokio::test]
async fn child_that_claims() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let dir = Path::new(&dir);
    let pool = store::open(&dir.join("history.sqlite")).await.unwrap();
    let parts = Parts { store: Some(pool), ..parts(Scripted::new(vec![says(SKY), says(OTHER)])) };
    let pipeline = Pipeline::start(config(2), parts).await.unwrap();
    let mut sent = std::fs::File::create(dir.join("sent")).unwrap();
    loop {
        let answer = pipeline.answer(ask()).await.unwrap();
        sent.write_all(format!("{}\n", answer.provenance.id).as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn what_was_sent_survives_a_kill() {
    for least in [1, 20, 200] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["tests::claims::child_that_claims", "--exact"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sent = || std::fs::read_to_string(dir.path().join("sent")).unwrap_or_default();
        let started = Instant::now();
        while sent().lines().count() < least {
            let failed = started.elapsed() > Duration::from_secs(60) || child.try_wait().unwrap().is_some();
            assert!(!failed, "the child failed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let text = sent();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let kept: HashSet<String> = history(dir.path())
            .await
            .page(0, 1_000_000)
            .await
            .unwrap()
            .replies
            .into_iter()
            .map(|r| r.reply_id)
            .collect();
        let n_sent = whole.lines().count();
        assert!(whole.lines().all(|id| kept.contains(id)), "{n_sent} sent, {} kept", kept.len());
        assert!(kept.len() <= n_sent + 1, "{n_sent} sent, {} kept", kept.len());
    }
}
