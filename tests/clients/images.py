"""The content that is pulled: images made here, byte by byte, so that nothing
in them depends on a tool's conversions. registry.py pushes them.

    debian    a Debian root file system (debootstrap), one gzip layer, Docker schema 2
    forty     40 gzip layers of incompressible bytes, OCI
    multi     an OCI index: linux/amd64 and linux/arm64
    zstd      three zstd layers, OCI
    artifact  an OCI artifact and two referrers, listed by the fallback tag
    big       one 256 MiB layer
"""

import gzip
import hashlib
import io
import json
import os
import random
import re
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from work import Failed, tail

OCI = "application/vnd.oci.image."
MANIFEST, INDEX, CONFIG = OCI + "manifest.v1+json", OCI + "index.v1+json", OCI + "config.v1+json"
GZIP_LAYER, ZSTD_LAYER = OCI + "layer.v1.tar+gzip", OCI + "layer.v1.tar+zstd"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
DOCKER = "application/vnd.docker."
DOCKER_MANIFEST = DOCKER + "distribution.manifest.v2+json"
DOCKER_CONFIG = DOCKER + "container.image.v1+json"
DOCKER_LAYER = DOCKER + "image.rootfs.diff.tar.gzip"

SBOM, SIGNATURE = "application/vnd.example.sbom.v1", "application/vnd.example.signature.v1"
BIG_BYTES = 256 * 1024 * 1024


@dataclass
class Blob:
    """Bytes under a digest: in memory, or in a file when they are many."""
    media_type: str
    digest: str
    size: int
    content: bytes | Path
    diff_id: str = ""  # a layer's digest before compression

    def descriptor(self):
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass
class Manifest:
    media_type: str
    body: bytes
    blobs: list = field(default_factory=list)      # config first, then layers
    children: list = field(default_factory=list)   # manifests that must be pushed first
    tags: list = field(default_factory=list)

    @property
    def digest(self):
        return sha256(self.body)

    def descriptor(self, **more):
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.body), **more}


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def blob(media_type, data, diff_id=""):
    return Blob(media_type, sha256(data), len(data), data, diff_id)


def encode(document):
    return json.dumps(document, indent=2).encode()


def noise(name, size):
    """Incompressible bytes, the same in every run."""
    return random.Random(name).randbytes(size)


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def gzip_layer(files):
    plain = tar_of(files)
    return blob(GZIP_LAYER, gzip.compress(plain, 1, mtime=0), sha256(plain))


def zstd_layer(files):
    plain = tar_of(files)
    packed = subprocess.run(["zstd", "-q", "-c"], input=plain, stdout=subprocess.PIPE, check=True)
    return blob(ZSTD_LAYER, packed.stdout, sha256(plain))


def image(arch, layers, tags=(), docker=False):
    """A manifest for one platform, and the configuration that goes with it."""
    config = blob(DOCKER_CONFIG if docker else CONFIG, encode({
        "created": "2026-01-01T00:00:00Z",
        "architecture": arch,
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created_by": f"layer {n}"} for n in range(len(layers))],
    }))
    media_type = DOCKER_MANIFEST if docker else MANIFEST
    body = encode({"schemaVersion": 2, "mediaType": media_type, "config": config.descriptor(),
                   "layers": [layer.descriptor() for layer in layers]})
    return Manifest(media_type, body, [config, *layers], tags=list(tags))


def index(entries, tags, children):
    body = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
    return Manifest(INDEX, body, children=children, tags=list(tags))


# --- the six repositories, each as a list of manifests to push in that order ---


def forty(arch, _folder):
    layers = [gzip_layer({f"layer-{n:02}": noise(f"forty {n}", 150_000 + 7_000 * n)}) for n in range(40)]
    return [image(arch, layers, ["1", "latest", "stable"])]


def multi(_arch, _folder):
    images = {a: image(a, [gzip_layer({f"for-{a}": noise(a, 60_000)})]) for a in ("amd64", "arm64")}
    entries = [m.descriptor(platform={"architecture": a, "os": "linux"}) for a, m in images.items()]
    return [index(entries, ["1"], list(images.values()))]


def zstd(arch, _folder):
    layers = [zstd_layer({f"z-{n}": noise(f"zstd {n}", 200_000)}) for n in range(3)]
    return [image(arch, layers, ["1"])]


