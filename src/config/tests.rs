//! The configuration as an operator meets it: what is understood, and what the refusals say.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

fn env(variables: &[(&str, &str)]) -> Environment {
    Environment {
        variables: variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        cwd: PathBuf::from("/nonexistent"),
        home: Some(PathBuf::from("/home/someone")),
        etc: PathBuf::from("/nonexistent"),
        run: PathBuf::new(),
    }
}

/// The wrong file, named by mistake: a log, a dump. What is wrong is told at once, and not a thousand times.
#[test]
fn what_is_no_configuration_at_all() {
    let log = "\"\"\"[[webhook]]\n".repeat(50_000);
    let error = Config::from_toml(&log).unwrap_err();
    assert!(error.problems().len() <= 20, "{}", error.problems().len());

    let long = "x".repeat(500_000);
    let error = Config::from_toml(&format!("{long} = 1\n[upstream.{long}]\n")).unwrap_err();
    assert!(error.to_string().len() < 5_000, "{} bytes", error.to_string().len());

    let many: String = (0..30_000).map(|n| format!("key{n} = {n}\n")).collect();
    let error = Config::from_toml(&many).unwrap_err();
    assert_eq!(error.problems().len(), 30_000);
    let last = error.problems().last().unwrap().to_string();
    assert!(last.starts_with("proxy.toml:30000: key29999: "), "{last}");

    let config = Config::load(None, &env(&[(&format!("LARDER_UPSTREAM__{long}__URL"), "x")])).unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].len() < 5_000, "{} bytes", config.warnings[0].len());
}

/// A folder with a `proxy.toml` in it, and an environment that stands there.
struct Site {
    dir: tempfile::TempDir,
    environment: Environment,
}

impl Site {
    fn new(text: &str, variables: &[(&str, &str)]) -> Site {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("proxy.toml"), text).unwrap();
        let environment = Environment {
            cwd: dir.path().to_owned(),
            ..env(variables)
        };
        Site { dir, environment }
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(None, &self.environment)
    }

    fn refusal(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

fn refusal(text: &str) -> String {
    Config::from_toml(text).unwrap_err().to_string()
}

fn upstream<'a>(config: &'a Config, name: &str) -> &'a Upstream {
    config.upstreams.iter().find(|u| u.name.as_str() == name).unwrap()
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = Config::load(None, &env(&[])).unwrap();
    assert_eq!(config.server.listen, ["127.0.0.1:5000".parse().unwrap()]);
    assert_eq!(config.admin.listen, [Listen::Tcp("127.0.0.1:5001".parse().unwrap())]);
    assert_eq!(config.cache.path, Path::new("/home/someone/.cache/larder"));
    assert_eq!(config.cache.max_size, 50 << 30);
    assert_eq!(config.cache.min_free, 1 << 30);
    assert_eq!(config.cache.tag_ttl, Duration::from_secs(300));
    assert_eq!(config.cache.negative_ttl, Duration::from_secs(5));
    assert_eq!(config.limits.manifest_size, 4 << 20);
    assert_eq!(config.cache.stale_if_error, Duration::from_secs(30 * 86_400));
    assert_eq!(config.cache.default_upstream.as_str(), "docker.io");
    assert!(!config.cache.offline && config.server.tls.is_none());
    assert_eq!(config.upstreams.len(), 13);
    let hub = upstream(&config, "docker.io");
    assert_eq!(hub.url.as_str(), "https://registry-1.docker.io/");
    assert_eq!(hub.aliases, ["hub"]);
    assert_eq!(hub.synonyms.len(), 3);
    assert!(config.sources.is_empty() && config.warnings.is_empty() && config.origins.is_empty());
    assert!(config.upstreams.is_sorted_by(|a, b| a.name < b.name));
}

