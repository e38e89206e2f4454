//! Sampler chains in the words of each server.

use idiolect_backend::{ConstraintSpec, Error, Preset, Sampling, Stage, StageKind};
use idiolect_sampling::{MirostatVersion, Scope};
use serde_json::{Map, Value, json};

use crate::config::Flavour;
use crate::wire::exact;

impl Flavour {
    /// Returns the stages that the server has.
    pub(crate) fn stages(self) -> Vec<StageKind> {
        use StageKind::{
            Ban, Constraint, Dry, FrequencyPresence, Greedy, LogitBias, MinP, Mirostat, Repetition, Temperature, TopK,
            TopNSigma, TopP, Typical, Xtc,
        };
        match self {
            Self::OpenAi => vec![Constraint, LogitBias, FrequencyPresence, Temperature, TopP, Greedy],
            Self::Tgi => vec![FrequencyPresence, Temperature, TopP, Greedy],
            Self::Ollama => vec![Constraint, FrequencyPresence, Temperature, TopP, Greedy],
            Self::OpenRouter => {
                vec![LogitBias, FrequencyPresence, Repetition, Temperature, TopK, TopP, MinP, Greedy]
            }
            Self::Vllm => {
                vec![Constraint, Ban, LogitBias, Repetition, FrequencyPresence, Temperature, MinP, TopK, TopP, Greedy]
            }
            Self::LlamaCpp => vec![
                Constraint,
                Ban,
                LogitBias,
                Repetition,
                FrequencyPresence,
                Dry,
                TopNSigma,
                TopK,
                Typical,
                TopP,
                MinP,
                Xtc,
                Temperature,
                Mirostat,
                Greedy,
            ],
        }
    }
}

/// Returns the fields that a request's chain and constraint become; none where it has neither.
///
/// # Errors
/// [`Error::Unsupported`] naming the stage that the server does not have, not in this shape, or not in this place.
pub(crate) fn fields(flavour: Flavour, backend: &str, sampling: &Sampling) -> Result<Map<String, Value>, Error> {
    let mut wire = Wire { flavour, fields: Map::new(), order: Vec::new(), bias: Map::new(), last_n: None };
    let stages: Vec<Stage> = match &sampling.chain {
        // What the plain fields say is sent as it is; only the constraint has to be put into words.
        None => Sampling { constraint: sampling.constraint.clone(), ..Sampling::default() }.stages(Preset::Vllm, &[]),
        Some(_) => sampling.stages(Preset::Vllm, &[]),
    };
    wire.say_all(&stages, sampling.chain.is_some()).map_err(|what| Error::Unsupported {
        backend: backend.to_owned(),
        what: format!("the sampling stage {what}"),
    })?;
    Ok(wire.fields)
}

/// Fields as they come together.
struct Wire {
    flavour: Flavour,
    fields: Map<String, Value>,
    /// llama.cpp's names of the stages, in order.
    order: Vec<&'static str>,
    bias: Map<String, Value>,
    /// How far llama.cpp's penalties look back.
    last_n: Option<Option<u32>>,
}

