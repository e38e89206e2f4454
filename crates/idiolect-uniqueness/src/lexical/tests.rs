//! The measures against figures of Python packages (`tests/data/lexical/make.py`), and what odd texts give.

use serde_json::Value;

use super::*;

/// How far a compressed length may be from that of Python's zlib, which is another compressor of the same format.
fn compressor(length: f64) -> f64 {
    3.0 + 0.02 * length
}

/// For sums of the same numbers in another order.
const EXACT: f64 = 1e-12;

fn recorded() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/lexical/lexical.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no list {key:?}"))
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    list(value, key).iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    let row = |row: &Value| row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    value.as_array().unwrap().iter().map(row).collect()
}

/// Holds figures to recorded ones, and keeps the largest difference.
#[derive(Default)]
struct Differences(std::collections::BTreeMap<&'static str, f64>);

impl Differences {
    #[track_caller]
    fn near(&mut self, what: &'static str, ours: f64, theirs: &Value, tolerance: f64) {
        let theirs = theirs.as_f64().unwrap_or_else(|| panic!("{what}: {ours}, recorded {theirs}"));
        let difference = (ours - theirs).abs();
        assert!(difference <= tolerance * theirs.abs().max(1.0), "{what}: {ours}, recorded {theirs}");
        let largest = self.0.entry(what).or_default();
        *largest = largest.max(difference);
    }
}

impl Drop for Differences {
    #[expect(clippy::print_stdout, reason = "shown with --nocapture")]
    fn drop(&mut self) {
        for (what, largest) in &self.0 {
            println!("{what}: off by at most {largest:.1e}");
        }
    }
}

#[test]
fn measures_of_pairs_equal_the_recorded() {
    let recorded = recorded();
    let mut differences = Differences::default();
    for pair in list(&recorded, "pairs") {
        let (a, b) = (pair["a"].as_str().unwrap(), pair["b"].as_str().unwrap());
        for n in 1..=3 {
            differences.near("jaccard of words", jaccard::words(a, b, n), &pair["jaccard_words"][n - 1], EXACT);
        }
        let characters = jaccard::characters(a, b, 5);
        differences.near("jaccard of characters", characters, &pair["jaccard_characters_5"], EXACT);
        let rouge = rouge_l::rouge_l(a, b);
        differences.near("rouge-l precision", rouge.precision, &pair["rouge_l"][0], EXACT);
        differences.near("rouge-l recall", rouge.recall, &pair["rouge_l"][1], EXACT);
        differences.near("rouge-l f", rouge.f, &pair["rouge_l"][2], EXACT);
        let theirs: Vec<f64> = list(pair, "zlib_lengths").iter().map(|n| n.as_f64().unwrap()).collect();
        let ours = [&[a][..], &[b], &[a, b]].map(|texts| compression::compressed_len(texts.iter().copied()) as f64);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            differences.near("compressed length", *ours, &(*theirs).into(), compressor(*theirs) / theirs);
        }
        let formula = (ours[2] - ours[0].min(ours[1])) / ours[0].max(ours[1]);
        differences.near("ncd of the same lengths", ncd::ncd(a, b), &formula.into(), EXACT);
        let tolerance = 2.0 * compressor(theirs[2]) / theirs[0].max(theirs[1]);
        differences.near("ncd", ncd::ncd(a, b), &pair["ncd"], tolerance);
    }
}

#[test]
fn measures_of_sets_equal_the_recorded() {
    let recorded = recorded();
    let mut differences = Differences::default();
    for set in list(&recorded, "sets") {
        let (texts, prompt) = (texts(set, "texts"), set["prompt"].as_str().unwrap());
        let bleus = self_bleu::bleu_against_rest(&texts);
        assert_eq!(bleus.len(), texts.len());
        for (bleu, theirs) in bleus.iter().zip(list(set, "bleu")) {
            differences.near("bleu", *bleu, theirs, EXACT);
        }
        for n in 1..=3 {
            differences.near("distinct", distinct::distinct(&texts, n).unwrap(), &set["distinct"][n - 1], EXACT);
        }
        let ratio = compression::compression_ratio(&texts).unwrap();
        differences.near("compression ratio", ratio, &set["compression_ratio"], 0.05);
        let vendi = vendi::vendi_score_of_words(&texts, 1).unwrap();
        differences.near("vendi of words", vendi, &set["vendi_words"], 1e-9);
        let shared = openings::shared_openings(&texts, 5).unwrap();
        differences.near("openings", shared, &set["shared_openings"], EXACT);
        let sharing = shared_ngrams::share_of_texts(&texts, prompt, 8).unwrap();
        differences.near("texts with shared 8-grams", sharing, &set["sharing_8grams"], EXACT);
        let (seen, opened) =
            (shared_ngrams::shares_against_rest(&texts, prompt, 8), openings::open_as_another(&texts, 5));
        for (i, theirs) in list(set, "seen_8grams").iter().enumerate() {
            let others = [&texts[..i], &texts[i + 1..]].concat();
            assert_eq!(seen[i], shared_ngrams::share_of_ngrams(&texts[i], &others, prompt, 8));
            assert_eq!(opened[i], openings::opens_as_any(&texts[i], &others, 5));
            match shared_ngrams::share_of_ngrams(&texts[i], &others, prompt, 8) {
                Some(share) => differences.near("8-grams seen", share, theirs, EXACT),
                None => assert!(theirs.is_null(), "{:?}: {theirs}", texts[i]),
            }
        }
    }
}

