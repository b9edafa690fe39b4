"""The cases `nginx` and `haproxy`: Larder behind a reverse proxy, as deploy/nginx.conf has it and as a load balancer
that speaks the PROXY protocol does.

Everything needs a login, but for clients at 127.0.0.77, who may have nothing at all. The proxies come from 127.0.0.1,
which is trusted; so curl asks from other addresses of the loopback network where its own is the point.
"""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urljoin

from clients import Containerd, Podman, Skopeo, same
from larder import ROOT
from login import PASSWORD, USER, DockerLogin, Locked, refused
from work import Failed, await_true, free_port, request

LARDER = """\
[server]
listen = "127.0.0.1:{port}"
trusted_proxies = ["127.0.0.1"]

[admin]
listen = "127.0.0.1:{admin}"

[cache]
path = "{cache}"
max_size = "10GiB"

[upstream."docker.io"]
url = "http://127.0.0.1:{upstream}"

[access]
htpasswd_file = "{users}"

[[access.rule]]
from = "127.0.0.77"
may = "nothing"

[[access.rule]]
who = "alice"
may = "fetch"
private = true
"""
NGINX = """\
daemon off;
user root;
worker_processes 2;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/buffered;
    fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u;
    scgi_temp_path {folder}/s;
    include {folder}/larder.conf;
}}
"""
HAPROXY = """\
global
    log stderr local0 notice
defaults
    mode tcp
    timeout connect 5s
    timeout client 10m
    timeout server 10m
frontend clients
    bind 127.0.0.1:{front}
    default_backend larder
backend larder
    server larder 127.0.0.1:{port} send-proxy-v2 check inter 500
"""


class Front:
    """A proxy, and Larder behind it."""

    def __init__(self, bench, name):
        self.bench, self.work, self.larder = bench, bench.work, bench.larder
        self.name, self.port, self.folder = name, free_port(), bench.work.make(name)
        self.cert, self.key = self.folder / "front.crt", self.folder / "front.key"
        self.process = None

    def start(self):
        larder = self.larder
        larder.stop()
        larder.name = f"larder-{self.name}"
        self.work.empty(larder.cache)
        users = self.folder / "users"
        users.write_text(Locked(self.bench).line(USER, PASSWORD))
        larder.config.write_text(LARDER.format(port=larder.port, admin=larder.admin, cache=larder.cache,
                                               upstream=larder.upstream_port, users=users))
        larder._start()
        self.process = self.work.start(self.name, self.command())
        self.process.await_ready(lambda: self.curl("/v2/").status == 401)

    def stop(self):
        if self.process:
            self.process.stop()
            self.process = None

    def curl(self, path, *words, login=False, address=None, port=None):
        return Curled(self, f"{self.scheme}://127.0.0.1:{port or self.port}{path}", words, login, address)

    def clients(self, mark):
        """The addresses in Larder's access log since then."""
        return re.findall(r' client="?([0-9.]+)', self.larder.logged_since(mark))


class Nginx(Front):
    """deploy/nginx.conf word for word, but for addresses and the places of files."""
    scheme = "https"

    def command(self):
        self.work.run("openssl", ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                                  "-nodes", "-days", "2", "-subj", "/CN=larder.example",
                                  "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", self.key, "-out", self.cert])
        recipe = (ROOT / "deploy/nginx.conf").read_text()
        for found, here in (("    server 127.0.0.1:5000;", f"    server 127.0.0.1:{self.larder.port};"),
                            ("listen 443 ssl http2;", f"listen 127.0.0.1:{self.port} ssl http2;"),
                            ("/etc/nginx/larder.crt", str(self.cert)),
                            ("/etc/nginx/larder.key", str(self.key))):
            if recipe.count(found) != 1:
                raise Failed(f"deploy/nginx.conf has {found!r} {recipe.count(found)} times")
            recipe = recipe.replace(found, here)
        (self.folder / "larder.conf").write_text(recipe)
        (self.folder / "nginx.conf").write_text(NGINX.format(folder=self.folder))
        return ["nginx", "-p", self.folder, "-c", self.folder / "nginx.conf"]


    def buffered(self):
        """Files of bodies that its workers have open; they have no name any more."""
        master = self.process.pid
        workers = open(f"/proc/{master}/task/{master}/children").read().split()
        return [link for worker in workers for link in map(link_of, Path(f"/proc/{worker}/fd").iterdir())
                if str(self.folder / "buffered") in link]


