"""What is fixed about every release, and what is read from the source: names, version, commit, time."""

import os
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
MAINTAINER = "The Larder developers <larder@larder.example>"
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
    homepage: str | None
    revision: str   # commit, with "-dirty" after it for uncommitted changes
    epoch: int      # seconds; the time that all files get


@dataclass
class Release:
    source: Source
    target: str
    arch: str
    binary: Path    # stripped
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


def source(dirty):
    package = tomllib.loads((PROJECT / "Cargo.toml").read_text())["package"]

    def git(*words):
        # Where the checkout belongs to another user, as in some CI containers, git would refuse.
        return run("git", "-c", f"safe.directory={PROJECT}", "-C", PROJECT, *words).decode().strip()

    revision = git("rev-parse", "HEAD")
    if changed := git("status", "--porcelain"):
        if not dirty:
            raise Refused(f"the checkout has changes, so no commit describes the release (--dirty goes on):\n{changed}")
        revision += "-dirty"
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    if not re.fullmatch(r"\d{1,11}", epoch):
        raise Refused(f"SOURCE_DATE_EPOCH is {epoch!r}, wanted seconds since 1970")
    return Source(
        package["version"], package["license"], package["description"], package.get("homepage", package.get("repository")),
        revision, int(epoch),
    )  # fmt: skip


def licence_text():
    """The licence in full. Debian has it too, for a tree that came without."""
    for path in (PROJECT / "LICENSE", Path("/usr/share/common-licenses/Apache-2.0")):
        if path.is_file():
            return path.read_bytes()
    raise Refused("there is no LICENSE")


def documents():
    """The texts that go with the program, by their path in the checkout, which keeps the links among them."""
    found = [PROJECT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "proxy.toml.example")]
    found += sorted((PROJECT / "docs").glob("*.md"))
    found += [PROJECT / "deploy" / name for name in ("metrics.md", "webhooks.md", "alerts.yaml", "grafana.json", "compose.yaml")]
    found += [PROJECT / "deploy" / name for name in ("larder.service", "larder.socket")]
    found += sorted((PROJECT / "deploy/kubernetes").glob("*.yaml"))
    return {str(path.relative_to(PROJECT)): path.read_bytes() for path in found if path.is_file()}
