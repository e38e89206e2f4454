use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use idiolect_backend::{
    Backend, Candidate, Capabilities, Completion, CompletionStream, FinishReason, Health, Request, Score, ScoreRequest,
    Usage,
};

use super::fitness::{Usual, pass, worth};
use super::random::{Random, hash};
use super::screen::Screen;
use super::*;
use crate::{Library, Operator, Place, lint};

/// Replies whose worth is known: those to a text with "golden" are likelier than plain ones, which are all alike; those to "drift" leave the subject.
#[derive(Debug)]
struct Scripted {
    left: AtomicUsize,
}

impl Scripted {
    fn new() -> Self {
        Self::with(usize::MAX)
    }

    fn with(n: usize) -> Self {
        Self { left: AtomicUsize::new(n) }
    }
}

fn place_of(parts: &[&str]) -> Embedding {
    let mut random = Random::new(1, parts);
    let values: Vec<f32> = (0..16).map(|_| random.unit() as f32 - 0.5).collect();
    let length = values.iter().map(|x| x * x).sum::<f32>().sqrt();
    values.into_iter().map(|x| x / length).collect()
}

fn down() -> Error {
    Error::Unavailable { backend: "scripted".to_owned(), reason: "down".to_owned() }
}

#[async_trait]
impl Evaluator for Scripted {
    async fn evaluate(&self, trial: Trial<'_>) -> Result<Outcome, Error> {
        let is_left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if is_left.is_err() {
            return Err(down());
        }
        // Those that are asked first are not answered first.
        for _ in 0..trial.seed % 7 {
            tokio::task::yield_now().await;
        }
        let text = trial.recipe.operators.first().map_or("", |operator| operator.text.as_str());
        let (gold, noise) =
            (if text.to_lowercase().contains("golden") { 1.5 } else { 0.0 }, hash(&[text, &trial.prompt.id]) % 100);
        Ok(Outcome {
            text: format!("Reply {:x} about {}.", hash(&[text, &trial.prompt.id]), trial.prompt.id),
            logprob: Some(-2.0 + gold + noise as f64 / 500.0),
            relevance: Some(if text.contains("drift") { 0.1 } else { 0.6 }),
            relevant: !text.contains("drift"),
            flags: Vec::new(),
            length_error: Some(0.0),
            tokens: 100,
            embedding: place_of(&[text, &trial.prompt.id]),
        })
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        Ok(texts.iter().map(|text| place_of(&[&text.to_lowercase().replace("golden, ", "golden ")])).collect())
    }
}

/// Says what it was told to, by the seed.
#[derive(Debug)]
struct Proposer {
    capabilities: Capabilities,
    says: fn(u64) -> String,
}

impl Proposer {
    fn new(says: fn(u64) -> String) -> Self {
        let mut capabilities = Capabilities::new("scripted");
        capabilities.seed = true;
        Self { capabilities, says }
    }
}

