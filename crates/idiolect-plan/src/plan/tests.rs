use proptest::prelude::*;

use super::*;
use crate::{FIELDS, Origin};

fn today() -> Date {
    "2026-11-22".parse().unwrap()
}

/// 20 epochs a day of 100 alpha at 0.05 TAO of 400 USD: 40,000 USD a day for all.
fn inputs(changes: &[(&str, f64)]) -> Inputs {
    let mut inputs = Inputs::new();
    let base = [
        ("burn_tao", 1.0),
        ("tao_usd", 400.0),
        ("alpha_tao", 0.05),
        ("emission_per_tempo", 100.0),
        ("gpu_usd_per_hour", 0.5),
        ("price_sd_per_day", 0.0),
    ];
    for (key, value) in base.iter().chain(changes) {
        inputs.set_flag(key, *value, today()).unwrap();
    }
    inputs
}

fn share(value: f64) -> Assumptions {
    Assumptions::with_share(Range { value, low: value, high: value })
}

fn plan(changes: &[(&str, f64)], of_share: f64) -> Plan {
    Plan::new(&inputs(changes), &share(of_share), today()).unwrap()
}

#[test]
fn formulas_are_those_of_the_chain_and_the_validators() {
    let plan = plan(&[], 0.001);
    assert!((plan.income_alpha_per_day.value - 2.0).abs() < 1e-9);
    assert!((plan.income_tao_per_day.value - 0.1).abs() < 1e-9);
    assert!((plan.income_usd_per_day.value - 40.0).abs() < 1e-9);
    assert_eq!((plan.cost_usd_per_day, plan.burn_usd), (12.0, 400.0));
    assert!((plan.net_usd_per_day.value - 28.0).abs() < 1e-9);
    // 5760 steps a day, of which 50 in 256.
    assert!((plan.asked_per_day - 1125.0).abs() < 1e-9);
    // 0.95^58.4 is 5 %.
    assert!((plan.ramp_days * 1125.0 - 58.4).abs() < 0.01, "{}", plan.ramp_days);
    assert!((plan.immunity_days - 4096.0 * 12.0 / 86_400.0).abs() < 1e-12);
    assert!(plan.ramp_at_immunity > 0.999);
    // 28 a day, of which little is lost to the ramp: 400 / 28 = 14.3.
    assert_eq!(plan.break_even_day, Some(15));
    assert_eq!(plan.chances.break_even_day_p50, Some(15));
    assert_eq!((plan.verdict, plan.chances.paid_back), (Verdict::Do, 1.0));
    assert!((plan.chances.net_usd.value - (28.0 * 90.0 - 400.0)).abs() < 10.0, "{:?}", plan.chances.net_usd);
    assert_eq!(plan.answer, "do: in 100 % of 10000 futures the burn of 1 TAO (400 USD) is earned back within 90 days");

    // Tokens: 11,250 replies a day of 400 and 600 tokens.
    let mut by_token = Inputs::new();
    for (key, value) in [
        ("burn_tao", 1.0),
        ("tao_usd", 400.0),
        ("alpha_tao", 0.05),
        ("emission_per_tempo", 100.0),
        ("prompt_usd_per_million", 0.5),
        ("completion_usd_per_million", 1.5),
        ("other_usd_per_day", 3.0),
    ] {
        by_token.set_flag(key, value, today()).unwrap();
    }
    let plan = Plan::new(&by_token, &share(0.001), today()).unwrap();
    assert!((plan.cost_usd_per_day - (11_250.0 * (200.0 + 900.0) / 1e6 + 3.0)).abs() < 1e-9);
}

#[test]
fn the_answer_is_dont_where_it_is() {
    // Costs more than it earns.
    let never = plan(&[], 0.0002);
    assert_eq!((never.verdict, never.break_even_day, never.chances.break_even_day_p05), (Verdict::Dont, None, None));
    assert_eq!(
        never.answer,
        "don't: it costs 12.00 USD a day and earns 8.00; the burn of 1 TAO (400 USD) comes back in 0 % of 10000 futures"
    );
    // Earns, and too little for the burn.
    let slow = plan(&[("burn_tao", 10.0)], 0.001);
    assert_eq!(slow.verdict, Verdict::Dont);
    assert_eq!(
        slow.answer,
        "don't: in 100 % of 10000 futures the burn of 10 TAO (4000 USD) is not earned back within 90 days"
    );
    // Somewhere between, the share decides.
    let wide = Range { value: 0.00045, low: 0.0001, high: 0.0009 };
    let unsure = Plan::new(&inputs(&[]), &Assumptions::with_share(wide), today()).unwrap();
    assert_eq!(unsure.verdict, Verdict::Unsure, "{}", unsure.chances.paid_back);
    assert!(unsure.chances.net_usd.low < 0.0 && unsure.chances.net_usd.high > 0.0);
    assert!(unsure.answer.starts_with("unsure: in 5"), "{}", unsure.answer);
}

