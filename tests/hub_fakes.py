"""A hub on this machine, as far as uploading and downloading a model needs it."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories by name: each a list of commits, and each of these the bytes of its files by name."""

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, repo: str, revision: str) -> str | None:
        """The full name of a commit; None for one that is not there. `main` is the last."""
        count = len(self.commits[repo])
        names = [hashlib.sha1(f"{repo} {index}".encode()).hexdigest() for index in range(count)]
        return names[-1] if revision == "main" else revision if revision in names else None

    def files(self, repo: str, sha: str) -> dict[str, bytes]:
        names = [hashlib.sha1(f"{repo} {index}".encode()).hexdigest() for index in range(len(self.commits[repo]))]
        return self.commits[repo][names.index(sha)]


@contextlib.contextmanager
def hub(token: str = "secret") -> Iterator[Hub]:
    server = Hub(token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, hub = self._path(), self.server
        if not self._allowed():
            return
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            hub.commits.setdefault(repo, [{}])
            self._json({"url": f"{hub.address}/{repo}", "name": repo, "id": repo})
        elif path.startswith("/api/validate-yaml"):
            self._json({"errors": [], "warnings": []})
        else:
            _, _, _, owner, name, action, _revision = path.split("/")
            if action == "preupload":
                asked = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
                self._json({"files": modes})
            else:
                self._commit(f"{owner}/{name}", body)

    def _commit(self, repo: str, body: bytes) -> None:
        files = dict(self.server.commits[repo][-1])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.server.commits[repo].append(files)
        sha = self.server.sha(repo, "main")
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.address}/{repo}/commit/{sha}"})

    def do_GET(self) -> None:
        path, hub = self._path(), self.server
        if not self._allowed():
            return
        parts = path.split("/")
        if path == "/api/whoami-v2":
            self._json({"name": "me", "type": "user", "orgs": []})
        elif parts[1] == "api":
            self._information(f"{parts[3]}/{parts[4]}", parts[5:])
        else:
            owner, name, _, revision, file = parts[1:6]
            repo = f"{owner}/{name}"
            sha = hub.sha(repo, revision) if repo in hub.commits else None
            content = hub.files(repo, sha).get(file) if sha else None
            if content is None:
                self._refuse(404, "EntryNotFound" if sha else "RevisionNotFound")
            else:
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                self._send(200, content, {"ETag": etag, "X-Repo-Commit": str(sha), "X-Linked-Size": str(len(content))})

    do_HEAD = do_GET  # noqa: N815 - as the standard library calls it

    def _information(self, repo: str, rest: list[str]) -> None:
        """Of a repository at a revision, or its files there."""
        hub = self.server
        if repo not in hub.commits:
            self._refuse(404, "RepoNotFound")
            return
        sha = hub.sha(repo, rest[1] if rest else "main")
        if sha is None:
            self._refuse(404, "RevisionNotFound")
        elif rest and rest[0] == "tree":
            files = hub.files(repo, sha).items()
            self._json([{"type": "file", "path": name, "size": len(data), "oid": sha} for name, data in files])
        else:
            files = [{"rfilename": name} for name in hub.files(repo, sha)]
            self._json({"id": repo, "modelId": repo, "sha": sha, "siblings": files, "private": False, "tags": []})

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        return path

    def _allowed(self) -> bool:
        allowed = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if not allowed:
            self._refuse(401, "RepoNotFound")
        return allowed

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
