//! Who gets in at the admin API: the real binary, as this user and as others, by its file, over TLS and by a Unix socket.
//!
//! Cases with several users take root, as they have in CI; elsewhere they say that they did not run.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use crate::support::client::Ask;
use crate::support::process::{LarderProcess, become_user, command};
use crate::support::ran::{Ran, ask, run};
use crate::support::toml::Toml;
use crate::support::upstream::Upstream;
use crate::support::{admin_token, runtime_dir, within};

const NOBODY: u32 = 65_534;
const OTHER: u32 = 65_533;

fn is_root(case: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("not run: {case} takes root");
    }
    is_root
}

async fn output(mut command: Command) -> Ran {
    let running = tokio::task::spawn_blocking(move || command.output().expect("the larder binary"));
    Ran::of(within("the command to end", running).await.unwrap())
}

/// `larder …` of another user, in a folder without any configuration.
async fn run_as(user: u32, environment: &[(&str, &Path)], args: &[&str]) -> Ran {
    let home = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(home.path(), Some(user), Some(user)).unwrap();
    let mut command = command(home.path());
    command.env_remove("XDG_RUNTIME_DIR");
    command.args(args).envs(environment.iter().copied());
    become_user(&mut command, user);
    output(command).await
}

/// `larder …` of this user, in a folder without any configuration.
async fn run_elsewhere(environment: &[(&str, &str)], args: &[&str]) -> Ran {
    let home = tempfile::tempdir().unwrap();
    let mut command = command(home.path());
    command.args(args).envs(environment.iter().copied());
    output(command).await
}

fn stats() -> Ask {
    Ask::get("/api/v1/stats").anonymously()
}

fn with(token: &str) -> Ask {
    stats().header("Authorization", format!("Bearer {token}"))
}

fn url(larder: &LarderProcess) -> String {
    format!("http://{}", larder.admin())
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// With defaults nobody is let in because he is on this machine.
#[tokio::test]
async fn being_here_is_no_proof() {
    let upstream = Upstream::start().await;
    let mut larder = LarderProcess::start(&upstream, |_| {}).await;
    let admin = larder.admin();
    let file = runtime_dir().join(format!("larder/admin-{}.token", admin.port()));
    larder
        .wait_for_log(&format!("larder: admin token in {}", file.display()))
        .await;
    let meta = std::fs::symlink_metadata(&file).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid()),
        (0o600, rustix::process::geteuid().as_raw())
    );
    let token = admin_token(admin.port()).unwrap();
    let refused = stats().send(admin).await.expect(401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"larder\""));
    for wrong in ["", "x", &token[1..], &format!("{token}x")] {
        with(wrong).send(admin).await.expect(401);
    }
    let seen = with(&token).send(admin).await.expect(200).json();
    assert_eq!(seen["api"]["token_files"][0], file.to_str().unwrap());
    // What has no secrets is for everybody.
    for open in ["/", "/healthz", "/readyz", "/metrics"] {
        Ask::get(open).send(admin).await.expect(200);
    }
    // A page in the browser of somebody who knows the token is a page.
    let page = |name: &str, value: &str| with(&token).header(name, value).send(admin);
    page("Origin", "http://evil.example").await.expect(403);
    page("Sec-Fetch-Site", "cross-site").await.expect(403);
    page("Sec-Fetch-Site", "same-origin").await.expect(200);
    page("Host", "evil.example").await.expect(200);
    stats().header("Host", "evil.example").send(admin).await.expect(421);

    // Commands find it, without a configuration.
    let at = url(&larder);
    let told = run_elsewhere(&[], &["stats", "--admin", &at]).await.expect(0);
    assert!(
        told.out
            .contains(&format!("admin API  with the token in {}", file.display())),
        "{}",
        told.out
    );
    // Also where the configuration makes no sense.
    let broken = tempfile::tempdir().unwrap();
    let mistaken = format!("[cashe]\n[admin]\nlisten = \"{}\"\n", free());
    std::fs::write(broken.path().join("proxy.toml"), mistaken).unwrap();
    run(broken.path(), &["ls", "--admin", &at]).await.expect(0);
    run(broken.path(), &["ls"]).await.expect(64);
    let lost = run_elsewhere(&[("XDG_RUNTIME_DIR", "/nonexistent")], &["ls", "--admin", &at]).await;
    let lost = lost.expect(1).err;
    assert!(
        lost.contains("admin-PORT.token") && lost.contains("/nonexistent/larder/"),
        "{lost}"
    );

    // With the process the file goes, and the next one has another token.
    assert_eq!(larder.stop().await, Some(0));
    assert!(!file.exists());
    let mut larder = larder.restart().await;
    let another = admin_token(larder.admin().port()).unwrap();
    assert_ne!(another, token);
    with(&token).send(larder.admin()).await.expect(401);
    // What a crash leaves is worth nothing, and does not stand in the way.
    larder.kill_9();
    let larder = larder.restart().await;
    ask(&larder, &["ls"]).await.expect(0);
    with(&another).send(larder.admin()).await.expect(401);
    assert!(!larder.logs().contains("lra_"), "L7");
}

