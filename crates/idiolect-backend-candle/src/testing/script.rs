//! An engine without a model, for tests of how requests are served: it says known things, takes known times, fails as told,
//! writes down its steps, and holds whoever uses it to the contract.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use idiolect_kernels::Team;

use crate::backend::{CandleBackend, Names};
use crate::clock::{Clock, Scripted as Time};
use crate::config::CandleConfig;
use crate::engine::{Engine, EngineError, Feed, Portion, Seq, Wants};
use crate::prompt::Prompter;
use crate::template::Template;
use crate::testing::TinyGguf;
use crate::tokenizer::Tokenizer;

type Meanwhile = Hidden<Box<dyn FnOnce() + Send>>;

/// What has nothing to show.
struct Hidden<T>(T);

impl<T> std::fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hidden")
    }
}

/// Length of a row of logits.
pub(crate) const VOCABULARY: usize = 259;
/// Bytes of keys and values of a token.
pub(crate) const TOKEN_BYTES: u64 = 1000;
const CONTEXT: usize = 4096;
/// The token "he" of the tiny vocabulary.
const HE: usize = 258;
/// Prompts longer than this are those that a fault comes with.
const FAULTY: usize = 100;

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    NotANumber,
    Panic,
    /// Its sequence cannot grow.
    Refused,
    /// A step takes 20 ms more.
    Slow,
}

/// What is said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Voice {
    /// "he", over and over.
    #[default]
    He,
    /// A few letters, so that texts differ, and the end of none.
    Letters,
}

/// What the engine was given in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) candidates: usize,
    pub(crate) prompt_tokens: usize,
    /// Prompts that these are of.
    pub(crate) prompts: usize,
}

/// What the engine does, and what it was asked to do.
#[derive(Debug, Default)]
pub(crate) struct Script {
    voice: Voice,
    /// What goes wrong with long prompts, and after how many tokens of a candidate.
    fault: Option<(Fault, usize)>,
    /// Whether prompts are said to be kept.
    keeps: bool,
    /// Microseconds of each step.
    pub(crate) step: AtomicU64,
    /// Microseconds of each candidate.
    pub(crate) candidate: AtomicU64,
    /// Microseconds of each token of a prompt.
    pub(crate) prompt_token: AtomicU64,
    /// Which of the steps takes ten times as long.
    pub(crate) held_up: AtomicUsize,
    /// Sequences that were begun and not released.
    sequences: AtomicUsize,
    /// Most tokens that were held at once.
    most_held: AtomicUsize,
    steps: Mutex<Vec<Step>>,
    time: Arc<Time>,
    /// What happens while the next step is computed.
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl Script {
    /// Says letters, in known times.
    pub(crate) fn paced(step: u64, candidate: u64, prompt_token: u64) -> Self {
        let (step, candidate, prompt_token) =
            (AtomicU64::new(step), AtomicU64::new(candidate), AtomicU64::new(prompt_token));
        Self { voice: Voice::Letters, step, candidate, prompt_token, ..Self::even() }
    }

    /// Says "he", and fails where a prompt is long.
    pub(crate) fn failing(fault: Fault, after: usize) -> Self {
        Self { fault: Some((fault, after)), ..Self::even() }
    }

    /// Says "he", and holds no step up.
    fn even() -> Self {
        Self { held_up: AtomicUsize::new(usize::MAX), ..Self::default() }
    }

    /// Says that prompts are kept for others.
    pub(crate) const fn keeping(mut self) -> Self {
        self.keeps = true;
        self
    }

    pub(crate) fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }

    /// Returns how many candidates grew at most in one of the steps from some number on.
    pub(crate) fn most_candidates(&self, since: usize) -> usize {
        self.steps()[since..].iter().map(|step| step.candidates).max().unwrap_or(0)
    }

    pub(crate) fn n_sequences(&self) -> usize {
        self.sequences.load(Ordering::Relaxed)
    }

    pub(crate) fn most_held(&self) -> usize {
        self.most_held.load(Ordering::Relaxed)
    }

