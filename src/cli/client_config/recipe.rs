//! What each client's files hold.
//!
//! The wire forms are those of protocol 0.1: Docker and containerd put a path before `/v2/` or name the upstream
//! by `?ns=`; the containers tools and BuildKit put a prefix after it.

use std::fmt::Write as _;

use super::Client;

/// The first line of every file that can have a comment, by which it is recognised again.
pub const MARK: &str = "# Written by larder client-config";
const MARK_LINE: &str =
    "# Written by larder client-config; --write writes it again, --write with --remove takes it away.\n";

/// How this proxy is reached, and what it stands for.
pub struct Proxy<'a> {
    pub scheme: &'static str,
    pub address: String,
    /// Name, and the registry's own address for clients that fall back to it.
    pub upstreams: Vec<(&'a str, String)>,
    /// Aliases of upstreams whose names have a port, and so cannot stand in a path: upstream, alias.
    pub aliases: Vec<(&'a str, &'a str)>,
    /// The upstream that names without a registry stand for.
    pub default_upstream: &'a str,
    pub no_fallback: bool,
    /// Whether there are users that can log in to it.
    pub has_logins: bool,
}

/// One file.
pub struct File {
    /// Where the client looks for it, and what to do then; for people.
    pub place: String,
    /// Below the folder that holds this client's files.
    pub relative: String,
    pub text: String,
}

/// Files, and what people should know beside them: sentences, and lines to copy. The files are data, and nothing but data.
pub struct Recipe {
    pub files: Vec<File>,
    pub notes: Vec<String>,
}

/// Everything for one client.
pub fn of(client: Client, proxy: &Proxy<'_>) -> Recipe {
    let mut recipe = match client {
        Client::Docker => docker(proxy),
        Client::Containerd => containerd(proxy),
        Client::Podman | Client::CriO => podman(proxy, client),
        Client::K3s => k3s(proxy),
        Client::Buildkit => buildkit(proxy),
    };
    if proxy.has_logins {
        recipe.notes.extend(login(proxy, client).lines().map(str::to_owned));
    }
    recipe
}

/// How the client logs in: passwords belong into none of these files that can do without.
fn login(proxy: &Proxy<'_>, client: Client) -> String {
    let Proxy { scheme, address, .. } = proxy;
    let insecure = if *scheme == "http" { " --tls-verify=false" } else { "" };
    match client {
        Client::Docker => format!(
            "to log in, for images with the address before their name: docker login {address}\n\
             this login is never used for registry-mirrors: there Docker sends the login of Docker Hub, or none; \
             give daemons a [listener.NAME] of this proxy, and a rule for it\n"
        ),
        Client::Containerd => format!(
            "to log in, add below each [host.\"{scheme}://{address}\"], with the output of printf USER:PASSWORD | base64 -w0:\n\
             \x20 [host.\"{scheme}://{address}\".header]\n\
             \x20   Authorization = \"Basic …\"\n"
        ),
        Client::Podman => format!("to log in: podman login{insecure} {address}\n"),
        Client::CriO => format!(
            "to log in, write the file that global_auth_file of crio.conf names: \
             podman login{insecure} --authfile /etc/crio/auth.json {address}\n"
        ),
        Client::K3s => format!(
            "to log in, add:\n\
             \x20 configs:\n\
             \x20   \"{address}\":\n\
             \x20     auth:\n\
             \x20       username: USER\n\
             \x20       password: PASSWORD\n"
        ),
        Client::Buildkit => format!("to log in, where builds are started: docker login {address}\n"),
    }
}

fn docker(proxy: &Proxy<'_>) -> Recipe {
    let Proxy { scheme, address, .. } = proxy;
    // Docker does not say which registry it means.
    let path = match proxy.default_upstream {
        "docker.io" => "",
        _ => "/docker.io",
    };
    let file = File {
        place: "/etc/docker/daemon.json, then: systemctl restart docker".to_owned(),
        relative: "daemon.json".to_owned(),
        // JSON has no comments, so no mark either.
        text: format!("{{\n  \"registry-mirrors\": [\"{scheme}://{address}{path}\"]\n}}\n"),
    };
    let other = proxy
        .upstreams
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| *name != "docker.io" && !name.contains(':'))
        .min_by_key(|name| *name != "ghcr.io")
        .unwrap_or("REGISTRY");
    let mut notes = vec![
        "Docker uses mirrors for Docker Hub only, and logs in to none of them: this proxy has to let it pull"
            .to_owned(),
        format!("for other registries put the address before the name: docker pull {address}/{other}/owner/image:tag"),
    ];
    if *scheme == "http" {
        notes.push(format!(
            "over plain HTTP and not on loopback, that also needs in daemon.json: \"insecure-registries\": [\"{address}\"]"
        ));
    }
    if proxy.no_fallback {
        notes.push("Docker always falls back to Docker Hub; only a firewall closes that way".to_owned());
    }
    Recipe {
        files: vec![file],
        notes,
    }
}

