"""`wit takedown`: URLs, domains, pairs and images leave a finished set and do not come back.

A request is first kept in the workspace, as block lists of hashes (consent/takedown/), which every later build heeds:
whatever is killed after that, the next takedown or build completes it. Then consent/listed/ and the shards that lose
something are written again, the manifest and the report. consent/takedowns.jsonl says when what kind of entries came,
and what they took out, without naming them.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import fsspec

from dedup.errors import DedupError
from dedup.in_memory import fingerprint
from pipeline.consent.block_lists import PDQ_MAX_BITS, BlockLists, EntryError
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError, one_line
from pipeline.fetching.block_files import REFILLED, TAKEDOWN, find_takedowns
from pipeline.web.urls import normalize_url

AUDIT_LOG = "consent/takedowns.jsonl"

_HEX_32, _HEX_64 = re.compile("[0-9A-Fa-f]{32}"), re.compile("[0-9A-Fa-f]{64}")
_LEAST_QUALITY = 50
"""Below, a PDQ hash finds all flat images, not one."""


@dataclass(frozen=True)
class Request:
    """Entries of block lists by kind, each once; what was asked for, counted by what people call it."""

    entries: Mapping[str, frozenset[str]]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def block_lists(self) -> BlockLists:
        return BlockLists.read(self.entries)

    @property
    def id(self) -> str:
        """Return a name that does not say what is in the request."""
        text = json.dumps({kind: sorted(entries) for kind, entries in self.entries.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class _Reader:
    folder: Path
    radius_bits: int
    entries: dict[str, set[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Take one line.

        Raises:
            EntryError: it is nothing that can be taken down.
        """
        prefix, _, rest = line.partition(":")
        if "://" in line:
            url = normalize_url(line)
            if url is None:
                raise EntryError("not an http(s) URL")
            bare = url.partition("://")[2]
            self._keep("url", "url_hashes", hashlib.sha256(f"https://{bare}".encode()).hexdigest())
        elif prefix == "uid" or _HEX_32.fullmatch(line):
            self._keep("uid", "uids", line.removeprefix("uid:").strip().lower())
        elif prefix == "sha256" or _HEX_64.fullmatch(line):
            digits = line.removeprefix("sha256:").strip().lower()
            if not _HEX_64.fullmatch(digits):
                raise EntryError("not a SHA-256 of 64 hexadecimal digits")
            self._keep("sha256", "image_hashes", digits)
        elif prefix == "pdq":
            digits, *bits = rest.replace(":", " ").lower().split()[:2] or [""]
            self._keep("pdq", "image_hashes", f"pdq:{digits} {bits[0] if bits else self.radius_bits}")
        elif prefix == "image":
            self._add_image(rest.strip())
        else:
            self._keep("domain", "domains", line.lower())

    def _add_image(self, name: str) -> None:
        try:
            encoded = (self.folder / name).read_bytes()
            look = fingerprint(encoded)
        except (OSError, DedupError, ValueError) as error:
            raise EntryError(f"the image cannot be read ({one_line(error)})") from None
        self._keep("image", "image_hashes", hashlib.sha256(encoded).hexdigest())
        if look.quality >= _LEAST_QUALITY:
            self._keep("", "image_hashes", f"pdq:{look.pdq.hex()} {self.radius_bits}")
        else:
            self.notes.append(
                f"{name}: PDQ quality {look.quality}, too flat to be found by its look; only exact copies go"
            )

    def _keep(self, name: str, kind: str, entry: str) -> None:
        BlockLists.read({kind: [entry]})  # raises where it is no entry
        known = self.entries.setdefault(kind, set())
        if name and entry not in known:
            self.counts[name] += 1
        known.add(entry)


def read_request(path: str, radius_bits: int = PDQ_MAX_BITS) -> Request:
    """Read what is to be taken down, one a line; empty lines and lines that begin with # are skipped.

    http(s) URLs; domains, with their subdomains; uid:..., sha256:..., pdq:HASH or pdq:HASH BITS; image:FILE (relative
    to the folder of `path`): the file, and every image within `radius_bits` of its PDQ hash.

    Raises:
        ConfigError: a line is nothing of this, or there is none; the line is named by its number, not shown.
    """
    try:
        with fsspec.open(path, "rt", encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except Exception as error:  # any error of a store: missing package, credentials or network
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from None
    reader = _Reader(Path(path).parent, radius_bits)
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            try:
                reader.add(line)
            except EntryError as error:
                raise ConfigError(
                    f"{path}: line {number}: {error}; write a URL, a domain, uid:..., sha256:..., pdq:... or image:FILE"
                ) from None
    if not reader.entries:
        raise ConfigError(f"{path}: nothing to take down: it has no entry")
    return Request(
        {kind: frozenset(found) for kind, found in reader.entries.items()}, reader.counts, tuple(reader.notes)
    )


def keep_request(workspace: Workspace, request: Request) -> None:
    """Add a request to the block lists of the workspace; then the set may be killed at any moment."""
    for kind, entries in sorted(request.entries.items()):
        name = f"{TAKEDOWN}/{kind}.txt"
        known = set(workspace.read_bytes(name).decode().splitlines()) if workspace.exists(name) else set()
        if not entries <= known:
            with workspace.create(name) as out:
                out.write("".join(f"{entry}\n" for entry in sorted(known | entries)).encode())


def ask_for_refill(workspace: Workspace) -> None:
    """Let the final balance leave out all that was taken down so far: other pairs take the places."""
    for paths in find_takedowns(workspace).values():
        for path in paths:
            name = path.rsplit("/", 1)[1]
            content = workspace.read_bytes(f"{TAKEDOWN}/{name}")
            if not workspace.exists(f"{REFILLED}/{name}") or workspace.read_bytes(f"{REFILLED}/{name}") != content:
                with workspace.create(f"{REFILLED}/{name}") as out:
                    out.write(content)


def log_takedown(workspace: Workspace, request: Request, **facts: object) -> None:
    """Add a line to the audit log: the time, the request's id, its counts, and `facts`; no entry, no content."""
    line = {"at": now(), "request": request.id}
    write_audit_line(workspace, AUDIT_LOG, line | {"entries": dict(sorted(request.counts.items()))} | facts)


def now() -> str:
    """Return the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_audit_line(workspace: Workspace, name: str, line: Mapping[str, object]) -> None:
    """Add one line of JSON to a file, which is replaced whole."""
    before = workspace.read_bytes(name) if workspace.exists(name) else b""
    with workspace.create(name) as out:
        out.write(before + json.dumps(line, sort_keys=True).encode() + b"\n")


def read_audit_log(workspace: Workspace) -> list[dict[str, object]]:
    """Return the lines of the audit log, oldest first.

    Raises:
        UserError: it is damaged.
    """
    if not workspace.exists(AUDIT_LOG):
        return []
    try:
        return [json.loads(line) for line in workspace.read_bytes(AUDIT_LOG).splitlines()]
    except ValueError as error:
        raise UserError(
            f"{workspace.root}/{AUDIT_LOG} is damaged ({one_line(error)}): restore it from a copy"
        ) from None


def describe_entries(counts: Mapping[str, int]) -> str:
    """Format counts: ``3 urls, 1 domain``."""
    return ", ".join(_plural(name, n) for name, n in sorted(counts.items()))


def _plural(name: str, n: int) -> str:
    names = {"url": "URL", "uid": "uid", "sha256": "SHA-256", "pdq": "PDQ hash"}
    return f"{n:,} {names.get(name, name)}{'' if n == 1 else 'es' if name == 'pdq' else 's'}"
