"""The package in a Debian that was booted, with systemd: what `apt` does to the service, and a first pull through it.

Takes a minute and needs systemd-nspawn, so it runs with LARDER_LONG=1 only; artefacts.py has the package in a chroot.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import time

import artefacts
from helpers import Failed, expect, run

SYSTEM = ["systemd", "systemd-sysv", "dbus"]


class Machine:
    """A booted Debian with a network of its own, in which nothing but loopback is."""

    def __init__(self, process):
        until = time.monotonic() + 30
        while not (pid := first_process(process.pid)):
            expect(time.monotonic() < until and process.poll() is None, "systemd-nspawn started no init")
            time.sleep(0.05)
        self.pid = pid

    def command(self, *words):
        return ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "env", "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive",
                *[str(word) for word in words]]  # fmt: skip

    def run(self, *words, check=True):
        return run(*self.command(*words), check=check)

    def outside(self, *words):
        """A program of this machine in the network of that one."""
        return ["nsenter", f"--target={self.pid}", "--net", *[str(word) for word in words]]

    def say(self, *words):
        return self.run(*words, check=False).stdout.strip()

    def wait_for(self, *words, wanted, seconds=60):
        until = time.monotonic() + seconds
        while (found := self.say(*words)) not in wanted:
            if time.monotonic() > until:
                raise Failed(f"{' '.join(words)}: {found!r}, wanted {wanted}\n{self.say('journalctl', '--no-pager', '-n', '40')}")
            time.sleep(0.2)


def first_process(parent):
    """The process below that one which is the first of its own namespace."""
    try:
        children = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for child in children:
            status = pathlib.Path(f"/proc/{child}/status").read_text()
            if re.search(r"(?m)^NSpid:.*\s1$", status):
                return int(child)
            if found := first_process(child):
                return found
    except OSError:
        return None
    return None


@contextlib.contextmanager
def booted(root, log):
    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--boot", f"--directory={root}"]
    with open(log, "w+") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        try:
            machine = Machine(process)
            machine.wait_for("systemctl", "is-system-running", wanted=("running", "degraded"))
            yield machine
            machine.run("systemctl", "poweroff", check=False)
            process.wait(60)
        except Failed as error:
            sink.seek(0)
            raise Failed(f"{error}\n{sink.read()[-2000:]}") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def machine(folder, _):
    """Installed by apt, the service runs; it takes a change of its configuration, is pulled through, upgraded and purged."""
    root = folder / "root"
    run("cp", "-a", artefacts.debian(folder.parent), root, timeout=300)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    run(*artefacts.inside(root, "apt-get", "install", "-q", "-y", "--no-install-recommends", *SYSTEM), timeout=600)
    deb = artefacts.released(folder, "*.deb")
    newer = artefacts.second_version(deb, folder)
    for name, file in (("larder.deb", deb), ("newer.deb", newer)):
        # apt reads it as a user of its own.
        shutil.copy(file, root / "srv" / name)
    (root / "etc/machine-id").write_text("")
    with booted(root, folder / "machine.log") as debian, artefacts.upstream(folder, debian.outside) as port:
        def apt(*words):
            debian.run("apt-get", "-q", "-y", "--no-install-recommends", *words)

        apt("install", "/srv/larder.deb")
        for unit, active, enabled in (("larder.service", "active", "enabled"), ("larder.socket", "inactive", "disabled")):
            debian.wait_for("systemctl", "is-active", unit, wanted=(active,))
            debian.wait_for("systemctl", "is-enabled", unit, wanted=(enabled,))
        debian.run("larder", "health")
        debian.run("larder", "stats")
        conffile = root / "etc/larder/proxy.toml"
        changed = f'{conffile.read_text()}\n[upstream."docker.io"]\nurl = "http://127.0.0.1:{port}"\n'
        conffile.write_text(changed)
        debian.run("systemctl", "reload", "larder")
        pull(debian, folder, "first")
        first = debian.say("systemctl", "show", "--property=MainPID", "larder")
        apt("-o", "DPkg::Options::=--force-confdef", "install", "/srv/newer.deb")
        debian.wait_for("systemctl", "is-active", "larder", wanted=("active",))
        expect(debian.say("systemctl", "show", "--property=MainPID", "larder") != first, "the upgrade has restarted nothing")
        expect(conffile.read_text() == changed, "the upgrade has replaced a changed conffile")
        pull(debian, folder, "upgraded")
        listed = debian.run("larder", "ls").stdout
        expect(f"library/{artefacts.IMAGE}:1" in listed, f"what was cached before the upgrade is gone:\n{listed}")
        # A configuration that is refused: it fails once, and waits for somebody.
        conffile.write_text(changed + "[cash]\n")
        expect(debian.run("systemctl", "restart", "larder", check=False).returncode, "a wrong configuration is taken")
        # Longer than RestartSec.
        time.sleep(4)
        state = debian.say("systemctl", "show", "--property=ActiveState,NRestarts", "larder")
        expect(state.split() == ["ActiveState=failed", "NRestarts=0"] or state.split() == ["NRestarts=0", "ActiveState=failed"], state)
        conffile.write_text(changed)
        debian.run("systemctl", "restart", "larder")
        # docs/deploy.md: a restart that refuses nobody.
        debian.run("systemctl", "stop", "larder")
        debian.run("systemctl", "enable", "--now", "larder.socket")
        debian.run("systemctl", "start", "larder")
        pull(debian, folder, "socket")
        debian.run("systemctl", "restart", "larder")
        pull(debian, folder, "restarted")
        complaints = debian.say("systemctl", "list-units", "--failed", "--plain", "--no-legend", "larder*")
        expect(not complaints, complaints)
        apt("purge", "larder")
        expect(debian.say("systemctl", "is-active", "larder.service") != "active", "purged, and it runs")
        left = [path for path in ("var/lib/larder", "var/lib/private/larder", "var/log/larder", "run/larder", "usr/bin/larder")
                if os.path.lexists(root / path)]  # fmt: skip
        expect(not left, f"purging has left {left}")
    return "booted by systemd-nspawn"


def pull(debian, folder, name):
    image = f"docker://127.0.0.1:5000/docker.io/library/{artefacts.IMAGE}:1"
    run(*debian.outside("skopeo", "copy", "-q", "--src-tls-verify=false", image, f"dir:{folder / name}"))