/// The file is the user's whose proxy it is: another user's commands are refused, root's are not.
#[tokio::test]
async fn another_user_is_not_let_in() {
    if !is_root("another_user_is_not_let_in") {
        return;
    }
    let upstream = Upstream::start().await;
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let tmp = [("TMPDIR", shared.path())];
    let environment = [
        ("XDG_RUNTIME_DIR", "/nonexistent"),
        ("TMPDIR", shared.path().to_str().unwrap()),
    ];
    let larder = LarderProcess::start_as(Some(NOBODY), &upstream, &environment, |_| {}).await;
    let (at, port) = (url(&larder), larder.admin().port());
    let folder = shared.path().join(format!("larder-{NOBODY}"));
    let file = folder.join(format!("admin-{port}.token"));
    let (folder, meta) = (
        std::fs::symlink_metadata(&folder).unwrap(),
        std::fs::symlink_metadata(&file).unwrap(),
    );
    assert_eq!(
        (folder.mode() & 0o777, folder.uid(), meta.mode() & 0o777, meta.uid()),
        (0o700, NOBODY, 0o600, NOBODY)
    );
    run_as(NOBODY, &tmp, &["ls", "--admin", &at]).await.expect(0);
    let refused = run_as(OTHER, &tmp, &["ls", "--admin", &at]).await.expect(1);
    assert!(refused.err.contains("admin-PORT.token"), "{}", refused.err);
    let named = [("LARDER_ADMIN_TOKEN_FILE", file.as_path())];
    let refused = run_as(OTHER, &named, &["ls", "--admin", &at]).await.expect(1);
    assert!(refused.err.contains("permission denied"), "{}", refused.err);
    // Root may: it looks into everybody's folders, or says where.
    run_elsewhere(
        &tmp.map(|(name, path)| (name, path.to_str().unwrap())),
        &["ls", "--admin", &at],
    )
    .await
    .expect(0);
    run_elsewhere(
        &[("LARDER_ADMIN_TOKEN_FILE", file.to_str().unwrap())],
        &["ls", "--admin", &at],
    )
    .await
    .expect(0);
}