#[async_trait]
impl Backend for Proposer {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        request.validate()?;
        let candidate = Candidate {
            index: 0,
            text: (self.says)(request.sampling.seed.unwrap_or_default()),
            finish_reason: FinishReason::Stop,
            n_tokens: 10,
            logprobs: None,
            mean_logprob: None,
        };
        let usage = Usage { prompt_tokens: 90, completion_tokens: 10, ..Usage::default() };
        Ok(Completion {
            candidates: vec![candidate],
            usage,
            model: "scripted".to_owned(),
            backend: "scripted".to_owned(),
        })
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        Ok(idiolect_backend::stream_of(self.complete(request).await?))
    }

    async fn score(&self, _: ScoreRequest) -> Result<Score, Error> {
        Err(Error::Unsupported { backend: "scripted".to_owned(), what: "scoring".to_owned() })
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

/// Every third answer is a template, every third one chatter; the rest is good.
fn mixed(seed: u64) -> String {
    match seed % 3 {
        0 => "Use {{ 7*7 }} golden words throughout.".to_owned(),
        1 => "Sure! I can help you with that.".to_owned(),
        _ => golden(seed),
    }
}

fn golden(seed: u64) -> String {
    format!("Here is the instruction:\n\"Golden w{:x} threads w{:x} first\"", seed % 65_521, seed % 65_519)
}

fn prompts() -> Vec<TrialPrompt> {
    let prompt = |i: usize| TrialPrompt {
        id: format!("p{i}"),
        text: format!("What is said of subject {i}?"),
        task: if i.is_multiple_of(2) { Task::Answer } else { Task::Augment },
    };
    (0..16).map(prompt).collect()
}

fn config() -> EvolveConfig {
    EvolveConfig { seed: 3, generations: 3, proposals: 4, starters: 5, ..EvolveConfig::default() }
}

struct Run {
    report: Report,
    toml: String,
}

/// Runs as far as it goes.
async fn run(
    config: EvolveConfig,
    evaluator: &Scripted,
    says: fn(u64) -> String,
    journal: Journal,
) -> Result<Run, EvolveError> {
    let (library, proposer) = (Library::built_in(), Proposer::new(says));
    let names = BTreeMap::from([("model".to_owned(), "scripted".to_owned())]);
    let mut evolution = Evolution::new(config, &library, prompts(), evaluator, &proposer, journal, names)?;
    evolution.run(&mut |_, _| ()).await?;
    evolution.hold_out(&mut |_, _| ()).await?;
    Ok(Run { report: evolution.report(), toml: evolution.to_toml(None)? })
}

#[tokio::test]
async fn better_texts_become_elites_and_bad_ones_are_counted() {
    let Run { report, toml } = run(config(), &Scripted::new(), mixed, Journal::in_memory()).await.unwrap();
    assert!(report.is_done && report.generations == 3);
    assert!(report.rejected[&Reject::Template] > 0 && report.rejected[&Reject::Chatter] > 0, "{:?}", report.rejected);
    let proposed: Vec<&EliteReport> = report.elites.iter().filter(|elite| elite.origin != "library").collect();
    let gold: Vec<&&EliteReport> = proposed.iter().filter(|elite| elite.text.starts_with("Golden")).collect();
    assert!(!gold.is_empty(), "{report:?}");
    for elite in &gold {
        assert!(elite.fitness > 0.9 && elite.gain.low > 0.5 && elite.held_out.unwrap().value > 0.5, "{elite:?}");
    }
    let held = report.held_out.unwrap();
    assert_eq!(held.plain, 0.0, "plain replies are all alike");
    assert!(held.elites > held.start && held.gain.low > 0.0 && held.gain_of_best.value > 0.0, "{held:?}");

    // What comes out is a good library, in which nothing is a template that was not one before.
    let library = Library::parse(&toml, "out.toml").unwrap();
    assert_eq!(library.operators().len(), Library::built_in().operators().len() + proposed.len());
    assert_eq!(lint::library(&library), []);
    assert!(!toml.contains("{{"));
}

#[tokio::test]
async fn without_a_useful_proposer_texts_are_put_together() {
    let report = run(config(), &Scripted::new(), |_| "Sure!".to_owned(), Journal::in_memory()).await.unwrap().report;
    assert_eq!((report.n_proposed, report.n_from_clauses, report.n_asked), (12, 12, 24));
    assert_eq!(report.rejected[&Reject::Chatter], 24);
    assert!(report.elites.iter().any(|elite| elite.origin == "clauses"), "{report:?}");
}

#[tokio::test]
async fn the_number_of_requests_at_a_time_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for concurrency in [1, 7, 64] {
        let folder = dir.path().join(concurrency.to_string());
        let config = EvolveConfig { concurrency, ..config() };
        let Run { report, toml } = run(config, &Scripted::new(), mixed, Journal::open(&folder).unwrap()).await.unwrap();
        found.push((report, toml, std::fs::read(folder.join("journal.jsonl")).unwrap()));
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]));
    let other = EvolveConfig { seed: 4, ..config() };
    assert_ne!(run(other, &Scripted::new(), mixed, Journal::in_memory()).await.unwrap().toml, found[0].1);
}

