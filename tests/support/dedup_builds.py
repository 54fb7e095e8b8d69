"""The deduplication stage alone, on images that are given, with evaluation sets and a copy detector."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from dedup.decode import decode_rgb
from dedup.pdq import fingerprint
from pipeline.beam.options import parse_beam_options
from pipeline.config import Config
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import Marker, UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.records import FETCHED, pair_uid
from pipeline.shards.tar import TarWriter
from pipeline.stages.balance.scans import QueryHashes
from pipeline.stages.dedup.steps import run_dedup
from queries.allowlist import Allowlist, import_allowlist


def jpeg(picture: np.ndarray) -> bytes:
    _, file = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    return file.tobytes()


def fetched_part(workspace: Workspace, files: dict[str, bytes]) -> Marker:
    """Write one fetched part of these images, named by their captions."""
    rows, output = [], UnitOutput(workspace)
    with output.create("fetched/part-00000.tar") as stream, TarWriter(stream) as tar:
        for caption, file in files.items():
            look = fingerprint(decode_rgb(file))
            uid = pair_uid(f"http://example.org/{caption}", caption)
            row = dict.fromkeys(FETCHED.names) | {
                "uid": uid,
                "url": f"http://example.org/{caption}",
                "caption": caption,
            }
            row |= {
                "query_ids": [0],
                "selected_by": [0],
                "status": "success",
                "sha256": hashlib.sha256(file).hexdigest(),
            }
            rows.append(row | {"pdq": look.pdq, "pdq_quality": look.quality})
            tar.add(f"{uid}.jpg", file)
        failed = dict.fromkeys(FETCHED.names) | {"uid": "0" * 32, "reason": "timeout", "query_ids": [0]}
    output.write_table("fetched/part-00000.parquet", pa.Table.from_pylist([*rows, failed], FETCHED))
    return Marker("d", output.files, {"inputs": len(rows) + 1, "kept": len(rows)})


def run(
    folder: Path,
    detector: str,
    files: dict[str, bytes],
    planted: int = 0,
    control: int = 3,
    evals: str = "report",
    sets: Sequence[str] = ("scenes",),
    workspace: str | None = None,
    **evaluation: str,
) -> Workspace:
    """Run the deduplication stage on one part with these files; the evaluation sets are folders in `folder`."""
    opened = Workspace(workspace or str(folder / "work"))
    (folder / "queries.txt").write_text("query\n")
    path = str(folder / "queries.parquet")
    import_allowlist(str(folder / "queries.txt"), path)
    config = Config.model_validate(
        {
            "workspace": "work",
            "allowlist": {"path": "queries.parquet"},
            "sources": [{"kind": "warc", "paths": ["x"]}],
            "fetch": {"network": False, "parts": 1},
            "dedup": {"detector": detector, "planted": planted, "control": control, "evals": evals},
            "evals": [{"name": name, "kind": "folder", "path": name} | evaluation for name in sets],
        }
    )
    fetched = {"part-00000": fetched_part(opened, files)}
    build = Build(opened, parse_beam_options(["--direct_running_mode=in_memory"]), Progress(None))
    run_dedup(build, config, folder, Allowlist.load(path), QueryHashes(path, 0), fetched, {})
    return opened
