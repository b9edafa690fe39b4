//! Verdicts about every form of every client's file, as a table: what stands in it, and where pulls go by tag and by
//! digest. Real clients are held to the same in tests/clients.

use super::tests::{Root, arrivals, has};
use super::{Arrival, Finding, Level};

use Arrival::{Elsewhere, Fails, Here, IfOthersFail, Partly, Refused, WrongImage};

/// The proxy is at larder.example:5000, over plain HTTP.
const HOSTS: &str = "etc/containerd/certs.d/docker.io/hosts.toml";
const CONFIG: &str = "etc/containerd/config.toml";
const DAEMON: &str = "etc/docker/daemon.json";
const PODMAN: &str = "etc/containers/registries.conf";
const K3S: &str = "etc/rancher/k3s/registries.yaml";
const BUILDKIT: &str = "etc/buildkit/buildkitd.toml";

#[track_caller]
fn goes(files: &[(&str, &str)], registry: &str, want: (Arrival, Arrival)) -> Vec<Finding> {
    let found = Root::new(files).look_with("");
    assert_eq!(arrivals(&found, registry), [want], "{files:?}: {found:#?}");
    found
}

#[test]
fn dockers_daemon() {
    let json = |mirrors: &str| format!("{{\"registry-mirrors\": {mirrors}}}");
    for (mirrors, want) in [
        ("[\"http://larder.example:5000\"]", Here),
        ("[\"http://larder.example:5000/\"]", Here),
        ("[\"http://larder.example:5000/docker.io\"]", Here),
        ("[\"http://larder.example:5000/quay.io\"]", WrongImage),
        ("[\"https://larder.example:5000\"]", Refused),
        (
            "[\"http://other.example\", \"http://larder.example:5000\"]",
            IfOthersFail,
        ),
        ("[\"http://larder.example:5001\"]", Elsewhere),
        ("[]", Elsewhere),
        // With these it does not start.
        ("[\"larder.example:5000\"]", Fails),
        ("[\"ftp://larder.example:5000\"]", Fails),
        ("[\"http://larder.example:5000?x\"]", Fails),
        ("\"http://larder.example:5000\"", Fails),
        ("[5000]", Fails),
    ] {
        let found = goes(&[(DAEMON, &json(mirrors))], "docker.io", (want, want));
        let has_problem = found.iter().any(|finding| finding.level == Level::Problem);
        assert_eq!(
            has_problem,
            matches!(want, Fails | WrongImage | Refused),
            "{mirrors}: {found:?}"
        );
    }
    let path = Root::new(&[(DAEMON, &json("[\"http://larder.example:5000/docker.io\"]"))]).look_with("");
    has(&path, Level::Warning, "only Docker 24.0.8, 25 and newer start with it");
    let near = Root::new(&[(DAEMON, &json("[\"http://larder.example:5001\"]"))]).look_with("");
    has(&near, Level::Note, "the proxy is at port 5000 there");
    let secret = Root::new(&[(DAEMON, &json("[\"http://me:secret@larder.example:5000\"]"))]).look_with("");
    assert!(!format!("{secret:?}").contains("secret"), "{secret:?}");
    has(&secret, Level::Problem, "dockerd does not start with it");
    for text in ["[]", "{\"registry_mirrors\": [\"http://larder.example:5000\"]}", "{"] {
        goes(&[(DAEMON, text)], "docker.io", (Fails, Fails));
    }
    // The name of the flag is no error, and nothing either.
    let flag = "{\"registry-mirror\": [\"http://larder.example:5000\"]}";
    let found = goes(&[(DAEMON, flag)], "docker.io", (Elsewhere, Elsewhere));
    has(&found, Level::Problem, "the name of a flag");
    // With containerd's image store the registry is named, whatever the default upstream.
    let other = "[cache]\ndefault_upstream = \"quay.io\"\n";
    let store =
        "{\"registry-mirrors\": [\"http://larder.example:5000\"], \"features\": {\"containerd-snapshotter\": true}}";
    let found = Root::new(&[(DAEMON, store)]).look_with(other);
    assert_eq!(arrivals(&found, "docker.io"), [(Here, Here)], "{found:?}");
    let found = Root::new(&[(DAEMON, &store.replace("true", "false"))]).look_with(other);
    assert_eq!(arrivals(&found, "docker.io"), [(WrongImage, WrongImage)], "{found:?}");
    // Other registries come by hosts.toml then.
    let hosts = "[host.\"http://larder.example:5000\"]\n";
    let quay = ("etc/docker/certs.d/quay.io/hosts.toml", hosts);
    let found = Root::new(&[(DAEMON, store), quay]).look_with("");
    assert_eq!(arrivals(&found, "quay.io"), [(Here, Here)], "{found:?}");
    let found = Root::new(&[(DAEMON, &store.replace("true", "false")), quay]).look_with("");
    assert!(arrivals(&found, "quay.io").is_empty(), "{found:?}");
    has(&found, Level::Note, "is not read");
    let hub = (
        "etc/docker/certs.d/docker.io/hosts.toml",
        "[host.\"http://other.example\"]\n",
    );
    let found = Root::new(&[(DAEMON, store), hub]).look_with("");
    assert_eq!(arrivals(&found, "docker.io"), [(Elsewhere, Elsewhere)], "{found:?}");
    has(&found, Level::Note, "takes the place of registry-mirrors");
}

