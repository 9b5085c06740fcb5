"""A Hub on 127.0.0.1, for tests alone: what huggingface_hub's client asks for, and no more.

Every route and header is one that huggingface_hub 2.4 or hf_xet 1.8 sends or reads; `ROUTES`, at
the end, lists them. A commit is built whole before a branch is moved to it: nobody ever sees half
of one.

    with LoopbackHub(directory, hf_ada=User("ada")) as hub:
        HfApi(endpoint=hub.endpoint, token="hf_ada").create_repo("ada/model")
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from repositories import Commit, File, RefusalError, Repo, Store, now

GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LARGE = ("*.safetensors", "*.bin", "*.pt", "*.onnx", "*.parquet", "*.arrow", "*.png", "*.zip")
POINTER = 134
"""Bytes of the text that stands in git for a large file."""


@dataclass(frozen=True)
class User:
    """Who a token belongs to, and what it may do: `read` or `write`."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()


@dataclass
class Fault:
    """Requests that are to go wrong: by a status, or (`cut`) by a body that breaks off.

    A late one is carried out, and only its answer is lost.
    """

    method: str
    path: str
    status: int = 503
    times: int = 1
    cut: int | None = None
    is_late: bool = False

    def hits(self, method: str, path: str) -> bool:
        """Whether a request is to go wrong."""
        return self.times > 0 and method == self.method and bool(re.search(self.path, path))


class LoopbackHub:
    """The server, the users by their tokens, and the repositories by kind and name."""

    def __init__(self, directory: Path, **users: User) -> None:
        self.store = Store(directory)
        self.users = users
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        # Elsewhere by name, as a CDN is: the client would follow a redirect on the same host, and
        # lose the headers that say which commit a file is of.
        self.storage = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def head(self, name: str, kind: str = "model") -> Commit:
        """Last commit of the main branch, for assertions."""
        return self.repos[kind, name].refs["refs/heads/main"]

    def url(self, kind: str, name: str) -> str:
        """Address of a repository."""
        return f"{self.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"


