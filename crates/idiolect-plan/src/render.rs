//! A plan as text.

use std::fmt;

use crate::plan::{Plan, Range};

impl fmt::Display for Plan {
    /// The answer, the figures, the inputs and what is wrong with them; not the formulas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.answer)?;
        let money = |range: Range| format!("{:.2} ({:.2} to {:.2})", range.value, range.low, range.high);
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let day = |day: Option<u32>| day.map_or_else(|| "never".to_owned(), |day| format!("day {day}"));
        let share =
            Range { value: self.share.value * 100.0, low: self.share.low * 100.0, high: self.share.high * 100.0 };
        let chances = &self.chances;
        let mut rows = vec![
            ("share of the emission", format!("{:.3} % ({:.3} to {:.3})", share.value, share.low, share.high)),
            ("income a day", format!("{} alpha", money(self.income_alpha_per_day))),
            ("", format!("{} TAO", small(self.income_tao_per_day))),
            ("", format!("{} USD", money(self.income_usd_per_day))),
            ("cost a day", format!("{:.2} USD", self.cost_usd_per_day)),
            ("net a day", format!("{} USD", money(self.net_usd_per_day))),
            ("burn", format!("{:.2} USD", self.burn_usd)),
            ("break-even, if nothing varies", day(self.break_even_day)),
            (
                "break-even, in the futures",
                format!(
                    "{} in half of them ({} in the best 5 %, {} in the worst 5 %)",
                    day(chances.break_even_day_p50),
                    day(chances.break_even_day_p05),
                    day(chances.break_even_day_p95)
                ),
            ),
            ("paid back", percent(chances.paid_back)),
            ("net at the end", format!("{} USD", money(chances.net_usd))),
            ("asked by one validator", format!("{:.0} times a day", self.asked_per_day)),
            ("95 % of the final weight", format!("after {:.2} days", self.ramp_days)),
            (
                "immunity",
                format!(
                    "{:.2} days, with {} of the final weight by then",
                    self.immunity_days,
                    percent(self.ramp_at_immunity)
                ),
            ),
        ];
        if let Some(pruned) = chances.pruned {
            rows.push(("place lost when it ends", percent(pruned)));
        }
        for (name, value) in rows {
            writeln!(f, "{name:<30} {value}")?;
        }
        writeln!(f, "\n{:<28} {:>14} {:<9} {:<11} from", "input", "value", "unit", "of")?;
        for given in &self.inputs {
            let date = given.date.map_or_else(|| "-".to_owned(), |date| date.to_string());
            let line = format!("{:<28} {:>14} {:<9} {date:<11} {}", given.key, given.value, given.unit, given.origin);
            writeln!(f, "{}", line.trim_end())?;
        }
        if !self.assumptions.source.is_empty() {
            writeln!(f, "share or place from {}", self.assumptions.source)?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

/// Amounts that are mostly far below 1.
fn small(range: Range) -> String {
    format!("{:.5} ({:.5} to {:.5})", range.value, range.low, range.high)
}

impl Plan {
    /// Returns the formulas, in symbols, with their numbers, and their sources.
    #[must_use]
    pub fn explain(&self) -> String {
        let one = |formula: &crate::Formula| {
            format!(
                "{}\n    {}\n    {}\n    ({})\n",
                formula.name, formula.formula, formula.with_numbers, formula.source
            )
        };
        self.formulas.iter().map(one).collect()
    }
}
