use idiolect_backend::ErrorKind;
use idiolect_backend::testkit::{FaultyBackend, Step};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::double::{OTHER, SKY, SKY_AGAIN, Scripted, ask, parts, says, start};

#[tokio::test]
async fn what_is_measured_is_described() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let guard = metrics::set_default_local_recorder(&recorder);
    let pipeline = start(3, parts(Scripted::new(vec![says(SKY), says(SKY_AGAIN), says(OTHER)]))).await;
    pipeline.answer(ask()).await.unwrap();
    let failing = start(1, parts(FaultyBackend::always("f", Step::Fail(ErrorKind::Overloaded)))).await;
    failing.answer(ask()).await.unwrap_err();
    drop(guard);

    let text = handle.render();
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let mut n_names = 0;
    for name in names {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} is not described");
        n_names += 1;
    }
    assert!(n_names >= 8, "{text}");
    for line in [
        r#"idiolect_pipeline_replies_total{transport="local",mode="mutate",outcome="ok"} 1"#,
        r#"idiolect_pipeline_replies_total{transport="local",mode="mutate",outcome="overloaded"} 1"#,
        r#"idiolect_pipeline_selections_total{reason="best_that_clears"} 1"#,
        r#"idiolect_pipeline_candidates_total{finish="stop"} 3"#,
        "idiolect_pipeline_backend_failures_total 1",
        "idiolect_pipeline_replies_in_flight 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