#[test]
fn variables_win_over_the_file_and_the_file_over_defaults() {
    let site = Site::new(
        "[cache]\nmax_size = \"10GB\"\nmin_free = 0\ntag_ttl = \"1h\"\n[upstream.\"Registry.Example:5000\"]\nurl = \"http://10.0.0.1:5000\"\n",
        &[
            ("LARDER_CACHE__MAX_SIZE", "200GiB"),
            ("larder_server__listen", "[::]:0, 127.0.0.1:0"),
            ("LARDER_UPSTREAM__DOCKER_IO__ALIASES", "[\"dh\"]"),
            ("LARDER_CACHE__NEGATIVE_TTL", "0s"),
            ("LARDER_LIMITS__MANIFEST_SIZE", "16MiB"),
            ("LARDER_UPSTREAM__REGISTRY_EXAMPLE_5000__TAG_TTL", "0s"),
            ("LARDER_SERVICE_PORT_HTTP", "5000"),
            ("OTHER", "x"),
        ],
    );
    let config = site.load().unwrap();
    assert_eq!(config.cache.max_size, 200 << 30);
    assert_eq!(config.cache.min_free, 0);
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(upstream(&config, "docker.io").aliases, ["dh"]);
    let own = upstream(&config, "registry.example:5000");
    assert_eq!(own.tag_ttl, Duration::ZERO);
    assert_eq!(upstream(&config, "ghcr.io").tag_ttl, Duration::from_secs(3600));
    assert_eq!(config.cache.negative_ttl, Duration::ZERO);
    assert_eq!(config.limits.manifest_size, 16 << 20);
    assert_eq!(config.sources.len(), 7);
    assert_eq!(config.sources[0], "proxy.toml");
    assert_eq!(config.origins["cache.max_size"], "LARDER_CACHE__MAX_SIZE");
    let covered = ("cache.max_size", "proxy.toml:2", "LARDER_CACHE__MAX_SIZE");
    let covered = [covered].map(|(key, place, variable)| (key.to_owned(), place.to_owned(), variable.to_owned()));
    assert_eq!(config.covered, covered);
    assert_eq!(config.origins["cache.min_free"], "proxy.toml:3");
}

#[test]
fn the_file_is_looked_up_in_order() {
    let site = Site::new("[cache]\nmax_size = \"1GiB\"\n", &[]);
    let other = site.dir.path().join("other.toml");
    std::fs::write(&other, "[cache]\nmax_size = \"2GiB\"\n").unwrap();
    assert_eq!(site.load().unwrap().cache.max_size, 1 << 30);

    let mut environment = site.environment.clone();
    environment
        .variables
        .insert("LARDER_CONFIG".to_owned(), "other.toml".to_owned());
    assert_eq!(Config::load(None, &environment).unwrap().cache.max_size, 2 << 30);
    let explicit = Config::load(Some(Path::new("proxy.toml")), &environment).unwrap();
    assert_eq!(explicit.cache.max_size, 1 << 30);

    environment
        .variables
        .insert("LARDER_CONFIG".to_owned(), "gone.toml".to_owned());
    assert_eq!(
        Config::load(None, &environment).unwrap_err().to_string(),
        "LARDER_CONFIG: cannot read the configuration file gone.toml: there is no such file"
    );
    assert_eq!(
        Config::load(Some(Path::new("gone.toml")), &environment)
            .unwrap_err()
            .to_string(),
        "--config: cannot read the configuration file gone.toml: there is no such file"
    );
    // One that is there but cannot be read is no reason to run on defaults.
    std::fs::remove_file(site.dir.path().join("proxy.toml")).unwrap();
    std::fs::create_dir(site.dir.path().join("proxy.toml")).unwrap();
    assert!(
        site.refusal()
            .starts_with("proxy.toml: it is there, but cannot be read")
    );
}

#[test]
fn several_mistakes_are_told_together_with_their_places() {
    let site = Site::new(
        "[cache]\nmaxsize = \"1GiB\"\nmax_size = \"lots\"\noffline = \"yes\"\n\n[servre]\nlisten = \"x\"\n",
        &[("LARDER_CACHE__TAG_TTL", "5x"), ("LARDER_CACHE_MIN_FREE", "1GiB")],
    );
    let lines: Vec<String> = site.refusal().lines().map(str::to_owned).collect();
    assert_eq!(
        lines,
        [
            "proxy.toml:2: cache.maxsize: there is no such key; did you mean cache.max_size?",
            "proxy.toml:3: cache.max_size: found \"lots\", expected a size such as \"50GiB\", \"10GB\", \"512MiB\" or a \
             whole number of bytes",
            "proxy.toml:4: cache.offline: found \"yes\", expected true or false",
            "proxy.toml:6: servre: there is no such key; did you mean server?",
            "LARDER_CACHE__TAG_TTL: cache.tag_ttl: found \"5x\", expected a duration such as \"5m\", \"30d\", \"1h30m\", \
             \"500ms\" or a whole number of seconds",
        ]
    );
}

