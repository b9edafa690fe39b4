"""Markdown and output: finds the blocks to run, and compares what they print with what the document shows."""

import re
from dataclasses import dataclass

# A command that does not end by itself. It runs on, as in a reader's other terminal, until the next one.
ENDLESS = re.compile(r"larder\s+(serve|demo)\b(?!.*--(exit|no-wait|help|json)\b)")
MARK = re.compile(r"\s*<!--\s*not run(?:\s*:\s*(.*?))?\s*-->\s*$")
FENCE = re.compile(r"(\s*)(```+)\s*([\w-]*)[^`]*$")


class Wrong(Exception):
    """A document that cannot be judged; the message names the line."""


@dataclass
class Block:
    line: int                   # of its first command
    language: str
    text: str
    reason: str | None = None   # why it is not run
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

    @property
    def runs_on(self):
        """The last command is one that does not end by itself."""
        lines = commands(self.block.text)
        return bool(lines) and bool(ENDLESS.match(lines[-1].lstrip())) and not lines[-1].rstrip().endswith("&")


def commands(text):
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def blocks(text, name):
    found, opened, mark, prose = [], None, None, True
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
            opened = (len(fence[1]), fence[2], Block(number + 1, fence[3], "", mark, not prose), [])
            mark = None
        elif found_mark := MARK.match(line):
            if not found_mark[1]:
                raise Wrong(f"{name}:{number}: the mark gives no reason: <!-- not run: reason -->")
            mark, prose = found_mark[1], True
        else:
            if mark is not None:
                raise Wrong(f"{name}:{number - 1}: the mark stands before no block")
            prose = prose or bool(line.strip())
    if opened:
        raise Wrong(f"{name}:{opened[2].line - 1}: the block has no end")
    return found


def steps(text, name):
    """The blocks to run, with what they print; and blocks that look like output and stand behind no commands."""
    found, loose, before = [], [], None
    for block in blocks(text, name):
        if block.language == "sh":
            found.append(Step(block, None))
        elif block.language in ("bash", "shell", "zsh") or block.language == "console" and re.search(r"(?m)^\s*\$ ", block.text):
            if block.reason is None:
                raise Wrong(f"{name}:{block.line}: commands stand in a block `sh`, what they print in a block `console` behind it")
            found.append(Step(block, None))
        elif block.language in ("console", "text") and block.follows and found and found[-1].block is before:
            found[-1].expected = block
        elif block.language == "console":
            loose.append(block)
        before = block
    return found, loose


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
    (r"(127\.0\.0\.1|localhost|0\.0\.0\.0|\[::1?\]):\d+", r"\1:PORT"),
    (r"\badmin-\d+\.token", "admin-PORT.token"),
    (r"\b(?:\d{1,3}(?:\s\d{3})+|\d+(?:\.\d+)?) ?(?:[kKMGT]i?B|B)(?:/s)?\b", "SIZE"),
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
