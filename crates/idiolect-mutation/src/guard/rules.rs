use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use idiolect_validator::mask::{Blacklist, task_validator};
use idiolect_validator::penalty::{applied, content_match, keyword_match};
use idiolect_validator::task::{ContentMatch, Criterion, Prompt, TaskKind, Unit, text_prompting};
use idiolect_validator::{Mask, Profile, RewardText, StepTask};

use super::{Flag, FlagKind, StockPhrases, flag, kind_of, signs};
use crate::Task;

/// What one prompt holds its replies to, under one validator's [`Profile`].
///
/// The exact flags ([`FlagKind::is_exact`]) cost what `idiolect_validator::Validator::step` takes off: criteria, stock
/// openings, labels, the task validator of version 1.2, and replies that only repeat. Questions are cut first where the
/// profile does so. The rest of the flags are estimates, as [`check`](super::check) gives them.
///
/// ```
/// use idiolect_mutation::{FlagKind, Task, guard::Rules};
/// use idiolect_validator::task::{Criterion, TaskKind, Unit, text_prompting};
///
/// let prompt = text_prompting::Task {
///     kind: TaskKind::Augment,
///     base_text: "Leaves make sugar out of light.".to_owned(),
///     criteria: vec![Criterion::NoLists, Criterion::Length { target: 5, unit: Unit::Words }],
/// };
/// let rules = Rules::detect(Task::Augment, &prompt.compose());
/// assert!(rules.check("Light becomes sugar in leaves.").is_empty());
/// let flags = rules.check("- Light becomes sugar, leaves.");
/// assert_eq!((flags[0].kind, flags[0].penalty), (FlagKind::Criteria, 0.5));
/// ```
#[derive(Clone)]
pub struct Rules {
    prompt: String,
    step: Option<StepTask>,
    profile: Arc<Profile>,
    phrases: Arc<StockPhrases>,
}

/// Prompts stay out of logs.
impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("step", &self.step).field("profile", &self.profile.name).finish_non_exhaustive()
    }
}

/// A criterion that a text breaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breach<'a> {
    /// Which.
    pub criterion: &'a Criterion,
    /// What it costs before the limit on all of them together.
    pub cost: f64,
}

/// What a text loses, each in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Loss {
    /// By the validator's own arithmetic.
    pub(crate) exact: f64,
    /// With what is estimated, too.
    pub(crate) total: f64,
}

static OPENVALIDATORS: LazyLock<Arc<Profile>> = LazyLock::new(|| Arc::new(Profile::openvalidators_1_2()));
static TEXT_PROMPTING: LazyLock<Arc<Profile>> = LazyLock::new(|| Arc::new(Profile::text_prompting_2_1()));

impl Rules {
    /// Reads what a prompt asks for. What the prompt's own text says counts more than `task`, which is for prompts that fit
    /// none of the validators' templates; with [`Task::Unknown`] such a prompt has no exact rules.
    #[must_use]
    pub fn new(profile: Arc<Profile>, task: Task, prompt: &str) -> Self {
        let step = StepTask::read(prompt, None).or_else(|_| StepTask::read(prompt, kind_of(task))).ok();
        Self { prompt: prompt.to_owned(), step, profile, phrases: Arc::clone(StockPhrases::built_in()) }
    }

    /// The same with the built-in profile of the version that composes such prompts: text-prompting 2.1 for its own,
    /// openvalidators 1.2 for all others.
    #[must_use]
    pub fn detect(task: Task, prompt: &str) -> Self {
        let profile = match Prompt::parse(prompt) {
            Prompt::TextPrompting(_) => &*TEXT_PROMPTING,
            Prompt::OpenValidators(_) | Prompt::Unknown => &*OPENVALIDATORS,
        };
        Self::new(Arc::clone(profile), task, prompt)
    }

    /// Looks for other phrases than the built-in ones.
    #[must_use]
    pub fn with_phrases(self, phrases: Arc<StockPhrases>) -> Self {
        Self { phrases, ..self }
    }

    /// Returns what is asked for, where that is known.
    #[must_use]
    pub fn kind(&self) -> Option<TaskKind> {
        self.step.as_ref().map(|step| step.kind)
    }

    /// Returns the prompt's criteria.
    #[must_use]
    pub fn criteria(&self) -> &[Criterion] {
        self.step.as_ref().map_or(&[], |step| &step.criteria)
    }

    /// Returns the validator's arithmetic.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Returns the text that the validator compares replies with.
    #[must_use]
    pub fn base_text(&self) -> &str {
        self.step.as_ref().map_or(&self.prompt, |step| &step.base_text)
    }

    /// Returns what the validator's reward models see of the prompt.
    #[must_use]
    pub fn judged_text(&self) -> &str {
        match self.profile.reward_text {
            RewardText::Prompt => &self.prompt,
            RewardText::BaseText => self.base_text(),
        }
    }

    /// Returns the least absolute cosine between the [base text](Self::base_text) and a reply that the validator takes for relevant;
    /// `None` where the prompt is none of a validator's, or the profile has no such mask.
    #[must_use]
    pub fn least_relevance(&self) -> Option<f32> {
        self.step.as_ref()?;
        self.profile.masks.contains(&Mask::Relevance).then_some(self.profile.relevance.mpnet)
    }

