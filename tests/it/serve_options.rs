//! `larder serve` without a file: by options, which win over variables and over the file.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::client::{Ask, Response};
use crate::support::process::{LarderProcess, command};
use crate::support::ran::Ran;
use crate::support::upstream::Upstream;
use crate::support::{manifest, within};

const REPO: &str = "library/alpine";
const ANY: &str = "127.0.0.1:0";
const LISTEN: [&str; 4] = ["--listen", ANY, "--admin", ANY];

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn with_file(text: &str) -> TempDir {
    let folder = folder();
    std::fs::write(folder.path().join("proxy.toml"), text).unwrap();
    folder
}

fn free() -> SocketAddr {
    TcpListener::bind(ANY).unwrap().local_addr().unwrap()
}

/// Hides the folders of this machine in which any command finds proxies: others may run here, also those of other tests.
const ALONE: &str = r#"
    for folder in /run/larder "/tmp/larder-$(id -u)"; do
        if [ -d "$folder" ]; then mount -t tmpfs none "$folder" || exit 78; fi
    done
    exec "$0" "$@"
"#;

/// `larder …` in this folder, without `--config`; for root, who may hide them, without the proxies of this machine.
async fn run_in(folder: &Path, variables: &[(&str, &str)], args: &[&str]) -> Ran {
    let plain = command(folder);
    static MAY_HIDE: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let tried = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "true"])
            .output();
        rustix::process::geteuid().is_root() && tried.is_ok_and(|ran| ran.status.success())
    });
    let mut command = match *MAY_HIDE {
        false => plain,
        true => {
            let mut alone = Command::new("unshare");
            alone
                .args(["--mount", "--propagation", "private", "sh", "-c", ALONE])
                .arg(plain.get_program())
                .current_dir(folder)
                .env_clear()
                .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            alone
        }
    };
    command.args(args).envs(variables.iter().copied());
    output(command).await
}

async fn output(mut command: Command) -> Ran {
    let running = tokio::task::spawn_blocking(move || command.output().expect("the larder binary"));
    Ran::of(within("the command to end", running).await.unwrap())
}

async fn stats(larder: &LarderProcess) -> serde_json::Value {
    Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json()
}

fn path_of(stats: &serde_json::Value) -> &Path {
    Path::new(stats["path"].as_str().unwrap())
}

fn hub(upstream: &Upstream) -> String {
    format!("docker.io={}", upstream.url())
}

/// From nothing to the first pull, without a file: a known registry at another address, and new ones.
#[tokio::test]
async fn a_first_pull_by_options_alone() {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let image = upstream.image(REPO, "1", &[1_000]);
    let (new, spelled) = (other.image("team/app", "1", &[10]), other.image("a/b", "1", &[10]));
    let (hub, new_at) = (hub(&upstream), format!("registry.example:5000={}", other.url()));
    let below = format!("{}/v2/mirror", other.url());
    let (below, case) = (
        format!("below.example={below}"),
        format!("Case.Example={}/", other.url()),
    );
    let mirrored = other.image("mirror/app", "1", &[20]);
    let folder = folder();
    let cache = folder.path().join("own/cache");
    let options = [
        &LISTEN[..],
        &["--cache", "own/cache", "--max-size", "50G"],
        &[
            "--upstream",
            &hub,
            "--upstream",
            &new_at,
            "--upstream",
            &below,
            "--upstream",
            &case,
        ],
    ]
    .concat();
    let larder = LarderProcess::start_by(folder, &options, &[]).await;
    for (path, digest) in [
        (manifest(REPO, "1"), image.manifest),
        (manifest("registry.example:5000/team/app", "1"), new.manifest),
        (manifest("below.example/app", "1"), mirrored.manifest),
        (manifest("case.example/a/b", "1"), spelled.manifest),
    ] {
        larder.get(path).await.expect_content(&digest);
    }
    let found = stats(&larder).await;
    assert_eq!(
        (path_of(&found), &found["max_bytes"]),
        (&*cache, &50_000_000_000_u64.into())
    );
    let printed = larder.logs();
    assert!(
        printed.contains(&format!("larder: cache in {}, at most 50GB\n", cache.display())),
        "{printed}"
    );
    assert!(!larder.folder().join(".cache").exists());
}

