"""What documents name, held against the program and the repository: commands, options, variables, keys, links, files, figures.

The program itself is the judge: a command is given to it with `--help` behind, which its parser reaches only if it knows all that
stands before; it is asked for its keys by a key that it cannot have, and for a variable by setting it.
"""

import functools
import json
import os
import re
import shlex
import subprocess
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

from documents import Wrong, blocks

# Documents whose text is held against the program; those below these folders too.
CURRENT = ["README.md", "SECURITY.md", "docs/*.md", "deploy/*.md"]
# What else is read for its links only: it tells of other times, or of the code.
LINKED = ["CHANGELOG.md", "docs/decisions/*.md", "benches/README.md", "fuzz/README.md"]
# Files that point at documents by a path, in comments and texts.
POINTING = ["src/**/*.rs", "tests/**/*.rs", "tests/**/*.py", "tests/*/run", "benches/*", "deploy/*", "deploy/**/*", "fuzz/*", ".ci/run",
            "Cargo.toml", "proxy.toml.example"]  # fmt: skip
FOLDERS = ["src", "tests", "deploy", "docs", "benches", "fuzz", ".ci", ".github"]

# Words of other programs that look like ours, each with its program.
OPTIONS_OF_OTHERS = {
    "--tls-verify": "podman", "--authfile": "podman", "--retry-times": "skopeo", "--disable-default-registry-endpoint": "k3s",
    "--build-arg": "docker", "--self-test": "tests/docs/run", "--rounds": "benches/compare", "--only": "benches/compare",
    "--peer": "benches/compare", "--also": "benches/compare", "--dirty": "deploy/release", "--binary": "deploy/release",
}  # fmt: skip
TABLES_OF_OTHERS = {"host": "containerd", "registry": "podman, BuildKit", "proxy": "CNCF Distribution", "http": "CNCF Distribution"}
# Not set for Larder, but by Kubernetes.
VARIABLES_OF_OTHERS = ["LARDER_PORT"]
# Variables that set no key. Each has to be in a file of the folder that reads it.
OTHER_VARIABLES = {
    "LARDER_CONFIG": "src", "LARDER_ADMIN_URL": "src", "LARDER_ADMIN_TOKEN_FILE": "src", "LARDER_BUNDLE_PASSWORD": "src",
    "LARDER_CRASH_ROUNDS": "tests", "LARDER_LONG": "src", "LARDER_COMMIT": "deploy", "LARDER_TOOLS": "tests",
}  # fmt: skip

# Variables of other programs that Larder reads. Its own source names each, but for what a library reads.
FOREIGN_VARIABLE = re.compile(r"\b(?:AWS|AZURE|GCE|GOOGLE|OTEL|DOCKER|REGISTRY|CONTAINERS|XDG|SSL|HTTPS|STATE|RUNTIME)_[A-Z0-9_]*[A-Z0-9]")
VARIABLES_OF_LIBRARIES = ["SSL_CERT_FILE"]

# Client, as README's table calls it -> NAME of `larder client-config NAME`.
CLIENTS = {
    "docker daemon": "docker", "containerd": "containerd", "nerdctl": "containerd", "kubernetes": "containerd", "podman": "podman",
    "buildah": "podman", "skopeo": "podman", "cri-o": "cri-o", "k3s": "k3s", "rke2": "k3s", "buildkit": "buildkit",
}  # fmt: skip
# How README calls a row of benches/README.md.
FIGURES = [
    (r"cached blob of (\S+ \S+), (\d+) clients?", r"hot blob \1 × \2"),
    (r"cached manifest of (\S+ \S+) by (tag|digest), (\d+) clients?", r"manifest \1 by \2 × \3"),
    (r"(\d+) clients, one uncached blob of (\S+ \S+), upstream's link (\d+) Mbit/s: .*", r"herd \1 × cold \2, upstream's link \3 Mbit/s"),
    (r"first byte of an uncached blob of (\S+ \S+)", r"cold blob \1"),
]
# Words in the column "beside" -> column of benches/README.md. The figures straight from the upstream stand under nginx there,
# which is that upstream.
PEERS = [(r"straight from the upstream", "nginx"), (r"docker-registry", "docker-registry"), (r"nginx cache", "nginx cache"), (r"nginx", "nginx")]
CARGO = ["build", "run", "test", "install", "check", "clippy", "doc", "bench"]

NO_KEY = "zzzzzzzzzzzzzzzzzzzzzzzzzzzz"
TABLES = ["server", "admin", "cache", "log", "limits", "audit", "bundle", "traces", "listener.NAME", "access", "access.oidc.NAME",
          "access.rule", "acme", 'upstream."NAME"', "prefetch", "webhook.NAME"]  # fmt: skip
ARRAYS = ["access.rule", "prefetch"]
# Endings of file names, which look like keys of a table: `server.crt`, `audit.log.1`.
FILE_ENDINGS = {"crt", "key", "log", "pub", "toml", "md", "json", "tar", "rs", "txt", "service", "socket", "1", "2"}
# One after another in place of a placeholder (`N`, `SIZE`) that an option refuses.
EXAMPLES = ["1", "1GiB", "1d", "a.example:5000", "a=http://a.example", "linux/amd64", "docker"]

CODE = re.compile(r"(?s)(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
POINTER = re.compile(r"(?<![\w/])((?:docs|deploy|benches|fuzz)/[\w./-]*\w\.md|docs/decisions/\d{4}[\w-]*|README\.md)(?:#([\w-]+))?")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)")


