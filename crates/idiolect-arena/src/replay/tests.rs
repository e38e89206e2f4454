use std::collections::HashMap;
use std::path::Path;

use idiolect_backend::{Error, HashEmbedder};
use idiolect_dataset::{Entry, History};

use super::season::spearman;
use super::*;

/// Knows what was recorded: it is asked about replies whose text has the score in it.
#[derive(Debug)]
struct Told;

#[async_trait::async_trait]
impl RewardModel for Told {
    fn name(&self) -> &str {
        "told"
    }

    async fn scores(&self, _: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        Ok(replies.iter().map(|reply| reply.split_whitespace().last().unwrap().parse().unwrap()).collect())
    }
}

fn replay() -> Replay {
    let encoder = Arc::new(HashEmbedder::new(64));
    let cache = EmbeddingCache::open(None, &*encoder).unwrap();
    Replay::new(encoder, cache)
}

/// A log of steps in which ten rivals have qualities from 0.05 to 0.95, all different in what they say.
fn log(n_steps: usize) -> String {
    let line = |step: usize| {
        let of = |nth: usize| format!("{:.2}", 0.05 + 0.1 * nth as f64);
        let list = |of: &dyn Fn(usize) -> String| (0..10).map(of).collect::<Vec<_>>().join(", ");
        format!(
            "{{\"task_type\": \"t\", \"name\": \"answer0\", \"run_id\": \"r\", \"_step\": {step}, \"prompt\": \"Why {step}?\", \"completions\": [{}], \"uids\": [{}],
             \"rewards\": [{}], \"dpo_reward_model_normalized\": [{}], \"reciprocate_reward_model_normalized\": [{}],
             \"diversity_reward_model_batch\": [{}], \"diversity_reward_model_historic\": [{}], \"diversity_reward_model\": [{}]}}",
            list(&|nth| format!("\"word{step}x{nth} other{step}y{nth} third{step}z{nth} {}\"", of(nth))),
            list(&|nth| nth.to_string()),
            list(&of),
            list(&of),
            list(&of),
            list(&|_| "0.9".to_owned()),
            list(&|_| "1.0".to_owned()),
            list(&|_| "0.9".to_owned()),
        )
        .replace('\n', " ")
    };
    (0..n_steps).map(|step| line(step) + "\n").collect()
}

async fn replayed(mut replay: Replay, log: &str, reply: &(dyn Fn(&str) -> Option<String> + Send + Sync)) -> Replay {
    for entry in History::of_json_lines("log", log.as_bytes()) {
        replay.take(&entry.unwrap(), reply).await.unwrap();
    }
    replay
}

fn season(replay: &Replay, paths: &Paths) -> RunReport {
    replay.season("r", paths).unwrap().unwrap()
}

#[tokio::test]
async fn who_says_something_else_gets_what_rivals_got_in_the_mean() {
    let log = log(40);
    let other = |id: &str| Some(format!("quite unlike{id} the rest{id} of them{id} 0.5"));
    let replay = replayed(replay(), &log, &other).await;
    let report = season(&replay, &Paths { asked: Some(1.0), ..Paths::default() });
    assert_eq!((report.steps, report.n_miners, report.mean_rivals), (40, 10, 10.0));
    assert_eq!((report.failed_share, report.masked_share.value, report.mean_pushed), (0.0, 0.0, 0.0));
    assert!((report.mean_reward.value - 0.5).abs() < 0.02, "{:?}", report.mean_reward);
    assert!(
        report.mean_reward.low > 0.35
            && report.mean_reward.high < 0.65
            && report.mean_reward.low < report.mean_reward.high
    );
    // Of eleven, drawn with one of ten: half a place is shared.
    assert!((report.place_mean.value - 6.0).abs() < 0.2, "{:?}", report.place_mean);
    // 1 - 0.95^40 of the mean, beside rivals of whom each has as much of its own.
    let moment = report.moments.last().unwrap();
    assert!((moment.average.value - 0.5 * (1.0 - 0.95_f64.powi(40))).abs() < 0.02, "{moment:?}");
    assert!((report.weight_share.value - 1.0 / 11.0).abs() < 0.01, "{:?}", report.weight_share);
    assert!(report.weight_share.low < report.weight_share.value && report.final_place.low >= 1.0);
    assert_eq!(report.moments.len(), 40);
    assert_eq!(report.coverage.imputed, ["dpo (0.6)", "reciprocate (0.4)"]);
    assert!(report.coverage.taken_to_pass.contains(&"nsfw".to_owned()), "{:?}", report.coverage);

    // Whoever is asked half of the time is half as far.
    let half = season(&replay, &Paths { asked: Some(0.5), ..Paths::default() });
    assert!(half.weight_share.value < 0.8 * report.weight_share.value);
    assert_eq!(season(&replay, &Paths::default()), season(&replay, &Paths::default()));
    let by_record = season(&replay, &Paths::default());
    assert_eq!(by_record.asked, 1.0);
}

