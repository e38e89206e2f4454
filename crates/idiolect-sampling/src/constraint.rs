//! What the output has to look like.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Lets only such tokens be drawn as can still lead to an output of this shape. The output ends where it is complete.
///
/// Written with the shape's name beside it: `{ regex = "[0-9]+" }`, `{ choice = ["yes", "no"] }`,
/// `{ json_schema = { type = "object" } }`, `"json"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConstraintSpec {
    /// Any JSON object.
    Json,
    /// JSON that satisfies a schema.
    JsonSchema(Value),
    /// Text that a regular expression matches from beginning to end, in the syntax of the `regex` crate without
    /// anchors, look-around and references.
    Regex(String),
    /// One of some texts.
    Choice(Vec<String>),
}

impl ConstraintSpec {
    /// Notes what can be seen to be wrong without a parser.
    pub(crate) fn check(&self, bad: &mut Vec<String>) {
        match self {
            Self::Json => {}
            Self::JsonSchema(schema) => {
                if !schema.is_object() && !schema.is_boolean() {
                    bad.push("constraint.json_schema is no schema, expected an object or a boolean".to_owned());
                }
            }
            Self::Regex(regex) => {
                if regex.is_empty() {
                    bad.push("constraint.regex is empty, expected a regular expression".to_owned());
                }
            }
            Self::Choice(texts) => {
                if texts.is_empty() || texts.iter().any(String::is_empty) {
                    bad.push("constraint.choice needs at least one text and no empty one".to_owned());
                }
            }
        }
    }
}

/// The stage of a [`ConstraintSpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraint {
    /// The shape.
    pub shape: ConstraintSpec,
}
