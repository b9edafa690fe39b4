"""What deploy/release makes, each of it run: the archive and the package in the oldest Debian, the image by podman.

Each has to reach a first pull through it, by skopeo, from a registry on loopback.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile

from helpers import DEPLOY, IMAGE_USER, LARDER, NOBODY, PROJECT, Failed, expect, free_port, run, serves

sys.path.append(str(DEPLOY / "packaging"))

import facts  # noqa: E402
import images  # noqa: E402
import program  # noqa: E402
import registry  # noqa: E402
import work  # noqa: E402

IMAGE = "forty"  # of tests/clients/images.py
CONFIG = """\
[server]
listen = "127.0.0.1:{registry}"
[admin]
listen = "127.0.0.1:{admin}"
[upstream."docker.io"]
url = "http://127.0.0.1:{upstream}"
"""


# --- what the checks share -------------------------------------------------------------------------------


def once(make):
    """Makes it once for all checks. A failure is told by each that needs it, and not tried again."""
    made = {}

    @functools.wraps(make)
    def give(folder):
        if folder not in made:
            try:
                made[folder] = make(folder)
            except (Failed, OSError, subprocess.TimeoutExpired) as error:
                made[folder] = error
        if isinstance(made[folder], Exception):
            raise made[folder]
        return made[folder]

    return give


@once
def releases(folder):
    """The same release twice, at the same time; the second in surroundings that are different in all that must not matter."""
    surroundings = [
        ({}, PROJECT, 0o022),
        # Where Python reads files as ASCII, unless it is told another encoding.
        ({"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "DPKG_DEB_COMPRESSOR_LEVEL": "1",
          "DPKG_DEB_COMPRESSOR_TYPE": "gzip", "HOME": str(folder)}, folder, 0o077),  # fmt: skip
    ]
    # The tools of Rust are found by the home folder, unless these say where.
    home = pathlib.Path.home()
    rust = {"CARGO_HOME": os.environ.get("CARGO_HOME", home / ".cargo"), "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", home / ".rustup")}
    running = []
    for number, (more, cwd, umask) in enumerate(surroundings):
        env = {**os.environ, **{key: str(value) for key, value in rust.items()}, **more}
        command = [PROJECT / "deploy/release", "--dirty", "--binary", LARDER, folder / f"dist-{number}"]
        running.append(subprocess.Popen(command, env=env, cwd=cwd, umask=umask, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in running:
        said = process.communicate(timeout=600)[0]
        expect(process.returncode == 0, f"deploy/release: status {process.returncode}\n{said[-3000:]}")
    return [folder / f"dist-{number}" for number in range(len(running))]


def released(folder, pattern):
    found = list(releases(folder.parent)[0].glob(pattern))
    expect(len(found) == 1, f"{pattern}: {[path.name for path in found]}")
    return found[0]


@once
def debian(folder):
    """A small root of the oldest Debian that is supported."""
    root = folder / "debian"
    mirror, _ = images.apt_mirror()
    env = dict(os.environ)
    proxy = images.apt_setting("Acquire::http::Proxy")
    if proxy and proxy != "DIRECT":
        env["http_proxy"] = proxy
    try:
        run("debootstrap", "--variant=minbase", facts.OLDEST_DEBIAN, root, mirror, env=env, timeout=400)
    finally:
        for point in ("proc", "sys"):
            subprocess.run(["umount", "--lazy", root / point], capture_output=True)
    return root


def inside(root, *command, user="0:0"):
    """A command line that runs there, with /proc, which is mounted for that command only."""
    script = 'mount -t proc proc "$1/proc" && root=$1 user=$2 && shift 2 && exec chroot --userspec="$user" "$root" "$@"'
    # A terminal or a configuration of the person who runs this has no say.
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(root), user, "env", "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent", "DEBIAN_FRONTEND=noninteractive",
            *[str(word) for word in command]]  # fmt: skip


class Place(work.Work):
    """What tests/clients/registry.py needs of a workspace."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        self.logs = self.make("logs")


