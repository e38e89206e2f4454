//! Which operators may share a recipe, and recipes of given operators.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::operator::added_tokens;
use crate::{Applied, Library, Mode, Operator, Place, Recipe, RenderError, Task};

/// Why operators make no recipe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeError {
    /// There are more than a recipe may have.
    #[error("{n} operators, expected at most {max}")]
    TooMany {
        /// How many there are.
        n: usize,
        /// The library's `max_operators`.
        max: usize,
    },
    /// Two of them do not go together.
    #[error("{first} and {second} exclude each other")]
    Excluded {
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// One needs another that is not there.
    #[error("{operator} requires {pattern}")]
    Missing {
        /// The one that needs another.
        operator: String,
        /// What the other's name has to be.
        pattern: String,
    },
    /// Together they add more tokens than a recipe may.
    #[error("about {n} tokens would be added, expected at most {max}")]
    OverBudget {
        /// How many.
        n: u32,
        /// The library's `max_added_tokens`.
        max: u32,
    },
    /// One of them gives no text.
    #[error("{operator}: {source}")]
    Render {
        /// Which one.
        operator: String,
        /// Why.
        source: RenderError,
    },
}

impl Library {
    /// Returns the operators that may be drawn for a task: those of a weight above 0 that are for it and of the mode's slots.
    /// None in passthrough. Rewrites are drawn for the validators' own tasks only where
    /// [`allow_rewrite`](Self::allow_rewrite) says so, and those that need a paraphrase only where
    /// [`allow_paraphrase`](Self::allow_paraphrase) does.
    #[must_use]
    pub fn usable(&self, task: Task, mode: &Mode) -> Vec<&Operator> {
        let Mode::Mutate { slots } = mode else { return Vec::new() };
        let rewrites = task == Task::Unknown || self.allow_rewrite();
        let usable = |operator: &&Operator| {
            operator.weight > 0.0
                && operator.is_for(task)
                && (slots.is_empty() || slots.contains(&operator.slot))
                && (rewrites || operator.place != Place::Rewrite)
                && (self.allow_paraphrase() || !operator.is_paraphrase())
        };
        self.operators().iter().filter(usable).collect()
    }

    /// Makes the recipe of exactly these operators. The same seed gives the same recipe.
    ///
    /// # Errors
    /// [`ComposeError`] when they do not go together, are too much, or one gives no text.
    pub fn compose(&self, operators: &[&Operator], task: Task, seed: u64) -> Result<Recipe, ComposeError> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        self.compose_with(operators, task, || random.next_u64())
    }

    pub(crate) fn compose_with(
        &self,
        operators: &[&Operator],
        task: Task,
        mut seed: impl FnMut() -> u64,
    ) -> Result<Recipe, ComposeError> {
        let max = self.max_operators();
        if operators.len() > max {
            return Err(ComposeError::TooMany { n: operators.len(), max });
        }
        let mut recipe = Recipe::no_op();
        let mut n_tokens = 0_u32;
        for (i, operator) in operators.iter().enumerate() {
            if let Some(other) = operators[..i].iter().find(|other| !operator.goes_with(other)) {
                return Err(ComposeError::Excluded { first: other.name.clone(), second: operator.name.clone() });
            }
            let is_missing = |pattern: &&crate::NamePattern| !operators.iter().any(|o| pattern.matches(&o.name));
            if let Some(pattern) = operator.requires.iter().find(is_missing) {
                let (operator, pattern) = (operator.name.clone(), pattern.to_string());
                return Err(ComposeError::Missing { operator, pattern });
            }
            let seed = seed();
            let text = operator
                .render(task, seed)
                .map_err(|source| ComposeError::Render { operator: operator.name.clone(), source })?;
            n_tokens = n_tokens.saturating_add(added_tokens(operator.place, &text));
            operator.sampling.draw(seed).merge_into(&mut recipe.sampling);
            recipe.operators.push(Applied {
                name: operator.name.clone(),
                version: operator.version,
                slot: operator.slot.clone(),
                place: operator.place,
                text,
                paraphrase: None,
                backend: operator.backend.clone(),
                model: operator.model.clone(),
            });
        }
        let max = self.max_added_tokens();
        if n_tokens > max {
            return Err(ComposeError::OverBudget { n: n_tokens, max });
        }
        Ok(recipe)
    }

    /// Returns the operators of a recipe that a reply shows to have brought about what they must not, with the texts.
    #[must_use]
    pub fn induced<'a>(&'a self, recipe: &Recipe, reply: &str) -> Vec<(&'a str, &'a str)> {
        let applied = |operator: &&Operator| recipe.operators.iter().any(|applied| applied.name == operator.name);
        let operators = self.operators().iter().filter(applied);
        operators.filter_map(|o| Some((o.name.as_str(), o.induced(reply)?))).collect()
    }
}

