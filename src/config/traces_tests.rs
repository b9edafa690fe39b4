use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::config::{Config, Environment};

fn of(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("proxy.toml"), text).unwrap();
    let environment = Environment {
        variables: variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        cwd: dir.path().to_owned(),
        home: Some(dir.path().to_owned()),
        etc: PathBuf::from("/nonexistent"),
        run: PathBuf::new(),
    };
    Config::load(None, &environment).map_err(|error| error.to_string())
}

fn traces_of(text: &str, variables: &[(&str, &str)]) -> Option<Traces> {
    of(text, variables).unwrap().traces
}

const COLLECTOR: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

#[test]
fn none_unless_somebody_names_a_collector() {
    assert_eq!(traces_of("", &[]), None);
    assert_eq!(
        traces_of("[traces]\nsample = 0.5\n", &[("OTEL_SERVICE_NAME", "x")]),
        None
    );
    assert_eq!(traces_of("[traces]\nendpoint = \"\"\n", &[COLLECTOR]), None);
    assert_eq!(traces_of("", &[COLLECTOR, ("OTEL_SDK_DISABLED", "True")]), None);
    assert_eq!(traces_of("", &[COLLECTOR, ("OTEL_TRACES_EXPORTER", "none")]), None);
}

#[test]
fn where_spans_go() {
    let at = |key: &str| {
        traces_of(&format!("[traces]\nendpoint = \"{key}\"\n"), &[])
            .unwrap()
            .endpoint
            .to_string()
    };
    assert_eq!(at("http://127.0.0.1:4318"), "http://127.0.0.1:4318/v1/traces");
    assert_eq!(at("https://c.example/"), "https://c.example/v1/traces");
    assert_eq!(
        at("https://c.example/otlp/v1/traces"),
        "https://c.example/otlp/v1/traces"
    );
    assert_eq!(at("https://c.example/custom"), "https://c.example/custom");
    let by = |variables: &[(&str, &str)]| traces_of("", variables).unwrap().endpoint.to_string();
    assert_eq!(by(&[COLLECTOR]), "http://collector:4318/v1/traces");
    assert_eq!(
        by(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c/base/")]),
        "http://c/base/v1/traces"
    );
    let whole = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/as-it-stands");
    assert_eq!(by(&[COLLECTOR, whole]), "http://c/as-it-stands");
}

#[test]
fn the_table_wins_over_the_variables() {
    let variables = [
        COLLECTOR,
        ("OTEL_SERVICE_NAME", "theirs"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b=two%20words"),
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc"),
    ];
    let resource = |traces: &Traces| {
        traces
            .resource
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect::<Vec<_>>()
    };
    let version = format!("service.version={}", env!("CARGO_PKG_VERSION"));
    let theirs = traces_of("", &variables).unwrap();
    assert_eq!(
        resource(&theirs),
        ["service.name=theirs", &version, "a=1", "b=two words"]
    );
    assert_eq!((theirs.sample, theirs.heeds_parent), (0.25, false));
    let headers = theirs.headers.unwrap().read().unwrap();
    assert_eq!(
        header_pairs(headers.reveal()).unwrap(),
        [("authorization".to_owned(), "Bearer abc".to_owned())]
    );
    let own = "[traces]\nendpoint = \"http://own:1\"\nservice_name = \"ours\"\nresource = [\"a=3\"]\nsample = 1\nheaders = \"x=y\"\n";
    let ours = traces_of(own, &variables).unwrap();
    assert_eq!(ours.endpoint.as_str(), "http://own:1/v1/traces");
    assert_eq!(resource(&ours), ["service.name=ours", &version, "a=3", "b=two words"]);
    assert_eq!((ours.sample, ours.heeds_parent), (1.0, true));
    assert_eq!(ours.headers.unwrap().read().unwrap().reveal(), "x=y");
    let bare = traces_of("[traces]\nendpoint = \"http://own:1\"\n", &[]).unwrap();
    assert_eq!((bare.sample, bare.heeds_parent, bare.propagate), (1.0, true, false));
    assert_eq!(resource(&bare), ["service.name=larder", &version]);
    let by_key = traces_of(
        "",
        &[
            ("LARDER_TRACES__ENDPOINT", "http://k:1"),
            ("LARDER_TRACES__SAMPLE", "0.5"),
        ],
    );
    assert_eq!(by_key.unwrap().sample, 0.5);
}

#[test]
fn samplers() {
    let by = |name: &str| {
        let traces = traces_of(
            "",
            &[
                COLLECTOR,
                ("OTEL_TRACES_SAMPLER", name),
                ("OTEL_TRACES_SAMPLER_ARG", "0.1"),
            ],
        );
        traces.map(|traces| (traces.sample, traces.heeds_parent)).unwrap()
    };
    assert_eq!(by("always_on"), (1.0, false));
    assert_eq!(by("always_off"), (0.0, false));
    assert_eq!(by("parentbased_always_off"), (0.0, true));
    assert_eq!(by("parentbased_traceidratio"), (0.1, true));
}

/// What is for every program is not refused, and told of.
#[test]
fn strange_variables_are_left_out() {
    for (name, value) in [
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ("OTEL_RESOURCE_ATTRIBUTES", "hunter2"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ] {
        let config = of("", &[COLLECTOR, (name, value)]).unwrap();
        assert!(config.traces.is_some(), "{name}");
        let warned = config.warnings.join("\n");
        assert!(warned.contains(name) && !warned.contains("hunter2"), "{warned}");
    }
    let config = of("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector")]).unwrap();
    assert!(config.traces.is_none() && config.warnings[0].contains("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let grpc = of("[traces]\nendpoint = \"http://c:4317\"\n", &[]).unwrap();
    assert!(grpc.warnings[0].contains("gRPC"), "{:?}", grpc.warnings);
}

#[test]
fn wrong_keys_are_refused_without_their_secrets() {
    for (lines, want) in [
        ("endpoint = \"collector:4318\"", "expected the http:// or https://"),
        ("endpoint = \"http://u:hunter2@c\"", "without user, password"),
        ("endpoint = \"http://c/?key=hunter2\"", "without user, password"),
        ("sample = 1.5", "found 1.5, expected a number from 0 to 1"),
        ("sample = \"half\"", "found \"half\", expected a number from 0 to 1"),
        ("headers = \"hunter2\"", "expected name=value"),
        ("headers = \"a b=hunter2\"", "pairs that can be headers"),
        ("resource = [\"prod\"]", "expected key=value"),
        ("headers_file = \"nowhere\"", "headers_file"),
    ] {
        let error = of(&format!("[traces]\n{lines}\n"), &[]).unwrap_err();
        assert!(
            error.contains(want) && error.contains("proxy.toml:2"),
            "{lines}: {error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }
}
