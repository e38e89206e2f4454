//! What becomes of the caller's text: it is kept byte for byte and never evaluated, whatever the library and the text hold.

use std::sync::Arc;
use std::thread;

use idiolect_backend::{Message, Role, Sampling};
use idiolect_mutation::{Facts, Library, Mode, Place, Recipe, RecipeSampler, Shape, Task};
use proptest::prelude::*;

/// Operators of every place, the wildest of them rewrites, and with leave to rewrite everything.
const EVERY_PLACE: &str = r#"
allow_rewrite = true
max_operators = 8

[[operator]]
name = "angle.system"
slot = "angle"
place = "system"
text = "System {{ pick(['one', 'two']) }}."

[[operator]]
name = "register.prepend"
slot = "register"
place = "prepend"
text = "Before {{ word() }}."

[[operator]]
name = "lexis.append"
slot = "lexis"
place = "append"
text = "After {{ number(1, 9) }} {{ '{{ 7*7 }}' }}."

[[operator]]
name = "paraphrase.rewrite"
slot = "paraphrase"
place = "rewrite"
text = "Of <{{ prompt }}> speak in other words."

[[operator]]
name = "sampling.warm"
slot = "sampling"
sampling = { temperature = [0.7, 0.9] }
"#;

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~\\n{}%é日]{0,60}",
        Just("{{ 7*7 }}".to_owned()),
        Just("{{ prompt }} {% for x in y %} {{ pick(['a']) }} {# #}".to_owned()),
        Just("%}{{".to_owned()),
    ]
}

fn any_messages() -> impl Strategy<Value = Vec<Message>> {
    let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Assistant)];
    proptest::collection::vec((role, any_text()).prop_map(|(role, text)| Message::new(role, text)), 1..6)
}

fn recipes(library: Library, seed: u64, task: Task, mode: &Mode) -> Vec<Recipe> {
    RecipeSampler::new(Arc::new(library), seed).draw(6, 1, task, mode)
}

/// What one message may become: the operators' own texts around, or in a rewrite around the middle.
fn expected(recipe: &Recipe, place: Place) -> Option<&str> {
    recipe.operators.iter().find(|applied| applied.place == place).map(|applied| applied.text.as_str())
}

