"""Installs the programs that a run needs and this machine lacks."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

from work import have

# Command -> packages that bring it, best first (Debian moved some of them).
PACKAGES = {
    "dockerd": ["docker.io"],
    "docker": ["docker-cli", "docker.io"],
    "containerd": ["containerd"],
    "ctr": ["containerd"],
    "runc": ["runc"],
    "podman": ["podman"],
    "skopeo": ["skopeo"],
    "umoci": ["umoci"],
    "docker-registry": ["docker-registry"],
    "debootstrap": ["debootstrap"],
    "zstd": ["zstd"],
    "curl": ["curl"],
    "openssl": ["openssl"],
    "nginx": ["nginx"],
    "haproxy": ["haproxy"],
    "pebble": ["pebble"],
    "pebble-challtestsrv": ["pebble"],
}
# Without these a case is reported as not run, and nothing is held against it.
OPTIONAL = {"haproxy"}
POLICY = Path("/usr/sbin/policy-rc.d")


def install(commands):
    """Tries to make all of `commands` available; returns those that are still missing."""
    missing = [c for c in commands if not have(c)]
    if not missing:
        return set()
    print(f"installing what is missing: {' '.join(sorted(missing))}", flush=True)
    _apt("update", "-q")
    with _no_service_starts():
        for command in sorted(missing):
            if not have(command):  # an earlier package may have brought it
                _install_first_known(PACKAGES[command])
    return {c for c in missing if not have(c)}


def versions(commands):
    """What is being tried, for the record: the first line of each `--version`."""
    for command in sorted(commands):
        if have(command):
            shown = subprocess.run([command, "--version"], capture_output=True, text=True)
            lines = (shown.stdout or shown.stderr).splitlines()
            print(f"  {command}: {lines[0] if lines else 'says no version'}", flush=True)


def _install_first_known(packages):
    for package in packages:
        known = subprocess.run(["apt-cache", "show", package], capture_output=True)
        if known.returncode == 0:
            print(f"  apt-get install {package}", flush=True)
            _apt("install", "-q", "-y", "--no-install-recommends", package)
            return
    print(f"  apt knows none of: {' '.join(packages)}", flush=True)


def _apt(*words):
    """apt-get; its output is shown only when it fails. A failure is not the end:
    the cases whose program is missing then fail, and say so."""
    done = subprocess.run(["apt-get", *words], capture_output=True, text=True,
                          env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if done.returncode != 0:
        print(f"apt-get {' '.join(words)}: status {done.returncode}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


@contextmanager
def _no_service_starts():
    """Packages must not start their daemons on this machine: Debian asks
    policy-rc.d, and 101 means no. One that is already there is left alone."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