#[test]
fn places_are_worth_what_the_chain_says() {
    let mut inputs = inputs(&[("n_miners", 4.0), ("registrations_per_day", 1.0)]);
    inputs.set_incentives(&[0.0, 30.0, 50.0, 20.0], Origin::Flag, today()).unwrap();
    let at = |value: f64, low: f64, high: f64| Assumptions {
        place: Some(Range { value, low, high }),
        ..Assumptions::default()
    };
    let second = Plan::new(&inputs, &at(2.0, 1.0, 3.0), today()).unwrap();
    assert_eq!((second.share.value, second.share.low, second.share.high), (0.3, 0.2, 0.5));
    let between = Plan::new(&inputs, &at(2.5, 2.5, 2.5), today()).unwrap();
    assert!((between.share.value - 0.25).abs() < 1e-12);
    assert_eq!(between.chances.pruned, Some(0.0));
    // The last of four loses its place to the one newcomer of the day.
    let last = Plan::new(&inputs, &at(4.0, 4.0, 4.0), today()).unwrap();
    assert_eq!((last.chances.pruned, last.verdict), (Some(1.0), Verdict::Dont));
    assert!(last.warnings.is_empty(), "{:?}", last.warnings);
    // Half of the machine's first day, and the burn.
    assert!(last.chances.net_usd.value < -400.0 && last.chances.net_usd.value > -412.0, "{:?}", last.chances.net_usd);
    assert!(second.formulas.iter().any(|formula| formula.with_numbers == "place 2.0: 0.300000"));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let make =
        |inputs: &Inputs, assumptions: &Assumptions| Plan::new(inputs, assumptions, today()).unwrap_err().to_string();
    let said = make(&Inputs::new(), &share(0.1));
    assert_eq!(
        said,
        "burn_tao is not known (what registering burns, never to be had back); give --burn-tao, or put it into the snapshot"
    );
    let mut unpaid = Inputs::new();
    for key in ["burn_tao", "tao_usd", "alpha_tao", "emission_per_tempo"] {
        unpaid.set_flag(key, 1.0, today()).unwrap();
    }
    assert!(make(&unpaid, &share(0.1)).starts_with("no cost is known: give --gpu-usd-per-hour"));
    unpaid.set_flag("prompt_usd_per_million", 1.0, today()).unwrap();
    assert!(make(&unpaid, &share(0.1)).starts_with("completion_usd_per_million is not known"));
    let known = inputs(&[]);
    assert!(make(&known, &Assumptions::default()).starts_with("nothing says what share would be earned"));
    let odd = Assumptions::with_share(Range { value: 0.5, low: 0.6, high: 0.7 });
    assert_eq!(make(&known, &odd), "weight_share is 0.5 (0.6 to 0.7), expected from 0 to 1, the interval around it");
    let place = Assumptions { place: Some(Range { value: 300.0, low: 1.0, high: 300.0 }), ..share(0.1) };
    assert_eq!(make(&known, &place), "place is 300 (1 to 300), expected from 1 to 256, the interval around it");
    let mut inputs = Inputs::new();
    let mut set = |key: &str, value: f64| inputs.set_flag(key, value, today()).unwrap_err().to_string();
    assert!(set("luck", 1.0).starts_with("no input is called luck, expected one of burn_tao, tao_usd"));
    assert_eq!(set("burn_tao", -1.0), "burn_tao is -1, expected a number of at least 0");
    assert_eq!(set("tao_usd", f64::NAN), "tao_usd is NaN, expected a number of at least 0");
    assert_eq!(set("block_s", 0.0), "block_s is 0, expected a number above 0");
    assert_eq!(set("n_miners", 0.0), "n_miners is 0, expected a number from 1 to 65535");
    assert_eq!("soon".parse::<Date>().unwrap_err().to_string(), "soon is no date, expected YEAR-MONTH-DAY");
}

