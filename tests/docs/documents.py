"""Markdown and output: finds the blocks to run, and compares what they print with what the document shows."""

import re
import subprocess
from dataclasses import dataclass

# A command that does not end by itself. It runs on, as in a reader's other terminal, until the next one.
ENDLESS = re.compile(r"larder\s+(serve|demo)\b(?!.*--(exit|no-wait|help|json)\b)")
MARK = re.compile(r"\s*<!--\s*not (?:run|compared)(?:\s*:\s*(.*?))?\s*-->\s*$")
# Commands that make what a transcript needs, for readers who have it already.
FIRST = re.compile(r"\s*<!--\s*first:\s*(.*?)\s*-->\s*$")
FENCE = re.compile(r"(\s*)(```+)\s*([\w-]*)[^`]*$")
OTHER_FENCE = re.compile(r"\s*~~~")
# What a document that is run may have: commands, what they print, files and figures. A misspelt `sh` is none of these.
LANGUAGES = ["sh", "console", "text", "toml", "json", "yaml", "dockerfile", "mermaid"]
SHELLS = ["bash", "shell", "zsh"]
# A line of commands in a block of another language.
COMMAND = re.compile(r"(?m)^\s*(?:\$ |(?:sudo )?larder [a-z])")
# The tour has begun to wait for its end.
TOUR = "…\nUpstream and Larder keep running…\n…\n"
# An & by itself, where quotations and comments are left out.
QUOTED = re.compile(r"(?m)'[^']*'|\"[^\"]*\"|(?:^|\s)#.*$")
BACKGROUND = re.compile(r"(?<![&>|<])&(?![&>])")


class Wrong(Exception):
    """A document that cannot be judged; the message names the line."""


@dataclass
class Block:
    line: int                   # of its first command
    language: str
    text: str
    reason: str | None = None   # why it is not run, or not compared
    first: str | None = None    # commands that go before a transcript
    follows: bool = False       # nothing but blank lines stands between it and the block before

    @property
    def title(self):
        lines = commands(self.text)
        return lines[0].strip() if lines else "(empty)"


@dataclass
class Step:
    """A block of commands, and what it prints if the document shows that."""
    block: Block
    expected: Block | None
    may_fail: bool = False      # its output, which is shown, decides

    @property
    def runs_on(self):
        """The last command is one that does not end by itself."""
        lines = commands(self.block.text)
        return bool(lines) and bool(ENDLESS.match(lines[-1].lstrip())) and not lines[-1].rstrip().endswith("&")


def commands(text):
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def units(text):
    """The complete commands of a block: the line of each, and its text behind as many empty lines as stand before it in the block.

    Each is run by itself, because bash lets a list such as `false && echo` fail unnoticed unless it is the last command.
    """
    found, begin, lines = [], 0, text.splitlines()
    for end in range(1, len(lines) + 1):
        part = "\n".join(lines[begin:end])
        if end < len(lines) and not complete(part):
            continue
        if commands(part):
            found.append((begin + 1, "\n" * begin + part + "\n"))
        begin = end
    return found


def complete(text):
    """Whether bash waits for no further line: after a backslash, in a loop, a quotation or a here-document it does."""
    if text.endswith("\\"):
        return False
    asked = subprocess.run(["bash", "-n"], input=text + "\n", text=True, capture_output=True)
    return asked.returncode == 0 and not asked.stderr


def blocks(text, name):
    found, opened, mark, first, prose = [], None, None, None, True
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if opened:
            indent, ticks, block, body = opened
            if fence and fence[2] == ticks and not fence[3]:
                block.text = "".join(f"{text}\n" for text in body)
                found.append(block)
                opened, prose = None, False
            else:
                body.append(line[indent:] if not line[:indent].strip() else line)
        elif fence:
            opened = (len(fence[1]), fence[2], Block(number + 1, fence[3], "", mark, first, not prose), [])
            mark = first = None
        elif found_mark := MARK.match(line):
            if not found_mark[1]:
                raise Wrong(f"{name}:{number}: the mark gives no reason: <!-- not run: reason -->")
            mark, prose = found_mark[1], True
        elif found_first := FIRST.match(line):
            first, prose = found_first[1], True
        elif OTHER_FENCE.match(line):
            raise Wrong(f"{name}:{number}: a block begins with ```, not with ~~~")
        else:
            if mark is not None or first is not None:
                raise Wrong(f"{name}:{number - 1}: the mark stands before no block")
            prose = prose or bool(line.strip())
    if opened:
        raise Wrong(f"{name}:{opened[2].line - 1}: the block has no end")
    return found