def link_of(entry):
    """Where a link leads, if it is still there."""
    try:
        return os.readlink(entry)
    except FileNotFoundError:
        return ""


class Haproxy(Front):
    scheme = "http"

    def command(self):
        config = self.folder / "haproxy.cfg"
        config.write_text(HAPROXY.format(front=self.port, port=self.larder.port))
        return ["haproxy", "-db", "-f", config]


class Curled:
    """An answer as curl got it."""

    def __init__(self, front, url, words, login, address):
        argv = ["curl", "-sS", "--max-time", "60", "-D", "-", "-o", str(front.folder / "answer"), "--noproxy", "*"]
        argv += ["--cacert", str(front.cert)] if front.scheme == "https" else []
        argv += ["-u", f"{USER}:{PASSWORD}"] if login else []
        argv += ["--interface", address] if address else []
        (front.folder / "answer").write_bytes(b"")
        done = subprocess.run([*argv, *map(str, words), url], capture_output=True, text=True, env=front.work.env())
        self.url, self.head = url, done.stdout
        self.status = int(done.stdout.split()[1]) if done.stdout else None
        self.failed = f"curl {url}: status {done.returncode}: {done.stderr.strip()}" if done.returncode else None
        self.body = (front.folder / "answer").read_bytes()

    def header(self, name):
        found = re.findall(rf"(?im)^{name}: *(.*?)\r?$", self.head)
        return found[-1] if found else None

    def expect(self, status):
        if self.failed or self.status != status:
            raise Failed(self.failed or f"{self.url}: {self.status}, not {status}: {self.body[:300]}")
        return self


class SkopeoBehind(Skopeo):
    label = "skopeo-nginx"
    below = ""

    def pull(self, truth):
        self.work.empty(self.folder / "copy")
        self.skopeo("copy", "--all", "--preserve-digests", "--src-cert-dir", self.certs,
                    "--src-creds", f"{USER}:{self.password}",
                    f"docker://127.0.0.1:{self.port}/{self.below}docker.io/library/{truth.name}:{truth.tag}",
                    f"dir:{self.folder / 'copy'}")
        same(f"{truth.name}: manifest", (self.folder / "copy/manifest.json").read_bytes(), truth.body)

    def tags(self, truth):
        listed = self.skopeo("list-tags", "--cert-dir", self.certs, "--creds", f"{USER}:{self.password}",
                             f"docker://127.0.0.1:{self.port}/{self.below}docker.io/library/{truth.name}")
        return sorted(json.loads(listed)["Tags"])


class PodmanBehind(Podman):
    label = "podman-nginx"

    def pull_options(self):
        return ["--cert-dir", self.certs, "--authfile", self.folder / "auth.json"]

    def log_in(self, password):
        self.podman("login", *self.pull_options(), "--username", USER, "--password", password, f"127.0.0.1:{self.port}")


class DockerBehind(DockerLogin):
    label = "docker-nginx"


class ContainerdBelow(Containerd):
    """containerd with a path in hosts.toml."""
    label = "ctr-nginx"

    def start(self):
        super().start()
        url = f"https://127.0.0.1:{self.port}/registry/v2"
        (self.folder / "hosts/docker.io/hosts.toml").write_text(
            f'server = "{url}"\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n  override_path = true\n'
            f'  ca = "{self.certs / "ca.crt"}"\n')

    def ctr(self, *words):
        login = ["--user", f"{USER}:{self.password}"] if words[:2] == ("images", "pull") else []
        return super().ctr(*words[:2], *login, *words[2:])