/// Whoever makes the folder first gains nothing: no token is written there, and none is taken from there.
#[tokio::test]
async fn a_folder_that_another_user_made_first() {
    if !is_root("a_folder_that_another_user_made_first") {
        return;
    }
    let upstream = Upstream::start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::set_permissions(elsewhere.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let folder_of = |owner: u32, mode: u32| {
        move |at: &Path, _: &Path| {
            std::fs::create_dir(at).unwrap();
            std::os::unix::fs::chown(at, Some(owner), Some(owner)).unwrap();
            std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    type Prepare = Box<dyn Fn(&Path, &Path)>;
    let cases: [(&str, &str, Prepare); 4] = [
        ("another's", "belongs to uid 65533", Box::new(folder_of(OTHER, 0o777))),
        (
            "own, but open",
            "other users may write there",
            Box::new(folder_of(NOBODY, 0o770)),
        ),
        (
            "a link",
            "symbolic link",
            Box::new(|at, to| std::os::unix::fs::symlink(to, at).unwrap()),
        ),
        ("a file", "no folder", Box::new(|at, _| std::fs::write(at, "").unwrap())),
    ];
    for (case, why, prepare) in cases {
        let shared = tempfile::tempdir().unwrap();
        std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
        prepare(&shared.path().join(format!("larder-{NOBODY}")), elsewhere.path());
        let environment = [
            ("XDG_RUNTIME_DIR", "/nonexistent"),
            ("TMPDIR", shared.path().to_str().unwrap()),
        ];
        let larder = LarderProcess::start_as(Some(NOBODY), &upstream, &environment, |_| {}).await;
        let told = larder.wait_for_log("the admin API is closed").await;
        assert!(told.contains(why), "{case}: {told}");
        let refused = with("anything").send(larder.admin()).await.expect(403).json();
        assert_eq!(refused["error"]["code"], "closed", "{case}");
        Ask::get("/metrics").send(larder.admin()).await.expect(200);
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0, "{case}");
    }
}

/// Where no token can be written the API is closed, until one is configured; health and pulls are as ever.
#[tokio::test]
async fn closed_until_a_token_is_configured() {
    let upstream = Upstream::start().await;
    let environment = [("LARDER_ADMIN_TOKEN_FILE", "/nonexistent/token")];
    let larder = LarderProcess::start_with(&upstream, &environment, |_| {}).await;
    let told = larder.wait_for_log("larder: the admin API is closed").await;
    assert!(
        told.contains("LARDER_ADMIN_TOKEN_FILE") && told.contains("it is not there"),
        "{told}"
    );
    let refused = with("anything").send(larder.admin()).await.expect(403).json();
    assert!(
        refused["error"]["message"]
            .as_str()
            .unwrap()
            .contains("admin.token_file"),
        "{refused}"
    );
    Ask::get("/readyz").send(larder.admin()).await.expect(200);
    larder.get("/v2/").await.expect(200);
    let file = larder.folder().join("proxy.toml");
    let mut toml = Toml::parse(&std::fs::read_to_string(&file).unwrap());
    toml.admin("token", "a-token-of-operators");
    std::fs::write(&file, toml.text()).unwrap();
    within("the token to hold", async {
        while with("a-token-of-operators").send(larder.admin()).await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(!larder.logs().contains("a-token-of-operators"), "L7");
}

/// A file that the variable names: made if it is not there, taken as the token if an operator wrote it.
#[tokio::test]
async fn a_file_that_a_variable_names() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let environment = [("LARDER_ADMIN_TOKEN_FILE", file.to_str().unwrap())];
    let mut larder = LarderProcess::start_with(&upstream, &environment, |_| {}).await;
    assert_eq!(std::fs::symlink_metadata(&file).unwrap().mode() & 0o777, 0o600);
    run_elsewhere(&environment, &["ls", "--admin", &url(&larder)])
        .await
        .expect(0);
    assert_eq!(larder.stop().await, Some(0));
    assert!(!file.exists());
    std::fs::write(&file, "an-operators-own-token\n").unwrap();
    let mut larder = larder.restart().await;
    with("an-operators-own-token").send(larder.admin()).await.expect(200);
    run_elsewhere(&environment, &["ls", "--admin", &url(&larder)])
        .await
        .expect(0);
    assert_eq!(larder.stop().await, Some(0));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "an-operators-own-token\n");
}

/// Other ports, while it runs: the token stays, its files follow the ports.
#[tokio::test]
async fn files_follow_the_ports() {
    let upstream = Upstream::start().await;
    let (first, second) = (free(), free());
    let larder = LarderProcess::start(&upstream, |t| {
        t.admin("listen", first.to_string());
    })
    .await;
    let token = admin_token(first.port()).unwrap();
    run(larder.folder(), &["ls"]).await.expect(0);
    let file = larder.folder().join("proxy.toml");
    let mut toml = Toml::parse(&std::fs::read_to_string(&file).unwrap());
    let change = async |toml: &Toml, is_so: &dyn Fn() -> bool| {
        std::fs::write(&file, toml.text()).unwrap();
        within("the change to hold", async {
            while !is_so() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
    };
    toml.admin("listen", vec![first.to_string(), second.to_string()]);
    change(&toml, &|| admin_token(second.port()).as_ref() == Some(&token)).await;
    with(&token).send(first).await.expect(200);
    within("the new address", async {
        while with(&token).try_open(second).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    toml.admin("listen", second.to_string());
    change(&toml, &|| admin_token(first.port()).is_none()).await;
    with(&token).send(second).await.expect(200);
    run(larder.folder(), &["ls"]).await.expect(0);
    // A configured one takes its place, and the files go; then one is made again.
    toml.admin("token", "a-token-of-operators");
    change(&toml, &|| admin_token(second.port()).is_none()).await;
    with("a-token-of-operators").send(second).await.expect(200);
    with(&token).send(second).await.expect(401);
    toml.unset(&["admin"], "token");
    change(&toml, &|| admin_token(second.port()).is_some()).await;
    let made = admin_token(second.port()).unwrap();
    assert_ne!(made, token);
    run(larder.folder(), &["ls"]).await.expect(0);
}

/// Two proxies of one user at the same port of two addresses: neither takes the other's file, and commands reach both.
#[tokio::test]
async fn two_at_one_port() {
    let upstream = Upstream::start().await;
    let tmp = tempfile::tempdir().unwrap();
    let environment = [("TMPDIR", tmp.path().to_str().unwrap())];
    let port = free().port();
    let start = async |ip: &str| {
        let listen = format!("{ip}:{port}");
        LarderProcess::start_with(&upstream, &environment, |t| {
            t.admin("listen", listen);
        })
        .await
    };
    let (mut one, other) = (start("127.0.0.1").await, start("127.0.0.2").await);
    for larder in [&one, &other] {
        let told = run_elsewhere(&environment, &["stats", "--json", "--admin", &url(larder)]).await;
        assert_eq!(told.expect(0).json()["pid"], larder.pid());
    }
    assert_eq!(one.stop().await, Some(0));
    run_elsewhere(&environment, &["ls", "--admin", &url(&other)])
        .await
        .expect(0);
}

/// Where another user's process has the port that a command asks at, it gets no token of this user's proxy, which listens
/// at another address.
#[tokio::test]
async fn tokens_stay_out_of_other_users_hands() {
    if !is_root("tokens_stay_out_of_other_users_hands") {
        return;
    }
    let upstream = Upstream::start().await;
    let port = free().port();
    // The larder of somebody else is as good as any program of theirs: it must not see the token at all.
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let environment = [
        ("XDG_RUNTIME_DIR", "/nonexistent"),
        ("TMPDIR", shared.path().to_str().unwrap()),
    ];
    let listen = |ip: &str| format!("{ip}:{port}");
    let own = LarderProcess::start(&upstream, |t| {
        t.admin("listen", listen("127.0.0.2"));
    })
    .await;
    let theirs = LarderProcess::start_as(Some(OTHER), &upstream, &environment, |t| {
        t.admin("listen", listen("127.0.0.1"));
    })
    .await;
    run_elsewhere(&[], &["ls", "--admin", &url(&own)]).await.expect(0);
    let kept = run_elsewhere(&[], &["ls", "--admin", &url(&theirs)])
        .await
        .expect(1)
        .err;
    assert!(kept.contains("but uid 65533 listens at port"), "{kept}");
}

/// Nor does it get one that was configured, or that a variable names, unless somebody says so. The owner of the cache
/// folder is the proxy's user, whoever asks.
#[tokio::test]
async fn named_tokens_stay_out_of_other_users_hands() {
    if !is_root("named_tokens_stay_out_of_other_users_hands") {
        return;
    }
    let upstream = Upstream::start().await;
    let token = "a-token-of-operators";
    // It would let them in, so that a command that ends well has sent it.
    let theirs = LarderProcess::start_as(Some(OTHER), &upstream, &[], |t| {
        t.admin("token", token);
    })
    .await;
    let at = url(&theirs);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, token).unwrap();
    let variable = [("LARDER_ADMIN_TOKEN_FILE", file.to_str().unwrap())];
    let value = [("LARDER_ADMIN__TOKEN", token)];
    let key = [("LARDER_ADMIN__TOKEN_FILE", file.to_str().unwrap())];
    for environment in [variable, value, key] {
        let kept = run_elsewhere(&environment, &["ls", "--admin", &at]).await.expect(1).err;
        assert!(
            kept.contains("uid 65533 listens at") && kept.contains("--insecure"),
            "{kept}"
        );
        assert!(!kept.contains(token), "L7");
        run_elsewhere(&environment, &["ls", "--insecure", "--admin", &at])
            .await
            .expect(0);
    }
    // The file's owner may have it, and so may the user whose cache folder the configuration names.
    std::os::unix::fs::chown(&file, Some(OTHER), Some(OTHER)).unwrap();
    run_elsewhere(&variable, &["ls", "--admin", &at]).await.expect(0);
    run(theirs.folder(), &["ls", "--admin", &at]).await.expect(0);
    // A socket is its owner's.
    let own = LarderProcess::start(&upstream, |t| {
        t.admin("token", token);
    })
    .await;
    let socket = folder.path().join("admin.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::chown(&socket, Some(OTHER), Some(OTHER)).unwrap();
    let kept = run_elsewhere(&value, &["ls", "--admin", &format!("unix:{}", socket.display())]).await;
    let kept = kept.expect(1).err;
    assert!(kept.contains("uid 65533 listens at unix:"), "{kept}");
    run_elsewhere(&value, &["ls", "--admin", &url(&own)]).await.expect(0);
}

/// A machine that lets every address be bound has no other machine's address for all that.
#[tokio::test]
async fn an_address_that_can_be_bound_is_not_always_of_this_machine() {
    const NOT_RUN: i32 = 77;
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    std::fs::write(&token, "a-token-of-operators").unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--net", "sh", "-c"])
        .arg("echo 1 2>&- >/proc/sys/net/ipv4/ip_nonlocal_bind || exit 77; \"$0\" ls --admin http://192.0.2.7:5001; exit $(($? + 100))")
        .arg(env!("CARGO_BIN_EXE_larder"))
        .current_dir(home.path())
        .env("LARDER_ADMIN_TOKEN_FILE", &token);
    let is_there = Command::new("unshare").args(["--net", "true"]).output();
    if !is_there.is_ok_and(|ran| ran.status.success()) {
        eprintln!("not run: a network of its own takes root and unshare");
        return;
    }
    let ran = output(command).await;
    if ran.status == Some(NOT_RUN) {
        eprintln!("not run: the kernel's settings cannot be written here");
        return;
    }
    let refused = ran.expect(164).err;
    assert!(refused.contains("unencrypted"), "{refused}");
}

/// The end of a session takes the file away; a reload brings it back with the token that it had.
#[tokio::test]
async fn a_file_that_is_gone_comes_back_with_a_reload() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    let port = larder.admin().port();
    let token = admin_token(port).unwrap();
    std::fs::remove_file(runtime_dir().join(format!("larder/admin-{port}.token"))).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(larder.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    within("the file", async {
        while admin_token(port).as_ref() != Some(&token) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    larder.wait_for_log("the file of the admin token is gone").await;
    ask(&larder, &["ls"]).await.expect(0);
}

/// A secret as Kubernetes mounts it is taken; a token that can be guessed is not, and the log says why.
#[tokio::test]
async fn a_mounted_secret_and_a_short_one() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("..2026");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("token"), "an-operators-own-token").unwrap();
    std::os::unix::fs::symlink("..2026", folder.path().join("..data")).unwrap();
    let file = folder.path().join("token");
    std::os::unix::fs::symlink("..data/token", &file).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let environment = [("LARDER_ADMIN_TOKEN_FILE", file.to_str().unwrap())];
    let mut larder = LarderProcess::start_with(&upstream, &environment, |_| {}).await;
    with("an-operators-own-token").send(larder.admin()).await.expect(200);
    run_elsewhere(&environment, &["ls", "--admin", &url(&larder)])
        .await
        .expect(0);
    assert_eq!(larder.stop().await, Some(0));
    std::fs::write(data.join("token"), "a").unwrap();
    let larder = larder.restart().await;
    let told = larder.wait_for_log("larder: the admin API is closed").await;
    assert!(
        told.contains("expected 16 or more") && told.contains("found 1"),
        "{told}"
    );
    with("a").send(larder.admin()).await.expect(403);
}

/// No token goes to another machine in clear, unless somebody says so.
#[tokio::test]
async fn tokens_stay_off_the_network() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a-token-of-operators").unwrap();
    let environment = [("LARDER_ADMIN_TOKEN_FILE", file.path().to_str().unwrap())];
    // RFC 2606 and RFC 5737: there is no such host, and no such address.
    for at in ["larder.invalid:5001", "http://192.0.2.7:5001"] {
        let refused = run_elsewhere(&environment, &["ls", "--admin", at]).await.expect(64).err;
        assert!(
            refused.contains("unencrypted") && refused.contains("--insecure"),
            "{refused}"
        );
        assert!(!refused.contains("a-token-of-operators"), "L7");
    }
    let dialled = run_elsewhere(&environment, &["ls", "--insecure", "--admin", "larder.invalid:5001"]).await;
    let dialled = dialled.expect(1).err;
    assert!(
        dialled.contains("nothing answers at http://larder.invalid:5001"),
        "{dialled}"
    );
}

/// Certificate and key of an authority's own making, as files; and the authority's certificate.
fn certificate(folder: &Path, names: &[&str]) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, &key);
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(folder.join("server.pem"), server.pem()).unwrap();
    std::fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
}

fn secure(toml: &mut Toml, folder: &Path) {
    for (key, file) in [("cert", "server.pem"), ("key", "server.key")] {
        toml.set(&["admin", "tls"], key, folder.join(file).to_str().unwrap());
    }
}

/// The admin address over TLS, from the start and after a reload. Commands trust the certificate that the configuration
/// names, whatever its names are, and elsewhere the authorities of the system.
#[tokio::test]
async fn over_tls() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), &["larder.example", "localhost"]);
    let admin = free();
    let larder = LarderProcess::start(&upstream, |t| {
        t.admin("listen", admin.to_string());
        secure(t, folder.path());
    })
    .await;
    larder
        .wait_for_log(&format!("larder: admin listening on https://{admin}"))
        .await;
    let told = run(larder.folder(), &["stats"]).await.expect(0).out;
    assert!(told.contains("; over TLS"), "{told}");
    let ca = folder.path().join("ca.pem");
    let trusted = [("SSL_CERT_FILE", ca.to_str().unwrap())];
    let by_name = format!("https://localhost:{}", admin.port());
    run_elsewhere(&trusted, &["ls", "--admin", &by_name]).await.expect(0);
    let distrusted = run_elsewhere(&[], &["ls", "--admin", &by_name]).await.expect(1).err;
    assert!(distrusted.contains("certificate"), "{distrusted}");
    assert_eq!(run(larder.folder(), &["health"]).await.expect(0).out, "ready\n");
    run_elsewhere(&trusted, &["health", "--admin", &by_name])
        .await
        .expect(0);
    let distrusted = run_elsewhere(&[], &["health", "--admin", &by_name]).await.expect(1);
    assert!(distrusted.err.contains("certificate"), "{}", distrusted.err);
    // An archive goes by HTTP/2, which has to be agreed on.
    let nothing = folder.path().join("nothing.tar");
    std::fs::write(&nothing, [0; 1024]).unwrap();
    let refused = run(
        larder.folder(),
        &["bundle", "import", nothing.to_str().unwrap(), "--unsigned"],
    )
    .await;
    let refused = refused.expect(1).err;
    assert!(
        refused.contains("no bundle") || refused.contains("too early"),
        "{refused}"
    );
    let findings = run(larder.folder(), &["doctor", "--json"]).await.json();
    let findings = findings["findings"].as_array().unwrap();
    for check in ["proxy", "admin API"] {
        let found = findings.iter().find(|finding| finding["check"] == check).unwrap();
        assert_eq!(found["level"], "ok", "{found}");
    }
    // Back to plain, while it runs.
    let file = larder.folder().join("proxy.toml");
    let mut toml = Toml::parse(&std::fs::read_to_string(&file).unwrap());
    toml.unset(&["admin"], "tls");
    std::fs::write(&file, toml.text()).unwrap();
    within("plain HTTP", async {
        while run(larder.folder(), &["ls"]).await.status != Some(0) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    Ask::get("/healthz").send(admin).await.expect(200);
    // And on again.
    secure(&mut toml, folder.path());
    std::fs::write(&file, toml.text()).unwrap();
    within("TLS again", async {
        while run(larder.folder(), &["ls"]).await.status != Some(0) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// By a Unix socket the kernel says who is there: the proxy's own user and root need no token, and nobody else is let in.
#[tokio::test]
async fn by_a_unix_socket() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let socket = folder.path().join("admin.sock");
    let at = format!("unix:{}", socket.display());
    let environment = [("LARDER_ADMIN_TOKEN_FILE", "/nonexistent/token")];
    let is_root = is_root("by_a_unix_socket with several users");
    let user = is_root.then_some(NOBODY);
    let larder = LarderProcess::start_as(user, &upstream, &environment, |t| {
        t.admin("listen", vec!["127.0.0.1:0".to_owned(), at.clone()]);
    })
    .await;
    larder.wait_for_log(&format!("larder: admin listening on {at}")).await;
    // By its address it is closed: no token could be made.
    stats().send(larder.admin()).await.expect(403);
    let told = run_elsewhere(&[], &["stats", "--admin", &at]).await.expect(0).out;
    assert!(told.contains(&format!("by {at} without one")), "{told}");
    if is_root {
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        run_as(NOBODY, &[], &["ls", "--admin", &at]).await.expect(0);
        let refused = run_as(OTHER, &[], &["ls", "--admin", &at]).await.expect(1).err;
        assert!(refused.contains("the API is closed"), "{refused}");
    }
    // Without any address, commands go by the configuration.
    let alone = folder.path().join("alone.sock");
    let file = larder.folder().join("proxy.toml");
    let mut toml = Toml::parse(&std::fs::read_to_string(&file).unwrap());
    toml.admin("listen", format!("unix:{}", alone.display()));
    std::fs::write(&file, toml.text()).unwrap();
    within("the other socket", async {
        while !alone.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    run(larder.folder(), &["ls"]).await.expect(0);
    let nothing = folder.path().join("nothing.tar");
    std::fs::write(&nothing, [0; 1024]).unwrap();
    let refused = run(
        larder.folder(),
        &["bundle", "import", nothing.to_str().unwrap(), "--unsigned"],
    )
    .await;
    let refused = refused.expect(1).err;
    assert!(
        refused.contains("no bundle") || refused.contains("too early"),
        "{refused}"
    );
}
