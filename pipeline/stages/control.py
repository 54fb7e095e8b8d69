"""-> control/: the negative control, rendered images that cannot have leaked, indexed like an evaluation set.

The dedup stage compares the fetched images with it too, and the report shows its matches, all of which are false. They
never remove an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dedup.control import CONTROL_SET, index_control
from dedup.copies.detector import Detector
from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Stateless, Unit, UnitOutput, digest
from pipeline.private_folder import scratch_folder
from pipeline.stages.evals import EvalIndexes

VERSION = 2
"""Raise it when other images are rendered, or their index changes."""

FOLDER = "control"
OVERLAP = "_control"
"""Takes the place of a set's name in the rows of matches; no evaluation set can have this name."""


def run_control(build: Build, config: Config, detector: Detector | None) -> EvalIndexes:
    """Fill control/; nothing if there are no evaluation sets, or `dedup.control` is 0."""
    count = config.dedup.control
    if not config.evals or not count:
        return EvalIndexes({}, {}, digest(), {})
    unit = Unit(CONTROL_SET, digest(VERSION, count, detector and detector.sha256), count)
    markers = run_units(build, FOLDER, [unit], Stateless(_IndexControl(detector)))
    hashes = {name: facts.sha256 for name, facts in markers[CONTROL_SET].outputs.items()}
    bits = {CONTROL_SET: config.dedup.eval_max_distance_bits}
    images = {CONTROL_SET: markers[CONTROL_SET].counts["kept"]}
    return EvalIndexes(bits, hashes, digest(sorted(hashes.items()), bits), images, FOLDER)


@dataclass(frozen=True)
class _IndexControl:
    detector: Detector | None

    def run(self, count: int, output: UnitOutput) -> Mapping[str, int]:
        with scratch_folder("control") as scratch:
            summary = index_control(count, Path(scratch), self.detector)
            for file in sorted((Path(scratch) / CONTROL_SET).iterdir()):
                name = f"{FOLDER}/{CONTROL_SET}/{file.name}"
                output.files[name] = output.workspace.upload(file, name)
        return summary.counts()
