//! The operators and sampling drawn for one candidate.

use std::fmt;
use std::sync::Arc;

use idiolect_backend::{Message, Role, Sampling};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::compose::with_required;
use crate::template::{PARAPHRASE, PROMPT};
use crate::{Library, Mode, Operator, Place, Plan, SamplingOverrides, Task};

/// An operator as it was applied.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Applied {
    /// The operator's name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// Its slot.
    pub slot: String,
    /// Where its text went.
    pub place: Place,
    /// The text; empty where only sampling, the backend or the model was chosen. That of a rewrite has `{{ prompt }}` where the caller's was put, or
    /// `{{ paraphrase }}` where its paraphrase was.
    pub text: String,
    /// The caller's text in other words, where the text wants it and there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paraphrase: Option<String>,
    /// The backend that answers, where it chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The model that answers, where it chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// What is done to one candidate's prompt and sampling. The default does nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The operators, at most one a slot.
    pub operators: Vec<Applied>,
    /// The sampling settings that they change.
    pub sampling: SamplingOverrides,
}

impl Recipe {
    /// Returns the recipe that changes nothing.
    #[must_use]
    pub fn no_op() -> Self {
        Self::default()
    }

    /// Says whether nothing is changed.
    #[must_use]
    pub fn is_no_op(&self) -> bool {
        self.operators.is_empty() && self.sampling.is_empty()
    }

    /// Returns the messages with the operators' texts. Every text of the caller's is in the result, byte for byte, and none
    /// is evaluated; with the no-op the result is equal to the argument.
    #[must_use]
    pub fn apply(&self, messages: &[Message]) -> Vec<Message> {
        let mut messages = messages.to_vec();
        // A rewrite goes first: the others stand around what it makes, not within.
        let is_rewrite = |operator: &&Applied| operator.place == Place::Rewrite;
        let (rewrites, others): (Vec<_>, Vec<_>) = self.operators.iter().partition(is_rewrite);
        for operator in rewrites.into_iter().chain(others) {
            operator.apply(&mut messages);
        }
        messages
    }

    /// Says whether an operator waits for the caller's text in other words, without which it changes nothing.
    #[must_use]
    pub fn wants_paraphrase(&self) -> bool {
        self.operators.iter().any(Applied::wants_paraphrase)
    }

    /// Gives the caller's text in other words to the operator that waits for it.
    pub fn set_paraphrase(&mut self, text: &str) {
        for operator in self.operators.iter_mut().filter(|operator| operator.wants_paraphrase()) {
            operator.paraphrase = Some(text.to_owned());
        }
    }

    /// Returns the backend that an operator chooses to answer, by its name in a pool.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        self.operators.iter().find_map(|operator| operator.backend.as_deref())
    }

    /// Returns the model that an operator chooses to answer.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.operators.iter().find_map(|operator| operator.model.as_deref())
    }

    /// Changes the sampling settings that the operators name.
    pub fn apply_sampling(&self, sampling: &mut Sampling) {
        self.sampling.apply(sampling);
    }
}

/// Prompts stay out of logs, in other words, too: of a paraphrase only the length is shown.
impl fmt::Debug for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applied")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("slot", &self.slot)
            .field("place", &self.place)
            .field("backend", &self.backend)
            .field("model", &self.model)
            .field("text", &self.text)
            .field("paraphrase_bytes", &self.paraphrase.as_ref().map(String::len))
            .finish()
    }
}

impl Applied {
    fn wants_paraphrase(&self) -> bool {
        self.place == Place::Rewrite && self.paraphrase.is_none() && self.text.contains(PARAPHRASE)
    }