def nginx(bench):
    front, truth, clients = Nginx(bench, "nginx"), bench.truth["forty"], []

    def client(kind):
        made = kind(bench.work, bench.larder)
        made.port, made.certs, made.password = front.port, front.folder / "certs", PASSWORD
        clients.append(made)
        made.fresh()
        return made

    try:
        front.start()
        (front.folder / "certs").mkdir()
        (front.folder / "certs/ca.crt").write_bytes(front.cert.read_bytes())
        with bench.reported("nginx, skopeo"):
            skopeo = client(SkopeoBehind)
            skopeo.password = "wrong"
            refused("skopeo with a wrong password", lambda: skopeo.pull(truth))
            skopeo.password = PASSWORD
            skopeo.pull(truth)
            same("tags", skopeo.tags(truth), ["1", "latest", "stable"])
            skopeo.below = "mirror/"
            skopeo.pull(truth)
            same("tags below a name", skopeo.tags(truth), ["1", "latest", "stable"])
            bench.ok("nginx, skopeo", "--creds, copy and list-tags, also below a name")
        with bench.reported("nginx, podman"):
            podman = client(PodmanBehind)
            (podman.folder / "auth.json").write_text("{}")
            refused("podman login with a wrong password", lambda: podman.log_in("wrong"))
            podman.log_in(PASSWORD)
            podman.pull(truth)
            bench.ok("nginx, podman", "podman login, podman pull")
        with bench.reported("nginx, docker"):
            docker = client(DockerBehind)
            refused("docker login with a wrong password", lambda: docker.log_in("wrong"))
            docker.log_in(PASSWORD)
            docker.pull(truth)
            bench.ok("nginx, docker", "docker login, docker pull")
        with bench.reported("nginx, containerd"):
            below = client(ContainerdBelow)
            below.pull(truth)
            bench.ok("nginx, containerd", "hosts.toml with a path, and a login")
        with bench.reported("nginx, paths"):
            paths(front, truth)
            bench.ok("nginx, paths", "realm, pages and ranges by HTTP/1.1 and HTTP/2, at the root, below a path and below a name")
        with bench.reported("nginx, addresses"):
            addresses(front, truth)
            bench.ok("nginx, addresses", "log and rules go by the client's address, whatever it claims")
        with bench.reported("nginx, large"):
            large(front, bench.truth["big"])
            bench.ok("nginx, large", "256 MiB pass by HTTP/2, and nothing of it lies in a file of nginx")
    finally:
        stop(bench, [*clients, front, bench.larder])


def paths(front, truth):
    origin = f"https://127.0.0.1:{front.port}"
    layer = truth.layers[0]
    whole = None
    for http in ("--http1.1", "--http2"):
        for base in ("/v2", "/registry/v2", "/v2/mirror"):
            challenge = front.curl(f"{base}/", http).expect(401).header("www-authenticate")
            same(f"{base}: realm", re.findall('realm="([^"]*)"', challenge), [f"{origin}{base}/_token"])
            token = json.loads(front.curl(f"{base}/_token?service=larder", http, login=True).expect(200).body)["token"]
            bearer = ("-H", f"Authorization: Bearer {token}", http)
            repository = f"{base}/docker.io/library/{truth.name}"
            found, at = [], f"{origin}{repository}/tags/list?n=1"
            while at:
                page = front.curl(at.removeprefix(origin), *bearer).expect(200)
                found += json.loads(page.body)["tags"]
                link = page.header("link")
                at = link and urljoin(at, link.partition(">")[0].lstrip("<"))
                if len(found) > 9:
                    raise Failed(f"pages without end: {found}")
            same(f"{base}: tags page by page", found, ["1", "latest", "stable"])
            blob = f"{repository}/blobs/{layer}"
            got = front.curl(blob, *bearer).expect(200)
            same(f"{base}: digest", "sha256:" + hashlib.sha256(got.body).hexdigest(), layer)
            whole = whole or got.body
            part = front.curl(blob, *bearer, "-r", "10-109").expect(206)
            same(f"{base}: range", (part.body, part.header("content-range")), (whole[10:110], f"bytes 10-109/{len(whole)}"))
            head = front.curl(blob, *bearer, "-I").expect(200)
            same(f"{base}: length", head.header("content-length"), str(len(whole)))


