/// A plan that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// An input has no such name.
    #[error("no input is called {key}, expected one of {known}")]
    Unknown {
        /// The name.
        key: String,
        /// Those there are.
        known: String,
    },
    /// A value out of range.
    #[error("{key} is {value}, expected {expected}")]
    Range {
        /// The input.
        key: String,
        /// Its value.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// An input is not there and has no default.
    #[error("{key} is not known ({about}); give --{flag}, or put it into the snapshot")]
    Missing {
        /// The input.
        key: &'static str,
        /// What it is.
        about: &'static str,
        /// The flag that gives it.
        flag: &'static str,
    },
    /// Neither a machine nor tokens are paid for.
    #[error(
        "no cost is known: give --gpu-usd-per-hour, or --prompt-usd-per-million and --completion-usd-per-million (0 is a price, too)"
    )]
    NoCost,
    /// Nothing says how much of the emission would be ours.
    #[error(
        "nothing says what share would be earned: give --weight-share, a report of the arena, or --place with incentives in the snapshot"
    )]
    NoShare,
    /// A date that is none.
    #[error("{0} is no date, expected YEAR-MONTH-DAY")]
    Date(String),
    /// The snapshot is no such file.
    #[error("the snapshot: {0}")]
    Snapshot(String),
}
