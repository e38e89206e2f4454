//! What follows from the inputs.

use serde::Serialize;

use crate::future::Scene;
use crate::{Date, Given, Inputs, PlanError};

/// Futures that are drawn.
const FUTURES: usize = 10_000;
/// Whoever earns its burn back in this share of the futures should do it, and in less than this one should not.
const DO: f64 = 0.8;
const DONT: f64 = 0.5;

/// A figure with an interval of 95 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// The figure.
    pub value: f64,
    /// Where the interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
}

impl Range {
    fn check(self, key: &str, most: f64, expected: &str) -> Result<(), PlanError> {
        let Self { value, low, high } = self;
        let all = [low, value, high];
        if all.iter().all(|value| (0.0..=most).contains(value)) && low <= value && value <= high {
            return Ok(());
        }
        let value = format!("{value} ({low} to {high})");
        Err(PlanError::Range { key: key.to_owned(), value, expected: expected.to_owned() })
    }
}

/// What the miner is expected to do, and how futures are drawn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assumptions {
    /// Our share of the weights once the moving averages have settled, 0 to 1.
    pub weight_share: Option<Range>,
    /// Our place among all miners, 1 being the best; where there is no share, the incentives say what it is worth.
    pub place: Option<Range>,
    /// Where these come from.
    pub source: String,
    /// The share of futures from which on the answer is to do it.
    pub do_from: f64,
    /// The share of futures below which the answer is not to.
    pub dont_below: f64,
    /// Futures.
    pub futures: usize,
    /// What they are drawn by.
    pub seed: u64,
}

impl Default for Assumptions {
    fn default() -> Self {
        Self {
            weight_share: None,
            place: None,
            source: String::new(),
            do_from: DO,
            dont_below: DONT,
            futures: FUTURES,
            seed: 0,
        }
    }
}

impl Assumptions {
    /// Makes assumptions of a share of the weights.
    #[must_use]
    pub fn with_share(share: Range) -> Self {
        Self { weight_share: Some(share), source: "given".to_owned(), ..Self::default() }
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It very probably pays.
    Do,
    /// Nobody can tell.
    Unsure,
    /// It probably does not.
    Dont,
}

/// A formula, and what it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Formula {
    /// What it is of.
    pub name: &'static str,
    /// In symbols.
    pub formula: &'static str,
    /// With the numbers in it.
    pub with_numbers: String,
    /// Where it comes from.
    pub source: &'static str,
}

/// What the futures say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chances {
    /// How many there are.
    pub futures: usize,
    /// The share in which the burn is earned back by the horizon.
    pub paid_back: f64,
    /// The share in which the place is lost when the immunity ends; `None` where nothing says how many register, or where we would stand.
    pub pruned: Option<f64>,
    /// Net at the horizon, burn and costs paid, in USD: mean, and the interval of 95 %.
    pub net_usd: Range,
    /// The first day on which all is paid for, in half of the futures: the median, and the 5th and the 95th percentile; `None` is never within the horizon.
    pub break_even_day_p50: Option<u32>,
    /// The 5th percentile.
    pub break_even_day_p05: Option<u32>,
    /// The 95th percentile.
    pub break_even_day_p95: Option<u32>,
}

/// What a miner would earn and cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The day it was made.
    pub today: Date,
    /// The answer.
    pub verdict: Verdict,
    /// The answer in a sentence.
    pub answer: String,
    /// What was assumed of the miner.
    pub assumptions: Assumptions,
    /// All inputs that counted.
    pub inputs: Vec<Given>,
    /// What is wrong with them.
    pub warnings: Vec<String>,
    /// Our share of the emission, 0 to 1.
    pub share: Range,
    /// Alpha a day once the moving averages have settled.
    pub income_alpha_per_day: Range,
    /// TAO a day at today's price.
    pub income_tao_per_day: Range,
    /// USD a day at today's prices.
    pub income_usd_per_day: Range,
    /// What runs up a day, in USD.
    pub cost_usd_per_day: f64,
    /// Income less cost, in USD a day.
    pub net_usd_per_day: Range,
    /// The burn in USD.
    pub burn_usd: f64,
    /// The first day on which all is paid for if nothing varies; `None` is never.
    pub break_even_day: Option<u32>,
    /// How often a validator asks in a day.
    pub asked_per_day: f64,
    /// Days until 95 % of the final weight.
    pub ramp_days: f64,
    /// Days of immunity.
    pub immunity_days: f64,
    /// The share of the final weight when the immunity ends.
    pub ramp_at_immunity: f64,
    /// What the futures say.
    pub chances: Chances,
    /// How everything was computed.
    pub formulas: Vec<Formula>,
}