def addresses(front, truth):
    path = f"/v2/docker.io/library/{truth.name}/manifests/{truth.tag}"
    claims = ("-H", "X-Forwarded-For: 127.0.0.5", "-H", "Forwarded: for=127.0.0.5", "-H", "X-Forwarded-Host: evil.example",
              "-H", "X-Forwarded-Prefix: /evil")
    mark = front.larder.mark()
    front.curl(path, login=True, address="127.0.0.9").expect(200)
    front.curl(path, *claims, login=True, address="127.0.0.9").expect(200)
    await_true("two lines in the access log", lambda: len(front.clients(mark)) >= 2, 5)
    same("clients in the log", front.clients(mark), ["127.0.0.9"] * 2)
    # The client that may have nothing has nothing, whatever address it claims.
    for words in ((), claims):
        answer = front.curl(path, *words, login=True, address="127.0.0.77")
        if answer.status not in (401, 403, 404):
            raise Failed(f"127.0.0.77 was let in by nginx: {answer.status}")
    if "evil" in front.curl("/v2/", *claims).expect(401).head:
        raise Failed("a client's own headers came through")
    # Directly, another machine's claims count for nothing.
    direct = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--interface", "127.0.0.77", "-u", f"{USER}:{PASSWORD}",
              *claims, f"http://127.0.0.1:{front.larder.port}{path}"]
    status = subprocess.run(direct, capture_output=True, text=True, env=front.work.env()).stdout
    if status not in ("401", "403", "404"):
        raise Failed(f"127.0.0.77 was let in: {status}")


def large(front, truth):
    url = f"https://127.0.0.1:{front.port}/v2/docker.io/library/{truth.name}/blobs/{truth.layers[0]}"
    argv = ["curl", "-sS", "--http2", "--limit-rate", "80M", "--cacert", front.cert, "-u", f"{USER}:{PASSWORD}",
            "-o", front.folder / "large", url]
    child = subprocess.Popen([str(word) for word in argv], env=front.work.env(), stdin=subprocess.DEVNULL)
    while child.poll() is None:
        buffered = front.buffered()
        if buffered:
            child.kill()
            child.wait()
            raise Failed(f"nginx keeps what passes in a file: {buffered}")
        try:
            child.wait(0.1)
        except subprocess.TimeoutExpired:
            pass
    with open(front.folder / "large", "rb") as content:
        same("digest of 256 MiB", "sha256:" + hashlib.file_digest(content, "sha256").hexdigest(), truth.layers[0])


def haproxy(bench):
    front, truth = Haproxy(bench, "haproxy"), bench.truth["forty"]
    try:
        with bench.reported("haproxy"):
            front.start()
            path = f"/v2/docker.io/library/{truth.name}/manifests/{truth.tag}"
            mark = front.larder.mark()
            claims = ("-H", "X-Forwarded-For: 127.0.0.5")
            same("manifest", front.curl(path, login=True, address="127.0.0.9").expect(200).body, truth.body)
            front.curl(path, *claims, login=True, address="127.0.0.9").expect(200)
            await_true("two lines in the access log", lambda: len(front.clients(mark)) >= 2, 5)
            same("clients in the log", front.clients(mark), ["127.0.0.9"] * 2)
            answer = front.curl(path, *claims, login=True, address="127.0.0.77")
            if answer.status not in (401, 403, 404):
                raise Failed(f"127.0.0.77 was let in: {answer.status}")
            # Its health checks come with a header of their own, and went well all the time.
            if request(front.larder.admin, "/readyz").status != 200 or "DOWN" in (bench.work.logs / "haproxy.log").read_text():
                raise Failed("haproxy takes Larder for dead")
            bench.ok("haproxy", "send-proxy-v2: log and rules go by the client's address; health checks pass")
    finally:
        stop(bench, [front, bench.larder])


def stop(bench, things):
    for thing in things:
        try:
            thing.stop()
        except Failed as failure:
            bench.fail("stopping", failure)
