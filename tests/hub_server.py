"""A small server that speaks as much of the Hub's HTTP as uploads and downloads of models and data sets need."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class Hub:
    """Repositories in memory. `revisions[repo][revision]` holds a commit's files; `requests` every method and path.

    `break_once` names files of which the first download ends in the middle.
    """

    def __init__(self):
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # large files by their SHA-256
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.break_once: set[str] = set()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[repo][self.branches[repo].get(revision, revision)]

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add files to main as a new commit; returns its name. A repository that is not there is made."""
        commits, branches = self.commits.setdefault(repo, {}), self.branches.setdefault(repo, {})
        merged = {**(self.files(repo) if "main" in branches else {}), **files}
        name = hashlib.sha1(repr(sorted((k, hashlib.sha256(v).hexdigest()) for k, v in merged.items())).encode())
        commits[name.hexdigest()] = merged
        branches["main"] = name.hexdigest()
        return name.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self, body=b"", status: int = 200, **headers) -> None:
        if not isinstance(body, bytes):
            body, headers["Content_Type"] = json.dumps(body).encode(), "application/json"
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("Content_Length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, what: str) -> None:
        self.answer({"error": f"{what} not found"}, 404, X_Error_Code=what)

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self.chunks()
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split("|"):
                action(self, **found.groupdict())
                return
        self.answer({"error": f"no such endpoint: {self.command} {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def authorised(self) -> bool:
        if self.headers.get("Authorization", "").startswith("Bearer "):
            return True
        self.answer({"error": "Invalid username or password."}, 401)
        return False

    def home(self) -> None:
        self.answer(b"")

    def create(self) -> None:
        if not self.authorised():
            return
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
        self.hub.private.setdefault(repo, asked.get("visibility") == "private" or asked.get("private"))
        if repo not in self.hub.commits:
            self.hub.commit(repo, {".gitattributes": b""})
        self.answer({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})

    def validate(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, repo: str) -> None:
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/objects/{item['oid']}", "header": {}}},
            }
            for item in json.loads(self.body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def put_object(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self.answer(b"")

    def make_commit(self, repo: str, revision: str) -> None:
        if not self.authorised():
            return
        files = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        oid = self.hub.commit(repo, files)
        self.answer(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "hookOutput": ""}
        )

    def info(self, repo: str, revision: str = "main") -> None:
        if repo not in self.hub.commits:
            return self.missing("RepoNotFound")
        oid = self.hub.branches[repo].get(revision, revision)
        if oid not in self.hub.commits[repo]:
            return self.missing("RevisionNotFound")
        siblings = [{"rfilename": name} for name in sorted(self.hub.commits[repo][oid])]
        return self.answer(
            {"id": repo, "modelId": repo, "sha": oid, "siblings": siblings, "private": False, "tags": []}
        )

    def tree(self, repo: str, revision: str) -> None:
        if repo not in self.hub.commits:
            return self.missing("RepoNotFound")
        files = self.hub.files(repo, revision)
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in sorted(files.items())
        ]
        return self.answer(entries)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if repo not in self.hub.commits:
            return self.missing("RepoNotFound")
        oid = self.hub.branches[repo].get(revision, revision)
        if oid not in self.hub.commits[repo]:
            return self.missing("RevisionNotFound")
        if path not in self.hub.commits[repo][oid]:
            return self.missing("EntryNotFound")
        data = self.hub.commits[repo][oid][path]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": oid, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            return self.answer(b"", Content_Length=str(len(data)), **headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            self.hub.ranges.append(self.headers["Range"])
            start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            return self.answer(data[start : end + 1], 206, Content_Range=f"bytes {start}-{end}/{len(data)}", **headers)
        if path in self.hub.break_once:
            self.hub.break_once.discard(path)
            self.answer(data[: len(data) // 2], Content_Length=str(len(data)), **headers)
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return None
        return self.answer(data, **headers)


ROUTES = (
    ("GET|HEAD", r"/", _Handler.home),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/objects/(?P<oid>\w+)", _Handler.put_object),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", _Handler.make_commit),
    ("GET", rf"/api/(?:models|datasets)/{REPO}", _Handler.info),
    ("GET", rf"/api/(?:models|datasets)/{REPO}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"/api/(?:models|datasets)/{REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("GET|HEAD", rf"/(?:datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
)
