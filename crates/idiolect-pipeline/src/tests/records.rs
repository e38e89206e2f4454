use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use idiolect_axon::{Call, Feedback, Handler};
use idiolect_protocol::{
    Caller, Category, Claim, Keypair, Limits, Nonce, NonceStore, Scheme, SystemClock, Transport, Verifier,
};
use idiolect_uniqueness::{Erase, Retention, store};
use sqlx::SqlitePool;

use super::double::{OTHER, SKY, Scripted, ask, config, parts, prompt, says};
use crate::{Parts, Pipeline, PipelineConfig, PipelineError, ProvenanceStore, RecordConfig, StorePrompts};

async fn pool(dir: &Path) -> SqlitePool {
    store::open(&dir.join("idiolect.sqlite")).await.unwrap()
}

async fn with_store(dir: &Path, record: RecordConfig) -> Pipeline {
    let parts = Parts { store: Some(pool(dir).await), ..parts(Scripted::new(vec![says(SKY), says(OTHER)])) };
    Pipeline::start(PipelineConfig { record, ..config(2) }, parts).await.unwrap()
}

/// A caller that proved its key, as the axon would hand it over.
pub(super) fn caller(uri: &str) -> Caller {
    let key = Keypair::from_uri(uri).unwrap();
    let nonces = Arc::new(NonceStore::new(10));
    let verifier = Verifier::new(key.hotkey(), Limits::default(), Arc::new(SystemClock), nonces);
    let claim = Claim {
        transport: Transport::Grpc,
        hotkey: key.hotkey(),
        scheme: Scheme::Sr25519,
        signed: b"text".to_vec(),
        signature: key.sign(b"text"),
        nonce: Nonce::Monotonic { key: "k".to_owned(), value: 1 },
        timeout: None,
        version: None,
    };
    verifier.verify(claim).unwrap()
}

pub(super) fn call(caller: Caller, text: &str) -> Call {
    Call {
        caller,
        synapse: "TextPrompting.Forward".to_owned(),
        prompt: prompt(text),
        deadline: Instant::now() + Duration::from_secs(10),
        n_completions: 1,
        task: None,
        model: None,
        dictated: None,
        logprobs: None,
    }
}

fn feedback(caller: Caller, completion: &str, rewards: Vec<f32>) -> Feedback {
    Feedback { caller, prompt: prompt("Why?"), completion: completion.to_owned(), rewards }
}

#[tokio::test]
async fn replies_are_on_record_and_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = with_store(dir.path(), RecordConfig::default()).await;
    let first = pipeline.answer(ask()).await.unwrap().provenance;
    let second = pipeline.answer(ask()).await.unwrap().provenance;
    assert!(first.id < second.id, "ids sort by time");
    assert_eq!(pipeline.explain("last").await.unwrap(), second);
    assert_eq!(pipeline.explain(&first.id).await.unwrap(), first);
    assert_eq!(pipeline.explain(&first.id[..35]).await.unwrap(), first, "the beginning will do");
    for unknown in ["", "0", "%", "nobody", &first.id[..8]] {
        assert!(matches!(pipeline.explain(unknown).await, Err(PipelineError::NotFound(_))), "{unknown}");
    }
    drop(pipeline);

    let pipeline = with_store(dir.path(), RecordConfig::default()).await;
    let third = pipeline.answer(ask()).await.unwrap().provenance;
    assert_eq!(third.n_history, 2, "earlier replies are compared with after a restart");
    let records = ProvenanceStore::open(pool(dir.path()).await).await.unwrap();
    pipeline.flush().await;
    assert_eq!(records.count().await.unwrap(), 3);
    let listed = records.list(2).await.unwrap();
    assert_eq!(listed.iter().map(|l| &l.id).collect::<Vec<_>>(), [&third.id, &second.id]);
}

#[tokio::test]
async fn miners_that_share_a_store_do_not_send_each_others_replies() {
    let dir = tempfile::tempdir().unwrap();
    let one = with_store(dir.path(), RecordConfig::default()).await;
    let two = with_store(dir.path(), RecordConfig::default()).await;
    let first = one.answer(ask()).await.unwrap();
    one.flush().await;
    let second = two.answer(ask()).await.unwrap();
    assert_eq!(second.provenance.n_history, 1);
    assert_ne!(first.reply.completions, second.reply.completions);
    two.flush().await;
    let third = one.answer(ask()).await.unwrap();
    assert_eq!(third.provenance.n_history, 2, "each reply counts once");
}

#[tokio::test]
async fn nothing_is_lost_of_many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = with_store(dir.path(), RecordConfig::default()).await;
    let replies = futures_util::future::join_all((0..40).map(|_| pipeline.answer(ask()))).await;
    assert!(replies.iter().all(Result::is_ok));
    pipeline.flush().await;
    let records = ProvenanceStore::open(pool(dir.path()).await).await.unwrap();
    assert_eq!(records.count().await.unwrap(), 40);
}