#[tokio::test]
async fn a_run_that_broke_off_anywhere_ends_as_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    let whole = run(config(), &Scripted::new(), mixed, Journal::open(dir.path()).unwrap()).await.unwrap();
    let journal = std::fs::read(&path).unwrap();
    let ends: Vec<usize> =
        journal.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    let n = ends.len();
    let at_lines = [0, 1, 2, n / 4, n / 2, n - 1].map(|line| ends.get(line.wrapping_sub(1)).copied().unwrap_or(0));
    let within = [3, n / 3, n / 2, n - 2].map(|line| ends[line] + 9);
    for cut in at_lines.into_iter().chain(within).chain([ends[n - 1] - 1, journal.len()]) {
        std::fs::write(&path, &journal[..cut]).unwrap();
        let again = run(config(), &Scripted::new(), mixed, Journal::open(dir.path()).unwrap()).await.unwrap();
        assert_eq!((again.report, again.toml), (whole.report.clone(), whole.toml.clone()), "cut at {cut}");
        assert_eq!(std::fs::read(&path).unwrap(), journal, "cut at {cut}");
    }
    // A finished run asks for nothing.
    assert!(run(config(), &Scripted::with(0), mixed, Journal::open(dir.path()).unwrap()).await.is_ok());
}

#[tokio::test]
async fn a_backend_that_fails_ends_the_run_and_what_it_said_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let whole = run(config(), &Scripted::new(), mixed, Journal::in_memory()).await.unwrap();
    let mut n_broken = 0;
    loop {
        match run(config(), &Scripted::with(23), mixed, Journal::open(dir.path()).unwrap()).await {
            Ok(found) => break assert_eq!((found.report, found.toml), (whole.report, whole.toml)),
            Err(EvolveError::Backend { what, .. }) => assert!(what.starts_with("no reply to the prompt p"), "{what}"),
            Err(error) => panic!("{error}"),
        }
        n_broken += 1;
    }
    assert!(n_broken > 3);
}

#[tokio::test]
async fn a_dropped_run_has_the_elites_of_whole_generations() {
    let (library, proposer, evaluator) = (Library::built_in(), Proposer::new(mixed), Scripted::new());
    let new = || {
        Evolution::new(config(), &library, prompts(), &evaluator, &proposer, Journal::in_memory(), BTreeMap::new())
            .unwrap()
    };
    let mut unbroken = new();
    let mut polls = 0;
    let mut tell = |_, _| ();
    let mut run = Box::pin(unbroken.run(&mut tell));
    std::future::poll_fn(|context| {
        polls += 1;
        run.as_mut().poll(context).map(|done| done.unwrap())
    })
    .await;
    drop(run);
    let mut seen = Vec::new();
    for after in (1..polls).step_by((polls / 5).max(1)) {
        let mut evolution = new();
        let mut left = after;
        let mut tell = |_, _| ();
        let mut run = Box::pin(evolution.run(&mut tell));
        std::future::poll_fn(|context| {
            left -= 1;
            if left == 0 { std::task::Poll::Ready(()) } else { run.as_mut().poll(context).map(|done| done.unwrap()) }
        })
        .await;
        drop(run);
        let report = evolution.report();
        assert!(!report.is_done);
        let latest = report.elites.iter().map(|elite| elite.generation).max();
        assert!(latest.is_none_or(|latest| latest <= report.generations), "{report:?}");
        assert!(evolution.to_toml(None).is_ok());
        seen.push(report.elites.len());
    }
    assert!(seen.contains(&0) && seen.iter().any(|n| *n > 0), "{seen:?}");
}

#[tokio::test]
async fn a_budget_ends_it_and_more_generations_go_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let short = EvolveConfig { max_tokens: Some(1), ..config() };
    let found = run(short, &Scripted::new(), mixed, Journal::open(dir.path()).unwrap()).await.unwrap().report;
    assert_eq!((found.generations, found.n_proposed, found.is_done), (0, 0, true));
    let whole = run(config(), &Scripted::new(), mixed, Journal::in_memory()).await.unwrap();
    let found = run(config(), &Scripted::new(), mixed, Journal::open(dir.path()).unwrap()).await.unwrap();
    assert_eq!((found.report, found.toml), (whole.report, whole.toml));
}

