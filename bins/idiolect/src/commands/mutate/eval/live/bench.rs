//! The arms of a live experiment, asked and put together.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use idiolect_arena::live::{self, Drawn, DrawnReply, Outcome, Scored, Scorer, Source, State};
use idiolect_arena::rivals;
use idiolect_arena::texts::{self, ArenaPrompt};
use idiolect_miner::app::Core;
use idiolect_miner::config::Config;
use idiolect_miner::progress::Counter;
use idiolect_pipeline::{Ask, Pipeline};
use idiolect_protocol::{Message, Prompt, Role};
use idiolect_validator::StepTask;

/// All that an experiment has to do with.
pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) config: Config,
    pub(super) seed: u64,
    pub(super) timeout: Duration,
    pub(super) prompts: Vec<(ArenaPrompt, StepTask)>,
    /// Files that nobody wants to keep; gone at the end.
    pub(super) _scratch: tempfile::TempDir,
}

impl Bench {
    fn pipeline(&self) -> &Pipeline {
        &self.core.pipeline
    }

    /// Returns the rivals' replies, by prompt, in the order of the prompts.
    pub(super) async fn rivals(&self, path: Option<&Path>) -> anyhow::Result<Vec<Vec<String>>> {
        let forgotten = self.config.data_dir.join("rivals.jsonl");
        let prompts: Vec<ArenaPrompt> = self.prompts.iter().map(|(prompt, _)| prompt.clone()).collect();
        let bar = Counter::new("rivals");
        let mut progress = |done, of| bar.at(done, of);
        let (backend, sampling) = (&*self.core.engines.pool, &self.config.sampling);
        let path = path.unwrap_or(&forgotten);
        let made = rivals::make(backend, sampling, &prompts, path, self.seed, &mut progress).await;
        bar.close();
        let made = made?;
        let of = |prompt: &ArenaPrompt| {
            let replies = made.iter().filter(|reply| reply.prompt == prompt.id);
            replies.map(|reply| reply.text.clone()).collect()
        };
        Ok(prompts.iter().map(of).collect())
    }

    /// Draws what the state does not have yet.
    pub(super) async fn draw(&self, state: &mut State) -> anyhow::Result<()> {
        let sources = [Source::Plain, Source::BestOfK, Source::Pipeline];
        let is_done = |prompt: &ArenaPrompt| sources.iter().all(|&source| state.drawn(&prompt.id, source).is_some());
        if !self.prompts.iter().all(|(prompt, _)| is_done(prompt)) {
            self.warm_up().await;
        }
        let bar = Counter::new("asking");
        for (nth, (prompt, _)) in self.prompts.iter().enumerate() {
            bar.at(nth, self.prompts.len());
            // Who comes later finds the prompt's beginning in the engine's cache: each of them is first in turn.
            for place in 0..sources.len() {
                let source = sources[(nth + place) % sources.len()];
                if state.drawn(&prompt.id, source).is_none() {
                    let drawn = self.draw_one(prompt, source).await?;
                    state.keep(drawn)?;
                }
            }
        }
        bar.close();
        Ok(())
    }

    async fn draw_one(&self, prompt: &ArenaPrompt, source: Source) -> anyhow::Result<Drawn> {
        let n = match source {
            Source::Plain => 1,
            Source::BestOfK => self.config.candidates.count,
            Source::Pipeline | Source::Timed => return self.ask(prompt, source).await,
        };
        let wish = live::Plain { n, seed: self.seed, timeout: self.timeout, margin: self.config.pipeline.margin };
        let backend = &*self.core.engines.pool;
        Ok(live::plain(backend, &self.config.sampling, prompt, source, wish).await)
    }

    /// Lets the pipeline find out how quick the model is, as the miner's questions to itself do when it starts.
    async fn warm_up(&self) {
        for question in ["Why is the sky blue?", "How does a bicycle stay upright?"] {
            if let Ok(prompt) = Prompt::new(vec![Message::new(Role::User, question)]) {
                drop(self.pipeline().answer(Ask { timeout: self.budget(), ..Ask::new(prompt) }).await);
            }
        }
    }

    /// What is left of a validator's patience, as the miner counts it.
    fn budget(&self) -> Duration {
        self.timeout.saturating_sub(self.config.pipeline.margin).min(self.config.pipeline.cap)
    }

    async fn ask(&self, prompt: &ArenaPrompt, source: Source) -> anyhow::Result<Drawn> {
        let asked = Prompt::new(vec![Message::new(Role::User, prompt.prompt.as_str())])
            .with_context(|| format!("prompt {}", prompt.id))?;
        let began = Instant::now();
        let answer = self.pipeline().answer(Ask { timeout: self.budget(), ..Ask::new(asked) }).await;
        let took = began.elapsed();
        let mut drawn = Drawn {
            prompt: prompt.id.clone(),
            source,
            sent: None,
            candidates: Vec::new(),
            latency_ms: live::milliseconds(took),
            missed: answer.is_err() || took > self.timeout,
            error: None,
        };
        match answer {
            Ok(answer) if source == Source::Pipeline => {
                let first = answer.provenance.sent.first();
                let all = answer.provenance.candidates;
                drawn.sent = all.iter().position(|one| Some(&one.index) == first).filter(|_| !drawn.missed);
                drawn.candidates = all
                    .into_iter()
                    .map(|one| DrawnReply {
                        text: one.text.unwrap_or_default().trim().to_owned(),
                        logprob: one.mean_logprob.filter(|logprob| logprob.is_finite()),
                        n_tokens: one.n_tokens,
                        recipe: Some(one.recipe),
                    })
                    .collect();
            }
            Ok(_) => {}
            Err(error) => drawn.error = Some(format!("{error}")),
        }
        Ok(drawn)
    }