#[tokio::test]
async fn a_store_that_does_not_keep_up_delays_no_reply() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = with_store(dir.path(), RecordConfig { queue: 2, ..RecordConfig::default() }).await;
    pipeline.answer(ask()).await.unwrap();
    pipeline.flush().await;
    // Another process writes and does not come to an end.
    let other = pool(dir.path()).await;
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let began = Instant::now();
    for _ in 0..40 {
        assert!(!pipeline.answer(ask()).await.unwrap().reply.completions[0].is_empty());
    }
    // The first that finds no room waits for 50 ms, and none after it: all of them would take two seconds.
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    let last = pipeline.answer(ask()).await.unwrap().provenance;
    assert!(last.n_history > 40, "what is not on record is compared with nevertheless: {}", last.n_history);

    drop(held);
    pipeline.flush().await;
    let next = pipeline.answer(ask()).await.unwrap().provenance;
    assert_eq!(pipeline.explain("last").await.unwrap(), next);
    let n_kept = ProvenanceStore::open(other).await.unwrap().count().await.unwrap();
    assert!((3..20).contains(&n_kept), "{n_kept} of 43");
}

/// A reference miner ended its loop over a line for its log.
#[tokio::test]
async fn a_store_that_fails_costs_no_reply() {
    let dir = tempfile::tempdir().unwrap();
    let broken = pool(dir.path()).await;
    let parts = Parts { store: Some(broken.clone()), ..parts(Scripted::new(vec![says(SKY), says(OTHER)])) };
    let pipeline = Pipeline::start(config(2), parts).await.unwrap();
    broken.close().await;
    for _ in 0..5 {
        assert!(!pipeline.answer(ask()).await.unwrap().reply.completions[0].is_empty());
    }
    pipeline.flush().await;
    assert!(!pipeline.answer(ask()).await.unwrap().reply.completions[0].is_empty());
}

#[tokio::test]
async fn rewards_stand_beside_the_callers_own_reply() {
    let dir = tempfile::tempdir().unwrap();
    for parts in [
        Parts { store: Some(pool(dir.path()).await), ..parts(Scripted::new(vec![says(SKY)])) },
        parts(Scripted::new(vec![says(SKY)])),
    ] {
        let pipeline = Pipeline::start(config(1), parts).await.unwrap();
        let (alice, bob) = (caller("//Alice"), caller("//Bob"));
        let reply = pipeline.forward(call(alice.clone(), "Why?")).await.unwrap();
        let id = pipeline.explain("last").await.unwrap().id;
        pipeline.forward(call(bob.clone(), "Why?")).await.unwrap();

        let completion = format!("{}\n", reply.completions[0]);
        pipeline.backward(feedback(alice.clone(), &completion, vec![0.5])).await.unwrap();
        pipeline.backward(feedback(alice.clone(), &completion, vec![0.25, 0.75])).await.unwrap();
        pipeline.backward(feedback(alice.clone(), "what nobody said", vec![9.0])).await.unwrap();
        let explained = pipeline.explain(&id).await.unwrap();
        assert_eq!(explained.rewards, [0.25, 0.75]);
        let hotkey = alice.hotkey().to_string();
        assert_eq!((explained.caller.as_deref(), explained.transport.as_str()), (Some(hotkey.as_str()), "grpc"));
        assert!(explained.to_string().contains("rewards   [0.25, 0.75]"));
        assert!(pipeline.explain("last").await.unwrap().rewards.is_empty(), "Bob's reply has none");

        for bad in [vec![f32::NAN], vec![0.0; 65]] {
            let error = pipeline.backward(feedback(alice.clone(), &completion, bad)).await.unwrap_err();
            assert_eq!(error.category, Category::Malformed);
        }
    }
}

#[tokio::test]
async fn rewards_find_replies_from_before_a_restart_and_of_other_processes() {
    let dir = tempfile::tempdir().unwrap();
    let alice = caller("//Alice");
    let one = with_store(dir.path(), RecordConfig::default()).await;
    let reply = one.forward(call(alice.clone(), "Why?")).await.unwrap();
    let first = one.explain("last").await.unwrap().id;
    let two = with_store(dir.path(), RecordConfig::default()).await;
    let completion = &reply.completions[0];
    two.backward(feedback(alice.clone(), completion, vec![0.5])).await.unwrap();
    assert_eq!(two.explain(&first).await.unwrap().rewards, [0.5]);

    // The same text again, by the other process: the latest reply counts, until it is erased.
    let again = Pipeline::start(
        config(1),
        Parts { store: Some(pool(dir.path()).await), ..Parts::new(Arc::new(Scripted::new(vec![says(completion)]))) },
    );
    let again = again.await.unwrap();
    assert_eq!(again.forward(call(alice.clone(), "Why?")).await.unwrap().completions, reply.completions);
    let second = again.explain("last").await.unwrap().id;
    two.backward(feedback(alice.clone(), completion, vec![0.75])).await.unwrap();
    assert_eq!(two.explain(&second).await.unwrap().rewards, [0.75]);
    assert_eq!(two.explain(&first).await.unwrap().rewards, [0.5]);
    assert_eq!(one.erase(&Erase::Id(second)).await.unwrap(), 1);
    two.backward(feedback(alice, completion, vec![0.25])).await.unwrap();
    assert_eq!(two.explain(&first).await.unwrap().rewards, [0.25]);
}