/// Returns the operator with all that it requires, beside those that were chosen before; `None` where they do not fit.
/// `pick` chooses one of several.
pub(crate) fn with_required<'a>(
    operator: &'a Operator,
    chosen: &[&'a Operator],
    pool: &[&'a Operator],
    max: usize,
    pick: &mut impl FnMut(&[&'a Operator]) -> Option<usize>,
) -> Option<Vec<&'a Operator>> {
    let mut together = chosen.to_vec();
    let mut open = vec![operator];
    while let Some(next) = open.pop() {
        if together.len() >= max || !together.iter().all(|other| next.goes_with(other)) {
            return None;
        }
        together.push(next);
        for pattern in &next.requires {
            let is_there = together.iter().chain(&open).any(|o| pattern.matches(&o.name));
            if is_there {
                continue;
            }
            let fits = |o: &&&Operator| {
                pattern.matches(&o.name) && together.iter().chain(&open).all(|other| o.goes_with(other))
            };
            let fitting: Vec<&'a Operator> = pool.iter().filter(fits).copied().collect();
            open.push(fitting[pick(&fitting)?]);
        }
    }
    together.drain(..chosen.len());
    Some(together)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(text: &str) -> Library {
        Library::parse(text, "o.toml").unwrap()
    }

    fn operator(name: &str, rest: &str) -> String {
        let slot = name.split('.').next().unwrap();
        format!(
            "[[operator]]\nname = \"{name}\"\nslot = \"{slot}\"\nplace = \"append\"\ntext = \"Text of {name}.\"\n{rest}\n"
        )
    }

    #[test]
    fn only_what_goes_together_is_composed() {
        let text = [
            "max_operators = 3\nmax_added_tokens = 12\n".to_owned(),
            operator("a.x", "requires = [\"b.*\"]"),
            operator("b.x", ""),
            operator("c.x", "excludes = [\"b.*\"]"),
            operator("d.x", ""),
            operator("e.x", ""),
        ];
        let library = library(&text.concat());
        let [a, b, c, d, e] = library.operators() else { panic!() };
        let compose = |operators: &[&Operator]| library.compose(operators, Task::Answer, 1);
        assert_eq!(compose(&[]).unwrap(), Recipe::no_op());
        assert_eq!(compose(&[a, b]).unwrap().to_string(), "a.x@1+b.x@1");
        assert_eq!(compose(&[a]).unwrap_err().to_string(), "a.x requires b.*");
        assert_eq!(compose(&[b, c]).unwrap_err().to_string(), "b.x and c.x exclude each other");
        assert_eq!(compose(&[b, b]).unwrap_err().to_string(), "b.x and b.x exclude each other");
        assert_eq!(compose(&[a, b, d, e]).unwrap_err().to_string(), "4 operators, expected at most 3");
        assert_eq!(compose(&[a, b, d]).unwrap_err().to_string(), "about 18 tokens would be added, expected at most 12");
    }

    #[test]
    fn rewrites_need_leave_for_the_validators_tasks() {
        let text = "[[operator]]\nname = \"paraphrase.x\"\nslot = \"paraphrase\"\nplace = \"rewrite\"\ntext = \"Say, {{ prompt }}\"\n";
        let usable = |library: &Library, task| library.usable(task, &Mode::mutate()).len();
        let plain = library(text);
        let allowed = library(&format!("allow_rewrite = true\n{text}"));
        for task in Task::ALL {
            assert_eq!(usable(&plain, task), usize::from(task == Task::Unknown), "{task}");
            assert_eq!(usable(&allowed, task), 1, "{task}");
            assert!(allowed.usable(task, &Mode::Passthrough).is_empty());
        }
    }

    #[test]
    fn what_a_reply_must_not_have_is_laid_to_its_operators() {
        let library = library(&[operator("a.x", "forbid = [\"- \"]"), operator("b.x", "")].concat());
        let [a, b] = library.operators() else { panic!() };
        let recipe = library.compose(&[a, b], Task::Answer, 1).unwrap();
        assert_eq!(library.induced(&recipe, "- one"), [("a.x", "- ")]);
        assert!(library.induced(&recipe, "one").is_empty());
        assert!(library.induced(&Recipe::no_op(), "- one").is_empty());
    }
}
