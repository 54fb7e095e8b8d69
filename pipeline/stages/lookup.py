"""evals/, control/ -> lookup/: what images are compared with, in files that the processes of a machine map into memory.

    lookup/hashes/<name>/*.npy  the tables of a set's PDQ hashes (dedup/hamming.py), of sets that are too large to scan
    lookup/vectors/*.npy        with a copy detector: one index of the vectors of all sets (dedup/copies/search.py)

A unit is a set, or all their vectors. Another set, or one less, changes no other set's files in evals/ and
lookup/hashes/, and measured/ only where the vectors are too many to compare with all.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from dedup.copies.detector import Detector
from dedup.copies.match import Copy, CopyFinder, Described, KnownSet
from dedup.copies.search import VectorIndex
from dedup.copies.views import VIEWS
from dedup.eval_sets.index import Thumbnails, read_vectors
from dedup.hamming import SCANNED_ROWS, HammingIndex
from dedup.mapped_arrays import create_array
from dedup.overlap import hash_matrix
from dedup.pdq import VIEWS as TURNS
from pipeline.engine.local_files import local_folder
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Stateless, Unit, UnitOutput, add_counts, digest, discard_stale
from pipeline.engine.workspace import Workspace
from pipeline.private_folder import scratch_folder
from pipeline.stages import control
from pipeline.stages.evals import EvalIndexes, LoadedEval

VERSION = 2
"""Raise it when the same sets would give other files, or many vectors other matches."""


class DescribedImages(Protocol):
    """Images with their vectors, and their pixels where they are needed."""

    @property
    def described(self) -> Described: ...

    def pixels(self, number: int) -> np.ndarray:
        """Return the pixels of an image."""
        ...


class _Known(NamedTuple):
    """A set, or the negative control, under the name that its matches have."""

    name: str
    sets: EvalIndexes
    name_there: str

    @property
    def images(self) -> int:
        return self.sets.images[self.name_there]

    def file(self, table: str) -> str:
        return f"{self.sets.folder}/{self.name_there}/{table}.parquet"

    def sha256(self, table: str) -> str:
        return self.sets.sha256[self.file(table)]


@dataclass(frozen=True)
class Lookup:
    """The evaluation sets of a build and its negative control, to compare images with."""

    evals: EvalIndexes
    controls: EvalIndexes
    detector: Detector | None
    sha256: Mapping[str, str]  # of each file in lookup/
    is_exact: bool  # images are compared with all vectors, so that what is found in a set is the set's alone

    @property
    def names(self) -> list[str]:
        """The names that the sets' matches have, of the negative control too."""
        return [known.name for known in _known(self.evals, self.controls)]

    @property
    def digest(self) -> str:
        """The digest of what is searched together."""
        return digest(VERSION, sorted(self.sha256.items()))

    def digest_of(self, name: str) -> str:
        """Return the digest of what decides which copies of an evaluation set's examples are found."""
        return digest(self.evals.digest_of(name), *([] if self.is_exact else [self.digest]))

    def open(self, workspace: Workspace) -> "OpenLookup":
        """Map the files, on a worker."""
        known = _known(self.evals, self.controls)
        thumbnails = {one.file("thumbnails"): one.sha256("thumbnails") for one in known if self.detector}
        folder = local_folder(workspace, {**self.sha256, **thumbnails})
        return OpenLookup(self, workspace, folder, {one.name: one for one in known}, self._finder(folder, known))

    def _finder(self, folder: Path, known: list[_Known]) -> CopyFinder | None:
        if self.detector is None or not known:
            return None
        index = VectorIndex.open(folder / _VECTORS)
        sets = [
            KnownSet(Thumbnails(folder / one.file("thumbnails")).pixels, one.sets.min_probability(one.name_there))
            for one in _in_index(known)
        ]
        return CopyFinder(self.detector, index, sets)