fn containerd(proxy: &Proxy<'_>) -> Recipe {
    let Proxy { scheme, address, .. } = proxy;
    let file = |(name, server): &(&str, String)| {
        let server = match proxy.no_fallback {
            true => format!("{scheme}://{address}"),
            false => server.clone(),
        };
        File {
            place: format!("/etc/containerd/certs.d/{name}/hosts.toml"),
            relative: format!("{name}/hosts.toml"),
            text: format!(
                "{MARK_LINE}server = \"{server}\"\n[host.\"{scheme}://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n"
            ),
        }
    };
    let config_path = "containerd's own configuration must have, in the section of the registry: config_path = \"/etc/containerd/certs.d\"";
    Recipe {
        files: proxy.upstreams.iter().map(file).collect(),
        notes: vec![config_path.to_owned()],
    }
}

fn podman(proxy: &Proxy<'_>, client: Client) -> Recipe {
    let place = "/etc/containers/registries.conf.d/larder.conf".to_owned();
    let place = match client {
        Client::CriO => place + ", then: systemctl reload crio",
        _ => place,
    };
    let insecure = if proxy.scheme == "http" {
        "insecure = true\n"
    } else {
        ""
    };
    let (mut text, mut notes) = (MARK_LINE.to_owned(), Vec::new());
    for (name, _) in &proxy.upstreams {
        let alias = proxy.aliases.iter().find(|(of, _)| of == name).map(|(_, alias)| *alias);
        let here = match (name.contains(':'), alias) {
            (false, _) => prefixed(proxy, name),
            (true, Some(alias)) => format!("{}/{alias}", proxy.address),
            // By the address alone it would get images of the default upstream: it sends no `?ns=`.
            (true, None) => {
                notes.push(format!(
                    "{name} is left out: a path cannot name a host with a port; give it an alias in proxy.toml (aliases = [\"NAME\"])"
                ));
                continue;
            }
        };
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
    one(place, "larder.conf", text, notes)
}

fn k3s(proxy: &Proxy<'_>) -> Recipe {
    let Proxy { scheme, address, .. } = proxy;
    let mut text = format!("{MARK_LINE}mirrors:\n");
    for (name, _) in &proxy.upstreams {
        let _ = write!(text, "  \"{name}\":\n    endpoint: [\"{scheme}://{address}\"]\n");
    }
    let closed = "start k3s with --disable-default-registry-endpoint";
    let notes = proxy.no_fallback.then(|| closed.to_owned()).into_iter().collect();
    let place = "/etc/rancher/k3s/registries.yaml (rke2: /etc/rancher/rke2/registries.yaml), then restart it";
    one(place.to_owned(), "registries.yaml", text, notes)
}

fn buildkit(proxy: &Proxy<'_>) -> Recipe {
    let Proxy { scheme, address, .. } = proxy;
    let mut text = MARK_LINE.to_owned();
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
    let closed = "BuildKit always falls back to the registry itself; only a firewall closes that way";
    let notes = proxy.no_fallback.then(|| closed.to_owned()).into_iter().collect();
    let place = "buildkitd.toml: docker buildx create --config buildkitd.toml --use";
    one(place.to_owned(), "buildkitd.toml", text, notes)
}

/// The registries of a file that Larder wrote for a client that has one file for all of them.
pub fn registries_in(client: Client, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let name = match client {
            Client::Docker | Client::Containerd => None,
            Client::Podman | Client::CriO => line.strip_prefix("prefix = \"").and_then(|rest| rest.strip_suffix('"')),
            Client::K3s => line.strip_prefix("  \"").and_then(|rest| rest.strip_suffix("\":")),
            // The section of the proxy itself has no mirrors.
            Client::Buildkit => line
                .strip_prefix("[registry.\"")
                .and_then(|rest| rest.strip_suffix("\"]"))
                .filter(|_| {
                    lines
                        .peek()
                        .is_some_and(|next| next.trim_start().starts_with("mirrors"))
                }),
        };
        found.extend(name.map(str::to_owned));
    }
    found
}