#[test]
fn signatures_equal_the_recorded() {
    let recorded = recorded();
    for text in list(&recorded, "texts") {
        let words = text["text"].as_str().unwrap();
        let signature = minhash::MinHash::new(7, 16).signature(words, 2);
        assert_eq!(serde_json::json!(signature.values()), text["minhash_seed_7_k_16_n_2"], "{words:?}");
        for n in [1, 3] {
            let theirs = text[format!("simhash_n_{n}")].as_str().unwrap();
            assert_eq!(simhash::fingerprint(words, n).to_string(), theirs, "{words:?}");
        }
    }
}

/// These never change: signatures may be stored.
#[test]
fn signatures_are_the_same_in_every_version() {
    let text = "Leaves make sugar out of light.";
    assert_eq!(minhash::MinHash::new(42, 4).signature(text, 1).values(), PINNED_MINIMA);
    assert_eq!(simhash::fingerprint(text, 1), PINNED_FINGERPRINT);
}

const PINNED_MINIMA: [u32; 4] = [56_201_487, 814_948_569, 330_245_068, 399_886_680];
const PINNED_FINGERPRINT: u64 = 10_882_297_606_009_423_888;

#[test]
fn vendi_and_eigenvalues_equal_the_recorded() {
    let recorded = recorded();
    let mut differences = Differences::default();
    for case in list(&recorded, "embeddings") {
        #[expect(clippy::cast_possible_truncation, reason = "three digits each")]
        let embeddings: Vec<Vec<f32>> =
            matrix(&case["embeddings"]).into_iter().map(|row| row.into_iter().map(|v| v as f32).collect()).collect();
        let vendi = vendi::vendi_score_of_embeddings(&embeddings).unwrap();
        differences.near("vendi of embeddings", vendi, &case["vendi"], 1e-5);
    }
    for case in list(&recorded, "matrices") {
        let rows = matrix(&case["matrix"]);
        let found = eigenvalues::symmetric_eigenvalues(rows.concat(), rows.len());
        assert_eq!(found.len(), rows.len());
        for (value, theirs) in found.iter().zip(list(case, "eigenvalues")) {
            differences.near("eigenvalues", *value, theirs, 1e-12);
        }
    }
}

#[test]
fn minhash_estimates_jaccard() {
    let recorded = recorded();
    let family = minhash::MinHash::new(1, 512);
    for pair in list(&recorded, "pairs") {
        let (a, b) = (pair["a"].as_str().unwrap(), pair["b"].as_str().unwrap());
        let exact = jaccard::words(a, b, 2);
        let estimate = family.signature(a, 2).similarity(&family.signature(b, 2)).unwrap();
        let deviation = (exact * (1.0 - exact) / 512.0).sqrt();
        assert!((estimate - exact).abs() <= 4.0 * deviation, "{a:?} {b:?}: {estimate}, exactly {exact}");
    }
    let other = minhash::MinHash::new(1, 16).signature("a", 1);
    assert_eq!(other.similarity(&family.signature("a", 1)), None);
    assert_eq!(minhash::MinHash::new(1, 0).signature("a", 1).values().len(), 1);
}

#[test]
fn bands_find_the_similar() {
    assert_eq!(minhash::banding_probability(0.0, 20, 5), 0.0);
    assert_eq!(minhash::banding_probability(1.0, 20, 5), 1.0);
    assert!((minhash::banding_probability(0.8, 20, 5) - 0.999_644).abs() < 1e-6);
    assert!((minhash::banding_probability(0.2, 20, 5) - 0.006_381).abs() < 1e-6);
}

#[test]
fn no_texts_give_nothing() {
    let none: [&str; 0] = [];
    assert_eq!(self_bleu::self_bleu(&none), None);
    assert_eq!(distinct::distinct(&none, 1), None);
    assert_eq!(compression::compression_ratio(&none), None);
    assert_eq!(vendi::vendi_score_of_words(&none, 1), None);
    assert_eq!(vendi::vendi_score_of_embeddings(&[]), None);
    assert_eq!(openings::shared_openings(&none, 5), None);
    assert_eq!(shared_ngrams::share_of_texts(&none, "", 8), None);
    assert_eq!(shared_ngrams::share_of_ngrams("a b c", &none, "", 2), Some(0.0));
    assert!(!openings::opens_as_any("a b c", &none, 5));
}

#[test]
fn one_text_is_alone() {
    let one = ["Leaves make sugar out of light, and light is free for leaves to take."];
    assert_eq!(self_bleu::self_bleu(&one), None);
    assert!((vendi::vendi_score_of_words(&one, 1).unwrap() - 1.0).abs() < EXACT);
    assert_eq!(openings::shared_openings(&one, 5), Some(0.0));
    assert_eq!(shared_ngrams::share_of_texts(&one, "", 8), Some(0.0));
    assert_eq!(distinct::distinct(&one, 1), Some(12.0 / 14.0));
    assert_eq!(distinct::distinct(&one, 15), None);
}

