"""The program itself: what it is built for, what it needs, stripped, and the texts that it writes about itself."""

import re
import shutil
import struct

import facts
from archive import Tree
from facts import Refused, Release, run

# Libraries that the program may load -> Debian's package. Anything else in it is a mistake of the build.
LIBRARIES = {
    "libc.so.6": "libc6",
    "libm.so.6": "libc6",
    "ld-linux-x86-64.so.2": "libc6",
    "ld-linux-aarch64.so.1": "libc6",
    "libgcc_s.so.1": "libgcc-s1",
}
# GCC's own symbol versions: libgcc_s has had those of the unwinder for twenty years.
GCC_FLOOR = "4.2"
SHELLS = ("bash", "zsh", "fish")


def prepare(built, source, work, dirty=False):
    work.mkdir(parents=True)
    target, arch = machine(built)
    binary = work / "larder"
    shutil.copyfile(built, binary)
    binary.chmod(0o755)
    rust = re.search(r"rustc version (\S+)", run("readelf", "--string-dump=.comment", binary).decode())
    run("strip", "--strip-all", "--remove-section=.comment", binary)
    needs = needed_packages(binary)
    version = ask(binary, "--version")
    if version.split() != ["larder", source.version]:
        raise Refused(f"{built} says that it is {version.strip()!r}, Cargo.toml says {source.version}")
    # Labels and the bill name this commit.
    if not names_commit(binary, source.short_revision):
        if not dirty:
            raise Refused(f"{built} was not built by deploy/build from commit {source.short_revision} (--dirty accepts that)")
        source.revision = source.revision.removesuffix("-dirty") + "-dirty"
    ask(binary, "man", work / "man")
    man = {page.name: page.read_bytes() for page in sorted((work / "man").iterdir())}
    completions = {shell: ask(binary, "completions", shell).encode() for shell in SHELLS}
    return Release(source, target, arch, binary, rust and rust[1], needs, man, completions)


def names_commit(binary, commit):
    """Whether the program has this commit in larder_build_info, and no changes beside it."""
    content = binary.read_bytes()
    return commit.encode() in content and f"{commit}-dirty".encode() not in content


def ask(binary, *words):
    # No variable and no file of the person who makes the release has a say in it.
    return run(binary, *words, env={"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}, cwd="/").decode()


def machine(path):
    try:
        with open(path, "rb") as program:
            head = program.read(20)
    except OSError as error:
        raise Refused(f"no program: {error}") from error
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise Refused(f"{path} is no ELF program")
    number = struct.unpack("<H", head[18:20])[0]
    if number not in facts.MACHINES:
        raise Refused(f"{path} is for machine {number} (of ELF), wanted one of {sorted(facts.MACHINES)}")
    return facts.MACHINES[number]


def needed_packages(binary):
    """The Debian packages that the program needs, with versions; refuses a program that needs more than it may."""
    private = run("objdump", "-p", binary).decode()
    libraries = set(re.findall(r"(?m)^\s+NEEDED\s+(\S+)$", private))
    if unknown := sorted(libraries - LIBRARIES.keys()):
        raise Refused(f"the program loads {', '.join(unknown)}; it may load {', '.join(sorted(LIBRARIES))}")
    # "0x06969194 0x00 03 GLIBC_2.34", below "Version References:", which also knows versions that no symbol names.
    versions = set(re.findall(r"(?m)^\s+0x[0-9a-f]+ 0x[0-9a-f]+ \d+ (\S+)$", private))
    if not any(version.startswith("GLIBC_2.") for version in versions):
        raise Refused("the program names no version of glibc: this check is blind")
    for version in sorted(versions):
        name, _, number = version.partition("_")
        floor = {"GLIBC": facts.GLIBC_FLOOR, "GCC": GCC_FLOOR}.get(name)
        if floor is None or not re.fullmatch(r"[\d.]+", number) or parts(number) > parts(floor):
            raise Refused(
                f"the program needs {version}, and may need at most GLIBC_{facts.GLIBC_FLOOR} and GCC_{GCC_FLOOR}: "
                f"build it on an older system, such as Debian {facts.OLDEST_DEBIAN}, or raise the floor (deploy/packaging/facts.py)"
            )
    floors = {"libc6": facts.GLIBC_FLOOR, "libgcc-s1": GCC_FLOOR}
    return [f"{package} (>= {floors[package]})" for package in sorted({LIBRARIES[name] for name in libraries})]


def parts(number):
    """To compare: 4.2 and 4.2.0 are the same."""
    return [int(part) for part in re.sub(r"(\.0+)+$", "", number).split(".")]


def tarball(release, licences):
    """The program with all that belongs to it, below one folder."""
    tree = Tree()
    root = release.name
    tree.file(f"{root}/larder", release.binary, 0o755)
    tree.file(f"{root}/LICENSE", facts.licence_text())
    tree.file(f"{root}/THIRD-PARTY.txt", licences)
    for path, text in facts.documents().items():
        tree.file(f"{root}/{path}", text)
    for name, page in release.man.items():
        tree.file(f"{root}/man/man1/{name}", page)
    for shell, text in release.completions.items():
        tree.file(f"{root}/completions/{completion(shell)}", text)
    return tree


def completion(shell):
    """How each shell wants the file to be called."""
    return {"bash": "larder", "zsh": "_larder", "fish": "larder.fish"}[shell]