#[tokio::test]
async fn the_last_of_two_upstreams_with_one_name_counts() {
    let (first, last) = (Upstream::start().await, Upstream::start().await);
    let image = last.image("a/b", "1", &[10]);
    let [first_at, last_at] = [&first, &last].map(|upstream| format!("r.example={}", upstream.url()));
    let options = [&LISTEN[..], &["--upstream", &first_at, "--upstream", &last_at]].concat();
    let larder = LarderProcess::start_by(folder(), &options, &[]).await;
    larder
        .get(manifest("r.example/a/b", "1"))
        .await
        .expect_content(&image.manifest);
    assert_eq!(first.requests().len(), 0);
}

/// By IPv6, with a port.
#[tokio::test]
async fn an_upstream_at_an_ipv6_address() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("not run: this machine has no IPv6");
        return;
    }
    let upstream = Upstream::start_at(std::net::Ipv6Addr::LOCALHOST).await;
    let image = upstream.image(REPO, "1", &[10]);
    let hub = hub(&upstream);
    assert!(hub.contains("[::1]"), "{hub}");
    let options = [
        &["--listen", "[::1]:0", "--admin", "[::1]:0"][..],
        &["--upstream", &hub],
    ]
    .concat();
    let larder = LarderProcess::start_by(folder(), &options, &[]).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
}

/// Options before variables, variables before the file; what no option says is the file's.
#[tokio::test]
async fn options_before_variables_before_the_file() {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let image = upstream.image(REPO, "1", &[10]);
    let taken = TcpListener::bind(ANY).unwrap();
    let (taken_at, hub) = (taken.local_addr().unwrap().to_string(), hub(&upstream));
    let folder = with_file(&format!(
        "[server]\nlisten = \"{taken_at}\"\n[admin]\nlisten = \"{taken_at}\"\n[cache]\npath = \"of-file\"\nmax_size = \"1GiB\"\n\
         tag_ttl = \"1h\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\naliases = [\"market\"]\n",
        other.url()
    ));
    let variables = [
        ("LARDER_CACHE__MAX_SIZE", "2GiB"),
        ("LARDER_CACHE__PATH", "of-variable"),
        ("LARDER_SERVER__LISTEN", taken_at.as_str()),
    ];
    let options = [
        &LISTEN[..],
        &["--cache", "of-option", "--max-size", "3Gi", "--upstream", &hub],
    ]
    .concat();
    let larder = LarderProcess::start_by(folder, &options, &variables).await;
    let found = stats(&larder).await;
    assert_eq!(
        (path_of(&found), &found["max_bytes"]),
        (&*larder.folder().join("of-option"), &(3_u64 << 30).into())
    );
    // The other keys of that table are the file's.
    larder
        .get(manifest("market/library/alpine", "1"))
        .await
        .expect_content(&image.manifest);
    assert_eq!(other.requests().len(), 0);
    for unused in ["of-file", "of-variable"] {
        assert!(!larder.folder().join(unused).exists(), "{unused}");
    }
}

/// Several addresses for each of the two.
#[tokio::test]
async fn several_addresses() {
    let [one, two, three] = [free(), free(), free()].map(|at| at.to_string());
    let sockets = folder();
    let socket = format!("unix:{}", sockets.path().join("admin.sock").display());
    let options = [
        "--listen", &one, "--listen", &two, "--admin", &three, "--admin", &socket,
    ];
    let larder = LarderProcess::start_by(folder(), &options, &[]).await;
    for at in [one, two] {
        Ask::get("/v2/").send(at.parse().unwrap()).await.expect(200);
    }
    Ask::get("/healthz").send(three.parse().unwrap()).await.expect(200);
    run_in(larder.folder(), &[], &["health", "--admin", &socket])
        .await
        .expect(0);
}