class Handler(BaseHTTPRequestHandler):
    """One request: the route's method gives the body, or (status, bytes, headers)."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_request(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        self.query = {key: found[-1] for key, found in parse_qs(urlsplit(self.path).query).items()}
        # Read in any case: the next request of the connection comes after it.
        self.content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append(f"{self.command} {path}")
        fault = next((one for one in hub.faults if one.hits(self.command, path)), None)
        self.cut = fault.cut if fault else None
        failure = RefusalError(fault.status if fault else 0, "the loopback Hub was told to fail")
        try:
            with hub.lock:
                if fault:
                    fault.times -= 1
                    if self.cut is None and not fault.is_late:
                        raise failure
                answer = self.find_answer(path)
                if fault and fault.is_late:
                    raise failure
            self.send(200, answer)
        except RefusalError as refusal:
            self.send(refusal.status, refusal.body, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def find_answer(self, path: str) -> Any:
        for methods, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split():
                groups = found.groupdict().items()
                return action(self, **{name: text and unquote(text) for name, text in groups})
        raise RefusalError(404, f"no route {self.command} {path}")

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        if isinstance(body, tuple):
            status, content, headers = body
        else:
            content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: self.cut])
            self.close_connection = self.cut is not None

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.content or b"{}")

    # --------------------------------------------------------------------------- who may what

    def known_user(self) -> User | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.users:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def user(self) -> User:
        user = self.known_user()
        if user is None:
            raise RefusalError(401, "Invalid username or password.")
        return user

    def writer(self, name: str) -> User:
        """The user, who must be one who may write to the repository of that name."""
        user = self.user()
        if user.role != "write" or not _owns(user, name):
            raise RefusalError(403, f"{user.name} may not write to {name} by this token")
        return user

    def repo(self, kind: str, name: str, write: bool = False) -> Repo:
        """A repository as this user sees it; a private one of somebody else is not there."""
        repo, user = self.hub.repos.get((kind, name)), self.known_user()
        if repo is None or (repo.is_private and not _owns(user, name)):
            raise RefusalError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.writer(name)
        return repo

    # --------------------------------------------------------------------------- repositories

    def whoami(self) -> Any:
        user = self.user()
        return {
            "type": "user",
            "name": user.name,
            "orgs": [{"name": name, "roleInOrg": "write"} for name in user.organizations],
            "auth": {"accessToken": {"displayName": "loopback", "role": user.role}},
        }

    def named(self) -> tuple[str, str]:
        """Kind and full name of the repository that a request's body is about."""
        namespace = self.json.get("organization") or self.user().name
        return self.json.get("type") or "model", f"{namespace}/{self.json['name']}"

    def create_repo(self) -> Any:
        kind, name = self.named()
        user, url = self.writer(name), self.hub.url(kind, name)
        if (kind, name) in self.hub.repos:
            raise RefusalError(409, "You already created this repo", url=url)
        repo = Repo(kind, name, self.json.get("visibility") == "private")
        files = {".gitattributes": self.hub.store.add(GITATTRIBUTES)}
        repo.refs["refs/heads/main"] = Commit(None, files, "initial commit", user.name)
        self.hub.repos[kind, name] = repo
        return {"url": url, "name": name}

    def delete_repo(self) -> Any:
        self.repo(*self.named(), write=True)
        del self.hub.repos[self.named()]
        return {}

    def move_repo(self) -> Any:
        kind, old, new = (self.json[key] for key in ("type", "fromRepo", "toRepo"))
        self.writer(new)
        if (kind, new) in self.hub.repos:
            raise RefusalError(409, f"{new} exists already")
        self.hub.repos[kind, new] = replace(self.repo(kind, old, write=True), name=new)
        del self.hub.repos[kind, old]
        return {}

    def settings(self, kind: str, name: str) -> Any:
        self.repo(kind, name, write=True).is_private = self.json.get("visibility") == "private"
        return {}

    def auth_check(self, kind: str, name: str, write: str | None) -> Any:
        self.repo(kind, name, write=write is not None)
        return {}

    def validate_yaml(self) -> Any:
        try:
            metadata = _front_matter(self.json["content"])
        except (yaml.YAMLError, ValueError) as error:
            errors = [{"message": str(error)}]
            raise RefusalError(400, "invalid", errors=errors, warnings=[]) from error
        empty = [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": [] if metadata else empty}

    def info(self, kind: str, name: str, revision: str | None) -> Any:
        repo = self.repo(kind, name)
        commit = repo.find_commit(revision or "main")
        card = commit.files.get("README.md")
        siblings: list[dict[str, Any]] = []
        for path, file in commit.files.items():
            siblings.append({"rfilename": path})
            if "blobs" in self.query:
                siblings[-1] |= {"size": file.size, "blobId": file.oid}
                lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": POINTER}
                siblings[-1] |= {"lfs": lfs} if file.sha256 else {}
        return {
            "id": repo.name,
            "sha": commit.oid,
            "lastModified": commit.date,
            "private": repo.is_private,
            "tags": [],
            "cardData": _front_matter(self.hub.store.content(card).decode()) if card else None,
            "siblings": siblings,
        }

    # ----------------------------------------------------------------------- files of a commit

    def entry(self, path: str, commit: Commit) -> dict[str, Any]:
        file = commit.files.get(path)
        if file is None:
            oid = hashlib.sha1(path.encode()).hexdigest()
            return {"type": "directory", "path": path, "size": 0, "oid": oid}
        found: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.sha256:
            found["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": POINTER}
        if file.xet:
            found["xetHash"] = file.xet
        if self.query.get("expand") == "true":
            found["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
        return found

    def tree(self, kind: str, name: str, revision: str, path: str | None) -> Any:
        commit = self.repo(kind, name).find_commit(revision)
        prefix = f"{path}/" if path else ""
        inside = [one for one in commit.paths() if one.startswith(prefix)]
        if not inside:
            raise RefusalError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive") != "true":
            inside = [one for one in inside if "/" not in one[len(prefix) :]]
        start, end = (1000 * (int(self.query.get("cursor", 0)) + one) for one in (0, 1))
        page = [self.entry(one, commit) for one in inside[start:end]]
        rest = "&".join(f"{key}={text}" for key, text in self.query.items() if key != "cursor")
        link = f"{self.hub.endpoint}{urlsplit(self.path).path}?{rest}&cursor={end // 1000}"
        headers = {"Link": f'<{link}>; rel="next"'} if end < len(inside) else {}
        return 200, json.dumps(page).encode(), headers

    def paths_info(self, kind: str, name: str, revision: str) -> Any:
        commit = self.repo(kind, name).find_commit(revision)
        asked, known = parse_qs(self.content.decode())["paths"], commit.paths()
        return [self.entry(path, commit) for path in asked if path in known]

    def resolve(self, folder: str | None, name: str, revision: str, path: str) -> Any:
        """A file, or the way to the storage where a large one lies."""
        commit = self.repo(_kind(folder), name).find_commit(revision)
        file = commit.files.get(path)
        if file is None:
            refusal = RefusalError(404, f"{path} does not exist on {revision}", "EntryNotFound")
            refusal.headers["X-Repo-Commit"] = commit.oid
            raise refusal
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"'}
        if file.sha256 is None:
            return self.ranged(self.hub.store.content(file), headers)
        headers["X-Linked-Size"] = str(file.size)
        headers["X-Linked-ETag"] = f'"{file.sha256}"'
        headers["Location"] = f"{self.hub.storage}/large/{file.sha256}"
        if file.xet:
            api = f"{self.hub.endpoint}/api/{_kind(folder)}s/{name}"
            headers["X-Xet-Hash"] = file.xet
            headers["Link"] = f'<{api}/xet-read-token/{commit.oid}>; rel="xet-auth"'
        return 302, b"", headers

    def ranged(self, content: bytes, headers: dict[str, str]) -> Any:
        """All of a file, or the one range of it that is asked for."""
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, content, headers
        first, last = asked.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            raise RefusalError(416, f"range starts at {start}, of {len(content)} bytes")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return 206, content[start:end], headers

    # ------------------------------------------------------------------------ commits and refs

    def preupload(self, kind: str, name: str, revision: str) -> Any:
        """How each file is to come, whether `.gitignore` leaves it out, and what is there now."""
        repo = self.repo(kind, name, write="create_pr" not in self.query)
        there = repo.find_commit(revision).files
        ignored = [line for line in self.json.get("gitIgnore", "").split() if line[0] != "#"]

        def answered(path: str, size: int, sample: str) -> dict[str, Any]:
            is_large = size > 10 << 20 or any(fnmatch(path, pattern) for pattern in LARGE)
            is_large = is_large or b"\0" in base64.b64decode(sample)
            return {
                "path": path,
                "uploadMode": "lfs" if is_large else "regular",
                "shouldIgnore": any(fnmatch(path, line) for line in ignored),
                "oid": (there[path].sha256 or there[path].oid) if path in there else None,
            }

        return {"files": [answered(**file) for file in self.json["files"]]}

    def make_commit(self, kind: str, name: str, revision: str) -> Any:
        is_proposed = "create_pr" in self.query
        repo, user = self.repo(kind, name, write=not is_proposed), self.user()
        header, *operations = [json.loads(line) for line in self.content.splitlines()]
        header = header["value"]
        ref, parent = repo.find_ref(revision), repo.find_commit(revision)
        if ref is None or ref.startswith("refs/tags/"):
            raise RefusalError(400, f"{revision} is no branch")
        if not parent.oid.startswith(header.get("parentCommit", "")):
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for operation in operations:
            self.apply(files, operation["key"], **operation["value"])
        made = Commit(parent, files, header["summary"], user.name, header["description"])
        url = self.hub.url(kind, name)
        answer = {"commitUrl": f"{url}/commit/{made.oid}", "commitOid": made.oid}
        if is_proposed:
            number = self.open_discussion(repo, made.title, made.message, base=ref)["num"]
            answer["pullRequestUrl"], ref = f"{url}/discussions/{number}", f"refs/pr/{number}"
        repo.refs[ref] = made
        return answer

    def apply(self, files: dict[str, File], key: str, path: str, **value: Any) -> None:
        """One operation of a commit."""
        path = path.rstrip("/")
        if key == "file":
            files[path] = self.hub.store.add(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[path] = self.hub.store.find_large(value["oid"])
        else:
            gone = [one for one in files if one == path or one.startswith(f"{path}/")]
            if not gone or (key == "deletedFile" and path not in files):
                raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
            for one in gone:
                del files[one]

    def refs(self, kind: str, name: str) -> Any:
        found: dict[str, list[dict[str, str]]] = {"converts": []}
        for key, prefix in {"branches": "heads", "tags": "tags", "pullRequests": "pr"}.items():
            found[key] = [
                {"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": commit.oid}
                for ref, commit in self.repo(kind, name).refs.items()
                if ref.startswith(f"refs/{prefix}/")
            ]
        return found

    def commits(self, kind: str, name: str, revision: str) -> Any:
        return [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in self.repo(kind, name).find_commit(revision).history()
        ]

    def add_ref(self, kind: str, name: str, where: str, revision: str) -> Any:
        """A branch, named in the path, or a tag, named in the body."""
        repo, is_branch = self.repo(kind, name, write=True), where == "branch"
        start = self.json.get("startingPoint", "main") if is_branch else revision
        new = f"refs/heads/{revision}" if is_branch else f"refs/tags/{self.json['tag']}"
        if new in repo.refs:
            raise RefusalError(409, f"Reference already exists: {new}")
        repo.refs[new] = repo.find_commit(start)
        return {}

    def delete_ref(self, kind: str, name: str, where: str, revision: str) -> Any:
        ref = f"refs/{'heads' if where == 'branch' else 'tags'}/{revision}"
        if self.repo(kind, name, write=True).refs.pop(ref, None) is None:
            raise RefusalError(404, f"{ref} does not exist", "RevisionNotFound")
        return {}

    # ----------------------------------------------------------------------------- discussions

    def open_discussion(
        self, repo: Repo, title: str, text: str, base: str | None = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "num": len(repo.discussions) + 1,
            "title": title,
            "status": "open",
            "isPullRequest": base is not None,
            "author": {"name": self.user().name},
            "createdAt": now(),
            "repo": {"name": repo.name, "type": repo.kind},
            "events": [],
            "changes": {"base": base},
            "filesWithConflicts": [],
        }
        repo.discussions.append(found)
        self.add_event(found, "comment", edited=False, hidden=False, latest={"raw": text})
        return found

    def add_event(self, discussion: dict[str, Any], kind: str, **data: Any) -> dict[str, Any]:
        event = {"id": uuid.uuid4().hex, "type": kind, "createdAt": now(), "data": data}
        event["author"] = {"name": self.user().name}
        discussion["events"].append(event)
        return event

    def list_discussions(self, kind: str, name: str) -> Any:
        found = self.repo(kind, name).discussions
        return {"discussions": found, "count": len(found), "start": 0}

    def create_discussion(self, kind: str, name: str) -> Any:
        repo = self.repo(kind, name)
        base = "refs/heads/main" if self.json["pullRequest"] else None
        made = self.open_discussion(repo, self.json["title"], self.json["description"], base)
        if base:
            repo.refs[f"refs/pr/{made['num']}"] = repo.refs[base]
        return made

    def discussion(self, kind: str, name: str, number: str) -> Any:
        found = self.repo(kind, name).discussions
        if not 0 < int(number) <= len(found):
            raise RefusalError(404, f"no discussion {number}")
        return found[int(number) - 1]

    def change_discussion(self, kind: str, name: str, number: str, what: str) -> Any:
        found = self.discussion(kind, name, number)
        repo = self.repo(kind, name, write=what != "comment")
        if what == "comment":
            latest = {"raw": self.json["comment"]}
            event = self.add_event(found, "comment", edited=False, hidden=False, latest=latest)
            return {"newMessage": event}
        found["status"] = "merged" if what == "merge" else self.json["status"]
        if what == "merge":
            repo.refs[found["changes"]["base"]] = tip = repo.refs[f"refs/pr/{number}"]
            found["changes"]["mergeCommitId"] = tip.oid
        return {"newStatus": self.add_event(found, "status-change", status=found["status"])}

    # ----------------------------------------------------------------------------- large files

    def lfs_batch(self, folder: str | None, name: str) -> Any:
        """Where to upload each large file that is not there yet."""
        self.repo(_kind(folder), name, write=True)
        objects: list[dict[str, Any]] = []
        for one in self.json["objects"]:
            objects.append({"oid": one["oid"], "size": one["size"]})
            if not (self.hub.store.large / one["oid"]).exists():
                objects[-1]["actions"] = {
                    "upload": {"href": f"{self.hub.storage}/large/{one['oid']}"},
                    "verify": {"href": f"{self.hub.endpoint}/large/verify"},
                }
        return {"transfer": "basic", "objects": objects}

    def receive(self, sha256: str) -> Any:
        self.hub.store.add_large(self.content, sha256)
        return {}

    def verify(self) -> Any:
        path = self.hub.store.large / self.json["oid"]
        if not path.exists() or path.stat().st_size != self.json["size"]:
            raise RefusalError(404, f"{path.name} has not been uploaded whole")
        return {}

    def send_large(self, sha256: str) -> Any:
        # A signed link stands for the permission: the client's token must not come here.
        if "Authorization" in self.headers:
            raise RefusalError(400, "a token has been sent to another host")
        return self.ranged((self.hub.store.large / sha256).read_bytes(), {"ETag": f'"{sha256}"'})

    def xet_token(self, kind: str, name: str, access: str, revision: str) -> Any:
        self.repo(kind, name, write=access == "write" and "create_pr" not in self.query)
        endpoint, expiry = self.hub.store.xet_endpoint, int(time.time()) + 3600
        # huggingface_hub reads the headers, hf_xet the body.
        headers = {"X-Xet-Cas-Url": endpoint, "X-Xet-Access-Token": "-"}
        headers["X-Xet-Token-Expiration"] = str(expiry)
        body = {"casUrl": endpoint, "accessToken": "-", "exp": expiry}
        return 200, json.dumps(body).encode(), headers


def _owns(user: User | None, name: str) -> bool:
    return user is not None and name.split("/")[0] in (user.name, *user.organizations)


def _kind(folder: str | None) -> str:
    """Kind of the repositories under a folder of the site; models have none."""
    return folder[:-1] if folder else "model"


def _front_matter(card: str) -> Any:
    """Metadata at a card's head.

    Raises:
        ValueError: They are no mapping.
    """
    found = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", card, re.DOTALL)
    metadata = yaml.safe_load(found[1]) if found else None
    if not isinstance(metadata, dict | None):
        raise ValueError(f"metadata must be a mapping, not {type(metadata).__name__}")
    # Dates are no JSON.
    return json.loads(json.dumps(metadata, default=str))


_REPO = "/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
_SITE = "(?:/(?P<folder>datasets|spaces))?/(?P<name>[^/]+/[^/]+)"
_REVISION = "(?P<revision>[^/]+)"
_LARGE = "/large/(?P<sha256>[0-9a-f]{64})"
_NUMBER = r"/discussions/(?P<number>\d+)"
# Methods, path, and the method of `Handler` that takes the groups of the path.
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create_repo),
    ("DELETE", "/api/repos/delete", Handler.delete_repo),
    ("POST", "/api/repos/move", Handler.move_repo),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", f"{_REPO}(?:/revision/{_REVISION})?", Handler.info),
    ("PUT", f"{_REPO}/settings", Handler.settings),
    ("GET", f"{_REPO}/auth-check(?P<write>/write)?", Handler.auth_check),
    ("GET", f"{_REPO}/tree/{_REVISION}(?:/(?P<path>.*))?", Handler.tree),
    ("POST", f"{_REPO}/paths-info/{_REVISION}", Handler.paths_info),
    ("GET", f"{_REPO}/refs", Handler.refs),
    ("GET", f"{_REPO}/commits/{_REVISION}", Handler.commits),
    ("POST", f"{_REPO}/preupload/{_REVISION}", Handler.preupload),
    ("POST", f"{_REPO}/commit/{_REVISION}", Handler.make_commit),
    ("POST", f"{_REPO}/(?P<where>branch|tag)/{_REVISION}", Handler.add_ref),
    ("DELETE", f"{_REPO}/(?P<where>branch|tag)/{_REVISION}", Handler.delete_ref),
    ("GET", f"{_REPO}/discussions", Handler.list_discussions),
    ("POST", f"{_REPO}/discussions", Handler.create_discussion),
    ("GET", f"{_REPO}{_NUMBER}", Handler.discussion),
    ("POST", f"{_REPO}{_NUMBER}/(?P<what>comment|status|merge)", Handler.change_discussion),
    ("GET", f"{_REPO}/xet-(?P<access>read|write)-token/{_REVISION}", Handler.xet_token),
    ("POST", rf"{_SITE}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", "/large/verify", Handler.verify),
    ("PUT", _LARGE, Handler.receive),
    ("GET HEAD", _LARGE, Handler.send_large),
    ("GET HEAD", f"{_SITE}/resolve/{_REVISION}/(?P<path>.+)", Handler.resolve),
]
