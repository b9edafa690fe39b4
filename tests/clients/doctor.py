"""`larder doctor` against the clients themselves: each form of a file is put before the client that reads it, and what
doctor says of it is held against what arrives at Larder.

What is pulled are canaries, by tag and by digest: `doctor --pull` for docker, ctr, podman and skopeo, and for the
Kubernetes side of containerd a call of its own (cri.py). Registries' names lead to an address of loopback where nobody
listens, so that a client which goes around Larder fails at once.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import cri
from clients import PODMAN_ENGINE, PODMAN_STORAGE, POLICY
from work import Failed, request

TOKEN = "a-token-for-the-checkup"
REGISTRIES = ("registry-1.docker.io", "index.docker.io", "auth.docker.io", "docker.io", "quay.io", "ghcr.io")
NOWHERE = "127.7.7.7"

CONFIG = """\
[server]
listen = "127.0.0.1:{port}"
[admin]
listen = "127.0.0.1:{admin}"
token = "{token}"
[cache]
path = "{cache}"
max_size = "1GiB"
offline = true
"""

# --- the forms: what stands in the file; {at} is Larder's host and port ---

MIRROR = '{{"registry-mirrors": {}, "deprecated-key-path": "{{folder}}/key.json"}}'
DAEMON = {
    "a mirror": MIRROR.format('["http://{at}"]'),
    "another mirror first": MIRROR.format('["http://{nowhere}:1", "http://{at}"]'),
    "https": MIRROR.format('["https://{at}"]'),
    "a path": MIRROR.format('["http://{at}/docker.io"]'),
    "no scheme": MIRROR.format('["{at}"]'),
    "a text": MIRROR.format('"http://{at}"'),
    "a flag's name": '{"registry-mirror": ["http://{at}"]}',
    "a key that is no key": '{"registry_mirrors": ["http://{at}"]}',
}

HOSTS = {
    "a host": '[host."http://{at}"]\n',
    "a slash": '[host."http://{at}/"]\n',
    "v2": '[host."http://{at}/v2"]\n',
    "no scheme": '[host."{at}"]\n',
    "https": '[host."https://{at}"]\n',
    "a path": '[host."http://{at}/docker.io"]\n',
    "a path behind v2": '[host."http://{at}/v2/docker.io"]\n',
    "a path behind v2, overridden": '[host."http://{at}/v2/docker.io"]\noverride_path = true\n',
    "a path, overridden": '[host."http://{at}/docker.io"]\noverride_path = true\n',
    "another registry's path": '[host."http://{at}/quay.io"]\n',
    "two parts of a path": '[host."http://{at}/a/b"]\n',
    "server": 'server = "http://{at}"\n',
    "server elsewhere": 'server = "http://{nowhere}:1"\n[host."http://{at}"]\n',
    "another host first": '[host."http://{nowhere}:1"]\n[host."http://{at}"]\n',
    "push only": '[host."http://{at}"]\ncapabilities = ["push"]\n',
    "pull only": '[host."http://{at}"]\ncapabilities = ["pull"]\n',
    "resolve only": '[host."http://{at}"]\ncapabilities = ["resolve"]\n',
    "referrers": '[host."http://{at}"]\ncapabilities = ["pull", "resolve", "referrers"]\n',
    "big letters": '[host."http://{at}"]\ncapabilities = ["Pull", "RESOLVE"]\n',
    "a strange capability": '[host."http://{at}"]\ncapabilities = ["read"]\n',
    "a text for a list": '[host."http://{at}"]\ncapabilities = "pull"\n',
    "skip_verify": '[host."http://{at}"]\nskip_verify = true\n',
    "no such ca": '[host."http://{at}"]\nca = "ca.pem"\n',
    "no TOML": '[host."http://{at}"\n',
    "another port": '[host."http://{elsewhere}"]\n',
}

QUAY = '[[registry]]\nlocation = "quay.io"\n{more}[[registry.mirror]]\nlocation = "{{at}}/quay.io"\ninsecure = true\n{mirror}'
CONTAINERS = {
    "a mirror": {"registries.conf": QUAY.format(more="", mirror="")},
    "all": {"registries.conf": QUAY.format(more="", mirror='pull-from-mirror = "all"\n')},
    "mirror-by-digest-only": {"registries.conf": QUAY.format(more="mirror-by-digest-only = true\n", mirror="")},
    "digest-only": {"registries.conf": QUAY.format(more="", mirror='pull-from-mirror = "digest-only"\n')},
    "tag-only": {"registries.conf": QUAY.format(more="", mirror='pull-from-mirror = "tag-only"\n')},
    "without insecure": {"registries.conf": QUAY.format(more="", mirror="").replace("insecure = true\n", "")},
    "without a path": {"registries.conf": QUAY.format(more="", mirror="").replace("/quay.io", "")},
    "Docker Hub without a path": {
        "registries.conf": QUAY.format(more="", mirror="").replace("/quay.io", "").replace("quay.io", "docker.io")},
    "location": {"registries.conf": '[[registry]]\nprefix = "quay.io"\nlocation = "{at}/quay.io"\ninsecure = true\n'},
    "blocked": {"registries.conf": QUAY.format(more="blocked = true\n", mirror="")},
    "a scheme": {"registries.conf": QUAY.format(more="", mirror="").replace('"{at}', '"http://{at}')},
    "both restrictions": {
        "registries.conf": QUAY.format(more="mirror-by-digest-only = true\n", mirror='pull-from-mirror = "all"\n')},
    "a folder": {"registries.conf.d/a.conf": QUAY.format(more="", mirror="")},
    "a later file in its place": {
        "registries.conf.d/a.conf": QUAY.format(more="", mirror=""),
        "registries.conf.d/b.conf": '[[registry]]\nlocation = "quay.io"\n[[registry.mirror]]\nlocation = "{nowhere}:1/quay.io"\n'},
    "a later file that leads here": {
        "registries.conf": '[[registry]]\nlocation = "quay.io"\n',
        "registries.conf.d/b.conf": QUAY.format(more="", mirror="")},
    "a user's own": {
        "registries.conf": '[[registry]]\nlocation = "quay.io"\n',
        "~registries.conf": QUAY.format(more="", mirror="")},
    "a user's own in its place": {
        "registries.conf": QUAY.format(more="", mirror=""),
        "~registries.conf": 'unqualified-search-registries = []\n'},
}

CRI = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
imports = [{imports}]
[grpc]
  address = "{folder}/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
"""
REGISTRY = '[plugins."io.containerd.grpc.v1.cri".registry'
KUBERNETES = {
    "mirrors": REGISTRY + '.mirrors."docker.io"]\nendpoint = ["http://{at}"]\n',
    "mirrors with a star": REGISTRY + '.mirrors."*"]\nendpoint = ["http://{at}"]\n',
    "mirrors with a path": REGISTRY + '.mirrors."docker.io"]\nendpoint = ["http://{at}/docker.io"]\n',
    "mirrors with a path behind v2": REGISTRY + '.mirrors."docker.io"]\nendpoint = ["http://{at}/v2/docker.io"]\n',
    "mirrors without a scheme": REGISTRY + '.mirrors."docker.io"]\nendpoint = ["{at}"]\n',
    "another mirror first": REGISTRY + '.mirrors."docker.io"]\nendpoint = ["http://{nowhere}:1", "http://{at}"]\n',
    "another folder": REGISTRY + ']\nconfig_path = "{root}/etc/hosts.d"\n',
    "a list of folders": REGISTRY + ']\nconfig_path = "{root}/etc/none.d:{root}/etc/hosts.d"\n',
    "both": REGISTRY + ']\nconfig_path = "{root}/etc/hosts.d"\n' + REGISTRY + '.mirrors."docker.io"]\nendpoint = []\n',
    "neither": "",
    "an imported file": ("", REGISTRY + ']\nconfig_path = "{root}/etc/hosts.d"\n'),
    "an imported file in its place": (REGISTRY + ']\nconfig_path = "{root}/etc/hosts.d"\n',
                                      '[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "x"\n'),
}


