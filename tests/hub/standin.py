"""A stand-in for the Hub on loopback: folders as repositories with branches, large files behind a redirect to another
server, as on the real one; and whatever goes wrong there, on demand.

    with Standin(tmp_path) as hub:
        hub.push("org/name", "step10", {"config.json": b"{}", "model.safetensors": weights})
        hub.faults = lambda request: Fault(status=503) if request.number == 3 else None

It speaks enough of the Hub for huggingface_hub, datasets and our client. `hub.log` has every request with the bytes that
were sent; `hub.storage` is the address of the second server, which also serves the folder `hub.originals` as it is.
"""

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_standin"
LARGE = 10 << 10  # files from this size on are LFS files
BLOCK = 16 << 10


@dataclass(kw_only=True)
class Request:
    """One request as it was served; `sent` counts bytes of the body."""

    number: int
    method: str
    url: str
    headers: Mapping[str, str]
    storage: bool
    status: int = 0
    sent: int = 0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """status: answer this instead. cut: close the connection after so many bytes of the body. flip: spoil this byte.

    stall: say nothing for so many seconds before that.
    """

    status: int = 0
    retry_after: str | None = None
    cut: int | None = None
    flip: int | None = None
    stall: float = 0.0


@dataclass(kw_only=True)
class Repository:
    """branch -> commit, commit -> path -> content."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False


class Standin:
    """Both servers. `page` is the most entries that a listing has at once, `pace` how slow bodies are sent."""

    def __init__(self, originals: Path | None = None) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.originals = originals
        self.log: list[Request] = []
        self.faults: Callable[[Request], Fault | None] = lambda request: None
        self.page = 1000
        self.pace = 0.0  # seconds for each 16 KiB of a body
        self.lock = threading.Lock()
        self.servers = [_serve(self, storage) for storage in (False, True)]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self) -> "Standin":
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def push(
        self,
        name: str,
        branch: str,
        files: Mapping[str, bytes] | Path,
        *,
        kind: str = "model",
        gated: bool = False,
    ) -> str:
        """A new commit on a branch, of files or of a folder's content; returns the commit. Earlier ones are kept."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
        repository = self.repositories.setdefault((kind, name), Repository())
        told = "".join(f"{path} {hashlib.sha256(data).hexdigest()}\n" for path, data in sorted(files.items()))
        commit = hashlib.sha1(f"{branch}\n{told}".encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        repository.gated = gated
        return commit

    def blob(self, sha256: str) -> bytes | None:
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if len(data) >= LARGE and digest(data) == sha256:
                        return data
        return None

    def sent(self, pattern: str = "") -> int:
        """Bytes of bodies sent for URLs that match."""
        return sum(request.sent for request in self.log if re.search(pattern, request.url))

    def asked(self, pattern: str = "", method: str = "GET") -> list[Request]:
        """Requests whose URL matches."""
        return [r for r in self.log if r.method == method and re.search(pattern, r.url)]


_digests: dict[int, tuple[bytes, str]] = {}


def digest(data: bytes) -> str:
    """sha256, remembered: the same large files are asked for again and again."""
    if id(data) not in _digests:
        _digests[id(data)] = (data, hashlib.sha256(data).hexdigest())
    return _digests[id(data)][1]


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _serve(hub: Standin, storage: bool) -> ThreadingHTTPServer:
    class Handler(_Handler):
        pass

    Handler.hub, Handler.storage = hub, storage
    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        # Little is on its way when a client is killed, so that bytes sent are nearly bytes received.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK // 2)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is none of this server's business."""


class _Handler(BaseHTTPRequestHandler):
    hub: Standin
    storage: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """The log is `hub.log`."""

    def do_GET(self) -> None:
        with self.hub.lock:
            self.seen = Request(
                number=len(self.hub.log) + 1,
                method=self.command,
                url=self.path,
                headers={key.lower(): value for key, value in self.headers.items()},
                storage=self.storage,
            )
            self.hub.log.append(self.seen)
            self.fault = self.hub.faults(self.seen) or Fault()
        time.sleep(self.fault.stall)
        if self.fault.status:
            more = {} if self.fault.retry_after is None else {"Retry-After": self.fault.retry_after}
            self.answer(self.fault.status, b"not now", more)
        elif self.storage:
            self.serve_storage()
        else:
            self.serve_hub()

    do_HEAD = do_POST = do_GET

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a response; ranges are honoured where the status is 200 and an ETag is there."""
        headers = dict(headers or {})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.seen.headers.get("range", ""))
        valid = self.seen.headers.get("if-range") in (None, headers.get("ETag"))
        if status == 200 and wanted and valid and "ETag" in headers:
            first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
            if first >= len(body):
                status, body, headers = 416, b"", {"Content-Range": f"bytes */{len(body)}"}
            else:
                headers["Content-Range"] = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}"
                status, body = 206, body[first : last + 1]
        self.seen.status = status
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body)

    def send_body(self, body: bytes) -> None:
        cut, flip = self.fault.cut, self.fault.flip
        if flip is not None and flip < len(body):
            body = body[:flip] + bytes([body[flip] ^ 1]) + body[flip + 1 :]
        end = len(body) if cut is None else min(cut, len(body))
        try:
            for start in range(0, end, BLOCK):
                block = body[start : min(start + BLOCK, end)]
                self.connection.sendall(block)
                self.seen.sent += len(block)
                time.sleep(self.hub.pace)
        except OSError:
            self.close_connection = True
        if end < len(body):
            self.close_connection = True

    def serve_storage(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/blob/"):
            data = self.hub.blob(path.removeprefix("/blob/"))
            etag = f'"{path.removeprefix("/blob/")}"'
        else:
            file = self.hub.originals / path.lstrip("/") if self.hub.originals else None
            data = file.read_bytes() if file is not None and file.is_file() else None
            etag = f'"{hashlib.md5(data).hexdigest()}"' if data is not None else ""
        if data is None:
            return self.answer(404, b"not found")
        self.answer(200, data, {"ETag": etag})

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code, "X-Error-Message": code})

    def serve_hub(self) -> None:
        if self.command == "POST":
            self.form = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        api = re.fullmatch(r"/api/(model|dataset)s/(.+)", path)
        file = re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path)
        kind = (api and api[1]) or ("dataset" if file and file[1] else "model")
        rest = api[2] if api else file[2] if file else ""
        name = next((n for k, n in self.hub.repositories if k == kind and f"{rest}/".startswith(f"{n}/")), None)
        if name is None:
            return self.refuse(401, "RepoNotFound")
        repository = self.hub.repositories[(kind, name)]
        allowed = self.seen.headers.get("authorization") == f"Bearer {TOKEN}"
        if file:
            if repository.gated and not allowed:
                return self.refuse(401, "GatedRepo")
            return self.serve_file(repository, file[3], file[4])
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.serve_api(repository, name, rest.removeprefix(name).lstrip("/"), query)

    def serve_api(self, repository: Repository, name: str, route: str, query: dict[str, str]) -> None:
        what, _, rest = route.partition("/")
        if what == "refs":
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                for branch, commit in repository.branches.items()
                if not branch.startswith("refs/")
            ]
            return self.send_json({"branches": branches, "tags": [], "converts": []})
        revision, _, inner = rest.partition("/")
        if revision == "refs":  # refs/convert/parquet, as the Hub keeps its conversions of data sets that had a script
            revision, inner = "/".join(rest.split("/")[:3]), "/".join(rest.split("/")[3:])
        commit = self.find_commit(repository, revision or "main")
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if what in ("", "revision"):
            siblings = [{"rfilename": path} for path in files]
            return self.send_json({"id": name, "sha": commit, "private": False, "siblings": siblings, "tags": []})
        if what == "tree":
            return self.serve_tree(files, inner, query)
        if what == "paths-info":
            wanted = parse_qs(self.form.decode()).get("paths") or json.loads(self.form or b"{}").get("paths", [])
            return self.send_json([entry for entry in entries(files) if entry["path"] in wanted])
        self.refuse(404, "EntryNotFound")

    def serve_tree(self, files: Mapping[str, bytes], inner: str, query: dict[str, str]) -> None:
        below = [e for e in entries(files) if not inner or e["path"].startswith(f"{inner}/")]
        if query.get("recursive", "").lower() not in ("true", "1"):
            depth = inner.count("/") + 1 if inner else 0
            below = [e for e in below if e["path"].count("/") == depth]
        if inner and not below:
            return self.refuse(404, "EntryNotFound")
        start = int(query.get("cursor", 0))
        more = {}
        if start + self.hub.page < len(below):
            base = re.sub(r"&cursor=\d+", "", self.path)
            more = {"Link": f'<{self.hub.url}{base}&cursor={start + self.hub.page}>; rel="next"'}
        self.send_json(below[start : start + self.hub.page], more)

    def serve_file(self, repository: Repository, revision: str, path: str) -> None:
        commit = self.find_commit(repository, revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        data = repository.commits[commit].get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": commit}
        if len(data) < LARGE:
            return self.answer(200, data, {**headers, "ETag": f'"{git_blob(data)}"'})
        place = f"{self.hub.storage}/blob/{digest(data)}?X-Signature=secret"
        linked = {"X-Linked-Etag": f'"{digest(data)}"', "X-Linked-Size": str(len(data)), "Location": place}
        self.answer(302, b"", {**headers, **linked, "ETag": f'"{digest(data)}"'})

    @staticmethod
    def find_commit(repository: Repository, revision: str) -> str | None:
        name = revision.removeprefix("refs/heads/")
        if name in repository.branches:
            return repository.branches[name]
        long = [commit for commit in repository.commits if len(name) >= 7 and commit.startswith(name)]
        return long[0] if long else None

    def send_json(self, content: Any, headers: Mapping[str, str] | None = None) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})


def entries(files: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    """A commit's listing: its folders and files."""
    folders = {"/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/") + 1)}
    for folder in sorted(folders - {".."}):
        yield {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
    for path, data in sorted(files.items()):
        entry = {"type": "file", "oid": git_blob(data), "size": len(data), "path": path}
        if len(data) >= LARGE:
            entry["lfs"] = {"oid": digest(data), "size": len(data), "pointerSize": 134}
        yield entry