/// The short spellings of other programs: Kubernetes' sizes, seconds as numbers, an address that is only a port.
#[test]
fn usual_spellings_are_understood() {
    let config = Config::from_toml(
        "[server]\nlisten = \":5000\"\n[cache]\nmax_size = \"50Gi\"\nmin_free = \"2G\"\ntag_ttl = 300\nnegative_ttl = \"3\"\n",
    )
    .unwrap();
    assert_eq!(config.server.listen[0].to_string(), "[::]:5000");
    assert_eq!(
        (config.cache.max_size, config.cache.min_free),
        (50 << 30, 2_000_000_000)
    );
    assert_eq!(config.cache.tag_ttl, std::time::Duration::from_secs(300));
    assert_eq!(config.cache.negative_ttl, std::time::Duration::from_secs(3));
    let refused = Config::from_toml("[cache]\ntag_ttl = 3153600001\n")
        .unwrap_err()
        .to_string();
    assert!(refused.contains("found 3153600001, expected"), "{refused}");
}

#[test]
fn each_impossible_value_names_line_and_key() {
    for (text, want) in [
        ("x = [", "proxy.toml:1: this is not TOML"),
        (
            "\n[cache]\nmax_size = 99999999999999999999",
            "proxy.toml:3: this is not TOML",
        ),
        (
            "[cache]\nmax_size = 5",
            ":2: cache.max_size: found 5, expected at least 1MiB",
        ),
        (
            "[cache]\nmax_size = -5",
            ":2: cache.max_size: found -5, expected a size",
        ),
        (
            "[cache]\nmax_size = 1.5",
            ":2: cache.max_size: found 1.5, expected a size",
        ),
        (
            "[cache]\ntag_ttl = 3.5",
            ":2: cache.tag_ttl: found 3.5, expected a duration",
        ),
        ("cache = 5", ":1: cache: found 5, expected a table"),
        ("[cache]\ndefault_upstream = \"dcker.io\"", "did you mean docker.io?"),
        (
            "[cache]\npath = \"~bob/x\"",
            ":2: cache.path: found \"~bob/x\", expected ~/…",
        ),
        (
            "[server]\nlisten = \"5000\"",
            "found \"5000\", expected an IP address or localhost, and a port, such as \"127.0.0.1:5000\" or \":5000\" for every \
             interface",
        ),
        ("[server]\nlisten = \"127.0.0.1\"", "expected a port too"),
        (
            "[server]\nlisten = \"example.com:80\"",
            "expected an IP address or localhost",
        ),
        ("[server]\nlisten = []", "found an empty list"),
        (
            "[server]\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
            "found \"127.0.0.1:1\" twice",
        ),
        (
            "[server]\nlisten = \"0.0.0.0:5001\"",
            ":2: server.listen: found 0.0.0.0:5001, expected another address than admin.listen, which is 127.0.0.1:5001",
        ),
        (
            "[server]\nshutdown_grace = \"2d\"",
            "found \"2d\", expected something from 0s to 1d",
        ),
        (
            "[server.tls]\ncert = \"/nonexistent/c\"",
            "cannot read /nonexistent/c: there is no such file",
        ),
        (
            "[server]\ntls = {}",
            ":2: server.tls: expected both cert and key, or acme = true",
        ),
        (
            "[limits]\nheaders = 0",
            ":2: limits.headers: found 0, expected something from 1 to 10000",
        ),
        (
            "[limits]\nheader_timeout = \"0s\"",
            "found \"0s\", expected something from 1ms to 1h",
        ),
        (
            "[limits]\nmanifest_size = \"16777217B\"",
            ":2: limits.manifest_size: found 16777217B, expected at most 16MiB",
        ),
        (
            "[limits]\nmanifest_size = 4",
            ":2: limits.manifest_size: found 4, expected at least 1KiB",
        ),
        (
            "[cache]\nnegative_ttl = \"-1s\"",
            ":2: cache.negative_ttl: found \"-1s\", expected a duration",
        ),
        (
            "[limits]\nmax_connections = 9223372036854775807",
            ":2: limits.max_connections: found 9223372036854775807, expected something from 1 to 1000000",
        ),
        (
            "[log]\nlevel = \"inof\"",
            ":2: log.level: found \"inof\", expected off, error",
        ),
        ("[log]\nformat = \"xml\"", "expected \"text\" or \"json\""),
        (
            "[upstream.ghcr.io]\nurl = \"https://x\"",
            "a name with dots needs quotes; expected [upstream.\"ghcr.io\"]",
        ),
        (
            "[upstream.\"index.docker.io\"]",
            "this is another name of docker.io; expected [upstream.\"docker.io\"]",
        ),
        ("[upstream.hub]", "this is an alias of docker.io"),
        ("[upstream.\"a/b\"]", "found \"a/b\", expected the host"),
        (
            "[upstream.\"A.io\"]\n[upstream.\"a.io\"]",
            "upper and lower case are the same host",
        ),
        (
            "[upstream]\n\"a.io\" = 5",
            ":2: upstream.\"a.io\": found 5, expected a table",
        ),
    ] {
        let message = refusal(text);
        assert!(message.contains(want), "{text}\n{message}");
    }
}

