"""`wit doctor`: is this machine, and what the config names, fit for the build? Each check says what to do.

`quick_checks` take milliseconds and send nothing; `wit build` runs them before it starts.
"""

import datetime as dt
import http.client
import os
import resource
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from pipeline.config.fetch import FetchConfig
from pipeline.engine.units import read_stage
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, one_line
from pipeline.paths import expand_paths
from pipeline.project import Project
from pipeline.stages.plan_parts import plan_parts

_OTHER_FILES = 64
"""Open files of a process beside its connections: modules, tars, logs."""
_BYTES_PER_PAIR = 25_000
"""Of a planned pair in fetched/ and shards/ together, with links that fail: 256 px JPEGs of web photos."""
_FULL_SIZE_BYTES_PER_PAIR = 150_000
"""The same of files in their full size: 118 kB each, half of the links fail."""
_FORMAT_FACTORS = {"jpg": 1.0, "webp": 0.7, "png": 4.0, "original": 1.0}
_FASTEST_CLOCK_S = 60.0
_EARLIEST_YEAR = 2025
_TIMEOUT_S = 10.0


class Verdict(StrEnum):
    """How a check ended; only FAILED stops a build."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; `advice` says what to do, empty where it is ok."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def quick_checks(project: Project) -> Iterator[Finding]:
    """Yield the findings about this machine that take no time."""
    yield _open_files(project)
    yield _local_ports(project)
    yield _clock_year()
    yield from _disks(project)


def all_checks(project: Project, runner: str) -> Iterator[Finding]:
    """Yield the findings about this machine, the workspace, the sources, the network, the runner and the GPU."""
    yield from quick_checks(project)
    checks: list[Callable[[], Finding]] = [
        lambda: _workspace(project.workspace),
        lambda: _conditional_writes(project.workspace),
        lambda: _sources(project),
        lambda: _resolver(project),
        lambda: _proxies(project),
        lambda: _contact(project),
        lambda: _clock_of_a_server(project),
        lambda: _java(runner),
        lambda: _gpu(project),
    ]
    for check in checks:
        yield check()


def _open_files(project: Project) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # up to which the fetcher raises the soft limit
    need = project.config.fetch.concurrency + _OTHER_FILES
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", Verdict.OK, f"no limit, {need:,} are needed")
    found = f"at most {hard:,} per process, {need:,} are needed"
    if hard >= need:
        return Finding("open files", Verdict.OK, found)
    return Finding(
        "open files", Verdict.FAILED, found, f"raise the hard limit (ulimit -Hn {need}), or lower fetch.concurrency"
    )


def _local_ports(project: Project) -> Finding:
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return Finding("local ports", Verdict.SKIPPED, "unknown on this system")
    need = 4 * project.config.fetch.concurrency  # closed connections keep theirs for a minute
    found = f"{high - low + 1:,} for connections, {need:,} are needed for each process that fetches"
    if high - low + 1 >= need:
        return Finding("local ports", Verdict.OK, found)
    return Finding("local ports", Verdict.WARNING, found, "widen net.ipv4.ip_local_port_range, or lower concurrency")


def _clock_year() -> Finding:
    now = dt.datetime.now(dt.UTC)
    if now.year >= _EARLIEST_YEAR:
        return Finding("clock", Verdict.OK, f"{now:%Y-%m-%d %H:%M} UTC")
    return Finding("clock", Verdict.FAILED, f"{now:%Y-%m-%d} UTC", "set it: certificates and opt-outs depend on it")


def _disks(project: Project) -> Iterator[Finding]:
    pairs = _planned_pairs(project.workspace)
    per_pair = _bytes_per_pair(project.config.fetch)
    scratch = per_pair * pairs // (project.config.fetch.parts or plan_parts(pairs))
    folders = {"temporary space": (tempfile.gettempdir(), scratch)}
    if project.workspace.is_local:
        done = sum(project.workspace.sizes("fetched").values()) + sum(project.workspace.sizes("shards").values())
        folders["workspace disk"] = (_existing(project.workspace.path("")), max(0, per_pair * pairs - done))
    keep = project.config.run.min_free_bytes
    for name, (folder, need) in folders.items():
        usage = shutil.disk_usage(folder)
        if not usage.total:  # a file system without a disk, such as /proc
            continue
        free = usage.free
        about = f", about {need / 1e9:.1f} GB are needed for {pairs:,} planned pairs" if pairs else ""
        found = f"{free / 1e9:.1f} GB free in {folder}{about}"
        if free < keep:
            advice = f"free space: the build waits until {keep / 1e9:.1f} GB are free (run.min_free_bytes)"
            yield Finding(name, Verdict.FAILED, found, advice)
        elif free < need + keep:
            way_out = "set TMPDIR to" if name == "temporary space" else "put the workspace on"
            yield Finding(name, Verdict.WARNING, found, f"{way_out} a larger disk")
        else:
            yield Finding(name, Verdict.OK, found)


def _bytes_per_pair(fetch: FetchConfig) -> int:
    """Return about how many bytes a planned pair takes in fetched/ and shards/ together, or while it is fetched."""
    if fetch.resize == "none":
        return round(_FULL_SIZE_BYTES_PER_PAIR * _FORMAT_FACTORS[fetch.format])
    return round(_BYTES_PER_PAIR * _FORMAT_FACTORS[fetch.format] * max(1.0, (fetch.image_size / 256) ** 2))


def _planned_pairs(workspace: Workspace) -> int:
    try:
        plan = read_stage(workspace, "plan")
    except Exception:  # any error of a store; `_workspace`, or the build, says so
        return 0
    return 0 if plan is None else plan.counts.get("kept", 0)


def _existing(folder: str) -> str:
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return str(path)


def _workspace(workspace: Workspace) -> Finding:
    name = f".wit/tmp/doctor-{uuid.uuid4().hex}"
    try:
        with workspace.create(name) as out:
            out.write(b"wit doctor")
        same = workspace.read_bytes(name) == b"wit doctor"
        workspace.remove([name])
    except Exception as error:  # any error of a store
        found = f"{workspace.root}: {one_line(error)}"
        return Finding("workspace", Verdict.FAILED, found, "grant write and delete rights")
    if not same:
        found = "a file reads back otherwise than it was written"
        return Finding("workspace", Verdict.FAILED, found, "check the disk or store")
    return Finding("workspace", Verdict.OK, f"{workspace.root}: files can be written, read and removed")


def _conditional_writes(workspace: Workspace) -> Finding:
    if workspace.is_local:
        return Finding("one build at a time", Verdict.OK, "a lock of the file system")
    path = workspace.path(f".wit/tmp/doctor-{uuid.uuid4().hex}")
    try:
        workspace.fs.pipe_file(path, b"1", mode="create")
        try:
            workspace.fs.pipe_file(path, b"2", mode="create")
            refused = False
        except FileExistsError:
            refused = True
        workspace.fs.rm_file(path)
    except Exception as error:  # any error of a store, or of one that does not know the mode
        found = f"the store has no conditional writes ({one_line(error)})"
        return Finding("one build at a time", Verdict.WARNING, found, "start one build at a time yourself")
    if refused:
        return Finding("one build at a time", Verdict.OK, "the store has conditional writes")
    found = "the store ignores conditions of writes"
    return Finding("one build at a time", Verdict.WARNING, found, "start one build at a time yourself")


def _sources(project: Project) -> Finding:
    files = 0
    for source in project.config.sources:
        try:
            paths = expand_paths(source.paths, project.base_dir)
            with fsspec.open(paths[0], "rb") as file:
                file.read(1)
        except Exception as error:  # any error of a store
            return Finding("sources", Verdict.FAILED, one_line(error), "correct sources.paths, or the store's rights")
        files += len(paths)
    return Finding("sources", Verdict.OK, f"{files:,} files; the first of each table can be read")


def _sends(project: Project) -> bool:
    return project.config.fetch.network and project.config.fetch.gateway is None


def _resolver(project: Project) -> Finding:
    if not _sends(project):
        return Finding("DNS", Verdict.SKIPPED, "no request needs it (fetch.network = false, or a gateway)")
    proxy = project.config.fetch.proxy
    if not proxy.checks_addresses and proxy.http is not None and proxy.https is not None:
        return Finding("DNS", Verdict.SKIPPED, "the proxy looks names up")
    host = _contact_host(project) or "example.org"
    started_s = time.monotonic()
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        advice = "check /etc/resolv.conf, and that this machine may contact its DNS servers"
        return Finding("DNS", Verdict.FAILED, f"{host} does not resolve: {error.strerror or error}", advice)
    return Finding("DNS", Verdict.OK, f"{host} resolves in {1000 * (time.monotonic() - started_s):.0f} ms")


def _proxies(project: Project) -> Finding:
    """Contact the proxies of `[fetch.proxy]`, and say where addresses are checked."""
    proxy = project.config.fetch.proxy
    try:
        urls = {scheme: url for scheme in ("http", "https") if (url := proxy.url(scheme)) is not None}
    except ConfigError as error:
        return Finding("proxy", Verdict.FAILED, one_line(error), "set the variable where the build runs")
    if not urls or not _sends(project):
        return Finding("proxy", Verdict.SKIPPED, "none is configured")
    for scheme, url in urls.items():
        parts = urlsplit(url)
        try:
            socket.create_connection((parts.hostname or "", parts.port or 80), _TIMEOUT_S).close()
        except OSError as error:
            found = f"the one for {scheme} cannot be contacted: {one_line(error)}"
            return Finding("proxy", Verdict.FAILED, found, "correct fetch.proxy")
    if proxy.checks_addresses:
        found = "names are looked up here, too, and private addresses refused; the proxy looks them up again"
        return Finding("proxy", Verdict.OK, found)
    found = "only the proxy looks names up: private addresses behind names are not refused here"
    return Finding("proxy", Verdict.WARNING, found, "let the proxy refuse them, or set checks_addresses = true")


def _contact_host(project: Project) -> str | None:
    contact = project.config.fetch.contact or ""
    if contact.startswith("mailto:"):
        return contact.partition("@")[2].partition("?")[0] or None
    return urlsplit(contact).hostname


def _contact(project: Project) -> Finding:
    contact = project.config.fetch.contact
    if contact is None:
        if not _sends(project) or project.config.fetch.allow_private_hosts:
            return Finding("contact", Verdict.SKIPPED, "none is needed")
        advice = 'set it, such as "mailto:you@example.org"'
        return Finding("contact", Verdict.FAILED, "fetch.contact is missing", advice)
    if not contact.startswith(("http://", "https://")) or not _sends(project):
        return Finding("contact", Verdict.OK, contact)
    try:
        status = _head(contact).status
    except (OSError, http.client.HTTPException) as error:
        found, advice = f"{contact} does not respond: {one_line(error)}", "whoever you crawl must be able to read it"
        return Finding("contact", Verdict.WARNING, found, advice)
    if status >= 400:
        return Finding("contact", Verdict.WARNING, f"{contact} has status {status}", "let it say who you are")
    return Finding("contact", Verdict.OK, f"{contact} has status {status}")


def _head(url: str) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("HEAD", parts.path or "/")
        return connection.getresponse()
    finally:
        connection.close()


def _clock_of_a_server(project: Project) -> Finding:
    fetch = project.config.fetch
    url = fetch.gateway or (fetch.contact if (fetch.contact or "").startswith("http") and fetch.network else None)
    if url is None:
        return Finding("clock difference", Verdict.SKIPPED, "no server to compare with (gateway, or an https: contact)")
    try:
        there = parsedate_to_datetime(_head(url).getheader("Date", ""))
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return Finding("clock difference", Verdict.SKIPPED, f"{url} does not say what time it is")
    seconds = abs((dt.datetime.now(dt.UTC) - there).total_seconds())
    if seconds > _FASTEST_CLOCK_S:
        advice = "synchronise the clock (NTP): Retry-After, opt-outs with a date and certificates depend on it"
        return Finding("clock difference", Verdict.WARNING, f"{seconds:.0f} s from {url}", advice)
    return Finding("clock difference", Verdict.OK, f"{seconds:.0f} s from {url}")


def _java(runner: str) -> Finding:
    if runner != "SparkRunner":
        return Finding("runner", Verdict.OK, f"{runner} needs no Java")
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java") or (home and shutil.which("java", path=f"{home}/bin"))
    if not java:
        return Finding("runner", Verdict.FAILED, "SparkRunner needs Java, and there is none", "install Java 11 or 17")
    done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    version = (done.stderr or done.stdout).partition("\n")[0]
    if done.returncode:
        return Finding("runner", Verdict.FAILED, f"{java} does not start: {version}", "install Java 11 or 17")
    return Finding("runner", Verdict.OK, f"SparkRunner, {version}")


def _gpu(project: Project) -> Finding:
    if project.config.train is None:
        return Finding("GPU", Verdict.SKIPPED, "a build uses none; there is no [train]")
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
        if done.returncode == 0 and done.stdout.strip():
            return Finding("GPU", Verdict.OK, ", ".join(line.partition(" (")[0] for line in done.stdout.splitlines()))
    return Finding("GPU", Verdict.WARNING, "none found", "training will run on the CPU; check the driver")