    fn apply(&self, messages: &mut Vec<Message>) {
        if self.text.is_empty() {
            return;
        }
        let last_user = messages.iter().rposition(|m| m.role == Role::User);
        match (self.place, last_user) {
            (Place::Rewrite, Some(i)) => {
                // Only the operator's own text is searched; what is put there is not looked at again.
                if let Some((before, after)) = self.text.split_once(PROMPT) {
                    messages[i].content = format!("{before}{}{after}", messages[i].content);
                } else if let Some(((before, after), said)) =
                    self.text.split_once(PARAPHRASE).zip(self.paraphrase.as_ref())
                {
                    messages[i].content = format!("{before}{said}{after}");
                }
            }
            // Nothing to put into it.
            (Place::Rewrite, None) => {}
            (Place::Prepend, Some(i)) => messages[i].content.insert_str(0, &format!("{}\n\n", self.text)),
            (Place::Append, Some(i)) => messages[i].content.push_str(&format!("\n\n{}", self.text)),
            // Without a user message to stand beside, the text is an instruction like any other.
            (Place::System, _) | (_, None) => match messages.iter_mut().find(|m| m.role == Role::System) {
                Some(system) => system.content.push_str(&format!("\n\n{}", self.text)),
                None => messages.insert(0, Message::system(self.text.as_str())),
            },
        }
    }
}

/// Shows the operators' names and versions: `register.academic@1+angle.causes@1`, or `no-op`.
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.operators.is_empty() {
            return f.write_str("no-op");
        }
        for (i, operator) in self.operators.iter().enumerate() {
            write!(f, "{}{}@{}", if i > 0 { "+" } else { "" }, operator.name, operator.version)?;
        }
        Ok(())
    }
}

/// Draws recipes out of a library.
///
/// What is drawn depends on the library, the sampler's seed, the request's number and the task, and on nothing else.
#[derive(Clone, Debug)]
pub struct RecipeSampler {
    library: Arc<Library>,
    seed: u64,
}

impl RecipeSampler {
    /// Makes a sampler. Two miners with one library should not share a seed: they would draw alike.
    #[must_use]
    pub const fn new(library: Arc<Library>, seed: u64) -> Self {
        Self { library, seed }
    }

    /// Returns the library.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Draws up to `k` different recipes for a request. The first always is the no-op; there are fewer than `k` when
    /// the library holds no more, and only the no-op in passthrough.
    #[must_use]
    pub fn draw(&self, k: usize, request: u64, task: Task, mode: &Mode) -> Vec<Recipe> {
        self.draw_weighted(k, request, task, mode, |operator| operator.weight)
    }

    /// Draws what a plan says: of at most `k` recipes only the no-op where the chance of a collision is low, with other weights
    /// where it is high.
    #[must_use]
    pub fn draw_planned(&self, k: usize, request: u64, task: Task, plan: &Plan) -> Vec<Recipe> {
        let weight = |operator: &Operator| self.library.collision().weight(operator, plan.amount);
        self.draw_weighted(plan.candidates(k), request, task, &plan.mode, weight)
    }

    /// Draws as [`draw`](Self::draw) does, with other weights. Those that are not above 0 are left out.
    #[must_use]
    pub fn draw_weighted(
        &self,
        k: usize,
        request: u64,
        task: Task,
        mode: &Mode,
        weight: impl Fn(&Operator) -> f64,
    ) -> Vec<Recipe> {
        let mut recipes = vec![Recipe::no_op()];
        let mut pool = self.library.usable(task, mode);
        pool.retain(|operator| weight(operator) > 0.0);
        if pool.is_empty() {
            return recipes;
        }
        let mut random = self.random(request);
        // Draws repeat themselves in a small library; the bound ends the search for more.
        for _ in 0..k.saturating_mul(16) {
            if recipes.len() >= k {
                break;
            }
            let recipe = self.draw_one(&pool, &weight, task, &mut random);
            if !recipes.iter().any(|other| other.operators == recipe.operators) {
                recipes.push(recipe);
            }
        }
        recipes
    }