impl Plan {
    /// Makes a plan.
    ///
    /// # Errors
    /// [`PlanError`] for what is missing or out of range.
    pub fn new(inputs: &Inputs, assumptions: &Assumptions, today: Date) -> Result<Self, PlanError> {
        let value = |key| inputs.value(key);
        let burn = value("burn_tao")?;
        let (tao_usd, alpha_tao) = (value("tao_usd")?, value("alpha_tao")?);
        let (per_tempo, tempo, block) = (value("emission_per_tempo")?, value("tempo_blocks")?, value("block_s")?);
        let n_miners = value("n_miners")?;
        let share = share(inputs, assumptions, n_miners)?;
        let cost = cost(inputs, n_miners)?;

        let epochs_per_day = 86_400.0 / (tempo * block);
        let emission_per_day = per_tempo * epochs_per_day;
        let times = |by: f64| Range { value: share.value * by, low: share.low * by, high: share.high * by };
        let alpha_per_day = times(emission_per_day);
        let tao_per_day = times(emission_per_day * alpha_tao);
        let usd_per_day = times(emission_per_day * alpha_tao * tao_usd);
        let net = Range {
            value: usd_per_day.value - cost.usd_per_day,
            low: usd_per_day.low - cost.usd_per_day,
            high: usd_per_day.high - cost.usd_per_day,
        };
        let burn_usd = burn * tao_usd;
        let alpha = value("alpha")?;
        let ramp_days = libm::log(0.05) / libm::log(1.0 - alpha.min(1.0 - 1e-9)) / cost.asked_per_day.max(1e-12);
        let immunity_days = value("immunity_blocks")? * block / 86_400.0;
        let scene = Scene {
            share,
            place: assumptions.place,
            incentives: inputs.incentives().map(|(shares, _, _)| shares),
            n_miners,
            usd_per_day_of_all: emission_per_day * alpha_tao * tao_usd,
            cost_per_day: cost.usd_per_day,
            burn_usd,
            alpha,
            asked_per_day: cost.asked_per_day,
            immunity_days,
            registrations_per_day: inputs.given("registrations_per_day").map(|given| given.value),
            price_sd_per_day: value("price_sd_per_day")?,
            horizon_days: value("horizon_days")?,
        };
        let certain = scene.certain();
        let chances = scene.chances(assumptions.futures, assumptions.seed);
        let verdict = if chances.paid_back >= assumptions.do_from {
            Verdict::Do
        } else if chances.paid_back < assumptions.dont_below {
            Verdict::Dont
        } else {
            Verdict::Unsure
        };
        let mut plan = Self {
            today,
            verdict,
            answer: String::new(),
            assumptions: assumptions.clone(),
            inputs: used(inputs),
            warnings: warnings(inputs, today, chances.pruned)?,
            share,
            income_alpha_per_day: alpha_per_day,
            income_tao_per_day: tao_per_day,
            income_usd_per_day: usd_per_day,
            cost_usd_per_day: cost.usd_per_day,
            net_usd_per_day: net,
            burn_usd,
            break_even_day: certain.break_even_day(),
            asked_per_day: cost.asked_per_day,
            ramp_days,
            immunity_days,
            ramp_at_immunity: scene.ramp(immunity_days),
            chances,
            formulas: Vec::new(),
        };
        plan.answer = plan.sentence(burn, scene.horizon_days);
        plan.formulas = plan.explained(inputs, &cost, epochs_per_day)?;
        Ok(plan)
    }

    fn sentence(&self, burn_tao: f64, horizon: f64) -> String {
        let Chances { futures, paid_back, .. } = self.chances;
        let burn = format!("the burn of {burn_tao} TAO ({:.0} USD)", self.burn_usd);
        match self.verdict {
            Verdict::Do => format!(
                "do: in {:.0} % of {futures} futures {burn} is earned back within {horizon:.0} days",
                paid_back * 100.0
            ),
            Verdict::Unsure => format!(
                "unsure: in {:.0} % of {futures} futures {burn} is earned back within {horizon:.0} days, which is little more than tossing a coin",
                paid_back * 100.0
            ),
            Verdict::Dont if self.net_usd_per_day.value <= 0.0 => format!(
                "don't: it costs {:.2} USD a day and earns {:.2}; {burn} comes back in {:.0} % of {futures} futures",
                self.cost_usd_per_day,
                self.income_usd_per_day.value,
                paid_back * 100.0
            ),
            Verdict::Dont => format!(
                "don't: in {:.0} % of {futures} futures {burn} is not earned back within {horizon:.0} days",
                (1.0 - paid_back) * 100.0
            ),
        }
    }