#[tokio::test]
async fn what_cannot_be_evolved_is_said() {
    let refused = |config: EvolveConfig, prompts: Vec<TrialPrompt>, library: Library| {
        let (evaluator, proposer) = (Scripted::new(), Proposer::new(mixed));
        let made =
            Evolution::new(config, &library, prompts, &evaluator, &proposer, Journal::in_memory(), BTreeMap::new());
        made.err().unwrap().to_string()
    };
    let built_in = Library::built_in;
    let wrong = EvolveConfig { mini_batch: 0, ..config() };
    assert_eq!(refused(wrong, prompts(), built_in()), "mini_batch is 0, expected 1 to 1000");
    let wrong = EvolveConfig { hold_out: 0.95, ..config() };
    assert_eq!(refused(wrong, prompts(), built_in()), "hold_out is 0.95, expected 0 to 0.9");
    let wrong = EvolveConfig { hold_out: f64::NAN, ..config() };
    assert_eq!(refused(wrong, prompts(), built_in()), "hold_out is NaN, expected 0 to 0.9");
    assert!(
        refused(config(), prompts()[..4].to_vec(), built_in())
            .ends_with(": 2, expected at least 3, some of which are kept back to judge by")
    );
    assert!(refused(config(), vec![], built_in()).starts_with("prompts of the task unknown: 0, expected"));
    let twice = prompts().into_iter().chain(prompts()).collect();
    assert_eq!(refused(config(), twice, built_in()), "the prompt p0 is there twice");
    assert!(refused(config(), prompts(), Library::parse("", "o").unwrap()).contains("no operator with a text for"));

    let dir = tempfile::tempdir().unwrap();
    run(config(), &Scripted::new(), mixed, Journal::open(dir.path()).unwrap()).await.unwrap();
    let other = EvolveConfig { seed: 9, ..config() };
    let error =
        run(other, &Scripted::new(), mixed, Journal::open(dir.path()).unwrap()).await.err().unwrap().to_string();
    assert!(error.contains("seed is 3 there, expected 9"), "{error}");
    let held = Journal::open(dir.path()).unwrap();
    assert!(matches!(Journal::open(dir.path()), Err(JournalError::InUse { .. })));
    drop(held);
    std::fs::write(dir.path().join("journal.jsonl"), "{\"setup\":{}}\n{\"reply\":[]}\n").unwrap();
    assert!(Journal::open(dir.path()).err().unwrap().to_string().contains("journal.jsonl, line 2: "));
}

#[test]
fn answers_are_cleaned_or_refused() {
    let clean = |said: &str| propose::clean(said, true);
    for (said, expected) in [
        ("Keep every clause under a dozen words.", "Keep every clause under a dozen words."),
        (
            "Here is the instruction:\n\n1. \"keep clauses short and plain\"\nMore text.",
            "Keep clauses short and plain.",
        ),
        ("**New instruction:** Name the parts before the whole.", "Name the parts before the whole."),
        ("- `Name the parts\tbefore   the whole.`", "Name the parts before the whole."),
    ] {
        assert_eq!(clean(said).as_deref(), Ok(expected), "{said}");
    }
    for (said, expected) in [
        ("", Reject::Empty),
        ("Here it is:", Reject::Empty),
        ("Use {{ 7*7 }} words in all.", Reject::Template),
        ("Use {% if task %} few words in all.", Reject::Template),
        ("Fine then.\nAnd {# more #}", Reject::Template),
        ("Sure, here is one for you.", Reject::Chatter),
        ("I'm sorry, but I cannot do that.", Reject::Chatter),
        ("Skills</4 of all sounds to be learned.", Reject::Chatter),
        ("Be brief.", Reject::Length),
        (&"many ".repeat(40), Reject::Length),
    ] {
        assert_eq!(clean(said), Err(expected), "{said}");
    }
    assert_eq!(propose::clean("Keep every clause under a", false), Err(Reject::Unfinished));
    assert!(propose::clean("Keep every clause under ten words.", false).is_ok());
}