    fn random(&self, request: u64) -> ChaCha8Rng {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&request.to_le_bytes());
        seed[16..23].copy_from_slice(b"recipes");
        ChaCha8Rng::from_seed(seed)
    }

    fn draw_one(
        &self,
        pool: &[&Operator],
        weight: &impl Fn(&Operator) -> f64,
        task: Task,
        random: &mut ChaCha8Rng,
    ) -> Recipe {
        let mut recipe = Recipe::no_op();
        let mut chosen: Vec<&Operator> = Vec::new();
        let max = self.library.max_operators();
        // One operator is the rule, each further one a chance in four: more of them pull the text apart.
        while chosen.len() < max && (chosen.is_empty() || unit(random) < 0.25) {
            let mut free: Vec<&Operator> = pool.to_vec();
            free.retain(|operator| chosen.iter().all(|other| operator.goes_with(other)));
            let mut pick = |operators: &[&Operator]| pick_by_weight(operators, weight, unit(random));
            let group = loop {
                let Some(i) = pick(&free) else { break None };
                let operator = free.remove(i);
                if let Some(group) = with_required(operator, &chosen, pool, max, &mut pick) {
                    break Some(group);
                }
            };
            let Some(group) = group else { break };
            chosen.extend(group);
            // A seed for each place, so that what comes first renders the same whatever comes after it.
            let seed = random.next_u64();
            let mut nth = 0_u64;
            let seeds = || {
                nth += 1;
                seed.wrapping_add(nth)
            };
            match self.library.compose_with(&chosen, task, seeds) {
                Ok(composed) => recipe = composed,
                Err(error) => {
                    // Templates are tried out when they are loaded; a branch that no trial took may still fail, and what
                    // is too long together is no fault.
                    if matches!(error, crate::ComposeError::Render { .. }) {
                        tracing::warn!(%error, "operators left out");
                    }
                    break;
                }
            }
        }
        recipe
    }
}