class Proxy:
    """A Larder that asks nobody and has a token that this run knows."""

    def __init__(self, work, larder):
        self.work, self.larder = work, larder
        self.at = f"127.0.0.1:{larder.port}"

    def start(self):
        from work import answers
        self.work.empty(self.larder.cache)
        config = self.work.folder / "doctor.toml"
        config.write_text(CONFIG.format(port=self.larder.port, admin=self.larder.admin, token=TOKEN,
                                        cache=self.larder.cache))
        self.process = self.work.start("doctor-larder", [self.larder.path, "serve", "--config", config])
        self.process.await_ready(lambda: answers(self.larder.admin, "/readyz"))
        self.token = self.work.folder / "doctor.token"
        self.token.write_text(TOKEN)
        self.token.chmod(0o600)

    def stop(self):
        self.process.stop()

    def api(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        answer = request(self.larder.admin, f"/api/v1/{path}", method, headers, body and json.dumps(body))
        if answer.status != 200:
            raise Failed(f"{method} {path}: {answer.status}: {answer.body[:300]}")
        return json.loads(answer.body)

    def doctor(self, root, *more, **env):
        """Every finding."""
        argv = [self.larder.path, "doctor", "--client", "--address", f"http://{self.at}", "--root", root, "--json",
                "--admin", f"http://127.0.0.1:{self.larder.admin}", *more]
        env = self.work.env(LARDER_ADMIN_TOKEN_FILE=str(self.token), **env)
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, env=env, timeout=300)
        try:
            return json.loads(done.stdout)["findings"]
        except ValueError:
            raise Failed(f"doctor: status {done.returncode}: {done.stdout}{done.stderr}") from None

    def logged(self):
        return self.process.log.read_text(errors="replace")


