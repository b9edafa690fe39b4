//! Harness for files that name images: compose, Kubernetes, Dockerfiles, `.env`.

use std::path::Path;

use super::{Kind, images, variables};
use crate::config::wanted::parse_line;
use crate::fuzzing::{Harness, check_bounded, fields, text, texts};

pub(crate) const HARNESSES: &[Harness] = &[Harness {
    name: "image_files",
    run: image_files,
    seeds: || {
        texts(&[
            "d\n# syntax=docker/dockerfile:1\nARG BASE=alpine:3.22\nFROM --platform=linux/amd64 ${BASE:-x} AS build\nRUN --mount=from=ghcr.io/x/tools:3,target=/t <<EOF\nFROM no\nEOF\nCOPY --from=busybox:1.37 /a \\\n  /b\nFROM build\n",
            "c\nservices:\n  web: &w\n    image: ${IMAGE:-nginx:1.27}\n    platform: linux/arm64\n  db:\n    <<: *w\n    build: .\n",
            "k\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  template:\n    spec:\n      containers:\n      - name: app\n        image: registry.example/app:1\n      volumes:\n      - image: {reference: a/b:1}\n---\nkind: List\napiVersion: v1\nitems:\n- kind: Pod\n  apiVersion: v1\n  spec: {containers: [{image: a, name: b}]}\n",
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
            for found in images.found.iter().chain(&images.perhaps) {
                check_bounded(&found.place);
                if let Err((column, message)) = parse_line(&found.image) {
                    assert!(column >= 1);
                    check_bounded(message);
                }
            }
            images.passed_over.iter().for_each(check_bounded);
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