#[test]
fn each_impossible_upstream_names_line_and_key() {
    for (text, want) in [
        (
            "url = \"ftp://x\"",
            ":2: upstream.\"a.io\".url: found \"ftp://x\", expected the address of a registry",
        ),
        (
            "url = \"http://localhost:5000\"",
            "where Larder itself listens (127.0.0.1:5000)",
        ),
        (
            "mirrors = [\"http://[::1]:1\", \"http://127.0.0.1:5001/x\"]",
            ":2: upstream.\"a.io\".mirrors: found",
        ),
        ("url = \"a.io\"", "expected the address of a registry"),
        ("url = \"https://a.io/?x\"", "expected neither ? nor #"),
        ("url = \"https://a.io/v2/\"", "expected it without /v2"),
        (
            "url = \"https://a.io/v2/Proxy-Cache\"",
            "expected a name behind /v2/ that repositories lie below: \"Proxy-Cache\" is not a repository name",
        ),
        ("mirrors = [\"https://a.io/v2//x\"]", "expected a name behind /v2/"),
        ("mirrors = [\"nope\"]", ":2: upstream.\"a.io\".mirrors: found \"nope\""),
        (
            "aliases = [\"hub\"]",
            ":2: upstream.\"a.io\".aliases: found \"hub\", which means docker.io already",
        ),
        ("aliases = [\"ghcr.io\"]", "which means ghcr.io already"),
        ("aliases = [\"x\", \"x\"]", "which means a.io already"),
        ("aliases = [\"a/b\"]", "expected one word"),
        ("aliases = [\"library\"]", "Docker Hub's images begin so"),
        ("aliases = \"x\"", "found \"x\", expected a list of texts"),
        (
            "username = \"me\"",
            ":2: upstream.\"a.io\".username: expected password or password_file",
        ),
        ("password = \"x\"", ":2: upstream.\"a.io\".password: expected username"),
        ("username = \"m:e\"\npassword = \"x\"", "expected a name without colon"),
        ("password_file = \"/nonexistent/p\"", "cannot read /nonexistent/p"),
        (
            "redirect_hosts = [\"https://x\"]",
            "expected a host such as \"cdn.example\"",
        ),
        ("trusted_realms = [\"x/y\"]", "expected a host"),
        ("proxy = \"ftp://x\"", "expected a proxy such as"),
        ("ca_file = \"/nonexistent/ca\"", "cannot read /nonexistent/ca"),
        ("allow = [\"Library/*\"]", "expected repositories such as"),
        ("max_size = \"1KiB\"", "expected at least 1MiB"),
        ("max_connections = 0", "expected something from 1 to 1000000"),
        ("read_timeout = \"2h\"", "expected something from 1ms to 1h"),
        ("answer_timeout = \"0s\"", "expected something from 1ms to 1h"),
        ("tagttl = \"1h\"", "did you mean upstream.\"a.io\".tag_ttl?"),
    ] {
        let message = refusal(&format!("[upstream.\"a.io\"]\n{text}"));
        assert!(message.contains(want), "{text}\n{message}");
        assert!(!message.contains("default."), "{message}");
    }
}

