//! The slots: what kind of change an operator makes. A recipe has at most one operator of each.

/// The usual slots with what each is for. A library may use names of its own; `lint` points them out, for they may be slips.
pub const SLOTS: [(&str, &str); 13] = [
    ("angle", "plan, order or emphasis of the reply: the main lever"),
    ("register", "how formal or plain the language is"),
    ("persona", "who writes: short, coarse and near the subject"),
    ("audience", "who reads"),
    ("length", "long or short sentences and paragraphs, within what the prompt asks for"),
    ("lexis", "which words are preferred or left out"),
    ("opening", "how the reply begins; never with which words"),
    ("reason", "a plan that the model makes silently"),
    ("seed", "a drawn word or number that decides between equally good plans"),
    ("paraphrase", "the request in other words; by place rewrite, for what asks for it"),
    ("lang", "another language; none is built in"),
    ("sampling", "sampling settings and no text"),
    ("model", "the backend or the model that answers; none is built in"),
];

/// Says whether a slot is one of the usual ones.
#[must_use]
pub fn is_usual(slot: &str) -> bool {
    SLOTS.iter().any(|(name, _)| *name == slot)
}

#[cfg(test)]
mod tests {
    use crate::{CollisionModel, Library};

    const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/mutation.md");

    #[test]
    fn the_document_has_the_slots() {
        let text = std::fs::read_to_string(DOCUMENT).unwrap();
        for (name, what) in super::SLOTS {
            assert!(text.contains(&format!("| `{name}` | {what} |")), "{name}");
        }
    }

    #[test]
    fn the_documents_examples_are_good_libraries() {
        let text = std::fs::read_to_string(DOCUMENT).unwrap();
        let examples: Vec<&str> = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(examples.len(), 3);
        for example in &examples {
            Library::parse(example, "example.toml").unwrap();
        }
        // The last shows the defaults.
        assert_eq!(*Library::parse(examples[2], "example.toml").unwrap().collision(), CollisionModel::default());
    }
}
