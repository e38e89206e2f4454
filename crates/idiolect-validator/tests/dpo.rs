//! The `dpo` reward over a real model, against values computed here from the model's rows.

use std::sync::Arc;

use idiolect_backend::{Backend, Error, Score, ScoreRequest};
use idiolect_backend_candle::{CandleBackend, CandleConfig};
use idiolect_validator::dpo::{DpoRules, Repetition};
use idiolect_validator::{DpoModel, Profile, RewardModel};

const PROMPT: &str = "Why is the sky blue?";
const REPLIES: [&str; 4] = [
    "The sky is blue because air scatters blue light more than red light.",
    "blue sky, blue sky, blue sky, blue sky, blue sky, blue sky,",
    "Colourless green ideas sleep furiously; the xylophone disagrees.",
    "tiny",
];

fn load() -> Arc<CandleBackend> {
    load_with(CandleConfig::default())
}

fn load_with(mut config: CandleConfig) -> Arc<CandleBackend> {
    let files = idiolect_models::testing::model(idiolect_models::DEFAULT_MODEL).expect("the default model");
    let weights = files.weights().expect("it has weights").to_path_buf();
    config.context_tokens = 512;
    Arc::new(CandleBackend::load(&weights, config).expect("it loads"))
}

/// Returns how a reply is scored behind the prompt as a plain text, the rows that its tokens come from, and those that the
/// prompt's do, but its first: which is all of them scored behind that first one.
async fn rows(backend: &CandleBackend, reply: &str) -> (Score, Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let doubles = |rows: &[Vec<f32>]| -> Vec<Vec<f64>> {
        rows.iter().map(|row| row.iter().map(|&logit| f64::from(logit)).collect()).collect()
    };
    let score = backend.score(ScoreRequest::plain(PROMPT, reply).with_rows()).await.unwrap();
    let (first, rest) = PROMPT.split_at("Why".len());
    let whole = backend.score(ScoreRequest::plain(first, format!("{rest}{reply}")).with_rows()).await.unwrap();
    let n_reply = score.token_ids.len();
    assert!(whole.token_ids.ends_with(&score.token_ids) && whole.token_ids.len() > n_reply);
    let rows = whole.rows.expect("rows were asked for");
    let (of_prompt, of_reply) = rows.split_at(rows.len() - n_reply);
    (score, doubles(of_reply), doubles(of_prompt))
}

/// The log-probability of a token, in the order of the definition: no shift by the largest logit.
fn log_probability(row: &[f64], token: u32) -> f64 {
    let total: f64 = row.iter().map(|logit| logit.exp()).sum();
    (row[token as usize].exp() / total).ln()
}

fn mean(tokens: &[u32], rows: &[Vec<f64>]) -> f64 {
    let sum: f64 = tokens.iter().zip(rows).map(|(&token, row)| log_probability(row, token)).sum();
    sum / tokens.len() as f64
}

/// Version 1.2: for each token once for each time, one after the other.
fn scaled(tokens: &[u32], rows: &[Vec<f64>]) -> f64 {
    let mut rows = rows.to_vec();
    for (j, row) in rows.iter_mut().enumerate() {
        for &token in &tokens[..j.saturating_sub(1)] {
            let logit = &mut row[token as usize];
            *logit = if *logit < 0.0 { *logit * 1.2 } else { *logit / 1.2 };
        }
    }
    mean(tokens, &rows)
}

/// Version 2.1: whatever followed the last four tokens before gets ten deviations less than the mean of all, the prompt's too.
fn without_repeats(tokens: &[u32], rows: &[Vec<f64>], of_prompt: &[Vec<f64>]) -> f64 {
    let all = || of_prompt.iter().chain(rows).flatten();
    let n = all().count() as f64;
    let average = all().sum::<f64>() / n;
    let variance = all().map(|logit| (logit - average) * (logit - average)).sum::<f64>() / (n - 1.0);
    let mut changed = rows.to_vec();
    for at in 4..tokens.len() {
        if tokens[at - 4..at] == tokens[tokens.len() - 4..] {
            changed.iter_mut().for_each(|row| row[tokens[at] as usize] = average - 10.0 * variance.sqrt());
        }
    }
    mean(tokens, &changed)
}

