//! The JSON Schema of a library's file, for editors that check TOML by one.

use serde_json::{Map, Value, json};

use crate::reader::{COLLISION_KEYS, FILE_KEYS, OPERATOR_KEYS, ROUTE_KEYS, SAMPLING_KEYS, TRANSPORTS};
use crate::shape::LANGUAGES;
use crate::slot::SLOTS;
use crate::{CollisionModel, Form, Library, Place, Task};

/// Returns the schema, of draft 2020-12.
///
/// It knows types, ranges and names. What goes together (names that are taken, circles of `requires`, texts that do not
/// render) is checked when a file is read.
#[must_use]
pub fn json_schema() -> Value {
    let mut schema = object(&FILE_KEYS, file_key, &[]);
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!("Operators and routes of Idiolect"));
    let defs = json!({
        "operator": object(&OPERATOR_KEYS, operator_key, &["name", "slot"]),
        "route": object(&ROUTE_KEYS, route_key, &[]),
        "collision": object(&COLLISION_KEYS, collision_key, &[]),
        "sampling": object(&SAMPLING_KEYS, sampling_key, &[]),
    });
    schema.insert("$defs".to_owned(), defs);
    Value::Object(schema)
}

fn object(keys: &[&str], of_key: impl Fn(&str) -> Value, required: &[&str]) -> Map<String, Value> {
    let properties: Map<String, Value> = keys.iter().map(|&key| (key.to_owned(), of_key(key))).collect();
    let mut object = Map::new();
    object.insert("type".to_owned(), json!("object"));
    object.insert("additionalProperties".to_owned(), json!(false));
    object.insert("properties".to_owned(), Value::Object(properties));
    if !required.is_empty() {
        object.insert("required".to_owned(), json!(required));
    }
    object
}

fn patterns(description: &str) -> Value {
    json!({
        "description": description,
        "type": "array",
        "items": { "type": "string", "pattern": "^[A-Za-z0-9._*-]{1,100}$" },
    })
}

fn strings(description: &str) -> Value {
    json!({ "description": description, "type": "array", "items": { "type": "string" } })
}

fn among(description: &str, names: &[&str]) -> Value {
    json!({ "description": description, "type": "array", "items": { "enum": names } })
}

fn file_key(key: &str) -> Value {
    let defaults = Library::default();
    match key {
        "include_built_in" => json!({
            "description": "Whether the built-in operators are used beside those of the file.", "type": "boolean", "default": false,
        }),
        "exclude_built_in" => patterns("Names of built-in operators to leave out; * stands for any characters."),
        "max_operators" => json!({
            "description": "Most operators of one recipe.",
            "type": "integer", "minimum": 1, "maximum": 8, "default": defaults.max_operators(),
        }),
        "max_added_tokens" => json!({
            "description": "Most tokens that one recipe adds to a prompt.",
            "type": "integer", "minimum": 1, "maximum": 1000, "default": defaults.max_added_tokens(),
        }),
        "allow_rewrite" => json!({
            "description": "Whether rewrites may be drawn for the validators' own tasks.", "type": "boolean", "default": false,
        }),
        "allow_paraphrase" => json!({
            "description": "Whether operators may be drawn that have a backend say the prompt in other words.",
            "type": "boolean", "default": false,
        }),
        "collision" => json!({ "$ref": "#/$defs/collision" }),
        key => json!({ "type": "array", "items": { "$ref": format!("#/$defs/{key}") } }),
    }
}

fn operator_key(key: &str) -> Value {
    let name = "^[A-Za-z0-9._-]+$";
    match key {
        "name" => json!({ "description": "A name of its own.", "type": "string", "pattern": name }),
        "slot" => {
            let usual: Vec<String> = SLOTS.iter().map(|(name, what)| format!("{name}: {what}")).collect();
            let description =
                format!("Operators of one slot exclude each other. The usual ones are {}.", usual.join("; "));
            json!({
                "description": description, "type": "string", "pattern": name, "examples": SLOTS.map(|(name, _)| name),
            })
        }
        "version" => json!({
            "description": "Raised when the text changes.", "type": "integer", "minimum": 0, "maximum": u32::MAX, "default": 1,
        }),
        "place" => json!({ "description": "Where the text goes.", "enum": Place::ALL.map(Place::as_str) }),
        "text" => json!({
            "description": "The text's template: pick([...]), word(), number(low, high), task; in a rewrite {{ prompt }}.",
            "type": "string",
        }),
        "weight" => json!({
            "description": "How often it is drawn beside the others.", "type": "number", "minimum": 0, "maximum": 1e9, "default": 1,
        }),
        "tasks" => among("Tasks that it is for; all where none is named.", &Task::ALL.map(Task::as_str)),
        "sampling" => json!({ "$ref": "#/$defs/sampling" }),
        "excludes" => patterns("Operators that never share a recipe with it."),
        "requires" => patterns("Of the operators that each name stands for, one is drawn along."),
        "max_tokens" => json!({
            "description": "Most tokens of its text.", "type": "integer", "minimum": 1, "maximum": 1000, "default": 80,
        }),
        "backend" => json!({
            "description": "The backend that answers, by its name in the miner's configuration.", "type": "string", "minLength": 1,
        }),
        "model" => json!({ "description": "The model that answers.", "type": "string", "minLength": 1 }),
        _ => strings("Texts that must be neither in its own text nor brought about in a reply."),
    }
}