#[test]
fn hosts_toml() {
    for (text, by_tag, by_digest) in [
        ("[host.\"http://larder.example:5000\"]\n", Here, Here),
        ("[host.\"http://larder.example:5000/\"]\n", Here, Here),
        ("[host.\"http://larder.example:5000/v2\"]\n", Here, Here),
        ("server = \"http://larder.example:5000\"\n", Here, Here),
        // Without a scheme it is https.
        ("[host.\"larder.example:5000\"]\n", Refused, Refused),
        ("[host.\"https://larder.example:5000\"]\n", Refused, Refused),
        // A path comes before /v2, unless it is the path of the API.
        ("[host.\"http://larder.example:5000/docker.io\"]\n", Here, Here),
        (
            "[host.\"http://larder.example:5000/v2/docker.io\"]\n",
            WrongImage,
            WrongImage,
        ),
        (
            "[host.\"http://larder.example:5000/v2/docker.io\"]\noverride_path = true\n",
            Here,
            Here,
        ),
        (
            "[host.\"http://larder.example:5000/docker.io\"]\noverride_path = true\n",
            Refused,
            Refused,
        ),
        (
            "[host.\"http://larder.example:5000\"]\noverride_path = true\n",
            Refused,
            Refused,
        ),
        ("[host.\"http://larder.example:5000/a/b\"]\n", Refused, Refused),
        (
            "[host.\"http://larder.example:5000\"]\ncapabilities = [\"pull\"]\n",
            Partly,
            Here,
        ),
        (
            "[host.\"http://larder.example:5000\"]\ncapabilities = [\"resolve\"]\n",
            Partly,
            Elsewhere,
        ),
        (
            "[host.\"http://larder.example:5000\"]\ncapabilities = [\"push\"]\n",
            Elsewhere,
            Elsewhere,
        ),
        // The library ignores these files.
        (
            "[host.\"http://larder.example:5000\"]\ncapabilities = [\"read\"]\n",
            Elsewhere,
            Elsewhere,
        ),
        (
            "[host.\"http://larder.example:5000\"]\ncapabilities = \"pull\"\n",
            Elsewhere,
            Elsewhere,
        ),
        (
            "[host.\"http://larder.example:5000\"]\n[host.\"http://larder.example:5000\".header]\nX = 5\n",
            Elsewhere,
            Elsewhere,
        ),
        (
            "[host.\"http://larder.example:5000\"]\nclient = 5\n",
            Elsewhere,
            Elsewhere,
        ),
        // Only containerd 2.1 and newer ignore these.
        (
            "[host.\"http://larder.example:5000\"]\ndial_timeout = \"1\"\n",
            Here,
            Here,
        ),
        ("[host.\"http://larder.example:5000\"]\ndial_timeout = 5\n", Here, Here),
        // Users and queries play no part.
        ("[host.\"http://user:secret@larder.example:5000\"]\n", Here, Here),
        ("[host.\"http://larder.example:5000?a=b\"]\n", Here, Here),
        ("[host.\"http://larder.example:5000\"\n", Elsewhere, Elsewhere),
        // With these it fails.
        (
            "[host.\"http://larder.example:5000\"]\nclient = [[\"a.pem\", \"a.key\"]]\n",
            Fails,
            Fails,
        ),
        ("[host.\"http://larder.example:5000\"]\nca = \"ca.pem\"\n", Fails, Fails),
        // The order is that of the file.
        (
            "[host.\"http://z.example\"]\n[host.\"http://larder.example:5000\"]\n",
            IfOthersFail,
            IfOthersFail,
        ),
        (
            "[host.\"http://larder.example:5000\"]\n[host.\"http://a.example\"]\n",
            Here,
            Here,
        ),
        ("server = \"https://registry-1.docker.io\"\n", Elsewhere, Elsewhere),
    ] {
        let found = goes(&[(HOSTS, text)], "docker.io", (by_tag, by_digest));
        let is_quiet = found.iter().all(|finding| finding.level < Level::Warning);
        // containerd 1 reads no file without a host.
        let is_of_all = !text.starts_with("server") && !text.contains("dial_timeout");
        let is_right = by_tag == Here && by_digest == Here && is_of_all;
        assert!(!format!("{found:?}").contains("secret"), "{found:?}");
        // On a machine that is expected to lead here, to lead elsewhere is worth a warning.
        assert_eq!(is_quiet, is_right, "{text}: {found:?}");
    }
    let ca = "-----BEGIN CERTIFICATE-----\n";
    let text = "[host.\"http://larder.example:5000\"]\nca = \"ca.pem\"\n";
    let folder = "etc/containerd/certs.d/docker.io/ca.pem";
    goes(&[(HOSTS, text), (folder, ca)], "docker.io", (Here, Here));
}