def steps(text, name):
    """The blocks to run, with what they print. Refuses a block that could not be run or compared unnoticed."""
    found, before = [], None
    for block in blocks(text, name):
        where = f"{name}:{block.line}"
        if block.first:
            raise Wrong(f"{where}: this document shows all its commands: no <!-- first: … -->")
        if block.language not in LANGUAGES + SHELLS:
            raise Wrong(f"{where}: a block `{block.language}`; expected one of {', '.join(LANGUAGES)}")
        if block.language == "sh":
            if BACKGROUND.search(QUOTED.sub("", block.text)):
                raise Wrong(f"{where}: nobody sees a command in the background (&) fail: give it a block of its own")
            found.append(Step(block, None))
        elif block.language in ("console", "text") and block.follows and found and found[-1].block is before:
            if before.reason is not None:
                raise Wrong(f"{where}: the commands before it are not run, so it is not compared: <!-- not compared: reason -->")
            if "…" in block.text and not re.search(r"[^…\s]", block.text):
                raise Wrong(f"{where}: a block of nothing but … shows nothing")
            found[-1].expected = block
        elif block.reason is None:
            if block.language in SHELLS or COMMAND.search(block.text):
                raise Wrong(f"{where}: commands stand in a block `sh`, what they print in a block `console` behind it")
            if block.language in ("console", "text"):
                raise Wrong(f"{where}: it stands behind no block `sh`, so it is not compared: <!-- not compared: reason -->")
        before = block
    return found


def transcripts(text, name):
    """The steps of a chapter that is not run as a whole: of each block `console` the commands behind `$ `, and what each prints."""
    found = []
    for block in blocks(text, name):
        if block.language != "console":
            continue
        if not block.text.startswith("$ "):
            raise Wrong(f"{name}:{block.line}: a block `console` begins with a command: $ larder …")
        if block.reason is not None:
            found.append(Step(block, None))
            continue
        if block.first:
            for command in block.first.split(" ;; "):
                began = TOUR if command.startswith("larder demo") else None
                found.append(Step(Block(block.line, "sh", f"{command}\n"), began and Block(block.line, "text", began)))
        for number, line in enumerate(block.text.splitlines(keepends=True), block.line):
            if line.startswith("$ "):
                found.append(Step(Block(number, "sh", line.removeprefix("$ ")), Block(number + 1, "text", ""), may_fail=True))
            else:
                found[-1].expected.text += line
    return found


# --- comparing -------------------------------------------------------------------------------------------

# What differs from run to run, in this order.
VARIABLE = [(re.compile(pattern), by) for pattern, by in [
    (r"\x1b\[[0-9;]*m", ""),
    (r"sha256:[0-9a-f]*…?", "sha256:DIGEST"),
    (r"\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,64}\b", "DIGEST"),
    (r"\b[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\b", "TIME"),
    (r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?", "TIME"),
    (r"\b(ttl|dur)=-?[\d.]+", r"\1=TIME"),
    (r"\bjust now\b", "TIME"),
    # 5000 and 5001 are free in a run's network, as they are at a reader's: who shows another port there shows a wrong one.
    (r"(127\.0\.0\.1|localhost|0\.0\.0\.0|\[::1?\]):(?!500[01]\b)\d+", r"\1:PORT"),
    (r"\badmin-(?!5001\b)\d+\.token", "admin-PORT.token"),
    # Rates, and the index, which grows by pages of the disk. Other sizes are limits and those of the images, the same each time.
    (r"\b\d+(?:\.\d+)? ?(?:[kKMGT]i?B|B)/s", "RATE"),
    (r"^(\s*index\s+)\d+(?:\.\d+)? (?:[KMG]iB|B)\b", r"\1SIZE"),
    (r"\b\d+(?:\.\d+)? ?(?:ns|µs|us|ms|s|min|m|h|d)\b(?: ago)?", "TIME"),
    (r"\s+", " "),
]]  # fmt: skip


def normal(line):
    for pattern, by in VARIABLE:
        line = pattern.sub(by, line)
    return line.strip()


def lines_of(text):
    lines = [normal(line) for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def pattern_of(line):
    if line == "…":
        return r"(?:.*\n)*?"
    return ".*".join(re.escape(part) for part in line.split("…")) + r"\n"


def difference(expected, real):
    """What of the expected output did not come, or none."""
    wanted, came = lines_of(expected), lines_of(real)
    text = "".join(f"{line}\n" for line in came)
    if re.fullmatch("".join(pattern_of(line) for line in wanted), text):
        return None
    matched = 0
    while matched < len(wanted) and re.match("".join(pattern_of(line) for line in wanted[:matched + 1]), text):
        matched += 1
    if matched == len(wanted):
        return "more was printed than the document shows"
    return f"no line fits line {matched + 1}: {expected.splitlines()[matched]!r}"