fn sampling_key(key: &str) -> Value {
    let setting = |minimum: f64, maximum: f64| {
        let number = json!({ "type": "number", "minimum": minimum, "maximum": maximum });
        let range = json!({ "type": "array", "items": number, "minItems": 2, "maxItems": 2 });
        json!({ "description": "A value, or the two ends of a range that it is drawn from.", "anyOf": [number, range] })
    };
    match key {
        "temperature" => setting(0.0, 5.0),
        "top_k" => json!({ "type": "integer", "minimum": 0, "maximum": 1_000_000 }),
        "top_p" | "min_p" => setting(0.0, 1.0),
        "repetition_penalty" => setting(0.0, 10.0),
        "frequency_penalty" | "presence_penalty" => setting(-2.0, 2.0),
        "preset" => json!({
            "description": "The engine whose order and defaults of stages hold.",
            "enum": idiolect_backend::Preset::ALL.map(idiolect_backend::Preset::as_str),
        }),
        _ => json!({
            "description": "Stages of the sampler, as docs/sampling.md describes them.",
            "type": "array",
            "items": { "type": "object", "properties": { "stage": { "type": "string" } }, "required": ["stage"] },
        }),
    }
}

fn route_key(key: &str) -> Value {
    match key {
        "transport" => among("Transports that it is for.", &TRANSPORTS),
        "task" => strings("Names of tasks that it is for, as the caller gives them."),
        "validator" => strings("Hotkeys of validators that it is for."),
        "words" => json!({
            "description": "The fewest and the most words of the prompt.",
            "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX }, "minItems": 2, "maxItems": 2,
        }),
        "form" => among("How the prompt asks.", &Form::ALL.map(Form::as_str)),
        "context" => json!({ "description": "Whether the prompt brings a text to work on along.", "type": "boolean" }),
        "language" => among("The prompt's language.", &LANGUAGES),
        "mode" => json!({
            "description": "What becomes of the requests.", "enum": ["mutate", "passthrough"], "default": "mutate",
        }),
        _ => strings("Slots whose operators may be drawn; all where none is named."),
    }
}

