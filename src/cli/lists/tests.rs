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

fn possible(images: &Images) -> Vec<&str> {
    images.possible.iter().map(|found| found.image.as_str()).collect()
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
    assert_eq!(images.passed_over.len(), 1, "{:?}", images.passed_over);
    assert_eq!(images.unread.len(), 1, "{:?}", images.unread);
    assert!(images.unread[0].contains("$LARDER_TEST_NOT_SET is not set"));
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
    assert_eq!(possible(&images), ["quay.io/kafka:4", "ghcr.io/x/side:2", "not/one:1"]);
    assert_eq!(images.unread, [""; 0]);
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
    assert_eq!(images.unread.len(), 1, "{:?}", images.unread);
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
    assert_eq!((found.found.len(), found.unread.len()), (0, 1000));
    assert!(found.unread.iter().all(|word| word.len() < 300), "{}", found.unread[0]);

    let many: String = (0..1000).map(|n| format!("  - image: a:{n}\n")).collect();
    let key = "x".repeat(1000);
    let text = format!("kind: x\napiVersion: v1\n{key}:\n{many}");
    let found = kubernetes(&text).unwrap();
    assert_eq!(found.possible.len(), 1000);
    assert!(
        found.possible.iter().all(|found| found.place.len() < 600),
        "{}",
        found.possible[0].place
    );

    // Steps that ran out are an error: what was not looked at is not passed over in silence.
    let many = "  - *long\n".repeat(100_000);
    let text = format!("kind: x\napiVersion: v1\nlong: &long {}\nx:\n{many}", "a ".repeat(5000));
    let error = kubernetes(&text).unwrap_err();
    assert!(error.contains("too large"), "{error}");
    // A large map, merged into many others and asked for what it has not.
    let keys: String = (0..50_000).map(|n| format!("  k{n}: v\n")).collect();
    let many = "  - {<<: *base, image: a}\n".repeat(20_000);
    let text = format!("kind: x\napiVersion: v1\nbase: &base\n{keys}containers:\n{many}");
    assert!(kubernetes(&text).unwrap_err().contains("too large"));
}