#[test]
fn identical_texts_are_as_alike_as_can_be() {
    let text = "Leaves make sugar out of light, and light is free for leaves to take.";
    let same = [text; 3];
    assert_eq!(jaccard::words(text, text, 2), 1.0);
    assert_eq!(jaccard::characters(text, text, 5), 1.0);
    assert_eq!(rouge_l::rouge_l(text, text), rouge_l::RougeL { precision: 1.0, recall: 1.0, f: 1.0 });
    assert_eq!(simhash::similarity(simhash::fingerprint(text, 1), simhash::fingerprint(text, 1)), 1.0);
    assert!((self_bleu::self_bleu(&same).unwrap() - 1.0).abs() < EXACT);
    assert!((vendi::vendi_score_of_words(&same, 1).unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(openings::shared_openings(&same, 5), Some(1.0));
    assert_eq!(shared_ngrams::share_of_texts(&same, "", 8), Some(1.0));
    assert_eq!(shared_ngrams::share_of_texts(&same, text, 8), Some(0.0));
    assert_eq!(shared_ngrams::share_of_ngrams(text, &same, text, 8), None);
    assert!(ncd::ncd(text, text) < 0.15);
}

#[test]
fn empty_texts_have_defined_results() {
    for empty in ["", " \n", "?!"] {
        assert_eq!(jaccard::words(empty, "", 2), 1.0);
        assert_eq!(jaccard::words(empty, "a", 2), 0.0);
        assert_eq!(rouge_l::rouge_l(empty, ""), rouge_l::RougeL::default());
        assert_eq!(rouge_l::rouge_l(empty, "a"), rouge_l::RougeL::default());
        assert_eq!(simhash::fingerprint(empty, 3), 0);
        assert_eq!(minhash::MinHash::new(0, 2).signature(empty, 3).values(), [u32::MAX; 2]);
        assert_eq!(self_bleu::bleu_against_rest(&[empty, empty]), [0.0, 0.0]);
        assert_eq!(distinct::distinct(&[empty], 1), None);
        assert_eq!(openings::shared_openings(&[empty, empty], 5), Some(0.0));
        assert_eq!(shared_ngrams::share_of_texts(&[empty, empty], "", 8), Some(0.0));
        assert_eq!(shared_ngrams::share_of_ngrams(empty, &[empty], "", 8), None);
        assert!((vendi::vendi_score_of_words(&[empty, "a"], 1).unwrap() - 2.0).abs() < EXACT);
    }
    assert_eq!(jaccard::characters("", "", 5), 1.0);
    assert_eq!(ncd::ncd("", ""), 0.0);
    assert_eq!(compression::compression_ratio(&[""]), None);
    assert!(compression::compression_ratio(&["", ""]).unwrap() < 1.0);
}

#[test]
fn no_direction_is_left_out_of_vendi() {
    let embeddings = [vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![1.0, 0.0], vec![0.0, 3.0], vec![1.0]];
    assert!((vendi::vendi_score_of_embeddings(&embeddings).unwrap() - 2.0).abs() < 1e-6);
    assert_eq!(vendi::vendi_score_of_embeddings(&embeddings[..2]), None);
    assert_eq!(vendi::vendi_score(2, |_, _| f64::NAN), None);
    assert_eq!(vendi::vendi_score(0, |_, _| 0.0), None);
}

/// 100,000 characters: of one word over and over, of single letters, of many words, without a space, and of no words.
#[test]
fn long_texts_end() {
    let many: String = (0..16_000).map(|i| format!("w{:04} ", i * 7919 % 10_007)).collect();
    let long = ["a ".repeat(50_000), "abcdefghij".repeat(10_000), many, "é".repeat(100_000), ".".repeat(100_000)];
    for (i, a) in long.iter().enumerate() {
        for b in &long[i..] {
            let rouge = rouge_l::rouge_l(a, b);
            let same = a == b && words(a).next().is_some();
            assert_eq!(rouge.f, if same { 1.0 } else { 0.0 });
            assert_eq!(jaccard::characters(a, b, 5) == 1.0, a == b);
            assert!((0.0..1.2).contains(&ncd::ncd(a, b)));
        }
        assert!(jaccard::words(a, a, 3) == 1.0);
        let _ = (simhash::fingerprint(a, 3), minhash::MinHash::new(1, 64).signature(a, 3));
    }
    assert_eq!(self_bleu::bleu_against_rest(&long), [0.0; 5]);
    assert!(distinct::distinct(&long, 3).unwrap() < 0.5);
    assert!(compression::compression_ratio(&long).unwrap() > 5.0);
    assert!((vendi::vendi_score_of_words(&long, 1).unwrap() - 5.0).abs() < 1e-9);
    assert_eq!(shared_ngrams::share_of_texts(&long, "", 8), Some(0.0));
    assert_eq!(openings::shared_openings(&long, 5), Some(0.0));
}
