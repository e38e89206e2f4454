//! Picks the files of one model from a listing.

/// Quantisations in the order of preference when a place holds several GGUF files: small enough for a CPU, good enough to use.
const PREFERRED: [&str; 8] = ["q4_k_m", "q5_k_m", "q4_k_s", "q4_0", "q4_1", "q6_k", "q8_0", "f16"];

/// Files that an engine may want beside safetensors weights.
const COMPANIONS: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
];

/// Returns the model files among `names` (paths with `/`), the weights first.
///
/// One GGUF file is a whole model; among several the preferred quantisation is taken. Otherwise it is `model.safetensors` (or the
/// only safetensors file, or numbered shards) with the configuration and tokenizer beside it.
pub(crate) fn model_files(names: &[String]) -> Result<Vec<String>, String> {
    let with_extension = |extension: &str| -> Vec<&String> {
        names.iter().filter(|name| name.to_ascii_lowercase().ends_with(extension)).collect()
    };
    let gguf: Vec<&String> = with_extension(".gguf").into_iter().filter(|name| !is_projector(name)).collect();
    if !gguf.is_empty() {
        return one_gguf(&gguf).map(|name| vec![name.clone()]);
    }
    let safetensors = with_extension(".safetensors");
    let folder_depth = |name: &&&String| name.matches('/').count();
    let Some(least) = safetensors.iter().min_by_key(folder_depth) else {
        return Err("holds no .gguf and no .safetensors file".into());
    };
    let folder = &least[..least.rfind('/').map_or(0, |at| at + 1)];
    let beside: Vec<&String> = safetensors
        .iter()
        .copied()
        .filter(|name| name.starts_with(folder) && !name[folder.len()..].contains('/'))
        .collect();
    let plain = format!("{folder}model.safetensors");
    let mut chosen: Vec<String> = match beside.iter().find(|name| ***name == plain) {
        Some(name) => vec![(*name).clone()],
        None if beside.len() == 1 || beside.iter().all(|name| is_shard(name)) => beside.into_iter().cloned().collect(),
        None => return Err(format!("holds several models; name one of {}", some_of(&beside))),
    };
    chosen.sort();
    let companions = COMPANIONS.iter().map(|name| format!("{folder}{name}"));
    chosen.extend(companions.filter(|name| names.contains(name)));
    Ok(chosen)
}

fn one_gguf(names: &[&String]) -> Result<String, String> {
    if let [name] = names {
        return Ok((*name).clone());
    }
    let has = |name: &str, quantisation: &str| {
        let stem = name.to_ascii_lowercase();
        stem.strip_suffix(".gguf")
            .is_some_and(|stem| stem.strip_suffix(quantisation).is_some_and(|rest| rest.ends_with(['.', '-', '_'])))
    };
    let of = |quantisation: &&str| {
        let mut fitting = names.iter().filter(|name| has(name, quantisation));
        match (fitting.next(), fitting.next()) {
            (Some(name), None) => Some((**name).clone()),
            _ => None,
        }
    };
    PREFERRED.iter().find_map(of).ok_or_else(|| format!("holds several models; name one of {}", some_of(names)))
}

/// Image projectors of multi-modal models are no language models.
fn is_projector(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|file| file.to_ascii_lowercase().contains("mmproj"))
}

/// As in `model-00001-of-00003.safetensors`.
fn is_shard(name: &str) -> bool {
    name.contains("-of-")
}

fn some_of(names: &[&String]) -> String {
    let mut text = names.iter().take(12).map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    if names.len() > 12 {
        text.push_str(&format!(" and {} more", names.len() - 12));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str], expected: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(model_files(&names).unwrap(), expected);
    }

    fn refused(names: &[&str], why: &str) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let error = model_files(&names).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn one_gguf_or_the_preferred_quantisation() {
        check(&["README.md", "a.gguf"], &["a.gguf"]);
        check(&["a.Q8_0.gguf", "a.Q4_K_M.gguf", "a.F16.gguf"], &["a.Q4_K_M.gguf"]);
        check(&["x/a-q5_k_m.gguf", "x/a-q8_0.gguf", "x/mmproj-a.gguf"], &["x/a-q5_k_m.gguf"]);
        refused(&["a.gguf", "b.gguf"], "name one of a.gguf, b.gguf");
        refused(&["a.Q8_0.gguf", "b.Q8_0.gguf"], "name one of");
    }

    #[test]
    fn safetensors_with_what_lies_beside() {
        let listing = ["onnx/model.safetensors", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"];
        check(&listing, &["model.safetensors", "config.json", "tokenizer.json"]);
        let listing = ["model.safetensors", "chat_template.jinja", "config.json"];
        check(&listing, &["model.safetensors", "config.json", "chat_template.jinja"]);
        check(&["m/x.safetensors", "m/config.json", "config.json"], &["m/x.safetensors", "m/config.json"]);
        check(
            &["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
            &["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        );
        refused(&["a.safetensors", "b.safetensors"], "name one of");
        refused(&["readme.txt"], "holds no .gguf");
        refused(&[], "holds no .gguf");
    }
}