/// Returns a number in [0, 1) of 53 random bits.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Returns the place of one of them; `None` where there is none.
fn pick_by_weight(operators: &[&Operator], weight: &impl Fn(&Operator) -> f64, unit: f64) -> Option<usize> {
    let mut rest = unit * operators.iter().map(|o| weight(o)).sum::<f64>();
    let found = operators.iter().position(|o| {
        rest -= weight(o);
        rest < 0.0
    });
    found.or(operators.len().checked_sub(1))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn sampler(library: Library, seed: u64) -> RecipeSampler {
        RecipeSampler::new(Arc::new(library), seed)
    }

    fn any_messages() -> impl Strategy<Value = Vec<Message>> {
        let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Assistant)];
        proptest::collection::vec((role, "[ -~\\n{}%é]{0,40}").prop_map(|(r, text)| Message::new(r, text)), 1..6)
    }

    #[test]
    fn an_empty_library_changes_nothing() {
        let recipes = sampler(Library::parse("", "empty.toml").unwrap(), 1).draw(4, 1, Task::Unknown, &Mode::mutate());
        assert_eq!(recipes, [Recipe::no_op()]);
        let mut sampling = Sampling::default();
        recipes[0].apply_sampling(&mut sampling);
        assert_eq!(sampling, Sampling::default());
    }

    #[test]
    fn recipes_set_stages_of_the_chain() {
        use idiolect_backend::{Preset, Stage};

        let text = "[[operator]]\nname = \"a.x\"\nslot = \"a\"\nplace = \"append\"\ntext = \"T\"\n\
                    sampling = { temperature = 0.9, preset = \"vllm\", stages = [{ stage = \"top_k\", k = 7 }] }\n";
        let recipes = sampler(Library::parse(text, "x.toml").unwrap(), 1).draw(2, 1, Task::Unknown, &Mode::mutate());
        let mut sampling = Sampling::default();
        recipes[1].apply_sampling(&mut sampling);
        let chain = sampling.chain.as_ref().unwrap();
        assert_eq!((chain.preset, chain.stages.len()), (Some(Preset::Vllm), 1));
        // Laid over a chain that is there, it changes what it names and nothing else.
        let stages: Vec<Stage> =
            serde_json::from_str(r#"[{"stage": "top_k", "k": 3}, {"stage": "xtc", "probability": 0.1}]"#).unwrap();
        let mut sampling = Sampling { chain: Some(stages.clone().into()), ..Sampling::default() };
        recipes[1].sampling.stages.iter().for_each(|stage| assert_eq!(stage.kind(), stages[0].kind()));
        recipes[1].apply_sampling(&mut sampling);
        let chain = sampling.chain.unwrap();
        assert_eq!(chain.stages[0], recipes[1].sampling.stages[0]);
        assert_eq!(chain.stages[1], stages[1]);

        for (sampling, said) in [
            ("{ preset = \"x\" }", "unknown preset \"x\", expected llamacpp, vllm or mistralrs"),
            ("{ stages = [{ stage = \"top_q\" }] }", "unknown variant `top_q`"),
            ("{ stages = [{ stage = \"top_p\", p = 7 }] }", "top_p.p is 7, expected above 0 and at most 1"),
        ] {
            let bad = text.lines().filter(|line| !line.starts_with("sampling")).collect::<Vec<_>>().join("\n");
            let error = Library::parse(&format!("{bad}\nsampling = {sampling}\n"), "x.toml").unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn texts_go_where_they_belong() {
        let apply = |place, messages: &[Message]| {
            let operator = Applied { text: "T".into(), ..applied(place, "") };
            Recipe { operators: vec![operator], ..Recipe::no_op() }.apply(messages)
        };
        let user = [Message::user("a"), Message::assistant("b"), Message::user("c"), Message::assistant("d")];
        assert_eq!(apply(Place::Append, &user)[2].content, "c\n\nT");
        assert_eq!(apply(Place::Prepend, &user)[2].content, "T\n\nc");
        assert_eq!(apply(Place::System, &user)[0], Message::system("T"));
        assert_eq!(apply(Place::System, &[Message::system("s"), Message::user("u")])[0].content, "s\n\nT");
        assert_eq!(apply(Place::Append, &[Message::assistant("only")])[0], Message::system("T"));
    }

    fn applied(place: Place, text: &str) -> Applied {
        Applied {
            name: format!("o.{place}"),
            version: 1,
            slot: place.to_string(),
            place,
            text: text.into(),
            paraphrase: None,
            backend: None,
            model: None,
        }
    }

    #[test]
    fn rewrites_hold_the_callers_text_as_it_is() {
        let recipe = Recipe {
            operators: vec![
                applied(Place::Append, "{{ prompt }}"),
                applied(Place::Rewrite, "Of “{{ prompt }}” say all."),
            ],
            ..Recipe::no_op()
        };
        let caller = "{{ prompt }} {{ 7*7 }} {% if x %}";
        let messages = [Message::user("first"), Message::assistant("b"), Message::user(caller)];
        let mutated = recipe.apply(&messages);
        assert_eq!(mutated[..2], messages[..2]);
        assert_eq!(mutated[2].content, format!("Of “{caller}” say all.\n\n{{{{ prompt }}}}"));
        assert_eq!(recipe.apply(&[Message::assistant("b")])[1..], [Message::assistant("b")], "no user, no rewrite");
    }

    #[test]
    fn sampling_alone_leaves_messages_alone() {
        let text =
            "[[operator]]\nname = \"sampling.warm\"\nslot = \"sampling\"\nsampling = { temperature = [0.7, 0.9] }\n";
        let sampler = sampler(Library::parse(text, "x.toml").unwrap(), 1);
        let recipe = &sampler.draw(2, 1, Task::Answer, &Mode::mutate())[1];
        let messages = [Message::user("a")];
        assert_eq!(recipe.apply(&messages), messages);
        assert!(!recipe.is_no_op());
        assert!((0.7..=0.9).contains(&recipe.sampling.temperature.unwrap()));
    }

    #[test]
    fn what_is_required_is_drawn_along_and_what_is_excluded_never() {
        let operator = |name: &str, rest: &str| {
            let slot = name.split('.').next().unwrap();
            format!(
                "[[operator]]\nname = \"{name}\"\nslot = \"{slot}\"\nplace = \"append\"\ntext = \"{name}\"\n{rest}\n"
            )
        };
        let text = [
            "max_operators = 4\n".to_owned(),
            operator("a.x", "requires = [\"b.*\", \"c.x\"]"),
            operator("b.x", "weight = 0.1"),
            operator("b.y", "weight = 0.1\nexcludes = [\"d.*\"]"),
            operator("c.x", "weight = 0.1"),
            operator("d.x", ""),
        ];
        let sampler = sampler(Library::parse(&text.concat(), "x.toml").unwrap(), 1);
        let mut n_seen = 0;
        for request in 0..300 {
            for recipe in &sampler.draw(6, request, Task::Answer, &Mode::mutate())[1..] {
                let has = |name: &str| recipe.operators.iter().any(|o| o.name == name);
                if has("a.x") {
                    n_seen += 1;
                    assert!(has("c.x") && (has("b.x") || has("b.y")), "{recipe}");
                }
                assert!(!(has("b.y") && has("d.x")), "{recipe}");
            }
        }
        assert!(n_seen > 100, "{n_seen}");
    }

    #[test]
    fn recipes_keep_the_budget_of_tokens() {
        let long = "many short words stand here in a row ".repeat(4);
        let operator = |slot: &str| {
            format!("[[operator]]\nname = \"{slot}\"\nslot = \"{slot}\"\nplace = \"append\"\ntext = \"{long}\"\n")
        };
        let text =
            format!("max_operators = 4\nmax_added_tokens = 70\n{}{}{}", operator("a"), operator("b"), operator("c"));
        let sampler = sampler(Library::parse(&text, "x.toml").unwrap(), 1);
        for request in 0..100 {
            for recipe in sampler.draw(4, request, Task::Answer, &Mode::mutate()) {
                assert!(recipe.operators.len() <= 2, "{recipe}");
            }
        }
    }

    #[test]
    fn slots_weights_and_tasks_are_kept() {
        let mut never = Operator::new("never", "a", Place::Append, "never");
        never.weight = 0.0;
        let mut other_task = Operator::new("other", "c", Place::Append, "other");
        other_task.tasks = vec![Task::Followup];
        let mut often = Operator::new("often", "a", Place::Append, "often");
        often.weight = 9.0;
        let rarely = Operator::new("rarely", "a", Place::Append, "rarely");
        let library = Library::new(vec![never, other_task, often, rarely]).unwrap();
        let sampler = sampler(library, 3);
        let mut n = [0, 0];
        for request in 0..1000 {
            let recipe = &sampler.draw(2, request, Task::Answer, &Mode::mutate())[1];
            assert_eq!(recipe.operators.len(), 1, "one slot, one operator");
            n[usize::from(recipe.operators[0].name == "rarely")] += 1;
        }
        assert!((850..950).contains(&n[0]), "{n:?}");
        assert_eq!(sampler.draw(9, 1, Task::Answer, &Mode::mutate()).len(), 3, "no-op, often, rarely");
        assert_eq!(sampler.draw(9, 1, Task::Answer, &Mode::Mutate { slots: vec!["c".into()] }).len(), 1);
    }

    #[test]
    fn names_are_shown_with_versions() {
        assert_eq!(Recipe::no_op().to_string(), "no-op");
        let recipes = sampler(Library::built_in(), 1).draw(2, 1, Task::Unknown, &Mode::mutate());
        assert!(recipes[1].to_string().contains("@1"), "{}", recipes[1]);
    }

    proptest! {
        #[test]
        fn draws_are_repeatable_distinct_and_one_a_slot(seed: u64, request: u64, k in 0_usize..9) {
            for task in Task::ALL {
                let recipes = sampler(Library::built_in(), seed).draw(k, request, task, &Mode::mutate());
                prop_assert_eq!(&recipes, &sampler(Library::built_in(), seed).draw(k, request, task, &Mode::mutate()));
                prop_assert!(recipes[0].is_no_op());
                prop_assert!(recipes.len() <= k.max(1));
                for (i, recipe) in recipes.iter().enumerate() {
                    let slots: HashSet<&str> = recipe.operators.iter().map(|o| o.slot.as_str()).collect();
                    prop_assert_eq!(slots.len(), recipe.operators.len());
                    prop_assert!(recipes[..i].iter().all(|other| other.operators != recipe.operators));
                }
            }
        }

        #[test]
        fn passthrough_is_byte_identical(messages in any_messages(), seed: u64, request: u64) {
            let recipes = sampler(Library::built_in(), seed).draw(4, request, Task::Unknown, &Mode::Passthrough);
            prop_assert_eq!(recipes.len(), 1);
            prop_assert_eq!(recipes[0].apply(&messages), messages);
        }

        #[test]
        fn the_callers_text_is_kept_and_never_evaluated(messages in any_messages(), seed: u64) {
            let mut messages = messages;
            messages.push(Message::user("{{ 7*7 }} {% for x in y %} {{ pick(['a']) }}"));
            for recipe in sampler(Library::built_in(), seed).draw(5, 1, Task::Unknown, &Mode::mutate()) {
                let mutated = recipe.apply(&messages);
                let offset = mutated.len() - messages.len();
                prop_assert!(offset <= 1);
                for (before, after) in messages.iter().zip(&mutated[offset..]) {
                    prop_assert_eq!(before.role, after.role);
                    prop_assert!(after.content.contains(&before.content));
                }
            }
        }
    }
}