#[tokio::test]
async fn whoever_repeats_a_rival_is_masked_and_takes_it_along() {
    let log = log(5);
    let copy = |id: &str| {
        let step = id.rsplit('/').next().unwrap();
        Some(format!("word{step}x9 other{step}y9 third{step}z9 0.95"))
    };
    let replay = replayed(replay(), &log, &copy).await;
    let report = season(&replay, &Paths::default());
    assert_eq!((report.masked_share.value, report.mean_pushed, report.mean_reward.high), (1.0, 1.0, 0.0));
    // The best of the rivals lost all: 4.05 of 5 is left, of ten.
    assert!((report.mean_reward_of_rivals - (5.0 - 0.95) / 10.0).abs() < 1e-6, "{}", report.mean_reward_of_rivals);
    assert_eq!(report.place_mean.value, 10.5, "two of eleven earn nothing");

    // What was said before is masked, too, once the history is long enough to be looked at; a call that failed earns nothing.
    let failed = replayed(super::tests::replay(), &log, &|_| Some(String::new())).await;
    let report = season(&failed, &Paths::default());
    assert_eq!((report.failed_share, report.masked_share.value, report.mean_reward.value), (1.0, 0.0, 0.0));
    assert_eq!(report.place_mean.value, 11.0);
}

#[tokio::test]
async fn a_local_model_that_goes_with_the_record_places_ours() {
    let log = log(30);
    let good = |id: &str| Some(format!("quite unlike{id} the rest{id} of them{id} 0.93"));
    let model = replay().with_local_model(Arc::new(Told), ScoreCache::open(None, "told").unwrap());
    let replay = replayed(model, &log, &good).await;
    let report = season(&replay, &Paths::default());
    let correlation = report.correlation.unwrap();
    assert!(correlation.used && correlation.spearman.value > 0.999, "{correlation:?}");
    // One of the five nearest: 0.55 to 0.95.
    assert!((report.mean_reward.value - 0.75).abs() < 0.02, "{:?}", report.mean_reward);
}

#[tokio::test]
async fn steps_that_nobody_answered_and_rows_without_scores_are_counted() {
    let log = log(6);
    let some = |id: &str| (id != "r/2").then(|| format!("unlike{id} all{id}"));
    let replay = replayed(replay(), &log, &some).await;
    let report = season(&replay, &Paths::default());
    assert_eq!((report.steps, report.steps_without), (5, 1));
    assert_eq!(replay.runs(), ["r"]);
    assert!(replay.season("other", &Paths::default()).unwrap().is_none());
    let error = |paths: Paths| replay.season("r", &paths).unwrap_err().to_string();
    assert_eq!(error(Paths { n: 3, ..Paths::default() }), "3 paths, expected at least 20");
    assert_eq!(
        error(Paths { asked: Some(0.0), ..Paths::default() }),
        "a chance of 0 to be asked, expected more than 0, up to 1"
    );
    assert_eq!(error(Paths { moments: 0, ..Paths::default() }), "0 moments, expected at least 1");

    let nobody = replayed(super::tests::replay(), &log, &|_| None).await;
    let report = season(&nobody, &Paths::default());
    assert_eq!((report.steps, report.steps_without, report.moments.len()), (0, 6, 0));
}

#[tokio::test]
async fn published_logs_of_every_generation_are_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../idiolect-dataset/tests/data/openvalidators");
    for (file, runs, steps) in [
        ("history_v1.0.jsonl.zst", &["syn10aaa"][..], 24),
        ("history_v1.2.0.jsonl.zst", &["syn12bbb"][..], 36),
        ("history_text_prompting_2.1.jsonl.zst", &["syn21ccc", "syn21ddd"][..], 84),
    ] {
        let mut replay = replay();
        let mut ids = HashMap::new();
        let mut nth = 0;
        for entry in History::open(&folder.join(file)).unwrap() {
            let entry = entry.unwrap();
            if let Entry::Step(step) = &entry {
                ids.insert(step_id(step, nth), ());
                nth += 1;
            }
            replay
                .take(&entry, &|id| Some(format!("an answer of our own to {id}, unlike{id} what others say")))
                .await
                .unwrap();
        }
        assert_eq!(ids.len(), steps, "{file}: every step has a name of its own");
        assert_eq!(replay.runs(), runs);
        let reports: Vec<RunReport> =
            runs.iter().map(|run| replay.season(run, &Paths::default()).unwrap().unwrap()).collect();
        assert_eq!(reports.iter().map(|report| report.steps).sum::<usize>(), steps);
        for report in reports {
            // 12 of 64 miners are asked.
            assert!(report.mean_reward.value > 0.05 && report.mean_reward.high < 1.0, "{file}: {report:?}");
            assert!(report.weight_share.value > 0.0 && report.final_place.value > 1.0, "{file}: {report:?}");
            assert!(report.asked < 0.5, "{file}: {}", report.asked);
        }
    }
}

#[test]
fn ranks_go_together_or_against_each_other() {
    assert_eq!(spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]), Some(1.0));
    assert_eq!(spearman(&[1.0, 2.0, 3.0], &[30.0, 20.0, 10.0]), Some(-1.0));
    assert_eq!(spearman(&[1.0, 1.0, 1.0], &[30.0, 20.0, 10.0]), None);
    let with_ties = spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]).unwrap();
    assert!((with_ties - 0.948_683_3).abs() < 1e-6);
}