    pub(crate) fn phrases(&self) -> &StockPhrases {
        &self.phrases
    }

    /// Checks a text. The order of the flags is that of [`FlagKind`].
    #[must_use]
    pub fn check(&self, text: &str) -> Vec<Flag> {
        let mut flags = signs(&self.phrases, &self.prompt, text);
        for (kind, factor) in self.factors(text).into_iter().filter(|(_, factor)| *factor < 1.0) {
            #[expect(clippy::cast_possible_truncation, reason = "0 to 1")]
            let cost = (1.0 - factor) as f32;
            let rule = match kind {
                FlagKind::Criteria => {
                    self.breaches(text).iter().map(|breach| name(breach.criterion)).collect::<Vec<_>>().join(", ")
                }
                FlagKind::ContentMatch => "a stock opening".to_owned(),
                FlagKind::Blacklist => "nothing of its own".to_owned(),
                _ => self.phrases.label_in(&self.scored(text)).to_owned(),
            };
            flags.push(flag(kind, cost, &rule));
        }
        flags
    }

    /// Returns what is left of the reward by the exact rules alone, in [0, 1]: the product of the validator's factors.
    #[must_use]
    pub fn factor(&self, text: &str) -> f64 {
        self.factors(text).into_iter().map(|(_, factor)| factor).product()
    }

    /// Returns the criteria that a text breaks, where the profile has penalties for that.
    #[must_use]
    pub fn breaches(&self, text: &str) -> Vec<Breach<'_>> {
        let Some((penalties, step)) = self.profile.penalties.as_ref().zip(self.step.as_ref()) else {
            return Vec::new();
        };
        let text = self.scored(text);
        let cost = |criterion| penalties.criteria.penalty(step.kind, std::slice::from_ref(criterion), &text);
        let all = step.criteria.iter().map(|criterion| Breach { criterion, cost: cost(criterion) });
        all.filter(|breach| breach.cost > 0.0).collect()
    }

    pub(crate) fn loss(&self, text: &str) -> Loss {
        let factor = self.factor(text);
        let kept: f64 = signs(&self.phrases, &self.prompt, text).iter().map(|f| 1.0 - f64::from(f.penalty)).product();
        Loss { exact: 1.0 - factor, total: 1.0 - factor * kept }
    }

    /// Returns what a validator computes of: questions are cut.
    #[must_use]
    pub fn scored<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.profile.followup_words {
            Some(n_words) if self.kind() == Some(TaskKind::Followup) => {
                Cow::Owned(text_prompting::cut_followup(text, n_words))
            }
            _ => Cow::Borrowed(text),
        }
    }

    /// The validator's factors that texts alone decide, in the order of [`FlagKind`].
    fn factors(&self, text: &str) -> Vec<(FlagKind, f64)> {
        let Some(step) = &self.step else { return Vec::new() };
        let text = &*self.scored(text);
        let mut factors = Vec::with_capacity(5);
        if let Some(penalties) = &self.profile.penalties {
            let criteria = penalties.criteria.penalty(step.kind, &step.criteria, text);
            let openings = content_match(text, penalties.openings);
            factors.push((FlagKind::Criteria, applied(criteria, penalties.task_validation)));
            factors.push((FlagKind::ContentMatch, applied(openings, penalties.content_match)));
            factors.push((FlagKind::KeywordMatch, applied(keyword_match(step.kind, text), penalties.keyword_match)));
        }
        // Masks see replies without white space around them.
        let text = text.trim();
        for mask in &self.profile.masks {
            match mask {
                Mask::TaskValidator => {
                    factors.push((FlagKind::TaskValidator, f64::from(task_validator(step.kind, text))));
                }
                Mask::Blacklist if self.profile.ngram_blacklist.is_some() => {
                    let is_contained = step.base_text.contains(text);
                    factors.push((FlagKind::Blacklist, f64::from(u8::from(!is_contained))));
                }
                Mask::Blacklist => {
                    let mask = Blacklist::default().mask(&step.base_text, text);
                    factors.push((FlagKind::Blacklist, f64::from(mask)));
                }
                Mask::Relevance | Mask::Diversity | Mask::Nsfw => {}
            }
        }
        factors.sort_by_key(|(kind, _)| *kind);
        factors
    }
}

/// A criterion's name for reports; words of a prompt are left out.
fn name(criterion: &Criterion) -> String {
    match criterion {
        Criterion::Length { target, unit } => format!("{target} {}", unit_name(*unit)),
        Criterion::Bullets => "bullets".to_owned(),
        Criterion::Numbers => "numbers".to_owned(),
        Criterion::NoLists => "no lists".to_owned(),
        Criterion::EndsWithQuestionMark => "question mark at the end".to_owned(),
        Criterion::NoQuestionMarks => "no question marks".to_owned(),
        Criterion::Words { place, negated, .. } => {
            let place = match place {
                ContentMatch::StartsWith => "at the start",
                ContentMatch::EndsWith => "at the end",
                ContentMatch::Includes => "anywhere",
            };
            format!("{}words {place}", if *negated { "no " } else { "" })
        }
        Criterion::Other(_) => "other".to_owned(),
    }
}

pub(crate) const fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Characters => "characters",
        Unit::Words => "words",
        Unit::Sentences => "sentences",
        Unit::Paragraphs => "paragraphs",
    }
}
