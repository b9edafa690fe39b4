"""The air gap: images cross from one Larder to another as files, and clients pull them there with nobody to ask.

Walk: skopeo fills the open Larder; it is bundled and signed; skopeo, umoci and podman read the bundle; the closed
Larder, offline, takes it in; dockerd, containerd and podman pull from it; the second crossing brings only what is new;
what other tools save comes in (archives.py).
"""

import json
import subprocess

from archives import archives
from clients import Containerd, Dockerd, Podman, Skopeo
from larder import Larder
from work import Failed, answers, free_port

CLOSED = """\
[server]
listen = "127.0.0.1:{port}"

[admin]
listen = "127.0.0.1:{admin}"

[cache]
path = "{cache}"
offline = true

[bundle]
trusted_keys = ["{key}"]
"""
MOST_OVERHEAD = 1.02  # of an increment, over the new blobs
FULL, MORE = ("multi", "forty", "zstd"), "debian"


class Closed:
    """The isolated site: its port is all that clients need."""

    def __init__(self, work, path, key):
        self.work, self.path = work, path
        self.port, self.admin = free_port(), free_port()
        self.config = work.folder / "closed.toml"
        self.config.write_text(CLOSED.format(port=self.port, admin=self.admin, key=key,
                                             cache=work.folder / "closed-cache"))
        self.process = None

    def start(self):
        self.process = self.work.start("larder-closed", [self.path, "serve", "--config", self.config])
        self.process.await_ready(lambda: answers(self.admin, "/readyz"))

    def stop(self):
        if self.process:
            self.process.stop()
            self.process = None

    recipe = Larder.recipe

    def bundle(self, *argv):
        return self.work.run("larder-closed-bundle", [self.path, "bundle", *argv, "--config", self.config])


def air_gap(bench):
    work, larder = bench.work, bench.larder
    folder = work.make("gap")
    clients, closed = [], None

    def bundle(*argv):
        return work.run("larder-bundle", [larder.path, "bundle", *argv, "--config", larder.config])

    def hold(names):
        reader = Skopeo(work, larder, "skopeo-gap")
        clients.append(reader)
        for name in names:
            reader.fresh()
            reader.pull(bench.truth[name])

    try:
        larder.start_empty("bundle", tag_ttl="1h")
        bundle("keygen", folder / "key")
        public = (folder / "key.pub").read_text().splitlines()[-1]
        hold(FULL)
        full = folder / "full.tar"
        bundle("create", full, "--partial", "--key", folder / "key")
        others_read(work, full, bench.truth)
        bench.ok("bundle", "skopeo, umoci and podman read it")

        closed = Closed(work, larder.path, public)
        closed.start()
        closed.bundle("import", full)
        bench.upstream.stop()
        pull_all(work, closed, clients, [bench.truth[name] for name in FULL])
        bench.ok("bundle", "dockerd, containerd and podman pull from the closed side")
        bench.upstream.start()

        receipt = folder / "receipt.json"
        closed.bundle("receipt", "--out", receipt)
        hold([MORE])
        more = folder / "more.tar"
        made = json.loads(bundle("create", more, "--partial", "--since", receipt, "--key", folder / "key", "--json"))
        new, size = made["plan"]["bytes"], more.stat().st_size
        if size > new * MOST_OVERHEAD:
            raise Failed(f"the increment has {size} bytes for {new} new ones")
        closed.bundle("import", more)
        bench.upstream.stop()
        pull_all(work, closed, clients, [bench.truth[MORE]])
        bench.ok("bundle", f"an increment of {size} bytes for {new} new ones ({size / new:.4f})")
        theirs(bench, closed, folder)
        archives(bench, closed, folder)
    finally:
        for one in [*clients, closed, larder, bench.upstream]:
            if one:
                one.stop()
        bench.upstream.start()


def pull_all(work, closed, clients, truths):
    for kind in (Dockerd, Containerd, Podman):
        client = kind(work, closed, f"{kind.label}-gap")
        clients.append(client)
        client.fresh()
        for truth in truths:
            if truth.name in kind.pulls:
                client.pull(truth)
        client.stop()


def others_read(work, full, truths):
    name = "docker.io/library/forty:1"
    work.run("skopeo-gap", ["skopeo", "copy", f"oci-archive:{full}:{name}", f"dir:{work.make('gap/skopeo')}"])
    found = work.folder / "gap/skopeo/manifest.json"
    if found.read_bytes() != work_bytes(truths["forty"], found):
        raise Failed("skopeo read another manifest")
    unpacked = work.make("gap/layout")
    subprocess.run(["tar", "xf", str(full), "-C", str(unpacked)], check=True)
    if name not in work.run("umoci", ["umoci", "ls", "--layout", unpacked]):
        raise Failed("umoci does not list the image")
    storage = ["--root", work.make("gap/podman"), "--runroot", work.make("gap/podman-run"), "--storage-driver", "vfs"]
    work.run("podman-gap", ["podman", *storage, "pull", "-q", f"oci-archive:{full}:{name}"])


def work_bytes(truth, found):
    """The manifest that the digest names, if that is it."""
    import hashlib
    content = found.read_bytes()
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    return content if digest in truth.manifests else b""


def theirs(bench, closed, folder):
    """What skopeo wrote, both kinds."""
    layout = folder / "layout"
    for kind, target in (("oci-archive", folder / "theirs.tar"), ("docker-archive", folder / "save.tar")):
        source = f"oci:{layout}:docker.io/library/forty:1"
        bench.work.run("skopeo-gap", ["skopeo", "copy", source, f"{kind}:{target}:x.example/{kind}:1"])
        told = closed.bundle("import", target, "--as", f"docker.io/theirs/{kind}:1")
        if f"docker.io/theirs/{kind}:1: new" not in told:
            raise Failed(f"{kind}: {told}")
    bench.ok("bundle", "what skopeo wrote comes in: oci-archive and docker-archive")