#[test]
fn texts_are_screened() {
    let library = Library::built_in();
    let (mut screen, texts) = Screen::of(&library);
    assert!(texts.len() >= 60);
    let make = |screen: &Screen, text: &str| screen.operator(&library, "angle", Place::Append, Task::Answer, text);
    let good = make(&screen, "Measure it all by what lasts.").unwrap();
    assert_eq!((good.slot.as_str(), good.tasks.as_slice(), good.place), ("angle", &[Task::Answer][..], Place::Append));
    assert_eq!(good.render(Task::Answer, 5).unwrap(), "Measure it all by what lasts.");
    for (text, expected) in [
        ("answer, using ACADEMIC language", Reject::Duplicate),
        ("Always let long sentences alternate with very long ones.", Reject::SharedRun),
        ("Put the points into a numbered list.", Reject::Mark),
        ("Wonder aloud what comes next?", Reject::Mark),
        ("End on the words \"so it goes\" each time.", Reject::Quotation),
        ("Use {{ 7*7 }} words.", Reject::Template),
        ("...", Reject::Empty),
        (&"unprecedented ".repeat(31), Reject::Library),
    ] {
        assert_eq!(make(&screen, text).err(), Some(expected), "{text}");
    }
    screen.add_text("Measure it all by what lasts.");
    assert_eq!(make(&screen, "measure it all by what lasts!").err(), Some(Reject::Duplicate));
    screen.add_embedding(vec![1.0, 0.0]);
    assert!(screen.is_near(&vec![0.96, 0.28]) && !screen.is_near(&vec![0.94, 0.341]) && !screen.is_near(&vec![1.0]));
}

#[test]
fn every_slot_has_clauses_that_a_library_takes() {
    let library = Library::built_in();
    let (screen, _) = Screen::of(&library);
    for slot in ["angle", "register", "persona", "audience", "length", "lexis", "opening", "reason", "seed", "tone"] {
        let parent = "Weigh what is gained, against what is given up.";
        let made =
            clauses::texts(slot, parent, Some("Name the effect, then the reason."), &mut Random::new(1, &[slot]));
        assert_eq!(
            made,
            clauses::texts(slot, parent, Some("Name the effect, then the reason."), &mut Random::new(1, &[slot]))
        );
        let usable = made
            .iter()
            .filter(|text| screen.operator(&library, slot, Place::Append, Task::Answer, text).is_ok())
            .count();
        assert!(usable >= 12, "{slot}: {usable} of {}", made.len());
    }
}

#[test]
fn fitness_is_quality_times_pass_times_what_penalties_leave() {
    let usual = Usual::of(&[-3.0, -1.0]);
    let outcome = |logprob, relevant| Outcome { logprob: Some(logprob), relevant, ..Outcome::default() };
    assert!((worth(&outcome(-2.0, true), usual) - 0.5).abs() < 1e-12);
    assert!((worth(&outcome(-1.0, true), usual) - 0.841_344_746).abs() < 1e-6);
    assert_eq!(worth(&outcome(5.0, false), usual), 0.0, "nonsense is worth nothing, however likely");
    let flags = vec![Flag { kind: crate::FlagKind::Criteria, penalty: 0.25, rule: "length".to_owned() }];
    assert!((worth(&Outcome { flags, ..outcome(-2.0, true) }, usual) - 0.375).abs() < 1e-7);
    assert_eq!(worth(&outcome(f64::NAN, true), usual), 0.5);

    let (gate, own) = (Gate { distance: 0.1 }, vec![1.0, 0.0]);
    let near = vec![0.95, 0.312_249_9];
    let far = vec![0.0, 1.0];
    assert_eq!(pass(gate, &own, &near, [].iter()), 0.0);
    assert_eq!(pass(gate, &own, &far, [].iter()), 1.0);
    assert_eq!(pass(gate, &own, &far, [&near, &far, &far, &far].into_iter()), 0.75);
}

