//! A mistake in the configuration keeps no operator from the proxy that runs: commands read of it where the admin API
//! is and which token it wants, and nothing else.

use std::process::Command;

use crate::support::process::{LarderProcess, command};
use crate::support::ran::{Ran, pull};
use crate::support::upstream::Upstream;
use crate::support::within;

const REPO: &str = "library/alpine";

async fn output(mut command: Command) -> Ran {
    let running = tokio::task::spawn_blocking(move || command.output().expect("the larder binary"));
    Ran::of(within("the command to end", running).await.unwrap())
}

/// `larder …` in a folder whose `proxy.toml` is this text, if there is one.
struct Operator {
    folder: tempfile::TempDir,
}

impl Operator {
    fn new(text: Option<&str>) -> Operator {
        let folder = tempfile::tempdir().unwrap();
        if let Some(text) = text {
            std::fs::write(folder.path().join("proxy.toml"), text).unwrap();
        }
        Operator { folder }
    }

    async fn run(&self, args: &[&str], environment: &[(&str, &str)]) -> Ran {
        let mut command = command(self.folder.path());
        command.args(args).envs(environment.iter().copied());
        output(command).await
    }
}

fn admin(larder: &LarderProcess) -> String {
    format!("[admin]\nlisten = \"{}\"\n", larder.admin())
}

/// Every command that talks to a proxy, by a file with a mistake elsewhere.
#[tokio::test]
async fn a_typo_locks_nobody_out() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1_000]);
    let larder = LarderProcess::start(&upstream, |_| {}).await;
    pull(&larder, &image, "1").await;
    let operator = Operator::new(Some(&format!("{}[cache]\nmax_sise = 1\npath = 5\n", admin(&larder))));
    for args in [
        &["ls"][..],
        &["du"],
        &["stats"],
        &["inspect", "alpine:1"],
        &["pin", "alpine:1"],
        &["unpin", "alpine:1"],
        &["refresh", "alpine:1"],
        &["verify"],
        &["wishes"],
        &["log-level"],
        &["reload"],
        &["prefetch", "--jobs"],
        &["prefetch", "--yes", "alpine:1"],
        &["bundle", "create", "out.tar"],
        &["bundle", "receipt", "--site", "here"],
        &["rm", "alpine:1"],
    ] {
        let ran = operator.run(args, &[]).await;
        assert_eq!(ran.status, Some(0), "{args:?}\n{}\n{}", ran.out, ran.err);
        let wants = [
            format!(
                "warning: the configuration is refused, only its admin address is used: http://{}/",
                larder.admin()
            ),
            "proxy.toml:4: cache.max_sise: there is no such key; did you mean cache.max_size? (and 1 more)".to_owned(),
        ];
        assert!(wants.iter().all(|want| ran.err.contains(want)), "{args:?}\n{}", ran.err);
    }
    // Whatever needs all of it says what is wrong.
    for args in [&["check-config"][..], &["serve"], &["webhook", "test", "ci"]] {
        let refused = operator.run(args, &[]).await.expect(64).err;
        assert!(refused.contains("did you mean cache.max_size?"), "{refused}");
    }
}

/// A file that is no TOML, and one that only its user may read.
#[tokio::test]
async fn a_file_that_cannot_be_read() {
    let upstream = Upstream::start().await;
    let runtime = tempfile::tempdir().unwrap();
    let own = runtime.path().to_str().unwrap();
    let session = [("XDG_RUNTIME_DIR", own)];
    let larder = LarderProcess::start_with(&upstream, &session, |_| {}).await;
    let torn = Operator::new(Some(&format!("{}[cache\nmax_size = \n", admin(&larder))));
    let ran = torn.run(&["ls"], &session).await.expect(0);
    assert!(ran.err.contains("proxy.toml:3: this is not TOML"), "{}", ran.err);
    // Nothing says where it is but the token that it has written.
    let lost = Operator::new(Some("[admin\n"));
    let ran = lost.run(&["ls"], &session).await.expect(0);
    assert!(
        ran.err.contains("its admin address could not be read") && ran.err.contains(&larder.admin().to_string()),
        "{}",
        ran.err
    );
    let variable = [session[0], ("LARDER_ADMIN__LISTEN", &*larder.admin().to_string())];
    lost.run(&["ls"], &variable).await.expect(0);
    let unreadable = Operator::new(None);
    std::fs::create_dir(unreadable.folder.path().join("proxy.toml")).unwrap();
    let ran = unreadable.run(&["ls"], &session).await.expect(0);
    assert!(ran.err.contains("it is there, but cannot be read"), "{}", ran.err);
    // With two proxies nobody knows which one is meant.
    let other = LarderProcess::start_with(&upstream, &session, |_| {}).await;
    let ran = lost.run(&["ls"], &session).await.expect(64);
    assert!(
        ran.err.contains("127.0.0.1:5001") && ran.err.contains("--admin names another"),
        "{}",
        ran.err
    );
    drop(other);
    // A file that is named by mistake is no proxy's.
    let ran = torn.run(&["ls", "--config", "gone.toml"], &session).await.expect(64);
    assert!(
        ran.err.contains("there is no such file") && !ran.err.contains("warning"),
        "{}",
        ran.err
    );
}