#[test]
fn folders_of_registries() {
    let hosts = "[host.\"http://larder.example:5000\"]\n";
    let default = "etc/containerd/certs.d/_default/hosts.toml";
    goes(&[(default, hosts)], "_default", (Here, Here));
    goes(
        &[(default, "server = \"http://larder.example:5000\"\n")],
        "_default",
        (Here, Here),
    );
    // A folder without the file hides it.
    let found = goes(
        &[(default, hosts), ("etc/containerd/certs.d/quay.io/ca.crt", "")],
        "_default",
        (Here, Here),
    );
    has(&found, Level::Warning, "pulls from quay.io go past this proxy");
    let port = "etc/containerd/certs.d/r.example:8443/hosts.toml";
    goes(&[(port, hosts)], "r.example:8443", (Refused, Refused));
    let found = Root::new(&[(port, hosts)]).look();
    assert_eq!(
        arrivals(&found, "r.example:8443"),
        [(Here, Here)],
        "not known here: {found:?}"
    );
}

#[test]
fn what_kubernetes_reads() {
    let hosts = "[host.\"http://larder.example:5000\"]\ndial_timeout = \"1s\"\n";
    let new = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\n";
    let old = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n";
    let first = "[plugins.cri.registry]\n";
    let by_path = |config: &str, want: Arrival| {
        let other = "etc/hosts.d/docker.io/hosts.toml";
        goes(&[(CONFIG, config), (other, hosts)], "docker.io", (want, want))
    };
    // A folder of another name that config_path names.
    for section in [new, old, first] {
        let found = by_path(&format!("{section}config_path = \"/etc/hosts.d/\"\n"), Here);
        assert!(found.iter().all(|finding| finding.level < Level::Warning), "{found:?}");
    }
    let list = "config_path = \"/etc/hosts.d:/etc/docker/certs.d\"\n";
    has(
        &by_path(&format!("{new}{list}"), Elsewhere),
        Level::Problem,
        "is one path to containerd 2.1",
    );
    has(
        &by_path(&format!("{old}{list}"), Here),
        Level::Warning,
        "is one path to containerd 2.1",
    );
    // Settings by which the plugin pulls by itself, where each version has them.
    for (config, is_local) in [
        (
            format!("{new}{list}[plugins.\"io.containerd.cri.v1.images\"]\ndiscard_unpacked_layers = true\n"),
            true,
        ),
        (
            format!("{new}{list}[plugins.\"io.containerd.cri.v1.images\"]\nuse_local_image_pull = true\n"),
            true,
        ),
        (
            format!("{new}{list}[plugins.\"io.containerd.cri.v1.images\"]\nmax_concurrent_downloads = 5\n"),
            true,
        ),
        (
            format!("{new}{list}[plugins.\"io.containerd.cri.v1.images\"]\nmax_concurrent_downloads = 3\n"),
            false,
        ),
        (
            format!(
                "{new}{list}[plugins.\"io.containerd.cri.v1.images\".containerd]\ndiscard_unpacked_layers = true\n"
            ),
            false,
        ),
        (
            format!("{old}{list}[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndiscard_unpacked_layers = true\n"),
            true,
        ),
        (
            format!("{old}{list}[plugins.\"io.containerd.grpc.v1.cri\"]\nuse_local_image_pull = true\n"),
            false,
        ),
    ] {
        let other = "etc/hosts.d/docker.io/hosts.toml";
        let found = Root::new(&[(CONFIG, &config), (other, hosts)]).look_with("");
        let is_quiet = found.iter().all(|finding| finding.level < Level::Warning);
        assert_eq!(is_quiet, is_local, "{config}: {found:?}");
    }
    // Addresses in the file itself.
    let mirrors = |section: &str, registry: &str, endpoint: &str| {
        let key = section.replace(".registry]", &format!(".registry.mirrors.\"{registry}\"]"));
        format!("{key}endpoint = [{endpoint}]\n")
    };
    for (endpoint, want) in [
        ("\"http://larder.example:5000\"", Here),
        ("\"http://larder.example:5000/v2\"", Here),
        ("\"http://larder.example:5000/v2/docker.io\"", Here),
        // A path is taken as it is.
        ("\"http://larder.example:5000/docker.io\"", Refused),
        ("\"larder.example:5000\"", Refused),
        ("\"http://other.example\", \"http://larder.example:5000\"", IfOthersFail),
        ("\"https://registry-1.docker.io\"", Elsewhere),
    ] {
        for section in [new, old, first] {
            goes(
                &[(CONFIG, &mirrors(section, "docker.io", endpoint))],
                "docker.io",
                (want, want),
            );
        }
    }
    let star = mirrors(old, "*", "\"http://larder.example:5000\"");
    goes(&[(CONFIG, &star)], "*", (Here, Here));
    let strange = mirrors(old, "https://docker.io", "\"http://larder.example:5000\"");
    has(
        &Root::new(&[(CONFIG, &strange)]).look_with(""),
        Level::Problem,
        "by its host alone",
    );
    let both = format!(
        "{}[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x\"\n",
        mirrors(old, "docker.io", "")
    );
    goes(&[(CONFIG, &both)], "docker.io", (Fails, Fails));
    // Only nerdctl reads the usual folder then.
    let found = Root::new(&[(CONFIG, "version = 2\n"), (HOSTS, hosts)]).look_with("");
    assert_eq!(
        arrivals(&found, "docker.io"),
        [(Elsewhere, Elsewhere), (Here, Here)],
        "{found:?}"
    );
    assert_eq!(found[1].check, "client nerdctl");
    let disabled = Root::new(&[(CONFIG, "disabled_plugins = [\"cri\"]\n"), (HOSTS, hosts)]).look_with("");
    assert_eq!(arrivals(&disabled, "docker.io"), [(Here, Here)], "{disabled:?}");
}

