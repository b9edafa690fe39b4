"""The private workspace of a run: one temporary folder, the processes started
in it, waiting with deadlines, and a small HTTP client.

Nothing here knows about registries; see registry.py, larder.py and clients.py.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

OWN_AGENT = "larder-clients-run"  # marks our own requests, which are not counted


class Failed(Exception):
    """Something under test is wrong; the message is for the person who reads it."""


def await_true(what, probe, seconds):
    """Polls `probe` until it returns something true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


def request(port, path, method="GET", headers=None, body=None, seconds=60):
    """One HTTP/1.1 request to loopback. No redirects, no proxies, no retries."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request(method, path, body, {"User-Agent": OWN_AGENT, **(headers or {})})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def post_by_socket(path, target, body, seconds=180):
    """A POST of a tar to a daemon at a Unix socket; what it said."""
    connection = http.client.HTTPConnection("localhost", timeout=seconds)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(seconds)
    connection.sock.connect(str(path))
    try:
        connection.request("POST", target, body, {"Content-Type": "application/x-tar"})
        answer = Answer(connection.getresponse())
    finally:
        connection.close()
    if answer.status != 200:
        raise Failed(f"POST {target}: {answer.status}: {answer.body[:300].decode(errors='replace')}")
    return answer.body


def answers(port, path):
    """Whether a GET is answered with 200; for waiting until a server is up."""
    try:
        return request(port, path, seconds=2).status == 200
    except OSError:
        return False


def tail(path, lines=25):
    """The end of a log, indented."""
    if not path.exists():
        return f"      ({path.name} is missing)"
    with open(path, "rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 20_000))
        text = log.read().decode(errors="replace")
    shown = ("".join(c for c in line if c.isprintable()) for line in text.splitlines()[-lines:])
    return "\n".join("      " + line for line in shown)


class Process:
    """A daemon that we started; it is ended by its own pid, and only that."""

    def __init__(self, name, log, argv, env, cwd):
        self.name, self.log = name, log
        with open(log, "ab") as sink:
            # A session of its own, so that Ctrl-C reaches this script alone,
            # which then stops the daemons in order.
            self.child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                env=env, cwd=cwd, start_new_session=True)

    @property
    def pid(self):
        return self.child.pid

    def await_ready(self, probe, seconds=30):
        def ready_or_dead():
            if self.child.poll() is not None:
                raise Failed(f"{self.name} ended with status {self.child.returncode}")
            return probe()
        try:
            await_true(f"{self.name} to be ready", ready_or_dead, seconds)
        except Failed as failure:
            raise Failed(f"{failure}\n{tail(self.log)}") from None

    def stop(self, seconds=30):
        if self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise Failed(f"{self.name} was still there {seconds} s after SIGTERM") from None


class Work:
    """The temporary folder and everything that runs in it."""

    def __init__(self, keep):
        self.keep = keep
        self.folder = Path(tempfile.mkdtemp(prefix="larder-clients."))
        self.logs = self.make("logs")
        self.processes = []
        self.overlay = self._overlay_works()
        self._own_blob_info_cache()

    def make(self, name):
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def env(self, **more):
        """A clean environment: no proxies, no credentials, no LARDER_* settings,
        no configuration of the person who runs this."""
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.make("home")),
            "TMPDIR": str(self.make("tmp")),
            **more,
        }

    def start(self, name, argv, **env):
        process = Process(name, self.logs / f"{name}.log", [str(a) for a in argv],
                          self.env(**env), self.folder)
        self.processes.append(process)
        return process

    def run(self, name, argv, seconds=180, **env):
        """Runs a command to its end and returns what it printed on stdout."""
        log = self.logs / f"{name}.log"
        argv = [str(a) for a in argv]
        with open(log, "ab") as sink:
            sink.write(f"$ {' '.join(argv)}\n".encode())
            sink.flush()
            try:
                done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=sink, env=self.env(**env), cwd=self.folder,
                                      timeout=seconds)
            except subprocess.TimeoutExpired:
                raise Failed(f"{name}: no end after {seconds} s: {' '.join(argv)}\n{tail(log)}") from None
            sink.write(done.stdout[:4000])
        if done.returncode != 0:
            raise Failed(f"{name}: status {done.returncode}: {' '.join(argv)}\n{tail(log, 8)}")
        return done.stdout.decode()

    def empty(self, folder):
        """Removes a folder, and first whatever is mounted below it."""
        for point in self._mounts_below(folder):
            subprocess.run(["umount", "--lazy", point], check=False)
        # --one-file-system: should a mount be left after all, it is not entered.
        subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)

    def close(self, ok):
        """Ends what still runs, removes the folder; after a failure the logs stay."""
        for process in reversed(self.processes):
            try:
                process.stop(10)
            except Failed as failure:
                print(f"while cleaning up: {failure}")
        if self.keep:
            print(f"kept: {self.folder}")
        elif ok:
            self.empty(self.folder)
        else:
            for entry in self.folder.iterdir():
                if entry != self.logs:
                    self.empty(entry)
            print(f"logs: {self.logs}")

    def _own_blob_info_cache(self):
        """podman and skopeo note what they saw where under a path that no option
        changes; they get a private one (in our mount namespace only, see `run`)."""
        fixed = Path("/var/lib/containers/cache")
        fixed.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(self.make("blob-info")), str(fixed)], check=True)

    @staticmethod
    def _mounts_below(folder):
        points = [line.split()[4] for line in open("/proc/self/mountinfo")]
        return [p for p in reversed(points) if p.startswith(f"{folder}/") or p == str(folder)]

    def _overlay_works(self):
        """Whether overlayfs can be mounted on this folder's file system (not
        inside another overlay, for example)."""
        lower, upper, scratch, merged = (self.make(f"probe/{n}") for n in "luwm")
        options = f"lowerdir={lower},upperdir={upper},workdir={scratch}"
        mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)],
                                 capture_output=True).returncode == 0
        self.empty(self.folder / "probe")
        return mounted


def exit_on_signals():
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that the cleaning up happens."""
    def leave(number, _frame):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)


def have(command):
    return shutil.which(command, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is not None