/// Each wrong value: which option, what was found, what was expected; nothing is opened, and no password is shown.
#[tokio::test]
async fn wrong_values_name_the_option() {
    let size = "expected a size such as \"50GiB\", \"10GB\", \"512MiB\" or a whole number of bytes";
    let address =
        "expected an IP address or localhost, and a port, such as \"127.0.0.1:5000\" or \":5000\" for every interface";
    let host = "expected the host that stands before the first slash of an image's name, such as \"ghcr.io\"";
    let url = "expected the address of a registry, such as \"https://registry.example\"";
    let pair = "expected NAME=URL, such as registry.example=https://registry.example";
    for (option, value, want) in [
        ("--listen", "5000", format!("--listen: server.listen: found \"5000\", {address}")),
        ("--listen", "", format!("--listen: server.listen: found \"\", {address}")),
        ("--listen", ":65536", format!("--listen: server.listen: found \":65536\", {address}")),
        ("--listen", "larder.example:5000", "--listen: server.listen: found \"larder.example:5000\"".to_owned()),
        ("--listen", "unix:/run/x.sock", "--listen: server.listen: found \"unix:/run/x.sock\"".to_owned()),
        ("--admin", "127.0.0.1", "--admin: admin.listen: found \"127.0.0.1\", expected a port too".to_owned()),
        ("--admin", "unix:", "--admin: admin.listen: found \"\", expected a path".to_owned()),
        ("--cache", "", "--cache: cache.path: found \"\", expected a path".to_owned()),
        ("--cache", "~other/x", "--cache: cache.path: found \"~other/x\", expected ~/…".to_owned()),
        ("--max-size", "much", format!("--max-size: cache.max_size: found \"much\", {size}")),
        ("--max-size", "", format!("--max-size: cache.max_size: found \"\", {size}")),
        ("--max-size", "1e9", format!("--max-size: cache.max_size: found \"1e9\", {size}")),
        ("--max-size", "0", "--max-size: cache.max_size: found \"0\", expected at least 1MiB".to_owned()),
        ("--max-size", "50", "--max-size: cache.max_size: found \"50\", expected at least 1MiB".to_owned()),
        ("--max-size", "99999999TiB", format!("--max-size: cache.max_size: found \"99999999TiB\", {size}")),
        ("--upstream", "registry.example", format!("--upstream: found \"registry.example\", {pair}")),
        ("--upstream", "https://me:hunter2@r.example", format!("--upstream: found a text with @ in it (not repeated, since it may hold a password), {pair}")),
        ("--upstream", "=https://r.example", format!("--upstream: found \"\", {host}")),
        ("--upstream", "word=https://r.example", format!("--upstream: found \"word\", {host}")),
        ("--upstream", "hub=https://r.example", "--upstream: this is an alias of docker.io".to_owned()),
        ("--upstream", "r.example=", format!("--upstream: upstream.\"r.example\".url: found \"\", {url}")),
        ("--upstream", "r.example=r.example:5000", format!("--upstream: upstream.\"r.example\".url: found \"r.example:5000\", {url}")),
        ("--upstream", "r.example=ftp://r.example", format!("--upstream: upstream.\"r.example\".url: found \"ftp://r.example\", {url}")),
        ("--upstream", "r.example=https://me:hunter2@r.example", "--upstream: upstream.\"r.example\".url: found a text with @ in it (not repeated, since it may hold a password), expected no user or password in it".to_owned()),
        ("--upstream", "r.example=https://r.example/v2/", "--upstream: upstream.\"r.example\".url: found \"https://r.example/v2/\", expected it without /v2, which Larder adds".to_owned()),
    ] {
        let folder = folder();
        let ran = run_in(folder.path(), &[], &["serve", "--listen", ANY, "--admin", ANY, option, value]).await;
        let ran = ran.expect(64);
        assert!(ran.err.contains(&format!("larder: the configuration is refused\n{want}")), "{want}\n{}", ran.err);
        assert!(ran.out.is_empty() && !ran.err.contains("hunter2"), "{}{}", ran.out, ran.err);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    // All mistakes at once, those of the file first.
    let folder = with_file("[cache]\ntag_ttl = \"soon\"\n");
    let variables = [("LARDER_CACHE__MIN_FREE", "some")];
    let ran = run_in(
        folder.path(),
        &variables,
        &["serve", "--max-size", "much", "--admin", "x"],
    )
    .await
    .expect(64);
    let places: Vec<&str> = ran
        .err
        .lines()
        .skip(1)
        .filter_map(|line| line.split(": ").next())
        .collect();
    assert_eq!(
        places,
        ["proxy.toml:2", "LARDER_CACHE__MIN_FREE", "--admin", "--max-size"],
        "{}",
        ran.err
    );
    // One value each, and no more.
    for args in [
        &["serve", "--cache", "a", "--cache", "b"][..],
        &["serve", "--max-size"],
        &["serve", "here"],
    ] {
        run_in(folder.path(), &[], args).await.expect(64);
    }
}

/// The same address for both, and addresses that somebody has.
#[tokio::test]
async fn addresses_that_are_taken() {
    let folder = folder();
    let taken = TcpListener::bind(ANY).unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let port = format!(":{}", taken.local_addr().unwrap().port());
    for (args, want) in [
        (["--listen", &at, "--admin", ANY], "another process listens there"),
        (["--listen", ANY, "--admin", &at], "another process listens there"),
        // The wildcard takes the port of every address.
        (["--listen", &port, "--admin", ANY], "another process listens there"),
    ] {
        let ran = run_in(folder.path(), &[], &[&["serve"][..], &args].concat())
            .await
            .expect(1);
        assert!(
            ran.err.contains("cannot listen on ") && ran.err.contains(want),
            "{args:?}: {}",
            ran.err
        );
        assert!(
            ran.err
                .contains(taken.local_addr().unwrap().port().to_string().as_str()),
            "{}",
            ran.err
        );
    }
    let ran = run_in(folder.path(), &[], &["serve", "--listen", &port, "--admin", &at])
        .await
        .expect(64);
    assert!(
        ran.err.contains(&format!(
            "--admin: admin.listen: found {at}, expected another address than server.listen"
        )),
        "{}",
        ran.err
    );
    let ran = run_in(folder.path(), &[], &["serve", "--listen", &at, "--listen", &at])
        .await
        .expect(64);
    assert!(
        ran.err
            .contains(&format!("--listen: server.listen: found \"{at}\" twice")),
        "{}",
        ran.err
    );
}

/// Every interface, by IPv4 too.
#[tokio::test]
async fn every_interface() {
    let (registry, admin) = (free().port(), free().port());
    let [listen, admin_listen] = [format!(":{registry}"), format!("*:{admin}")];
    let folder = folder();
    let larder = LarderProcess::start_by(folder, &["--listen", &listen, "--admin", &admin_listen], &[]).await;
    let by_ipv4 = SocketAddr::from(([127, 0, 0, 1], registry));
    Ask::get("/v2/").send(by_ipv4).await.expect(200);
    assert!(larder.registry().ip().is_unspecified(), "{}", larder.registry());
    // Commands that have the same setting reach it at an address of this machine.
    let variables = [("LARDER_ADMIN__LISTEN", admin_listen.as_str())];
    run_in(larder.folder(), &variables, &["health"]).await.expect(0);
    run_in(larder.folder(), &variables, &["ls"]).await.expect(0);
    // And by the very text that the proxy was given.
    for at in [format!(":{admin}"), admin_listen.clone()] {
        run_in(larder.folder(), &[], &["ls", "--admin", &at]).await.expect(0);
        run_in(larder.folder(), &[("LARDER_ADMIN_URL", &at)], &["health"])
            .await
            .expect(0);
    }
}

/// A machine whose IPv6 is switched off, as in most containers: the proxy serves by IPv4, and commands find it.
#[tokio::test]
async fn every_interface_of_a_machine_without_ipv6() {
    const NOT_RUN: i32 = 77;
    let script = r#"
        ip link set lo up 2>/dev/null || exit 77
        echo 1 2>/dev/null >/proc/sys/net/ipv6/conf/all/disable_ipv6 || exit 77
        "$0" serve --listen :5000 --admin :5001 --cache cache >serve.log 2>&1 &
        proxy=$!
        for _ in $(seq 200); do
            grep -q 'admin listening' serve.log && break
            kill -0 $proxy || exit 76
            sleep 0.05
        done
        export LARDER_ADMIN__LISTEN=:5001 LARDER_CACHE__PATH=cache
        "$0" health && "$0" ls
        outcome=$?
        kill $proxy
        wait $proxy
        exit $((outcome + 100))
    "#;
    let folder = folder();
    let is_there = Command::new("unshare").args(["--net", "true"]).output();
    if !is_there.is_ok_and(|ran| ran.status.success()) {
        eprintln!("not run: a network of its own takes root and unshare");
        return;
    }
    let mut inside = Command::new("unshare");
    inside
        .args(["--net", "sh", "-c", script])
        .arg(env!("CARGO_BIN_EXE_larder"))
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .env("XDG_RUNTIME_DIR", folder.path())
        .env("LARDER_CACHE__MIN_FREE", "0B");
    let ran = output(inside).await;
    if ran.status == Some(NOT_RUN) {
        eprintln!("not run: the kernel's settings cannot be written here");
        return;
    }
    let served = std::fs::read_to_string(folder.path().join("serve.log")).unwrap_or_default();
    assert_eq!(ran.status, Some(100), "{}{}\n{served}", ran.out, ran.err);
    assert_eq!(ran.out, "ready\nnothing is cached yet\n");
}

/// More than the disk holds is no mistake: `min_free` keeps the rest.
#[tokio::test]
async fn a_limit_above_the_disk() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1_000]);
    let hub = hub(&upstream);
    let options = [&LISTEN[..], &["--max-size", "1000TiB", "--upstream", &hub]].concat();
    let larder = LarderProcess::start_by(folder(), &options, &[]).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    assert_eq!(stats(&larder).await["max_bytes"], 1000_u64 << 40);
}