    /// Puts together what is scored: of each prompt the replies of all sources one after the other.
    pub(super) fn scored(&self, state: &State, rivals: &[Vec<String>]) -> Vec<Scored> {
        let of = |((prompt, task), rivals): (&(ArenaPrompt, StepTask), &Vec<String>)| Scored {
            prompt: prompt.id.clone(),
            task: task.clone(),
            rivals: rivals.clone(),
            own: self.own(state, prompt).map(|(_, reply)| reply.text.clone()).collect(),
        };
        self.prompts.iter().zip(rivals).map(of).collect()
    }

    fn own<'a>(&self, state: &'a State, prompt: &ArenaPrompt) -> impl Iterator<Item = (Source, &'a DrawnReply)> {
        let sources = [Source::Plain, Source::BestOfK, Source::Pipeline].into_iter();
        let drawn: Vec<&Drawn> = sources.filter_map(|source| state.drawn(&prompt.id, source)).collect();
        drawn.into_iter().flat_map(|drawn| drawn.candidates.iter().map(|reply| (drawn.source, reply)))
    }

    /// Returns the places of a source's replies among all of a prompt's.
    fn places(&self, state: &State, prompt: &ArenaPrompt, source: Source) -> Vec<usize> {
        let all = self.own(state, prompt).enumerate();
        all.filter(|(_, (of, _))| *of == source).map(|(place, _)| place).collect()
    }

    pub(super) async fn report(
        &self,
        state: &State,
        scored: &[Scored],
        scorer: &Scorer,
    ) -> anyhow::Result<live::Report> {
        let drawn = |source: Source| -> Vec<&Drawn> {
            self.prompts.iter().filter_map(|(prompt, _)| state.drawn(&prompt.id, source)).collect()
        };
        let place = |nth: usize, source: Source, which: &dyn Fn(&Drawn, &[usize]) -> Option<usize>| {
            let prompt = &self.prompts[nth].0;
            let places = self.places(state, prompt, source);
            // Nothing can be chosen of what came too late.
            let drawn = state.drawn(&prompt.id, source).filter(|drawn| !drawn.missed)?;
            which(drawn, &places).and_then(|i| places.get(i).copied())
        };
        let sent = |source: Source| move |nth: usize| place(nth, source, &|drawn, _| drawn.sent);
        let likeliest = |nth: usize| {
            place(nth, Source::BestOfK, &|_, places| {
                let score = |i: usize| scorer.logprob(&scored[nth], places[i]).unwrap_or(f32::NEG_INFINITY);
                (0..places.len()).rev().max_by(|&a, &b| score(a).total_cmp(&score(b)))
            })
        };
        let random = |nth: usize| {
            let id = &self.prompts[nth].0.id;
            place(nth, Source::Pipeline, &|_, places| live::at_random(self.seed, id, places.len()))
        };
        let pipeline = drawn(Source::Pipeline);
        let mut oracle: Vec<Outcome> = Vec::new();
        for i in 0..pipeline.iter().map(|drawn| drawn.candidates.len()).max().unwrap_or(0) {
            let nth_candidate = |nth: usize| place(nth, Source::Pipeline, &|_, _| Some(i));
            let outcomes = scorer.outcomes(scored, &nth_candidate).await?;
            if oracle.is_empty() {
                oracle = outcomes;
                continue;
            }
            for (best, other) in oracle.iter_mut().zip(outcomes) {
                if other.reward > best.reward {
                    *best = other;
                }
            }
        }
        let best = drawn(Source::BestOfK);
        let arms = [
            live::Arm::new("plain", scorer.outcomes(scored, &sent(Source::Plain)).await?, drawn(Source::Plain), true),
            live::Arm::new("best-of-k", scorer.outcomes(scored, &sent(Source::BestOfK)).await?, best.clone(), true),
            live::Arm::new("best-of-k-dpo", scorer.outcomes(scored, &likeliest).await?, best, false),
            live::Arm::new("random", scorer.outcomes(scored, &random).await?, pipeline.clone(), false),
            live::Arm::new("pipeline", scorer.outcomes(scored, &sent(Source::Pipeline)).await?, pipeline.clone(), true),
            live::Arm::new("oracle", oracle, pipeline, false),
        ];
        Ok(live::report(&arms, self.seed))
    }

    /// Asks the pipeline so many further prompts, and returns how long it took.
    pub(super) async fn time(
        &self,
        state: &mut State,
        n: usize,
        concurrency: usize,
    ) -> anyhow::Result<Option<live::Latency>> {
        if n == 0 {
            return Ok(None);
        }
        let prompts = texts::compose(&texts::built_in(), n, self.seed.wrapping_add(1));
        let missing: Vec<&ArenaPrompt> =
            prompts.iter().filter(|prompt| state.drawn(&prompt.id, Source::Timed).is_none()).collect();
        let (n_known, bar) = (n - missing.len(), Counter::new("requests"));
        if !missing.is_empty() {
            self.warm_up().await;
        }
        let asked = futures_util::stream::iter(missing.iter().map(|prompt| self.ask(prompt, Source::Timed)));
        let mut asked = asked.buffer_unordered(concurrency);
        let mut done = n_known;
        while let Some(drawn) = asked.next().await {
            state.keep(drawn?)?;
            done += 1;
            bar.at(done, n);
        }
        bar.close();
        let drawn: Vec<&Drawn> = prompts.iter().filter_map(|p| state.drawn(&p.id, Source::Timed)).collect();
        Ok(Some(live::Latency::of(&drawn)))
    }
}
