"""The program under test: build, start, restart, what it logged and how much memory it took."""

import os
import subprocess
from pathlib import Path

from work import Failed, answers, free_port

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
[server]
listen = "127.0.0.1:{port}"

[admin]
listen = "127.0.0.1:{admin}"

[cache]
path = "{cache}"
max_size = "10GiB"
tag_ttl = "{tag_ttl}"

[upstream."docker.io"]
url = "http://127.0.0.1:{upstream}"

[upstream."registry.example:5000"]
url = "http://127.0.0.1:{upstream}"
aliases = ["ex"]
"""


def binary():
    """$LARDER, or else a release build of this tree (at once, when it is fresh)."""
    given = os.environ.get("LARDER")
    if given:
        path = Path(given).resolve()
    else:
        path = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "larder"
        print("cargo build --release", flush=True)
        subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "larder"], cwd=ROOT, check=True)
    if not os.access(path, os.X_OK):
        raise Failed(f"{path} is not there or cannot be run; LARDER names another")
    return path


class Larder:
    def __init__(self, work, path, upstream_port):
        self.work, self.path, self.upstream_port = work, path, upstream_port
        self.port, self.admin = free_port(), free_port()
        self.cache = work.folder / "cache"
        self.config = work.folder / "larder.toml"
        self.name = "larder"  # and of its log: one for each case
        self.process = None
        self.peak = 0  # bytes, the highest since start_empty

    def start_empty(self, case, tag_ttl="0s"):
        """A cold cache. With a tag_ttl of 0s every tag is asked for upstream, so
        that an upstream which is gone is really missed."""
        self.stop()
        self.name = f"larder-{case}"
        self.work.empty(self.cache)
        self.config.write_text(CONFIG.format(port=self.port, admin=self.admin, cache=self.cache,
                                             tag_ttl=tag_ttl, upstream=self.upstream_port))
        self.peak = 0
        self._start()

    def restart(self):
        self.stop()
        self._start()

    def _start(self):
        self.process = self.work.start(self.name, [self.path, "serve", "--config", self.config])
        self.process.await_ready(lambda: answers(self.admin, "/readyz"))

    def recipe(self, client, port, *more):
        """What `larder client-config` prints for a client that comes to this port."""
        argv = [self.path, "client-config", client, "--config", self.config, "--address", f"127.0.0.1:{port}", *more]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"larder client-config {client}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def stop(self):
        if self.process:
            self.memory()
            self.process.stop()
            self.process = None

    def memory(self):
        """VmHWM and RssAnon in bytes: the peak, and what of it is not file pages now."""
        figures = {}
        try:
            for line in open(f"/proc/{self.process.pid}/status"):
                key, _, value = line.partition(":")
                if key in ("VmHWM", "RssAnon"):
                    figures[key] = int(value.split()[0]) * 1024
        except (FileNotFoundError, AttributeError):
            pass
        self.peak = max(self.peak, figures.get("VmHWM", 0))
        return self.peak, figures.get("RssAnon", 0)

    @property
    def log(self):
        return self.work.logs / f"{self.name}.log"

    def mark(self):
        return self.log.stat().st_size

    def logged_since(self, mark):
        with open(self.log, "rb") as log:
            log.seek(mark)
            return log.read().decode(errors="replace")
