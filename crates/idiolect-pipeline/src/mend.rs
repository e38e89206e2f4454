//! Repairs of finished candidates by the rules that validators punish by, and what to ask for once more where they do not help.

use idiolect_mutation::guard::Rules;
use idiolect_mutation::repair::{self, Repair};
use idiolect_mutation::{Applied, Place, Recipe, guard, retry};

use crate::generate::Draft;

/// A candidate that loses more than this share of its reward by rule is worth one more try.
const RETRY_ABOVE: f32 = 0.2;

/// Repairs candidates by rule, and says what is wrong with them then. It takes a while for long texts: not for a thread that
/// others wait for.
pub(crate) fn mend(rules: &Rules, drafts: &mut [Draft]) {
    for draft in drafts {
        let repaired = repair::repair(rules, &draft.candidate.text);
        if !repaired.repairs.is_empty() && !repaired.text.trim().is_empty() {
            let (text, repairs): (String, Vec<Repair>) = (repaired.text.into_owned(), repaired.repairs);
            draft.candidate.text = text;
            draft.repairs = repairs;
        }
        draft.flags = Some(rules.check(&draft.candidate.text));
    }
}

/// Returns the recipe for one more candidate where even the best of them loses much by rule: the prompt as it came, with what the
/// candidate broke as an instruction.
pub(crate) fn once_more(rules: &Rules, drafts: &[Draft]) -> Option<Recipe> {
    // What there was no time to look at is no reason.
    let loss = |draft: &Draft| draft.flags.as_deref().map_or(0.0, guard::penalty);
    let best = drafts.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).filter(|best| loss(best) > RETRY_ABOVE)?;
    let text = retry::advice(rules, &best.candidate.text, RETRY_ABOVE)?;
    let advice = Applied {
        name: "retry".to_owned(),
        version: 1,
        slot: "retry".to_owned(),
        place: Place::Append,
        text,
        paraphrase: None,
        backend: None,
        model: None,
    };
    Some(Recipe { operators: vec![advice], ..Recipe::default() })
}