class Program:
    """Larder as a reader would ask it. No question contacts anybody or changes anything."""

    def __init__(self, path):
        self.path, self.errors = path, {}

    def ask(self, *words, env=None, folder=None):
        """Status, standard output and standard error."""
        env = {"PATH": os.environ.get("PATH", ""), "HOME": "/nonexistent", "COLUMNS": "200", **(env or {})}
        done = subprocess.run([self.path, *words], capture_output=True, text=True, env=env, cwd=folder, timeout=60)
        return done.returncode, done.stdout, done.stderr

    def refuses(self, words):
        """Why the program does not know this command with these options, or none."""
        error = self.error_of(words)
        # A placeholder, such as `--newest N`, is a value that an option may refuse.
        placeholder = re.search(r"invalid value '([A-Z_]+)' for", error)
        if placeholder and placeholder[1] in words:
            place = words.index(placeholder[1])
            for example in [*re.findall(r"\[possible values: ([\w.-]+)", error), *EXAMPLES]:
                tried = [*words[:place], example, *words[place + 1:]]
                if f"invalid value '{example}'" not in self.error_of(tried):
                    return self.refuses(tried)
        return error.partition("\n")[0].removeprefix("error: ") or None

    def error_of(self, words):
        """What the program's parser says against these words, or nothing."""
        words = tuple(words)
        if words not in self.errors:
            status, _, error = self.ask(*words, "--help")
            # `--help` in place of a value that is left out, or behind `larder COMMAND`.
            known = status == 0 or "a value is required for" in error or re.search(r"unrecognized subcommand '[A-Z]+'", error)
            self.errors[words] = "" if known else error or f"status {status}"
        return self.errors[words]

    @functools.cache
    def options(self):
        """Every option of every command."""
        found, waiting = set(), [()]
        while waiting:
            command = waiting.pop()
            text = self.ask(*command, "--help")[1]
            found |= set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", text))
            listed = re.search(r"(?ms)^Commands:\n(.*?)\n\n", text)
            names = re.findall(r"(?m)^  ([a-z][\w-]*)", listed[1]) if listed else []
            waiting += [(*command, name) for name in names if name != "help"]
        return found

    @functools.cache
    def keys(self):
        """Table -> its keys, as the message for an unknown key lists them. NAME stands for any name."""
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for table in ["", *TABLES]:
                named = table.replace('"NAME"', '"name.example"').replace("NAME", "name")
                head = "" if not table else f"[[{table}]]\n" if table in ARRAYS else f"[{named}]\n"
                Path(folder, "proxy.toml").write_text(f"{head}{NO_KEY} = 1\n")
                _, out, _ = self.ask("check-config", "--json", folder=folder)
                told = [each["message"] for each in json.loads(out)["problems"] if each["key"].endswith(NO_KEY)]
                listed = told and re.search(r"expected one of (.*)", told[0])
                if not listed:
                    raise Wrong(f"larder check-config lists no keys of [{table}]: {out}")
                found[table] = listed[1].split(", ")
        return found

    def refuses_variable(self, name, value):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "proxy.toml").write_text('[upstream."registry.example:5000"]\n')
            _, out, _ = self.ask("check-config", "--json", env={name: value}, folder=folder)
            answer = json.loads(out)
            for each in answer.get("warnings", []) + answer.get("problems", []):
                text = json.dumps(each)
                if name in text and ("ignored" in text or "no such key" in text):
                    return each["message"] if isinstance(each, dict) else each.removeprefix(f"{name}: ")
        return None

    def refuses_file(self, text):
        """The keys of a configuration that the program does not know, and values that it does not take."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "proxy.toml").write_text(text)
            _, out, _ = self.ask("check-config", "--json", folder=folder)
            problems = json.loads(out).get("problems", [])
        # Files that the reader has, and values that a document leaves out.
        excused = re.compile(r"No such file|cannot (be )?(read|open)|…|\\u\{2026\}")
        return [f"{each['key']}: {each['message']}" for each in problems if not excused.search(each["message"])]


# --- what a document has -------------------------------------------------------------------------------------


class Document:
    def __init__(self, root, path):
        self.root, self.path, self.name = root, path, str(path.relative_to(root))
        self.text = path.read_text()
        self.blocks = blocks(self.text, self.name)
        # Prose by line, without blocks; with the lines of blocks left empty.
        self.prose, inside = [], False
        for line in self.text.splitlines():
            fence = re.match(r"\s*```", line)
            self.prose.append("" if inside or fence else line)
            inside = inside != bool(fence)

    def codes(self):
        """Line and text of each piece of inline code."""
        for number, line in self.paragraphs():
            for found in CODE.finditer(line):
                yield number + line.count("\n", 0, found.start()), re.sub(r"\s+", " ", found[2].replace("\\|", "|")).strip()

    def paragraphs(self):
        """Line and text of each run of lines, so that code that goes over the end of a line is found. Each row of a table stands alone."""
        begin, lines = 1, []
        for number, line in enumerate([*self.prose, ""], 1):
            if line.strip() and not line.lstrip().startswith("|"):
                lines.append(line)
                continue
            if lines:
                yield begin, "\n".join(lines)
            if line.strip():
                yield number, line
            begin, lines = number + 1, []

    def commands(self):
        """Line and words of each command of ours that is named."""
        for number, code in self.codes():
            yield from ((number, words) for words in commands_in(code))
        for block in self.blocks:
            # A line that ends with a backslash goes on; its parts keep the number of lines.
            text = re.sub(r"(?:.*\\\n)+.*", lambda found: found[0].replace("\\\n", " ") + "\n" * found[0].count("\\\n"), block.text)
            for number, line in enumerate(text.splitlines(), block.line):
                if block.language == "console":
                    line = line.strip().removeprefix("$ ") if line.strip().startswith("$ ") else ""
                elif block.language in ("toml", "yaml"):
                    line = line.partition("# ")[2].partition(";")[0] if "# larder " in line else line if "[\"larder" in line else ""
                elif block.language in ("text", "json", "mermaid"):
                    line = ""
                yield from ((number, words) for words in commands_in(line))

    def anchors(self):
        counts, found = Counter(), set(re.findall(r'<a id="([^"]+)"', self.text))
        for line in self.prose:
            if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
                slug = slug_of(heading[1])
                found.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
                counts[slug] += 1
        return found


def slug_of(heading):
    """The anchor that GitHub gives a heading."""
    heading = LINK.sub(lambda found: found[0][1:found[0].rindex("](")], heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands_in(line):
    """The words behind `larder` in each command of ours in a line of a shell."""
    if listed := re.search(r'\["(?:[\w/.-]*/)?larder",\s*(.*?)\]', line):
        yield json.loads(f"[{listed[1]}]")
        return
    for variant in alternatives(line):
        for segment in segments(variant):
            if words := words_of(segment):
                yield words


def alternatives(line):
    """`a b|c` is two commands: one with b, one with c."""
    if found := re.search(r"(?<![\s'\"|\\])\|(?![\s|])", line):
        begin = max(line.rfind(" ", 0, found.start()), -1) + 1
        end = line.find(" ", found.start())
        end = len(line) if end < 0 else end
        for one in line[begin:end].split("|"):
            yield from alternatives(line[:begin] + one + line[end:])
    else:
        yield line


def segments(line):
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>()")
    lexer.whitespace_split, lexer.commenters = True, "#"
    found = [[]]
    try:
        for word in lexer:
            if set(word) <= set("|;&()<>") and word:
                found.append([])
            else:
                found[-1].append(word)
    except ValueError:
        # A quotation that is not closed: no shell would take it, but what it names is looked at.
        return [line.split()]
    return found


def words_of(segment):
    """The words behind our program's name, if the segment runs it."""
    segment = [word for word in segment if word]
    while segment and re.match(r"[A-Z_]+=", segment[0]):
        segment = segment[1:]
    if segment[:2] == ["cargo", "run"] and "--" in segment:
        return plain(segment[segment.index("--") + 1:])
    if segment[:1] == ["sudo"]:
        segment = segment[3:] if segment[1:2] == ["-u"] else segment[1:]
    if segment[:1] and segment[0] in ("docker", "podman", "kubectl"):
        places = [place for place, word in enumerate(segment) if is_program(word)]
        if "exec" not in segment or not places or places[-1] < segment.index("exec") + 2:
            return None
        segment = segment[places[-1]:]
    if not segment or not is_program(segment[0]) or len(segment) < 2:
        return None
    return plain(segment[1:])


