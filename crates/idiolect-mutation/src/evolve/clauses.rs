//! New texts without a model: heads and tails for each slot, put together anew, and clauses of known texts.

use super::random::Random;

/// A slot's heads, which end in a preposition or verb, and tails that go with each of them. They are short, so that two texts with one head or
/// one tail have no five words in common.
struct Table {
    slot: &'static str,
    heads: &'static [&'static str],
    tails: &'static [&'static str],
}

const TABLES: [Table; 9] = [
    Table {
        slot: "angle",
        heads: &[
            "Centre everything on",
            "Set out from",
            "Keep returning to",
            "Measure the rest by",
            "Shape the whole around",
            "Lead up to",
        ],
        tails: &[
            "what could be checked independently",
            "the least expected fact",
            "whoever carries the risk",
            "consequences a decade later",
            "a hidden dependency",
            "scale and proportion",
            "things left unsaid",
            "limits of the evidence",
            "its weakest link",
            "ordinary daily practice",
        ],
    },
    Table {
        slot: "register",
        heads: &["Write in", "Hold to", "Use throughout", "Settle into"],
        tails: &[
            "a calm technical voice",
            "brisk newsroom prose",
            "measured legal precision",
            "unhurried lecture style",
            "spare documentary language",
            "courteous official wording",
        ],
    },
    Table {
        slot: "persona",
        heads: &["Think like", "Reason in the manner of", "Borrow the eye of", "Judge as would"],
        tails: &[
            "a patient surveyor",
            "some veteran mechanic",
            "the local chronicler",
            "an auditor on site",
            "one demanding translator",
            "a night-shift nurse",
        ],
    },
    Table {
        slot: "audience",
        heads: &["Pitch it at", "Make it serve", "Keep in view", "Speak to"],
        tails: &[
            "apprentices in the trade",
            "a visiting committee",
            "neighbours with little time",
            "specialists from elsewhere",
            "an attentive grandparent",
            "future colleagues reading alone",
        ],
    },
    Table {
        slot: "length",
        heads: &["Build sentences of", "Aim for", "Work with", "Prefer"],
        tails: &[
            "steadily growing length",
            "two clauses apiece",
            "even middling size",
            "short openings and long closes",
            "clipped plain statements",
            "one idea per pair",
        ],
    },
    Table {
        slot: "lexis",
        heads: &["Draw upon", "Rely on", "Choose", "Favour"],
        tails: &[
            "verbs of motion",
            "names rather than pronouns",
            "words of few syllables",
            "terms from measurement",
            "nouns a craftsman uses",
            "contrasts over qualifiers",
        ],
    },
    Table {
        slot: "opening",
        heads: &["Begin from", "Enter through", "Set off with", "Start by way of"],
        tails: &[
            "a quantity or measure",
            "whatever changed last",
            "an apparent contradiction",
            "the smallest relevant thing",
            "someone's practical problem",
            "its final outcome",
        ],
    },
    Table {
        slot: "reason",
        heads: &["First silently weigh", "Quietly rank", "Inwardly compare", "Without showing it, test"],
        tails: &[
            "three possible structures",
            "all candidate facts by use",
            "two rival readings",
            "each claim against the source",
            "strong and weak evidence",
            "what readers already expect",
        ],
    },
    Table {
        slot: "seed",
        heads: &[
            "Let chance favour",
            "Lean without saying so towards",
            "Give secret preference to",
            "Privately tilt towards",
        ],
        tails: &[
            "facts from the middle",
            "details near the end",
            "items beginning with vowels",
            "the third thing mentioned",
            "anything countable",
            "whatever is named once",
        ],
    },
];

/// Returns texts for a slot, in a random order: every head with every tail, joins of two clauses of known texts, and known texts with a clause more.
pub(super) fn texts(slot: &str, parent: &str, other: Option<&str>, random: &mut Random) -> Vec<String> {
    let table = TABLES.iter().find(|table| table.slot == slot).unwrap_or(&TABLES[0]);
    let mut made: Vec<String> =
        table.heads.iter().flat_map(|head| table.tails.iter().map(move |tail| format!("{head} {tail}."))).collect();
    random.shuffle(&mut made);
    let mut joined = Vec::new();
    if let Some(other) = other {
        for (first, second) in [(parent, other), (other, parent)] {
            for head in clauses(first) {
                for tail in clauses(second) {
                    joined.push(format!("{head}, and {}.", lower_first(tail)));
                }
            }
        }
        random.shuffle(&mut joined);
    }
    for clause in clauses(parent) {
        let tail = table.tails[random.below(table.tails.len())];
        let head = table.heads[random.below(table.heads.len())];
        joined.push(format!("{clause}; {} {tail}.", lower_first(head)));
    }
    // Joins first: they keep something of what was good.
    joined.extend(made);
    joined
}

/// Returns the clauses of a text, of two words or more.
fn clauses(text: &str) -> Vec<&str> {
    let parts = text.split([',', ';', '.', ':']).map(str::trim);
    parts.filter(|part| part.split_whitespace().count() >= 2).collect()
}

fn lower_first(text: &str) -> String {
    text.chars().take(1).flat_map(char::to_lowercase).chain(text.chars().skip(1)).collect()
}
