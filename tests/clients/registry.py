"""The real registry behind Larder (Debian's docker-registry): start, stop, push,
and what its access log says was asked of it.

The log is the witness for "one transfer": one line per request, Apache's
combined format, written when the answer has been sent.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field

import images
from work import OWN_AGENT, Failed, answers, await_true, free_port, request

CONFIG = """\
version: 0.1
log:
  accesslog:
    disabled: false
  level: warn
storage:
  filesystem:
    rootdirectory: {root}
  maintenance:
    uploadpurging:
      enabled: false
http:
  addr: 127.0.0.1:{port}
  secret: not-a-secret
"""
LINE = re.compile(r'^\S+ - \S+ \[[^\]]*\] "(\S+) (\S+) HTTP/[^"]*" (\d+) (\d+) "[^"]*" "([^"]*)"$')
# What the clients call themselves: none of them may be seen upstream.
CLIENT_AGENTS = ("docker/", "containerd/", "containers/", "skopeo/", "libpod/", "Buildah/", "curl/")


@dataclass
class Traffic:
    """The requests that reached the upstream in one phase."""
    head_manifests: int = 0
    head_blobs: int = 0
    manifests: Counter = field(default_factory=Counter)  # GETs, by path
    blobs: Counter = field(default_factory=Counter)      # GETs, by digest
    other: int = 0
    bytes: int = 0
    strangers: set = field(default_factory=set)

    def add(self, method, path, status, size, agent):
        if method != "HEAD":  # docker-registry logs the size of a body that it does not send
            self.bytes += size
        if agent.startswith(CLIENT_AGENTS):
            self.strangers.add(agent)
        bare = path.partition("?")[0]
        kind, _, last = bare.rpartition("/")
        if kind.endswith("/manifests") and method == "HEAD":
            self.head_manifests += 1
        elif kind.endswith("/blobs") and method == "HEAD":
            self.head_blobs += 1
        # A GET that was refused moved nothing; a 304 or a 206 is a GET all the same.
        elif kind.endswith("/manifests") and method == "GET" and status < 400:
            self.manifests[bare] += 1
        elif kind.endswith("/blobs") and method == "GET" and status < 400:
            self.blobs[last] += 1
        else:
            self.other += 1


@dataclass
class Truth:
    """What the upstream itself says about an image, asked directly."""
    name: str
    tag: str
    body: bytes          # of what the tag names: a manifest or an index
    media_type: str
    digest: str
    platform: str        # digest of this machine's manifest (the same, unless an index)
    manifests: set       # every manifest below the tag, the index included
    config: str
    layers: list         # digests as transferred
    diff_ids: list       # digests as unpacked (none for artifacts)
    every_blob: set      # of all platforms

    @property
    def blobs(self):
        """What a client of this machine's platform needs."""
        return {self.config, *self.layers}


class Registry:
    def __init__(self, work):
        self.work = work
        self.port = free_port()
        self.log = work.logs / "upstream.log"
        self.process = None
        self.marks = 0
        self.config = work.folder / "upstream.yml"
        self.config.write_text(CONFIG.format(root=work.make("upstream"), port=self.port))

    def start(self):
        self.process = self.work.start("upstream", ["docker-registry", "serve", self.config])
        self.process.await_ready(lambda: answers(self.port, "/v2/"))

    def stop(self):
        """The upstream is gone: connections to it are refused."""
        if self.process:
            self.process.stop()
            self.process = None

    # --- the access log ---

    def mark(self):
        """A place in the log from where to count."""
        self._settle()
        return self.log.stat().st_size

    def since(self, mark):
        self._settle()
        traffic = Traffic()
        with open(self.log, "rb") as log:
            log.seek(mark)
            for line in log.read().decode(errors="replace").splitlines():
                found = LINE.match(line)
                if found and found[5] != OWN_AGENT:
                    traffic.add(found[1], found[2], int(found[3]), int(found[4]), found[5])
        return traffic

    def _settle(self):
        """A line may appear a moment after its answer arrived. So ask something
        ourselves and wait for that line: the earlier ones stand before it."""
        if not self.process:
            return
        self.marks += 1
        path = f"/v2/?settle={self.marks}"
        request(self.port, path)
        await_true("the upstream's access log", lambda: f"GET {path} ".encode() in self.log.read_bytes(), 10)

    # --- filling it ---

    def push(self, name, manifests):
        for manifest in manifests:
            self.push(name, manifest.children)
            for blob in manifest.blobs:
                self._push_blob(name, blob)
            for reference in [manifest.digest, *manifest.tags]:
                self._expect(201, "PUT", f"/v2/library/{name}/manifests/{reference}",
                             {"Content-Type": manifest.media_type}, manifest.body)

    def _push_blob(self, name, blob):
        begun = self._expect(202, "POST", f"/v2/library/{name}/blobs/uploads/", {"Content-Length": "0"})
        target = begun.headers["Location"].partition(f":{self.port}")[2]
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        path = f"{target}&digest={blob.digest}"
        if isinstance(blob.content, bytes):
            self._expect(201, "PUT", path, headers, blob.content)
        else:
            with open(blob.content, "rb") as source:
                self._expect(201, "PUT", path, headers, source)

    def _expect(self, status, method, path, headers=None, body=None):
        answer = request(self.port, path, method, headers, body)
        if answer.status != status:
            raise Failed(f"upstream: {method} {path}: {answer.status}, not {status}: {answer.body[:300]}")
        return answer

    # --- asking it directly, to compare ---

    def truth(self, name):
        tag = images.TAGS.get(name, "1")
        answer = self._manifest(name, tag)
        document = json.loads(answer.body)
        digest = answer.headers["Docker-Content-Digest"]
        everything = {digest: document}
        platform = digest
        for child in document.get("manifests", []):
            everything[child["digest"]] = json.loads(self._manifest(name, child["digest"]).body)
            if child["platform"]["architecture"] == images.arch():
                platform = child["digest"]
        mine = everything[platform]
        return Truth(
            name, tag, answer.body, answer.headers["Content-Type"], digest, platform, set(everything),
            mine["config"]["digest"], [layer["digest"] for layer in mine["layers"]],
            self._diff_ids(name, mine["config"]["digest"]),
            {d["digest"] for m in everything.values() if "config" in m for d in (m["config"], *m["layers"])})

    def _manifest(self, name, reference):
        accept = ", ".join((images.INDEX, images.MANIFEST, images.DOCKER_MANIFEST))
        return self._expect(200, "GET", f"/v2/library/{name}/manifests/{reference}", {"Accept": accept})

    def _diff_ids(self, name, config):
        document = json.loads(self._expect(200, "GET", f"/v2/library/{name}/blobs/{config}").body)
        return document.get("rootfs", {}).get("diff_ids", [])