/// What options said stays in force: on SIGHUP, by `larder reload`, and when the file changes.
#[tokio::test]
async fn a_reload_keeps_the_options() {
    const HOLDS: &str = "the configuration was read again and holds";
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let image = upstream.image(REPO, "1", &[10]);
    let hub = hub(&upstream);
    let folder = with_file("[log]\nlevel = \"info\"\n");
    let file = folder.path().join("proxy.toml");
    let options = [
        &LISTEN[..],
        &["--cache", "own", "--max-size", "3GiB", "--upstream", &hub],
    ]
    .concat();
    let larder = LarderProcess::start_by(folder, &options, &[]).await;
    let as_before = async |larder: &LarderProcess| {
        let found = stats(larder).await;
        assert_eq!(
            (path_of(&found), &found["max_bytes"]),
            (&*larder.folder().join("own"), &(3_u64 << 30).into())
        );
    };
    let admin = larder.admin().to_string();
    let nothing = run_in(larder.folder(), &[], &["reload", "--admin", &admin])
        .await
        .expect(0);
    assert!(nothing.out.contains("nothing in it has changed"), "{}", nothing.out);
    as_before(&larder).await;
    // The file says otherwise, and something that no option says.
    std::fs::write(
        &file,
        format!(
            "[server]\nlisten = \"127.0.0.1:1\"\n[admin]\nlisten = \"127.0.0.1:2\"\n[cache]\npath = \"of-file\"\nmax_size = \"1GiB\"\n\
             tag_ttl = \"0s\"\n[upstream.\"docker.io\"]\nurl = \"{}\"\n",
            other.url()
        ),
    )
    .unwrap();
    let ran = run_in(larder.folder(), &[], &["reload", "--json", "--admin", &admin])
        .await
        .expect(0);
    let changed = ran.json()["changed"].clone();
    // Nothing, if the proxy's own look at the file came first.
    let covered = ["server.listen", "admin.listen", "cache.path", "cache.max_size"];
    let changed: Vec<&str> = changed
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|key| key.as_str())
        .collect();
    assert!(!changed.iter().any(|key| covered.contains(key)), "{changed:?}");
    as_before(&larder).await;
    larder.signal(Signal::HUP);
    larder.wait_for_log("SIGHUP").await;
    larder.wait_for_log(HOLDS).await;
    as_before(&larder).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    assert_eq!(other.requests().len(), 0);
    // A mistake in the file is refused, and the options are none of it.
    std::fs::write(&file, "[cache]\nmax_sise = 1\n").unwrap();
    let refused = run_in(larder.folder(), &[], &["reload", "--admin", &admin])
        .await
        .expect(64);
    assert!(refused.err.contains("proxy.toml:2: cache.max_sise"), "{}", refused.err);
    as_before(&larder).await;
}