#[tokio::test]
async fn rewards_are_those_of_the_rows() {
    let backend = load();
    let replies: Vec<String> = REPLIES.map(str::to_owned).to_vec();
    let rewards = async |rules: DpoRules| {
        let model = DpoModel::new(Arc::<CandleBackend>::clone(&backend), rules);
        model.scores(PROMPT, &replies).await.unwrap()
    };
    let (v1, v2) = (Profile::openvalidators_1_2().dpo, Profile::text_prompting_2_1().dpo);
    let plain = rewards(DpoRules { repetition: Repetition::Ignored, ..v1 }).await;
    let (first, second) = (rewards(v1).await, rewards(v2).await);
    for (i, reply) in REPLIES.iter().enumerate().take(3) {
        let (score, rows, of_prompt) = rows(&backend, reply).await;
        let tokens = &score.token_ids;
        let expected = [mean(tokens, &rows), scaled(tokens, &rows), without_repeats(tokens, &rows, &of_prompt)];
        for (ours, expected) in [plain[i], first[i], second[i]].into_iter().zip(expected) {
            assert!((f64::from(ours) - expected).abs() < 1e-4, "{reply}: {ours}, expected {expected}");
        }
        // The backend's own log-probabilities are those without a rule.
        assert!((plain[i] - score.mean_logprob().unwrap()).abs() < 1e-3, "{reply}");
    }
    // Repetition costs under either rule, and only under a rule; nonsense is unlikely under any.
    assert!(first[1] < plain[1] && second[1] < plain[1], "{first:?} {second:?} {plain:?}");
    assert_eq!(second[0], plain[0]);
    assert!(plain[2] < plain[0] && first[2] < first[0], "{plain:?} {first:?}");
    assert_eq!([plain[3], first[3], second[3]], [-11.0; 3]);
}

#[tokio::test]
async fn a_prompt_beyond_the_context_gets_the_lowest() {
    let backend = load();
    let model = DpoModel::new(backend, Profile::text_prompting_2_1().dpo);
    let rewards = model.scores(&"word ".repeat(2_000), &["a reply of some length".to_owned()]).await.unwrap();
    assert_eq!(rewards, [-11.0]);
}

#[tokio::test]
async fn of_a_reply_beyond_the_context_counts_what_fits() {
    let backend = load();
    let reply = "The sky is blue because air scatters light. ".repeat(100);
    let model = DpoModel::new(Arc::<CandleBackend>::clone(&backend), Profile::text_prompting_2_1().dpo);
    let rewards = model.scores(PROMPT, std::slice::from_ref(&reply)).await.unwrap();
    let cut = backend.score(ScoreRequest::plain(PROMPT, reply.as_str()).cut_to_context()).await.unwrap();
    let whole = backend.score(ScoreRequest::plain(PROMPT, reply.as_str())).await.unwrap_err();
    assert!(matches!(whole, Error::ContextTooLong { context_tokens: 512, .. }), "{whole}");
    assert!(cut.token_ids.len() > 490 && cut.token_ids.len() < 512, "{}", cut.token_ids.len());
    // Repetition of the end is held against it: less likely than without the rule.
    assert!(rewards[0] > -11.0 && rewards[0] < cut.mean_logprob().unwrap(), "{rewards:?}");
}

/// Whole rows of a long reply take gigabytes by a model with a large vocabulary.
#[tokio::test]
async fn a_long_reply_needs_no_memory_for_its_rows() {
    let mut config = CandleConfig::default();
    config.max_kv_bytes = 48 << 20;
    let (backend, roomy) = (load_with(config), load());
    let reply = "The sky is blue because air scatters light. ".repeat(40);
    let rows = backend.score(ScoreRequest::plain(PROMPT, reply.as_str()).with_rows()).await.unwrap_err();
    assert!(matches!(&rows, Error::InvalidRequest(problem) if problem.contains("rows of 49152 logits")), "{rows}");
    let replies = [reply, REPLIES[0].to_owned()];
    for rules in [Profile::openvalidators_1_2().dpo, Profile::text_prompting_2_1().dpo] {
        let rewards =
            DpoModel::new(Arc::<CandleBackend>::clone(&backend), rules).scores(PROMPT, &replies).await.unwrap();
        let score =
            roomy.score(ScoreRequest::plain(PROMPT, replies[0].as_str()).with_rows().with_prompt_logits()).await;
        let Score { token_ids, rows, prompt_logits, .. } = score.unwrap();
        let expected = rules.reward(&token_ids, &rows.expect("rows"), prompt_logits.expect("moments"));
        assert!((rewards[0] - expected).abs() < 1e-4, "{rewards:?}, expected {expected}");
    }
}