class Forms:
    """Common to all kinds of files: a root, the verdicts, and the comparison."""

    def __init__(self, bench, proxy, name):
        self.bench, self.work, self.proxy, self.name = bench, bench.work, proxy, name
        self.root = self.work.folder / "doctor-root"
        self.compared = 0

    def put(self, files, **more):
        self.work.empty(self.root)
        values = {"at": self.proxy.at, "nowhere": NOWHERE, "root": self.root, "elsewhere": "127.0.0.1:1", **more}
        for path, text in files.items():
            path = self.root / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(re.sub(r"\{(\w+)\}", lambda found: str(values[found[1]]), text))

    def compare(self, form, said, seen, versions=None):
        """`said` and `seen`: (by tag, by digest)."""
        for by, (said, seen) in (("tag", (said[0], seen[0])), ("digest", (said[1], seen[1]))):
            self.compared += 1
            if said == "partly":  # some requests come, the image does not
                continue
            arrives = said in ("here", "if-others-fail") and versions is not False
            right = seen == "here" if arrives else seen == "wrong-image" if said == "wrong-image" else seen != "here"
            if not right:
                self.bench.fail(self.name, f"{form}, by {by}: doctor says {said}, and the pull went {seen}",
                                self.proxy.process.log)

    def done(self):
        self.bench.ok(self.name, f"{self.compared} verdicts held against what arrived")


def verdict(findings, check):
    """(by tag, by digest, versions) of the first registry of a check; elsewhere if there is none."""
    for finding in findings:
        if finding["check"] == check:
            for one in finding.get("registries", ()):
                return one["by_tag"], one["by_digest"], one.get("only")
    return "elsewhere", "elsewhere", None


def version_of(command):
    shown = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    return tuple(int(part) for part in re.search(r"(\d+)\.(\d+)\.(\d+)", shown).groups())