/// Commands do not see the options of `serve`: a token file leads them to its proxy, if its cache folder is theirs.
#[tokio::test]
async fn commands_find_a_proxy_at_another_admin_address() {
    let upstream = Upstream::start().await;
    let hub = hub(&upstream);
    let runtime = folder();
    let session = [("XDG_RUNTIME_DIR", runtime.path().to_str().unwrap())];
    let start = async |folder: TempDir, options: &[&str]| {
        let options = [&LISTEN[..], &["--upstream", &hub], options].concat();
        LarderProcess::start_by(folder, &options, &session).await
    };
    let larder = start(folder(), &[]).await;
    let image = upstream.image(REPO, "1", &[10]);
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    // The usual cache folder, and beside it one of a proxy that runs elsewhere.
    let other = start(folder(), &["--cache", "elsewhere"]).await;
    let pid = format!("process {}", larder.pid());
    let ran = run_in(larder.folder(), &session, &["stats"]).await.expect(0);
    assert!(ran.out.contains(&pid) && ran.err.is_empty(), "{}{}", ran.out, ran.err);
    let ran = run_in(larder.folder(), &session, &["ls"]).await.expect(0);
    assert!(ran.out.contains("docker.io/library/alpine:1"), "{}", ran.out);
    run_in(larder.folder(), &session, &["reload"]).await.expect(0);
    let url = upstream.url();
    let variables = [session[0], ("LARDER_UPSTREAM__DOCKER_IO__URL", url.as_str())];
    let doctor = run_in(larder.folder(), &variables, &["doctor"]).await;
    let runs = format!("runs at http://{}/ as {pid}", larder.admin());
    assert!(doctor.out.contains(&runs), "{}{}", doctor.out, doctor.err);
    assert_eq!(
        run_in(larder.folder(), &session, &["health"]).await.expect(0).out,
        "ready\n"
    );
    // However the folder is written.
    let cache = format!("{}/.cache/larder/", larder.folder().display());
    let written = [session[0], ("LARDER_CACHE__PATH", cache.as_str())];
    let ran = run_in(larder.folder(), &written, &["stats"]).await.expect(0);
    assert!(ran.out.contains(&pid) && ran.err.is_empty(), "{}{}", ran.out, ran.err);
    // The same port at other addresses of this machine is not the proxy's: nobody there is asked anything, or told a token.
    let port = larder.admin().port();
    let others = ["127.0.0.2", "127.255.255.254"].map(|ip| {
        let listener = std::net::TcpListener::bind((ip, port)).expect("the port at another address");
        listener.set_nonblocking(true).unwrap();
        listener
    });
    for args in [&["stats"][..], &["ls"], &["health"]] {
        run_in(larder.folder(), &session, args).await.expect(0);
    }
    run_in(larder.folder(), &variables, &["doctor"]).await;
    for listener in others {
        let came = listener.accept().map(|(_, from)| from).map_err(|error| error.kind());
        assert_eq!(came, Err(std::io::ErrorKind::WouldBlock));
    }
    // Also where a file has another address for it, and where it has none to connect to.
    for listen in [free().to_string(), ANY.to_owned()] {
        let text = format!("[admin]\nlisten = \"{listen}\"\n");
        std::fs::write(larder.folder().join("proxy.toml"), text).unwrap();
        run_in(larder.folder(), &session, &["stats"]).await.expect(0);
        run_in(larder.folder(), &session, &["health"]).await.expect(0);
    }
    std::fs::remove_file(larder.folder().join("proxy.toml")).unwrap();
    // Where there is no such folder, two proxies are one too many to guess.
    let nowhere = folder();
    for args in [&["ls"][..], &["health"]] {
        let ran = run_in(nowhere.path(), &session, args).await.expect(1);
        assert!(ran.err.contains("127.0.0.1:5001"), "{}", ran.err);
    }
    let ran = run_in(nowhere.path(), &session, &["ls"]).await.expect(1);
    let both = [&larder, &other].map(|larder| format!("http://{}/", larder.admin()));
    assert!(both.iter().all(|at| ran.err.contains(at)), "{}", ran.err);
    // Of one it is clear, and said.
    drop(larder);
    let ran = run_in(nowhere.path(), &session, &["stats"]).await.expect(0);
    assert!(ran.out.contains(&format!("process {}", other.pid())), "{}", ran.out);
    assert!(
        ran.err.contains("note: the larder at") && ran.err.contains("elsewhere"),
        "{}",
        ran.err
    );
    run_in(nowhere.path(), &session, &["health"]).await.expect(0);
    // Not where somebody chose an address: another proxy is up, and that one is not.
    let chosen = [session[0], ("LARDER_ADMIN__LISTEN", "127.0.0.1:1")];
    run_in(nowhere.path(), &chosen, &["health"]).await.expect(1);
    run_in(nowhere.path(), &chosen, &["ls"]).await.expect(1);
    run_in(nowhere.path(), &session, &["health", "--admin", "127.0.0.1:1"])
        .await
        .expect(1);
    // And not in place of a folder that is there, and that nobody uses.
    std::fs::create_dir_all(nowhere.path().join(".cache/larder")).unwrap();
    let ran = run_in(nowhere.path(), &session, &["stats"]).await.expect(0);
    assert!(ran.out.starts_with("no proxy runs"), "{}", ran.out);
    // But the proxy is named, and the way to it.
    let way = format!("--admin http://{}/", other.admin());
    assert!(ran.err.contains("note: ") && ran.err.contains(&way), "{}", ran.err);
    let ran = run_in(nowhere.path(), &session, &["health"]).await.expect(1);
    assert!(ran.err.contains(&way), "{}", ran.err);
    let doctor = run_in(nowhere.path(), &variables, &["doctor"]).await;
    assert!(doctor.out.contains(&way), "{}{}", doctor.out, doctor.err);
    // Somebody who chose the folder means it.
    let chosen = [session[0], ("LARDER_CACHE__PATH", ".cache/larder")];
    let ran = run_in(nowhere.path(), &chosen, &["stats"]).await.expect(0);
    assert!(ran.err.is_empty(), "{}", ran.err);
}