#[test]
fn imported_files() {
    let hosts = (
        "etc/hosts.d/docker.io/hosts.toml",
        "[host.\"http://larder.example:5000\"]\n",
    );
    let import = "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
    let part = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/hosts.d\"\n";
    goes(
        &[(CONFIG, import), ("etc/containerd/conf.d/a.toml", part), hosts],
        "docker.io",
        (Here, Here),
    );
    // containerd 1 takes a whole section from the last file that has it, containerd 2 key by key.
    let other = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n";
    let files = |part: &'static str, other: &'static str, import: &'static str| {
        let files = [
            (CONFIG, import),
            ("etc/containerd/conf.d/a.toml", part),
            ("etc/containerd/conf.d/b.toml", other),
            hosts,
        ];
        arrivals(&Root::new(&files).look_with(""), "docker.io")
    };
    assert!(files(part, other, import).is_empty());
    let new = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/hosts.d\"\n";
    let newer = "version = 3\n[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"x\"\n";
    let import = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
    assert_eq!(files(new, newer, import), [(Here, Here)]);
    // A file that imports itself.
    let circle = "version = 2\nimports = [\"config.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/hosts.d\"\n";
    goes(&[(CONFIG, circle), hosts], "docker.io", (Here, Here));
    has(
        &Root::new(&[(CONFIG, "imports = [\"a\"]\n"), ("etc/containerd/a", "[")]).look(),
        Level::Problem,
        "does not start",
    );
}