fn one(place: String, relative: &str, text: String, notes: Vec<String>) -> Recipe {
    let file = File {
        place,
        relative: relative.to_owned(),
        text,
    };
    Recipe {
        files: vec![file],
        notes,
    }
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
    use clap::ValueEnum as _;

    fn proxy(no_fallback: bool) -> Proxy<'static> {
        Proxy {
            scheme: "http",
            address: "larder.example:5000".to_owned(),
            upstreams: vec![
                ("docker.io", "https://registry-1.docker.io".to_owned()),
                ("ghcr.io", "https://ghcr.io".to_owned()),
            ],
            aliases: Vec::new(),
            default_upstream: "docker.io",
            no_fallback,
            has_logins: true,
        }
    }

    fn table(recipe: &Recipe) -> toml::Table {
        recipe.files[0].text.parse().unwrap()
    }

    /// What can be parsed is parsed by the parser of its kind.
    #[test]
    fn the_files_are_well_formed() {
        for closed in [false, true] {
            let proxy = proxy(closed);
            for client in [Client::Podman, Client::CriO, Client::Buildkit] {
                table(&of(client, &proxy));
            }
            for file in &containerd(&proxy).files {
                let table: toml::Table = file.text.parse().unwrap();
                let host = table["host"]["http://larder.example:5000"].as_table().unwrap();
                assert_eq!(host["capabilities"].as_array().unwrap().len(), 2);
                assert_eq!(
                    table["server"].as_str().unwrap() == "http://larder.example:5000",
                    closed
                );
            }
            let json: serde_json::Value = serde_json::from_str(&docker(&proxy).files[0].text).unwrap();
            assert_eq!(json["registry-mirrors"][0], "http://larder.example:5000");
        }
        let open = table(&podman(&proxy(false), Client::Podman));
        assert_eq!(
            open["registry"][1]["mirror"][0]["location"].as_str(),
            Some("larder.example:5000/ghcr.io")
        );
        assert_eq!(open["registry"][1]["location"].as_str(), Some("ghcr.io"));
        let closed = table(&podman(&proxy(true), Client::Podman));
        assert_eq!(
            closed["registry"][1]["location"].as_str(),
            Some("larder.example:5000/ghcr.io")
        );
    }

    /// podman never says which registry it means: by the address alone it would get images of the default upstream.
    #[test]
    fn a_registry_with_a_port_is_named_by_its_alias_or_left_out() {
        let mut proxy = proxy(false);
        proxy
            .upstreams
            .push(("r.example:8443", "https://r.example:8443".to_owned()));
        let recipe = of(Client::Podman, &proxy);
        assert!(
            !recipe.files[0].text.contains("r.example:8443"),
            "{}",
            recipe.files[0].text
        );
        assert!(
            recipe.notes[0].starts_with("r.example:8443 is left out"),
            "{:?}",
            recipe.notes
        );
        proxy.aliases.push(("r.example:8443", "r"));
        let registries = table(&of(Client::Podman, &proxy));
        let last = registries["registry"].as_array().unwrap().last().unwrap();
        assert_eq!(last["prefix"].as_str(), Some("r.example:8443"));
        assert_eq!(last["mirror"][0]["location"].as_str(), Some("larder.example:5000/r"));
    }

    #[test]
    fn docker_names_docker_hub_where_that_is_not_the_default() {
        let mut proxy = proxy(false);
        proxy.default_upstream = "ghcr.io";
        let json: serde_json::Value = serde_json::from_str(&docker(&proxy).files[0].text).unwrap();
        assert_eq!(json["registry-mirrors"][0], "http://larder.example:5000/docker.io");
    }

    /// A printed file is known again as one that `--write` would have written.
    #[test]
    fn every_file_but_json_is_marked() {
        for client in Client::value_variants() {
            for file in of(*client, &proxy(false)).files {
                assert_eq!(file.text.starts_with(MARK), *client != Client::Docker, "{client:?}");
            }
        }
    }

    #[test]
    fn the_registries_of_a_file_are_known_again() {
        let proxy = proxy(false);
        for client in [Client::Podman, Client::CriO, Client::K3s, Client::Buildkit] {
            let found = registries_in(client, &of(client, &proxy).files[0].text);
            assert_eq!(found, ["docker.io", "ghcr.io"], "{client:?}");
        }
    }

    #[test]
    fn every_client_is_told_how_to_log_in() {
        for client in Client::value_variants() {
            let text = login(&proxy(false), *client);
            assert!(text.contains("larder.example:5000"), "{text}");
            let notes = of(*client, &proxy(false)).notes.join("\n");
            assert!(notes.ends_with(text.trim_end()), "{notes}");
        }
    }
}