/// A document, and the expected outcome: images, possible ones, and the reasons why something is unread.
type Row = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Documents as they stand in people's files, each alone.
const DOCUMENTS: &[Row] = &[
    // Kubernetes without any image is read, and has none.
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {level: info, url: \"http://x.example:80/y\"}\n",
        &[],
        &[],
        &[],
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80, targetPort: \"8080\"}]}\n",
        &[],
        &[],
        &[],
    ),
    (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {image: \"secret.example/x:1\"}\n",
        &[],
        &[],
        &[],
    ),
    (
        "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: p}\n  spec: {containers: [{name: c, image: \"a:1\"}]}\n  status: {containerStatuses: [{image: \"docker.io/library/a:1\", imageID: \"docker.io/library/a@sha256:1\"}]}\n",
        &["a:1"],
        &[],
        &[],
    ),
    // Arguments, variables, and texts with whole resources in them.
    (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: operator}\nspec:\n  template:\n    spec:\n      containers:\n      - name: o\n        image: quay.io/x/operator:1\n        command: [/operator, --leader-elect]\n        args: [\"--sidecar-image=nginx:1.27\", --reloader-image, \"ghcr.io/x/reloader:2\", \"--bind=0.0.0.0:8080\"]\n        env:\n        - {name: RELATED_IMAGE_DB, value: \"postgres:17\"}\n        - {name: REDIS, value: \"redis:6379\"}\n        - {name: BACKUP, value: \"registry.example:5000/backup:3\"}\n",
        &["quay.io/x/operator:1"],
        &[
            "nginx:1.27",
            "ghcr.io/x/reloader:2",
            "postgres:17",
            "registry.example:5000/backup:3",
        ],
        &[],
    ),
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: injector}\ndata:\n  template: |\n    spec:\n      containers:\n      - name: proxy\n        image: istio/proxyv2:1.24\n      - image: \"{{ .image }}\"\n",
        &[],
        &["istio/proxyv2:1.24"],
        &[],
    ),
    // Custom resources.
    (
        "apiVersion: example.com/v1\nkind: Database\nmetadata: {name: db}\nspec:\n  imageName: ghcr.io/x/postgresql:17\n  podTemplate: {spec: {initContainers: [{name: i, image: \"busybox:1\"}], containers: [{name: c, image: \"a/b:2\"}]}}\n",
        &["busybox:1", "a/b:2"],
        &["ghcr.io/x/postgresql:17"],
        &[],
    ),
    (
        "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {name: w}\nspec:\n  templates:\n  - {name: a, container: {image: \"alpine:3\"}}\n  - {name: b, script: {image: \"python:3\", source: \"print(1)\"}}\n  - {name: c, container: {image: \"{{inputs.parameters.image}}\"}}\n",
        &["alpine:3", "python:3"],
        &[],
        &["template"],
    ),
    (
        "apiVersion: tekton.dev/v1\nkind: Task\nmetadata: {name: t}\nspec: {steps: [{name: s, image: \"golang:1.25\"}], sidecars: [{name: d, image: \"docker:dind\"}]}\n",
        &["golang:1.25", "docker:dind"],
        &[],
        &[],
    ),
    (
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\nspec: {template: {spec: {containers: [{image: \"ghcr.io/x/k:1\"}]}}}\n",
        &["ghcr.io/x/k:1"],
        &[],
        &[],
    ),
    (
        "apiVersion: caching.internal.knative.dev/v1alpha1\nkind: Image\nmetadata: {name: q}\nspec: {image: \"gcr.io/knative/queue:1\"}\n",
        &["gcr.io/knative/queue:1"],
        &[],
        &[],
    ),
    (
        "apiVersion: operators.coreos.com/v1alpha1\nkind: ClusterServiceVersion\nmetadata: {name: o}\nspec: {relatedImages: [{name: a, image: \"quay.io/x/a:1\"}]}\n",
        &["quay.io/x/a:1"],
        &[],
        &[],
    ),
    (
        "apiVersion: pkg.crossplane.io/v1\nkind: Provider\nmetadata: {name: p}\nspec: {package: \"xpkg.example/p:v1\"}\n",
        &["xpkg.example/p:v1"],
        &[],
        &[],
    ),
    (
        "apiVersion: template.openshift.io/v1\nkind: Template\nobjects:\n- {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: \"${IMAGE}\"}]}}\n- {apiVersion: image.openshift.io/v1, kind: ImageStream, metadata: {name: s}, spec: {tags: [{from: {kind: DockerImage, name: \"quay.io/x/s:1\"}}]}}\n",
        &["quay.io/x/s:1"],
        &[],
        &["a variable"],
    ),
    // A merged container, and one whose own image wins.
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: m}\nx: &base {name: b, env: []}\ny: &own {image: \"own:1\"}\nspec: {containers: [{<<: *own, name: a}, {<<: [*own, *base], image: \"mine:2\"}]}\n",
        &["own:1", "mine:2"],
        &[],
        &[],
    ),
    // Helm and Flux.
    (
        "apiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\nmetadata: {name: web}\nspec:\n  chart: {spec: {chart: podinfo, version: 6.x, sourceRef: {kind: HelmRepository, name: podinfo}}}\n  values:\n    image: {registry: ghcr.io, repository: x/podinfo, tag: 6.7.0}\n    sidecar: {image: {repository: x/side}}\n  postRenderers:\n  - kustomize: {images: [{name: a, newName: ghcr.io/x/a, newTag: \"1\"}]}\n",
        &["ghcr.io/x/a:1"],
        &["ghcr.io/x/podinfo:6.7.0"],
        &["helm template"],
    ),
    (
        "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: c}\nspec: {chart: \"oci://ghcr.io/x/charts/c\", version: 1.2.3+up4}\n",
        &["ghcr.io/x/charts/c:1.2.3_up4"],
        &[],
        &["helm template"],
    ),
    (
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nmetadata: {name: o}\nspec: {url: \"oci://ghcr.io/x/manifests\", ref: {tag: 6.7.0}}\n",
        &["ghcr.io/x/manifests:6.7.0"],
        &[],
        &[],
    ),
    (
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nmetadata: {name: o}\nspec: {url: \"oci://ghcr.io/x/manifests\", ref: {semver: \">=6.0.0\"}}\n",
        &["ghcr.io/x/manifests semver=\">=6.0.0\" newest=1"],
        &[],
        &[],
    ),
    (
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nmetadata: {name: o}\nspec: {url: \"oci://ghcr.io/x/manifests\"}\n",
        &["ghcr.io/x/manifests:latest"],
        &[],
        &[],
    ),
    (
        "apiVersion: image.toolkit.fluxcd.io/v1\nkind: ImageRepository\nmetadata: {name: i}\nspec: {image: ghcr.io/x/app}\n",
        &[],
        &[],
        &["ghcr.io/x/app without a tag"],
    ),
    (
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: GitRepository\nmetadata: {name: g}\nspec: {url: \"https://github.com/x/y\"}\n",
        &[],
        &[],
        &[],
    ),
    // Kustomize, its own file and Flux's.
    (
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nimages:\n- {name: nginx, newTag: \"1.27\"}\n- {name: app, newName: ghcr.io/x/app, newTag: v2}\n- {name: other, newName: quay.io/x/other}\n",
        &["nginx:1.27", "ghcr.io/x/app:v2"],
        &[],
        &["which tag of quay.io/x/other"],
    ),
    (
        "resources: [deployment.yaml]\nimages: [{name: nginx, newTag: \"1.27\"}]\n",
        &["nginx:1.27"],
        &[],
        &["kustomize build"],
    ),
    (
        "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {name: apps}\nspec: {path: ./apps, sourceRef: {kind: GitRepository, name: g}, images: [{name: a, newName: ghcr.io/x/a, newTag: \"2\"}]}\n",
        &["ghcr.io/x/a:2"],
        &[],
        &["kustomize build"],
    ),
    // Argo CD.
    (
        "apiVersion: argoproj.io/v1alpha1\nkind: Application\nmetadata: {name: web}\nspec: {sources: [{repoURL: \"https://github.com/x/y\", path: web, kustomize: {images: [\"nginx=ghcr.io/x/nginx:1.27\", \"b\"]}}, {repoURL: ghcr.io/x/charts, chart: web, targetRevision: 1.2.3}]}\n",
        &["ghcr.io/x/nginx:1.27", "ghcr.io/x/charts/web:1.2.3"],
        &[],
        &["which tag of b", "argocd app manifests"],
    ),
    // Tools that mirror.
    (
        "apiVersion: content.hauler.cattle.io/v1\nkind: Images\nmetadata: {name: i, annotations: {hauler.dev/registry: ghcr.io}}\nspec:\n  images:\n  - name: x/app:1\n  - name: quay.io/x/b:2\n    platform: linux/arm64\n",
        &["ghcr.io/x/app:1", "quay.io/x/b:2 platform=linux/arm64"],
        &[],
        &[],
    ),
    (
        "apiVersion: content.hauler.cattle.io/v1\nkind: Charts\nmetadata: {name: c}\nspec:\n  charts:\n  - {name: podinfo, repoURL: \"oci://ghcr.io/x/charts\", version: 6.4.0}\n  - {name: rancher, repoURL: \"https://releases.example/stable\", version: 2.8.2}\n",
        &["ghcr.io/x/charts/podinfo:6.4.0"],
        &[],
        &["the chart rancher is not in a registry"],
    ),
    (
        "apiVersion: content.hauler.cattle.io/v1\nkind: Files\nmetadata: {name: f}\nspec: {files: [{path: \"https://get.example\"}]}\n",
        &[],
        &[],
        &["from registries only"],
    ),
    (
        "apiVersion: content.hauler.cattle.io/v1\nkind: ImageTxts\nmetadata: {name: t}\nspec: {imageTxts: [{ref: \"https://x.example/images.txt\"}]}\n",
        &[],
        &[],
        &["stands elsewhere"],
    ),
    (
        "apiVersion: mirror.openshift.io/v2alpha1\nkind: ImageSetConfiguration\nmirror:\n  platform: {channels: [{name: stable-4.17}]}\n  operators: [{catalog: \"registry.example/redhat/index:v4.17\", packages: [{name: aws}]}]\n  additionalImages: [{name: \"registry.example/ubi9/ubi:latest\"}]\n  blockedImages: [{name: \"registry.example/blocked:1\"}]\n",
        &[
            "registry.example/redhat/index:v4.17",
            "registry.example/ubi9/ubi:latest",
        ],
        &[],
        &["platform releases", "inside of the catalog"],
    ),
    (
        "kind: ZarfPackageConfig\nmetadata: {name: pkg}\ncomponents:\n- name: web\n  required: true\n  charts: [{name: podinfo, url: \"oci://ghcr.io/x/charts/podinfo\", version: 6.4.0, namespace: web}]\n  images: [ghcr.io/x/podinfo:6.4.0, \"nginx:###ZARF_PKG_TMPL_TAG###\"]\n- name: other\n  import: {path: ../other}\n",
        &["ghcr.io/x/charts/podinfo:6.4.0", "ghcr.io/x/podinfo:6.4.0"],
        &[],
        &["a variable", "imported from elsewhere"],
    ),
    // Helm's values: an image of which only the chart knows the tag is none yet.
    (
        "image: {repository: nginx, tag: \"1.27\"}\nother: {image: {repository: x/y}}\n",
        &[],
        &["nginx:1.27"],
        &[],
    ),
    ("services:\n  web: {image: \"nginx:1.27\"}\n", &["nginx:1.27"], &[], &[]),
    (
        "include: [other.yaml]\nservices:\n  web: {extends: {service: base}}\n  b: {image: \"b:1\"}\n",
        &["b:1"],
        &[],
        &["given by themselves", "that it extends"],
    ),
];

fn check_row(images: &Images, row: &Row) {
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    let owned = |list: &[&str]| sorted(list.iter().map(|text| (*text).to_owned()).collect());
    let found = sorted(images.found.iter().map(|found| found.image.clone()).collect());
    assert_eq!(found, owned(row.1), "{}\n{images:#?}", row.0);
    assert_eq!(
        sorted(possible(images).iter().map(|text| (*text).to_owned()).collect()),
        owned(row.2),
        "{}\n{images:#?}",
        row.0
    );
    assert_eq!(images.unread.len(), row.3.len(), "{}\n{images:#?}", row.0);
    for why in row.3 {
        assert!(
            images.unread.iter().any(|word| word.contains(why)),
            "{why}: {:?}",
            images.unread
        );
    }
}

#[test]
fn documents_of_other_tools() {
    for row in DOCUMENTS {
        check_row(&read(row.0, None), row);
    }
    let digests = format!("images: [{{name: nginx, digest: \"{DIGEST}\"}}]\n");
    assert_eq!(read(&digests, None).found[0].image, format!("nginx@{DIGEST}"));
}

/// The places that messages name.
#[test]
fn what_is_unread_is_named_with_its_place() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: \"{{ .Values.image }}\"}]}\n---\n- apiVersion: v1\n  kind: Service\n- apiVersion: helm.toolkit.fluxcd.io/v2\n  kind: HelmRelease\n  metadata: {name: web}\n---\nwhat: is this\n---\njust words\n";
    let images = read(text, None);
    assert_eq!(images.unread.len(), 4, "{images:#?}");
    for (word, begins) in images.unread.iter().zip([
        "line 4, Pod/p containers[c]: {{ .Values.image }}: a template: render it first, for a chart by `helm template",
        "document 2, item 2, line 8, HelmRelease/web: the images of its chart",
        "document 3, line 12: it has no kind",
        "document 4, line 14: a text, \"just words\"",
    ]) {
        assert!(word.starts_with(begins), "{begins}\n{word}");
    }
    // Without lines documents are counted.
    let json = "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"p\"},\"spec\":{\"containers\":[{\"name\":\"c\",\"image\":\"a:1\"}]}}";
    let images = read(&format!("{json}\n{json}\n{{}}"), None);
    assert_eq!(found(&images)[1], "a:1 (document 2, Pod/p containers[c])");
    assert_eq!(images.unread.len(), 1, "{images:#?}");
}

/// A template that nobody rendered, as it mostly is: no YAML at all.
#[test]
fn a_template_is_to_be_rendered() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  {{- include \"x.labels\" . | nindent 4 }}\nspec:\n  containers:\n  - image: {{ .Values.image }}:{{ .Values.tag }}\n";
    let error = images(text, None, Path::new("pod.yaml"), None).unwrap_err();
    assert!(error.starts_with("line ") && error.contains("helm template"), "{error}");
}

/// Templates without quotes that happen to be YAML: maps and lists where a text belongs.
#[test]
fn a_template_that_is_yaml_is_named_too() {
    for image in [
        "{{ .Values.image }}",
        "{{.Values.image}}",
        "[[ .x ]]",
        "{IMG}",
        "{{ .a }}",
    ] {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers:\n  - name: good\n    image: a/b:1\n  - name: c\n    image: {image}\n"
        );
        let images = read(&pod, None);
        assert_eq!(images.found.len(), 1, "{image}: {images:#?}");
        assert!(
            images.unread.len() == 1 && images.unread[0].contains("helm template"),
            "{image}: {images:#?}"
        );
        let compose = format!("services:\n  good: {{image: \"a/b:1\"}}\n  web:\n    image: {image}\n");
        let images = read(&compose, None);
        assert!(
            images.found.len() == 1 && images.unread.len() == 1,
            "{image}: {images:#?}"
        );
    }
}

/// Repository and tag as keys side by side, and JSON within a text.
#[test]
fn images_in_parts_are_possible_ones() {
    let possible = |text: &str| -> Vec<String> {
        let images = read(text, None);
        images.possible.iter().map(|found| found.image.clone()).collect()
    };
    let custom = "apiVersion: x.example/v1\nkind: Agent\nmetadata: {name: a}\nspec:\n  agent: {repository: ghcr.io/h/ag, tag: \"2\"}\n  other: {registry: quay.io, name: x/y, tag: \"3\"}\n  third: {imageRepository: h/z, imageTag: \"4\"}\n  noimage: {name: x, tag: y}\n";
    assert_eq!(possible(custom), ["ghcr.io/h/ag:2", "quay.io/x/y:3", "h/z:4"]);
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata:\n  c.json: '{\"image\": \"bitnami/redis:7\", \"url\": \"redis:6379\"}'\n";
    assert_eq!(possible(map), ["bitnami/redis:7"]);
}

/// A document, as YAML of one line and as JSON: what the parser sees is the same.
fn as_json(text: &str) -> String {
    fn json(node: &yaml::Node) -> serde_json::Value {
        match &node.value {
            yaml::Value::Text(text) => text.clone().into(),
            yaml::Value::Null => serde_json::Value::Null,
            yaml::Value::List(items) => items.iter().map(|item| json(item)).collect(),
            yaml::Value::Map(pairs) => {
                let pairs = pairs
                    .iter()
                    .map(|(key, value)| (key.text().unwrap_or_default().to_owned(), json(value)));
                serde_json::Value::Object(pairs.collect())
            }
        }
    }
    json(&yaml::parse(text).unwrap()[0]).to_string()
}

/// Documents that any tool may print in any order and form; merges are YAML's alone.
fn printable_rows() -> Vec<&'static Row> {
    let of_json = |row: &&Row| !row.0.contains("<<") && row.0.contains("kind:");
    DOCUMENTS.iter().filter(of_json).collect()
}

proptest! {
    /// Behind one another, in lists, in JSON: whatever stands beside a document, nothing of it is lost.
    #[test]
    fn nothing_is_dropped_beside_others(
        picked in proptest::collection::vec((0usize..1000, 0usize..3), 1..8),
        form in 0usize..4,
    ) {
        let rows = printable_rows();
        let rows: Vec<(&Row, usize)> = picked.iter().map(|(n, nested)| (rows[n % rows.len()], *nested)).collect();
        let items: Vec<String> = rows
            .iter()
            .map(|(row, nested)| match nested {
                0 => as_json(row.0),
                1 => format!("{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{}]}}", as_json(row.0)),
                _ => format!("[{}]", as_json(row.0)),
            })
            .collect();
        let text = match form {
            0 => items.join("\n---\n"),
            1 => items.join("\n"),
            2 => format!("[{}]", items.join(",\n")),
            _ => rows.iter().map(|(row, _)| format!("---\n{}\n", row.0)).collect(),
        };
        let images = read(&text, None);
        let all = |pick: fn(&Row) -> &'static [&'static str]| rows.iter().flat_map(|(row, _)| pick(row)).copied().collect::<Vec<_>>();
        let mut found: Vec<&str> = images.found.iter().map(|found| found.image.as_str()).collect();
        let mut expected = all(|row| row.1);
        found.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(&found, &expected);
        let mut expected = all(|row| row.2);
        expected.retain(|image| !found.contains(image));
        expected.sort_unstable();
        expected.dedup();
        let mut listed = possible(&images);
        listed.sort_unstable();
        prop_assert_eq!(listed, expected);
        prop_assert_eq!(images.unread.len(), all(|row| row.3).len(), "{:#?}", images.unread);
    }

    /// One unknown document more is one more that is named.
    #[test]
    fn strangers_are_named(at in 0usize..5, stranger in "(a: b|x|\\{b: \\{c: [1, 2]\\}\\}|'')") {
        let mut documents: Vec<&str> = DOCUMENTS.iter().take(4).map(|row| row.0).collect();
        documents.insert(at.min(documents.len()), &stranger);
        let images = read(&documents.join("\n---\n"), None);
        prop_assert_eq!(images.unread.len(), 1, "{:#?}", images);
        prop_assert!(images.unread[0].starts_with("document "), "{:?}", images.unread);
    }
}

proptest! {
    #[test]
    fn no_file_panics(text in "(FROM|ARG|COPY|RUN|--from=|<<E|services:|image:|kind: x|apiVersion: v1|[a-z:$\\{\\}\\\\# \n&*<\\-]){0,40}") {
        for kind in [None, Some(Kind::Compose), Some(Kind::Kubernetes), Some(Kind::Dockerfile)] {
            let _ = images(&text, kind, Path::new("-"), Some(Path::new("/nonexistent")));
        }
    }
}