    /// Returns what time it is where the script is played: it passes with the steps, and with nothing else.
    pub(crate) fn now(&self) -> Instant {
        self.time.now()
    }

    pub(crate) fn clock(&self) -> Clock {
        Clock::Scripted(Arc::clone(&self.time))
    }

    /// Has something happen while the next step is computed.
    pub(crate) fn meanwhile(&self, what: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Hidden(Box::new(what)));
    }

    /// Starts a backend on this engine.
    pub(crate) fn start(self: &Arc<Self>, change: impl FnOnce(&mut CandleConfig)) -> CandleBackend {
        let (engine, prompter, config) = self.engine(change);
        let names = Names { model: "script".to_owned(), family: "script".to_owned() };
        CandleBackend::start(engine, prompter, Vec::new(), names, config, self.clock()).unwrap()
    }

    /// Makes an engine that follows this script, and what goes with it.
    pub(crate) fn engine(
        self: &Arc<Self>,
        change: impl FnOnce(&mut CandleConfig),
    ) -> (Scripted, Prompter, CandleConfig) {
        let (_dir, gguf) = TinyGguf::model("llama").open();
        let tokenizer = Tokenizer::read(&gguf).unwrap();
        let template = Template::read(&gguf, &tokenizer).unwrap();
        let prompter = Prompter { tokenizer, template, context: CONTEXT };
        let mut config = CandleConfig { max_kv_bytes: 100_000_000, ..CandleConfig::default() };
        change(&mut config);
        let engine = Scripted {
            script: Arc::clone(self),
            allowed: config.max_kv_bytes,
            team: Team::new(2).unwrap(),
            sequences: Vec::new(),
            logits: Vec::new(),
        };
        (engine, prompter, config)
    }
}

/// The engine.
#[derive(Debug)]
pub(crate) struct Scripted {
    script: Arc<Script>,
    allowed: u64,
    team: Team,
    sequences: Vec<Option<Sequence>>,
    logits: Vec<f32>,
}

#[derive(Clone, Copy, Debug)]
struct Sequence {
    /// Which prompt: a number for each that was begun.
    begun: usize,
    prompt: usize,
    room: usize,
    tokens: usize,
}

impl Scripted {
    fn add(&mut self, sequence: Sequence) -> Seq {
        self.sequences.push(Some(sequence));
        self.script.sequences.fetch_add(1, Ordering::Relaxed);
        Seq(u32::try_from(self.sequences.len() - 1).unwrap())
    }

    fn get(&mut self, seq: Seq) -> &mut Sequence {
        self.sequences[seq.0 as usize].as_mut().expect("a sequence that is there")
    }

    /// Tokens whose keys and values are held: of a prompt once for all its candidates.
    fn held(&self) -> usize {
        let mut prompts = HashSet::new();
        let of = |sequence: &Sequence| {
            let prompt = if prompts.insert(sequence.begun) { sequence.tokens.min(sequence.prompt) } else { 0 };
            prompt + sequence.tokens.saturating_sub(sequence.prompt)
        };
        self.sequences.iter().flatten().map(of).sum()
    }

    fn take_time(&self, step: &Step) {
        let cost = |of: &AtomicU64, n: usize| of.load(Ordering::Relaxed) * n as u64;
        let script = &self.script;
        let mut micros = cost(&script.step, 1)
            + cost(&script.candidate, step.candidates)
            + cost(&script.prompt_token, step.prompt_tokens);
        let is_faulty = self.sequences.iter().flatten().any(|sequence| sequence.prompt > FAULTY);
        if is_faulty && matches!(script.fault, Some((Fault::Slow, _))) {
            micros += 20_000;
        }
        if script.steps.lock().unwrap().len() == script.held_up.load(Ordering::Relaxed) {
            micros *= 10;
        }
        script.time.advance(micros);
        let meanwhile = script.meanwhile.lock().unwrap().take();
        if let Some(Hidden(meanwhile)) = meanwhile {
            meanwhile();
        }
    }