impl Wire {
    /// Says a chain in the server's words; the error names what it has no words for.
    fn say_all(&mut self, stages: &[Stage], is_chain: bool) -> Result<(), String> {
        let stages: Vec<&Stage> = stages.iter().filter(|stage| !stage.is_off()).collect();
        for (i, stage) in stages.iter().enumerate() {
            if !self.flavour.stages().contains(&stage.kind()) {
                return Err(stage.kind().to_string());
            }
            if stages[..i].iter().any(|other| other.kind() == stage.kind()) {
                return Err(format!("{} twice", stage.kind()));
            }
            self.say(stage)?;
        }
        if self.flavour == Flavour::Vllm {
            let rank = |stage: &Stage| Preset::Vllm.order().iter().position(|kind| *kind == stage.kind());
            if let Some(pair) = stages.windows(2).find(|pair| rank(pair[0]) > rank(pair[1])) {
                return Err(format!(
                    "{} after {}, which vLLM runs the other way round",
                    pair[1].kind(),
                    pair[0].kind()
                ));
            }
        }
        if self.flavour == Flavour::LlamaCpp && is_chain {
            // Penalties are one stage there.
            self.order.dedup();
            if self.order.iter().filter(|name| **name == "penalties").count() > 1 {
                return Err("frequency_presence apart from repetition".to_owned());
            }
            let order = json!(self.order);
            self.set("samplers", order);
        }
        if !self.bias.is_empty() {
            let bias = std::mem::take(&mut self.bias);
            self.set("logit_bias", Value::Object(bias));
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: Value) {
        self.fields.insert(name.to_owned(), value);
    }

    fn number(&mut self, name: &str, value: f32) {
        self.set(name, json!(exact(value)));
    }

    /// Says a stage.
    fn say(&mut self, stage: &Stage) -> Result<(), String> {
        let is_llama = self.flavour == Flavour::LlamaCpp;
        match stage {
            Stage::Constraint(constraint) => match &constraint.shape {
                ConstraintSpec::Json => self.set("response_format", json!({ "type": "json_object" })),
                ConstraintSpec::JsonSchema(schema) => self.set(
                    "response_format",
                    json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema } }),
                ),
                _ => return Err("constraint other than json and json_schema".to_owned()),
            },
            Stage::LogitBias(s) => {
                for (token, bias) in &s.bias {
                    self.bias.insert(token.to_string(), json!(exact(*bias)));
                }
            }
            Stage::Ban(s) => {
                if !s.phrases.is_empty() {
                    return Err("ban with phrases".to_owned());
                }
                self.bias.extend(s.tokens.iter().map(|token| (token.to_string(), json!(-100))));
            }
            Stage::Repetition(s) => {
                self.window("repetition", s.scope, s.last_n, Scope::All)?;
                self.number(if is_llama { "repeat_penalty" } else { "repetition_penalty" }, s.penalty);
            }
            Stage::FrequencyPresence(s) => {
                self.window("frequency_presence", s.scope, s.last_n, Scope::Output)?;
                self.number("frequency_penalty", s.frequency);
                self.number("presence_penalty", s.presence);
            }
            Stage::Dry(s) => {
                if s.scope != Scope::All {
                    return Err("dry with the scope output".to_owned());
                }
                self.order.push("dry");
                self.number("dry_multiplier", s.multiplier);
                self.number("dry_base", s.base);
                self.set("dry_allowed_length", json!(s.allowed_length));
                self.set("dry_penalty_last_n", json!(s.last_n.map_or(-1, i64::from)));
                self.set("dry_sequence_breakers", json!(s.breakers));
            }
            Stage::TopNSigma(s) => {
                self.order.push("top_n_sigma");
                self.number("top_n_sigma", s.n);
            }
            Stage::TopK(s) => {
                self.order.push("top_k");
                self.set("top_k", json!(s.k));
            }
            Stage::Typical(s) => {
                self.order.push("typ_p");
                self.number("typical_p", s.p);
            }
            Stage::TopP(s) => {
                self.order.push("top_p");
                self.number("top_p", s.p);
            }
            Stage::MinP(s) => {
                if s.exclusive {
                    return Err("min_p with an exclusive border".to_owned());
                }
                self.order.push("min_p");
                self.number("min_p", s.p);
            }
            Stage::Xtc(s) => {
                self.order.push("xtc");
                self.number("xtc_probability", s.probability);
                self.number("xtc_threshold", s.threshold);
            }
            Stage::Temperature(s) => {
                if s.range > 0.0 && !is_llama {
                    return Err("temperature with a range".to_owned());
                }
                self.order.push("temperature");
                self.number("temperature", s.temperature);
                if s.range > 0.0 {
                    self.number("dynatemp_range", s.range);
                    self.number("dynatemp_exponent", s.exponent);
                }
            }
            Stage::Mirostat(s) => {
                self.set("mirostat", json!(if s.version == MirostatVersion::V1 { 1 } else { 2 }));
                self.number("mirostat_tau", s.tau);
                self.number("mirostat_eta", s.eta);
            }
            Stage::Greedy {} => {
                self.order.push("temperature");
                self.set("temperature", json!(0));
            }
            other => return Err(other.kind().to_string()),
        }
        Ok(())
    }

    /// Checks how far penalties look back. llama.cpp's count the prompt and share one window; the others' have the scope
    /// that `usual` says, and no window.
    fn window(&mut self, name: &str, scope: Scope, last_n: Option<u32>, usual: Scope) -> Result<(), String> {
        if self.flavour != Flavour::LlamaCpp {
            if last_n.is_some() {
                return Err(format!("{name} with last_n"));
            }
            if scope != usual {
                return Err(format!("{name} with another scope than the server's"));
            }
            return Ok(());
        }
        if scope != Scope::All {
            return Err(format!("{name} with the scope output"));
        }
        if self.last_n.is_some_and(|other| other != last_n) {
            return Err("frequency_presence with another last_n than repetition".to_owned());
        }
        self.last_n = Some(last_n);
        self.order.push("penalties");
        self.set("repeat_last_n", json!(last_n.map_or(-1, i64::from)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use idiolect_backend::ChainSpec;
    use idiolect_sampling::{Ban, Dry, Mirostat, Temperature, TopK, TopP};

    use super::*;

    fn sampling(chain: ChainSpec) -> Sampling {
        Sampling { chain: Some(chain), ..Sampling::default() }
    }

    fn said(flavour: Flavour, chain: ChainSpec) -> Value {
        Value::Object(fields(flavour, "b", &sampling(chain)).unwrap())
    }

    fn refused(flavour: Flavour, chain: ChainSpec) -> String {
        fields(flavour, "b", &sampling(chain)).unwrap_err().to_string()
    }

    #[test]
    fn llama_cpp_is_told_the_order() {
        let dry = Stage::Dry(Dry { multiplier: 0.8, scope: Scope::All, ..Dry::default() });
        let heat = Stage::Temperature(Temperature { temperature: 1.2, range: 0.3, ..Temperature::default() });
        let mut chain = ChainSpec::from(Preset::LlamaCpp);
        chain.stages = vec![dry, heat.clone(), Preset::LlamaCpp.repetition(1.1)];
        assert_eq!(
            said(Flavour::LlamaCpp, chain),
            json!({
                "samplers": ["penalties", "dry", "top_k", "top_p", "min_p", "temperature"],
                "repeat_penalty": 1.1, "repeat_last_n": 64,
                "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1,
                "dry_sequence_breakers": ["\n", ":", "\"", "*"],
                "top_k": 40, "top_p": 0.95, "min_p": 0.05,
                "temperature": 1.2, "dynatemp_range": 0.3, "dynatemp_exponent": 1.0,
            })
        );
        let chain = ChainSpec::from(vec![heat, Stage::TopK(TopK { k: 3 })]);
        assert_eq!(said(Flavour::LlamaCpp, chain)["samplers"], json!(["temperature", "top_k"]));
        let mirostat = ChainSpec::from(vec![Stage::Mirostat(Mirostat::default())]);
        assert_eq!(said(Flavour::LlamaCpp, mirostat)["mirostat"], 2);
    }

    #[test]
    fn servers_with_an_order_of_their_own_keep_it() {
        let mut chain = ChainSpec::from(Preset::Vllm);
        chain.stages = vec![Preset::Vllm.min_p(0.1), Stage::Ban(Ban { tokens: vec![7], ..Ban::default() })];
        assert_eq!(said(Flavour::Vllm, chain), json!({ "min_p": 0.1, "logit_bias": { "7": -100 } }));
        let heat = Stage::Temperature(Temperature { temperature: 0.5, ..Temperature::default() });
        let late = ChainSpec::from(vec![Stage::TopP(TopP { p: 0.9 }), heat]);
        assert_eq!(
            refused(Flavour::Vllm, late.clone()),
            "b does not support the sampling stage temperature after top_p, which vLLM runs the other way round"
        );
        assert_eq!(said(Flavour::OpenAi, late), json!({ "top_p": 0.9, "temperature": 0.5 }));
    }

    #[test]
    fn what_a_server_lacks_is_named() {
        for (flavour, stage, what) in [
            (Flavour::OpenAi, Stage::TopK(TopK { k: 4 }), "top_k"),
            (Flavour::Vllm, Stage::Dry(Dry { multiplier: 1.0, ..Dry::default() }), "dry"),
            (Flavour::LlamaCpp, Stage::Dry(Dry { multiplier: 1.0, ..Dry::default() }), "dry with the scope output"),
            (Flavour::Vllm, Preset::LlamaCpp.repetition(1.1), "repetition with last_n"),
            (Flavour::Vllm, Stage::Ban(Ban { phrases: vec!["x".into()], ..Ban::default() }), "ban with phrases"),
            (Flavour::LlamaCpp, Preset::Vllm.frequency_presence(0.1, 0.0), "frequency_presence with the scope output"),
        ] {
            let refused = refused(flavour, ChainSpec::from(vec![stage]));
            assert_eq!(refused, format!("b does not support the sampling stage {what}"));
        }
    }

    #[test]
    fn constraints_become_response_formats() {
        let mut sampling = Sampling { constraint: Some(ConstraintSpec::Json), ..Sampling::default() };
        let format = |sampling: &Sampling| fields(Flavour::OpenAi, "b", sampling).map(|f| f["response_format"].clone());
        assert_eq!(format(&sampling).unwrap(), json!({ "type": "json_object" }));
        sampling.constraint = Some(ConstraintSpec::JsonSchema(json!({ "type": "object" })));
        assert_eq!(format(&sampling).unwrap()["json_schema"]["schema"], json!({ "type": "object" }));
        sampling.constraint = Some(ConstraintSpec::Regex("a".into()));
        assert!(format(&sampling).unwrap_err().to_string().ends_with("constraint other than json and json_schema"));
        assert!(fields(Flavour::Tgi, "b", &Sampling::default()).unwrap().is_empty());
    }
}