@contextlib.contextmanager
def upstream(folder, elsewhere=None):
    """The port of a registry on loopback that has library/forty:1; `elsewhere` turns a command into one that runs in another network."""
    place = Place(folder / "upstream")
    source = registry.Registry(place)
    try:
        source.start()
        source.push(IMAGE, images.forty(images.arch(), folder))
        if elsewhere:
            source.stop()
            source.process = place.start("moved", elsewhere("docker-registry", "serve", source.config))
            listens = elsewhere("bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{source.port}")
            source.process.await_ready(lambda: run(*listens, check=False).returncode == 0)
        yield source.port
    except work.Failed as error:
        raise Failed(str(error)) from error
    finally:
        source.stop()


def pull(folder, port, name):
    """A first pull by a real client, which verifies what it gets."""
    out = folder / f"pulled-{name}"
    run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://127.0.0.1:{port}/docker.io/library/{IMAGE}:1", f"dir:{out}")
    layers = len(json.loads((out / "manifest.json").read_text())["layers"])
    expect(layers == 40, f"{layers} layers")


@contextlib.contextmanager
def running(command, log):
    with open(log, "w+") as sink:
        process = subprocess.Popen([str(word) for word in command], stdout=sink, stderr=sink)
        try:
            yield process
        except Failed as error:
            sink.seek(0)
            raise Failed(f"{error}\n{sink.read()[-2000:]}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
    expect(status == 0, f"stopped with status {status}: {log.read_text()[-1000:]}")


# --- the checks ------------------------------------------------------------------------------------------


def release(folder, bin):
    """Twice from one program: the same bytes. The sums are right and whole, and the bill of materials is CycloneDX."""
    first, second = releases(folder.parent)
    files = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    again = {path.relative_to(second): path.read_bytes() for path in second.rglob("*") if path.is_file()}
    different = sorted(str(name) for name in files.keys() | again.keys() if files.get(name) != again.get(name))
    expect(not different, f"not the same a second time: {', '.join(different)}")
    modes = {stat for stat in (oct(path.stat().st_mode & 0o777) for path in second.rglob("*"))}
    expect(modes <= {"0o644", "0o755"}, f"modes {modes}")
    run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=first)
    summed = {line.split("  ", 1)[1] for line in (first / "SHA256SUMS").read_text().splitlines()}
    expect(summed == {str(name) for name in files} - {"SHA256SUMS"}, f"sums of {sorted(summed)}")
    bill = released(folder, "*.cdx.json")
    check = (
        "import sys; from cyclonedx.validation.json import JsonStrictValidator; from cyclonedx.schema import SchemaVersion\n"
        "error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read()); sys.exit(str(error) if error else 0)"
    )
    run(bin / "python", "-c", check, bill)
    urls = [component["purl"] for component in json.loads(bill.read_text())["components"]]
    for wanted in ("pkg:cargo/tokio@", "pkg:cargo/ring@", "pkg:generic/rust-std@1.", "pkg:deb/debian/libc6@", "pkg:deb/debian/tzdata@"):
        expect(any(url.startswith(wanted) for url in urls), f"no {wanted} in the bill")
    # A tool for tests is no part of the program, and neither is a macro.
    for other in ("pkg:cargo/proptest@", "pkg:cargo/serde_derive@"):
        expect(not any(url.startswith(other) for url in urls), f"{other} in the bill")
    # A clean release is made of a program that names its commit, and no changes beside it.
    for text, right in ((b"of 0123456789ab", True), (b"0123456789ab-dirty", False), (b"0123456789ac", False)):
        (folder / "program").write_bytes(text)
        expect(program.names_commit(folder / "program", "0123456789ab") == right, f"names_commit of {text}")
    return f"{len(files)} files, {len(urls)} components"


def glibc_floor(folder, _):
    """The program needs no newer glibc than is promised; one that does is refused, and so is one that loads more libraries."""
    needs = program.needed_packages(LARDER)
    expect(f"libc6 (>= {facts.GLIBC_FLOOR})" in needs, f"needs {needs}")
    text = (PROJECT / "docs/release.md").read_text()
    expect(f"glibc {facts.GLIBC_FLOOR} " in text, f"docs/release.md does not name glibc {facts.GLIBC_FLOOR}")
    floor, facts.GLIBC_FLOOR = facts.GLIBC_FLOOR, "2.17"
    try:
        refused(lambda: program.needed_packages(LARDER), "GLIBC_2.17")
    finally:
        facts.GLIBC_FLOOR = floor
    refused(lambda: program.needed_packages(pathlib.Path(shutil.which("podman"))), "it may load")
    text = folder / "text"
    text.write_text("#!/bin/sh\necho larder\n")
    refused(lambda: program.machine(text), "no ELF program")
    return f"glibc {facts.GLIBC_FLOOR}"