#[test]
fn no_message_holds_a_secret() {
    for line in [
        "password = \"hunter2",
        "password = hunter2",
        "password = \"hunter2\"",
        "password = [\"hunter2\"]",
        "password = { hunter2 = 1 }",
        "password = \"\"\"\nhunter2\n\"\"\"",
        "username = \"me\"\npassword = \"hunter2\"\npassword_file = \"/nonexistent/p\"",
        "pasword = \"hunter2\"",
        "password = \"hunter2\"\npassword = \"hunter2\"",
        "url = \"https://me:hunter2@a.io\"",
        "url = \"https://me:hunter2@\"",
        "mirrors = [\"https://me:hunter2@a.io\"]",
        "proxy = \"ftp://me:hunter2@a.io\"",
        "proxy = [\"http://me:hunter2@a.io\"]",
        "mirrors = \"https://me:hunter2@a.io\"",
        "url = \"a.io?sig=hunter2\"",
        "url = \"https://a.io/?sig=hunter2\"",
    ] {
        let message = refusal(&format!("[upstream.\"a.io\"]\n{line}"));
        assert!(!message.contains("hunter2"), "{line}\n{message}");
    }
    let bad = env(&[
        ("LARDER_UPSTREAM__DOCKER_IO__PASSWORD", "hunter2"),
        (
            "LARDER_UPSTREAM__DOCKER_IO__MIRRORS",
            "[\"https://me:hunter2@a.io\", 5]",
        ),
    ]);
    let message = Config::load(None, &bad).unwrap_err().to_string();
    assert!(!message.contains("hunter2"), "{message}");
    let misspelt = env(&[("LARDER_UPSTREAM__DOCKER_IO__PASWORD", "hunter2")]);
    let warnings = Config::load(None, &misspelt).unwrap().warnings.concat();
    assert!(!warnings.contains("hunter2"), "{warnings}");
    assert!(
        warnings.contains("did you mean LARDER_UPSTREAM__DOCKER_IO__PASSWORD?"),
        "{warnings}"
    );

    let good = env(&[
        ("LARDER_UPSTREAM__DOCKER_IO__PASSWORD", "hunter2"),
        ("LARDER_UPSTREAM__DOCKER_IO__USERNAME", "me"),
        ("LARDER_UPSTREAM__DOCKER_IO__PROXY", "http://me:hunter2@proxy.example"),
    ]);
    let config = Config::load(None, &good).unwrap();
    let proxy = upstream(&config, "docker.io").proxy.as_ref().unwrap();
    assert_eq!(proxy.password(), Some("hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));
    let credentials = upstream(&config, "docker.io").credentials.as_ref().unwrap();
    assert!(matches!(&credentials.password, Password::Value(secret) if secret.reveal() == "hunter2"));
}

/// Others set variables with this prefix too: they are named, and keep nothing from starting.
#[test]
fn variables_that_set_no_key_are_named_and_ignored() {
    for (variable, want) in [
        ("LARDER_CACHE__MAXSIZE", "did you mean LARDER_CACHE__MAX_SIZE?"),
        ("LARDER_LOG", "did you mean LARDER_LOG__LEVEL?"),
        ("LARDER_FLAVOUR", "expected a name such as LARDER_CACHE__MAX_SIZE"),
        (
            "LARDER_UPSTREAM__OWN_EXAMPLE__URL",
            "no upstream is spelled OWN_EXAMPLE; a registry that is not built in must be named in the file first",
        ),
        (
            "LARDER_UPSTREAM__GHCR_OI__URL",
            "did you mean LARDER_UPSTREAM__GHCR_IO__URL?",
        ),
    ] {
        let config = Config::load(None, &env(&[(variable, "a-value-of-others")])).unwrap();
        let [message] = config.warnings.as_slice() else {
            panic!("{:?}", config.warnings)
        };
        assert!(message.starts_with(&format!("{variable}: ")), "{message}");
        assert!(message.contains(want) && message.contains("ignored"), "{message}");
        assert!(!message.contains("a-value-of-others"), "{message}");
        assert!(config.sources.is_empty() && config.origins.is_empty());
    }
    // Kubernetes sets the first three beside a Service; the others are Larder's own, and no keys.
    for variable in [
        "LARDER_PORT",
        "LARDER_PORT_5000_TCP",
        "LARDER_SERVICE_HOST",
        "LARDER_ADMIN_URL",
        "LARDER_ADMIN_TOKEN_FILE",
        "LARDER_BUNDLE_PASSWORD",
    ] {
        let config = Config::load(None, &env(&[(variable, "tcp://10.0.0.1:5000")])).unwrap();
        assert_eq!(config.warnings, [""; 0], "{variable}");
    }
    let twice = env(&[("LARDER_CACHE__OFFLINE", "true"), ("larder_cache__offline", "false")]);
    assert!(
        Config::load(None, &twice)
            .unwrap_err()
            .to_string()
            .contains("sets the same key")
    );
    let site = Site::new(
        "[upstream.\"a-b.io\"]\n[upstream.\"a.b.io\"]\n",
        &[("LARDER_UPSTREAM__A_B_IO__OFFLINE", "true")],
    );
    assert!(site.refusal().contains("this could mean a-b.io and a.b.io"));
}

#[test]
fn paths_start_where_they_were_written() {
    let site = Site::new("", &[("STATE_DIRECTORY", "/var/lib/larder:/var/lib/other")]);
    assert_eq!(site.load().unwrap().cache.path, Path::new("/var/lib/larder"));

    let site = Site::new("", &[]);
    let sub = site.dir.path().join("sub");
    std::fs::create_dir(&sub).unwrap();
    std::fs::write(sub.join("l.toml"), "[cache]\npath = \"data\"\n").unwrap();
    let load = |environment: &Environment| {
        Config::load(Some(Path::new("sub/l.toml")), environment)
            .unwrap()
            .cache
            .path
    };
    assert_eq!(load(&site.environment), sub.join("data"));
    let mut environment = site.environment.clone();
    environment
        .variables
        .insert("LARDER_CACHE__PATH".to_owned(), "data".to_owned());
    assert_eq!(load(&environment), site.dir.path().join("data"));
    environment
        .variables
        .insert("LARDER_CACHE__PATH".to_owned(), "~/data".to_owned());
    assert_eq!(load(&environment), Path::new("/home/someone/data"));

    let homeless = Environment { home: None, ..env(&[]) };
    let message = Config::load(None, &homeless).unwrap_err().to_string();
    assert!(message.contains("set cache.path"), "{message}");
}

#[test]
fn what_works_but_should_not_stay_so_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let text = "[admin]\nlisten = \"0.0.0.0:5001\"\n\
        [upstream.\"a.io\"]\nurl = \"http://a.io\"\nusername = \"me\"\npassword_file = \"secret\"\n\
        [upstream.\"b.io\"]\nusername = \"me\"\npassword = \"hunter2\"\n";
    let site = Site::new(text, &[]);
    let secret = site.dir.path().join("secret");
    std::fs::write(&secret, "hunter2").unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(&secret, 0o644);
    mode(&site.dir.path().join("proxy.toml"), 0o644);
    let warnings = site.load().unwrap().warnings;
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(warnings[0].starts_with("proxy.toml:2: admin.listen: 0.0.0.0:5001 is not a loopback address"));
    assert!(warnings[1].contains("upstream.\"a.io\".password_file: every user of this machine can read"));
    assert!(warnings[2].contains("goes to a.io without encryption"));
    assert!(warnings[3].starts_with("proxy.toml:9: upstream.\"b.io\".password: every user"));

    mode(&secret, 0o600);
    mode(&site.dir.path().join("proxy.toml"), 0o600);
    assert_eq!(site.load().unwrap().warnings.len(), 2);
}

#[test]
fn any_name_of_an_upstream_can_be_the_default() {
    for name in ["hub", "index.docker.io", "Docker.IO"] {
        let config = Config::from_toml(&format!("[cache]\ndefault_upstream = {name:?}")).unwrap();
        assert_eq!(config.cache.default_upstream.as_str(), "docker.io");
    }
}

#[test]
fn an_alias_may_move_once_it_is_free() {
    let text = "[upstream.\"docker.io\"]\naliases = []\n[upstream.\"own.example\"]\naliases = [\"hub\"]\n";
    let config = Config::from_toml(text).unwrap();
    assert_eq!(upstream(&config, "own.example").aliases, ["hub"]);
    assert_eq!(upstream(&config, "own.example").url.as_str(), "https://own.example/");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text: String, value in "[ -~]{0,20}", key in "[a-z_.\"\\[\\]]{0,12}") {
        let _ = Config::from_toml(&text);
        let _ = Config::from_toml(&format!("[cache]\n{key} = {value}"));
        let _ = Config::load(None, &env(&[("LARDER_SERVER__LISTEN", &value), ("LARDER_UPSTREAM__GHCR_IO__URL", &text)]));
    }
}

