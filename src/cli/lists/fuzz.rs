//! Harness for files that name images: compose, Kubernetes, lists of other tools, Dockerfiles, `.env`.

use std::path::Path;

use super::{Kind, images, variables};
use crate::config::wanted::{Which, parse_line};
use crate::fuzzing::{Harness, check_bounded, fields, text, texts};

pub(crate) const HARNESSES: &[Harness] = &[Harness {
    name: "image_files",
    run: image_files,
    seeds: || {
        texts(&[
            "d\n# syntax=docker/dockerfile:1\nARG BASE=alpine:3.22\nFROM --platform=linux/amd64 ${BASE:-x} AS build\nRUN --mount=from=ghcr.io/x/tools:3,target=/t <<EOF\nFROM no\nEOF\nCOPY --from=busybox:1.37 /a \\\n  /b\nFROM build\n",
            "c\nservices:\n  web: &w\n    image: ${IMAGE:-nginx:1.27}\n    platform: linux/arm64\n  db:\n    <<: *w\n    build: .\n",
            "k\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  template:\n    spec:\n      containers:\n      - name: app\n        image: registry.example/app:1\n      volumes:\n      - image: {reference: a/b:1}\n---\nkind: List\napiVersion: v1\nitems:\n- kind: Pod\n  apiVersion: v1\n  spec: {containers: [{image: a, name: b}]}\n",
            "?\napiVersion: content.hauler.cattle.io/v1\nkind: Images\nspec: {images: [{name: a/b:1, platform: linux/arm64}]}\n---\nkind: ZarfPackageConfig\ncomponents: [{name: c, images: [\"x:###T###\"], charts: [{url: 'oci://h.io/c', version: 1.2.3}]}]\n---\n- kind: HelmRelease\n  apiVersion: helm.toolkit.fluxcd.io/v2\n  spec: {values: {image: {repository: r, tag: t}}, postRenderers: [{kustomize: {images: [{name: a, newTag: b}]}}]}\n- kind: OCIRepository\n  apiVersion: source.toolkit.fluxcd.io/v1\n  spec: {url: 'oci://h.io/x', ref: {semver: '>=1.0'}}\n",
            "?\n{\"kind\": \"ImageSetConfiguration\", \"apiVersion\": \"mirror.openshift.io/v2alpha1\", \"mirror\": {\"additionalImages\": [{\"name\": \"h.io/a:1\"}], \"operators\": [{\"catalog\": \"h.io/b:1\"}]}}\n{\"kind\": \"Application\", \"apiVersion\": \"argoproj.io/v1\", \"spec\": {\"source\": {\"kustomize\": {\"images\": [\"a=b:1\"]}}}}",
            "k\napiVersion: argoproj.io/v1\nkind: Workflow\nspec: {templates: [{container: {image: 'a:1', args: [--x-image, 'b:1', 'h.io/c:2'], env: [{name: IMAGE, value: 'd:1'}]}}]}\n",
            "?\nA=1\nexport B = \"x # y\" \nC='z'\n",
            "k\nkind: x\napiVersion: v1\na: &a [image, image]\nb: &b [*a, *a]\nc: {image: {repository: r, tag: t}}\n",
        ])
    },
    words: &[
        "FROM a\n",
        "FROM a AS b\n",
        "COPY --from=a\n",
        "RUN <<E\n",
        "ARG A=1\n",
        "${A:-",
        "$A",
        "- image: a:1\n",
        "{",
        "[",
        "? ",
        "- ",
        "&a ",
        "*a ",
        "a: ",
        "\\\n",
        "|\n",
        "#",
        "\"",
        "image: a:1\n",
        "---\n",
        "kind: List\n",
        "items:\n",
        "<<: *a\n",
        "args: [--image, a:1]\n",
        "{\"kind\":\"Pod\"}\n",
        "h.io/a:1 ",
        "oci://",
        "{{",
        "'",
        "!!a ",
        "%",
    ],
}];

/// What the file is, then the file.
fn image_files(data: &[u8]) {
    let ([kind], file) = fields(data);
    let Some(file) = text(file) else { return };
    let kind = match kind.first() {
        Some(b'd') => Some(Kind::Dockerfile),
        Some(b'c') => Some(Kind::Compose),
        Some(b'k') => Some(Kind::Kubernetes),
        _ => None,
    };
    let nowhere = Path::new("/nonexistent");
    match images(file, kind, Path::new("-"), Some(nowhere)) {
        Ok(images) => {
            for found in images.found.iter().chain(&images.possible) {
                check_bounded(&found.place);
                // Each is one image, or what a semver says of one repository: a file cannot bring other options.
                let Ok(Some(wanted)) = parse_line(&found.image) else {
                    panic!("{:?} is no line of a list", found.image);
                };
                let is_one = matches!(wanted.which, Which::One(_));
                assert!(is_one || found.image.contains(" semver="), "{}", found.image);
            }
            images.passed_over.iter().for_each(check_bounded);
            images.unread.iter().for_each(check_bounded);
        }
        Err(error) => check_bounded(error),
    }
    for (name, value) in variables::env_file(file) {
        assert!(!name.contains('\n') && !value.contains('\n'));
    }
    let value = |name: &str| (name.len() < 3).then(|| name.to_lowercase());
    if let Err(error) = variables::expand(file, &value) {
        check_bounded(error);
    }
}