fn collision_key(key: &str) -> Value {
    let defaults = serde_json::to_value(CollisionModel::default()).unwrap_or_default();
    let number = |description: &str, minimum: f64, maximum: f64| {
        json!({
            "description": description, "type": "number", "minimum": minimum, "maximum": maximum, "default": defaults[key],
        })
    };
    match key {
        "enabled" => json!({
            "description": "Whether the chance of a collision decides how much is varied.", "type": "boolean", "default": true,
        }),
        "low" => number("Below this chance nothing is varied.", 0.0, 1.0),
        "high" => number("Above this chance everything is, and prefer counts.", 0.0, 1.0),
        "prefer" => {
            let mut value = strings("Slots that are drawn more often above high.");
            value["default"] = defaults[key].clone();
            value
        }
        "prefer_factor" => number("How many times more often.", 1.0, 1000.0),
        _ => number("A coefficient of the chance.", -100.0, 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns why a value is not as a schema says; knows what the schema above uses.
    fn refusal(root: &Value, schema: &Value, value: &Value) -> Option<String> {
        if let Some(name) = schema["$ref"].as_str() {
            return refusal(root, &root["$defs"][name.rsplit('/').next().unwrap()], value);
        }
        if let Some(names) = schema["enum"].as_array() {
            return (!names.contains(value)).then(|| format!("{value} is not among {names:?}"));
        }
        if let Some(any) = schema["anyOf"].as_array() {
            let all: Option<Vec<String>> = any.iter().map(|schema| refusal(root, schema, value)).collect();
            return all.map(|all| all.join(", and "));
        }
        let is_of_type = match schema["type"].as_str().unwrap() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64(),
            "number" => value.is_number(),
            other => panic!("unknown type {other}"),
        };
        if !is_of_type {
            return Some(format!("{value} is no {}", schema["type"]));
        }
        if let Some(number) = value.as_f64() {
            let bound = |key: &str| schema[key].as_f64();
            if bound("minimum").is_some_and(|b| number < b) || bound("maximum").is_some_and(|b| number > b) {
                return Some(format!("{value} is out of range"));
            }
        }
        if let (Some(text), Some(least)) = (value.as_str(), schema["minLength"].as_u64())
            && (text.chars().count() as u64) < least
        {
            return Some(format!("{value} is too short"));
        }
        if let Some(items) = value.as_array() {
            let n = items.len() as u64;
            if schema["minItems"].as_u64().is_some_and(|m| n < m) || schema["maxItems"].as_u64().is_some_and(|m| n > m)
            {
                return Some(format!("{n} items"));
            }
            return items.iter().find_map(|item| refusal(root, &schema["items"], item));
        }
        if let Some(table) = value.as_object() {
            let required = schema["required"].as_array().into_iter().flatten();
            if let Some(key) = required.into_iter().find(|key| !table.contains_key(key.as_str().unwrap())) {
                return Some(format!("no {key}"));
            }
            return table.iter().find_map(|(key, value)| match schema["properties"].get(key) {
                Some(schema) => refusal(root, schema, value),
                None => (schema["additionalProperties"] == json!(false)).then(|| format!("unknown key {key}")),
            });
        }
        None
    }

    fn check(text: &str) -> Option<String> {
        let value: toml::Value = toml::from_str(text).unwrap();
        let schema = json_schema();
        refusal(&schema, &schema, &serde_json::to_value(value).unwrap())
    }

    #[test]
    fn the_document_is_what_the_code_says() {
        let path = format!("{}/../../docs/operators.schema.json", env!("CARGO_MANIFEST_DIR"));
        let expected = serde_json::to_string_pretty(&json_schema()).unwrap() + "\n";
        if std::env::var_os("IDIOLECT_BLESS").is_some() {
            std::fs::write(&path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap();
        assert!(found == expected, "run this test with IDIOLECT_BLESS=1 to write docs/operators.schema.json anew");
    }

    #[test]
    fn the_built_in_library_is_as_the_schema_says() {
        assert_eq!(check(include_str!("built_in.toml")), None);
        assert_eq!(check(""), None);
    }

    #[test]
    fn the_schema_and_the_reader_agree() {
        let operator = "[[operator]]\nname = \"a.x\"\nslot = \"a\"\nplace = \"append\"\ntext = \"T\"\n";
        for (text, is_good) in [
            (format!("{operator}sampling = {{ temperature = [0.7, 0.9], top_k = 3, stages = [{{ stage = \"xtc\" }}] }}"), true),
            (format!("{operator}excludes = [\"b.*\"]\nforbid = [\"x?\"]\nmax_tokens = 9\ntasks = [\"answer\"]\nversion = 2"), true),
            (format!("include_built_in = true\nexclude_built_in = [\"seed.*\"]\nmax_operators = 3\n{operator}"), true),
            ("[[route]]\ntransport = [\"grpc\"]\nwords = [0, 9]\nform = [\"question\"]\ncontext = true\nlanguage = [\"en\"]".to_owned(), true),
            ("[collision]\nlow = 0.1\nclosed = 2\nprefer = [\"angle\"]".to_owned(), true),
            ("[[operator]]\nname = \"s\"\nslot = \"sampling\"\nsampling = { top_p = 0.8 }".to_owned(), true),
            ("[[operator]]\nname = \"m\"\nslot = \"model\"\nbackend = \"big\"".to_owned(), true),
            ("[[operator]]\nname = \"m\"\nslot = \"model\"\nmodel = \"a-7b\"".to_owned(), true),
            (format!("{operator}backend = \"\""), false),
            (format!("{operator}surprise = 1"), false),
            (format!("{operator}weight = -1"), false),
            (format!("{operator}max_tokens = 0"), false),
            (format!("{operator}tasks = [\"sing\"]"), false),
            (format!("{operator}excludes = [\"b c\"]").replace("b c", "b\u{e9}"), false),
            (format!("{operator}sampling = {{ temperature = 9 }}"), false),
            (format!("{operator}sampling = {{ temperature = [0.1] }}"), false),
            (format!("{operator}sampling = {{ heat = 1 }}"), false),
            (operator.replace("append", "middle"), false),
            (operator.replace("name = \"a.x\"\n", ""), false),
            ("max_operators = 9".to_owned(), false),
            ("[[route]]\ntransport = [\"pigeon\"]".to_owned(), false),
            ("[[route]]\nmode = \"sometimes\"".to_owned(), false),
            ("[collision]\nlow = 2".to_owned(), false),
            ("[collision]\nwarmth = 2".to_owned(), false),
        ] {
            let read = Library::parse(&text, "o.toml");
            assert_eq!(read.is_ok(), is_good, "{text}\n{read:?}");
            // Patterns of strings are for editors; the checker above does not know them.
            if !text.contains('\u{e9}') {
                assert_eq!(check(&text).is_none(), is_good, "{text}\n{:?}", check(&text));
            }
        }
    }
}