def documents(folder, _):
    """Each link of the documents leads to a file of the same package, and each artefact that they name is one that is made."""
    place = folder / "debian"
    run("dpkg-deb", "-x", released(folder, "*.deb"), place)
    with tarfile.open(released(folder, "*.tar.gz")) as tar:
        tar.extractall(folder / "archive", filter="tar")
    counts = {}
    for root in (place / "usr/share/doc/larder", next((folder / "archive").iterdir())):
        dead, counts[root] = [], 0
        for page in sorted(root.rglob("*.md")):
            text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text())
            for link in re.findall(r"\]\(([^)]+)\)", re.sub(r"`[^`\n]+`", "", text)):
                target = link.partition("#")[0]
                if target and "://" not in target:
                    counts[root] += 1
                    if not (page.parent / target).exists():
                        dead.append(f"{page.relative_to(root)}: {link}")
        expect(not dead, f"dead links below {root.relative_to(folder)}:\n" + "\n".join(dead))
        expect(counts[root] > 100, f"{counts[root]} links below {root.relative_to(folder)}: this check is blind")
    # The reader puts these in.
    words = {"VERSION": facts_version(), "TARGET": "[a-z0-9_]+-unknown-linux-gnu", "ARCH": "(amd64|arm64)"}
    made = {path.name for path in releases(folder.parent)[0].iterdir()}
    named = set()
    for page in (PROJECT / "README.md", PROJECT / "docs/release.md", PROJECT / "docs/deploy.md"):
        found = set(re.findall(r"\blarder[-_]VERSION[\w.-]*\w", page.read_text()))
        expect(found, f"{page.name} names no artefact: this check is blind")
        named |= found
    for name in sorted(named):
        pattern = re.sub("|".join(words), lambda word: words[word[0]], name.replace(".", r"\."))
        # A folder inside the archive has the name of the archive.
        expect(any(re.fullmatch(rf"{pattern}(\.tar\.gz)?", file) for file in made), f"the documents name {name}; made are {sorted(made)}")
    refused(lambda: facts.followed({"README.md": b"[a](docs/a.md)"}, {"README.md"}), "links docs/a.md")
    return f"{sum(counts.values())} links, {len(named)} names"