#[test]
fn registries_conf() {
    let mirror = |more: &str| {
        format!(
            "[[registry]]\nlocation = \"quay.io\"\n{}[[registry.mirror]]\nlocation = \"larder.example:5000/quay.io\"\ninsecure = true\n{}",
            if more.starts_with("mirror") { more } else { "" },
            if more.starts_with("mirror") { "" } else { more },
        )
    };
    for (text, by_tag, by_digest) in [
        (mirror(""), Here, Here),
        (mirror("pull-from-mirror = \"all\"\n"), Here, Here),
        (mirror("mirror-by-digest-only = true\n"), Elsewhere, Here),
        (mirror("pull-from-mirror = \"digest-only\"\n"), Elsewhere, Here),
        (mirror("pull-from-mirror = \"tag-only\"\n"), Here, Elsewhere),
        (mirror("").replace("insecure = true\n", ""), Refused, Refused),
        (mirror("").replace("5000/quay.io", "5000"), WrongImage, WrongImage),
        (
            mirror("").replace("larder.example", "other.example"),
            Elsewhere,
            Elsewhere,
        ),
        (
            "[[registry]]\nprefix = \"quay.io\"\nlocation = \"larder.example:5000/quay.io\"\ninsecure = true\n"
                .to_owned(),
            Here,
            Here,
        ),
    ] {
        goes(&[(PODMAN, &text)], "quay.io", (by_tag, by_digest));
    }
    // Files that stop every pull.
    for (text, why) in [
        (mirror("").replace("\"larder", "\"http://larder"), "has a scheme"),
        (mirror("pull-from-mirror = \"tags\"\n"), "digest-only or tag-only"),
        (
            mirror("mirror-by-digest-only = true\n") + "pull-from-mirror = \"all\"\n",
            "only one of them",
        ),
        ("[[registry]]\nprefix = \"quay.io\"\n".to_owned(), "has no location"),
        (
            mirror("") + "[registries.search]\nregistries = [\"docker.io\"]\n",
            "first form",
        ),
        ("[registry]\nlocation = \"quay.io\"\n".to_owned(), "[[registry]]"),
        (
            mirror("").replace("insecure = true", "insecure = \"true\""),
            "neither true nor false",
        ),
    ] {
        let found = Root::new(&[(PODMAN, &text)]).look_with("");
        has(&found, Level::Problem, why);
        has(&found, Level::Problem, "pull nothing with it");
    }
}