/// Commands that bring something in go to that proxy as those that look, and make no folder beside it.
#[tokio::test]
async fn commands_that_fill_find_a_proxy_with_another_admin_address() {
    let upstream = Upstream::start().await;
    let (hub, url) = (hub(&upstream), upstream.url());
    upstream.image(REPO, "1", &[10]);
    let runtime = folder();
    let session = [("XDG_RUNTIME_DIR", runtime.path().to_str().unwrap())];
    let start = async || {
        let options = [&LISTEN[..], &["--upstream", &hub, "--cache", "elsewhere"]].concat();
        LarderProcess::start_by(folder(), &options, &session).await
    };
    let larder = start().await;
    let nowhere = folder();
    let prefetch = ["prefetch", "alpine:1", "--no-referrers"];
    let ran = run_in(nowhere.path(), &session, &prefetch).await.expect(0);
    assert!(ran.err.contains("note: the larder at"), "{}", ran.err);
    let at = format!("http://{}/", larder.admin());
    let listed = run_in(nowhere.path(), &session, &["ls", "--admin", &at])
        .await
        .expect(0);
    assert!(listed.out.contains("docker.io/library/alpine:1"), "{}", listed.out);
    run_in(nowhere.path(), &session, &["bundle", "create", "b.tar"])
        .await
        .expect(0);
    let import = ["bundle", "import", "b.tar", "--unsigned"];
    let ran = run_in(nowhere.path(), &session, &import).await.expect(0);
    assert!(ran.err.contains("note: the larder at"), "{}", ran.err);
    assert!(!nowhere.path().join(".cache").exists());
    // Of two, none is taken, and no folder is made that would hide both.
    let other = start().await;
    for args in [&prefetch[..], &import] {
        let ran = run_in(nowhere.path(), &session, args).await.expect(1);
        let both = [&larder, &other].map(|larder| format!("http://{}/", larder.admin()));
        assert!(both.iter().all(|at| ran.err.contains(at)), "{}", ran.err);
    }
    assert!(!nowhere.path().join(".cache").exists());
    // Somebody who chose the folder gets it.
    let chosen = [
        session[0],
        ("LARDER_CACHE__PATH", "chosen"),
        ("LARDER_UPSTREAM__DOCKER_IO__URL", &url),
    ];
    run_in(nowhere.path(), &chosen, &prefetch).await.expect(0);
    assert!(nowhere.path().join("chosen").is_dir());
}

