"""The clients, one class each, all with the same few methods:

    fresh()      an empty store, as on a new machine (daemons are started anew)
    pull(truth)  pulls that image through Larder and compares what arrived
    seen(truth)  a request path that Larder must have seen for it
    stop()       ends what fresh() started

What they are told of Larder is what `larder client-config` prints or writes.
`truth` is what the upstream says about the image (registry.Truth). A comparison
that fails raises Failed.
"""

import hashlib
import json

import images
from work import Failed, post_by_socket, request

POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'
CONTAINERD = """\
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"
"""
PODMAN_STORAGE = """\
[storage]
driver = "{driver}"
graphroot = "{root}"
runroot = "{run}"
"""
# A lock file of its own instead of the shared memory that all podmans of the machine use.
PODMAN_ENGINE = """\
[engine]
lock_type = "file"
events_logger = "none"
cgroup_manager = "cgroupfs"
"""


def same(what, found, expected):
    if found != expected:
        raise Failed(f"{what}: found {found}, upstream has {expected}")


def rehash(folder):
    """The digests of the files of a folder, each checked against its own name."""
    found = set()
    for path in folder.iterdir():
        with open(path, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        same(f"sha256 of the stored {path.name}", digest, path.name)
        found.add("sha256:" + digest)
    return found


class Client:
    """What they share: a folder of their own, and how it is emptied."""
    label = ""           # the name of its case
    tools = ()           # commands it needs
    pulls = ()           # images it pulls
    whole_index = False  # whether it takes every platform of an index
    daemon = None        # the Process of its daemon, if it has one

    def __init__(self, work, larder, name=""):
        self.work, self.larder, self.port = work, larder, larder.port
        self.name = name or type(self).label
        self.folder = work.folder / self.name

    def fresh(self):
        self.stop()
        self.work.empty(self.folder)
        self.folder.mkdir()
        self.start()

    def start(self):
        pass

    def stop(self):
        pass

    def run(self, *argv, **env):
        return self.work.run(self.name, argv, **env)

    def seen(self, truth):
        return f"/v2/docker.io/library/{truth.name}/manifests/"

    def needs(self, truth):
        """The blobs and the manifests that a pull must bring."""
        if self.whole_index:
            return truth.every_blob, truth.manifests
        return truth.blobs, {truth.digest, truth.platform}


class Containerd(Client):
    """containerd with hosts.toml: names stay docker.io/…, requests carry ?ns=docker.io."""
    label = "containerd"
    tools = ("containerd", "ctr", "runc")
    pulls = ("debian", "forty", "multi", "zstd")
    registry = "docker.io"

    def start(self):
        self.socket = self.folder / "c.sock"
        self._check_socket(self.socket)
        config = self.folder / "config.toml"
        config.write_text(CONTAINERD.format(root=self.folder / "root", state=self.folder / "state",
                                            opt=self.folder / "opt", socket=self.socket))
        self.larder.recipe("containerd", self.port, "--write", self.folder / "hosts")
        self.daemon = self.work.start(f"{self.name}-daemon", ["containerd", "--config", config])
        self.daemon.await_ready(self.socket.exists)
        self.ctr("version")

    def stop(self):
        if self.daemon:
            self.daemon.stop()
            self.daemon = None

    def ctr(self, *words):
        return self.run("ctr", "--address", self.socket, *words)

    def seen(self, truth):
        return f"/v2/library/{truth.name}/manifests/"

    def pull(self, truth):
        reference = f"{self.registry}/library/{truth.name}:{truth.tag}"
        driver = "overlayfs" if self.work.overlay else "native"
        self.ctr("images", "pull", "--hosts-dir", self.folder / "hosts", "--snapshotter", driver,
                 "--platform", f"linux/{images.arch()}", reference)
        listed = self.ctr("images", "ls", f"name=={reference}")
        if truth.digest not in listed:
            raise Failed(f"{reference} is not {truth.digest}:\n{listed}")
        held = rehash(self.folder / "root/io.containerd.content.v1.content/blobs/sha256")
        blobs, manifests = self.needs(truth)
        same(f"{reference}: missing content", (blobs | manifests) - held, set())

    @staticmethod
    def _check_socket(path):
        if len(str(path)) > 100:  # the kernel's limit is 107
            raise Failed(f"the path of the socket is too long, set TMPDIR to a shorter one: {path}")


class ContainerdNs(Containerd):
    """A registry with a port in its name, which only ?ns= can tell."""
    label = "containerd-ns"
    pulls = ("forty", "multi")
    registry = "registry.example:5000"


class Dockerd(Client):
    """dockerd with registry-mirrors: bare Hub names, no hint of the registry in the requests."""
    label = "dockerd"
    tools = ("dockerd", "docker", "containerd", "runc")
    pulls = ("debian", "forty", "multi")
    containerd = None

    def start(self):
        self.driver = "overlay2" if self.work.overlay else "vfs"
        self.socket = self.folder / "d.sock"
        containerd = self.folder / "containerd.toml"
        containerd.write_text(CONTAINERD.format(
            root=self.folder / "c-root", state=self.folder / "c-state", opt=self.folder / "c-opt",
            socket=self.folder / "c.sock"))
        # dockerd would take the machine's containerd, so it gets one of its own.
        self.containerd = self.work.start(f"{self.name}-containerd", ["containerd", "--config", containerd])
        self.containerd.await_ready((self.folder / "c.sock").exists)
        # A configuration file of its own, so that the machine's is not read.
        config = self.folder / "daemon.json"
        config.write_text(json.dumps({
            **json.loads(self.larder.recipe("docker", self.port)),
            "deprecated-key-path": str(self.folder / "key.json"),
        }))
        self.daemon = self.work.start(
            f"{self.name}-daemon",
            ["dockerd", "--config-file", config, "--host", f"unix://{self.socket}",
             "--containerd", self.folder / "c.sock", "--data-root", self.folder / "data",
             "--exec-root", self.folder / "exec", "--pidfile", self.folder / "d.pid",
             "--storage-driver", self.driver, "--bridge=none", "--iptables=false", "--ip6tables=false"])
        self.daemon.await_ready(self.socket.exists, 60)
        self.docker("version")

    def stop(self):
        for daemon in (self.daemon, self.containerd):
            if daemon:
                daemon.stop()
        self.daemon = self.containerd = None

    def docker(self, *words):
        return self.run("docker", "--host", f"unix://{self.socket}", *words)

    def seen(self, truth):
        return f"/v2/library/{truth.name}/manifests/"

    def pull(self, truth):
        reference = f"{truth.name}:{truth.tag}"
        self.docker("pull", reference)
        found = json.loads(self.docker("image", "inspect", reference))[0]
        same(f"{reference}: image id", found["Id"], truth.config)
        same(f"{reference}: digest", found["RepoDigests"], [f"{truth.name}@{truth.digest}"])
        same(f"{reference}: unpacked layers", found["RootFS"]["Layers"], truth.diff_ids)
        # dockerd tells the digests of the layers as transferred to nobody, but notes them.
        noted = self.folder / "data/image" / self.driver / "distribution/diffid-by-digest/sha256"
        transferred = {"sha256:" + path.name for path in noted.iterdir()}
        same(f"{reference}: missing layers", set(truth.layers) - transferred, set())


class BuildKit(Dockerd):
    """The BuildKit inside dockerd: `FROM` takes the daemon's registry-mirrors, and names the registry by ?ns=docker.io.
    Asked by the daemon's API, for a command line may lack the plugin that it builds with."""
    label = "buildkit"

    def pull(self, truth):
        # COPY needs every layer of the image below it, and no container.
        context = images.tar_of({"Dockerfile": f"FROM {truth.name}:{truth.tag}\nCOPY made /made\n".encode(),
                                 "made": truth.name.encode()})
        built = f"built-{truth.name}"
        said = post_by_socket(self.socket, f"/build?version=2&t={built}", context)
        if b'"error"' in said:
            raise Failed(f"the build of {built}: {said[-600:].decode(errors='replace')}")
        found = json.loads(self.docker("image", "inspect", built))[0]
        same(f"{built}: layers below its own", found["RootFS"]["Layers"][:-1], truth.diff_ids)

    def seen(self, truth):
        return f"/v2/library/{truth.name}/manifests/{truth.tag}?ns=docker.io"


class Podman(Client):
    """podman with the registry in the path: ADDRESS/docker.io/library/…"""
    label = "podman"
    tools = ("podman",)
    pulls = ("debian", "forty", "multi", "zstd")

    def start(self):
        (self.folder / "policy.json").write_text(POLICY)
        (self.folder / "engine.conf").write_text(PODMAN_ENGINE)
        (self.folder / "registries.conf").write_text(self.registries())
        (self.folder / "storage.conf").write_text(PODMAN_STORAGE.format(
            driver="overlay" if self.work.overlay else "vfs",
            root=self.folder / "root", run=self.folder / "run"))

    def registries(self):
        return ""

    def reference(self, truth):
        return f"127.0.0.1:{self.port}/docker.io/library/{truth.name}:{truth.tag}"

    def podman(self, *words):
        return self.run(
            "podman", "--tmpdir", self.folder / "libpod", "--network-config-dir", self.folder / "net", *words,
            CONTAINERS_CONF=str(self.folder / "engine.conf"),
            CONTAINERS_REGISTRIES_CONF=str(self.folder / "registries.conf"),
            CONTAINERS_STORAGE_CONF=str(self.folder / "storage.conf"))

    def pull(self, truth):
        reference = self.reference(truth)
        self.podman("pull", *self.pull_options(), "--signature-policy", self.folder / "policy.json", reference)
        found = json.loads(self.podman("image", "inspect", reference))[0]
        same(f"{reference}: image id", "sha256:" + found["Id"], truth.config)
        digests = {entry.rpartition("@")[2] for entry in found["RepoDigests"]}
        same(f"{reference}: digests", digests, {truth.digest, truth.platform})
        same(f"{reference}: unpacked layers", found["RootFS"]["Layers"], truth.diff_ids)
        noted = next((self.folder / "root").glob("*-layers/layers.json"))
        transferred = {layer.get("compressed-diff-digest") for layer in json.loads(noted.read_text())}
        same(f"{reference}: missing layers", set(truth.layers) - transferred, set())

    def pull_options(self):
        return ["--tls-verify=false"]


class PodmanMirror(Podman):
    """podman with a mirror in registries.conf: names stay docker.io/…"""
    label = "podman-mirror"
    pulls = ("forty", "multi")

    def registries(self):
        return self.larder.recipe("podman", self.port)

    def reference(self, truth):
        return f"docker.io/library/{truth.name}:{truth.tag}"

    def pull_options(self):
        return []  # `insecure` stands in registries.conf


class Skopeo(Client):
    """skopeo copy to a folder, inspect --raw and list-tags; takes all platforms of an index."""
    label = "skopeo"
    tools = ("skopeo",)
    pulls = ("debian", "forty", "multi", "zstd")
    whole_index = True

    def start(self):
        (self.folder / "policy.json").write_text(POLICY)

    def skopeo(self, *words):
        return self.run("skopeo", "--policy", self.folder / "policy.json", *words)

    def pull(self, truth):
        repository = f"docker://127.0.0.1:{self.port}/docker.io/library/{truth.name}"
        self._copy(f"{repository}:{truth.tag}", truth)
        raw = self.skopeo("inspect", "--raw", "--tls-verify=false", f"{repository}:{truth.tag}")
        same(f"{truth.name}: skopeo inspect --raw", raw.encode(), truth.body)

    def _copy(self, source, truth):
        """To an OCI layout; Docker images to `dir:`, for skopeo would convert their manifest."""
        docker = truth.media_type == images.DOCKER_MANIFEST
        target = self.folder / truth.name
        self.skopeo("copy", "--all", "--preserve-digests", "--src-tls-verify=false", source,
                    f"dir:{target}" if docker else f"oci:{target}:{truth.tag}")
        if docker:
            body = (target / "manifest.json").read_bytes()
            same(f"{truth.name}: manifest", images.sha256(body), truth.digest)
            for bookkeeping in ("manifest.json", "version"):
                (target / bookkeeping).unlink()
            same(f"{truth.name}: content", rehash(target), truth.every_blob)
        else:
            entry = json.loads((target / "index.json").read_text())["manifests"]
            same(f"{truth.name}: digest", [e["digest"] for e in entry], [truth.digest])
            same(f"{truth.name}: content", rehash(target / "blobs/sha256"), truth.every_blob | truth.manifests)


class SkopeoTags(Skopeo):
    """skopeo list-tags."""
    label = "skopeo-tags"
    pulls = ("forty",)

    def pull(self, truth):
        listed = self.skopeo("list-tags", "--tls-verify=false",
                             f"docker://127.0.0.1:{self.port}/docker.io/library/{truth.name}")
        same(f"{truth.name}: tags", sorted(json.loads(listed)["Tags"]), ["1", "latest", "stable"])

    def needs(self, truth):
        return set(), set()

    def seen(self, truth):
        return f"/v2/docker.io/library/{truth.name}/tags/list"


class Plain(Client):
    """Plain HTTP: an artifact with its referrers, as oras and cosign ask for them,
    and an image under every name that the Docker Hub's has at Larder."""
    label = "http"
    pulls = ("artifact", "forty")
    names = ("docker.io/library/{name}", "docker.io/{name}", "library/{name}", "{name}")
    namespaces = ("docker.io",)

    def pull(self, truth):
        if truth.name == "artifact":
            self._referrers(truth)
            self._blobs(truth)
        self._every_name(truth)

    def get(self, path, method="GET"):
        accept = ", ".join((images.INDEX, images.MANIFEST, images.DOCKER_MANIFEST))
        answer = request(self.port, path, method, {"Accept": accept})
        if answer.status != 200:
            raise Failed(f"{method} {path}: {answer.status} {answer.body[:300].decode(errors='replace')}")
        return answer

    def _every_name(self, truth):
        """Byte for byte the upstream's manifest, by each name."""
        for path in self.names:
            for reference in (truth.tag, truth.digest):
                self._same_manifest(f"/v2/{path.format(name=truth.name)}/manifests/{reference}", truth)
        for namespace in self.namespaces:
            self._same_manifest(f"/v2/library/{truth.name}/manifests/{truth.tag}?ns={namespace}", truth)

    def _same_manifest(self, path, truth):
        for method in ("HEAD", "GET"):
            answer = self.get(path, method)
            for header, expected in (("Docker-Content-Digest", truth.digest),
                                     ("Content-Type", truth.media_type),
                                     ("Content-Length", str(len(truth.body)))):
                same(f"{method} {path}: {header}", answer.headers[header], expected)
        same(f"GET {path}: body", answer.body, truth.body)

    def _blobs(self, truth):
        for digest in truth.blobs:
            answer = self.get(f"/v2/docker.io/library/{truth.name}/blobs/{digest}")
            same(f"sha256 of blob {digest}", images.sha256(answer.body), digest)

    def _referrers(self, truth):
        path = f"/v2/docker.io/library/{truth.name}/referrers/{truth.digest}"
        everything = self._referrers_of(path)
        same(f"{path}: kinds", sorted(e["artifactType"] for e in everything), [images.SBOM, images.SIGNATURE])
        filtered = self._referrers_of(f"{path}?artifactType={images.SBOM}", filtered=True)
        same(f"{path}: filtered kinds", [e["artifactType"] for e in filtered], [images.SBOM])
        referrer = self.get(f"/v2/docker.io/library/{truth.name}/manifests/{filtered[0]['digest']}")
        same("digest of the referrer", images.sha256(referrer.body), filtered[0]["digest"])
        same("subject of the referrer", json.loads(referrer.body)["subject"]["digest"], truth.digest)

    def _referrers_of(self, path, filtered=False):
        answer = self.get(path)
        same(f"{path}: Content-Type", answer.headers["Content-Type"], images.INDEX)
        if filtered:
            same(f"{path}: OCI-Filters-Applied", answer.headers["OCI-Filters-Applied"], "artifactType")
        return json.loads(answer.body)["manifests"]

    def needs(self, truth):
        if truth.name == "artifact":
            # The fallback index and the one referrer that is fetched come on top.
            return truth.blobs, {truth.digest, "fallback index", "referrer"}
        return set(), {truth.digest}


class PlainAlias(Plain):
    """Plain HTTP: a registry with a port in its name, by its alias and by ?ns=."""
    label = "http-alias"
    pulls = ("forty",)
    names = ("ex/library/{name}",)
    namespaces = ("registry.example:5000", "registry.example%3A5000")

    def seen(self, truth):
        return f"/v2/ex/library/{truth.name}/manifests/"
