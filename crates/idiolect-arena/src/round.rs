//! What a row of a log needs of those before it.

use idiolect_dataset::Step;
use idiolect_validator::StepTask;
use idiolect_validator::mask::Blacklist;
use idiolect_validator::task::TaskKind;

/// A call that gave something to score.
pub(crate) fn has_succeeded(step: &Step, nth: usize) -> bool {
    let call = &step.calls[nth];
    call.status.map_or(!call.completion.is_empty(), |status| status == 200)
}

/// The exact blacklist of version 1.2 over a log: the best question and answer join it once both are there.
#[derive(Debug, Default)]
pub(crate) struct RoundBlacklist {
    list: Blacklist,
    question: Option<String>,
}

impl RoundBlacklist {
    /// A summary begins a round.
    pub(crate) fn begin(&mut self, task: &StepTask) {
        if task.kind == TaskKind::Augment {
            self.list.reset();
            self.question = None;
        }
    }

    pub(crate) fn mask(&self, base_text: &str, reply: &str) -> f32 {
        self.list.mask(base_text, reply)
    }

    pub(crate) fn end(&mut self, step: &Step, task: &StepTask) {
        let best = step.best.clone().unwrap_or_default();
        match task.kind {
            TaskKind::Augment => {}
            TaskKind::Followup => self.question = Some(best),
            TaskKind::Answer => {
                self.list.add_best(best);
                if let Some(question) = self.question.take() {
                    self.list.add_best(question);
                }
            }
        }
    }
}
