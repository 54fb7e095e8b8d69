"""Compare files with the sizes and SHA-256 that were recorded when they were written, in parallel processes."""

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from pipeline.engine.units import read_all_markers, read_markers
from pipeline.engine.workspace import CheckedFile, FileFacts, Workspace
from pipeline.errors import DamagedFileError, UserError, one_line
from pipeline.shards.manifest import read_manifest

_BYTES_PER_PROCESS = 1 << 28
"""Starting a process takes a second, in which one process reads this much."""


@dataclass(frozen=True)
class Verdict:
    """The files compared, and the problems found: file name -> problem."""

    files: int
    bytes: int
    problems: dict[str, str]


def verify_workspace(workspace: Workspace) -> Verdict:
    """Compare the files of every finished unit of a workspace, and its manifest, with what was recorded."""
    markers = read_all_markers(workspace)
    recorded = {name: facts for marker in markers.values() for name, facts in marker.outputs.items()}
    verdict = _verify(workspace, recorded)
    if workspace.exists("shards/manifest.json"):
        verdict.problems.update(_problems_of_manifest(workspace))
    return verdict


def verify_shards(folder: str) -> Verdict:
    """Compare a set of shards with its manifest.

    Raises:
        UserError: there is no manifest, or it cannot be read.
    """
    workspace = Workspace(folder)
    try:
        manifest = read_manifest(folder)
        present = workspace.sizes("")
    except UserError:
        raise
    except Exception as error:  # stores raise any error
        raise UserError(f"{folder}: {one_line(error)}") from None
    verdict = _verify(workspace, manifest.files)
    tars = {name for name in present if name.endswith(".tar") and "/" not in name}
    strays = {name: "is not in the manifest: it belongs to another set" for name in tars - manifest.files.keys()}
    verdict.problems.update(strays)
    return verdict


def _problems_of_manifest(workspace: Workspace) -> dict[str, str]:
    name, folder = "shards/manifest.json", "shards/"
    try:
        listed = {folder + file: facts for file, facts in read_manifest(f"{workspace.root}/shards").files.items()}
    except UserError as error:
        return {name: one_line(error)}
    markers = read_markers(workspace, "shards").values()
    written = {file: facts for marker in markers for file, facts in marker.outputs.items()}
    if listed != written:
        return {name: "does not list the files that the build wrote"}
    return {}


def _verify(workspace: Workspace, recorded: Mapping[str, FileFacts]) -> Verdict:
    total = sum(facts.bytes for facts in recorded.values())
    processes = min(os.cpu_count() or 1, 1 + total // _BYTES_PER_PROCESS)
    tasks = [(workspace.root, name, facts) for name, facts in sorted(recorded.items(), key=lambda item: -item[1].bytes)]
    if processes == 1:
        problems = dict(filter(None, map(_verify_file, tasks)))
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            problems = dict(filter(None, pool.map(_verify_file, tasks, chunksize=1)))
    return Verdict(len(recorded), total, dict(sorted(problems.items())))


def _verify_file(task: tuple[str, str, FileFacts]) -> tuple[str, str] | None:
    """Return a file's name and its problem; None if there is none."""
    root, name, facts = task
    try:
        with Workspace(root).open_checked(name, facts.sha256) as file:
            size = sum(map(len, _blocks(file)))
            if size != facts.bytes:
                return name, f"has {size:,} of {facts.bytes:,} bytes"
            file.check()
    except DamagedFileError:
        return name, "is damaged: its bytes are not those that were written"
    except FileNotFoundError:
        return name, "is missing"
    except OSError as error:
        return name, f"cannot be read ({error.strerror or one_line(error)})"
    return None


def _blocks(file: CheckedFile) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block
