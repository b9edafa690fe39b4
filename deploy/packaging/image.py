"""The container image, as an OCI layout. No registry is asked: its base is a handful of Debian's packages.

Two layers: Debian's files with their own times, so that the layer stays the same while the packages do, and the program.
"""

import datetime
import hashlib
import io
import json
import os
import re
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import archive
import facts
from archive import Entry, Tree
from facts import Refused, run

# What the program needs to run, and time zones, which schedules name. It brings the certificates of the public authorities itself.
PACKAGES = ["base-files", "libc6", "libgcc-s1", "tzdata"]
# What nobody in the image reads. Licences stay.
LEFT_OUT = re.compile(
    r"usr/share/(man|info|lintian|locale|dict|base-files|misc)(/|$)|usr/share/doc/[^/]+/(?!copyright$)|usr/(games|include|src)(/|$)"
    r"|etc/(skel|update-motd\.d|default|profile\.d|issue|issue\.net)(/|$)|(usr/)?lib/[^/]+/gconv(/|$)|var/(local|backups|mail|opt)(/|$)"
)
PASSWD = f"""\
root:x:0:0:root:/root:/usr/sbin/nologin
larder:x:{facts.IMAGE_USER}:{facts.IMAGE_USER}:Larder:/var/lib/larder:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = f"root:x:0:\nlarder:x:{facts.IMAGE_USER}:\nnogroup:x:65534:\n"
NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
SECOND = 1_000_000_000
OCI = "application/vnd.oci.image"


@dataclass
class Package:
    """A Debian package that is part of the image."""
    file: Path
    name: str
    version: str
    arch: str
    distribution: str   # as in debian-12

    @property
    def url(self):
        vendor = self.distribution.partition("-")[0]
        return f"pkg:deb/{vendor}/{quote(self.name, safe='')}@{quote(self.version, safe='')}?arch={self.arch}&distro={self.distribution}"


def fetch(release, folder):
    """The packages, from the archive that this machine's apt is set up for; apt checks their signatures."""
    native = run("dpkg", "--print-architecture").decode().strip()
    if native != release.arch:
        raise Refused(f"the program is for {release.arch}, this machine's packages are for {native}")
    folder.mkdir()
    system = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(encoding="utf-8")))
    distribution = f"{system.get('ID', 'linux')}-{system.get('VERSION_ID', 'unknown')}"
    download(PACKAGES, folder)
    # Where libgcc-s1 has its licence.
    depends = run("dpkg-deb", "-f", *folder.glob("libgcc-s1_*.deb"), "Depends").decode()
    download(re.findall(r"\bgcc-\d+-base\b", depends), folder)
    found = []
    for file in folder.glob("*.deb"):
        name, version, arch = (run("dpkg-deb", "-f", file, key).decode().strip() for key in ("Package", "Version", "Architecture"))
        found.append(Package(file, name, version, arch, distribution))
    return sorted(found, key=lambda package: package.name)


def download(names, folder):
    if not names:
        return
    for more in (True, True, False):
        try:
            run("apt-get", "download", "-q", *names, cwd=folder)
            return
        except Refused:
            if not more or os.geteuid() != 0:
                raise
        # The lists may be missing, or too old.
        try:
            run("apt-get", "update", "-q")
        except Refused:
            # Another apt may hold their lock; then it fetches them.
            time.sleep(5)


def base(packages):
    tree = Tree()
    for package in packages:
        add_files(tree, package)
        control = tarfile.open(fileobj=io.BytesIO(run("dpkg-deb", "--ctrl-tarfile", package.file)))
        # Where scanners look for packages that came without dpkg.
        for member, name in (("./control", package.name), ("./md5sums", f"{package.name}.md5sums")):
            if member in control.getnames():
                tree.file(f"var/lib/dpkg/status.d/{name}", control.extractfile(member).read())
    tree.file("etc/passwd", PASSWD.encode())
    tree.file("etc/group", GROUP.encode())
    tree.file("etc/nsswitch.conf", NSSWITCH.encode())
    return tree


def add_files(tree, package):
    with tarfile.open(fileobj=io.BytesIO(run("dpkg-deb", "--fsys-tarfile", package.file))) as files:
        for info in files:
            path = info.name.removeprefix("./").rstrip("/")
            if path in ("", ".") or LEFT_OUT.match(path):
                continue
            if info.isdir():
                tree.entries.setdefault(path, Entry(tarfile.DIRTYPE, mode=info.mode & 0o1777))
            elif info.issym():
                tree.entries[path] = Entry(tarfile.SYMTYPE, mode=0o777, link=info.linkname, mtime=int(info.mtime))
            elif info.islnk():
                tree.entries[path] = Entry(tarfile.LNKTYPE, mode=info.mode & 0o755, link=info.linkname.removeprefix("./"), mtime=int(info.mtime))
            elif info.isfile():
                content = files.extractfile(info).read()
                tree.entries[path] = Entry(tarfile.REGTYPE, content, info.mode & 0o755, mtime=int(info.mtime))
            else:
                raise Refused(f"{package.file.name} has {path}, which is no file, folder or link")


