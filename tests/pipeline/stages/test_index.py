"""index/: every key is found, in files sorted by key, also where a file is sorted piece by piece."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.beam.runner import parse_beam_options
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import Marker, UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.stages import index
from pipeline.stages.index import Kind, look_up, run_index


@pytest.mark.parametrize(("rows_per_file", "rows_at_once"), [(100_000, 10_000_000), (100_000, 40), (150, 40)])
def test_every_key_is_found(tmp_path, monkeypatch, rows_per_file, rows_at_once):
    monkeypatch.setattr(index, "_ROWS_PER_FILE", rows_per_file)
    monkeypatch.setattr(index, "_ROWS_AT_ONCE", rows_at_once)
    random = np.random.default_rng(4)
    workspace = Workspace(str(tmp_path))
    hexes = [random.bytes(32).hex() for _ in range(300)]
    urls = [f"http://host.example/{n}.jpg" for n in range(300)]
    pairs, fetched = {}, {}
    for number in range(3):
        rows = slice(number * 100, number * 100 + 100)
        output = UnitOutput(workspace)
        output.write_table(
            f"pairs/{number}.parquet", pa.table({"uid": [h[:32] for h in hexes[rows]], "url": urls[rows]})
        )
        pairs[str(number)] = Marker("p", output.files, {"inputs": 100, "kept": 100})
        output = UnitOutput(workspace)
        output.write_table(f"fetched/part-{number}.parquet", pa.table({"sha256": hexes[rows]}))
        fetched[str(number)] = Marker("f", output.files, {"inputs": 100, "kept": 100})
    run_index(Build(workspace, parse_beam_options([]), Progress(None)), pairs, fetched)
    names = sorted(workspace.sizes("index"))
    assert len(names) == (1 if rows_per_file > 900 else 6)
    keys = np.concatenate([workspace.read_table(name)["key"].to_numpy() for name in names])
    assert len(keys) == 900
    assert (np.diff(keys.astype(object)) >= 0).all()
    for number in range(300):
        in_file = number // 100
        assert look_up(workspace, Kind.UID, hexes[number][:32]) == [f"pairs/{in_file}.parquet"]
        assert look_up(workspace, Kind.URL, urls[number]) == [f"pairs/{in_file}.parquet"]
        assert look_up(workspace, Kind.SHA256, hexes[number]) == [f"fetched/part-{in_file}.parquet"]