/// `larder doctor` asks the proxy that `--admin` or the variable names.
#[tokio::test]
async fn doctor_asks_the_proxy_that_is_named() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "latest", &[10]);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let (at, url) = (larder.admin().to_string(), upstream.url());
    let nowhere = folder();
    let hub = ("LARDER_UPSTREAM__DOCKER_IO__URL", url.as_str());
    let runs = format!("runs at http://{at}/ as process {}", larder.pid());
    let ran = run_in(nowhere.path(), &[hub], &["doctor", "--admin", &at]).await;
    assert!(ran.out.contains(&runs), "{}{}", ran.out, ran.err);
    let ran = run_in(nowhere.path(), &[hub, ("LARDER_ADMIN_URL", &at)], &["doctor"]).await;
    assert!(ran.out.contains(&runs), "{}{}", ran.out, ran.err);
    let ran = run_in(nowhere.path(), &[hub], &["doctor", "--admin", "127.0.0.1:1"]).await;
    let silent = "nothing answers at the address that --admin";
    assert!(ran.out.contains(silent), "{}{}", ran.out, ran.err);
    for variable in ["", "ftp://x"] {
        let ran = run_in(
            nowhere.path(),
            &[hub, ("LARDER_ADMIN_URL", variable)],
            &["doctor", "--no-network"],
        )
        .await;
        assert_eq!(
            ran.err.contains("LARDER_ADMIN_URL: "),
            !variable.is_empty(),
            "{}",
            ran.err
        );
    }
}

