"""Archives that are the same bytes each time: sorted, with fixed times and owners."""

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


@dataclass
class Entry:
    kind: bytes             # of tarfile
    content: bytes | Path = b""
    mode: int = 0o644
    owner: int = 0          # user; the group is 0 everywhere
    link: str = ""
    mtime: int | None = None


@dataclass
class Tree:
    """Files by path, without a slash in front; folders above them come by themselves."""
    entries: dict = field(default_factory=dict)

    def file(self, path, content, mode=0o644):
        self.entries[path] = Entry(tarfile.REGTYPE, content, mode)

    def folder(self, path, mode=0o755, owner=0):
        self.entries[path] = Entry(tarfile.DIRTYPE, mode=mode, owner=owner)

    def sorted(self):
        every = dict(self.entries)
        for path in self.entries:
            for parent in PurePosixPath(path).parents:
                if str(parent) != ".":
                    every.setdefault(str(parent), Entry(tarfile.DIRTYPE, mode=0o755))
        return sorted(every.items())


def write_tar(out, tree, epoch):
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, entry in tree.sorted():
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.linkname = entry.kind, entry.mode, entry.link
            info.uid, info.gid = entry.owner, 0
            info.mtime = epoch if entry.mtime is None else entry.mtime
            if isinstance(entry.content, Path):
                info.size = entry.content.stat().st_size
                with open(entry.content, "rb") as content:
                    tar.addfile(info, content)
            else:
                info.size = len(entry.content)
                tar.addfile(info, io.BytesIO(entry.content))


def gzipped(data, level=9):
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", level, packed, mtime=0) as out:
        out.write(data)
    return packed.getvalue()


def write_tar_gz(path, tree, epoch):
    # Of a program, level 9 takes twice the time for half a percent.
    with open(path, "wb") as out, gzip.GzipFile("", "wb", 6, out, mtime=0) as packed:
        write_tar(packed, tree, epoch)


def write_folder(root, tree):
    """The same on disk, for dpkg-deb."""
    for path, entry in tree.sorted():
        target = root / path
        if entry.kind == tarfile.DIRTYPE:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            content = entry.content
            target.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
        # Whatever the umask.
        target.chmod(entry.mode)


def sha256(path):
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_sums(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