def program(release, licences, bill):
    tree = Tree()
    tree.file("usr/bin/larder", release.binary, 0o755)
    tree.file("etc/larder/proxy.toml", (facts.PROJECT / "deploy/packaging/image/proxy.toml").read_bytes())
    # Its group, 0, may write too: OpenShift runs each container as a user that it makes up, with that group.
    tree.folder("var/lib/larder", 0o770, facts.IMAGE_USER)
    tree.file("usr/share/doc/larder/LICENSE", facts.licence_text())
    tree.file("usr/share/doc/larder/THIRD-PARTY.txt", licences)
    # Scanners of images look for it.
    tree.file("usr/share/doc/larder/larder.cdx.json", bill)
    return tree


class Layout:
    """Blobs by digest, as in an OCI layout."""

    def __init__(self):
        self.blobs = {}

    def add(self, media_type, data):
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def add_json(self, media_type, value):
        return self.add(media_type, json.dumps(value, sort_keys=True, separators=(",", ":")).encode())

    def add_layer(self, tree, epoch):
        plain = io.BytesIO()
        archive.write_tar(plain, tree, epoch)
        digest = hashlib.sha256(plain.getvalue()).hexdigest()
        return self.add(f"{OCI}.layer.v1.tar+gzip", archive.gzipped(plain.getvalue(), 6)), f"sha256:{digest}"


def write(release, packages, licences, bill, dist):
    layout = Layout()
    files = base(packages)
    # Folders and files of ours in the base: as old as the youngest file of the packages, whatever the commit.
    youngest = max(entry.mtime for entry in files.entries.values() if entry.mtime is not None)
    layers = [layout.add_layer(files, youngest), layout.add_layer(program(release, licences, bill), release.epoch)]
    labels = labels_of(release)
    platform = {"architecture": release.arch, "os": "linux"} | ({"variant": "v8"} if release.arch == "arm64" else {})
    created = labels["org.opencontainers.image.created"]
    history = [f"Debian packages: {' '.join(f'{package.name}={package.version}' for package in packages)}", f"larder {release.version}"]
    config = layout.add_json(f"{OCI}.config.v1+json", platform | {
        "created": created,
        "config": {
            "User": f"{facts.IMAGE_USER}:{facts.IMAGE_USER}",
            "ExposedPorts": {"5000/tcp": {}},
            # No LARDER_* here: it would beat a configuration file that somebody mounts.
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": ["/usr/bin/larder"],
            "Cmd": ["serve"],
            "Volumes": {"/var/lib/larder": {}},
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": labels,
            # Docker's; reserved in OCI. docs/release.md says who heeds it.
            "Healthcheck": {"Test": ["CMD", "/usr/bin/larder", "health"], "Interval": 30 * SECOND, "Timeout": 10 * SECOND,
                            "StartPeriod": 10 * SECOND, "Retries": 3},
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        "history": [{"created": created, "created_by": text} for text in history],
    })  # fmt: skip
    manifest = layout.add_json(f"{OCI}.manifest.v1+json", {
        "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config,
        "layers": [layer for layer, _ in layers], "annotations": labels,
    })  # fmt: skip
    names = {"org.opencontainers.image.ref.name": release.version, "io.containerd.image.name": f"docker.io/library/larder:{release.version}"}
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json",
             "manifests": [manifest | {"platform": platform, "annotations": names}]}  # fmt: skip
    tree = Tree()
    tree.file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    tree.file("index.json", json.dumps(index, sort_keys=True, separators=(",", ":")).encode())
    for digest, data in layout.blobs.items():
        tree.file(f"blobs/sha256/{digest}", data)
    folder = dist / f"larder-{release.version}-image-{release.arch}"
    folder.mkdir()
    archive.write_folder(folder, tree)
    # In the archive also as `docker save` writes it: `docker load` of every age takes that.
    tree.file("manifest.json", json.dumps([{
        "Config": blob_path(config), "RepoTags": [f"larder:{release.version}"], "Layers": [blob_path(layer) for layer, _ in layers],
    }]).encode())  # fmt: skip
    with open(folder.with_name(folder.name + ".tar"), "wb") as out:
        archive.write_tar(out, tree, release.epoch)


def blob_path(descriptor):
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def labels_of(release):
    source = release.source
    created = datetime.datetime.fromtimestamp(release.epoch, datetime.UTC)
    labels = {
        "title": "Larder",
        "description": source.summary,
        "version": release.version,
        "revision": source.revision,
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "licenses": source.licence,
        "authors": facts.maintainer(),
    } | ({"source": source.repository} if source.repository else {})
    return {f"org.opencontainers.image.{key}": value for key, value in sorted(labels.items())}