    fn explained(&self, inputs: &Inputs, cost: &Cost, epochs_per_day: f64) -> Result<Vec<Formula>, PlanError> {
        let value = |key| inputs.value(key);
        let chain = "the chain's runtime";
        let validators = "the validators' forward pass and weights";
        let mut formulas = vec![
            Formula {
                name: "epochs a day",
                formula: "86400 / (tempo_blocks x block_s)",
                with_numbers: format!(
                    "86400 / ({} x {}) = {epochs_per_day:.3}",
                    value("tempo_blocks")?,
                    value("block_s")?
                ),
                source: chain,
            },
            Formula {
                name: "income a day, in alpha",
                formula: "share x emission_per_tempo x epochs a day",
                with_numbers: format!(
                    "{:.6} x {} x {epochs_per_day:.3} = {:.4}",
                    self.share.value,
                    value("emission_per_tempo")?,
                    self.income_alpha_per_day.value
                ),
                source: chain,
            },
            Formula {
                name: "income a day, in USD",
                formula: "income in alpha x alpha_tao x tao_usd",
                with_numbers: format!(
                    "{:.4} x {} x {} = {:.2}",
                    self.income_alpha_per_day.value,
                    value("alpha_tao")?,
                    value("tao_usd")?,
                    self.income_usd_per_day.value
                ),
                source: "prices",
            },
            Formula {
                name: "asked a day, by one validator",
                formula: "86400 / step_s x min(1, asked_per_step / n_miners)",
                with_numbers: format!(
                    "86400 / {} x min(1, {} / {}) = {:.1}",
                    value("step_s")?,
                    value("asked_per_step")?,
                    value("n_miners")?,
                    self.asked_per_day
                ),
                source: validators,
            },
            Formula {
                name: "share of the final weight after t days",
                formula: "1 - (1 - alpha)^(asked a day x t)",
                with_numbers: format!(
                    "1 - (1 - {})^({:.1} x {:.2}) = {:.3} when the immunity ends; 0.95 after {:.2} days",
                    value("alpha")?,
                    self.asked_per_day,
                    self.immunity_days,
                    self.ramp_at_immunity,
                    self.ramp_days
                ),
                source: validators,
            },
            Formula {
                name: "immunity, in days",
                formula: "immunity_blocks x block_s / 86400",
                with_numbers: format!(
                    "{} x {} / 86400 = {:.2}",
                    value("immunity_blocks")?,
                    value("block_s")?,
                    self.immunity_days
                ),
                source: chain,
            },
            Formula {
                name: "cost a day, in USD",
                formula: "24 x gpus x gpu_usd_per_hour + replies a day x (prompt_tokens x prompt price + completion_tokens x completion price) / 10^6 + other_usd_per_day",
                with_numbers: format!(
                    "{:.2} + {:.0} x {:.6} + {} = {:.2}",
                    cost.machine, cost.replies_per_day, cost.of_reply, cost.other, self.cost_usd_per_day
                ),
                source: "prices",
            },
            Formula {
                name: "break-even",
                formula: "the first day t on which the sum of income x ramp - cost, day by day, reaches burn_tao x tao_usd",
                with_numbers: format!(
                    "{} against {:.2} USD: {}",
                    format_args!("{:.2} USD net a day", self.net_usd_per_day.value),
                    self.burn_usd,
                    self.break_even_day.map_or_else(|| "never".to_owned(), |day| format!("day {day}"))
                ),
                source: "sums",
            },
            Formula {
                name: "a future",
                formula: "share (or place) from its interval as a normal distribution with a spread of its own on either side, cut at 0; price x e^(sd x a normal draw), day by day; the place is lost when the immunity ends if it is behind n_miners - registrations_per_day x max(1, immunity in days)",
                with_numbers: format!(
                    "{} futures of {:.0} days, seed {}",
                    self.chances.futures,
                    value("horizon_days")?,
                    self.assumptions.seed
                ),
                source: "Monte Carlo",
            },
        ];
        if self.assumptions.weight_share.is_none() {
            formulas.insert(
                1,
                Formula {
                    name: "share",
                    formula: "the incentive at our place, between two places in proportion",
                    with_numbers: format!(
                        "place {:.1}: {:.6}",
                        self.assumptions.place.map_or(0.0, |place| place.value),
                        self.share.value
                    ),
                    source: "the chain's incentives",
                },
            );
        }
        Ok(formulas)
    }
}

