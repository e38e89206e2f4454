use super::*;
use crate::gate::batch_distances;

fn replies<'a>(ids: &'a [String], texts: &'a [&str], embeddings: &'a [Embedding]) -> Vec<Reply<'a>> {
    let with_ids = texts.iter().zip(ids).zip(embeddings);
    with_ids.map(|((text, id), embedding)| Reply { id, text, embedding }).collect()
}

fn ids(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("r{i}")).collect()
}

const TEXTS: [&str; 4] = [
    "The sky is blue because air scatters short waves of light more than long ones.",
    "The sky is blue because air scatters short waves of light far more than long ones.",
    "Ask a painter.",
    "",
];

fn embeddings() -> Vec<Embedding> {
    vec![vec![1.0, 0.1, 0.0], vec![1.0, 0.12, 0.0], vec![-0.1, 0.2, 1.0], vec![0.0, 1.0, 0.5]]
}

#[test]
fn rows_are_what_the_gate_computes() {
    let (ids, embeddings) = (ids(4), embeddings());
    let replies = replies(&ids, &TEXTS, &embeddings);
    for profile in GateProfile::built_in() {
        let report = Report::new(&profile, &replies, &[], None);
        let distances = batch_distances(&embeddings);
        for (row, distance) in report.rows.iter().zip(distances) {
            assert_eq!(row.distance, distance);
            assert_eq!(row.batch_reward, profile.batch.at(distance));
            assert_eq!((row.historic_reward, row.reward), (None, row.batch_reward));
            let factor = profile.factor(row.batch_reward, None);
            assert_eq!(row.masked, factor == 0.0);
        }
        assert_eq!(report.rows[0].nearest.as_deref(), Some("r1"));
        assert_eq!(report.rows[0].masked, profile == GateProfile::TEXT_PROMPTING_2_1);
        assert_eq!(report.summary.n_masked, report.rows.iter().filter(|row| row.masked).count());
        assert_eq!(report.summary.n, 4);
    }
}

#[test]
fn words_are_compared_with_the_nearest_and_with_all() {
    let (ids, embeddings) = (ids(4), embeddings());
    let report = Report::new(&GateProfile::default(), &replies(&ids, &TEXTS, &embeddings), &[], None);
    let [first, second, third, empty] = &report.rows[..] else { panic!("{report:?}") };
    assert_eq!(first.lexical.jaccard_words, Some(15.0 / 16.0));
    assert_eq!(first.lexical.rouge_l, Some(30.0 / 31.0));
    assert!(first.lexical.minhash.is_some_and(|estimate| (estimate - 15.0 / 16.0).abs() < 0.15), "{first:?}");
    assert!(first.lexical.ncd < third.lexical.ncd && first.lexical.simhash > third.lexical.simhash);
    assert!(first.lexical.shared_opening && second.lexical.shared_opening && !third.lexical.shared_opening);
    assert!(first.lexical.shared_8grams == Some(0.5) && third.lexical.shared_8grams.is_none());
    assert!(first.lexical.bleu > Some(0.6) && third.lexical.bleu < Some(0.1));
    assert_eq!((empty.lexical.distinct_2, empty.lexical.compression_ratio), (None, None));
    assert!(report.summary.vendi.is_some_and(|vendi| (1.5..3.5).contains(&vendi)), "{:?}", report.summary);

    let quoted = Report::to_prompt(&GateProfile::default(), TEXTS[0], &replies(&ids, &TEXTS, &embeddings), &[], None);
    assert_eq!(quoted.rows[0].lexical.shared_8grams, None);
}

#[test]
fn others_are_compared_with_and_not_reported_on() {
    let (ids, embeddings) = (ids(4), embeddings());
    let all = replies(&ids, &TEXTS, &embeddings);
    let report = Report::new(&GateProfile::default(), &all[..1], &all[1..], None);
    assert_eq!(report.rows.len(), 1);
    assert_eq!(report.rows[0].nearest.as_deref(), Some("r1"));
    assert_eq!(report.rows[0], Report::new(&GateProfile::default(), &all, &[], None).rows[0]);
    assert_eq!(report.summary.self_bleu, None);
}

#[test]
fn a_history_counts_from_its_length_on() {
    let profile = GateProfile { history_skip: 1, ..GateProfile::TEXT_PROMPTING_2_1 };
    let embeddings = embeddings();
    let mut history = GateHistory::new(&profile, 3);
    history.push_batch(&embeddings[2..]);
    let (ids, apart) = (ids(2), [embeddings[0].clone(), embeddings[2].clone()]);
    let replies = replies(&ids, &TEXTS[1..3], &apart);
    assert_eq!(Report::new(&profile, &replies, &[], Some(&history)).rows[0].historic_reward, None);
    history.push_batch(&embeddings[..2]);
    let rows = Report::new(&profile, &replies, &[], Some(&history)).rows;
    // Two near-copies are kept.
    assert!(rows[0].historic_reward < Some(1e-3) && rows[0].masked && rows[0].batch_reward > 0.9, "{rows:?}");
    assert_eq!(rows[0].reward, rows[0].batch_reward * rows[0].historic_reward.unwrap());
    assert!(rows[1].historic_reward > Some(0.99) && !rows[1].masked, "{rows:?}");
}

#[test]
fn odd_batches_are_defined() {
    let profile = GateProfile::TEXT_PROMPTING_2_1;
    let none = Report::new(&profile, &[], &[], None);
    assert_eq!((none.rows.len(), none.summary.mean_batch_reward), (0, None));

    let (alone_ids, alone) = (ids(1), [vec![1.0, 0.0]]);
    let one = Report::new(&profile, &replies(&alone_ids, &TEXTS[..1], &alone), &[], None);
    assert_eq!((one.rows[0].nearest.as_deref(), one.rows[0].distance, one.rows[0].masked), (None, 0.0, true));
    assert_eq!((one.rows[0].lexical.ncd, one.rows[0].lexical.bleu), (None, None));

    let odd = [vec![1.0, 0.0], vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![1.0, 0.0, 0.0]];
    let odd_ids = ids(4);
    let report = Report::new(&profile, &replies(&odd_ids, &TEXTS, &odd), &[], None);
    for row in &report.rows {
        assert_eq!((row.nearest.as_deref(), row.distance, row.masked), (None, 0.0, true), "{row:?}");
    }

    let long = "word after word ".repeat(6250);
    let texts = [long.as_str(), long.as_str()];
    let (same_ids, same) = (ids(2), [vec![1.0, 0.0], vec![1.0, 0.0]]);
    let report = Report::new(&profile, &replies(&same_ids, &texts, &same), &[], None);
    assert_eq!(report.rows[1].nearest.as_deref(), Some("r0"));
    assert_eq!((report.rows[0].distance, report.rows[0].lexical.rouge_l), (0.0, Some(1.0)));
}
