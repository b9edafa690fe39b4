"""What all checks of deploy/ share: commands, waiting, and asking a Larder whether it serves."""

import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

PROJECT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "deploy"
LARDER = pathlib.Path(os.environ.get("LARDER", PROJECT / "target/release/larder")).resolve()
NOBODY = 65534
IMAGE_USER = 65532


class Failed(Exception):
    pass


def run(*command, check=True, timeout=300, **options):
    command = [str(word) for word in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        raise Failed(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done


def expect(condition, what):
    if not condition:
        raise Failed(what)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answer(url, seconds=20):
    """What comes from there, as soon as something does."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as got:
                return got.read().decode()
        except OSError as error:
            if time.monotonic() > until:
                raise Failed(f"{url}: {error}") from error
            time.sleep(0.05)


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as got:
            return got.status
    except urllib.error.HTTPError as error:
        return error.code


def serves(registry, admin):
    expect(answer(f"http://127.0.0.1:{registry}/v2/") == "{}", "no answer of a registry")
    ready = json.loads(answer(f"http://127.0.0.1:{admin}/readyz"))
    expect(ready["ready"], f"not ready: {ready}")