def holds(only, containerd="containerd"):
    """Returns whether a verdict for some versions is for the ones here; None: it is for all."""
    match only:
        case None:
            return None
        case "Docker 24.0.8, 25 and newer":
            return version_of("dockerd") >= (24, 0, 8)
        case "containerd before 2.1":
            return version_of(containerd) < (2, 1, 0)
        case "containerd 2":
            return version_of(containerd) >= (2, 0, 0)
        case "containerd 2.2 and newer":
            return version_of(containerd) >= (2, 2, 0)
        case _:
            raise Failed(f"a verdict for {only}, which this run cannot judge")


def pulled(findings, check):
    """Returns what `doctor --pull` saw arrive; None if it tried nothing."""
    tried = [finding for finding in findings if finding["check"] == check]
    if not tried or any(finding["found"].startswith("not tried") for finding in tried):
        return None
    by_tag, by_digest, _ = verdict(findings, check)
    return by_tag, by_digest


# --- docker ---


def dockerd(bench, proxy):
    forms = Forms(bench, proxy, "doctor, dockerd")
    folder = forms.work.make("doctor-docker")
    for form, text in DAEMON.items():
        forms.put({"etc/docker/daemon.json": text}, folder=folder)
        daemon = Daemon(forms.work, folder, forms.root / "etc/docker/daemon.json")
        is_up = daemon.start()
        try:
            findings = proxy.doctor(forms.root, "--pull", DOCKER_HOST=f"unix://{daemon.socket}")
        finally:
            daemon.stop()
        by_tag, by_digest, only = verdict(findings, "client docker")
        seen = pulled(findings, "pull docker")
        if by_tag == "fails" or holds(only) is False:
            # It has to be the file for which the daemon does not start.
            if is_up or (by_tag == "fails" and seen is not None):
                bench.fail(forms.name, f"{form}: doctor says {by_tag} ({only}), and dockerd runs", daemon.log)
            forms.compare(form, ("elsewhere", "elsewhere"), seen or ("elsewhere", "elsewhere"))
            continue
        if not is_up or (seen is None and by_tag != "elsewhere"):
            bench.fail(forms.name, f"{form}: doctor says {by_tag}, and dockerd does not run", daemon.log)
            continue
        forms.compare(form, (by_tag, by_digest), seen or ("elsewhere", "elsewhere"))
    forms.done()
    not_restarted(bench, proxy, forms, folder)


def not_restarted(bench, proxy, forms, folder):
    """The file leads to Larder, and the daemon runs since before that: only the canary knows."""
    forms.put({"etc/docker/daemon.json": MIRROR.format("[]")}, folder=folder)
    daemon = Daemon(forms.work, folder, forms.root / "etc/docker/daemon.json")
    daemon.start()
    try:
        forms.put({"etc/docker/daemon.json": DAEMON["a mirror"]}, folder=folder)
        findings = proxy.doctor(forms.root, "--pull", DOCKER_HOST=f"unix://{daemon.socket}")
    finally:
        daemon.stop()
    told = [finding for finding in findings if finding["check"] == "pull docker"]
    if verdict(findings, "client docker")[0] != "here" or not told or "did not come here" not in told[0]["found"] \
            or "restart docker" not in told[0]["advice"]:
        bench.fail(forms.name, f"a daemon that was not restarted: {json.dumps(told)}", daemon.log)
    bench.ok(forms.name, "a daemon that was not restarted since its file was changed is told by the canary")