def is_program(word):
    return word == "larder" or word.endswith("/larder") and word.startswith(("/usr", "./", "target/", "/target/"))


def plain(words):
    """Without the brackets of what may be left out, and without dots for what is not said."""
    def bare(word):
        if re.fullmatch(r"\[[^\[\]]*\]", word) or word.count("[") != word.count("]"):
            word = word.strip("[]")
        return word.rstrip("…")

    return [word for word in map(bare, words) if word]


# --- checks: each yields complaints --------------------------------------------------------------------------


def check_commands(document, program):
    for line, words in document.commands():
        if refused := program.refuses(words):
            yield f"{document.name}:{line}: larder {' '.join(words)}: {refused}"


def check_options(document, options):
    for line, code in document.codes():
        found = re.match(r"(--[a-z][a-z-]*)", code)
        if found and found[1] not in options and found[1] not in OPTIONS_OF_OTHERS:
            yield f"{document.name}:{line}: no command of ours has the option {found[1]} (references.py names those of other programs)"


def check_variables(document, program, root):
    for line, text in enumerate(document.text.splitlines(), 1):
        for name, value in re.findall(r"\b(LARDER_[A-Z0-9_]*[A-Z0-9])(?:=([^\s`\"]+))?", text):
            if name in VARIABLES_OF_OTHERS:
                continue
            if name in OTHER_VARIABLES:
                if name not in text_of(root, OTHER_VARIABLES[name]):
                    yield f"{document.name}:{line}: {name}: nothing in {OTHER_VARIABLES[name]}/ reads it"
            elif refused := program.refuses_variable(name, value.strip("…") or "1"):
                yield f"{document.name}:{line}: {name}: {refused}"
        for name in FOREIGN_VARIABLE.findall(text):
            if name not in VARIABLES_OF_LIBRARIES and name not in text_of(root, "src"):
                yield f"{document.name}:{line}: {name}: nothing in src/ reads it"
        for name in re.findall(r"/api/v1/[a-z-]+", text):
            if f'"{name}' not in text_of(root, "src"):
                yield f"{document.name}:{line}: {name}: the admin API has no such path"