fn check(recipe: &Recipe, messages: &[Message]) -> Result<(), TestCaseError> {
    let mutated = recipe.apply(messages);
    let last_user = messages.iter().rposition(|m| m.role == Role::User);
    let first_system = messages.iter().position(|m| m.role == Role::System);
    let n_new = mutated.len() - messages.len();
    prop_assert!(n_new == 0 || n_new == 1 && mutated[0].role == Role::System && first_system.is_none());
    for (i, (before, after)) in messages.iter().zip(&mutated[n_new..]).enumerate() {
        prop_assert_eq!(before.role, after.role);
        if Some(i) == last_user {
            let mut text = before.content.clone();
            if let Some(rewrite) = expected(recipe, Place::Rewrite) {
                let (head, tail) = rewrite.split_once("{{ prompt }}").expect("a place for the prompt");
                text = format!("{head}{text}{tail}");
            }
            if let Some(prepended) = expected(recipe, Place::Prepend) {
                text = format!("{prepended}\n\n{text}");
            }
            if let Some(appended) = expected(recipe, Place::Append) {
                text = format!("{text}\n\n{appended}");
            }
            prop_assert_eq!(&after.content, &text);
        } else if Some(i) == first_system {
            prop_assert!(after.content.starts_with(&before.content));
        } else {
            prop_assert_eq!(&after.content, &before.content);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn an_empty_library_changes_no_byte(messages in any_messages(), seed: u64) {
        for task in Task::ALL {
            let library = Library::parse("", "empty.toml").expect("an empty file");
            let drawn = recipes(library, seed, task, &Mode::mutate());
            prop_assert_eq!(drawn.len(), 1);
            prop_assert_eq!(drawn[0].apply(&messages), messages.clone());
            let mut sampling = Sampling::default();
            drawn[0].apply_sampling(&mut sampling);
            prop_assert_eq!(sampling, Sampling::default());
        }
    }

    #[test]
    fn no_operator_gets_past_passthrough(messages in any_messages(), seed: u64) {
        let routed = format!("{EVERY_PLACE}\n[[route]]\ntransport = [\"epistula\"]\nmode = \"passthrough\"\n[[route]]\nslots = [\"paraphrase\"]\n");
        let library = Library::parse(&routed, "o.toml").expect("a good library");
        let shape = Some(Shape::of(&messages));
        let held = [
            Facts { transport: "epistula", task: "answer", shape, ..Facts::default() },
            Facts { transport: "http", task: "InferenceTask", shape, ..Facts::default() },
            Facts { transport: "http", dictated: true, shape, ..Facts::default() },
        ];
        for facts in held {
            let plan = library.plan(&facts, Task::Answer, &messages);
            let sampler = RecipeSampler::new(Arc::new(library.clone()), seed);
            for drawn in [sampler.draw_planned(6, 1, Task::Answer, &plan), sampler.draw(6, 1, Task::Answer, &plan.mode)] {
                prop_assert_eq!(drawn.len(), 1);
                prop_assert!(drawn[0].is_no_op());
                prop_assert_eq!(drawn[0].apply(&messages), messages.clone());
            }
        }
    }

    #[test]
    fn every_text_of_the_callers_is_kept_and_none_is_evaluated(messages in any_messages(), seed: u64) {
        let library = Library::parse(EVERY_PLACE, "o.toml").expect("a good library");
        for task in Task::ALL {
            for recipe in recipes(library.clone(), seed, task, &Mode::mutate()) {
                check(&recipe, &messages)?;
            }
        }
    }

    #[test]
    fn the_built_in_library_only_adds(messages in any_messages(), seed: u64) {
        for recipe in recipes(Library::built_in(), seed, Task::Unknown, &Mode::mutate()) {
            prop_assert!(expected(&recipe, Place::Rewrite).is_none());
            let mutated = recipe.apply(&messages);
            let n_new = mutated.len() - messages.len();
            for (before, after) in messages.iter().zip(&mutated[n_new..]) {
                prop_assert!(after.content.contains(&before.content));
            }
        }
    }
}

#[test]
fn braces_of_an_operator_are_text_once_they_are_rendered() {
    let library = Library::parse(EVERY_PLACE, "o.toml").expect("a good library");
    let append = library.operators().iter().find(|operator| operator.place == Place::Append).expect("one");
    let recipe = library.compose(&[append], Task::Answer, 1).expect("a recipe");
    let mutated = recipe.apply(&[Message::user("{{ 7*7 }}")]);
    assert_eq!(mutated[0].content.matches("{{ 7*7 }}").count(), 2);
    assert!(!mutated[0].content.contains("49"));
}

#[test]
fn any_number_of_threads_draws_the_same() {
    let sampler = RecipeSampler::new(Arc::new(Library::built_in()), 11);
    let draw = &|request: u64| sampler.draw(4, request, Task::Answer, &Mode::mutate());
    let one_by_one: Vec<Vec<Recipe>> = (0..64).map(draw).collect();
    for n_threads in [2, 5] {
        let mut found = vec![Vec::new(); 64];
        thread::scope(|scope| {
            for part in found.chunks_mut(64_usize.div_ceil(n_threads)).enumerate() {
                scope.spawn(move || {
                    let (nth, part) = part;
                    let first = nth * 64_usize.div_ceil(n_threads);
                    // Backwards, so that the order is another one, too.
                    for (i, recipes) in part.iter_mut().enumerate().rev() {
                        *recipes = draw((first + i) as u64);
                    }
                });
            }
        });
        assert_eq!(found, one_by_one);
    }
}