#[test]
fn the_operators_token() {
    let guessable = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(guessable.path(), "a\n").unwrap();
    for (text, expected) in [
        ("token = \"short\"", ":2: admin.token: expected 16 or more letters"),
        (
            "token = \"with spaces in between\"",
            ":2: admin.token: expected 16 or more letters",
        ),
        (
            "token_file = \"/nonexistent/t\"",
            "admin.token_file: cannot read /nonexistent/t",
        ),
        (
            &format!("token_file = \"{}\"", guessable.path().display()),
            "expected 16 or more letters, digits and signs, without spaces, found 1",
        ),
    ] {
        let message = Site::new(&format!("[admin]\n{text}\n"), &[])
            .load()
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains("with spaces in between"), "R-X17");
    }
    let open = "[admin]\nlisten = \"0.0.0.0:5001\"\ntoken = \"0123456789abcdef\"\n";
    let site = Site::new(open, &[]);
    let config = site.load().unwrap();
    assert!(
        config.warnings.iter().all(|w| !w.contains("admin.listen")),
        "{:?}",
        config.warnings
    );
    assert_eq!(config.admin.token.unwrap().read().unwrap().reveal(), "0123456789abcdef");
}

/// One reader for the file, for variables and for options.
#[test]
fn sizes_and_durations_are_written_alike_everywhere() {
    for (written, bytes) in [
        ("50G", 50_000_000_000),
        ("50Gi", 50 << 30),
        ("50 GB", 50_000_000_000),
        ("50g", 50_000_000_000),
        ("1.5TiB", 1536 << 30),
        ("1048576", 1 << 20),
    ] {
        let text = format!("[cache]\nmax_size = \"{written}\"\n[upstream.\"docker.io\"]\nmax_size = \"{written}\"\n");
        let in_file = Config::from_toml(&text).unwrap();
        let variables = [
            ("LARDER_CACHE__MAX_SIZE", written),
            ("LARDER_UPSTREAM__DOCKER_IO__MAX_SIZE", written),
        ];
        let by_variable = Config::load(None, &env(&variables)).unwrap();
        for config in [&in_file, &by_variable] {
            let hub = config
                .upstreams
                .iter()
                .find(|upstream| upstream.name.as_str() == "docker.io");
            assert_eq!(hub.unwrap().max_size, Some(bytes), "{written}");
            assert_eq!(config.cache.max_size, bytes, "{written}");
        }
        let option = GivenOption::text("--max-size", ["cache", "max_size"], written);
        let by_option = Config::load_with(None, &env(&[]), &[option]).unwrap();
        assert_eq!(by_option.cache.max_size, bytes, "{written}");
    }
    let number = Config::from_toml("cache.max_size = 1048576\ncache.tag_ttl = 90\naccess.token_ttl = 60\n").unwrap();
    assert_eq!((number.cache.max_size, number.cache.tag_ttl.as_secs()), (1 << 20, 90));
    assert_eq!(number.access.token_ttl.as_secs(), 60);
    for (written, seconds) in [("90", 90), ("1h30m", 5400), ("1h 30m", 5400), ("5 m", 300)] {
        let in_file = Config::from_toml(&format!("cache.tag_ttl = \"{written}\"")).unwrap();
        let by_variable = Config::load(None, &env(&[("LARDER_CACHE__TAG_TTL", written)])).unwrap();
        for config in [in_file, by_variable] {
            assert_eq!(config.cache.tag_ttl.as_secs(), seconds, "{written}");
        }
    }
}

/// Each key that takes a size or a duration takes numbers too, and says of anything else what it wants.
#[test]
fn every_size_and_duration_is_read_by_the_same_readers() {
    let leaves = keys::leaves(&|table| {
        let name = match table.last().map(String::as_str) {
            Some("upstream") => "docker.io",
            _ => "ci",
        };
        vec![name.to_owned()]
    });
    let mut count = 0;
    for (path, kind) in leaves {
        if !matches!(kind, keys::Kind::Size | keys::Kind::Duration) {
            continue;
        }
        count += 1;
        let key = show_key(&path);
        let around = "audit.file = \"/a\"\nwebhook.ci.url = \"https://h.example\"\n";
        let refusal = |value: &str| match Config::from_toml(&format!("{around}{key} = {value}\n")) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        for wrong in ["\"x\"", "1.5", "-1", "true"] {
            let refused = refusal(wrong);
            let want = format!("{key}: found {wrong}, expected {}", kind.expected());
            assert!(refused.contains(&want), "{want}\n{refused}");
        }
        // Out of range it may be, a wrong type it is not.
        let refused = refusal("7");
        assert!(!refused.contains(kind.expected()), "{key}: {refused}");
    }
    assert!(count > 20, "{count}");
}