#[tokio::test]
async fn records_of_version_1_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let old = Pipeline::start(config(1), parts(Scripted::new(vec![says(SKY)]))).await.unwrap();
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(old.answer(ask()).await.unwrap().provenance);
    }
    let pool = pool(dir.path()).await;
    store::migrate(&pool, "provenance", &crate::store::MIGRATIONS[..1]).await.unwrap();
    for p in &kept {
        sqlx::query("INSERT INTO provenance VALUES (?, ?, '', 'local', '', '', '', '', '', 1, 1.0, NULL, ?)")
            .bind(&p.id)
            .bind(p.time_ms)
            .bind(serde_json::to_string(p).unwrap())
            .execute(&pool)
            .await
            .unwrap();
        sqlx::query("INSERT INTO sent_completions VALUES (?, '', 'abc')").bind(&p.id).execute(&pool).await.unwrap();
    }
    sqlx::query("INSERT INTO rewards VALUES (?, 'abc', 1, '[0.5]')").bind(&kept[1].id).execute(&pool).await.unwrap();

    let pipeline = with_store(dir.path(), RecordConfig::default()).await;
    kept[1].rewards = vec![0.5];
    for p in &kept {
        assert_eq!(pipeline.explain(&p.id).await.unwrap(), *p);
    }
    let next = pipeline.answer(ask()).await.unwrap().provenance;
    assert_eq!(pipeline.explain("last").await.unwrap(), next);
    let records = ProvenanceStore::open(pool).await.unwrap();
    assert_eq!(records.count().await.unwrap(), 4);
    assert_eq!(pipeline.erase(&Erase::Before(kept[2].time_ms + 1)).await.unwrap(), 3);
    assert_eq!(records.list(9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn records_from_before_the_prefix_cache_was_counted_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = with_store(dir.path(), RecordConfig::default()).await;
    let written = pipeline.answer(ask()).await.unwrap().provenance;
    pipeline.flush().await;
    let removed = sqlx::query(
        "UPDATE provenance SET body = json_remove(body, '$.cached_tokens') WHERE body ->> 'cached_tokens' = 0",
    );
    assert_eq!(removed.execute(&pool(dir.path()).await).await.unwrap().rows_affected(), 1);
    assert_eq!(pipeline.explain("last").await.unwrap(), written);
}

/// Returns every file of the store, as bytes.
fn bytes(dir: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(dir).unwrap();
    files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[tokio::test]
async fn only_what_may_be_kept_is_on_disk() {
    for (store_prompts, store_replies) in
        [(StorePrompts::All, true), (StorePrompts::Hash, false), (StorePrompts::None, false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let record = RecordConfig { store_prompts, store_replies, ..RecordConfig::default() };
        let pipeline = with_store(dir.path(), record).await;
        let alice = caller("//Alice");
        let reply = pipeline.forward(call(alice.clone(), "a secret prompt")).await.unwrap();
        pipeline.backward(feedback(alice, &reply.completions[0], vec![1.0])).await.unwrap();
        let p = pipeline.explain("last").await.unwrap();
        assert_eq!(p.rewards, [1.0], "rewards find their reply without its text");
        let disk = bytes(dir.path());
        assert_eq!(holds(&disk, "a secret prompt"), store_prompts == StorePrompts::All);
        assert_eq!(holds(&disk, SKY), store_replies);
        assert_eq!(p.prompt_hash.is_some(), store_prompts != StorePrompts::None);
    }
}

#[tokio::test]
async fn huge_prompts_are_answered_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = with_store(dir.path(), RecordConfig::default()).await;
    let reply = pipeline.forward(call(caller("//Alice"), &"word ".repeat(210_000))).await.unwrap();
    assert!(!reply.completions[0].is_empty());
    let p = pipeline.explain("last").await.unwrap();
    assert!(p.prompt.is_none() && p.prompt_hash.is_some());
    assert_eq!(p.notes, ["the prompt of 1050000 bytes was too long to be kept"]);
}

#[tokio::test]
async fn erasing_leaves_nothing_on_disk() {
    let hotkey = caller("//Alice").hotkey().to_string();
    for what in [Erase::All, Erase::Caller(hotkey), Erase::Before(i64::MAX)] {
        let dir = tempfile::tempdir().unwrap();
        let pipeline = with_store(dir.path(), RecordConfig::default()).await;
        pipeline.forward(call(caller("//Alice"), "a secret prompt")).await.unwrap();
        assert_eq!(pipeline.erase(&what).await.unwrap(), 1, "{what:?}");
        let disk = bytes(dir.path());
        assert!(!holds(&disk, "a secret prompt") && !holds(&disk, SKY) && !holds(&disk, OTHER), "{what:?}");
        let next = pipeline.answer(ask()).await.unwrap().provenance;
        assert_eq!(next.n_history, 0, "what is erased is not compared with either");
    }
    let dir = tempfile::tempdir().unwrap();
    let pipeline = with_store(dir.path(), RecordConfig::default()).await;
    let kept = pipeline.answer(ask()).await.unwrap().provenance.id;
    let gone = pipeline.answer(ask()).await.unwrap().provenance.id;
    assert_eq!(pipeline.erase(&Erase::Id(gone.clone())).await.unwrap(), 1);
    assert_eq!(pipeline.explain("last").await.unwrap().id, kept);
    assert_eq!(pipeline.erase(&Erase::Id(gone)).await.unwrap(), 0);
}

#[tokio::test]
async fn old_and_surplus_records_go() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = with_store(dir.path(), RecordConfig::default()).await;
    for _ in 0..5 {
        pipeline.answer(ask()).await.unwrap();
    }
    pipeline.flush().await;
    let records = ProvenanceStore::open(pool(dir.path()).await).await.unwrap();
    let newest = records.list(1).await.unwrap().remove(0);
    let counted = Retention { max_replies: Some(2), max_age: None };
    assert_eq!(records.prune(&counted, newest.time_ms).await.unwrap(), 3);
    assert_eq!(records.list(1).await.unwrap().remove(0), newest);
    let aged = Retention { max_replies: None, max_age: Some(Duration::from_secs(60)) };
    assert_eq!(records.prune(&aged, newest.time_ms).await.unwrap(), 0);
    assert_eq!(records.prune(&aged, newest.time_ms + 60_001).await.unwrap(), 2);
}

#[tokio::test]
async fn damaged_records_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = with_store(dir.path(), RecordConfig::default()).await;
    pipeline.answer(ask()).await.unwrap();
    pipeline.flush().await;
    sqlx::query("UPDATE provenance SET body = '{}'").execute(&pool(dir.path()).await).await.unwrap();
    assert!(matches!(pipeline.explain("last").await, Err(PipelineError::Damaged { .. })));
}

