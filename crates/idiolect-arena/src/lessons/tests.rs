use super::*;

const N_PROMPTS: usize = 40;

/// Rivals all point one way, and so do those of our replies that are short: what tells is length, never the model.
fn population(labels: [f32; 2]) -> (Replies, Vec<Embedding>) {
    let (mut lines, mut embeddings) = (String::new(), Vec::new());
    for prompt in 0..N_PROMPTS {
        let base = prompt as f32 * 0.7;
        for (nth, model) in ["a", "a_x", "r1", "r2", "r3", "r4"].into_iter().enumerate() {
            let is_long = nth < 2 && (prompt + nth) % 2 == 0;
            let n_words = if is_long { 60 + prompt % 7 } else { 12 + (prompt * 5 + nth) % 9 };
            let text = vec!["word"; n_words].join(" ");
            let label = labels.get(nth).map_or(String::new(), |label| format!(", \"q\": {label}"));
            lines += &format!("{{\"p\": \"{prompt}\", \"m\": \"{model}\", \"t\": \"{text}\"{label}}}\n");
            let angle = base + if is_long { 0.9 } else { 0.02 * nth as f32 };
            embeddings.push(vec![angle.cos(), angle.sin(), 0.0]);
        }
    }
    (Replies::read(&mut lines.as_bytes()).unwrap(), embeddings)
}

fn own() -> Vec<String> {
    vec!["a".to_owned(), "a_x".to_owned()]
}

fn scores(replies: &Replies, embeddings: &[Embedding], n_visible: usize) -> Vec<Vec<f64>> {
    let lessons = Lessons::new(replies, embeddings, &HashMap::new(), GateProfile::TEXT_PROMPTING_2_1, 3);
    let learned = lessons.learn(&own(), n_visible, 5);
    let visible = |first: usize| (first + 2..first + 2 + n_visible).collect::<Vec<usize>>();
    let by_prompt = replies.by_prompt();
    let of_prompt = |prompt: usize| {
        let members = &by_prompt[prompt.to_string().as_str()];
        learned.scores(&prompt.to_string(), &members[..2], &visible(members[0]))
    };
    (0..N_PROMPTS).map(of_prompt).collect()
}

#[test]
fn what_other_prompts_teach_is_found_without_a_rival_to_see() {
    let (replies, embeddings) = population([0.5, 0.5]);
    let n_right =
        scores(&replies, &embeddings, 0).iter().enumerate().filter(|(i, s)| (s[0] > s[1]) == (i % 2 == 0)).count();
    assert_eq!(n_right, N_PROMPTS);
    let with_rivals = scores(&replies, &embeddings, 2);
    assert!(with_rivals.iter().enumerate().all(|(i, s)| (s[0] > s[1]) == (i % 2 == 0)), "{with_rivals:?}");
}

#[test]
fn rivals_that_are_not_seen_have_no_say_about_their_prompt() {
    let (replies, mut embeddings) = population([0.5, 0.5]);
    let before = scores(&replies, &embeddings, 0);
    for rival in 2..6 {
        embeddings[7 * 6 + rival] = vec![0.0, 0.0, 1.0];
    }
    let after = scores(&replies, &embeddings, 0);
    assert_eq!(before[7], after[7]);
    assert_ne!(before, after, "but others learn from it");
}

#[test]
fn a_model_that_a_judge_likes_less_has_to_be_safer() {
    let gained = |labels| {
        let (replies, embeddings) = population(labels);
        let scores = scores(&replies, &embeddings, 0);
        scores.iter().map(|s| s[0] - s[1]).sum::<f64>() / N_PROMPTS as f64
    };
    let (even, better) = (gained([0.5, 0.5]), gained([0.75, 0.25]));
    assert!((better - even - 0.5 * LABEL_WEIGHT).abs() < 1e-3, "{better} {even}");
}

#[test]
fn what_is_taught_tells_long_from_short_in_texts_that_were_never_seen() {
    const MPNET: &str = "all-mpnet-base-v2";
    let (replies, embeddings) = population([0.5, 0.5]);
    let lessons = Lessons::new(&replies, &embeddings, &HashMap::new(), GateProfile::TEXT_PROMPTING_2_1, 3);
    let learnt = lessons.teach(MPNET, 1).unwrap();
    assert_eq!((learnt.encoder(), learnt.dimensions(), learnt.sources()), (MPNET, 3, (N_PROMPTS, replies.all().len())));
    let of = |n_words: usize| learnt.of(&vec!["other"; n_words].join(" "), &[0.6, 0.8, 0.0], None).unwrap();
    assert!(of(70) > of(15) + 0.5, "{} {}", of(70), of(15));
    let taught = lessons.taught(MPNET, 1).unwrap();
    let [without, with] = taught.brier();
    assert!(with < without && taught.n_cases() >= 200, "{taught:?}");
    let [random, alone, told] = taught.masked();
    assert!(told <= alone && told < random && taught.n_choices() > 50, "{taught:?}");
    assert_eq!((taught.slopes().len(), taught.of(1 << 40)), (N_FOLDS, None));
    // Of the first prompt our first reply is the long one.
    assert!(taught.of(0).unwrap() > taught.of(1).unwrap());
}

#[test]
fn what_teaches_nothing_is_refused() {
    let (replies, embeddings) = population([0.5, 0.5]);
    let lessons = Lessons::new(&replies, &embeddings, &HashMap::new(), GateProfile::TEXT_PROMPTING_2_1, 3);
    let refused = lessons.teach("text-embedding-3-small", 1).unwrap_err().to_string();
    assert!(refused.contains("text-embedding-3-small") && refused.contains("expected all-mpnet-base-v2"), "{refused}");
    let few = Replies::read(
        &mut &br#"{"p": "0", "m": "a", "t": "one"}
{"p": "0", "m": "b", "t": "two"}
{"p": "0", "m": "c", "t": "three"}"#[..],
    )
    .unwrap();
    let lessons = Lessons::new(&few, &embeddings[..3], &HashMap::new(), GateProfile::TEXT_PROMPTING_2_1, 3);
    let refused = lessons.taught("all-mpnet-base-v2", 1).unwrap_err().to_string();
    assert!(refused.ends_with("more prompts, or more models") && refused.contains("among 1 prompts"), "{refused}");
}

#[test]
fn what_is_not_on_record_counts_as_nothing() {
    let (replies, embeddings) = population([0.5, 0.5]);
    let lessons = Lessons::new(&replies, &embeddings, &HashMap::new(), GateProfile::TEXT_PROMPTING_2_1, 3);
    let learned = lessons.learn(&own(), 2, 5);
    assert_eq!(learned.scores("no such prompt", &[0, 1], &[2, 3]), [0.0, 0.0]);
    assert_eq!(learned.scores("0", &[0, 99], &[2, 3]), [0.0, 0.0]);
    assert_eq!(learned.scores("0", &[0, 1], &[]), [0.0, 0.0], "learnt with rivals seen");
    for own in [vec!["nobody"], vec!["a", "nobody", "none"]] {
        let own: Vec<String> = own.into_iter().map(str::to_owned).collect();
        assert_eq!(lessons.learn(&own, 0, 1).scores("0", &[0], &[]).len(), 1);
    }
}