/// A later file has its registry in the place of an earlier one's; a user's own file stands in the place of the system's.
#[test]
fn registries_conf_over_another() {
    let here = "[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"larder.example:5000/quay.io\"\ninsecure = true\n";
    let other = "[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"other.example/quay.io\"\n";
    let (a, z) = (
        "etc/containers/registries.conf.d/a.conf",
        "etc/containers/registries.conf.d/z.conf",
    );
    goes(&[(a, here)], "quay.io", (Here, Here));
    let found = goes(&[(a, here), (z, other)], "quay.io", (Elsewhere, Elsewhere));
    has(
        &found,
        Level::Warning,
        "in the place of the one in /etc/containers/registries.conf.d/a.conf",
    );
    goes(&[(a, other), (z, here)], "quay.io", (Here, Here));
    goes(&[(PODMAN, here), (z, other)], "quay.io", (Elsewhere, Elsewhere));
    let user = "home/me/.config/containers/registries.conf";
    let found = Root::new(&[(PODMAN, other), (user, here)]).look_with("");
    assert_eq!(
        arrivals(&found, "quay.io"),
        [(Elsewhere, Elsewhere), (Here, Here)],
        "{found:?}"
    );
    assert!(
        found.iter().any(|finding| finding.check == "client podman of me"),
        "{found:?}"
    );
    // A user's folder is read over the system's files, unless there is a file beside it.
    let folder = "root/.config/containers/registries.conf.d/x.conf";
    let found = Root::new(&[(PODMAN, here), (folder, other)]).look_with("");
    assert_eq!(
        arrivals(&found, "quay.io"),
        [(Here, Here), (Elsewhere, Elsewhere)],
        "{found:?}"
    );
    let bad = Root::new(&[(PODMAN, here), ("home/me/.config/containers/registries.conf", "[")]).look_with("");
    has(&bad, Level::Problem, "is no TOML");
}

#[test]
fn registries_yaml() {
    let at = |endpoint: &str| format!("mirrors:\n  docker.io:\n    endpoint: {endpoint}\n");
    for (text, want) in [
        (at("[\"http://larder.example:5000\"]"), Here),
        (at("[http://larder.example:5000/v2]"), Here),
        (at("[http://larder.example:5000/v2/docker.io]"), Here),
        (at("[http://larder.example:5000/docker.io]"), Refused),
        (at("[larder.example:5000]"), Refused),
        (
            at("[\"https://other.example\", \"http://larder.example:5000\"]"),
            IfOthersFail,
        ),
        (
            r#"{"mirrors": {"docker.io": {"endpoint": ["http://larder.example:5000"]}}}"#.to_owned(),
            Here,
        ),
        (at("[]"), Elsewhere),
    ] {
        goes(&[(K3S, &text)], "docker.io", (want, want));
    }
    let look = |text: &str| Root::new(&[(K3S, text)]).look_with("");
    for text in [
        at("[\"http://larder.example:5000]"),
        at("\"http://larder.example:5000\""),
        "mirrors:\n\tdocker.io: {}\n".to_owned(),
    ] {
        has(&look(&text), Level::Problem, "k3s does not start with it");
    }
    // A stray quote at the end is part of the address.
    let stray = look(&at("\n      - http://larder.example:5000\""));
    has(&stray, Level::Problem, "is no address");
    assert!(
        !stray.iter().any(|finding| finding.found.contains("come here")),
        "{stray:?}"
    );
    let plural = look("mirrors:\n  docker.io:\n    endpoints: [\"http://larder.example:5000\"]\n");
    has(&plural, Level::Warning, "which k3s ignores");
    let scheme = look("mirrors:\n  https://docker.io:\n    endpoint: [\"http://larder.example:5000\"]\n");
    has(&scheme, Level::Problem, "is the name of no registry");
    let star = "mirrors:\n  \"*\":\n    endpoint: [\"http://larder.example:5000\"]\n";
    goes(&[(K3S, star)], "*", (Here, Here));
    let rke2 = "etc/rancher/rke2/registries.yaml";
    goes(&[(rke2, star)], "*", (Here, Here));
}