#[test]
fn feedback_says_what_was_wrong() {
    let rival = Outcome { embedding: vec![1.0, 0.0], relevant: true, ..Outcome::default() };
    let near = Outcome { embedding: vec![1.0, 0.0], relevant: true, length_error: Some(0.31), ..Outcome::default() };
    let flags = vec![Flag { kind: crate::FlagKind::ContentMatch, penalty: 0.1, rule: "a stock opening".to_owned() }];
    let far =
        Outcome { embedding: vec![0.0, 1.0], relevant: false, length_error: Some(-0.5), flags, ..Outcome::default() };
    assert_eq!(
        feedback(Gate::default(), &[(&near, &rival), (&far, &rival)]),
        "1 of 2 replies were too near to the plain reply (least distance 0.000); in 1 of 2 replies the length was 31 % over; in 1 of 2 replies \
         the length was 50 % under; 1 of 2 replies left the subject; 1 of 2 replies lost to content match (a stock opening)"
    );
    let good = Outcome { embedding: vec![0.0, 1.0], relevant: true, ..Outcome::default() };
    assert_eq!(feedback(Gate::default(), &[(&good, &rival)]), "nothing was wrong with the replies");
}

#[test]
fn niches_are_read_off_replies() {
    for (reply, expected) in [
        ("- one\n- two", Opening::List),
        ("1. one", Opening::List),
        ("1990 was a year.", Opening::Direct),
        ("What is it for? Nothing.", Opening::Question),
        ("The bridge fell.", Opening::Article),
        ("We saw it.", Opening::Person),
        ("In spring it falls.", Opening::Lead),
        ("Bridges fall.", Opening::Direct),
        ("", Opening::Direct),
    ] {
        assert_eq!(Opening::of(reply), expected, "{reply}");
    }
    assert_eq!(Opening::of_all(["The a.", "We b.", "The c."].into_iter()), Opening::Article);
    assert_eq!(Opening::of_all(["We b.", "The c."].into_iter()), Opening::Article, "of equals the first");
    assert_eq!([(79, 100), (80, 100), (125, 100), (126, 100), (0, 0)].map(|(a, b)| Length::of(a, b)), {
        use Length::{Alike, Longer, Shorter};
        [Shorter, Alike, Alike, Longer, Shorter]
    });
}

#[test]
fn journals_keep_every_bit() {
    let outcome = Outcome {
        embedding: vec![0.1, -0.0, f32::MIN_POSITIVE, 1.0 / 3.0],
        logprob: Some(-1.0 / 3.0),
        ..Outcome::default()
    };
    let text = serde_json::to_string(&outcome).unwrap();
    let back: Outcome = serde_json::from_str(&text).unwrap();
    let bits = |outcome: &Outcome| outcome.embedding.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!((bits(&back), back.logprob), (bits(&outcome), outcome.logprob));
    assert!(serde_json::from_str::<Outcome>(&text.replace("3dcccccd", "3dcccc")).is_err());
    assert!(serde_json::from_str::<Outcome>(&text.replace("3dcccccd", "xyccccéé")).is_err());
}

#[test]
fn a_file_of_ones_own_is_kept_and_added_to() {
    let start = "[[operator]]\nname = \"a.b\"\nslot = \"angle\"\nplace = \"append\"\ntext = \"Go from end to start.\"\n\n[[route]]\ntask = [\"followup\"]";
    let library = Library::parse(start, "o").unwrap();
    let (evaluator, proposer) = (Scripted::new(), Proposer::new(golden));
    let mut evolution =
        Evolution::new(config(), &library, prompts(), &evaluator, &proposer, Journal::in_memory(), BTreeMap::new())
            .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(evolution.run(&mut |_, _| ())).unwrap();
    let toml = evolution.to_toml(Some(start)).unwrap();
    assert!(toml.starts_with(start));
    let out = Library::parse(&toml, "out").unwrap();
    assert!(out.operators().len() > 1 && out.routes() == library.routes());
    let names: Vec<&Operator> = out.operators().iter().filter(|operator| operator.text.starts_with("Golden")).collect();
    assert!(
        names.iter().all(|operator| operator.slot == "angle" && operator.place == Place::Append) && !names.is_empty()
    );
}
