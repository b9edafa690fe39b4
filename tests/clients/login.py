"""The case `login`: content that needs credentials upstream, pulled by clients that
log in to Larder, each in its own way; and refused to those that do not.

The upstream is the same content behind a password that only Larder has.
"""

import base64
import subprocess

from clients import Containerd, Dockerd, Podman, Skopeo, same
from registry import CONFIG as REGISTRY
from work import Failed, answers, await_true, free_port, request

USER, PASSWORD = "alice", "wonder: land"
AUTH = """\
auth:
  htpasswd:
    realm: upstream
    path: {path}
"""
LARDER = """\
[server]
listen = "127.0.0.1:{port}"

[admin]
listen = "127.0.0.1:{admin}"

[cache]
path = "{cache}"
max_size = "10GiB"

[upstream."docker.io"]
url = "http://127.0.0.1:{upstream}"
username = "larder"
password = "only larder has it"

[listener.dockerd]
listen = "127.0.0.1:{mirror}"

[access]
htpasswd_file = "{users}"

[[access.rule]]
listeners = "dockerd"
from = "127.0.0.0/8"
may = "fetch"
private = true

[[access.rule]]
who = "alice"
may = "fetch"
private = true

[[access.rule]]
may = "fetch"
"""


def refused(what, run):
    """Runs what has to fail; returns what it said."""
    try:
        run()
    except Failed as failure:
        return str(failure)
    raise Failed(f"{what}: it was let in")


class DockerLogin(Dockerd):
    label = "login-dockerd"

    def start(self):
        super().start()
        self.home = self.folder / "docker-home"
        self.home.mkdir()

    def docker(self, *words):
        return self.run("docker", "--config", self.folder / "docker-home", "--host", f"unix://{self.socket}", *words)

    def image(self, truth):
        return f"127.0.0.1:{self.port}/docker.io/library/{truth.name}:{truth.tag}"

    def log_in(self, password):
        self.docker("login", "--username", USER, "--password", password, f"127.0.0.1:{self.port}")

    def pull(self, truth):
        self.docker("pull", self.image(truth))
        found = self.docker("image", "inspect", "--format", "{{.Id}}", self.image(truth)).strip()
        same(f"{truth.name}: image id", found, truth.config)


class DockerMirror(Dockerd):
    """A daemon with a login at the Hub, and a listener of its own at Larder."""
    label = "login-mirror"

    def start(self):
        super().start()
        home = self.folder / "docker-home"
        home.mkdir()
        auth = base64.b64encode(b"somebody:hub password").decode()
        (home / "config.json").write_text('{"auths": {"https://index.docker.io/v1/": {"auth": "%s"}}}' % auth)

    def docker(self, *words):
        return self.run("docker", "--config", self.folder / "docker-home", "--host", f"unix://{self.socket}", *words)


class PodmanLogin(Podman):
    label = "login-podman"

    def pull_options(self):
        return ["--tls-verify=false", "--authfile", self.folder / "auth.json"]

    def log_in(self, password):
        self.podman("login", "--tls-verify=false", "--authfile", self.folder / "auth.json",
                    "--username", USER, "--password", password, f"127.0.0.1:{self.port}")

    def start(self):
        super().start()
        (self.folder / "auth.json").write_text("{}")


class SkopeoCreds(Skopeo):
    label = "login-skopeo"
    credentials = ()

    def skopeo(self, *words):
        command, *rest = words
        flags = ["--creds" if command == "inspect" else "--src-creds", *self.credentials] if self.credentials else []
        return super().skopeo(command, *flags, *rest)


class ContainerdHeader(Containerd):
    """hosts.toml can set a header and nothing else (R-C23)."""
    label = "login-containerd"
    header = True

    def start(self):
        super().start()
        if self.header:
            basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            hosts = self.folder / "hosts" / self.registry / "hosts.toml"
            with open(hosts, "a") as file:
                file.write(f'  [host."http://127.0.0.1:{self.port}".header]\n    Authorization = "Basic {basic}"\n')