#[test]
fn buildkitd_toml() {
    let at = |mirror: &str, host: &str| format!("[registry.\"docker.io\"]\nmirrors = [\"{mirror}\"]\n{host}");
    let plain = "[registry.\"larder.example:5000\"]\nhttp = true\n";
    for (text, want) in [
        (at("larder.example:5000", plain), Here),
        (at("larder.example:5000/docker.io", plain), Here),
        (at("larder.example:5000/quay.io", plain), Refused),
        (at("larder.example:5000", ""), Refused),
        // A scheme is read over.
        (at("http://larder.example:5000", ""), Refused),
        (at("https://larder.example:5000", plain), Here),
        (
            at(
                "larder.example:5000",
                "[registry.\"larder.example:5000\"]\ninsecure = true\n",
            ),
            Refused,
        ),
        (at("other.example", ""), Elsewhere),
    ] {
        goes(&[(BUILDKIT, &text)], "docker.io", (want, want));
    }
    let text = "[registry.\"docker.io\"]\nmirrors = \"larder.example:5000\"\n";
    has(
        &Root::new(&[(BUILDKIT, text)]).look(),
        Level::Problem,
        "buildkitd does not start",
    );
}

/// A proxy over TLS whose certificate this machine's authorities do not vouch for.
#[test]
fn a_certificate_that_is_not_believed() {
    let ca = "etc/containerd/certs.d/docker.io/ca.pem";
    let pem = "-----BEGIN CERTIFICATE-----\n";
    let look = |files: &[(&str, &str)], is_distrusted| {
        let root = Root::new(files);
        root.look_over_tls(is_distrusted)
    };
    let plain = "[host.\"https://larder.example:5000\"]\n";
    for (text, is_distrusted, want) in [
        (plain.to_owned(), false, Here),
        (plain.to_owned(), true, Refused),
        (format!("{plain}skip_verify = true\n"), true, Here),
        (format!("{plain}skip_verify = false\n"), true, Refused),
        (format!("{plain}ca = \"ca.pem\"\n"), true, Here),
        (plain.replace("https:", "http:"), true, Refused),
    ] {
        let found = look(&[(HOSTS, &text), (ca, pem)], is_distrusted);
        assert_eq!(arrivals(&found, "docker.io"), [(want, want)], "{text}: {found:?}");
    }
    let mirror = "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"larder.example:5000\"\n";
    let found = look(&[(PODMAN, mirror)], true);
    has(&found, Level::Problem, "names no authority for it");
    let own = "etc/containers/certs.d/larder.example:5000/ca.crt";
    let found = look(&[(PODMAN, mirror), (own, pem)], true);
    assert_eq!(arrivals(&found, "docker.io"), [(Here, Here)], "{found:?}");
    let yaml = "mirrors:\n  docker.io:\n    endpoint: [\"https://larder.example:5000\"]\n";
    assert_eq!(arrivals(&look(&[(K3S, yaml)], true), "docker.io"), [(Refused, Refused)]);
    let tls = format!("{yaml}configs:\n  \"larder.example:5000\":\n    tls:\n      ca_file: /x\n");
    assert_eq!(arrivals(&look(&[(K3S, &tls)], true), "docker.io"), [(Here, Here)]);
}
