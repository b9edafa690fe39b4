"""Archives that other tools write, taken in by the closed side: whatever is inside comes, or is named.

Walk: dockerd, containerd and podman hold images that they pulled from the closed Larder; each saves them in its forms,
gzip and zstd compress them, crane's form is made as crane writes it; the closed Larder takes each in under a name of its own,
and serves it byte for byte.
"""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile

from clients import Containerd, Dockerd, Podman, Skopeo
from work import Failed, request

ONE, OTHER = "forty", "multi"
ACCEPT = ", ".join(f"application/vnd.oci.image.{kind}.v1+json" for kind in ("index", "manifest")) + \
    ", application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json"


class Imports:
    """`larder bundle import` into one Larder."""

    def __init__(self, work, closed):
        self.work, self.closed = work, closed

    def take(self, source, *options, expect=0, stdin=None):
        """The report of one import."""
        argv = [self.closed.path, "bundle", "import", source, *options, "--json", "--config", self.closed.config]
        with open(stdin or "/dev/null", "rb") as feed:
            done = subprocess.run([str(word) for word in argv], capture_output=True, env=self.work.env(), stdin=feed)
        if done.returncode != expect:
            raise Failed(f"{' '.join(map(str, argv))}: status {done.returncode}: {done.stderr.decode()}")
        return json.loads(done.stdout)

    def named(self, source, name, *options, **more):
        """Imports one image, as `name`, and checks that all of it is served."""
        report = self.take(source, "--as", name, *options, **more)
        rows = {row["name"]: row for row in report["images"]}
        if name not in rows or rows[name]["outcome"] not in ("new", "moved", "unchanged"):
            raise Failed(f"{source}: {report}")
        self.served(name, rows[name]["digest"])
        return report

    def served(self, name, digest):
        """A manifest and all below it that is held; the layers of one platform at least."""
        repository, _, reference = name.rpartition(":")
        layers = self._manifest(repository, reference, digest)
        if not layers:
            raise Failed(f"{name}: no layer is served")

    def _manifest(self, repository, reference, digest):
        answer = request(self.closed.port, f"/v2/{repository}/manifests/{reference}", headers={"Accept": ACCEPT})
        if answer.status == 404 and reference == digest:
            return 0  # a platform that was not inside
        if answer.status != 200 or "sha256:" + hashlib.sha256(answer.body).hexdigest() != digest:
            raise Failed(f"{repository}:{reference}: {answer.status} {answer.body[:200]}")
        manifest = json.loads(answer.body)
        found = sum(self._manifest(repository, child["digest"], child["digest"]) for child in manifest.get("manifests", []))
        for blob in [*manifest.get("layers", []), *([manifest["config"]] if "config" in manifest else [])]:
            answer = request(self.closed.port, f"/v2/{repository}/blobs/{blob['digest']}")
            if "sha256:" + hashlib.sha256(answer.body).hexdigest() != blob["digest"]:
                raise Failed(f"{repository}: {blob['digest']}: {answer.status}")
            found += 1
        return found


def archives(bench, closed, folder):
    work, imports = bench.work, Imports(bench.work, closed)
    one, other = bench.truth[ONE], bench.truth[OTHER]
    target = work.make("gap/archives")
    for client in (Dockerd, Podman, Containerd):
        user = client(work, closed, f"{client.label}-save")
        user.fresh()
        try:
            for truth in (one, other):
                user.pull(truth)
            {Dockerd: docker, Podman: podman, Containerd: containerd}[client](user, imports, target, one, other)
        finally:
            user.stop()
        bench.ok("bundle", f"what {client.label} saves comes in")
    skopeo(work, imports, folder, target, one)
    crane(work, imports, target)
    bench.ok("bundle", "what skopeo copies without a tag and what crane pulls come in")


def compressed(path):
    """The archive itself, and as gzip and zstd, without a name that says so."""
    packed, other = path.with_suffix(".a"), path.with_suffix(".b")
    with open(path, "rb") as plain, gzip.open(packed, "wb", compresslevel=1) as sink:
        sink.write(plain.read())
    subprocess.run(["zstd", "-q", "-f", "--long=25", "-1", str(path), "-o", str(other)], check=True)
    return path, packed, other