/// What runs up in a day.
struct Cost {
    machine: f64,
    /// The tokens of a reply.
    of_reply: f64,
    other: f64,
    usd_per_day: f64,
    asked_per_day: f64,
    replies_per_day: f64,
}

fn cost(inputs: &Inputs, n_miners: f64) -> Result<Cost, PlanError> {
    let optional = |key: &str| inputs.given(key).map(|given| given.value);
    let (gpu, prompt, completion) =
        (optional("gpu_usd_per_hour"), optional("prompt_usd_per_million"), optional("completion_usd_per_million"));
    if gpu.is_none() && prompt.is_none() && completion.is_none() {
        return Err(PlanError::NoCost);
    }
    // One price without the other is half a price.
    if prompt.is_some() != completion.is_some() {
        inputs.value("prompt_usd_per_million")?;
        inputs.value("completion_usd_per_million")?;
    }
    let asked_per_day = 86_400.0 / inputs.value("step_s")? * (inputs.value("asked_per_step")? / n_miners).min(1.0);
    let replies_per_day = asked_per_day * inputs.value("n_validators")?;
    let machine = 24.0 * inputs.value("gpus")? * gpu.unwrap_or(0.0);
    let per_million = inputs.value("prompt_tokens")? * prompt.unwrap_or(0.0)
        + inputs.value("completion_tokens")? * completion.unwrap_or(0.0);
    let of_reply = per_million / 1e6;
    let tokens = replies_per_day * of_reply;
    let other = inputs.value("other_usd_per_day")?;
    Ok(Cost { machine, of_reply, other, usd_per_day: machine + tokens + other, asked_per_day, replies_per_day })
}

fn share(inputs: &Inputs, assumptions: &Assumptions, n_miners: f64) -> Result<Range, PlanError> {
    if let Some(place) = assumptions.place {
        place.check("place", n_miners, &format!("from 1 to {n_miners}, the interval around it"))?;
        if place.low < 1.0 {
            return Err(PlanError::Range {
                key: "place".to_owned(),
                value: place.low.to_string(),
                expected: "at least 1".to_owned(),
            });
        }
    }
    if let Some(share) = assumptions.weight_share {
        share.check("weight_share", 1.0, "from 0 to 1, the interval around it")?;
        return Ok(share);
    }
    match (assumptions.place, inputs.incentives()) {
        (Some(place), Some((incentives, _, _))) => {
            let at = |place| crate::future::incentive_at(incentives, place);
            // The better the place, the more.
            Ok(Range { value: at(place.value), low: at(place.high), high: at(place.low) })
        }
        _ => Err(PlanError::NoShare),
    }
}

/// The inputs that there are, in the order of the table.
fn used(inputs: &Inputs) -> Vec<Given> {
    crate::FIELDS.iter().filter_map(|field| inputs.given(field.key)).collect()
}

fn warnings(inputs: &Inputs, today: Date, pruned: Option<f64>) -> Result<Vec<String>, PlanError> {
    let stale = inputs.value("stale_days")?;
    let mut warnings = Vec::new();
    let mut check = |key: &str, date: Option<Date>| {
        let Some(date) = date else { return };
        let age = today.days_since(date);
        if age < 0 {
            warnings.push(format!("{key} is of {date}, after today, {today}"));
        } else if age as f64 > stale {
            warnings.push(format!("{key} is {age} days old ({date})"));
        }
    };
    for given in used(inputs) {
        check(given.key, given.date);
    }
    if let Some((_, _, date)) = inputs.incentives() {
        check("incentives", Some(date));
    }
    if pruned.is_none() {
        let what = "registrations_per_day, and a place or incentives";
        warnings.push(format!("the chance to lose the place when immunity ends is not known: give {what}"));
    }
    Ok(warnings)
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
