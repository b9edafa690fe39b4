//! Harness for the files of clients that the checkup reads.

use super::rancher;
use super::target::Address;
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
    for (registry, address) in rancher::mirrors(file).endpoints {
        assert!(address.starts_with("http://") || address.starts_with("https://"));
        assert!(file.contains(&address) && file.contains(&registry));
    }
}
