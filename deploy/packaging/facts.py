"""What is fixed about every release, and what is read from the source: names, version, commit, time."""

import os
import posixpath
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

# The oldest glibc that the program runs with. A build that needs a newer one is refused (program.py); docs/release.md and the
# package's dependency name it too. 2.34 is older than that of Debian 12, Ubuntu 22.04 and RHEL 9.
GLIBC_FLOOR = "2.34"
# tests/deploy/run runs the program in it.
OLDEST_DEBIAN = "bookworm"
# Maintainer of the package and author of the image. The project has no mailbox, and an invented one would swallow reports of
# faults: SECURITY.md says where these go. Debian's policy (5.6.2) wants an address in packages of Debian's archive; dpkg and apt
# take a name alone. An address comes here, and nowhere else, as the address of the source comes to `repository` in Cargo.toml.
MAINTAINER = "The Larder developers"
MAINTAINER_ADDRESS = None
DESCRIPTION = """\
 Missing blobs and manifests are fetched from upstream registries, verified,
 kept on disk under a limit, and served from there, also when the upstream is
 slow, rate-limited or out of reach.
"""
# Of the package, when only the packaging changes.
DEBIAN_REVISION = "1"
# The image's user; deploy/Dockerfile and deploy/kubernetes have the same.
IMAGE_USER = 65532
# What an ELF header calls the machine -> target of Rust, Debian's and the image's name of it.
MACHINES = {62: ("x86_64-unknown-linux-gnu", "amd64"), 183: ("aarch64-unknown-linux-gnu", "arm64")}


class Refused(Exception):
    """No release can be made; the message says why."""


@dataclass
class Source:
    version: str
    licence: str
    summary: str
    repository: str | None
    revision: str   # commit, with "-dirty" after it for uncommitted changes
    epoch: int      # seconds; the time that all files get

    @property
    def short_revision(self):
        """As the program has it in larder_build_info; deploy/build makes the same."""
        commit, dash, dirty = self.revision.partition("-")
        return commit[:12] + dash + dirty


@dataclass
class Release:
    source: Source
    target: str
    arch: str
    binary: Path    # stripped
    rust: str | None    # version of the compiler, which brings its library; None if the program was stripped before
    needs: list     # Debian packages
    man: dict       # file name -> bytes
    completions: dict

    @property
    def version(self):
        return self.source.version

    @property
    def epoch(self):
        return self.source.epoch

    @property
    def name(self):
        return f"larder-{self.version}-{self.target}"


def run(*command, **options):
    """What a command prints, as bytes."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, capture_output=True, **options)
    except OSError as error:
        raise Refused(f"{command[0]}: {error}") from error
    if done.returncode:
        raise Refused(f"{' '.join(command)}: status {done.returncode}\n{done.stderr.decode(errors='replace')[-3000:]}")
    return done.stdout


def git(*words):
    # Where the checkout belongs to another user, as in some CI containers, git would refuse.
    # log.showSignature would put words before what a log prints.
    return run("git", "-c", f"safe.directory={PROJECT}", "-c", "log.showSignature=false", "-C", PROJECT, *words).decode().strip()


def maintainer():
    """The field of a Debian package."""
    return f"{MAINTAINER} <{MAINTAINER_ADDRESS}>" if MAINTAINER_ADDRESS else MAINTAINER


def source(dirty):
    package = tomllib.loads((PROJECT / "Cargo.toml").read_text(encoding="utf-8"))["package"]
    # Sources that were unpacked inside another checkout would take its commit for theirs.
    if (top := Path(git("rev-parse", "--show-toplevel"))).resolve() != PROJECT:
        raise Refused(f"{PROJECT} is no checkout of its own, but a part of {top}: no commit describes the release")
    revision = git("rev-parse", "HEAD")
    if changed := git("status", "--porcelain", "--untracked-files=normal"):
        if not dirty:
            raise Refused(f"the checkout has changes, so no commit describes the release (--dirty goes on):\n{changed}")
        revision += "-dirty"
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    if not re.fullmatch(r"\d{1,11}", epoch):
        raise Refused(f"SOURCE_DATE_EPOCH is {epoch!r}, wanted seconds since 1970")
    return Source(
        package["version"], package["license"], package["description"], package.get("repository"),
        revision, int(epoch),
    )  # fmt: skip


def licence_text():
    return (PROJECT / "LICENSE").read_bytes()


# Where the texts begin that go with the program. What they link goes too.
FIRST_TEXTS = re.compile(r"(README|CHANGELOG|SECURITY)\.md|proxy\.toml\.example|docs/[^/]+\.md")
# What makes releases is of use in a checkout only.
NOT_PACKED = re.compile(r"deploy/(build|release|packaging(/.*)?)")
CODE = re.compile(r"(?ms)^ *(```|~~~).*?^ *\1|`[^`\n]*`")
LINK = re.compile(r"\]\(([^()\s]+)\)")


def documents():
    """The texts that go with the program, by their path in the checkout, which keeps the links among them.

    LICENSE is not among them: each kind of package has a place of its own for it.
    """
    known = git("ls-files", "-z").rstrip("\0").split("\0")
    first = [path for path in known if FIRST_TEXTS.fullmatch(path)]
    return followed({path: (PROJECT / path).read_bytes() for path in first}, known)


def followed(texts, known):
    """The texts, with those of the known files that they link, those that these link, and so on."""
    found, wanted = dict(texts), list(texts)
    while wanted:
        path = wanted.pop()
        for link in links(path, found[path]):
            target = normalised(path, link)
            files = [name for name in known if name == target or name.startswith(f"{target}/")]
            if not files:
                raise Refused(f"{path} links {link}, which is no file of the checkout")
            for name in files:
                if name not in found and name != "LICENSE" and (name == target or not NOT_PACKED.fullmatch(name)):
                    found[name] = (PROJECT / name).read_bytes()
                    wanted.append(name)
    return dict(sorted(found.items()))


def links(path, text):
    """The relative links of a document, without the part of the page that they lead to."""
    if not path.endswith(".md"):
        return []
    found = [link.partition("#")[0] for link in LINK.findall(CODE.sub("", text.decode()))]
    return [link for link in found if link and not re.match(r"[a-z]+:", link)]


def normalised(path, link):
    """The path of what a document links, from the folder that the path of the document begins from."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def relinked(texts, moved):
    """The texts, with links to what has another path in a package: `moved` has the new path by the old one."""

    def link(path, match):
        before, hash, part = match[1].partition("#")
        target = moved.get(normalised(path, before)) if before and ":" not in before else None
        return f"]({posixpath.relpath(target, posixpath.dirname(path) or '.')}{hash}{part})" if target else match[0]

    return {
        path: LINK.sub(lambda match: link(path, match), text.decode()).encode() if path.endswith(".md") else text
        for path, text in texts.items()
    }  # fmt: skip
