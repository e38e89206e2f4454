use super::*;

fn lines(values: &[f64]) -> Lines {
    let point = |(x, y): (usize, &f64)| (x as f64, *y, Some((y - 1.0, y + 1.0)));
    let line = Line { name: "<b>us</b>".to_owned(), points: values.iter().enumerate().map(point).collect() };
    Lines {
        title: "Place \"over\" time".to_owned(),
        x: "steps".to_owned(),
        y: "place".to_owned(),
        down: true,
        lines: vec![line],
    }
}

#[test]
fn whatever_is_in_a_name_is_text() {
    let mut page = Page::new("a <script>alert(1)</script> & 'b'");
    page.facts(&[("seed", "\u{1}3\u{7f}".to_owned())]);
    page.answer("B < A");
    page.table("t", &["name", "x"], &[Row { cells: vec!["<i>\"".to_owned()], ours: true }]);
    page.picture(&lines(&[1.0, 2.0]), "so").unwrap();
    let html = page.finish();
    assert!(
        !html.contains("<script") && !html.contains("<b>us") && !html.contains("<i>") && !html.contains('\u{1}'),
        "{html}"
    );
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#39;b&#39;") && html.contains("<dd>3</dd>"));
    assert!(html.contains("<th scope=\"row\">&lt;i&gt;&quot;</th><td></td>"));
    assert!(html.contains("aria-label=\"Place &quot;over&quot; time\""));
    // Nothing is fetched from anywhere.
    let outside = html.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http") && !outside.contains("<link") && !outside.contains("url("), "{outside}");
    assert_eq!(html, {
        let mut same = page;
        same.text("");
        same.finish().replace("<p></p>\n", "")
    });
}

#[test]
fn odd_data_is_drawn_or_said_to_be_none() {
    let nothing = lines(&[f64::NAN, f64::INFINITY]).svg().unwrap();
    assert!(nothing.contains("no data"));
    for values in [&[3.0][..], &[5.0, 5.0, 5.0], &[1e-300, 1e300], &[0.0], &[-4.0, f64::NAN, 8.0]] {
        let svg = lines(values).svg().unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{values:?}: {svg}");
    }
    let many: Vec<f64> = (0..100_000).map(f64::from).collect();
    assert!(lines(&many).svg().unwrap().len() < 200_000);
    let histogram = |groups: &[f64]| Histogram {
        title: "h".to_owned(),
        x: "x".to_owned(),
        groups: vec![("g".to_owned(), groups.to_vec())],
        bins: 20,
        mark: Some((0.0, "bound".to_owned())),
    };
    assert!(histogram(&[]).svg().unwrap().contains("no data"));
    assert!(histogram(&[0.5, f64::NAN, 0.7]).svg().unwrap().contains("bound"));
    let bars = |value: f64| Bars {
        title: "b".to_owned(),
        x: "USD".to_owned(),
        bars: vec![Bar {
            name: "a name that is longer than forty characters, much longer".to_owned(),
            value,
            interval: Some((0.1, 0.9)),
        }],
    };
    assert!(bars(f64::NAN).svg().unwrap().contains("no data"));
    assert!(bars(0.5).svg().unwrap().contains("a name that is longer than forty charac…"));
}

#[test]
fn what_was_predicted_is_compared_with_what_happened() {
    let pair = |predicted: f64, happened: f64| Pair { predicted, happened };
    let pairs = [pair(0.1, 0.0), pair(0.15, 1.0), pair(0.9, 1.0), pair(1.0, 1.0), pair(f64::NAN, 0.0)];
    let bins = Reliability::bins(&pairs);
    assert_eq!(bins.iter().map(|(_, _, n)| *n).collect::<Vec<_>>(), [2, 2]);
    assert!((bins[0].0 - 0.125).abs() < 1e-12 && bins[0].1 == 0.5 && bins[1].1 == 1.0);
    let brier = Reliability::brier(&pairs[..4]).unwrap();
    assert!((brier - (0.01 + 0.7225 + 0.01) / 4.0).abs() < 1e-12);
    assert_eq!(Reliability::brier(&[]), None);
}
