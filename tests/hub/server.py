"""A Hugging Face Hub for tests, on the loopback interface: repositories, commits and revisions, kept in memory.

It speaks the endpoints that the client's uploads and downloads use; large files are taken like small ones. It can be
told to break off in the middle of a request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OWNER = "acme"
TOKEN = "hf_of_the_test"


@dataclass
class Commit:
    """The files of a repository at one time."""

    sha: str
    files: dict[str, bytes]
    message: str


@dataclass
class Repository:
    """Commits, and the branches that name some of them."""

    private: bool = False
    commits: list[Commit] = field(default_factory=list[Commit])
    branches: dict[str, str] = field(default_factory=dict[str, str])

    def at(self, revision: str) -> Commit | None:
        sha = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.sha == sha), None)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> Commit:
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append(Commit(sha, files, message))
        self.branches[branch] = sha
        return self.commits[-1]


@dataclass
class Hub:
    """What the server holds and what it has seen.

    Args:
        repositories: by type and id, such as `models/acme/voices`.
        requests: method, path and token of each request.
        breaks: word in the path of requests that are broken off; a client sets it with `GET /_breaks/<word>`.
    """

    repositories: dict[str, Repository] = field(default_factory=dict[str, Repository])
    requests: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, "str | None"]])
    breaks: str | None = None
    endpoint: str = ""

    def tokens(self, part: str) -> set[str | None]:
        """Return the tokens that requests with this in their path came with."""
        return {token for _, path, token in self.requests if part in path}

    def add(self, key: str, files: dict[str, bytes]) -> Commit:
        """Put files into a repository without a request."""
        repository = self.repositories.setdefault(key, Repository())
        return repository.commit("main", files, "Upload")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    # ------------------------------------------------------------------ answers

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        header = self.headers.get("Authorization")
        self.token = header.removeprefix("Bearer ") if header else None
        self.hub.requests.append((self.command, self.path, self.token))
        length = int(self.headers.get("Content-Length") or 0)
        if path.startswith("/_breaks/"):  # for clients that are tests
            self.hub.breaks = path.removeprefix("/_breaks/") or None
            self._send(200, {})
            return
        if self.hub.breaks and self.hub.breaks in path:
            self.rfile.read(length // 2)  # some of it had arrived
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(2)
            return
        self.body = self.rfile.read(length)
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace("HEAD", "GET"):
                getattr(self, answer)(**match.groupdict())
                return
        self._send(404, {"error": f"no such endpoint: {self.command} {path}"})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if data is content else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._send(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def _commit(self, kind: str, name: str, revision: str) -> Commit | None:
        repository = self.hub.repositories.get(f"{kind}/{name}")
        if repository is None or (repository.private and self.token != TOKEN):
            self._missing("RepoNotFound")
            return None
        commit = repository.at(revision)
        if commit is None:
            self._missing("RevisionNotFound")
        return commit

    # ------------------------------------------------------------------ writing

    def create(self) -> None:
        if self.token != TOKEN:
            self._send(401, {"error": "log in first"})
            return
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or OWNER}/{wanted['name']}"
        key = f"{wanted.get('type') or 'model'}s/{name}"
        found = key in self.hub.repositories
        if not found:
            repository = self.hub.repositories[key] = Repository(wanted.get("visibility") == "private")
            repository.commit("main", {}, "initial commit")
        self._send(409 if found else 200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def branch(self, kind: str, name: str, branch: str) -> None:
        repository = self.hub.repositories[f"{kind}/{name}"]
        found = branch in repository.branches
        repository.branches.setdefault(branch, repository.branches["main"])
        self._send(409 if found else 200, {})

    def validate(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
            for file in json.loads(self.body)["files"]
        ]
        self._send(200, {"files": files})

    def commit(self, kind: str, name: str, revision: str) -> None:
        if self.token != TOKEN:
            self._send(403, {"error": "you may not write here"})
            return
        repository = self.hub.repositories[f"{kind}/{name}"]
        before = repository.at(revision)
        files, message = dict(before.files) if before else {}, ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repository.commit(revision, files, message).sha
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    # ------------------------------------------------------------------ reading

    def whoami(self) -> None:
        self._send(200, {"name": OWNER, "type": "user", "orgs": []} if self.token == TOKEN else {})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        commit = self._commit(kind, name, revision or "main")
        if commit is not None:
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            facts = {"id": name, "sha": commit.sha, "private": False, "tags": [], "siblings": siblings}
            self._send(200, {**facts, "lastModified": "2026-01-01T00:00:00.000Z", "downloads": 0, "likes": 0})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        commit = self._commit(kind, name, revision)
        if commit is None:
            return
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{folder}/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(commit.files):
            if path.startswith(prefix):
                head, slash, _ = path[len(prefix) :].partition("/")
                if slash:
                    found[prefix + head] = {"type": "directory", "path": prefix + head, "oid": "0", "size": 0}
                if not slash or recursive:
                    found[path] = self._described(path, commit)
        self._send(200, list(found.values())) if found or not folder else self._missing("EntryNotFound")

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        commit = self._commit(kind, name, revision)
        if commit is None:
            return
        form = "json" in (self.headers.get("Content-Type") or "")
        wanted = json.loads(self.body)["paths"] if form else parse_qs(self.body.decode()).get("paths", [])
        found = [self._described(path, commit) for path in wanted if path in commit.files]
        folders = {path for path in wanted if any(file.startswith(f"{path}/") for file in commit.files)}
        found += [{"type": "directory", "path": path, "oid": "0", "size": 0} for path in sorted(folders)]
        self._send(200, found)

    def _described(self, path: str, commit: Commit) -> dict[str, Any]:
        data = commit.files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def resolve(self, name: str, revision: str, path: str, kind: str | None = None) -> None:
        commit = self._commit((kind or "models/").rstrip("/"), name, revision)
        if commit is None:
            return
        where = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            self._send(404, {"error": "EntryNotFound"}, {"X-Error-Code": "EntryNotFound", **where})
            return
        data = commit.files[path]
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes", **where}
        if ranged:
            start, end = int(ranged[1]), int(ranged[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self._send(206, data[start : end + 1], headers)
        else:
            self._send(200, data, headers)


_REPOSITORY = r"(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
ROUTES = (
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", rf"/api/{_REPOSITORY}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/{_REPOSITORY}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/api/{_REPOSITORY}/branch/(?P<branch>[^/]+)", "branch"),
    ("POST", rf"/api/{_REPOSITORY}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", rf"/api/{_REPOSITORY}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"/api/{_REPOSITORY}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", "tree"),
    ("GET", rf"/api/{_REPOSITORY}", "info"),
    ("GET", r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on a free port inside the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
