"""A Hugging Face Hub on this machine, as far as publishing a dataset uses it: its HTTP API and LFS uploads."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from support.http_server import KeepAliveHandler, QuietServer, serving

LARGE = 5_000
"""Files of this size and more are kept as LFS objects."""


class HubServer(QuietServer):
    """Keeps the files of one repository; `before_upload` may fail an upload by returning a status, or change it."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.commits: list[list[str]] = []
        self.created: list[dict[str, object]] = []
        self.before_upload: Callable[[int, bytes], int | bytes | None] = lambda number, content: None
        self.lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        with serving(self):
            yield self


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Handler(KeepAliveHandler):
    server: HubServer

    def do_GET(self) -> None:
        if not urlsplit(self.path).path.endswith("/tree/main"):
            self._answer(404, {})
            return
        entries = []
        for path, content in sorted(self.server.files.items()):
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": git_blob(content)}
            if len(content) >= LARGE:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._answer(200, entries)

    def do_PUT(self) -> None:
        content = self.read_body()
        with self.server.lock:
            self.server.uploads.append(self.path)
            changed = self.server.before_upload(len(self.server.uploads), content)
            if isinstance(changed, int):
                self._answer(changed, {"error": "the upload failed"})
                return
            self.server.objects[self.path.rsplit("/", 1)[1]] = content if changed is None else changed
        self._answer(200, {})

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.read_body()
        if path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": f"{self.server.url}/datasets/me/set", "id": "me/set", "name": "me/set"})
        elif path.endswith("/validate-yaml"):
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            self._answer(200, {"files": [self._mode(file) for file in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            self._answer(200, {"transfer": "basic", "objects": [self._action(o) for o in json.loads(body)["objects"]]})
        elif path.endswith("/commit/main"):
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {})

    def _mode(self, file: dict) -> dict[str, object]:
        mode = "lfs" if file["size"] >= LARGE else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _action(self, wanted: dict) -> dict[str, object]:
        known = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.server.objects:
            return known
        return known | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}}

    def _commit(self, lines: list[dict]) -> None:
        added = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self.server.objects[value["oid"]]
        with self.server.lock:
            self.server.files |= added
            self.server.commits.append(sorted(added))
            number = f"{len(self.server.commits):040x}"
        self._answer(200, {"commitUrl": f"{self.server.url}/datasets/me/set/commit/{number}", "commitOid": number})

    def _answer(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