def artifact(_arch, _folder):
    """docker-registry knows no referrers API, so the index of the referrers lies
    under the tag that the distribution specification names for that case."""
    subject = _artifact("application/vnd.example.thing.v1", b"the thing itself\n", tags=["1"])
    referrers = [_artifact(SBOM, b'{"parts": []}\n', subject), _artifact(SIGNATURE, b"signed\n", subject)]
    entries = [m.descriptor(artifactType=kind, annotations={"org.example.kind": kind})
               for m, kind in zip(referrers, (SBOM, SIGNATURE))]
    return [subject, index(entries, [subject.digest.replace(":", "-")], referrers)]


def _artifact(kind, data, subject=None, tags=()):
    config, layer = blob(EMPTY_CONFIG, b"{}"), blob(kind, data)
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind,
                "config": config.descriptor(), "layers": [layer.descriptor()]}
    if subject:
        document["subject"] = subject.descriptor()
    return Manifest(MANIFEST, encode(document), [config, layer], tags=list(tags))


def big(arch, folder):
    """Not a tar archive: nothing unpacks it."""
    path, sha = folder / "big.blob", hashlib.sha256()
    source = random.Random("big")
    with open(path, "wb") as out:
        for _ in range(BIG_BYTES // 2**20):
            piece = source.randbytes(2**20)
            sha.update(piece)
            out.write(piece)
    digest = "sha256:" + sha.hexdigest()
    layer = Blob(OCI + "layer.v1.tar", digest, BIG_BYTES, path, diff_id=digest)
    return [image(arch, [layer], ["1"])]


def debian(arch, folder):
    root = folder / "debian-root"
    _debootstrap(root, folder / "debootstrap.log")
    layer = _pack(root, folder / "debian-layer.tar.gz")
    return [image(arch, [layer], ["bookworm", "latest"], docker=True)]


def _debootstrap(root, log):
    mirror, suite = apt_mirror()
    env = dict(os.environ)
    proxy = apt_setting("Acquire::http::Proxy")
    if proxy and proxy != "DIRECT":
        env["http_proxy"] = proxy
    with open(log, "wb") as sink:
        done = subprocess.run(["debootstrap", "--variant=minbase", suite, str(root), mirror],
                              stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env, timeout=400)
    # debootstrap leaves these behind when it is interrupted.
    for point in ("proc", "sys"):
        subprocess.run(["umount", "--lazy", str(root / point)], capture_output=True)
    if done.returncode != 0:
        raise Failed(f"debootstrap {suite} failed:\n{tail(log)}")


def _pack(root, target):
    """tar and gzip in one go, hashing both sides."""
    plain, size = hashlib.sha256(), 0
    tar = subprocess.Popen(["tar", "-C", str(root), "--sort=name", "--numeric-owner", "--one-file-system",
                            "--exclude=./var/cache/apt/archives/*.deb", "--exclude=./dev/*", "-c", "."],
                           stdout=subprocess.PIPE)
    with open(target, "wb") as out, gzip.GzipFile("", "wb", 1, out, mtime=0) as packed:
        while piece := tar.stdout.read(2**20):
            plain.update(piece)
            packed.write(piece)
    if tar.wait() != 0:
        raise Failed(f"tar of {root}: status {tar.returncode}")
    with open(target, "rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    size = target.stat().st_size
    return Blob(DOCKER_LAYER, "sha256:" + digest, size, target, "sha256:" + plain.hexdigest())


# --- where this machine gets its Debian packages from ---


def apt_mirror():
    """The archive and suite of this machine's own release, as apt is configured
    (apt parses both styles of its source files)."""
    codename = re.search(r"^VERSION_CODENAME=\"?(\w+)", Path("/etc/os-release").read_text(), re.M)
    if not codename:
        raise Failed("/etc/os-release names no release: no suite for debootstrap")
    suite = codename[1]
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT)",
         "Created-By: Packages"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        uri, *releases, component = line.split()  # "stable bookworm", or twice the same
        if suite in releases and component == "main" and uri.startswith("http"):
            return uri, suite
    raise Failed(f"apt has no http(s) source for {suite} main, which debootstrap needs; it has:\n{listed}")


def apt_setting(key):
    shown = subprocess.run(["apt-config", "shell", "VALUE", key], capture_output=True, text=True, check=True)
    return shown.stdout.strip().removeprefix("VALUE=").strip("'\"")


def arch():
    """This machine's architecture by its name in images."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


BUILDERS = {"debian": debian, "forty": forty, "multi": multi, "zstd": zstd, "artifact": artifact, "big": big}
TAGS = {"debian": "bookworm"}  # the tag that is pulled; "1" for the others