@dataclass(frozen=True)
class OpenLookup:
    """A `Lookup` on a worker."""

    lookup: Lookup
    workspace: Workspace
    folder: Path  # local, with the files of lookup/
    known: Mapping[str, _Known]
    finder: CopyFinder | None

    def load(self, name: str) -> LoadedEval:
        """Read what is not mapped of a set."""
        known = self.known[name]
        folder = _hashes(name)
        mapped = HammingIndex.open(self.folder / folder) if f"{folder}/words.npy" in self.lookup.sha256 else None
        return known.sets.load_one(self.workspace, known.name_there, mapped)

    def find(
        self, sets: Mapping[str, LoadedEval], images: pa.Table, min_quality: int, part: DescribedImages | None
    ) -> dict[str, pa.Table]:
        """Return each set's overlap rows of images, such as those of a fetched part; see `dedup.overlap.find_overlap`.

        `part` has the vectors of the same images; None without a copy detector.
        """
        copies = self._copies(part, sets) if part else {}
        return {name: one.find(images, min_quality, copies.get(name, [])) for name, one in sets.items()}

    def _copies(self, part: DescribedImages, names: Collection[str]) -> dict[str, list[Copy]]:
        if self.finder is None:
            return {}
        numbers = {one.name: number for number, one in enumerate(_in_index(list(self.known.values())))}
        found = self.finder.find(part.described, part.pixels, [numbers[name] for name in names])
        return {name: found[numbers[name]] for name in names}


def run_lookup(build: Build, evals: EvalIndexes, controls: EvalIndexes, detector: Detector | None) -> Lookup:
    """Fill lookup/."""
    known = _known(evals, controls)
    hashes, vectors = _index_hashes(build, known), _index_vectors(build, known, detector)
    markers = [*hashes.values(), *vectors.values()]
    sha256 = {name: facts.sha256 for marker in markers for name, facts in marker.outputs.items()}
    return Lookup(evals, controls, detector, sha256, not add_counts(vectors.values())["cells"])


def _index_hashes(build: Build, known: list[_Known]) -> Mapping[str, Marker]:
    large = [one for one in known if one.images * len(TURNS) > SCANNED_ROWS]
    if not large:
        return discard_stale(build.workspace, "lookup/hashes", [])
    units = [Unit(one.name, digest(VERSION, one.sha256("index")), one) for one in large]
    return run_units(build, "lookup/hashes", units, Stateless(_IndexHashes()))


def _index_vectors(build: Build, known: list[_Known], detector: Detector | None) -> Mapping[str, Marker]:
    if detector is None or not known:
        return discard_stale(build.workspace, "lookup/vectors", [])
    ordered = _in_index(known)
    contents = [(one.sha256("vectors"), one.images) for one in ordered]
    unit = Unit("all", digest(VERSION, detector.sha256, contents), ordered)
    return run_units(build, "lookup/vectors", [unit], Stateless(_IndexVectors(detector)))


_VECTORS = "lookup/vectors"


def _hashes(name: str) -> str:
    return f"lookup/hashes/{name}"


def _known(evals: EvalIndexes, controls: EvalIndexes) -> list[_Known]:
    sets = [_Known(name, evals, name) for name in evals.names]
    return [*sets, *(_Known(control.OVERLAP, controls, name) for name in controls.names)]


def _in_index(known: list[_Known]) -> list[_Known]:
    """Return the sets in the order of the index: small ones first, which are searched more thoroughly."""
    return sorted(known, key=lambda one: (one.images, one.name))


@dataclass(frozen=True)
class _IndexHashes:
    def run(self, known: _Known, output: UnitOutput) -> Mapping[str, int]:
        table = output.workspace.read_table(known.file("index"), ["views"], sha256=known.sha256("index"))
        hashes = hash_matrix(table["views"].drop_null())
        with scratch_folder("lookup") as scratch:
            HammingIndex.build(hashes, scratch)
            _upload(scratch, _hashes(known.name), output)
        return {"inputs": len(hashes), "kept": len(hashes)}


@dataclass(frozen=True)
class _IndexVectors:
    detector: Detector

    def run(self, ordered: list[_Known], output: UnitOutput) -> Mapping[str, int]:
        images = [one.images for one in ordered]
        with scratch_folder("lookup") as scratch, scratch_folder("vectors") as joined:
            shape = (sum(images) * len(VIEWS), self.detector.card.dimensions)
            vectors = create_array(joined / "vectors.npy", np.int8, shape)
            at = 0
            for one in ordered:
                for batch in output.workspace.read_batches(one.file("vectors"), ["vectors"]):
                    rows = read_vectors(batch, self.detector)
                    vectors[at : at + len(rows)] = rows
                    at += len(rows)
            index = VectorIndex.build(vectors, len(VIEWS), images, folder=scratch)
            _upload(scratch, _VECTORS, output)
        return {"inputs": len(index), "kept": len(index), "cells": len(index.centres)}


def _upload(scratch: Path, folder: str, output: UnitOutput) -> None:
    for file in sorted(scratch.iterdir()):
        name = f"{folder}/{file.name}"
        output.files[name] = output.workspace.upload(file, name)