def manual(folder, _):
    """The manual pages: each is set without a complaint, and together they name every command and option of `--help`."""
    root = folder / "debian"
    run("dpkg-deb", "-x", released(folder, "*.deb"), root)
    pages = sorted((root / "usr/share/man/man1").glob("*.1.gz"))
    shown = {}
    for page in pages:
        done = run("man", "--warnings=all", "--local-file", page, env={**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8"})
        expect(not done.stderr.strip(), f"{page.name}: {done.stderr}")
        shown[page.name.removesuffix(".1.gz")] = done.stdout
    larder = root / "usr/bin/larder"
    commands = re.findall(r"(?m)^  ([a-z][a-z-]+)  ", run(larder, "--help").stdout)
    expect(len(commands) > 10, f"commands: {commands}")
    for command in commands:
        if command == "help":
            continue
        page = shown.get(f"larder-{command}")
        expect(page, f"there is no page for larder {command}: {sorted(shown)}")
        options = set(re.findall(r"(?m)^ {2,6}(?:-\w, )?(--[a-z][a-z-]+)", run(larder, command, "--help").stdout))
        absent = sorted(option for option in options if option not in page)
        expect(not absent, f"larder-{command}(1) names no {', '.join(absent)}")
    return f"{len(pages)} pages"


def refused(what, why):
    try:
        what()
    except facts.Refused as refusal:
        expect(why in str(refusal), f"refused, but not because of {why!r}: {refusal}")
    else:
        raise Failed(f"not refused: {why}")


def archive(folder, _):
    """The program of the archive in the oldest Debian: the tour, and a pull."""
    root = debian(folder.parent)
    packed = released(folder, "*.tar.gz")
    name = packed.name.removesuffix(".tar.gz")
    with tarfile.open(packed) as tar:
        tar.extractall(root / "opt", filter="tar")
    place = root / "opt" / name
    for wanted in ("LICENSE", "THIRD-PARTY.txt", "README.md", "proxy.toml.example", "man/man1/larder.1", "completions/_larder"):
        expect((place / wanted).is_file(), f"{packed.name} has no {wanted}")
    licences = (place / "THIRD-PARTY.txt").read_text()
    for wanted in ("tokio 1.", "ring 0.", "\nthe standard library of Rust\n", "library/backtrace", "Permission is hereby granted", "Apache License"):
        expect(wanted in licences, f"THIRD-PARTY.txt has no {wanted!r}")
    expect("no symbols" in run("objdump", "-t", place / "larder").stdout, "the program is not stripped")
    run(*inside(root, f"/opt/{name}/larder", "check-config", "--config", f"/opt/{name}/proxy.toml.example"))
    run(*inside(root, f"/opt/{name}/larder", "demo", "--exit", user=f"{NOBODY}:{NOBODY}"))
    with upstream(folder) as port:
        client, admin = free_port(), free_port()
        (root / "tmp/larder.toml").write_text(CONFIG.format(registry=client, admin=admin, upstream=port) + '[cache]\npath = "/tmp/cache"\n')
        serve = inside(root, f"/opt/{name}/larder", "serve", "--config", "/tmp/larder.toml", user=f"{NOBODY}:{NOBODY}")
        with running(serve, folder / "larder.log"):
            serves(client, admin)
            pull(folder, client, "archive")
    return f"in Debian {facts.OLDEST_DEBIAN}"


def package(folder, _):
    """The package in the oldest Debian: installed, pulled through, upgraded, removed, purged, and each script run again."""
    root = debian(folder.parent)
    deb = released(folder, "*.deb")
    # systemd makes them, and leaves them.
    for kind in ("lib", "log"):
        (root / "var" / kind / "private").mkdir(exist_ok=True)
    before = tree_of(root)
    newer = second_version(deb, folder)

    def dpkg(*words):
        return run(*inside(root, "dpkg", *words)).stdout

    for file in (deb, newer):
        shutil.copy(file, root / "tmp" / file.name)
    field = run("dpkg-deb", "--field", deb, "Maintainer", "Homepage").stdout
    expect(f"Maintainer: {facts.maintainer()}\n" in field, field)
    # Names that nobody can have (RFC 2606): whoever writes there writes to nobody.
    expect(not re.search(r"\.(example|invalid|test)\b|example\.(com|org|net)", field), f"an invented address: {field}")
    dpkg("--install", f"/tmp/{deb.name}")
    verified = dpkg("--verify", "larder") + dpkg("--audit")
    expect(not verified.strip(), verified)
    for path in ("usr/bin/larder", "etc/larder/proxy.toml", "usr/lib/systemd/system/larder.service", "usr/share/larder/alerts.yaml",
                 "usr/share/larder/grafana.json", "usr/share/man/man1/larder-serve.1.gz", "usr/share/doc/larder/copyright",
                 "usr/share/bash-completion/completions/larder", "usr/share/zsh/vendor-completions/_larder",
                 "usr/share/fish/vendor_completions.d/larder.fish"):  # fmt: skip
        expect((root / path).is_file() or path.startswith("usr/share/"), f"there is no /{path}")
        expect(f"/{path}\n" in dpkg("--listfiles", "larder"), f"the package has no /{path}")
    enabled = root / "etc/systemd/system/multi-user.target.wants/larder.service"
    expect(enabled.is_symlink(), "the service is not enabled")
    expect(not (root / "etc/systemd/system/sockets.target.wants/larder.socket").is_symlink(), "the socket is enabled")
    meaning = run(*inside(root, "larder", "check-config")).stdout
    expect("/etc/larder/proxy.toml" in meaning, f"it does not read /etc/larder/proxy.toml:\n{meaning}")
    # As the unit has it: else commands would look elsewhere than the service.
    expect(re.search(r"folder +/var/lib/larder\n", meaning), f"its cache is not the service's:\n{meaning}")
    for program in re.findall(r"(?m)^Exec\w+=[-@:+!]*(\S+)", (root / "usr/lib/systemd/system/larder.service").read_text()):
        # Where systemd looks for it, which knows none of a shell's own commands.
        found = [place for place in ("usr/local/bin", "usr/bin", "bin") if (root / place / program.removeprefix("/bin/")).exists()]
        expect(found, f"the unit runs {program}, which a small Debian does not have")
    # What the conffile only shows has to be right as well. The file with the password is any that is there.
    every = re.sub(r"(?m)^# (?=\[|[a-z_]+ = )", "", (root / "etc/larder/proxy.toml").read_text())
    expect(every.count(" = ") >= 5, f"the conffile shows nothing:\n{every}")
    (root / "tmp/every.toml").write_text(every.replace("/run/credentials/larder.service/hub-password", "/etc/debian_version"))
    run(*inside(root, "larder", "check-config", "--config", "/tmp/every.toml"))

    # As systemd would: a user without rights, and a folder for its state behind a link.
    conffile = root / "etc/larder/proxy.toml"
    (root / "etc/larder/htpasswd").write_text("an administrator's\n")
    for kind in ("lib", "log"):
        state = root / "var" / kind / "private/larder"
        state.mkdir()
        os.chown(state, NOBODY, NOBODY)
        (root / "var" / kind / "larder").symlink_to("private/larder")
    (root / "var/log/private/larder/audit.log").write_text("{}\n")
    with upstream(folder) as port:
        client, admin = free_port(), free_port()
        changed = conffile.read_text().replace("[server]\n", "").replace("[admin]\n", "") + CONFIG.format(registry=client, admin=admin, upstream=port)
        conffile.write_text(changed)
        serve = inside(root, "env", "STATE_DIRECTORY=/var/lib/private/larder", "RUNTIME_DIRECTORY=/tmp", "larder", "serve",
                       user=f"{NOBODY}:{NOBODY}")  # fmt: skip
        (root / "var/lib/private").chmod(0o755)
        with running(serve, folder / "larder.log"):
            serves(client, admin)
            pull(folder, client, "package")
    blobs = root / "var/lib/private/larder/blobs/sha256"
    expect(len(list(blobs.iterdir())) > 40, "the cache is not in the state folder")

    # An upgrade that brings another conffile, as somebody who has disabled the service.
    enabled.unlink()
    dpkg("--force-confdef", "--install", f"/tmp/{newer.name}")
    expect(conffile.read_text() == changed, "the upgrade has replaced a changed conffile")
    expect((root / "etc/larder/proxy.toml.dpkg-dist").is_file(), "the new conffile is not beside it")
    expect(not enabled.is_symlink(), "the upgrade has enabled what was disabled")
    scripts = {name: (root / f"var/lib/dpkg/info/larder.{name}").read_bytes() for name in ("postinst", "prerm", "postrm")}
    run(*inside(root, "/var/lib/dpkg/info/larder.postinst", "configure", "0.0.1-1"))
    expect(not enabled.is_symlink(), "postinst, run again, has enabled what was disabled")
    # An account that somebody made would be the service's user.
    accounts = (root / "etc/passwd").read_text()
    for text, wanted in ((accounts, False), (accounts + "larder:x:1000:1000::/home/larder:/bin/bash\n", True)):
        (root / "etc/passwd").write_text(text)
        said = run(*inside(root, "/var/lib/dpkg/info/larder.postinst", "configure", "0.0.1-1")).stderr
        expect(("there is an account `larder`" in said) == wanted, f"postinst says {said!r}, a warning is {wanted}")
    (root / "etc/passwd").write_text(accounts)
    expect(run(*inside(root, "/var/lib/dpkg/info/larder.postinst", "nonsense"), check=False).returncode == 1, "postinst takes any word")

    dpkg("--remove", "larder")
    expect(conffile.read_text() == changed and blobs.is_dir(), "removing has taken the configuration or the cache")
    expect(not (root / "usr/bin/larder").exists(), "removing has left the program")
    dpkg("--purge", "larder")
    expect((root / "etc/larder/htpasswd").is_file(), "purging has taken a file that is not the package's")
    for script, word in (("prerm", "remove"), ("postrm", "remove"), ("postrm", "purge"), ("postrm", "purge")):
        (root / "tmp/script").write_bytes(scripts[script])
        (root / "tmp/script").chmod(0o755)
        run(*inside(root, "/tmp/script", word))
    shutil.rmtree(root / "etc/larder")
    left = tree_of(root) - before
    expect(not left, f"left behind: {sorted(left)}")

    # Links of an administrator are not followed.
    elsewhere = root / "srv/cache"
    elsewhere.mkdir()
    (elsewhere / "index.redb").write_text("an administrator's\n")
    (root / "var/lib/larder").symlink_to("/srv/cache")
    run(*inside(root, "/tmp/script", "purge"))
    expect((elsewhere / "index.redb").is_file() and (root / "var/lib/larder").is_symlink(), "purging has followed a link")

    # A file system that somebody mounted there stays as it is, also behind the link that systemd makes.
    (root / "var/lib/larder").unlink()
    purge = 'mount -t tmpfs none "$1" && touch "$1/kept" && /tmp/script purge 2>&1 && ls "$1"'
    for place in ("var/lib/larder", "var/lib/private/larder"):
        (root / place).mkdir()
        if "private" in place:
            (root / "var/lib/larder").symlink_to("private/larder")
        said = run(*inside(root, "sh", "-c", purge, "sh", f"/{place}")).stdout
        expect("is a file system of its own" in said and said.endswith("\nkept\n"), f"purging with a mount at /{place}: {said!r}")
        shutil.rmtree(root / place)
    (root / "var/lib/larder").unlink()
    return f"{deb.stat().st_size / 2**20:.1f} MiB, in Debian {facts.OLDEST_DEBIAN}"


def tree_of(root):
    """Every path but what dpkg and this check write for themselves."""
    skipped = re.compile(r"(proc|sys|dev|tmp|opt|var/cache|var/lib/dpkg|var/log/(dpkg|alternatives)\.log)(/|$)")
    found = set()
    for folder, folders, files in os.walk(root):
        inner = os.path.relpath(folder, root)
        found |= {path for path in (os.path.normpath(f"{inner}/{name}") for name in folders + files) if not skipped.match(path)}
    return found


def second_version(deb, folder):
    """The same package as 99-1, with another conffile."""
    tree = folder / "newer"
    run("dpkg-deb", "-R", deb, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", "Version: 99-1", control.read_text()))
    conffile = tree / "etc/larder/proxy.toml"
    conffile.write_text(conffile.read_text() + "# Of version 99.\n")
    newer = folder / "larder_99-1.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, newer)
    shutil.rmtree(tree)
    return newer


def oci_image(folder, _):
    """The image: an OCI layout, run by podman as its user with a read-only root. A mounted configuration takes over."""
    layout = released(folder, "*-image-*/index.json").parent
    config = layout_is_whole(layout)
    settings = config["config"]
    expect(settings["User"] == f"{IMAGE_USER}:{IMAGE_USER}", settings["User"])
    expect(settings["Healthcheck"]["Test"] == ["CMD", "/usr/bin/larder", "health"], settings["Healthcheck"])
    expect(not [word for word in settings["Env"] if not word.startswith("PATH=")], f"variables in the image: {settings['Env']}")
    for label in ("version", "revision", "created", "licenses", "title", "authors"):
        expect(settings["Labels"].get(f"org.opencontainers.image.{label}"), f"no label {label}")
    storage = ["--root", folder / "images", "--runroot", folder / "images-run", "--storage-driver", "vfs",
               "--runtime", "runc", "--cgroup-manager", "cgroupfs"]  # fmt: skip
    packed = released(folder, "*-image-*.tar")
    run("podman", *storage, "load", "-i", packed)
    name = f"docker.io/library/larder:{facts_version()}"
    expect(run("podman", *storage, "image", "exists", name, check=False).returncode == 0, f"podman load made no {name}")
    # One image has one manifest in podman's storage: the other form of the same would not replace it.
    run("podman", *storage, "rmi", "--all")
    # As `docker load` reads it, which keeps the health check.
    name = f"localhost/larder:{facts_version()}"
    run("podman", *storage, "pull", "-q", f"docker-archive:{packed}")
    kept = json.loads(run("podman", *storage, "image", "inspect", name).stdout)[0]
    # Versions of podman write the key differently.
    check = {key.lower(): value for key, value in kept.items()}.get("healthcheck") or {}
    expect(check.get("Test") == settings["Healthcheck"]["Test"], f"the health check is {check}")

    client, admin, container = free_port(), free_port(), f"larder-release-{os.getpid()}"
    with upstream(folder) as port:
        mounted = folder / "proxy.toml"
        mounted.write_text(CONFIG.format(registry=client, admin=admin, upstream=port) + '[cache]\npath = "/var/lib/larder"\n')
        mounted.chmod(0o644)
        # podman's own limits would be raised above what this machine may allow.
        start = ["podman", *storage, "run", "--rm", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
        # A volume that podman makes takes the owner of the image's folder.
        command = [
            *start, "--name", container, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges",
            "--network", "host", "-v", "larder:/var/lib/larder", "-v", f"{mounted}:/etc/larder/proxy.toml:ro", name,
        ]  # fmt: skip
        with running(command, folder / "podman.log"):
            serves(client, admin)
            pull(folder, client, "image")
            shown = json.loads(run("podman", *storage, "exec", container, "larder", "stats", "--json").stdout)
            expect(shown, "no figures from inside")
            volume = pathlib.Path(run("podman", *storage, "volume", "inspect", "--format", "{{.Mountpoint}}", "larder").stdout.strip())
            owners = {path.stat().st_uid for path in [volume, *volume.rglob("*")]}
            expect(owners == {IMAGE_USER}, f"files of {owners} in the volume")
            # As OpenShift does: any user, with the group 0.
            stranger = [*start, "--name", f"{container}-stranger", "--user", "12345:0", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all",
                        "--network", "host", "-v", f"{mounted}:/etc/larder/proxy.toml:ro"]  # fmt: skip
            other, there = free_port(), free_port()
            mounted.write_text(CONFIG.format(registry=other, admin=there, upstream=port) + '[cache]\npath = "/var/lib/larder"\n')
            with running([*stranger, "-v", "strangers:/var/lib/larder", name], folder / "stranger.log"):
                serves(other, there)
                pull(folder, other, "stranger")
            own = run(*start, "--network", "none", name, "check-config").stdout
            expect("[::]:5000" in own and "/var/lib/larder" in own, f"the image's own configuration:\n{own}")
            run("podman", *storage, "exec", container, "/usr/bin/larder", "health")
            # podman runs checks by a timer of systemd, which is not everywhere; by hand it counts them as well.
            run("podman", *storage, "healthcheck", "run", container)
            state = json.loads(run("podman", *storage, "inspect", container).stdout)[0]["State"]
            health = state.get("Health") or state["Healthcheck"]
            expect(health["Status"] == "healthy", f"health: {health}")
            # Where nobody listens, the check says so.
            down = run("podman", *storage, "exec", container, "/usr/bin/larder", "health", "--admin", f"127.0.0.1:{free_port()}", check=False)
            expect(down.returncode == 1, f"larder health where nobody listens: {down}")
    return f"{packed.stat().st_size / 2**20:.1f} MiB, user {IMAGE_USER}, read-only root"


def layout_is_whole(layout):
    """Follows every descriptor; returns the configuration of the image."""
    expect(json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}, "oci-layout")

    def blob(descriptor):
        data = (layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
        expect(len(data) == descriptor["size"], f"{descriptor} has {len(data)} bytes")
        expect(f"sha256:{hashlib.sha256(data).hexdigest()}" == descriptor["digest"], f"{descriptor} is not what it holds")
        return data

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]))
    config = json.loads(blob(manifest["config"]))
    paths = set()
    for layer in manifest["layers"]:
        blob(layer)
        with tarfile.open(layout / "blobs" / layer["digest"].replace(":", "/")) as tar:
            members = tar.getmembers()
            expect([m.name for m in members] == sorted(m.name for m in members), "a layer is not sorted")
            expect({m.uid for m in members} <= {0, IMAGE_USER} and not any(m.gid for m in members), "a layer has files of others")
            expect(not [m.name for m in members if m.mode & 0o6000], "a layer has files with setuid or setgid")
            paths |= {m.name for m in members}
    for wanted in ("var/lib/dpkg/status.d/libc6", "var/lib/dpkg/status.d/tzdata.md5sums", "usr/share/doc/libc6/copyright",
                   "usr/share/doc/larder/THIRD-PARTY.txt", "usr/share/doc/larder/larder.cdx.json", "etc/larder/proxy.toml"):  # fmt: skip
        expect(wanted in paths, f"the image has no /{wanted}")
    expect(not paths & {"bin/sh", "usr/bin/sh"}, "the image has a shell")
    return config


def facts_version():
    return facts.source(dirty=True).version


CHECKS = [release, glibc_floor, documents, manual, archive, package, oci_image]
