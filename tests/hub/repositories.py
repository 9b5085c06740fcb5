"""What the loopback Hub keeps: contents as files of a directory, histories in memory."""

from __future__ import annotations

import hashlib
import re
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class RefusalError(Exception):
    """An answer that is no success, with what the client reads in its headers."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.body = {"error": message, **body}


@dataclass(frozen=True)
class File:
    """One file of one commit; `sha256` of a large one, `xet` too where it came by hf_xet."""

    size: int
    oid: str
    sha256: str | None = None
    xet: str | None = None


@dataclass(frozen=True)
class Commit:
    """All files at one time; what came before is its parent's."""

    parent: Commit | None
    files: dict[str, File]
    title: str
    author: str
    message: str = ""
    oid: str = field(default_factory=lambda: hashlib.sha1(uuid.uuid4().bytes).hexdigest())
    date: str = field(default_factory=lambda: now())

    def history(self) -> Iterator[Commit]:
        """This commit and those before it."""
        commit: Commit | None = self
        while commit:
            yield commit
            commit = commit.parent

    def paths(self) -> list[str]:
        """Paths of the files and of the folders that they lie in."""
        folders = {str(parent) for path in self.files for parent in Path(path).parents} - {"."}
        return sorted({*self.files, *folders})


@dataclass
class Repo:
    """Branches, tags and pull requests by their full names, and what was said of them."""

    kind: str
    name: str
    is_private: bool
    refs: dict[str, Commit] = field(default_factory=dict)
    discussions: list[dict[str, Any]] = field(default_factory=list)

    def find_ref(self, revision: str) -> str | None:
        """Full name of a branch, a tag or a pull request."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def find_commit(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a pull request or (the start of) a hash names."""
        name = self.find_ref(revision)
        if name:
            return self.refs[name]
        for tip in self.refs.values():
            for commit in tip.history():
                if re.fullmatch("[0-9a-f]{7,40}", revision) and commit.oid.startswith(revision):
                    return commit
        raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Store:
    """Contents of all repositories: small files, large ones, and those that came by hf_xet."""

    def __init__(self, directory: Path) -> None:
        self.small, self.large, self.xet = (directory / name for name in ("small", "large", "xet"))
        for path in (self.small, self.large, self.xet):
            path.mkdir(parents=True)
        # hf_xet keeps to a directory instead of a server then.
        self.xet_endpoint = f"local://{self.xet}"

    def content(self, file: File) -> bytes:
        """What a file holds."""
        path = self.small / file.oid if file.sha256 is None else self.large / file.sha256
        return path.read_bytes()

    def add(self, content: bytes) -> File:
        """A small file."""
        oid = git_hash(content)
        (self.small / oid).write_bytes(content)
        return File(len(content), oid)

    def add_large(self, content: bytes, sha256: str) -> None:
        """A large file, which must be what was announced."""
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise RefusalError(422, f"content has sha256 {found}, and not the announced {sha256}")
        (self.large / sha256).write_bytes(content)

    def find_large(self, sha256: str) -> File:
        """A large file that has been uploaded, in one way or the other."""
        path, found = self.large / sha256, self.find_xet(sha256)
        if found and not path.exists():
            self.fetch_xet(*found, path)
        if not path.exists():
            raise RefusalError(400, f"large file {sha256} has not been uploaded")
        size = path.stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return File(size, git_hash(pointer.encode()), sha256, found[0] if found else None)

    def find_xet(self, sha256: str) -> tuple[str, int] | None:
        """Hash and size in hf_xet's local store, whose shards know the sha256 of each file.

        A shard is records of 48 bytes after a header of as many: a file's hash, flags and number
        of segments; the segments, their hashes (flag 31) and the sha256 (flag 30). A hash of ones
        alone ends the files.
        """
        for path in self.xet.glob("xet/xorbs/shards/*.mdb"):
            shard, at = path.read_bytes(), 48
            while shard[at : at + 32] != b"\xff" * 32:
                name = _in_words(shard[at : at + 32])
                flags, count = struct.unpack_from("<II", shard, at + 32)
                segments = range(at + 48, at + 48 * (1 + count), 48)
                size = sum(struct.unpack_from("<I", shard, segment + 36)[0] for segment in segments)
                at += 48 * (1 + count * (1 + (flags >> 31)))
                if flags >> 30 & 1:
                    if _in_words(shard[at : at + 32]) == sha256:
                        return name, size
                    at += 48
        return None

    def fetch_xet(self, name: str, size: int, path: Path) -> None:
        """Puts together a file of the local store, as the Hub does for clients without hf_xet.

        The store opens for one process at a time: a client's is done with it when it commits.
        """
        from hf_xet import XetFileInfo, XetSession

        partial = path.with_suffix(".partial")
        access = {"token": "-", "token_expiry_unix_secs": 1 << 40}
        with XetSession().new_file_download_group(endpoint=self.xet_endpoint, **access) as group:
            group.start_download_file(XetFileInfo(name, size), str(partial))
        partial.rename(path)


def git_hash(content: bytes) -> str:
    """Git's name for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _in_words(raw: bytes) -> str:
    """A hash as hf_xet writes it: four little-endian words in hexadecimal."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))