    fn row(&mut self, sequence: Sequence) {
        let begin = self.logits.len();
        match self.script.voice {
            Voice::He => {
                self.logits.resize(begin + VOCABULARY, 0.0);
                self.logits[begin + HE] = 50.0;
            }
            Voice::Letters => {
                self.logits.resize(begin + VOCABULARY, -50.0);
                self.logits[begin + 60..begin + 64].copy_from_slice(&[1.0, 0.5, 0.0, -0.5]);
            }
        }
        let Some((fault, after)) = self.script.fault else { return };
        if sequence.prompt > FAULTY && sequence.tokens.saturating_sub(sequence.prompt) >= after {
            match fault {
                Fault::NotANumber => self.logits[begin + 3] = f32::NAN,
                Fault::Panic => panic!("as told"),
                Fault::Slow | Fault::Refused => {}
            }
        }
    }
}

impl Engine for Scripted {
    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn context(&self) -> usize {
        CONTEXT
    }

    fn portion(&self) -> Portion {
        Portion { tokens: 1, bytes: TOKEN_BYTES }
    }

    fn team(&self) -> &Team {
        &self.team
    }

    fn begin(&mut self, prompt: &[u32], _known: usize, room: usize) -> Result<(Seq, usize), EngineError> {
        let begun = self.sequences.len();
        Ok((self.add(Sequence { begun, prompt: prompt.len(), room, tokens: 0 }), 0))
    }

    fn fork(&mut self, seq: Seq) -> Result<Seq, EngineError> {
        let sequence = *self.get(seq);
        assert_eq!(sequence.tokens, sequence.prompt, "forks begin at the end of the prompt");
        Ok(self.add(sequence))
    }

    fn allow(&mut self, seq: Seq, room: usize) -> Result<(), EngineError> {
        let sequence = self.get(seq);
        assert!(room > sequence.room, "more than was said");
        sequence.room = room;
        Ok(())
    }

    fn release(&mut self, seq: Seq) {
        self.sequences[seq.0 as usize].take().expect("a sequence is released once");
        self.script.sequences.fetch_sub(1, Ordering::Relaxed);
    }

    fn forward(&mut self, feeds: &[Feed<'_>]) -> Result<(), EngineError> {
        self.logits.clear();
        if let Some((Fault::Refused, after)) = self.script.fault {
            let is_faulty = |of: &Sequence| of.prompt > FAULTY && of.tokens.saturating_sub(of.prompt) >= after;
            if let Some(feed) =
                feeds.iter().find(|feed| is_faulty(self.sequences[feed.seq.0 as usize].as_ref().unwrap()))
            {
                return Err(EngineError::Sequence { seq: feed.seq, reason: "as told".to_owned() });
            }
        }
        let mut step = Step { candidates: 0, prompt_tokens: 0, prompts: 0 };
        for (i, feed) in feeds.iter().enumerate() {
            assert!(feeds[..i].iter().all(|other| other.seq != feed.seq), "each sequence once");
            let sequence = self.get(feed.seq);
            if sequence.tokens < sequence.prompt {
                step.prompt_tokens += feed.tokens.len();
                step.prompts += 1;
            } else {
                step.candidates += 1;
            }
            sequence.tokens += feed.tokens.len();
            assert!(sequence.tokens <= sequence.prompt + sequence.room, "no more than was said");
            let sequence = *sequence;
            let rows = match feed.wants {
                Wants::Nothing => 0,
                Wants::Last => 1,
                Wants::All => feed.tokens.len(),
            };
            (0..rows).for_each(|_| self.row(sequence));
        }
        self.take_time(&step);
        self.script.steps.lock().unwrap().push(step);
        let held = self.held();
        self.script.most_held.fetch_max(held, Ordering::Relaxed);
        assert!(held as u64 * TOKEN_BYTES <= self.allowed, "an engine is asked for what it may give");
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn reset(&mut self) {
        self.sequences.clear();
        self.script.sequences.store(0, Ordering::Relaxed);
    }

    fn keeps(&self, _seq: Seq) -> bool {
        self.script.keeps
    }
}