class Locked:
    """The upstream behind a password, and Larder with users of its own in front."""

    def __init__(self, bench):
        self.bench, self.work, self.larder = bench, bench.work, bench.larder
        self.port, self.mirror = free_port(), free_port()
        self.upstream = None

    def line(self, user, password):
        return subprocess.run([self.larder.path, "auth", "hash", user], input=password + "\n", text=True,
                              capture_output=True, check=True).stdout

    def start(self):
        folder = self.work.make("locked")
        (folder / "upstream.htpasswd").write_text(self.line("larder", "only larder has it"))
        (folder / "larder.htpasswd").write_text(self.line(USER, PASSWORD))
        config = folder / "upstream.yml"
        config.write_text(REGISTRY.format(root=self.work.folder / "upstream", port=self.port) +
                          AUTH.format(path=folder / "upstream.htpasswd"))
        self.upstream = self.work.start("locked-upstream", ["docker-registry", "serve", config])
        self.upstream.await_ready(lambda: status(self.port, "/v2/") == 401)
        larder = self.larder
        larder.stop()
        larder.name = "larder-login"
        self.work.empty(larder.cache)
        larder.config.write_text(LARDER.format(port=larder.port, admin=larder.admin, cache=larder.cache,
                                               upstream=self.port, mirror=self.mirror,
                                               users=folder / "larder.htpasswd"))
        larder._start()
        await_true("the listener of the daemon", lambda: answers(self.mirror, "/v2/"), 10)

    def stop(self):
        self.larder.stop()
        if self.upstream:
            self.upstream.stop()
            self.upstream = None


def status(port, path):
    try:
        return request(port, path, seconds=2).status
    except OSError:
        return None


def login(bench):
    locked, truth = Locked(bench), bench.truth["forty"]
    clients = []

    def client(kind, name="", port=None):
        made = kind(bench.work, bench.larder, name)
        made.port = port or made.port
        clients.append(made)
        made.fresh()
        return made

    try:
        locked.start()
        same("/v2/ without a login", status(bench.larder.port, "/v2/"), 401)
        with bench.reported("login, skopeo"):
            skopeo = client(SkopeoCreds)
            said = refused("skopeo without a login", lambda: skopeo.pull(truth))
            skopeo.credentials = (f"{USER}:wrong",)
            refused("skopeo with a wrong password", lambda: skopeo.pull(truth))
            skopeo.fresh()
            skopeo.credentials = (f"{USER}:{PASSWORD}",)
            skopeo.pull(truth)
            bench.ok("login, skopeo", f"--creds; without: {last_line(said)}")
        with bench.reported("login, podman"):
            podman = client(PodmanLogin)
            said = refused("podman without a login", lambda: podman.pull(truth))
            refused("podman login with a wrong password", lambda: podman.log_in("wrong"))
            podman.log_in(PASSWORD)
            podman.pull(truth)
            bench.ok("login, podman", f"podman login, podman pull; without: {last_line(said)}")
        with bench.reported("login, docker"):
            docker = client(DockerLogin)
            said = refused("docker without a login", lambda: docker.pull(truth))
            refused("docker login with a wrong password", lambda: docker.log_in("wrong"))
            docker.log_in(PASSWORD)
            docker.pull(truth)
            bench.ok("login, docker", f"docker login, docker pull; without: {last_line(said)}")
        with bench.reported("login, containerd"):
            plain = client(ContainerdHeader, "login-ctr-plain")
            plain.stop()
            plain.header = False
            plain.fresh()
            said = refused("containerd without a header", lambda: plain.pull(truth))
            plain.stop()
            client(ContainerdHeader).pull(truth)
            bench.ok("login, containerd", f"hosts.toml with a header; without: {last_line(said)}")
        with bench.reported("login, mirror"):
            client(DockerMirror, port=locked.mirror).pull(truth)
            bench.ok("login, mirror", "a daemon with the Hub's login pulls from the listener that is for it")
        log = bench.larder.log.read_text(errors="replace")
        for secret in (PASSWORD, "hub password", base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()):
            if secret in log:
                raise Failed("a password is in Larder's log")
        if f"user={USER}" not in log and f'user="{USER}"' not in log:
            raise Failed("the access log does not say who it was")
    finally:
        for thing in (*clients, locked):
            try:
                thing.stop()
            except Failed as failure:
                bench.fail("stopping", failure)


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:160] if lines else "nothing said"
