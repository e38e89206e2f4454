use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use idiolect_backend::testkit::{FaultyBackend, Step};
use idiolect_backend::{Echo, Embedder, Embedding, Error, ErrorKind, HashEmbedder, Message, Usage};
use idiolect_mutation::guard::Rules;
use idiolect_mutation::repair::repair;
use idiolect_mutation::{Library, Recipe, Task};
use idiolect_protocol::{Category, Prompt, Role};
use idiolect_uniqueness::Panels;
use proptest::prelude::*;

use super::double::{OTHER, SKY, SKY_AGAIN, Scripted, Slow, ask, config, parts, prompt, says, start};
use crate::{Ask, Parts, Pipeline, PipelineConfig, PipelineError};

#[tokio::test]
async fn the_candidate_unlike_its_siblings_is_sent() {
    let pipeline = start(3, parts(Scripted::new(vec![says(SKY), says(SKY_AGAIN), says(OTHER)]))).await;
    let answer = pipeline.answer(ask()).await.unwrap();
    assert_eq!(answer.reply.completions, [OTHER]);
    assert_eq!(answer.reply.finish_reason, "stop");
    assert_eq!(answer.reply.model, "scripted-1");
    let p = &answer.provenance;
    assert_eq!((p.reason.as_str(), p.mode.as_str(), p.task.as_str()), ("best_that_clears", "mutate", "unknown"));
    assert_eq!(p.chosen().unwrap().text.as_deref(), Some(OTHER));
    assert_eq!(p.candidates.iter().filter(|c| c.sent).count(), 1);
    let vendi = p.vendi.unwrap();
    assert!((1.5..3.0).contains(&vendi), "two of three are alike: {vendi}");
    let shown = p.to_string();
    for part in [
        "chosen    best_that_clears: of those that clear the gate the best product of quality",
        "variety   3 candidates count as ",
        "(batch 1.00, historic none)",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(p.candidates[0].score.as_ref().unwrap().distance.unwrap() < 0.1);
    let shown = p.to_string();
    assert!(shown.contains("<- sent") && shown.contains("does not clear the gate"), "{shown}");
}

#[tokio::test]
async fn replies_of_before_are_not_repeated() {
    let backend = Scripted::new(vec![says(SKY), says(OTHER)]);
    let pipeline = start(2, parts(backend)).await;
    let mut sent = Vec::new();
    for i in 0..4 {
        // Different prompts: only the history of replies connects them.
        let answer = pipeline.answer(Ask::new(super::double::prompt(&format!("Why, {i}?")))).await.unwrap();
        sent.push(answer.reply.completions[0].clone());
        assert_eq!(answer.provenance.n_history, i);
    }
    assert_eq!(sent[0], sent[1], "one earlier copy is free");
    assert_ne!(sent[1], sent[2], "the second earlier copy costs the reward");
}

#[tokio::test]
async fn the_same_prompt_at_the_same_time_is_not_answered_alike() {
    let slow = Slow { inner: HashEmbedder::new(256), wait: Duration::from_millis(20) };
    let script = vec![says(SKY), says(OTHER)];
    let parts = Parts { embedder: Some(Arc::new(slow)), ..parts(Scripted::new(script)) };
    let pipeline = start(2, parts).await;
    let (first, second) = tokio::join!(pipeline.answer(ask()), pipeline.answer(ask()));
    assert_ne!(first.unwrap().reply.completions, second.unwrap().reply.completions);
}

#[tokio::test]
async fn a_recorded_rival_is_kept_away_from() {
    let embedder = idiolect_backend::HashEmbedder::new(256);
    let embedded: Vec<Embedding> = idiolect_backend::Embedder::embed(&embedder, &[OTHER.to_owned()]).await.unwrap();
    let mut panel = Panels::new("hash-256", 256);
    panel.push(None, "rival", &embedded[0]);
    let with_panel =
        |panel| Parts { panels: Some(Arc::new(panel)), ..parts(Scripted::new(vec![says(OTHER), says(SKY)])) };
    let answer = start(2, with_panel(panel)).await.answer(ask()).await.unwrap();
    assert_eq!(answer.reply.completions, [SKY]);
    let error = Pipeline::start(config(2), with_panel(Panels::new("mpnet", 3))).await.unwrap_err();
    assert!(error.to_string().contains("the panel was embedded by mpnet"), "{error}");
}

#[tokio::test]
async fn recipes_share_the_candidates_and_the_first_is_the_no_op() {
    let backend = Arc::new(Scripted::new(vec![says(SKY), says(OTHER)]));
    let parts = Parts { library: Arc::new(Library::built_in()), ..Parts::new(backend.clone()) };
    let pipeline = Pipeline::start(PipelineConfig { recipes: 3, ..config(7) }, parts).await.unwrap();
    let first = pipeline.answer(ask()).await.unwrap();
    assert_eq!(first.provenance.candidates.len(), 7);
    assert_eq!(backend.requests().iter().map(|r| r.n).collect::<Vec<_>>(), [1, 2, 2, 2], "one goes ahead");
    let answer = pipeline.answer(ask()).await.unwrap();
    let requests = backend.requests().split_off(4);
    assert_eq!(requests.iter().map(|r| r.n).collect::<Vec<_>>(), [3, 2, 2]);
    assert_eq!(requests[0].messages, [Message::user("Why is the sky blue?")]);
    assert!(requests[1..].iter().all(|r| r.messages != requests[0].messages));
    assert!(requests.iter().all(|r| r.sampling.seed.is_some() && r.deadline.is_some()));
    let recipes: Vec<&str> = answer.provenance.candidates.iter().map(|c| c.recipe.as_str()).collect();
    assert_eq!(&recipes[..3], ["no-op"; 3]);
    assert!(!answer.provenance.candidates[3].operators.is_empty());
    // A library without operators leaves all candidates to the no-op.
    let backend = Arc::new(Scripted::new(vec![says(SKY)]));
    let pipeline = start(5, Parts::new(backend.clone())).await;
    pipeline.answer(ask()).await.unwrap();
    assert_eq!(backend.requests().iter().map(|r| r.n).collect::<Vec<_>>(), [5]);
}

#[tokio::test]
async fn what_looks_like_a_template_reaches_the_model_as_it_is() {
    let asked = "What is {{ 7*7 }}? {% for x in y %}{{ prompt }}{% endfor %} {# why #}";
    let backend = Arc::new(Scripted::new(vec![says(SKY), says(OTHER)]));
    let parts = Parts { library: Arc::new(Library::built_in()), ..Parts::new(backend.clone()) };
    let pipeline = Pipeline::start(PipelineConfig { recipes: 8, ..config(8) }, parts).await.unwrap();
    let id = pipeline.answer(Ask::new(prompt(asked))).await.unwrap().provenance.id;
    let requests = backend.requests();
    assert_eq!(requests.len(), 8);
    for request in &requests {
        let user = request.messages.iter().find(|message| message.role == idiolect_backend::Role::User).unwrap();
        assert!(user.content.contains(asked), "{}", user.content);
    }
    // What the record says was asked of the model is what was asked.
    let provenance = pipeline.explain(&id).await.unwrap();
    let base = provenance.prompt.as_ref().unwrap();
    assert_eq!(base, &[Message::user(asked)]);
    for candidate in &provenance.candidates {
        let recipe = Recipe { operators: candidate.operators.clone(), sampling: candidate.sampling.clone() };
        let rendered = recipe.apply(base);
        assert!(requests.iter().any(|request| request.messages == rendered), "{}", candidate.recipe);
    }
}

#[tokio::test]
async fn one_seed_draws_alike_and_two_do_not() {
    let mut drawn = Vec::new();
    for seed in [7, 7, 8] {
        let backend = Arc::new(Scripted::new(vec![says(SKY)]));
        let parts = Parts { library: Arc::new(Library::built_in()), ..Parts::new(backend.clone()) };
        let pipeline = Pipeline::start(PipelineConfig { seed: Some(seed), ..config(4) }, parts).await.unwrap();
        for _ in 0..2 {
            pipeline.answer(ask()).await.unwrap();
        }
        drawn.push(backend.requests().into_iter().map(|r| (r.messages, r.sampling)).collect::<Vec<_>>());
    }
    assert_eq!(drawn[0], drawn[1]);
    assert_ne!(drawn[0], drawn[2]);
    assert_ne!(drawn[0][0].1.seed, drawn[0][2].1.seed, "the same prompt again is another draw");
}

#[tokio::test]
async fn a_configured_seed_is_the_seed_of_every_prompt() {
    for backend in [Scripted::new(vec![says(SKY)]), Scripted::new(vec![says(SKY)]).without_seeds()] {
        let backend = Arc::new(backend);
        let parts = Parts { library: Arc::new(Library::built_in()), ..Parts::new(backend.clone()) };
        let mut config = PipelineConfig { recipes: 2, ..config(4) };
        config.sampling.seed = Some(11);
        let pipeline = Pipeline::start(config, parts).await.unwrap();
        for _ in 0..2 {
            pipeline.answer(ask()).await.unwrap();
        }
        let seeds: Vec<_> = backend.requests().iter().map(|request| request.sampling.seed.unwrap()).collect();
        assert_eq!((seeds[0], seeds.len()), (11, 4));
        assert_eq!(seeds[..2], seeds[2..], "the same again");
        assert_ne!(seeds[0], seeds[1], "the recipes of one prompt draw apart");
    }
}

#[tokio::test]
async fn with_a_configured_seed_the_order_of_prompts_is_nothing() {
    let prompts = ["Why is the sky blue?", "Name three rivers.", "What is salt?", "Why is the sky blue?"];
    let drawn = async |order: [usize; 4], seed, recipes_seed| {
        let backend = Arc::new(Scripted::new(vec![says(SKY)]));
        let parts = Parts { library: Arc::new(Library::built_in()), ..Parts::new(backend.clone()) };
        let mut config = PipelineConfig { recipes: 3, seed: recipes_seed, ..config(6) };
        config.sampling.seed = Some(seed);
        let pipeline = Pipeline::start(config, parts).await.unwrap();
        let mut by_prompt = BTreeMap::new();
        for (nth, i) in order.into_iter().enumerate() {
            let answer = pipeline.answer(Ask::new(prompt(prompts[i]))).await.unwrap();
            let requests = backend.requests();
            assert_eq!(requests.len(), 3 * (nth + 1));
            let sent = requests[3 * nth..].iter().map(|r| (r.n, r.messages.clone(), r.sampling.clone()));
            let recipes = answer.provenance.candidates.iter().map(|candidate| candidate.recipe.clone());
            by_prompt.insert(i, (sent.collect::<Vec<_>>(), recipes.collect::<Vec<_>>()));
        }
        by_prompt
    };
    let first = drawn([0, 1, 2, 3], 11, None).await;
    assert_eq!(first, drawn([3, 2, 0, 1], 11, None).await);
    assert_eq!(first[&0], first[&3], "the same prompt again");
    let recipes =
        |drawn: &BTreeMap<usize, (Vec<_>, Vec<String>)>| drawn.values().map(|d| d.1.clone()).collect::<Vec<_>>();
    assert!(recipes(&first).windows(2).any(|pair| pair[0] != pair[1]), "prompts draw apart");
    assert_ne!(recipes(&first), recipes(&drawn([0, 1, 2, 3], 12, None).await));
    let own = drawn([0, 1, 2, 3], 11, Some(5)).await;
    assert_eq!(own, drawn([2, 3, 1, 0], 11, Some(5)).await);
    assert_ne!(recipes(&first), recipes(&own), "recipes have a seed of their own");
}

#[tokio::test]
async fn with_a_configured_seed_the_candidates_of_a_prompt_are_always_the_same() {
    let prompts = ["Why is the sky blue over the sea?", "Name three rivers of Asia.", "What is salt made of?"];
    let texts = async |order: &[usize], seed: Option<u64>| {
        let parts = Parts { library: Arc::new(Library::built_in()), ..parts(Echo::new()) };
        let recipes_seed = if seed.is_none() { Some(7) } else { None };
        let mut config = PipelineConfig { recipes: 3, seed: recipes_seed, ..config(6) };
        config.sampling.seed = seed;
        let pipeline = Pipeline::start(config, parts).await.unwrap();
        let mut by_prompt = BTreeMap::new();
        for &i in order {
            let answer = pipeline.answer(Ask::new(prompt(prompts[i]))).await.unwrap();
            let candidates = answer.provenance.candidates.iter();
            let drawn = candidates.map(|c| (c.index, c.recipe.clone(), c.operators.clone(), c.text.clone()));
            by_prompt.entry(i).or_insert_with(Vec::new).push(drawn.collect::<Vec<_>>());
            pipeline.flush().await;
        }
        by_prompt
    };
    let first = texts(&[0, 1, 2, 0], Some(11)).await;
    assert!(first[&0].iter().chain(&first[&1]).all(|drawn| drawn.len() == 6 && drawn.iter().all(|c| c.3.is_some())));
    assert_eq!(first[&0][0], first[&0][1], "the same prompt again");
    assert_eq!(first, texts(&[2, 0, 0, 1], Some(11)).await);
    assert_ne!(first, texts(&[0, 1, 2, 0], Some(12)).await);
    let afresh = texts(&[0, 1, 2, 0], None).await;
    assert_ne!(afresh[&0][0], afresh[&0][1], "without a seed another draw each time");
}

#[tokio::test]
async fn several_completions_are_the_best_different_ones() {
    let script = vec![says(SKY), says(SKY), says(OTHER), says(SKY_AGAIN)];
    let pipeline = start(4, parts(Scripted::new(script))).await;
    let answer = pipeline.answer(Ask { n_completions: 3, ..ask() }).await.unwrap();
    assert_eq!(answer.reply.completions[0], OTHER);
    let mut completions = answer.reply.completions.clone();
    completions.sort();
    completions.dedup();
    assert_eq!(completions.len(), 3, "{completions:?}");
    let next = pipeline.answer(ask()).await.unwrap().provenance;
    assert_eq!(next.n_history, 3, "all that were sent are compared with");
    // As many as asked for, even where the model does not say so many different things.
    let pipeline = start(1, parts(Scripted::new(vec![says(SKY)]))).await;
    assert_eq!(pipeline.answer(Ask { n_completions: 3, ..ask() }).await.unwrap().reply.completions, [SKY; 3]);
    for n_completions in [0, 65] {
        let error = pipeline.answer(Ask { n_completions, ..ask() }).await.unwrap_err();
        assert_eq!(error.category, Category::Malformed);
    }
}

/// Reference miners drop assistant turns over a capital letter, cut answers at their last colon, forget all but the last
/// turn, and stop after 20 tokens.
#[tokio::test]
async fn what_reference_miners_get_wrong() {
    let backend = Arc::new(Scripted::new(vec![says("At noon: look up. At 10:30: look east. Ratio 3:1")]));
    let pipeline = start(1, Parts::new(backend.clone())).await;
    let turns = ["System", "User", "Assistant", "user"].map(|role| role.parse::<Role>().unwrap());
    let texts = ["Be brief: always.", "When?", "Assistant: at noon", "And where: here?"];
    let messages = turns.into_iter().zip(texts).map(|(role, text)| idiolect_protocol::Message::new(role, text));
    let answer = pipeline.answer(Ask::new(Prompt::new(messages.collect()).unwrap())).await.unwrap();
    let request = &backend.requests()[0];
    assert_eq!(
        request.messages,
        [
            Message::system("Be brief: always."),
            Message::user("When?"),
            Message::assistant("Assistant: at noon"),
            Message::user("And where: here?"),
        ]
    );
    assert!(request.sampling.max_tokens >= 200);
    assert_eq!(answer.reply.completions, ["At noon: look up. At 10:30: look east. Ratio 3:1"]);
    assert_eq!(answer.provenance.n_messages, 4);
}

/// A reference miner with a cache of prompts refused every prompt, since it took the question whether one is cached for
/// the answer to it.
#[tokio::test]
async fn a_prompt_asked_again_is_answered_anew() {
    let backend = Arc::new(Scripted::new(vec![says(SKY), says(OTHER)]));
    let pipeline = start(1, Parts::new(backend.clone())).await;
    for (n_asked, expected) in [(1, SKY), (2, OTHER), (3, SKY)] {
        assert_eq!(pipeline.answer(ask()).await.unwrap().reply.completions, [expected]);
        assert_eq!(backend.requests().len(), n_asked);
    }
}

#[tokio::test]
async fn labels_that_cost_the_reward_lose() {
    // What stands in a block of code is not repaired.
    let fenced = "```\nHere it is. The data: all of them are long and blue and far away.\n```";
    let pipeline = start(2, parts(Scripted::new(vec![says(fenced), says(OTHER)]))).await;
    let answer = pipeline.answer(Ask { task: Some("augment".to_owned()), ..ask() }).await.unwrap();
    assert_eq!(answer.reply.completions, [OTHER]);
    assert_eq!(answer.provenance.candidates[0].flags[0].penalty, 1.0);
}

#[tokio::test]
async fn labels_that_cost_the_reward_are_taken_off() {
    let script = vec![says("Here it is. The data: all of them are long and blue and far away."), says(OTHER)];
    let pipeline = start(2, parts(Scripted::new(script))).await;
    let answer = pipeline.answer(Ask { task: Some("augment".to_owned()), ..ask() }).await.unwrap();
    assert!(!answer.reply.completions[0].contains("data:"));
    let repaired = &answer.provenance.candidates[0];
    assert_eq!(repaired.repairs.iter().map(|repair| repair.kind.as_str()).collect::<Vec<_>>(), ["labels"]);
    let expected = "Here it is. The data all of them are long and blue and far away.";
    assert_eq!((repaired.text.as_deref(), repaired.flags.len()), (Some(expected), 0));
}

#[tokio::test]
async fn errors_are_errors_and_never_text() {
    for (kind, category) in [
        (ErrorKind::Overloaded, Category::Overloaded),
        (ErrorKind::Unavailable, Category::Unavailable),
        (ErrorKind::InvalidRequest, Category::Malformed),
        (ErrorKind::LimitReached, Category::Unavailable),
        (ErrorKind::Internal, Category::Internal),
    ] {
        let pipeline = start(2, parts(FaultyBackend::always("f", Step::Fail(kind)))).await;
        let error = pipeline.answer(ask()).await.unwrap_err();
        assert_eq!(error.category, category, "{kind:?}");
        assert!(pipeline.explain("last").await.is_err(), "there is no reply to explain");
    }
    let pipeline = start(2, parts(Scripted::new(vec![says(" \n")]))).await;
    assert_eq!(pipeline.answer(ask()).await.unwrap_err().category, Category::Unavailable);
}

#[tokio::test]
async fn what_was_said_before_a_failure_is_sent() {
    let broken = Step::Break("A whole sentence here. And half of ano".to_owned(), ErrorKind::Protocol);
    for step in [broken, Step::Truncate("A whole sentence here. And half of ano".to_owned())] {
        let pipeline = start(1, parts(FaultyBackend::always("f", step))).await;
        let answer = pipeline.answer(ask()).await.unwrap();
        assert_eq!(answer.reply.completions, ["A whole sentence here."]);
        assert_eq!(answer.reply.finish_reason, "length");
        assert_eq!(answer.provenance.notes.len(), 1, "{:?}", answer.provenance.notes);
    }
}

#[tokio::test]
async fn one_recipe_that_fails_does_not_cost_the_reply() {
    let backend = FaultyBackend::new("f", [Step::say(SKY), Step::Fail(ErrorKind::Overloaded)]);
    let parts = Parts { library: Arc::new(Library::built_in()), ..parts(backend) };
    let answer = start(2, parts).await.answer(ask()).await.unwrap();
    assert_eq!(answer.reply.completions, [SKY]);
    assert!(answer.provenance.notes.iter().any(|note| note.contains("overloaded")), "{:?}", answer.provenance.notes);
}

#[tokio::test]
async fn trimmed_prompts_are_noted() {
    let usage = Usage { prompt_tokens: 100, completion_tokens: 9, trimmed_tokens: 7, cached_tokens: 0 };
    let answer = start(1, parts(Scripted::new(vec![says(SKY)]).with_usage(usage))).await.answer(ask()).await.unwrap();
    let p = answer.provenance;
    assert_eq!((p.prompt_tokens, p.completion_tokens, p.trimmed_tokens), (100, 9, 7));
    assert!(p.to_string().contains("7 tokens were left out"), "{p}");
    assert!(p.to_string().contains("tokens    100 of the prompt, 9 generated\n"), "{p}");
}

#[tokio::test]
async fn tokens_from_the_prefix_cache_are_on_record() {
    let usage = Usage { prompt_tokens: 100, completion_tokens: 9, trimmed_tokens: 0, cached_tokens: 64 };
    let answer = start(1, parts(Scripted::new(vec![says(SKY)]).with_usage(usage))).await.answer(ask()).await.unwrap();
    let p = answer.provenance;
    assert_eq!(p.cached_tokens, 64);
    assert!(
        p.to_string().contains("tokens    100 of the prompt (64 of them from the prefix cache), 9 generated\n"),
        "{p}"
    );
    assert_eq!(serde_json::to_value(&p).unwrap()["cached_tokens"], 64);
}

#[tokio::test]
async fn bad_settings_are_named_together() {
    let mut config = PipelineConfig { candidates: 0, recipes: 0, ..PipelineConfig::default() };
    config.sampling.temperature = Some(9.0);
    let error = Pipeline::start(config, parts(Scripted::new(vec![says(SKY)]))).await.unwrap_err();
    let PipelineError::Config(text) = error else { panic!("{error}") };
    for part in ["candidates is 0", "recipes is 0", "temperature is 9"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn large_histories_are_searched_off_the_executor() {
    let pipeline = start(2, parts(Scripted::new(vec![says(SKY), says(OTHER)]))).await;
    for i in 0..300 {
        pipeline.answer(Ask::new(super::double::prompt(&i.to_string()))).await.unwrap();
    }
    let answer = pipeline.answer(ask()).await.unwrap();
    assert_eq!(answer.provenance.n_history, 300);
    assert!(answer.provenance.candidates[0].score.as_ref().unwrap().history_distance.unwrap() < 0.001);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_model_says_the_reply_is_one_of_its_texts(
        texts in proptest::collection::vec("[ -~\\n]{0,60}", 1..6),
        n_completions in 1_usize..8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(async {
            let pipeline = start(5, parts(Scripted::new(texts.iter().map(|t| says(t)).collect()))).await;
            pipeline.answer(Ask { n_completions, ..ask() }).await
        });
        let Ok(answer) = result else {
            prop_assert!(texts.iter().any(|t| t.trim().is_empty()), "{result:?}");
            return Ok(());
        };
        prop_assert!(!answer.reply.completions.is_empty() && answer.reply.completions.len() <= n_completions);
        let rules = Rules::detect(Task::Unknown, "Why is the sky blue?");
        for (completion, index) in answer.reply.completions.iter().zip(&answer.provenance.sent) {
            prop_assert!(!completion.is_empty());
            let sent = answer.provenance.candidates.iter().find(|c| c.index == *index).unwrap();
            prop_assert_eq!(sent.text.as_ref(), Some(completion));
            let is_of_the_model = |text: &String| match sent.repairs.is_empty() {
                true => text.trim() == completion,
                false => repair(&rules, text.trim()).text == *completion,
            };
            prop_assert!(texts.iter().any(is_of_the_model), "{:?}", completion);
        }
        let json = serde_json::to_string(&answer.provenance).unwrap();
        let again: crate::Provenance = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(again, answer.provenance);
    }
}

/// An encoder that fails, or gives this for every text but the last.
#[derive(Debug)]
struct Broken(Option<Embedding>, usize);

#[async_trait::async_trait]
impl idiolect_backend::Embedder for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    fn dimensions(&self) -> usize {
        2
    }

    fn max_tokens(&self) -> usize {
        8
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, idiolect_backend::Error> {
        let Self(given, n_lost) = self;
        let given = given.clone().ok_or_else(|| idiolect_backend::Error::internal("encoding", "boom"))?;
        Ok(vec![given; texts.len() - n_lost])
    }
}

#[tokio::test]
async fn a_broken_encoder_leaves_the_choice_to_quality() {
    for broken in [
        Broken(None, 0),
        Broken(Some(vec![1.0, 0.0]), 1),
        Broken(Some(vec![f32::NAN, 0.0]), 0),
        Broken(Some(vec![1.0, 0.0, 0.0]), 0),
        Broken(Some(Vec::new()), 0),
    ] {
        let script = vec![says("Blue."), says(SKY)];
        let parts = Parts { embedder: Some(Arc::new(broken)), ..parts(Scripted::new(script)) };
        let answer = start(2, parts).await.answer(ask()).await.unwrap();
        assert_eq!(answer.reply.completions, [SKY]);
        assert_eq!(answer.provenance.reason, "quality_only");
        assert_eq!(answer.provenance.notes, ["chosen without embeddings: the encoder failed"]);
    }
}

#[tokio::test]
async fn what_a_terminal_would_obey_is_shown() {
    let pipeline = start(1, parts(Scripted::new(vec![says("red \u{1b}[31m ink\nand \u{7} a bell")]))).await;
    let task = Some(format!("\u{1b}[2J{}", "x".repeat(1 << 20)));
    let p = pipeline.answer(Ask { task, ..ask() }).await.unwrap().provenance;
    assert!(p.task.len() < 100);
    let shown = p.to_string();
    assert!(!shown.contains(['\u{1b}', '\u{7}']), "{shown}");
    assert!(shown.contains("  | red \\u{1b}[31m ink\n  | and \\u{7} a bell"), "{shown}");
}

#[tokio::test]
async fn what_the_plain_prompt_gives_tells_how_usual_the_others_are() {
    // The encoder is known by its name to the calibration.
    #[derive(Debug)]
    struct Named(HashEmbedder);
    #[async_trait::async_trait]
    impl Embedder for Named {
        fn name(&self) -> &str {
            "all-mpnet-base-v2"
        }

        fn dimensions(&self) -> usize {
            self.0.dimensions()
        }

        fn max_tokens(&self) -> usize {
            self.0.max_tokens()
        }

        async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
            self.0.embed(texts).await
        }
    }
    let library = Arc::new(Library::built_in());
    let embedder: Arc<dyn Embedder> = Arc::new(Named(HashEmbedder::new(256)));
    let says = vec![says(SKY), says(SKY), says(OTHER), says(SKY_AGAIN)];
    let parts = Parts { embedder: Some(embedder), library, ..Parts::new(Arc::new(Scripted::new(says))) };
    let record = start(4, parts).await.answer(ask()).await.unwrap().provenance;
    let chance = |text: &str| {
        let mutated = record.candidates.iter().find(|c| !c.operators.is_empty() && c.text.as_deref() == Some(text));
        mutated.unwrap().score.clone().unwrap().masked.unwrap().p
    };
    assert!(chance(SKY_AGAIN) > chance(OTHER), "{record}");
}