class Daemon:
    """dockerd with a configuration file and a containerd of its own."""

    def __init__(self, work, folder, config):
        self.work, self.folder, self.config = work, folder, config
        self.socket = folder / "d.sock"
        self.log = work.logs / "doctor-dockerd.log"

    def start(self):
        """False: it refuses its file."""
        from clients import CONTAINERD
        self.work.empty(self.folder)
        self.folder.mkdir()
        containerd = self.folder / "containerd.toml"
        containerd.write_text(CONTAINERD.format(root=self.folder / "c-root", state=self.folder / "c-state",
                                                opt=self.folder / "c-opt", socket=self.folder / "c.sock"))
        self.containerd = self.work.start("doctor-docker-containerd", ["containerd", "--config", containerd])
        self.containerd.await_ready((self.folder / "c.sock").exists)
        self.daemon = self.work.start(
            "doctor-dockerd",
            ["dockerd", "--config-file", self.config, "--host", f"unix://{self.socket}",
             "--containerd", self.folder / "c.sock", "--data-root", self.folder / "data",
             "--exec-root", self.folder / "exec", "--pidfile", self.folder / "d.pid",
             "--storage-driver", "vfs", "--bridge=none", "--iptables=false", "--ip6tables=false"])
        # The socket may be there for a moment before the file is refused.
        version = ["docker", "--host", f"unix://{self.socket}", "version"]
        try:
            self.daemon.await_ready(lambda: subprocess.run(version, capture_output=True).returncode == 0, 60)
        except Failed:
            return False
        return True

    def stop(self):
        self.daemon.stop()
        self.containerd.stop()


# --- containerd, by hosts.toml ---


def hosts(bench, proxy, containerd="containerd", ctr="ctr", name="doctor, containerd"):
    forms = Forms(bench, proxy, name)
    folder = forms.work.make("doctor-containerd")
    daemon = Cri(forms.work, folder, containerd)
    daemon.start(CRI.format(folder=folder, imports=""))
    try:
        for form, text in HOSTS.items():
            forms.put({"etc/containerd/certs.d/docker.io/hosts.toml": text})
            findings = proxy.doctor(forms.root, "--pull", CONTAINERD_ADDRESS=str(daemon.socket))
            by_tag, by_digest, only = verdict(findings, "client containerd")
            seen = pulled(findings, "pull containerd")
            if seen is None and (by_tag, by_digest) != ("elsewhere", "elsewhere"):
                bench.fail(name, f"{form}: not tried: {findings}", daemon.log)
                continue
            if seen is None:
                seen = around(proxy, forms, daemon, ctr)
            forms.compare(form, (by_tag, by_digest), seen, holds(only, containerd))
    finally:
        daemon.stop()
    forms.done()


def around(proxy, forms, daemon, ctr):
    """Where doctor sees nothing that leads here it pulls nothing, so that it is pulled by hand."""
    def pull(image):
        subprocess.run([ctr, "--address", str(daemon.socket), "content", "fetch", "--hosts-dir",
                        str(forms.root / "etc/containerd/certs.d"), image],
                       capture_output=True, timeout=60, env=forms.work.env())
    return canaries(proxy, "docker.io", pull)


def canaries(proxy, registry, pull):
    """Two canaries of a registry, pulled by tag and by digest: where each went."""
    went = []
    for by in ("tag", "digest"):
        made = proxy.api("POST", "canary", {"architecture": architecture()})
        reference = f":{made['tag']}" if by == "tag" else f"@{made['digest']}"
        pull(f"{registry}/{made['repository']}{reference}")
        requests = proxy.api("DELETE", f"canary/{made['tag']}")["requests"]
        right = f"{registry}/{made['repository']}"
        went.append("elsewhere" if not requests else "here" if requests[0]["image"] == right else "wrong-image")
    return tuple(went)


def architecture():
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


# --- containerd, by its own configuration ---


class Cri:
    def __init__(self, work, folder, containerd="containerd"):
        self.work, self.folder, self.containerd = work, folder, containerd
        self.socket = folder / "c.sock"
        self.log = work.logs / "doctor-containerd.log"

    def start(self, config, more=None):
        self.work.empty(self.folder)
        self.folder.mkdir()
        (self.folder / "config.toml").write_text(config)
        self.daemon = self.work.start("doctor-containerd", [self.containerd, "--config", more or self.folder / "config.toml"])
        self.daemon.await_ready(self.socket.exists)

    def stop(self):
        self.daemon.stop()


