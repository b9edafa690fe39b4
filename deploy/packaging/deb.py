"""The Debian package, by dpkg-deb: no debhelper, so that a machine needs nothing but dpkg."""

import email.utils
import hashlib
import os

import archive
import facts
from archive import Tree
from facts import run
from program import completion

TEXTS = facts.PROJECT / "deploy/packaging/debian"
DOCS = "usr/share/doc/larder"
# Texts that Debian wants elsewhere, or by another name.
MOVED = {"CHANGELOG.md": "changelog.gz", "LICENSE": "copyright"}
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions",
    "zsh": "usr/share/zsh/vendor-completions",
    "fish": "usr/share/fish/vendor_completions.d",
}


def version_of(release):
    # In Debian's order of versions "~" comes before the end: 1.0~rc.1 is older than 1.0.
    return f"{release.version.replace('-', '~')}-{facts.DEBIAN_REVISION}"


def contents(release, licences):
    tree = Tree()
    tree.file("usr/bin/larder", release.binary, 0o755)
    tree.file("etc/larder/proxy.toml", (TEXTS / "proxy.toml").read_bytes())
    for unit in ("larder.service", "larder.socket"):
        tree.file(f"usr/lib/systemd/system/{unit}", (facts.PROJECT / "deploy" / unit).read_bytes())
    for name, page in release.man.items():
        tree.file(f"usr/share/man/man1/{name}.gz", archive.gzipped(page))
    for shell, text in release.completions.items():
        tree.file(f"{COMPLETIONS[shell]}/{completion(shell)}", text)
    for name in ("alerts.yaml", "grafana.json"):
        tree.file(f"usr/share/larder/{name}", (facts.PROJECT / "deploy" / name).read_bytes())
    texts = facts.documents()
    for path, text in facts.relinked(texts, MOVED).items():
        if path not in MOVED:
            tree.file(f"{DOCS}/{path}", text)
    tree.file(f"{DOCS}/changelog.gz", archive.gzipped(texts["CHANGELOG.md"]))
    tree.file(f"{DOCS}/changelog.Debian.gz", archive.gzipped(changelog(release)))
    tree.file(f"{DOCS}/copyright", (TEXTS / "copyright").read_bytes())
    tree.file(f"{DOCS}/THIRD-PARTY.txt.gz", archive.gzipped(licences))
    return tree


def changelog(release):
    when = email.utils.formatdate(release.epoch)
    return (
        f"larder ({version_of(release)}) unstable; urgency=medium\n\n"
        f"  * Release {release.version}; changelog.gz says what is new.\n\n -- {facts.MAINTAINER} <{facts.MAINTAINER_ADDRESS or ''}>  {when}\n"
    ).encode()


def control(release, tree):
    size = sum(len(read(entry)) for entry in tree.entries.values())
    homepage = f"Homepage: {release.source.repository}\n" if release.source.repository else ""
    return (
        f"Package: larder\nVersion: {version_of(release)}\nArchitecture: {release.arch}\nMaintainer: {facts.maintainer()}\n"
        f"Installed-Size: {(size + 1023) // 1024}\nDepends: {', '.join(release.needs)}\nRecommends: ca-certificates, tzdata\n"
        f"Section: net\nPriority: optional\n{homepage}Description: pull-through cache of container registries\n{facts.DESCRIPTION}"
    ).encode()


def read(entry):
    return entry.content if isinstance(entry.content, bytes) else entry.content.read_bytes()


def write(release, licences, dist, work):
    tree = contents(release, licences)
    sums = [f"{hashlib.md5(read(entry), usedforsecurity=False).hexdigest()}  {path}\n"
            for path, entry in sorted(tree.entries.items()) if not path.startswith("etc/")]  # fmt: skip
    conffiles = [f"/{path}\n" for path in sorted(tree.entries) if path.startswith("etc/")]
    tree.file("DEBIAN/control", control(release, tree))
    tree.file("DEBIAN/md5sums", "".join(sums).encode())
    tree.file("DEBIAN/conffiles", "".join(conffiles).encode())
    for script in ("postinst", "prerm", "postrm"):
        tree.file(f"DEBIAN/{script}", (TEXTS / script).read_bytes(), 0o755)
    archive.write_folder(work, tree)
    work.chmod(0o755)
    for path in [work, *work.rglob("*")]:
        os.utime(path, (release.epoch, release.epoch))
    # One thread: how xz cuts its blocks depends on how many there are. The level is dpkg-deb's own; a variable could set another.
    run("dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "-Snone", "--threads-max=1", "--build", work,
        dist / f"larder_{version_of(release)}_{release.arch}.deb",
        env={**os.environ, "SOURCE_DATE_EPOCH": str(release.epoch)})  # fmt: skip
