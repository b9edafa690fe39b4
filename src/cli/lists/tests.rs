use std::path::Path;

use proptest::prelude::*;

use super::*;

fn read(text: &str, kind: Option<Kind>) -> Images {
    images(text, kind, Path::new("-"), Some(Path::new("/nonexistent"))).unwrap()
}

fn found(images: &Images) -> Vec<String> {
    images
        .found
        .iter()
        .map(|found| format!("{} ({})", found.image, found.place))
        .collect()
}

#[test]
fn a_compose_file() {
    let text = r#"
x-base: &base
  image: redis:${LARDER_TEST_TAG:-7}-alpine
services:
  web:
    image: nginx:1.27
    platform: linux/arm64
  cache:
    <<: *base
  app:
    build: .
    image: app:dev
  other:
    image: "ghcr.io/x/y:${LARDER_TEST_NOT_SET}"
"#;
    let images = read(text, None);
    assert_eq!(
        found(&images),
        [
            "nginx:1.27 platform=linux/arm64 (line 5, services.web)",
            "redis:7-alpine (line 8, services.cache)"
        ]
    );
    assert_eq!(images.passed_over.len(), 2, "{:?}", images.passed_over);
    assert!(images.passed_over[1].contains("$LARDER_TEST_NOT_SET is not set"));
}

#[test]
fn kubernetes_manifests() {
    let text = r#"
# Source: chart/templates/web.yaml
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      initContainers:
        - {name: init, image: busybox:1.37}
      containers:
        - name: app
          image: "registry.example:5000/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
      volumes:
        - name: data
          image: {reference: "quay.io/x/data:1"}
---
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: c, image: alpine}]}}}}}
---
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {ephemeralContainers: [{name: e, image: "debug:1"}]}}
---
apiVersion: kafka.example/v1
kind: Kafka
metadata: {name: my}
spec:
  image: quay.io/kafka:4
  logo: {image: pretty}
  sidecar: {image: {registry: ghcr.io, repository: x/side, tag: "2"}}
---
apiVersion: v1
kind: ConfigMap
data: {x: "image: not/one:1"}
"#;
    let images = read(text, None);
    assert_eq!(
        found(&images),
        [
            "busybox:1.37 (line 10, Deployment/web initContainers[init])",
            "registry.example:5000/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa (line 13, Deployment/web containers[app])",
            "quay.io/x/data:1 (line 16, Deployment/web spec.template.spec.volumes.[].image)",
            "alpine (line 22, CronJob/nightly containers[c])",
            "debug:1 (line 27, Pod/p ephemeralContainers[e])",
        ]
    );
    let perhaps: Vec<&str> = images.perhaps.iter().map(|found| found.image.as_str()).collect();
    assert_eq!(perhaps, ["quay.io/kafka:4", "ghcr.io/x/side:2"]);
}

#[test]
fn a_dockerfile() {
    let text = r#"# syntax=docker/dockerfile:1
ARG RUST=1.90
ARG BASE
FROM --platform=$BUILDPLATFORM rust:${RUST}-slim AS Build
RUN --mount=type=bind,from=ghcr.io/x/tools:3,target=/t <<EOF
FROM not-an-image
EOF
COPY --from=build /a /a
COPY --from=0 /a /a
FROM build AS test
# FROM commented:1
FROM --platform=linux/amd64 \
  gcr.io/distroless/static
COPY --from=busybox:1.37 /bin/sh /sh
FROM scratch
FROM $BASE
"#;
    let images = read(text, None);
    assert_eq!(
        found(&images),
        [
            "docker/dockerfile:1 (line 1, syntax)",
            "rust:1.90-slim (line 4, FROM)",
            "ghcr.io/x/tools:3 (line 5, RUN --mount)",
            "gcr.io/distroless/static platform=linux/amd64 (line 12, FROM)",
            "busybox:1.37 (line 14, COPY)",
        ]
    );
    assert_eq!(images.passed_over.len(), 1, "{:?}", images.passed_over);
}

#[test]
fn what_is_none_of_them() {
    let refused = |text: &str| images(text, None, Path::new("x.yaml"), None).unwrap_err();
    assert!(refused("a: b").contains("--kind"));
    assert!(refused("a: [").starts_with("line "), "{}", refused("a: ["));
    assert!(images("", None, Path::new("Dockerfile.web"), None).is_ok());
}

/// A few lines of aliases that name an image a million times over, one text of a megabyte that is named ten thousand times, a long
/// key before every image: what is kept stays in proportion.
#[test]
fn files_cannot_be_larger_than_they_are() {
    let kubernetes = |text: &str| images(text, Some(Kind::Kubernetes), Path::new("-"), None);
    let mut text = "kind: x\napiVersion: v1\na0: &a0 [{image: a:1}]\n".to_owned();
    for n in 1..=20 {
        text += &format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1);
    }
    assert!(kubernetes(&text).unwrap_err().contains("more than 20000"));

    let long = "a/".repeat(500_000);
    let many = "  - image: *long\n".repeat(1000);
    let text = format!("kind: x\napiVersion: v1\nlong: &long {long}\ncontainers:\n{many}");
    let found = kubernetes(&text).unwrap();
    assert_eq!((found.found.len(), found.passed_over.len()), (0, 1000));
    assert!(
        found.passed_over.iter().all(|word| word.len() < 300),
        "{}",
        found.passed_over[0]
    );

    let many = "  - image: a:1\n".repeat(1000);
    let key = "x".repeat(1000);
    let text = format!("kind: x\napiVersion: v1\n{key}:\n{many}");
    let found = kubernetes(&text).unwrap();
    assert_eq!(found.perhaps.len(), 1000);
    assert!(
        found.perhaps.iter().all(|found| found.place.len() < 600),
        "{}",
        found.perhaps[0].place
    );
}

proptest! {
    #[test]
    fn no_file_panics(text in "(FROM|ARG|COPY|RUN|--from=|<<E|services:|image:|kind: x|apiVersion: v1|[a-z:$\\{\\}\\\\# \n&*<\\-]){0,40}") {
        for kind in [None, Some(Kind::Compose), Some(Kind::Kubernetes), Some(Kind::Dockerfile)] {
            let _ = images(&text, kind, Path::new("-"), Some(Path::new("/nonexistent")));
        }
    }
}
