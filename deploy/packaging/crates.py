"""The crates that are linked into the program: which, and the licences that have to go with them."""

import html.parser
import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import facts
from facts import Refused, run

LICENCE_FILE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)([-._].*)?", re.IGNORECASE)
NO_TEXT = {".rs", ".toml", ".py", ".sh", ".json", ".html"}


@dataclass
class Crate:
    name: str
    version: str
    licence: str
    checksum: str | None   # of the .crate file, SHA-256; None for this package
    folder: Path
    needs: list            # (name, version) of crates


def linked(release):
    """By (name, version). Build scripts, procedural macros and what only they need are no part of the program."""
    cargo = os.environ.get("CARGO", "cargo")
    shown = run(cargo, "tree", "--locked", "--prefix", "none", "-e", "normal,no-proc-macro", "--target", release.target,
                "-f", "{p}", cwd=facts.PROJECT).decode()  # fmt: skip
    wanted = {(name, version) for name, version in re.findall(r"(?m)^(\S+) v(\S+)", shown)}
    known = json.loads(run(cargo, "metadata", "--locked", "--format-version", "1", "--filter-platform", release.target,
                           cwd=facts.PROJECT))  # fmt: skip
    locked = tomllib.loads((facts.PROJECT / "Cargo.lock").read_text(encoding="utf-8"))["package"]
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in locked}
    keys = {package["id"]: (package["name"], package["version"]) for package in known["packages"]}
    edges = {keys[node["id"]]: sorted({keys[dep["pkg"]] for dep in node["deps"]}) for node in known["resolve"]["nodes"]}
    found = {}
    for package in known["packages"]:
        key = keys[package["id"]]
        if key in wanted:
            licence = (package["license"] or "").replace("/", " OR ")
            folder = Path(package["manifest_path"]).parent
            needs = [need for need in edges[key] if need in wanted]
            found[key] = Crate(*key, licence, checksums.get(key), folder, needs)
    if missing := wanted - found.keys():
        raise Refused(f"cargo metadata does not know {sorted(missing)}")
    return dict(sorted(found.items()))


def licences(linked):
    """The texts of all licences, each once, with the crates that it stands for. They ask to be passed on with the program."""
    texts, silent = {}, []
    for crate in linked.values():
        if crate.checksum is None:
            continue
        files = sorted(path for path in crate.folder.rglob("*")
                       if LICENCE_FILE.fullmatch(path.name) and path.suffix not in NO_TEXT and path.is_file())  # fmt: skip
        for path in files:
            text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").strip("\n")
            users = texts.setdefault(text, [])
            if (name := f"{crate.name} {crate.version}") not in users:
                users.append(name)
        if not files:
            silent.append(f"  {crate.name} {crate.version}: {crate.licence}\n")
    line = "-" * 100
    rust = standard_library()
    if not rust:
        silent.append("  the standard library of Rust: MIT OR Apache-2.0\n")
    out = ["Larder is linked from the crates below and the standard library of Rust, under these licences.\n"]
    if silent:
        out.append("\nWithout a text of their own:\n" + "".join(silent))
    for text, users in sorted(texts.items(), key=lambda item: (item[1], item[0])):
        out.append(f"\n{line}\n{', '.join(users)}\n{line}\n\n{text}\n")
    if rust:
        out.append(f"\n{line}\nthe standard library of Rust\n{line}\n\n{rust}\n")
    return "".join(out).encode()


def standard_library():
    """The notices of Rust's own library and what that is linked from, which come with the compiler; None where a system left them out."""
    sysroot = run(os.environ.get("RUSTC", "rustc"), "--print", "sysroot", cwd=facts.PROJECT).decode().strip()
    page = Path(sysroot) / "share/doc/rust/COPYRIGHT-library.html"
    if not page.is_file():
        return None
    text = PlainText()
    text.feed(page.read_text(encoding="utf-8"))
    return re.sub(r"\n\s*\n", "\n\n", "".join(text.pieces)).strip()


class PlainText(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.pieces, self.hidden = [], 0

    def handle_starttag(self, tag, _attributes):
        self.hidden += tag in ("script", "style", "title")
        if tag == "li":
            self.pieces.append("- ")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style", "title")

    def handle_data(self, data):
        if not self.hidden:
            self.pieces.append(data)