#[test]
fn snapshots_are_read_and_flags_count_more() {
    let mut known = Inputs::new();
    known.set_flag("tao_usd", 500.0, today()).unwrap();
    let text = r#"
        date = "2026-11-20"
        burn_tao = 2
        tao_usd = 300.0
        alpha_tao = { value = 0.1, date = "2026-11-01", source = "an exchange" }
        emission_per_tempo = 100
        gpu_usd_per_hour = 0.34
        incentives = [3, 1]
    "#;
    known.add_snapshot(text).unwrap();
    assert_eq!(known.value("tao_usd").unwrap(), 500.0);
    assert_eq!(known.value("burn_tao").unwrap(), 2.0);
    assert_eq!(known.incentives().unwrap().0, [0.75, 0.25]);
    let alpha = known.given("alpha_tao").unwrap();
    assert_eq!(
        (alpha.origin.to_string(), alpha.date.unwrap().to_string()),
        ("snapshot: an exchange".to_owned(), "2026-11-01".to_owned())
    );
    let plan = Plan::new(&known, &share(0.01), today()).unwrap();
    assert!(plan.warnings.contains(&"alpha_tao is 21 days old (2026-11-01)".to_owned()), "{:?}", plan.warnings);
    let text = plan.to_string();
    assert!(text.contains("snapshot: an exchange") && text.contains("warning: alpha_tao is 21 days old"), "{text}");
    let earlier = Plan::new(&known, &share(0.01), "2026-11-10".parse().unwrap()).unwrap();
    assert!(earlier.warnings[0].contains("after today"), "{:?}", earlier.warnings);

    let wrong = |text: &str| Inputs::new().add_snapshot(text).unwrap_err().to_string();
    assert_eq!(
        wrong("burn_tao = 1"),
        "the snapshot: burn_tao has no date, expected date = \"YEAR-MONTH-DAY\" with it or for the whole file"
    );
    assert!(wrong("date = \"2026-11-20\"\nluck = 1").starts_with("no input is called luck"));
    assert_eq!(
        wrong("date = \"2026-11-20\"\nburn_tao = \"much\""),
        "the snapshot: burn_tao is \"much\", expected a number"
    );
    assert!(wrong("date = \"2026-11-20\"\nburn_tao = { value = 1, from = 2 }").contains("burn_tao.from is unknown"));
    assert!(wrong("date = \"2026-11-20\"\nincentives = [0, 0]").contains("incentives is 2 times 0"));
    assert!(wrong("burn_tao = ").starts_with("the snapshot: "));
    assert_eq!(wrong("date = \"yesterday\"\n"), "yesterday is no date, expected YEAR-MONTH-DAY");
}

#[test]
fn every_input_is_printed_with_its_date_and_every_formula_with_numbers() {
    let plan = plan(&[], 0.001);
    let (text, explained) = (plan.to_string(), plan.explain());
    assert!(FIELDS.iter().all(|field| field.flag == field.key.replace('_', "-")));
    for given in &plan.inputs {
        assert!(text.contains(given.key), "{}", given.key);
    }
    assert!(text.lines().all(|line| line.chars().count() <= 130), "{text}");
    assert!(plan.formulas.len() >= 9);
    for formula in &plan.formulas {
        assert!(explained.contains(formula.formula) && explained.contains(&formula.with_numbers));
    }
    assert!(explained.contains("0.001000 x 100 x 20.000 = 2.0000"), "{explained}");
    let json: serde_json::Value = serde_json::to_value(&plan).unwrap();
    assert_eq!((json["verdict"].as_str(), json["today"].as_str()), (Some("do"), Some("2026-11-22")));
    assert_eq!(json["inputs"].as_array().unwrap().len(), FIELDS.len() - 3);
    assert!(json["chances"]["pruned"].is_null());
}

proptest! {
    #[test]
    fn more_is_never_worse(burn in 0.0..5.0_f64, more in 0.0..5.0_f64, of_share in 0.0..0.01_f64, sd in 0.0..0.2_f64, seed in 0_u64..100) {
        let assumptions = Assumptions { futures: 200, seed, ..Assumptions::with_share(Range { value: of_share, low: of_share * 0.5, high: of_share * 1.5 }) };
        let make = |burn: f64, emission: f64| {
            let inputs = inputs(&[("burn_tao", burn), ("emission_per_tempo", emission), ("price_sd_per_day", sd)]);
            Plan::new(&inputs, &assumptions, today()).unwrap()
        };
        let base = make(burn, 100.0);
        prop_assert_eq!(&base, &make(burn, 100.0));
        let dear = make(burn + more, 100.0);
        let rich = make(burn, 100.0 + 50.0 * more);
        let day = |day: Option<u32>| day.unwrap_or(u32::MAX);
        prop_assert!(day(dear.break_even_day) >= day(base.break_even_day));
        prop_assert!(dear.chances.paid_back <= base.chances.paid_back);
        prop_assert!(rich.chances.paid_back >= base.chances.paid_back);
        prop_assert!(rich.income_usd_per_day.value >= base.income_usd_per_day.value);
        for range in [base.share, base.income_usd_per_day, base.net_usd_per_day, base.chances.net_usd] {
            prop_assert!(range.low <= range.high && range.value.is_finite());
        }
        let (early, late) = (day(base.chances.break_even_day_p05), day(base.chances.break_even_day_p95));
        prop_assert!(early <= late);
        let text = base.to_string() + &base.explain();
        prop_assert!(!text.contains("NaN") && !text.contains("inf"));
    }
}