/// `--admin`, `--token-file` and `LARDER_ADMIN_URL` need no file, and pass by one that is there.
#[tokio::test]
async fn by_address_and_token_alone() {
    let upstream = Upstream::start().await;
    let secrets = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = secrets.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (
        file("right", "a-token-of-operators\n"),
        file("wrong", "another-token-altogether\n"),
    );
    let short = file("short", "x\n");
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.admin("token_file", right.as_str());
    })
    .await;
    let at = format!("http://{}", larder.admin());
    let url = ("LARDER_ADMIN_URL", at.as_str());
    for text in [
        None,
        Some("[cashe]\n"),
        Some("[admin\n"),
        Some("[admin]\ntoken = \"another-token-altogether\"\n"),
    ] {
        let operator = Operator::new(text);
        for (args, environment) in [
            (&["ls", "--admin", &at, "--token-file", &right][..], &[][..]),
            (&["ls", "--token-file", &right], &[url]),
            (
                &["ls", "--token-file", &right],
                &[url, ("LARDER_ADMIN_TOKEN_FILE", &wrong)],
            ),
            (&["ls"], &[url, ("LARDER_ADMIN_TOKEN_FILE", &right)]),
            (
                &["ls", "--admin", &at, "--token-file", &right],
                &[("LARDER_ADMIN_URL", "http://127.0.0.1:1")],
            ),
        ] {
            let ran = operator.run(args, environment).await;
            assert_eq!(ran.status, Some(0), "{text:?} {args:?}\n{}", ran.err);
            assert!(!ran.err.contains("warning"), "{}", ran.err);
        }
    }
    let operator = Operator::new(None);
    let ran = operator.run(&["ls", "--token-file", &wrong], &[url]).await.expect(1);
    assert!(!ran.err.contains("another-token-altogether"), "L7");
    for (path, why) in [
        (short.as_str(), "expected 16 or more"),
        ("/nonexistent/token", "it is not there"),
    ] {
        let ran = operator.run(&["ls", "--token-file", path], &[url]).await.expect(1);
        assert!(
            ran.err.contains("--token-file") && ran.err.contains(path) && ran.err.contains(why),
            "{}",
            ran.err
        );
    }
    let ran = operator
        .run(&["ls"], &[("LARDER_ADMIN_URL", "ftp://x")])
        .await
        .expect(64);
    assert!(ran.err.contains("LARDER_ADMIN_URL: expected https://"), "{}", ran.err);
    // Empty is not set: the built-in address is asked, or the folder looked for.
    let ran = operator.run(&["ls"], &[("LARDER_ADMIN_URL", "")]).await;
    assert_ne!(ran.status, Some(64), "{}", ran.err);
}

/// Variables of others stop no service; one that was meant for Larder is named in the log.
#[tokio::test]
async fn foreign_variables_stop_no_service() {
    let upstream = Upstream::start().await;
    let variables = [
        ("LARDER_PORT", "tcp://10.0.0.1:5000"),
        ("LARDER_SERVICE_HOST", "10.0.0.1"),
        ("LARDER_HOME", "/opt/larder"),
        ("LARDER_CACHE__MAXSIZE", "1GiB"),
        ("LARDER_ADMIN_URL", "http://127.0.0.1:1"),
    ];
    let mut larder = LarderProcess::start_with(&upstream, &variables, |_| {}).await;
    larder.get("/v2/").await.expect(200);
    larder.stop().await;
    let log = larder.logs();
    let warned: Vec<&str> = log.lines().filter(|line| line.contains("is ignored")).collect();
    assert_eq!(warned.len(), 2, "{warned:#?}");
    assert!(
        log.contains("LARDER_CACHE__MAXSIZE: this sets no key and is ignored; did you mean LARDER_CACHE__MAX_SIZE?")
    );
    assert!(log.contains("LARDER_HOME: this sets no key and is ignored"));
}

/// A bundle's key has a password in a variable with Larder's prefix, which is none of its keys.
#[tokio::test]
async fn a_password_for_bundles_is_no_key() {
    let operator = Operator::new(Some("[log]\nlevel = \"info\"\n"));
    let ran = operator
        .run(&["check-config", "--strict"], &[("LARDER_BUNDLE_PASSWORD", "a secret")])
        .await;
    assert_eq!(ran.status, Some(0), "{}\n{}", ran.out, ran.err);
}

/// A token goes to no address that only a mistake leads to: any program may have that port.
#[tokio::test]
async fn a_configured_token_is_not_sent_on_a_guess() {
    for listen in [
        "listn = \"127.0.0.1:7\"",
        "listen = \"127.0.0.1:70010\"",
        "listen = \"unxi:/run/larder.sock\"",
    ] {
        let text = format!("[admin]\ntoken = \"a-token-of-operators\"\n{listen}\n");
        let runtime = tempfile::tempdir().unwrap();
        let session = [("XDG_RUNTIME_DIR", runtime.path().to_str().unwrap())];
        let ran = Operator::new(Some(&text)).run(&["stats"], &session).await.expect(64);
        assert!(
            ran.err.contains("is not sent to http://127.0.0.1:5001/ on a guess") && ran.err.contains("--admin"),
            "{listen}\n{}",
            ran.err
        );
    }
}

/// The quotes of an address are forgotten easily: the token that the proxy has written says where it is.
#[tokio::test]
async fn an_address_without_quotes() {
    let upstream = Upstream::start().await;
    let runtime = tempfile::tempdir().unwrap();
    let session = [("XDG_RUNTIME_DIR", runtime.path().to_str().unwrap())];
    let larder = LarderProcess::start_with(&upstream, &session, |_| {}).await;
    for listen in [
        format!("listen = {}", larder.admin()),
        format!("listn = \"{}\"", larder.admin()),
    ] {
        let operator = Operator::new(Some(&format!("[admin]\n{listen}\n")));
        let ran = operator.run(&["stats"], &session).await.expect(0);
        assert!(!ran.err.contains("only its admin address is used"), "{}", ran.err);
    }
}
