//! `larder client-config`: prints what to write where, so that a client pulls through this proxy.
//!
//! Made from this proxy's own configuration: its address, whether it speaks TLS, and every upstream that it knows.
//! The wire forms are those of protocol 0.1: Docker and containerd put a path before `/v2/` or name the upstream
//! by `?ns=`; the containers tools and BuildKit put a prefix after it.

use std::fmt::Write as _;

use clap::ValueEnum;

use super::{Exit, complain, print, refuse};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
pub struct Args {
    /// Which client's configuration
    client: Client,
    /// How clients reach this proxy, when that is not the address it listens on
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Leave the client no way around this proxy: what it refuses is refused
    #[arg(long)]
    no_fallback: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    Docker,
    Containerd,
    Podman,
    #[value(name = "cri-o")]
    CriO,
    K3s,
    Buildkit,
}

/// How this proxy is reached, and what it stands for.
struct Proxy<'a> {
    scheme: &'static str,
    address: String,
    upstreams: Vec<(&'a str, String)>,
    no_fallback: bool,
    /// Whether there are users that can log in to it.
    has_logins: bool,
}

pub fn run(args: &Args, config: Result<Config, ConfigError>) -> Exit {
    let config = match config {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let Some(address) = args.address.clone().or_else(|| own_address(&config)) else {
        complain(
            "this proxy listens on every address of its machine, so it cannot know by which name clients reach it: \
             say --address HOST:PORT",
        );
        return Exit::Usage;
    };
    if !is_address(&address) {
        complain(&format!(
            "--address {address:?} is no HOST:PORT, such as larder.example:5000"
        ));
        return Exit::Usage;
    }
    let proxy = Proxy {
        scheme: if config.server.tls.is_some() { "https" } else { "http" },
        address,
        upstreams: config
            .upstreams
            .iter()
            .map(|u| (u.name.as_str(), server_of(u.name.as_str(), &u.url)))
            .collect(),
        no_fallback: args.no_fallback,
        has_logins: config.access.htpasswd_file.is_some() || !config.access.issuers.is_empty(),
    };
    let text = match args.client {
        Client::Docker => docker(&proxy),
        Client::Containerd => containerd(&proxy),
        Client::Podman | Client::CriO => podman(&proxy, args.client),
        Client::K3s => k3s(&proxy),
        Client::Buildkit => buildkit(&proxy),
    };
    print(&match proxy.has_logins {
        true => text + &login(&proxy, args.client),
        false => text,
    })
}

/// How the client logs in, as comments: passwords belong into none of these files that can do without.
fn login(proxy: &Proxy<'_>, client: Client) -> String {
    let Proxy { scheme, address, .. } = proxy;
    let insecure = if *scheme == "http" { " --tls-verify=false" } else { "" };
    match client {
        Client::Docker => format!(
            "\n# To log in, for images with the address before their name:\n#   docker login {address}\n\
             # Never used for registry-mirrors: there Docker sends the login of Docker Hub, or none.\n\
             # Give daemons a [listener.NAME] of this proxy, and a rule for it.\n"
        ),
        Client::Containerd => format!(
            "\n# To log in, below each [host.\"{scheme}://{address}\"], with the output of: printf USER:PASSWORD | base64 -w0\n\
             #   [host.\"{scheme}://{address}\".header]\n#     Authorization = \"Basic …\"\n"
        ),
        Client::Podman => format!("\n# To log in:\n#   podman login{insecure} {address}\n"),
        Client::CriO => format!(
            "\n# To log in, write the file that global_auth_file of crio.conf names:\n#   podman login{insecure} --authfile /etc/crio/auth.json {address}\n"
        ),
        Client::K3s => format!(
            "# To log in:\n#configs:\n#  \"{address}\":\n#    auth:\n#      username: USER\n#      password: PASSWORD\n"
        ),
        Client::Buildkit => format!("# To log in, where builds are started:\n#   docker login {address}\n"),
    }
}

/// The first address that is somebody's in particular.
fn own_address(config: &Config) -> Option<String> {
    config
        .server
        .listen
        .iter()
        .find(|a| !a.ip().is_unspecified())
        .map(ToString::to_string)
}

/// What goes between quotes and slashes of other programs' files.
fn is_address(text: &str) -> bool {
    text.parse::<crate::oci::HostPort>().is_ok()
}

/// The registry's own address, for clients that fall back to it.
fn server_of(name: &str, url: &url::Url) -> String {
    // An upstream behind a path or on another name is this proxy's business; clients know the registry by its own.
    if name == "docker.io" {
        "https://registry-1.docker.io".to_owned()
    } else {
        origin(url, name)
    }
}

fn origin(url: &url::Url, name: &str) -> String {
    if url.host_str() == Some(name) {
        url.origin().ascii_serialization()
    } else {
        format!("https://{name}")
    }
}

fn docker(proxy: &Proxy<'_>) -> String {
    let Proxy { scheme, address, .. } = proxy;
    let mut text = format!(
        "# /etc/docker/daemon.json, then: systemctl restart docker\n{{\n  \"registry-mirrors\": [\"{scheme}://{address}\"]\n}}\n"
    );
    text +=
        "\n# Docker uses mirrors for Docker Hub only, and logs in to none of them: this proxy has to let it pull.\n";
    text += "# For other registries put the address before the name:\n";
    let other = proxy
        .upstreams
        .iter()
        .map(|(name, _)| *name)
        .find(|name| *name == "ghcr.io")
        .unwrap_or("docker.io");
    let _ = writeln!(text, "#   docker pull {address}/{other}/owner/image:tag");
    if *scheme == "http" {
        let _ = writeln!(
            text,
            "# which, over plain HTTP and not on loopback, also needs in daemon.json\n#   \"insecure-registries\": [\"{address}\"]"
        );
    }
    if proxy.no_fallback {
        text += "# Docker always falls back to Docker Hub; only a firewall closes that way.\n";
    }
    text
}

fn containerd(proxy: &Proxy<'_>) -> String {
    let Proxy { scheme, address, .. } = proxy;
    let mut text = "# containerd's own configuration must have, in the section of the registry:\n#   config_path = \"/etc/containerd/certs.d\"\n".to_owned();
    for (name, server) in &proxy.upstreams {
        let server = if proxy.no_fallback {
            format!("{scheme}://{address}")
        } else {
            server.clone()
        };
        let _ = write!(
            text,
            "\n# /etc/containerd/certs.d/{name}/hosts.toml\nserver = \"{server}\"\n[host.\"{scheme}://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n"
        );
    }
    text
}

fn podman(proxy: &Proxy<'_>, client: Client) -> String {
    let mut text = "# /etc/containers/registries.conf.d/larder.conf\n".to_owned();
    if client == Client::CriO {
        text = "# /etc/containers/registries.conf.d/larder.conf, then: systemctl reload crio\n".to_owned();
    }
    let insecure = if proxy.scheme == "http" {
        "insecure = true\n"
    } else {
        ""
    };
    for (name, _) in &proxy.upstreams {
        let here = prefixed(proxy, name);
        let _ = match proxy.no_fallback {
            true => write!(
                text,
                "\n[[registry]]\nprefix = \"{name}\"\nlocation = \"{here}\"\n{insecure}"
            ),
            false => write!(
                text,
                "\n[[registry]]\nprefix = \"{name}\"\nlocation = \"{name}\"\n[[registry.mirror]]\nlocation = \"{here}\"\n{insecure}"
            ),
        };
    }
    text
}

fn k3s(proxy: &Proxy<'_>) -> String {
    let Proxy { scheme, address, .. } = proxy;
    let mut text =
        "# /etc/rancher/k3s/registries.yaml (rke2: /etc/rancher/rke2/registries.yaml), then restart it\nmirrors:\n"
            .to_owned();
    for (name, _) in &proxy.upstreams {
        let _ = write!(text, "  \"{name}\":\n    endpoint: [\"{scheme}://{address}\"]\n");
    }
    if proxy.no_fallback {
        text += "# and start k3s with --disable-default-registry-endpoint\n";
    }
    text
}

fn buildkit(proxy: &Proxy<'_>) -> String {
    let Proxy { scheme, address, .. } = proxy;
    let mut text = "# buildkitd.toml: docker buildx create --config buildkitd.toml --use\n".to_owned();
    for (name, _) in &proxy.upstreams {
        let _ = write!(
            text,
            "[registry.\"{name}\"]\n  mirrors = [\"{}\"]\n",
            prefixed(proxy, name)
        );
    }
    if *scheme == "http" {
        let _ = write!(text, "[registry.\"{address}\"]\n  http = true\n");
    }
    if proxy.no_fallback {
        text += "# BuildKit always falls back to the registry itself; only a firewall closes that way.\n";
    }
    text
}

/// Address and upstream. A host with a port is no component of a repository's name (R-S4): there `?ns=`, which
/// BuildKit and containerd send, has to do alone.
fn prefixed(proxy: &Proxy<'_>, name: &str) -> String {
    if name.contains(':') {
        proxy.address.clone()
    } else {
        format!("{}/{name}", proxy.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(no_fallback: bool) -> Proxy<'static> {
        Proxy {
            scheme: "http",
            address: "larder.example:5000".to_owned(),
            upstreams: vec![
                ("docker.io", "https://registry-1.docker.io".to_owned()),
                ("ghcr.io", "https://ghcr.io".to_owned()),
            ],
            no_fallback,
            has_logins: true,
        }
    }

    /// What can be parsed is parsed by the parser of its kind.
    #[test]
    fn the_files_are_well_formed() {
        for closed in [false, true] {
            let proxy = proxy(closed);
            for text in [podman(&proxy, Client::Podman), buildkit(&proxy)] {
                text.parse::<toml::Table>().unwrap();
            }
            for file in containerd(&proxy).split("\n# /etc/containerd/certs.d/").skip(1) {
                let table: toml::Table = file.split_once('\n').unwrap().1.parse().unwrap();
                let host = table["host"]["http://larder.example:5000"].as_table().unwrap();
                assert_eq!(host["capabilities"].as_array().unwrap().len(), 2);
                assert_eq!(
                    table["server"].as_str().unwrap() == "http://larder.example:5000",
                    closed
                );
            }
            let docker = docker(&proxy);
            let json: String = docker.lines().filter(|line| !line.starts_with('#')).collect();
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(json["registry-mirrors"][0], "http://larder.example:5000");
        }
        let open: toml::Table = podman(&proxy(false), Client::Podman).parse().unwrap();
        assert_eq!(
            open["registry"][1]["mirror"][0]["location"].as_str(),
            Some("larder.example:5000/ghcr.io")
        );
        assert_eq!(open["registry"][1]["location"].as_str(), Some("ghcr.io"));
        let closed: toml::Table = podman(&proxy(true), Client::Podman).parse().unwrap();
        assert_eq!(
            closed["registry"][1]["location"].as_str(),
            Some("larder.example:5000/ghcr.io")
        );
    }

    #[test]
    fn every_client_is_told_how_to_log_in() {
        for client in Client::value_variants() {
            let text = login(&proxy(false), *client);
            assert!(text.contains("larder.example:5000"), "{text}");
            assert!(
                text.lines().all(|line| line.is_empty() || line.starts_with('#')),
                "{text}"
            );
        }
    }

    #[test]
    fn addresses_are_checked() {
        assert!(is_address("larder.example:5000") && is_address("[::1]:5000"));
        assert!(!is_address("http://x") && !is_address("a\"b"));
    }
}