#[tokio::test]
async fn availability_answers_for_what_is_served() {
    let pipeline = Pipeline::start(config(1), parts(Scripted::new(vec![says(SKY)]))).await.unwrap();
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let (tasks, models) =
        pipeline.availability(names(&["InferenceTask", "WebRetrievalTask"]), names(&["scripted", "gpt-9"])).await;
    assert_eq!(
        tasks.into_iter().collect::<Vec<_>>(),
        [("InferenceTask".to_owned(), true), ("WebRetrievalTask".to_owned(), false)]
    );
    assert_eq!(models.into_iter().collect::<Vec<_>>(), [("gpt-9".to_owned(), false), ("scripted".to_owned(), true)]);
    let many = (0..1000).map(|i| i.to_string()).collect();
    assert_eq!(pipeline.availability(many, Vec::new()).await.0.len(), 256);
}

const CHILD_DIR: &str = "IDIOLECT_TEST_KILLED_CHILD_DIR";

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
async fn child_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let dir = Path::new(&dir);
    let pipeline = with_store(dir, RecordConfig::default()).await;
    pipeline.answer(ask()).await.unwrap();
    pipeline.flush().await;
    std::fs::write(dir.join("written"), "").unwrap();
    loop {
        pipeline.answer(ask()).await.unwrap();
    }
}

#[tokio::test]
async fn records_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["tests::records::child_that_is_killed", "--exact"])
        .env(CHILD_DIR, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !dir.path().join("written").exists() {
        assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "the child failed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let records = ProvenanceStore::open(pool(dir.path()).await).await.unwrap();
    assert!(records.count().await.unwrap() >= 1);
    let last = records.explain("last").await.unwrap();
    assert!(last.chosen().unwrap().text.is_some());
    let (state,): (String,) =
        sqlx::query_as("PRAGMA integrity_check").fetch_one(&pool(dir.path()).await).await.unwrap();
    assert_eq!(state, "ok");
}
