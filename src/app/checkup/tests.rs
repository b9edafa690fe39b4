//! Findings about files of this machine, each provoked.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use super::target::Target;
use super::{Arrival, Finding, Level, certificate, clients};
use crate::config::Config;

/// Files below a folder of their own.
pub(super) struct Root(tempfile::TempDir);

impl Root {
    pub(super) fn new(files: &[(&str, &str)]) -> Root {
        let root = Root(tempfile::tempdir().unwrap());
        for (path, text) in files {
            root.put(path, text);
        }
        root
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// What a proxy at larder.example:5000 over plain HTTP would be told, knowing docker.io and quay.io.
    pub(super) fn look(&self) -> Vec<Finding> {
        self.look_by("http")
    }

    fn look_by(&self, scheme: &'static str) -> Vec<Finding> {
        let mut target = Target::at("larder.example:5000".parse().unwrap(), Some(scheme));
        target.upstreams = vec!["docker.io".to_owned(), "quay.io".to_owned()];
        clients::check(self.path(), None, None, &target, false)
    }

    /// As on a node, of a proxy over TLS.
    pub(super) fn look_over_tls(&self, is_distrusted: bool) -> Vec<Finding> {
        let mut target = Target::at("larder.example:5000".parse().unwrap(), Some("https"));
        target.is_distrusted = is_distrusted;
        clients::check(self.path(), None, None, &target, false)
    }

    /// Looks as on a machine that has the proxy's configuration.
    pub(super) fn look_with(&self, config: &str) -> Vec<Finding> {
        let config = Config::from_toml(config).unwrap();
        let target = Target::of(&config, Some(&"http://larder.example:5000".parse().unwrap()));
        clients::check(self.path(), None, None, &target, false)
    }
}

#[track_caller]
pub(super) fn has(findings: &[Finding], level: Level, text: &str) {
    let found = findings
        .iter()
        .any(|finding| finding.level == level && finding.found.contains(text));
    assert!(found, "no {level:?} {text:?} in {findings:#?}");
    let told = findings
        .iter()
        .all(|finding| finding.level == Level::Ok || finding.advice.is_some());
    assert!(told, "without advice: {findings:#?}");
}

/// Where pulls from a registry go, by tag and by digest.
pub(super) fn arrivals(findings: &[Finding], registry: &str) -> Vec<(Arrival, Arrival)> {
    let verdicts = findings.iter().flat_map(|finding| &finding.registries);
    let of_registry = verdicts.filter(|verdict| verdict.registry == registry);
    of_registry.map(|verdict| (verdict.by_tag, verdict.by_digest)).collect()
}

#[test]
fn a_machine_without_clients() {
    let findings = Root::new(&[]).look();
    assert_eq!(findings.len(), 1);
    has(&findings, Level::Warning, "no configuration of docker");
    // On the proxy's own machine that is no fault.
    let target = Target::of(&Config::default_config().unwrap(), None);
    let findings = clients::check(Root::new(&[]).path(), None, None, &target, false);
    has(&findings, Level::Note, "no configuration of docker");
}

#[test]
fn docker() {
    let look = |text: &str| Root::new(&[("etc/docker/daemon.json", text)]).look();
    let here = r#"{"registry-mirrors": ["http://larder.example:5000"]"#;
    has(&look(&format!("{here}}}")), Level::Ok, "come here");
    has(&look(&format!("{here}}}")), Level::Note, "insecure-registries");
    let both = look(&format!(r#"{here}, "insecure-registries": ["larder.example:5000"]}}"#));
    assert!(both.len() == 1 && both[0].level == Level::Ok, "{both:?}");
    has(&look("{"), Level::Problem, "no JSON");
    has(&look(""), Level::Warning, "no registry-mirrors");
    has(
        &look(r#"{"registry-mirrors": ["https://other.example"]}"#),
        Level::Warning,
        "lead elsewhere",
    );
    let second = look(r#"{"registry-mirrors": ["https://other.example", "http://larder.example:5000/"]}"#);
    has(&second, Level::Warning, "is asked before");
    let wrong = look(r#"{"registry-mirrors": ["https://larder.example:5000"]}"#);
    has(&wrong, Level::Problem, "the proxy speaks http there");
}

/// dockerd starts with no key that it does not know, and with no value of another type.
#[test]
fn docker_refuses_keys_and_values() {
    let look = |more: &str| {
        let text = format!("{{\"registry-mirrors\": [\"http://larder.example:5000\"]{more}}}");
        Root::new(&[("etc/docker/daemon.json", &text)]).look()
    };
    for (more, what) in [
        (r#", "foo": 1"#, "of version 20.10 to 29 does not know it"),
        (r#", "Registry-Mirrors": []"#, "does not know it"),
        (r#", "proxies": {"foo": 1}"#, "does not know it"),
        (r#", "debug": "yes""#, "true or false is expected"),
        (r#", "mtu": 1.5"#, "a whole number is expected"),
        (r#", "hosts": "tcp://x""#, "a list of texts is expected"),
        (r#", "insecure-registries": ["a/b"]"#, "neither HOST:PORT nor a network"),
    ] {
        let findings = look(more);
        has(&findings, Level::Problem, what);
        assert_eq!(
            arrivals(&findings, "docker.io"),
            [(Arrival::Fails, Arrival::Fails)],
            "{more}"
        );
    }
    for more in [
        r#", "features": {"buildkit": true}, "proxies": {"http-proxy": "http://x"}, "log-opts": {"max-size": "1m"}"#,
        r#", "builder": {"gc": {"enabled": true}}, "debug": null, "ip": "127.0.0.1", "dns": ["10.0.0.1"]"#,
        r#", "insecure-registries": ["http://larder.example:5000", "10.0.0.0/8", "[::1]:5000", "::1/128"]"#,
    ] {
        let findings = look(more);
        assert_eq!(
            arrivals(&findings, "docker.io"),
            [(Arrival::Here, Arrival::Here)],
            "{findings:?}"
        );
    }
    let read = |text: &str| Root::new(&[("etc/docker/daemon.json", text)]).look();
    has(&read(""), Level::Warning, "Docker 20.10 does not start with it");
    has(&read("null"), Level::Warning, "no registry-mirrors");
    let more = read(r#"{"registry-mirrors": ["http://larder.example:5000"]} {}"#);
    has(&more, Level::Warning, "only Docker 20.10 starts with it");
    has(&more, Level::Ok, "come here");
    let loud = read(r#"{"registry-mirrors": ["HTTP://larder.example:5000"]}"#);
    has(&loud, Level::Problem, "in small letters only");
    assert_eq!(arrivals(&loud, "docker.io"), [(Arrival::Elsewhere, Arrival::Elsewhere)]);
}

/// A default does not hide what a file says of one registry.
#[test]
fn registries_that_a_file_sends_around() {
    let warns = |files: &[(&str, &str)], name: &str| {
        let findings = Root::new(files).look();
        has(&findings, Level::Ok, "come here");
        has(
            &findings,
            Level::Warning,
            &format!("names {name} and sends their pulls around this proxy"),
        );
    };
    let podman = "[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"larder.example:5000/quay.io\"\ninsecure = true\n[[registry]]\nprefix = \"docker.io\"\nlocation = \"larder.example:5000/docker.io\"\ninsecure = true\n[[registry]]\nlocation = \"quay.io/other\"\n";
    warns(&[("etc/containers/registries.conf", podman)], "quay.io/other");
    let (default, quay) = (
        "etc/containerd/certs.d/_default/hosts.toml",
        "etc/containerd/certs.d/quay.io/hosts.toml",
    );
    let here = "[host.\"http://larder.example:5000\"]\n";
    for text in ["", "server = \"https://quay.io\"\n"] {
        warns(&[(default, here), (quay, text)], "quay.io");
    }
    for more in ["", "\n    endpoint: [\"https://other.example\"]"] {
        let text = format!("mirrors:\n  \"*\":\n    endpoint: [\"http://larder.example:5000\"]\n  quay.io:{more}\n");
        warns(&[("etc/rancher/k3s/registries.yaml", &text)], "quay.io");
    }
}

/// Names of registries that no image has.
#[test]
fn registries_that_are_never_asked_for() {
    let here = "[host.\"http://larder.example:5000\"]\n";
    for (name, right) in [("registry-1.docker.io", "docker.io"), ("QUAY.IO", "quay.io")] {
        let k3s = format!("mirrors:\n  {name}:\n    endpoint: [\"http://larder.example:5000\"]\n");
        let podman =
            format!("[[registry]]\nprefix = \"{name}\"\nlocation = \"larder.example:5000/{right}\"\ninsecure = true\n");
        for (path, text) in [
            (format!("etc/containerd/certs.d/{name}/hosts.toml"), here),
            ("etc/rancher/k3s/registries.yaml".to_owned(), &k3s),
            ("etc/containers/registries.conf".to_owned(), &podman),
        ] {
            let findings = Root::new(&[(&path, text)]).look();
            has(&findings, Level::Problem, "is never asked for");
            assert_eq!(
                arrivals(&findings, name),
                [(Arrival::Elsewhere, Arrival::Elsewhere)],
                "{path}"
            );
        }
    }
}

/// The file that `CONTAINERS_REGISTRIES_CONF` names decides about the pulls of the user who runs the checkup.
#[test]
fn the_file_of_the_environment() {
    let root = Root::new(&[(
        "a.conf",
        "[[registry]]\nprefix = \"quay.io\"\nlocation = \"larder.example:5000/quay.io\"\ninsecure = true\n",
    )]);
    let target = Target::at("larder.example:5000".parse().unwrap(), Some("http"));
    let look = |path: &str| clients::check(root.path(), None, Some(path.into()), &target, false);
    let findings = look("/a.conf");
    has(&findings, Level::Ok, "pulls from quay.io come here");
    assert_eq!(findings[0].check, "client podman by CONTAINERS_REGISTRIES_CONF");
    has(&look("/b.conf"), Level::Problem, "is not there");
    has(&look("a.conf"), Level::Warning, "depends on where podman is started");
}

#[test]
fn podman_refuses_what_it_refuses() {
    let quay = "[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"larder.example:5000/quay.io\"\ninsecure = true\n";
    let look = |text: &str| Root::new(&[("etc/containers/registries.conf", text)]).look();
    let twice = format!("{quay}[[registry]]\nlocation = \"quay.io\"\ninsecure = true\n");
    has(&look(&twice), Level::Problem, "the location quay.io twice");
    let mode = format!("short-name-mode = \"nonsense\"\n{quay}");
    has(
        &look(&mode),
        Level::Problem,
        "enforcing, permissive or disabled is expected",
    );
    let slash = look(&quay.replace("/quay.io", "/quay.io/"));
    has(&slash, Level::Warning, "ends with a slash");
    assert!(
        slash
            .iter()
            .all(|finding| finding.registries.iter().all(|one| one.only.is_some())),
        "{slash:?}"
    );
}

/// Docker's classic store never says which registry it means.
#[test]
fn docker_by_a_path_gets_what_the_path_names() {
    let look = |mirror: &str, config: &str| {
        let text = format!("{{\"registry-mirrors\": [\"http://larder.example:5000{mirror}\"]}}");
        Root::new(&[("etc/docker/daemon.json", &text)]).look_with(config)
    };
    has(&look("/docker.io", ""), Level::Ok, "come here");
    has(
        &look("/quay.io", ""),
        Level::Problem,
        "pulls docker.io/IMAGE gets quay.io/IMAGE",
    );
    let quay = "[cache]\ndefault_upstream = \"quay.io\"\n";
    let wrong = look("", quay);
    has(&wrong, Level::Problem, "pulls docker.io/IMAGE gets quay.io/IMAGE");
    let advice = wrong[0].advice.as_deref().unwrap();
    assert!(advice.contains("http://larder.example:5000/docker.io"), "{advice}");
    has(&look("/docker.io/", quay), Level::Ok, "come here");
    has(&look("/a/b", ""), Level::Problem, "no registry at that path");
}

const HOSTS: &str = "server = \"https://registry-1.docker.io\"\n[host.\"http://larder.example:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n";
const DOCKER_IO: &str = "etc/containerd/certs.d/docker.io/hosts.toml";

#[test]
fn containerd() {
    let config = |text: &str| Root::new(&[(DOCKER_IO, HOSTS), ("etc/containerd/config.toml", text)]).look();
    let set =
        "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    let good = config(set);
    has(
        &good,
        Level::Note,
        "pulls from docker.io come here; when this proxy refuses or cannot be reached, the client asks the registry itself; not from quay.io",
    );
    assert_eq!(good.len(), 1, "{good:?}");
    // To the service that pulls since containerd 2.1 a list is one path; to what pulled before it is a list.
    let list = set.replace("certs.d\"", "certs.d:/etc/docker/certs.d\"");
    let wrong = config(&list);
    has(&wrong, Level::Problem, "go past this proxy");
    let advice = wrong
        .iter()
        .find_map(|finding| finding.advice.as_deref().filter(|text| text.contains("nothing else")));
    assert!(
        advice.is_some_and(|text| text.contains("config_path = \"/etc/containerd/certs.d\"")),
        "{wrong:?}"
    );
    let old = list
        .replace("version = 3", "version = 2")
        .replace("cri.v1.images", "grpc.v1.cri");
    has(&config(&old), Level::Warning, "containerd 2.1 and newer");
    let local = list.replace(
        "[plugins.\"io.containerd.cri.v1.images\".registry]",
        "[plugins.\"io.containerd.cri.v1.images\"]\nuse_local_image_pull = true\n[plugins.\"io.containerd.cri.v1.images\".registry]",
    );
    assert_eq!(config(&local).len(), 1);
    // The section that it had in containerd 1 is read by nobody in a file of version 3.
    has(
        &config(&set.replace("cri.v1.images", "grpc.v1.cri")),
        Level::Warning,
        "in a section of another version",
    );
    has(&config("version = 2\n"), Level::Warning, "does not set config_path");
    has(
        &config("imports = [\"/etc/containerd/*/more.toml\"]\n"),
        Level::Note,
        "which was not looked at",
    );
    let both = format!("{set}[plugins.\"io.containerd.cri.v1.images\".registry.mirrors.\"x\"]\nendpoint = []\n");
    has(&config(&both), Level::Problem, "both config_path and registry.mirrors");
    has(&config("["), Level::Problem, "is no TOML");

    let hosts = |text: &str| Root::new(&[(DOCKER_IO, text)]).look();
    has(
        &hosts(HOSTS),
        Level::Note,
        "Kubernetes' pulls do not unless config_path says so",
    );
    has(
        &hosts(&HOSTS.replace("http://l", "https://l")),
        Level::Problem,
        "the proxy speaks http there",
    );
    has(
        &hosts(&HOSTS.replace(", \"resolve\"", "")),
        Level::Warning,
        "not both of the capabilities",
    );
    for all in ["[]", "[\"Pull\", \"RESOLVE\"]"] {
        let found = hosts(&HOSTS.replace("[\"pull\", \"resolve\"]", all));
        assert!(found.iter().all(|finding| finding.level < Level::Warning), "{found:?}");
    }
    has(
        &hosts(&HOSTS.replace("dial_timeout", "# dial_timeout")),
        Level::Note,
        "without dial_timeout: docker.io",
    );
    has(
        &hosts(&HOSTS.replace("larder", "other")),
        Level::Warning,
        "leads elsewhere for docker.io",
    );
    let both = hosts(
        &HOSTS
            .replace("larder", "other")
            .replace("https://registry-1.docker.io", "http://larder.example:5000"),
    );
    has(&both, Level::Note, "pulls from docker.io come here; not from");
    let closed = hosts(&HOSTS.replace("https://registry-1.docker.io", "http://larder.example:5000"));
    assert!(!closed[0].found.contains("past this proxy"), "{closed:?}");
}

/// containerd names the registry, and has a path before /v2 or, with override_path, in place of it.
#[test]
fn containerd_by_a_path() {
    let look = |folder: &str, path: &str, more: &str| {
        let text = format!("[host.\"http://larder.example:5000{path}\"]\ndial_timeout = \"1s\"\n{more}\n");
        Root::new(&[(&format!("etc/containerd/certs.d/{folder}/hosts.toml"), &text)]).look_with("")
    };
    let verbatim = "override_path = true";
    for (folder, path, more) in [
        ("quay.io", "", ""),
        ("quay.io", "/v2", ""),
        ("quay.io", "/quay.io", ""),
        ("quay.io", "/v2/quay.io", verbatim),
        ("_default", "", ""),
    ] {
        let found = look(folder, path, more);
        assert!(
            found.iter().all(|finding| finding.level < Level::Warning),
            "{folder} {path}: {found:?}"
        );
    }
    let wrong = |folder: &str, path: &str, more: &str, text: &str| has(&look(folder, path, more), Level::Problem, text);
    wrong(
        "quay.io",
        "/ghcr.io",
        "",
        "its path names ghcr.io, and the client asks for quay.io",
    );
    wrong("quay.io", "/mirror", "", "its path names mirror, which is no upstream");
    wrong("quay.io", "/v2/quay.io", "", "gets quay.io/v2/IMAGE");
    wrong("quay.io", "/quay.io", verbatim, "no registry at that path");
    wrong("quay.io", "", verbatim, "no registry at that path");
    wrong("_default", "/quay.io", "", "is for all");
    wrong("r.example_8443_", "", "", "r.example:8443 is no upstream of this proxy");
}

/// podman and cri-o never say which registry they mean: without its name in the path they get Docker Hub's images.
#[test]
fn podman_without_the_registry_in_its_path() {
    let look = |prefix: &str, location: &str, config: &str| {
        let text = format!(
            "[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{prefix}\"\n[[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true\n"
        );
        Root::new(&[("etc/containers/registries.conf.d/larder.conf", &text)]).look_with(config)
    };
    let wrong = look("quay.io", "larder.example:5000", "");
    has(&wrong, Level::Problem, "who pulls quay.io/IMAGE gets docker.io/IMAGE");
    assert_eq!(wrong.len(), 1, "it does not say that pulls come here: {wrong:?}");
    let advice = wrong[0].advice.as_deref().unwrap();
    assert_eq!(advice, "location = \"larder.example:5000/quay.io\"");
    let hub = "[upstream.\"quay.io\"]\naliases = [\"q\"]\n";
    for (prefix, location, config) in [
        ("docker.io", "larder.example:5000", ""),
        ("docker.io/library", "larder.example:5000/library", ""),
        ("quay.io", "larder.example:5000/quay.io", ""),
        ("quay.io", "larder.example:5000/q", hub),
        ("quay.io/org", "larder.example:5000/quay.io/org", ""),
        (
            "quay.io",
            "larder.example:5000",
            "[cache]\ndefault_upstream = \"quay.io\"\n",
        ),
    ] {
        let found = look(prefix, location, config);
        assert!(
            found.iter().all(|finding| finding.level < Level::Warning),
            "{prefix} {location}: {found:?}"
        );
    }
    for (prefix, location, config, text) in [
        ("quay.io", "larder.example:5000/q", "", "gets docker.io/q/IMAGE"),
        ("quay.io", "larder.example:5000/ghcr.io", "", "gets ghcr.io/IMAGE"),
        ("quay.io/org", "larder.example:5000/quay.io", "", "gets quay.io/IMAGE"),
        (
            "docker.io",
            "larder.example:5000",
            "[cache]\ndefault_upstream = \"quay.io\"\n",
            "gets quay.io/IMAGE",
        ),
        ("*.example", "larder.example:5000/docker.io", "", "gets one image"),
        ("r.example", "larder.example:5000/r.example", "", "which is no upstream"),
        ("r.example:8443", "larder.example:5000", "", "gets docker.io/IMAGE"),
    ] {
        has(&look(prefix, location, config), Level::Problem, text);
    }
    // What a mirror is not asked for goes past it.
    let mirror = "[[registry]]\nlocation = \"quay.io\"\nBLOCK[[registry.mirror]]\nlocation = \"larder.example:5000/quay.io\"\ninsecure = true\n";
    for (key, more, text) in [
        (
            "mirror-by-digest-only = true\n",
            "",
            "tags are pulled from quay.io itself",
        ),
        (
            "",
            "pull-from-mirror = \"digest-only\"\n",
            "tags are pulled from quay.io itself",
        ),
        (
            "",
            "pull-from-mirror = \"tag-only\"\n",
            "digests are pulled from quay.io itself",
        ),
    ] {
        let text_of = mirror.replace("BLOCK", key) + more;
        let found = Root::new(&[("etc/containers/registries.conf", &text_of)]).look_with("");
        has(&found, Level::Warning, text);
    }
    let all = mirror.replace("BLOCK", "") + "pull-from-mirror = \"all\"\n";
    let found = Root::new(&[("etc/containers/registries.conf", &all)]).look_with("");
    assert!(found.iter().all(|finding| finding.level < Level::Warning), "{found:?}");
    // Blocked is the registry itself, so that nothing goes past the mirror.
    let blocked = mirror.replace("BLOCK", "blocked = true\n");
    let found = Root::new(&[("etc/containers/registries.conf", &blocked)]).look_with("");
    assert!(found[0].found.starts_with("pulls from quay.io come here"), "{found:?}");
    assert!(!found[0].found.contains("past this proxy"), "{found:?}");
    // Not a mirror: how images with the proxy's address before them are pulled.
    let own = "[[registry]]\nlocation = \"larder.example:5000\"\ninsecure = true\n";
    let found = Root::new(&[("etc/containers/registries.conf", own)]).look_with("");
    assert!(found.iter().all(|finding| finding.level < Level::Warning), "{found:?}");
}

/// k3s takes paths as they are; BuildKit puts them behind /v2; both name the registry.
#[test]
fn k3s_and_buildkit_by_a_path() {
    let k3s = |registry: &str, path: &str, rewrite: &str| {
        let text = format!(
            "mirrors:\n  \"{registry}\":\n    endpoint:\n      - \"http://larder.example:5000{path}\"\n{rewrite}"
        );
        Root::new(&[("etc/rancher/k3s/registries.yaml", &text)]).look_with("")
    };
    let rewrite = |from: &str, to: &str| format!("    rewrite:\n      \"{from}\": \"{to}\"\n");
    let good = |found: &[Finding]| assert!(found.iter().all(|finding| finding.level < Level::Warning), "{found:?}");
    good(&k3s("quay.io", "", ""));
    good(&k3s("quay.io", "/v2", ""));
    good(&k3s("quay.io", "/v2/quay.io", ""));
    good(&k3s("quay.io", "", &rewrite("^(.*)$", "quay.io/$1")));
    has(
        &k3s("quay.io", "/quay.io", ""),
        Level::Problem,
        "no registry at that path",
    );
    has(&k3s("*", "/v2/quay.io", ""), Level::Problem, "is for all");
    has(
        &k3s("quay.io", "/v2/ghcr.io", ""),
        Level::Problem,
        "its path names ghcr.io",
    );
    has(
        &k3s("quay.io", "", &rewrite("^(.*)$", "ghcr.io/$1")),
        Level::Warning,
        "other names",
    );
    has(
        &k3s("quay.io", "", &rewrite("^org/(.*)", "other/$1")),
        Level::Warning,
        "other names",
    );

    let buildkit = |path: &str| {
        let text = format!(
            "[registry.\"quay.io\"]\nmirrors = [\"larder.example:5000{path}\"]\n[registry.\"larder.example:5000\"]\nhttp = true\n"
        );
        Root::new(&[("etc/buildkit/buildkitd.toml", &text)]).look_with("")
    };
    good(&buildkit(""));
    good(&buildkit("/quay.io"));
    has(&buildkit("/docker.io"), Level::Problem, "its path names docker.io");
    has(&buildkit("/mirror"), Level::Problem, "gets quay.io/mirror/IMAGE");
}

#[test]
fn podman() {
    let text = "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"larder.example:5000/docker.io\"\ninsecure = true\n";
    let root = |text: &str| Root::new(&[("etc/containers/registries.conf.d/larder.conf", text)]);
    has(
        &root(text).look(),
        Level::Note,
        "pulls from docker.io come here; when this proxy refuses or cannot be reached, the client asks the registry itself; not from quay.io",
    );
    has(
        &root(&text.replace("insecure = true", "")).look(),
        Level::Problem,
        "is without insecure = true",
    );
    has(
        &root(text).look_by("https"),
        Level::Note,
        "its certificate is not looked at",
    );
    has(
        &root("unqualified-search-registries = []\n").look(),
        Level::Warning,
        "leads to no registry",
    );
    has(&root("x = ").look(), Level::Problem, "is no TOML");
}

#[test]
fn k3s_and_buildkit() {
    let k3s = |text: &str| Root::new(&[("etc/rancher/k3s/registries.yaml", text)]).look();
    let text = "mirrors:\n  \"docker.io\":\n    endpoint: [\"http://larder.example:5000\"]\n";
    has(
        &k3s(text),
        Level::Note,
        "pulls from docker.io come here; when this proxy refuses or cannot be reached, the client asks the registry itself; not from quay.io",
    );
    let star = k3s(&text.replace("docker.io", "*"));
    assert_eq!(star[0].level, Level::Ok, "{star:?}");
    has(
        &k3s(&text.replace("http:", "https:")),
        Level::Problem,
        "the proxy speaks http there",
    );
    has(&k3s("configs: {}\n"), Level::Warning, "leads to no registry");

    let buildkit = |text: &str| Root::new(&[("etc/buildkit/buildkitd.toml", text)]).look();
    let text = "[registry.\"docker.io\"]\nmirrors = [\"larder.example:5000/docker.io\"]\n";
    has(
        &buildkit(text),
        Level::Problem,
        "does not say that larder.example:5000 speaks http",
    );
    let plain = format!("{text}[registry.\"larder.example:5000\"]\nhttp = true\n");
    has(
        &buildkit(&plain),
        Level::Note,
        "pulls from docker.io come here; when this proxy refuses or cannot be reached, the client asks the registry itself; not from quay.io",
    );
    has(&buildkit("debug = true\n"), Level::Warning, "leads to no registry");
}

/// A listener with this certificate, asked about as `host`.
fn certified(root: &Root, host: Option<&str>) -> Vec<Finding> {
    let (cert, key) = (root.path().join("cert.pem"), root.path().join("key.pem"));
    let text = format!("[server]\nlisten = \"192.0.2.7:5000\"\ntls = {{ cert = {cert:?}, key = {key:?} }}\n");
    let config = Config::from_toml(&text).unwrap();
    let address = host.map(|host| format!("{host}:5000").parse().unwrap());
    certificate::check(&config, address.as_ref())
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    CertificateParams::new(names).unwrap()
}

#[test]
fn certificates() {
    let root = Root::new(&[]);
    let key = KeyPair::generate().unwrap();
    let write = |params: &CertificateParams| {
        root.put("cert.pem", &params.self_signed(&key).unwrap().pem());
        root.put("key.pem", &key.serialize_pem());
    };
    let good = params(&["larder.example", "192.0.2.7"]);
    write(&good);
    has(&certified(&root, None), Level::Ok, "is for larder.example, 192.0.2.7");
    has(&certified(&root, Some("larder.example")), Level::Ok, "larder.example");
    has(
        &certified(&root, Some("other.example")),
        Level::Problem,
        "clients that use other.example refuse it",
    );
    write(&params(&["larder.example"]));
    has(&certified(&root, None), Level::Warning, "it listens on 192.0.2.7");
    write(&params(&[]));
    has(&certified(&root, None), Level::Problem, "names no host");

    let mut dated = good.clone();
    dated.not_after = date_time_ymd(2020, 1, 1);
    write(&dated);
    has(&certified(&root, None), Level::Problem, "it expired");
    dated.not_before = date_time_ymd(2100, 1, 1);
    dated.not_after = date_time_ymd(2101, 1, 1);
    write(&dated);
    has(&certified(&root, None), Level::Problem, "not valid before");
    let now = std::time::SystemTime::now();
    dated.not_before = now.into();
    dated.not_after = (now + std::time::Duration::from_secs(20 * 86_400)).into();
    write(&dated);
    has(&certified(&root, None), Level::Warning, "it expires in");

    write(&good);
    root.put("key.pem", &KeyPair::generate().unwrap().serialize_pem());
    has(&certified(&root, None), Level::Problem, "cannot be used");
    root.put("key.pem", "no key");
    has(&certified(&root, None), Level::Problem, "a PEM file is expected");
}

#[test]
fn chains() {
    let root = Root::new(&[]);
    let mut ca = params(&[]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "an authority");
    let issuer = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = params(&["192.0.2.7"]).signed_by(&key, &issuer).unwrap().pem();
    root.put("key.pem", &key.serialize_pem());
    root.put("cert.pem", &format!("{leaf}{}", issuer.pem()));
    has(&certified(&root, None), Level::Ok, "192.0.2.7");
    let stranger = params(&["stranger.example"])
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .pem();
    root.put("cert.pem", &format!("{leaf}{stranger}{}", issuer.pem()));
    has(&certified(&root, None), Level::Problem, "out of order");
}
