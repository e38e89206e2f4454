//! The slots: what kind of change an operator makes. A recipe has at most one operator of each.

/// The usual slots with what each is for. A library may use names of its own; `lint` points them out, for they may be slips.
pub const SLOTS: [(&str, &str); 12] = [
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
];

/// Says whether a slot is one of the usual ones.
#[must_use]
pub fn is_usual(slot: &str) -> bool {
    SLOTS.iter().any(|(name, _)| *name == slot)
}
