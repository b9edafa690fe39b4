//! Harness for the files of clients that the checkup reads.

use super::pulls::Written;
use super::target::Address;
use super::{rancher, yaml};
use crate::fuzzing::{Harness, check_error, fields, text, texts};

pub(crate) const HARNESSES: &[Harness] = &[Harness {
    name: "client_files",
    run: client_files,
    seeds: || {
        texts(&[
            "http://larder.example:5000/docker.io\n# a comment\nmirrors:\n  \"docker.io\":\n    endpoint: [\"http://a:1\", 'https://b']\n  ghcr.io:\n    endpoint:\n      - \"http://c:2\"   # here\nconfigs:\n  \"a:1\":\n    auth:\n      username: http://d\n",
            "[::1]:5000\nmirrors:\n",
            "HTTPS://X.example\n",
            "ftp://x/\n",
        ])
    },
    words: &[
        "http://",
        "mirrors:\n",
        "  a:\n",
        ":",
        "[",
        "]",
        "\"",
        " #",
        "endpoint: ",
        "    rewrite:\n",
        ",",
    ],
}];

/// An address, then `registries.yaml`.
fn client_files(data: &[u8]) {
    let ([address], file) = fields(data);
    match text(address).map(str::parse::<Address>) {
        Some(Ok(address)) => {
            assert!(!address.host.is_empty() && address.port > 0);
            let again = address.to_string().parse::<Address>();
            let again = again.map(|again| (again.host, again.port));
            assert_eq!(again, Ok((address.host, address.port)));
        }
        Some(Err(error)) => check_error(error),
        None => {}
    }
    let Some(file) = text(file) else { return };
    let read = yaml::parse(file).and_then(|file| rancher::File::read(&file));
    for mirror in read.iter().flat_map(|read| &read.mirrors) {
        for address in &mirror.endpoints {
            // As addresses are read for a request: what is left of one is part of it.
            if let Some(read) = Written::read(address) {
                assert!(address.contains(read.authority) && address.contains(read.path));
            }
        }
    }
}