@functools.cache
def text_of(root, folder):
    """All files of a folder, one after another."""
    files = (path for path in sorted((root / folder).rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return "\n".join(path.read_text(errors="replace") for path in files)


def table_of(path):
    """The table of a key as Program.keys calls it, and the key; none if the path has another form."""
    parts = re.findall(r'"[^"]*"|[^."\s]+', path)
    if not parts:
        return None
    if parts[0] in ("upstream", "listener", "webhook") and len(parts) > 1:
        return ('upstream."NAME"' if parts[0] == "upstream" else f"{parts[0]}.NAME"), parts[2:]
    if parts[:2] == ["access", "oidc"] and len(parts) > 2:
        return "access.oidc.NAME", parts[3:]
    if parts[:2] == ["access", "rule"]:
        return "access.rule", parts[2:]
    return parts[0], parts[1:]


def check_keys(document, keys):
    """Keys that stand in prose: `cache.tag_ttl`, `[audit] file = …`, `[[prefetch]]`, `offline = true`."""
    every = {key for table in keys.values() for key in table} | {"cert", "key"}
    for line, code in document.codes():
        where = f"{document.name}:{line}: {code}"
        if found := re.match(r"\[{1,2}([a-z_]+(?:\.[^\]]+)?)\]{1,2}(?: ([a-z_]+))?", code):
            if found[1].partition(".")[0] in TABLES_OF_OTHERS:
                continue
            table, rest = table_of(found[1].replace("…", "x"))
            if found[1] in ("upstream", "listener", "webhook"):
                yield f"{where}: the table has a name: [{found[1]}.NAME]"
            elif table not in keys or rest:
                yield f"{where}: there is no such table"
            elif found[2] and found[2] not in keys[table]:
                yield f"{where}: there is no such key; expected one of {', '.join(keys[table])}"
        elif found := re.fullmatch(r"([a-z_]+(?:\.(?:\"[^\"]+\"|[\w-]+))+)(?: = .*)?", code):
            top, parts = found[1].partition(".")[0], re.findall(r'"[^"]*"|[\w-]+', found[1])
            named = ("upstream", "listener", "webhook")
            if top not in keys[""] or parts[-1] in FILE_ENDINGS and " = " not in code:
                continue
            # `upstream.max_size`, for short, is a key of every upstream.
            path = found[1] if top not in named or len(parts) > 2 else f"{top}.x.{'.'.join(parts[1:])}"
            table, rest = table_of(path)
            inner = rest[:1] == ["tls"] and len(rest) == 2
            if table not in keys or not rest or rest[0] not in keys[table] or len(rest) > 1 and not inner:
                yield f"{where}: there is no such key; expected one of {', '.join(keys.get(table, keys['']))}"
        elif (found := re.match(r"([a-z]+(?:_[a-z]+)+) = ", code)) and found[1] not in every | {"config_path", "global_auth_file"}:
            yield f"{where}: no table has such a key"


def check_files(document, program):
    """Configurations in blocks are such that the program takes them."""
    for block in document.blocks:
        tops = re.findall(r"(?m)^\[{1,2}([a-z_]+)", block.text)
        if block.language != "toml" or not tops or any(top in TABLES_OF_OTHERS for top in tops):
            continue
        for problem in program.refuses_file(block.text):
            yield f"{document.name}:{block.line}: {problem}"


def check_tables(document, keys, example):
    """The tables `### [server]` … have each key of the program once, with the default that proxy.toml.example shows."""
    found, table = {}, None
    for number, line in enumerate(document.prose, 1):
        if heading := re.match(r"#+ (.*)", line):
            name = re.fullmatch(r"\[{1,2}([^\]]+)\]{1,2}", heading[1])
            table = name[1] if name else None
            if table:
                found[table] = set()
        elif table and (row := re.match(r"\| `([a-z_]+)` \| (.*?) \|", line)):
            found[table].add(row[1])
            where = f"{document.name}:{number}: {table}.{row[1]}"
            default = re.fullmatch(r"`(.*)`", row[2])
            if row[1] not in keys.get(table, []):
                yield f"{where}: there is no such key; expected one of {', '.join(keys.get(table, []))}"
            elif default and example.get(table, {}).get(row[1]) not in (None, default[1]):
                # docker.io is shown in the example, in place of any upstream.
                if table != 'upstream."NAME"' or row[1] not in ("url", "aliases"):
                    yield f"{where}: the default is {example[table][row[1]]}, not {default[1]}"
            elif row[2] == "–" and example.get(table, {}).get(row[1]):
                yield f"{where}: it has a default, {example[table][row[1]]}"
    for table in TABLES:
        # Tables within a table have sections of their own.
        if missing := set(keys[table]) - found.get(table, set()) - {"oidc", "rule"}:
            yield f"{document.name}: the section [{table}] lacks {', '.join(sorted(missing))}"


def defaults_of(example):
    """Table -> key -> value, of the lines of proxy.toml.example that are no comments."""
    found, table = {}, None
    for line in example.splitlines():
        if heading := re.match(r"(# )?\[{1,2}([^\]]+)\]{1,2}$", line):
            table = {'upstream."docker.io"': 'upstream."NAME"'}.get(heading[2], heading[2])
        elif line_of_key := re.match(r"([a-z_]+) = (.*)$", line):
            found.setdefault(table, {})[line_of_key[1]] = line_of_key[2]
    return found


def check_links(document, known):
    """Relative links and their anchors."""
    for number, text in document.paragraphs():
        for found in LINK.finditer(CODE.sub(lambda code: "`" + "x" * len(code[2]) + "`" if "](" in code[2] else code[0], text)):
            line, target = number + text.count("\n", 0, found.start()), found[1]
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            there = (document.path.parent / path).resolve() if path else document.path
            if not there.exists() or not there.is_relative_to(document.root):
                yield f"{document.name}:{line}: {target}: there is no such file"
            elif anchor and (there not in known or anchor not in known[there].anchors()):
                yield f"{document.name}:{line}: {target}: the file has no such heading"


def check_paths(document):
    """Files of the repository that stand in inline code."""
    for line, code in document.codes():
        # In kubectl a folder is a kind: `exec deploy/larder`.
        for word in [] if code.startswith("kubectl ") else code.split():
            if re.fullmatch(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*", word) and not (document.root / word).exists():
                yield f"{document.name}:{line}: {word}: there is no such file"


def check_pointers(root, known):
    """Documents that the code points at."""
    for pattern in POINTING:
        for path in sorted(root.glob(pattern)):
            # Documents that a self-test makes up are no pointers.
            if not path.is_file() or path.suffix == ".md" or root / "tests/docs" in path.parents or "target" in path.relative_to(root).parts:
                continue
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                # In scripts a path may be data, also of a document that is made up for a test.
                line = line.partition("#")[2] if path.suffix == ".py" else line
                for target, anchor in POINTER.findall(line):
                    there = root / target
                    exists = there.exists() or target.startswith("docs/decisions/") and list(root.glob(f"{target.removesuffix('.md')}*"))
                    if not exists:
                        yield f"{path.relative_to(root)}:{number}: {target}: there is no such document"
                    elif anchor and (there.resolve() not in known or anchor not in known[there.resolve()].anchors()):
                        yield f"{path.relative_to(root)}:{number}: {target}#{anchor}: it has no such heading"


def check_metrics(document, listed):
    """Metrics are those of deploy/metrics.md, which a test holds to the program."""
    for line, code in document.codes():
        for name in re.findall(r"(?<![\w-])larder_[a-z0-9_]+(?![\w.-]|…)", code):
            if not re.search(rf"\b{name}\b", listed):
                yield f"{document.name}:{line}: {name}: deploy/metrics.md lists no such metric"


def numbers_in(text):
    return {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}


def check_figures(document, measured):
    """The figures of a section `Figures` are those of benches/README.md; MB may stand for GB."""
    known, inside = numbers_in(measured), False
    for line, text in enumerate(document.prose, 1):
        inside = text.startswith("## Figures") or inside and not text.startswith("## ")
        if inside and text.startswith("|"):
            for number in sorted(numbers_in(text)):
                if number not in known and round(number / 1000, 9) not in known:
                    yield f"{document.name}:{line}: {number:g}: benches/README.md has no such figure"


def tables_in(text):
    """Each row of each table, by the names of its columns; the first cell is `""`."""
    names = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else None
        if not cells:
            names = None
        elif names is None:
            names = ["", *cells[1:]]
        elif set(line) - set("|-: "):
            yield dict(zip(names, cells))


def check_rows(document, measured):
    """A row of `Figures` that benches/README.md has as well: each figure belongs to the same row and the same program there."""
    rows, inside = list(tables_in(measured)), False
    for line, text in enumerate(document.prose, 1):
        inside = text.startswith("## Figures") or inside and not text.startswith("## ")
        cells = [cell.strip() for cell in text.strip().strip("|").split("|")] if inside and text.startswith("|") else []
        if len(cells) != 3:
            continue
        names = [re.sub(pattern, by, cells[0]) for pattern, by in FIGURES if re.fullmatch(pattern, cells[0])]
        if not names:
            continue
        found = [row for row in rows if row[""] == names[0]]
        if not found:
            yield f"{document.name}:{line}: {names[0]}: benches/README.md has no such row"
        for part in [f"larder {cells[1]}", *cells[2].split(";")] if found else []:
            peer = next((column for pattern, column in PEERS if re.search(pattern, part)), "larder")
            known = set().union(*(numbers_in(row.get(peer, "")) for row in found))
            for number in sorted(numbers_in(part)):
                if number not in known and round(number / 1000, 9) not in known:
                    yield f"{document.name}:{line}: {number:g}: benches/README.md has no such figure of {peer} in the row {names[0]}"


def check_clients(document):
    """A row of a table of clients has the command for its clients."""
    for line, text in enumerate(document.prose, 1):
        row = re.fullmatch(r"\| ([^|]+) \| `larder client-config ([\w-]+)`[^|]* \|", text)
        for client in row[1].split(", ") if row else []:
            wanted = CLIENTS.get(client.lower())
            if wanted != row[2]:
                yield f"{document.name}:{line}: {client}: the command is {wanted or 'not known (references.py)'}, not {row[2]}"


def check_facts(document, root):
    """What documents say about versions, the image's user and the unit is what the files have that decide it."""
    rust = tomllib.loads((root / "Cargo.toml").read_text())["package"]["rust-version"]
    facts = (root / "deploy/packaging/facts.py").read_text()
    glibc = re.search(r'(?m)^GLIBC_FLOOR = "(.*)"$', facts)[1]
    user = re.search(r"(?m)^IMAGE_USER = (\d+)$", facts)[1]
    # "user 65532", and a row of a table.
    said = [(r"Rust (\d[\d.]*\d) or newer", rust), (r"glibc (\d[\d.]*\d)\b", glibc), (r"\buser (?:\| )?(\d+)\b", user)]
    for number, text in document.paragraphs():
        for pattern, wanted in said:
            for found in re.finditer(pattern, text):
                if found[1] != wanted:
                    yield f"{document.name}:{number + text.count(chr(10), 0, found.start())}: {found[0]}: it is {wanted}"
    settings = {}
    for name in ("larder.service", "larder.socket"):
        for key, value in re.findall(r"(?m)^(\w+)=(.*)$", (root / "deploy" / name).read_text()):
            settings.setdefault(key, []).append(value)
    for line, code in document.codes():
        found = re.fullmatch(r"([A-Z]\w*[a-z]\w*)=(\S+)", code)
        if found and found[1] in settings and found[2] not in settings[found[1]]:
            yield f"{document.name}:{line}: {code}: the unit has {' and '.join(settings[found[1]])}"


def check_cargo(document, root):
    """cargo's commands: options that cargo knows, and profiles, tests and folders that are there."""
    lines = [*document.codes(), *((block.line + number, text) for block in document.blocks if block.language in ("sh", "console")
                                  for number, text in enumerate(block.text.splitlines()))]  # fmt: skip
    for line, text in lines:
        for words in segments(text.removeprefix("$ ")):
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words[:1] != ["cargo"] or len(words) < 2 or words[1] not in CARGO:
                continue
            words = words[:words.index("--")] if "--" in words else words
            where = f"{document.name}:{line}: {' '.join(words)}"
            if refused := cargo_refuses(tuple(words[1:])):
                yield f"{where}: {refused}"
            manifest = tomllib.loads((root / "Cargo.toml").read_text())
            known = {
                "--profile": {"dev", "release", "test", "bench", *manifest.get("profile", {})},
                "--test": {test["name"] for test in manifest.get("test", [])},
                "--path": {str(path.parent.relative_to(root)) for path in (root / "Cargo.toml", root / "fuzz/Cargo.toml")},
            }
            for option, value in zip(words, words[1:]):
                if value not in known.get(option, {value}):
                    yield f"{where}: {option} {value} is none of {', '.join(sorted(known[option]))}"


@functools.cache
def cargo_refuses(words):
    """Why cargo does not take these words, or none. `-h` behind them has it do nothing."""
    done = subprocess.run(["cargo", *words, "-h"], capture_output=True, text=True, timeout=60)
    return None if done.returncode == 0 else done.stderr.partition("\n")[0].removeprefix("error: ") or f"status {done.returncode}"


def check_length(document, least, most):
    """One screen a topic."""
    length = len(document.text.splitlines())
    if not least <= length <= most:
        yield f"{document.name}: {length} lines, expected {least} to {most}"


def complaints(root, program):
    """All of them, for the documents of a repository."""
    options, keys = program.options(), program.keys()
    known, current = {}, []
    for patterns, kept in ((CURRENT, current), (LINKED, [])):
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                known[path.resolve()] = document = Document(root, path)
                kept.append(document)
    for document in current:
        yield from check_commands(document, program)
        yield from check_options(document, options)
        yield from check_variables(document, program, root)
        yield from check_keys(document, keys)
        yield from check_files(document, program)
        yield from check_paths(document)
        yield from check_facts(document, root)
        yield from check_cargo(document, root)
        yield from check_metrics(document, (root / "deploy/metrics.md").read_text())
    for document in known.values():
        yield from check_links(document, known)
    yield from check_pointers(root, known)
    yield from check_tables(known[(root / "docs/configuration.md").resolve()], keys, defaults_of((root / "proxy.toml.example").read_text()))
    readme = known[(root / "README.md").resolve()]
    yield from check_figures(readme, (root / "benches/README.md").read_text())
    yield from check_rows(readme, (root / "benches/README.md").read_text())
    yield from check_clients(readme)
    yield from check_length(readme, 150, 180)


# --- the script's own test -----------------------------------------------------------------------------------

RIGHT = """\
# Right, `with code` and [a link](here.md)

Run `larder ls [PATTERN]`, `larder pin IMAGE…`, `larder client-config docker|containerd`, `sudo -u larder larder check-config`, or `larder
prefetch --newest N`. Not ours: `systemctl restart larder`, `docker run larder:VERSION`, `larder-VERSION-TARGET.tar.gz`.

| option | effect |
|---|---|
| `--kind compose\\|kubernetes` | [as above](#right-with-code-and-a-link); [its neighbour](configuration.md#all-keys) |

`kubectl -n larder exec deploy/larder -- larder stats`, `LARDER_CACHE__MAX_SIZE=200GiB`, `LARDER_UPSTREAM__DOCKER_IO__USERNAME=…`,
`LARDER_CONFIG`, `cache.tag_ttl = "0s"`, `server.tls`, `server.tls.cert`, `[audit] file = "x"`, `[[prefetch]]`, `[access.oidc.github]`,
`upstream."docker.io".url`, `[host."…".header]`, `audit.log.1`, `src/lib.rs`, `larder_requests_total`, `larder_prefetch_…`,
`AWS_REGION`, `GET /api/v1/images`, `cargo install --locked --path .`, `cargo run --profile quick -- ls`, Rust 1.90 or newer, glibc 2.34 or
newer, user 65532, `LimitNOFILE=65536`, `Environment=A=b`.

```
helm template web ./chart | larder prefetch --from -       # also others
```

```toml
[access]
htpasswd_file = "users"      # larder auth hash alice >> users
```
"""
# Name -> file, its text, and a part of the complaint about it.
WRONG = {
    "a command": ("docs/case.md", "Run `larder frobnicate`.", "case.md:1: larder frobnicate: unrecognized"),
    "an option": ("docs/case.md", "Run\n`larder ls --colour`.", "case.md:2: larder ls --colour: unexpected"),
    "an option behind a placeholder": ("README.md", "`larder prefetch --newest N --colour`", "unexpected argument '--colour'"),
    "an alternative": ("docs/case.md", "| `larder client-config docker\\|podmann` |", "invalid value 'podmann'"),
    "a command over the end of a line": ("docs/case.md", "Run `larder\nls --colour`.", "unexpected argument '--colour'"),
    "a command behind a pipe": ("docs/case.md", "```\nhelm template . | larder prefetch --form -\n```", "case.md:2: larder prefetch --form -"),
    "an option on a line that goes on": ("docs/case.md", "```sh\nlarder ls \\\n  --colour\n\n```", "case.md:2: larder ls --colour: unexpected"),
    "a command in an open quotation": ("docs/case.md", "`larder lss 'x`", "unrecognized subcommand 'lss'"),
    "a command behind a prompt": ("docs/case.md", "```console\n$ larder lss\n```", "unrecognized subcommand 'lss'"),
    "a command in a container": ("docs/case.md", "`docker exec CONTAINER larder lss`", "unrecognized subcommand 'lss'"),
    "a command by sudo": ("docs/case.md", "`sudo -u larder larder lss`", "unrecognized subcommand 'lss'"),
    "a command by cargo": ("docs/case.md", "`cargo run --profile quick -- demoo`", "unrecognized subcommand 'demoo'"),
    "a command in a list": ("docs/case.md", '```dockerfile\nHEALTHCHECK CMD ["larder", "healthy"]\n```', "unrecognized subcommand 'healthy'"),
    "a command in a comment": ("docs/case.md", "```toml\n[access]\n# larder auth hasch alice\n```", "unrecognized subcommand 'hasch'"),
    "an option alone": ("docs/case.md", "| `--colour` | |", "no command of ours has the option --colour"),
    "a variable": ("docs/case.md", "`LARDER_CACHE__MAX_SISE=1GiB`", "LARDER_CACHE__MAX_SISE: this sets no key"),
    "a variable of an unknown upstream": ("docs/case.md", "LARDER_UPSTREAM__NO_WHERE__URL=http://a", "LARDER_UPSTREAM__NO_WHERE__URL"),
    "a variable that nothing reads": ("docs/case.md", "`LARDER_BUNDLE_PASSWORD`", "nothing in src/ reads it"),
    "a variable of another program": ("docs/case.md", "`AWS_REGIONN`", "AWS_REGIONN: nothing in src/ reads it"),
    "a path of the API": ("docs/case.md", "`GET /api/v1/imagez`", "the admin API has no such path"),
    "a key": ("docs/case.md", "`cache.max_sise`", "cache.max_sise: there is no such key"),
    "a key with a value": ("docs/case.md", '`admin.listn = ["a"]`', "there is no such key"),
    "a key of an upstream": ("docs/case.md", '`upstream."docker.io".urls`', "there is no such key"),
    "a key behind its table": ("docs/case.md", '`[audit] files = "x"`', "there is no such key; expected one of file,"),
    "a key by itself": ("docs/case.md", '`stale_if_errors = "1d"`', "no table has such a key"),
    "a table": ("docs/case.md", "`[cash]`", "there is no such table"),
    "a table without its name": ("docs/case.md", "`[webhook]`", "the table has a name"),
    "a key in a configuration": ("docs/case.md", "```toml\n[cache]\nmax_sise = 1\n```", "cache.max_sise: there is no such key"),
    "a value in a configuration": ("docs/case.md", '```toml\n[cache]\ntag_ttl = "x"\n```', 'found "x", expected a duration'),
    "a file": ("docs/case.md", "[x](nowhere.md)", "nowhere.md: there is no such file"),
    "a file outside": ("docs/case.md", "[x](../../../etc)", "there is no such file"),
    "a heading": ("docs/case.md", "Text, and\n[x\ny](configuration.md#nowhere).", "case.md:2: configuration.md#nowhere: the file has no such heading"),
    "a heading of its own": ("docs/case.md", "# Some\n\n[x](#sum)", "the file has no such heading"),
    "a heading in a block": ("docs/case.md", "```sh\n# some\n```\n\n[x](#some)", "the file has no such heading"),
    "a heading that comes once": ("docs/case.md", "# Some\n\n[x](#some-1)", "the file has no such heading"),
    "a link in an older document": ("CHANGELOG.md", "[x](docs/nowhere.md)", "CHANGELOG.md:1: docs/nowhere.md"),
    "a file of the source": ("docs/case.md", "`src/nowhere.rs`", "src/nowhere.rs: there is no such file"),
    "a metric": ("docs/case.md", "`larder_request_total`", "lists no such metric"),
    "a document that the source names": ("src/case.rs", "/// See docs/nowhere.md.", "src/case.rs:1: docs/nowhere.md: there is no such document"),
    "a heading that the source names": ("src/case.rs", "/// See docs/release.md#nowhere.", "it has no such heading"),
    "a decision that the source names": ("src/case.rs", "/// See docs/decisions/9999.", "docs/decisions/9999: there is no such document"),
    "a figure": ("README.md", "## Figures\n\n| a | 18.3 GB/s |\n|---|---|\n", "18.3: benches/README.md has no such figure"),
    "a figure of another row": (
        "README.md", "## Figures\n\n| | Larder | beside |\n|---|---|---|\n| cached blob of 64 MiB, 8 clients | 18.5 GB/s | nginx 19.8 GB/s |\n",
        "18.5: benches/README.md has no such figure of larder in the row hot blob 64 MiB × 8"),
    "a figure of another program": (
        "README.md", "## Figures\n\n| cached blob of 64 MiB, 8 clients | 18.2 GB/s | nginx 18.2 GB/s; docker-registry 1.96 GB/s |\n",
        "18.2: benches/README.md has no such figure of nginx in"),
    "a row of figures": ("README.md", "## Figures\n\n| cached blob of 64 MiB, 9 clients | – | – |\n", "hot blob 64 MiB × 9: benches/README.md has no such row"),
    "another client's command": ("README.md", "| podman, k3s | `larder client-config podman` |", "README.md:1: k3s: the command is k3s, not podman"),
    "a client that nobody knows": ("README.md", "| podmann | `larder client-config podman` |", "podmann: the command is not known"),
    "a version of Rust": ("docs/case.md", "With Rust 1.89 or newer.", "case.md:1: Rust 1.89 or newer: it is 1.90"),
    "a version of glibc": ("docs/case.md", "It needs\nglibc 2.36 or newer", "case.md:2: glibc 2.36: it is 2.34"),
    "the image's user": ("docs/case.md", "| user | 65534, not root |", "user | 65534: it is 65532"),
    "a value of the unit": ("docs/case.md", "`TimeoutStopSec=30`", "TimeoutStopSec=30: the unit has 45"),
    "a profile of cargo": ("docs/case.md", "```sh\ncargo run --profile quik -- demo     # x\n```", "case.md:2: cargo run --profile quik: --profile quik is none of"),
    "an option of cargo": ("docs/case.md", "`cargo install --lokked --path .`", "unexpected argument '--lokked'"),
    "a folder for cargo": ("docs/case.md", "`cargo install --path larder`", "--path larder is none of"),
    "a test for cargo": ("docs/case.md", "`cargo test --test its`", "--test its is none of"),
    "a short README": ("README.md", "# Larder\n", "1 lines, expected 150 to 180"),
}  # fmt: skip
# Of docs/configuration.md: a part of it, what stands in its place, and a part of the complaint.
WRONG_TABLES = {
    "a default": ('| `tag_ttl` | `"5m"` |', '| `tag_ttl` | `"6m"` |', 'cache.tag_ttl: the default is "5m", not "6m"'),
    "a default that is not shown": ('| `min_free` | `"1GiB"` |', "| `min_free` | – |", "cache.min_free: it has a default"),
    "a row that lacks": ("| `min_free` |", "| min_free |", "the section [cache] lacks min_free"),
    "a row too many": ("| `min_free` |", "| `min_room` |", "cache.min_room: there is no such key"),
    "a section that lacks": ("### [acme]", "### acme", "the section [acme] lacks accept_terms"),
}  # fmt: skip


def self_test(project, program, folder):
    """Name, whether it is as it should be, and the complaints: nothing about right documents, and its own about each wrong one."""
    tables = (project / "docs/configuration.md").read_text().partition("\n## All keys")[2]
    files = {
        "README.md": "# Larder\n" + "\n" * 150,
        "docs/right.md": RIGHT,
        "docs/here.md": "# Here\n",
        "docs/release.md": "# Releases\n",
        "docs/configuration.md": f"# Configuration\n\n## All keys{tables}",
        "docs/decisions/0001-one.md": "# One\n",
        "deploy/metrics.md": "`larder_requests_total`\n",
        "deploy/webhooks.md": "# Webhooks\n",
        "benches/README.md": "18.2\n\n| row | unit | larder | nginx | docker-registry |\n|---|---|---|---|---|\n"
                             "| hot blob 64 MiB × 8 | GB/s | 18.2 | 19.8 | 1.96 |\n| hot blob 64 MiB × 64 | GB/s | 18.5 | 17 | 1.56 |\n",
        **{path: (project / path).read_text() for path in ("Cargo.toml", "deploy/packaging/facts.py", "deploy/larder.service", "deploy/larder.socket")},
        "proxy.toml.example": (project / "proxy.toml.example").read_text(),
        "src/lib.rs": "// LARDER_CONFIG, AWS_REGION, \"/api/v1/images\", docs/release.md, docs/decisions/0001\n",
    }
    # Links to chapters that are not here are no matter of these tests, nor are the variables of these tables.
    files["src/lib.rs"] += " ".join(FOREIGN_VARIABLE.findall(files["docs/configuration.md"]))
    files["docs/configuration.md"] = re.sub(r"\]\((?!#)[^)]*\)|\]\(#(?!all-keys)[^)]*\)", "](here.md)", files["docs/configuration.md"])
    cases = {"right documents": {}} | {f"wrong, {name}": {path: text} for name, (path, text, _) in WRONG.items()}
    wanted = [None] + [part for *_, part in WRONG.values()]
    for name, (part, by, complaint) in WRONG_TABLES.items():
        cases[f"wrong, {name} in the tables of keys"] = {"docs/configuration.md": files["docs/configuration.md"].replace(part, by, 1)}
        wanted.append(complaint)
    for number, ((name, changed), part) in enumerate(zip(cases.items(), wanted, strict=True)):
        root = (folder / str(number)).resolve()
        for path, text in (files | changed).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        said = list(complaints(root, program))
        # The short README of a case is too short as well.
        said = [each for each in said if part and "expected 150" in part or "expected 150 to 180" not in each]
        good = any(part in each for each in said) and all(each.startswith(tuple(changed)) for each in said) if part else not said
        yield name, good, f"wanted {part!r}:\n" + "\n".join(said)