def docker(user, imports, target, one, other):
    # A name of its own: under the image's own one its tag would move to the manifest that is made for it.
    name = "saved:1"
    user.docker("tag", f"{one.name}:{one.tag}", name)
    ident = json.loads(user.docker("image", "inspect", f"{other.name}:{other.tag}"))[0]["Id"]
    saved = target / "docker.tar"
    user.docker("save", "-o", saved, name)
    for number, path in enumerate(compressed(saved)):
        imports.named(path, f"docker.io/docker/save:{number}")
        imports.named("-", f"docker.io/docker/standard:{number}", stdin=path)
    # docker save NAME ID: the second has no name, which is said; and as that says it is taken.
    user.docker("save", "-o", saved, name, ident)
    report = imports.take(saved, expect=1)
    left = report["not_taken"]
    if len(left) != 1 or "--only" not in left[0]["option"]:
        raise Failed(f"docker save NAME ID: {report}")
    only = left[0]["option"].split()[1]
    imports.named(saved, "docker.io/docker/by-id:1", "--only", only)
    # Both at once, under one repository.
    report = imports.take(saved, "--as", "docker.io/docker/both")
    if len(report["images"]) != 2 or report["not_taken"]:
        raise Failed(f"docker save NAME ID --as: {report}")


def podman(user, imports, target, one, other):
    for form in ("docker-archive", "oci-archive", "docker-dir", "oci-dir"):
        saved = target / f"podman-{form}"
        user.podman("save", "--quiet", "--format", form, "-o", saved, user.reference(one))
        imports.named(saved, f"docker.io/podman/{form}:1")
        if form.endswith("archive"):
            for number, path in enumerate(compressed(saved)[1:]):
                imports.named(path, f"docker.io/podman/{form}:{number + 2}")
    saved = target / "podman-many"
    user.podman("save", "--quiet", "-m", "-o", saved, user.reference(one), user.reference(other))
    # Both have the tag 1: one repository has room for one of them, so each is taken for itself.
    for truth in (one, other):
        imports.named(saved, f"docker.io/podman/many-{truth.name}:1", "--only", user.reference(truth))


def containerd(user, imports, target, one, other):
    reference = f"docker.io/library/{one.name}:{one.tag}"
    by_digest = f"docker.io/library/{one.name}@{one.digest}"
    alias = one.config
    # As the kubelet does: the same image by tag, by digest and by its ID.
    user.ctr("images", "tag", reference, by_digest)
    user.ctr("images", "tag", reference, alias)
    saved = target / "containerd.tar"
    user.ctr("images", "export", saved, reference, by_digest, alias, f"docker.io/library/{other.name}:{other.tag}")
    for path in compressed(saved):
        report = imports.take(path)
        names = {row["name"] for row in report["images"]}
        if not {reference, by_digest} <= names or report["not_taken"] or any("sha256:" in name and "@" not in name for name in names):
            raise Failed(f"ctr images export: {report}")
        imports.served(reference, one.digest)


def skopeo(work, imports, folder, target, one):
    layout = folder / "layout"
    source = f"oci:{layout}:docker.io/library/{one.name}:{one.tag}"
    copier = Skopeo(work, imports.closed, "skopeo-save")
    copier.fresh()
    for form in ("oci-archive", "docker-archive", "dir", "oci"):
        saved = target / f"skopeo-{form}"
        copier.skopeo("copy", "-q", source, f"{form}:{saved}")
        # Without a name it is named, and nothing is taken.
        argv = [imports.closed.path, "bundle", "inspect", saved]
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, env=work.env())
        if done.returncode == 0 or "--as NAME:TAG" not in done.stderr:
            raise Failed(f"{form} without a name: {done.returncode} {done.stdout} {done.stderr}")
        imports.named(saved, f"docker.io/skopeo/{form}:1")


def crane(work, imports, target):
    """`crane pull`, `ko`, `kaniko --tar-path`: a docker archive whose layers are gzip, made here as they make it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("made"), io.BytesIO())
    layer = layer.getvalue()
    packed = gzip.compress(layer, mtime=0)
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {
        "type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}).encode()
    name = "sha256:" + hashlib.sha256(config).hexdigest()
    file = hashlib.sha256(packed).hexdigest() + ".tar.gz"
    listed = json.dumps([{"Config": name, "RepoTags": ["made.example/by/crane:1"], "Layers": [file]}]).encode()
    saved = target / "crane.tar"
    with tarfile.open(saved, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path, content in ((name, config), (file, packed), ("manifest.json", listed)):
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    report = imports.take(saved)
    row = report["images"][0]
    if row["name"] != "made.example/by/crane:1":
        raise Failed(f"crane: {report}")
    # Only names of upstreams that are configured are served.
    imports.named(saved, "docker.io/made/crane:1")
    # skopeo, a real client, takes it from there.
    copier = Skopeo(work, imports.closed, "skopeo-crane")
    copier.fresh()
    copier.skopeo("copy", "-q", "--src-tls-verify=false",
                  f"docker://127.0.0.1:{imports.closed.port}/docker.io/made/crane:1", f"dir:{work.make('gap/crane')}")
