//! Findings about files of this machine, each provoked.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use super::target::Target;
use super::{Finding, Level, certificate, clients};
use crate::config::Config;

/// Files below a folder of their own.
struct Root(tempfile::TempDir);

impl Root {
    fn new(files: &[(&str, &str)]) -> Root {
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
    fn look(&self) -> Vec<Finding> {
        self.look_by("http")
    }

    fn look_by(&self, scheme: &'static str) -> Vec<Finding> {
        let mut target = Target::at("larder.example:5000".parse().unwrap(), Some(scheme));
        target.upstreams = vec!["docker.io".to_owned(), "quay.io".to_owned()];
        clients::check(self.path(), &target, false)
    }
}

#[track_caller]
fn has(findings: &[Finding], level: Level, text: &str) {
    let found = findings
        .iter()
        .any(|finding| finding.level == level && finding.found.contains(text));
    assert!(found, "no {level:?} {text:?} in {findings:#?}");
    let told = findings
        .iter()
        .all(|finding| finding.level == Level::Ok || finding.advice.is_some());
    assert!(told, "without advice: {findings:#?}");
}

#[test]
fn a_machine_without_clients() {
    let findings = Root::new(&[]).look();
    assert_eq!(findings.len(), 1);
    has(&findings, Level::Warning, "no configuration of docker");
    // On the proxy's own machine that is no fault.
    let target = Target::of(&Config::default_config().unwrap(), None);
    let findings = clients::check(Root::new(&[]).path(), &target, false);
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

const HOSTS: &str = "server = \"https://registry-1.docker.io\"\n[host.\"http://larder.example:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n";
const DOCKER_IO: &str = "etc/containerd/certs.d/docker.io/hosts.toml";

#[test]
fn containerd() {
    let config = |text: &str| Root::new(&[(DOCKER_IO, HOSTS), ("etc/containerd/config.toml", text)]).look();
    let set = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n";
    let good = config(set);
    has(
        &good,
        Level::Note,
        "pulls from docker.io come here; past this proxy when it refuses or is away; not from quay.io",
    );
    assert_eq!(good.len(), 1, "{good:?}");
    has(&config("version = 2\n"), Level::Warning, "does not set config_path");
    has(
        &config("imports = [\"/etc/containerd/conf.d/*.toml\"]\n"),
        Level::Note,
        "a file that it imports",
    );
    let both = format!("{set}[plugins.\"io.containerd.cri.v1.images\".registry.mirrors.\"x\"]\nendpoint = []\n");
    has(&config(&both), Level::Problem, "both config_path and registry.mirrors");
    has(&config("["), Level::Problem, "is no TOML");

    let hosts = |text: &str| Root::new(&[(DOCKER_IO, text)]).look();
    has(&hosts(HOSTS), Level::Note, "depends on containerd's version");
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
    let closed = hosts(&HOSTS.replace("https://registry-1.docker.io", "http://larder.example:5000"));
    assert!(!closed[0].found.contains("past this proxy"), "{closed:?}");
}

#[test]
fn podman() {
    let text = "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"larder.example:5000/docker.io\"\ninsecure = true\n";
    let root = |text: &str| Root::new(&[("etc/containers/registries.conf.d/larder.conf", text)]);
    has(
        &root(text).look(),
        Level::Note,
        "pulls from docker.io come here; not from quay.io",
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
        "lead to no registry",
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
        "pulls from docker.io come here; not from quay.io",
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
        "pulls from docker.io come here; not from quay.io",
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
