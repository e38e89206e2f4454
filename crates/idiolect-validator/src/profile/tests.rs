use super::*;

#[test]
fn gates_are_those_of_the_uniqueness_crate() {
    assert_eq!(Profile::openvalidators_1_2().gate, GateProfile::OPENVALIDATORS_1_2);
    assert_eq!(Profile::text_prompting_2_1().gate, GateProfile::TEXT_PROMPTING_2_1);
}

#[track_caller]
fn check_error(from: &str, to: &str, expected: &str) {
    let text = Profile::built_in_toml("text-prompting-2.1").unwrap();
    assert!(text.contains(from), "{from}");
    let error = Profile::from_toml(&text.replacen(from, to, 1)).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn errors_name_line_key_and_figure() {
    check_error("dpo = 0.6", "dpo = 0.7", "line 17: rewards: the weights add up to 1.1, expected 1");
    check_error("dpo = 0.6", "dpo = 1.6", "rewards.dpo is 1.6, expected a number from 0 to 1");
    check_error("dpo = 0.6", "dpo = nan", "line 18: rewards.dpo is NaN, expected a finite number");
    check_error("alpha = 0.05", "alpha = 0.05\nbeta = 1", "line 6: beta: unknown field `beta`, expected one of `name`");
    check_error("alpha = 0.05\n", "", "missing field `alpha`");
    check_error("alpha = 0.05", "alpha = \"x\"", "line 5: alpha: invalid type: string \"x\", expected f64");
    check_error("alpha = 0.05", "alpha = 5.0", "line 5: alpha is 5, expected a number from 0 to 1");
    check_error("alpha = 0.05", "alpha = ", "line 5: ");
    check_error("alpha = 0.05", "alpha = 1\nalpha = 1", "line 6: ");
    check_error("n_max = 10", "n_max = 4", "ngram_blacklist.n_max is 4");
    check_error("history_rank = 2", "history_rank = 0", "gate.history_rank is 0, expected 1 to 1000");
    check_error("batch_rank = 1", "batch_rank = -1", "gate.batch_rank: invalid value");
    check_error("batch_rank = 1\n", "", "gate: missing field `batch_rank`");
    check_error("slope = 40.0", "slope = -40.0", "gate.batch.slope is -40, expected a number above 0");
    check_error("slope = 1000.0", "slope = 0.0", "gate.historic.slope is 0, expected a number above 0");
    check_error("n = 5\n", "n = 5\nm = 5\n", "dpo.repetition: unknown field `m`");
    check_error("\"no-repeat-ngram\"", "\"none\"", "unknown variant `none`");
    check_error("half_life = 20000", "half_life = 0", "ngram_blacklist.half_life is 0, expected at least 1");
    check_error("half_life = 20000", "half_life = -1", "ngram_blacklist.half_life: invalid value");
    check_error("\"diversity\",", "\"variety\",", "masks.2: unknown variant `variety`");
    check_error("\"diversity\",", "\"nsfw\",", "masks is a list with nsfw twice");
    check_error("length_steepness = 10.0\n", "", "penalties.criteria: missing field `length_steepness`");
    assert!(Profile::built_in_toml("x").is_err());
}

#[test]
fn a_file_extends_a_built_in_profile() {
    let base = Profile::text_prompting_2_1();
    assert_eq!(Profile::from_toml("extends = \"text-prompting-2.1\"").unwrap(), base);
    let text = "extends = \"text-prompting-2.1\"\nname = \"mine\"\n[rewards]\ndpo = 1\nreciprocate = 0\n[penalties]\ncontent_match = 0.5\n[dpo.repetition]\nrule = \"scaled\"\nfactor = 1.5\nlag = 1\n";
    let mine = Profile::from_toml(text).unwrap();
    assert_eq!((mine.name.as_str(), mine.gate.name.as_ref()), ("mine", "mine"));
    assert_eq!(mine.weighed().collect::<Vec<_>>(), [(&"dpo".to_owned(), 1.0)]);
    let (penalties, of_base) = (mine.penalties.unwrap(), base.penalties.unwrap());
    assert_eq!((penalties.content_match, penalties.criteria), (0.5, of_base.criteria));
    assert_eq!(mine.dpo.repetition, crate::dpo::Repetition::Scaled { factor: 1.5, lag: 1 });
    let error = |text: &str| Profile::from_toml(text).unwrap_err().to_string();
    assert_eq!(
        error("\nextends = \"sn1\""),
        "line 2: extends is \"sn1\", expected openvalidators-1.2 or text-prompting-2.1"
    );
    assert!(error("extends = 1").contains("extends is integer"));
    let text = "extends = \"openvalidators-1.2\"\n[rewards]\ndpo = 0.5\n";
    assert_eq!(error(text), "line 2: rewards: the weights add up to 1.2, expected 1");
    // The version without penalties has none to take the rest from.
    let text = "extends = \"openvalidators-1.2\"\n[penalties]\ncontent_match = 0.5\n";
    assert!(error(text).starts_with("line 2: penalties: missing field"), "{}", error(text));
}

#[test]
fn no_criteria_cost_nothing() {
    let criteria = Profile::text_prompting_2_1().penalties.unwrap().criteria;
    let penalty = criteria.penalty(TaskKind::Answer, &[], "A reply.");
    assert!(penalty == 0.0 && penalty.is_sign_positive());
}

#[test]
fn a_profile_is_found_by_name_or_path() {
    assert_eq!(Profile::find("openvalidators-1.2").unwrap(), Profile::openvalidators_1_2());
    for name in ["nothing", "text-prompting-2.2", ""] {
        assert_eq!(Profile::find(name).unwrap_err(), ProfileError::Unknown(name.to_owned()));
    }
    for path in ["nothing.toml", "no/where", "no/where-2.1"] {
        let error = Profile::find(path).unwrap_err();
        assert!(matches!(error, ProfileError::File { .. }), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    let find = || Profile::find(path.to_str().unwrap());
    assert!(find().unwrap_err().to_string().contains("mine.toml: "));
    std::fs::write(&path, "extends = \"openvalidators-1.2\"\nalpha = 0.5\n").unwrap();
    assert_eq!(find().unwrap().alpha, 0.5);
    std::fs::write(&path, b"name = 1\n# \xff\xfe").unwrap();
    assert!(find().unwrap_err().to_string().ends_with("mine.toml: line 2: no UTF-8"));
    std::fs::write(&path, "extends = \"openvalidators-1.2\"\nalfa = 0.5\n").unwrap();
    assert!(find().unwrap_err().to_string().contains("mine.toml: line 2: alfa: unknown field"));
}