def kubernetes(bench, proxy):
    forms = Forms(bench, proxy, "doctor, Kubernetes")
    folder = forms.work.make("doctor-cri")
    for form, text in KUBERNETES.items():
        text, imported = text if isinstance(text, tuple) else (text, None)
        imports = '"{root}/etc/containerd/conf.d/*.toml"' if imported is not None else ""
        files = {"etc/containerd/config.toml": CRI.replace("{imports}", imports) + text,
                 "etc/hosts.d/docker.io/hosts.toml": HOSTS["a host"]}
        if imported is not None:
            files["etc/containerd/conf.d/a.toml"] = "version = 2\n" + imported
        forms.put(files, folder=folder)
        # Paths in it are the real ones for containerd, and below the root for doctor.
        findings = doctor_below(proxy, forms)
        by_tag, by_digest, only = verdict(findings, "client containerd")
        daemon = Cri(forms.work, folder)
        daemon.start("", forms.root / "etc/containerd/config.toml")
        try:
            seen = canaries(proxy, "docker.io", lambda image: cri.pull(daemon.socket, image))
        finally:
            daemon.stop()
        forms.compare(form, (by_tag, by_digest), seen, holds(only))
    forms.done()


def doctor_below(proxy, forms):
    """config_path names a folder of this machine; doctor is to find it below its root."""
    path = forms.root / "etc/containerd/config.toml"
    real = path.read_text()
    path.write_text(real.replace(str(forms.root), ""))
    part = forms.root / "etc/containerd/conf.d/a.toml"
    imported = part.read_text() if part.exists() else None
    if imported is not None:
        part.write_text(imported.replace(str(forms.root), ""))
    try:
        return proxy.doctor(forms.root)
    finally:
        path.write_text(real)
        if imported is not None:
            part.write_text(imported)


# --- podman and skopeo ---


def containers(bench, proxy):
    """Their files are below /etc, which is a folder of this run in its own mount namespace."""
    etc = Path("/etc/containers")
    etc.mkdir(exist_ok=True)
    for tool in ("podman", "skopeo"):
        forms = Forms(bench, proxy, f"doctor, {tool}")
        folder = forms.work.make(f"doctor-{tool}")
        home = forms.work.make("home")
        for form, files in CONTAINERS.items():
            own = ".config/containers"
            forms.put({(f"root/{own}/{path[1:]}" if path[0] == "~" else f"etc/containers/{path}"): text
                       for path, text in files.items()})
            (forms.root / "etc/containers").mkdir(parents=True, exist_ok=True)
            (forms.root / "etc/containers/policy.json").write_text(POLICY)
            # The home is that of this run's environment, and root's for doctor.
            subprocess.run(["rm", "-rf", str(home / ".config")], check=True)
            if (forms.root / f"root/{own}").exists():
                subprocess.run(["cp", "-r", str(forms.root / "root/.config"), str(home)], check=True)
            subprocess.run(["mount", "--bind", str(forms.root / "etc/containers"), str(etc)], check=True)
            try:
                registry = "docker.io" if "Docker Hub" in form else "quay.io"
                findings = proxy.doctor(forms.root)
                has_own = any(path[0] == "~" for path in files)
                by_tag, by_digest, _ = verdict(findings, "client podman of root" if has_own else "client podman, cri-o")
                run = podman if tool == "podman" else skopeo
                seen = canaries(proxy, registry, lambda image: run(forms, folder, image))
            finally:
                subprocess.run(["umount", str(etc)], check=True)
            if any(finding["level"] == "problem" and "pull nothing with it" in finding["found"] for finding in findings):
                by_tag = by_digest = "fails"
            forms.compare(form, (by_tag, by_digest), seen)
        subprocess.run(["rm", "-rf", str(home / ".config")], check=True)
        forms.done()


def skopeo(forms, _folder, image):
    subprocess.run(["skopeo", "inspect", "--raw", f"docker://{image}"], capture_output=True, timeout=60,
                   env=forms.work.env())


def podman(forms, folder, image):
    env = podman_env(forms, folder)
    subprocess.run(["podman", "--tmpdir", str(folder / "libpod"), "pull", "--quiet", image], capture_output=True,
                   timeout=60, env=env)
    subprocess.run(["podman", "--tmpdir", str(folder / "libpod"), "rmi", "--force", image], capture_output=True,
                   timeout=60, env=env)