/// A proxy that was started by options differs from its configuration: `client-config` and `doctor` name the options.
#[tokio::test]
async fn options_that_other_commands_do_not_see_are_named() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "latest", &[10]);
    let hub = hub(&upstream);
    let runtime = folder();
    let session = [("XDG_RUNTIME_DIR", runtime.path().to_str().unwrap())];
    let options = [&LISTEN[..], &["--upstream", &hub]].concat();
    let larder = LarderProcess::start_by(folder(), &options, &session).await;
    let told = run_in(larder.folder(), &session, &["stats", "--json"]).await.expect(0);
    let options = ["--admin", "--listen", "--upstream"];
    assert_eq!(told.json()["options"], serde_json::json!(options));
    let url = upstream.url();
    let variables = [session[0], ("LARDER_UPSTREAM__DOCKER_IO__URL", url.as_str())];
    let doctor = run_in(larder.folder(), &variables, &["doctor"]).await;
    let named = "it was started with options that this command does not see: --admin, --listen, --upstream";
    assert!(doctor.out.contains(named), "{}{}", doctor.out, doctor.err);
    let recipe = ["client-config", "podman", "--address", "larder.example:5000"];
    let shown = run_in(larder.folder(), &session, &recipe).await.expect(0);
    assert!(
        shown.err.contains("--listen, --upstream") && !shown.out.contains("--listen"),
        "{}{}",
        shown.out,
        shown.err
    );
    // Options that leave a client's file as it is are no matter.
    drop(larder);
    let larder = LarderProcess::start_by(folder(), &["--listen", ANY, "--admin", ANY], &session).await;
    let shown = run_in(larder.folder(), &session, &recipe).await.expect(0);
    assert!(
        shown.err.contains("started with options") && shown.err.contains("--listen"),
        "{}",
        shown.err
    );
    drop(larder);
    let with_file = with_file("[server]\nlisten = \"127.0.0.1:0\"\n");
    let larder = LarderProcess::start_by(with_file, &["--admin", ANY], &session).await;
    let shown = run_in(larder.folder(), &session, &recipe).await.expect(0);
    assert!(!shown.err.contains("started with options"), "{}", shown.err);
}

/// A scraper beside Larder asks by the name of a Service or container; a name of the public DNS is refused.
#[tokio::test]
async fn names_of_a_private_network_at_the_admin_address() {
    let larder = LarderProcess::start_by(folder(), &LISTEN, &[]).await;
    let ask = async |host: &str, path: &str| -> Response {
        Ask::get(path)
            .header("Host", host)
            .anonymously()
            .send(larder.admin())
            .await
    };
    for host in [
        "larder:5001",
        "larder.monitoring.svc:5001",
        "larder.ns.svc.cluster.local",
        "cache.internal",
    ] {
        for path in ["/healthz", "/readyz", "/metrics", "/"] {
            ask(host, path).await.expect(200);
        }
        // The API wants its token, whatever the name.
        ask(host, "/api/v1/stats").await.expect(401);
    }
    for host in [
        "evil.example:5001",
        "larder.svc.evil.example",
        "larder.internal.example",
    ] {
        for path in ["/metrics", "/readyz", "/api/v1/stats"] {
            let refused = ask(host, path).await.expect(421);
            assert_eq!(refused.json()["error"]["code"], "unknown-host");
        }
    }
}

/// What `check-config` shows is the file and the variables, and `serve` says what its options made of them.
#[tokio::test]
async fn check_config_knows_no_options() {
    let folder = with_file("[cache]\nmax_size = \"7GiB\"\n");
    let ran = run_in(folder.path(), &[], &["check-config"]).await.expect(0);
    assert!(ran.out.contains("7GiB"), "{}", ran.out);
    run_in(folder.path(), &[], &["check-config", "--max-size", "8GiB"])
        .await
        .expect(64);
}

/// An option sets the address only: rules of the file for that registry hold.
#[tokio::test]
async fn an_upstream_option_leaves_the_rest_of_the_registry_as_it_is() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[10]);
    let hub = hub(&upstream);
    let folder = with_file("[upstream.\"docker.io\"]\nallow = [\"library/*\"]\n");
    let options = [&LISTEN[..], &["--upstream", &hub]].concat();
    let larder = LarderProcess::start_by(folder, &options, &[]).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    larder.get(manifest("other/app", "1")).await.expect(403);
    assert!(!upstream.print().contains("other/app"), "{}", upstream.print());
}

/// A file that comes after a start without one is watched like one that was there.
#[tokio::test]
async fn a_file_that_comes_later_is_watched() {
    let upstream = Upstream::start().await;
    let hub = hub(&upstream);
    let larder = LarderProcess::start_by(folder(), &[&LISTEN[..], &["--upstream", &hub]].concat(), &[]).await;
    let file = larder.folder().join("proxy.toml");
    std::fs::write(&file, "[cache]\ntag_ttl = \"7m\"\n").unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(larder.pid() as i32).unwrap(),
        rustix::process::Signal::HUP,
    )
    .unwrap();
    larder.wait_for_log("the configuration was read again and holds").await;
    std::fs::write(&file, "[cashe]\n").unwrap();
    larder.wait_for_log("cashe").await;
}