def podman_env(forms, folder):
    (folder / "engine.conf").write_text(PODMAN_ENGINE)
    (folder / "storage.conf").write_text(PODMAN_STORAGE.format(
        driver="overlay" if forms.work.overlay else "vfs", root=folder / "root", run=folder / "run"))
    return forms.work.env(CONTAINERS_CONF=str(folder / "engine.conf"),
                          CONTAINERS_STORAGE_CONF=str(folder / "storage.conf"))


def canary_by_podman(bench, proxy):
    """`doctor --pull` itself with podman, and what it says where there is nothing to ask."""
    forms = Forms(bench, proxy, "doctor --pull")
    folder = forms.work.make("doctor-podman")
    forms.put({"etc/containers/registries.conf": QUAY.format(more="", mirror=""),
               "etc/docker/daemon.json": '{"registry-mirrors": ["http://{at}"]}',
               "etc/containerd/certs.d/docker.io/hosts.toml": HOSTS["a host"]})
    (forms.root / "etc/containers/policy.json").write_text(POLICY)
    etc = Path("/etc/containers")
    subprocess.run(["mount", "--bind", str(forms.root / "etc/containers"), str(etc)], check=True)
    nobody = str(folder / "nobody.sock")
    try:
        env = {key: value for key, value in podman_env(forms, folder).items() if key.startswith("CONTAINERS_")}
        findings = proxy.doctor(forms.root, "--pull", DOCKER_HOST=f"unix://{nobody}", CONTAINERD_ADDRESS=nobody, **env)
    finally:
        subprocess.run(["umount", str(etc)], check=True)
    for check, text in (("pull podman", "pulls from quay.io came here, by tag and by digest"),
                        ("pull docker", "its daemon does not run"), ("pull containerd", "its daemon does not run")):
        if not any(finding["check"] == check and text in finding["found"] for finding in findings):
            bench.fail(forms.name, f"no {check} {text!r} in {json.dumps(findings, indent=1)}", proxy.process.log)
    if "larder-doctor/canary" not in proxy.logged():
        bench.fail(forms.name, "nothing of it in the access log", proxy.process.log)
    bench.ok(forms.name, "podman's pull came, and daemons that do not run are told from pulls that go elsewhere")


# --- all of it ---


def nowhere(work):
    """Registries' names lead to where nobody listens, in this mount namespace."""
    names = work.folder / "hosts"
    names.write_text(f"127.0.0.1 localhost\n{NOWHERE} {' '.join(REGISTRIES)}\n")
    subprocess.run(["mount", "--bind", str(names), "/etc/hosts"], check=True)


def doctor(bench):
    proxy = Proxy(bench.work, bench.larder)
    nowhere(bench.work)
    try:
        proxy.start()
        for part in (hosts, kubernetes, containers, canary_by_podman, dockerd):
            with bench.reported(f"doctor, {part.__name__}"):
                part(bench, proxy)
        others(bench, proxy)
    finally:
        subprocess.run(["umount", "/etc/hosts"], check=False)
        try:
            proxy.stop()
        except Failed as failure:
            bench.fail("stopping", failure)


def others(bench, proxy):
    """Tools that Debian has not: tried where $LARDER_TOOLS has it, else said."""
    tools = Path(os.environ.get("LARDER_TOOLS", "/nonexistent"))
    newer = tools / "containerd"
    if newer.exists() and version_of(newer) >= (2, 0, 0):
        ctr = tools / "ctr"
        with bench.reported("doctor, containerd 2"):
            hosts(bench, proxy, str(newer), str(ctr if ctr.exists() else "ctr"), "doctor, containerd 2")
    else:
        print("NOT RUN  doctor, containerd 2: no containerd 2 in $LARDER_TOOLS; its rules are held by unit tests", flush=True)
    print("NOT RUN  doctor, k3s, rke2, CRI-O, BuildKit's own daemon: their rules are held by unit tests", flush=True)
