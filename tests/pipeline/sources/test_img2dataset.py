"""A set that img2dataset wrote itself, of a web on this machine, as a source: the pairs and the bytes it has.

Needs an interpreter that can import img2dataset: WIT_IMG2DATASET_PYTHON, or .venv-img2dataset, which benchmarks.fetch
makes.
"""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.image_server import serve_images
from support.recorded_web import picture

from pipeline.build import run_build
from pipeline.engine.progress import Progress
from pipeline.fetching.images import bare_jpeg
from queries.allowlist import import_allowlist

PICTURES, MISSING, BROKEN = 30, {4, 17}, 9
_WRITE = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(
        url_list=sys.argv[1], output_folder=sys.argv[2], input_format="parquet", url_col="url", caption_col="text",
        output_format="webdataset", image_size=64, resize_mode=sys.argv[3], encode_quality=92, compute_hash="sha256",
        save_additional_columns=["similarity"], number_sample_per_shard=12, processes_count=1, thread_count=4,
    )
"""


@pytest.fixture
def img2dataset() -> str:
    python = os.environ.get("WIT_IMG2DATASET_PYTHON") or str(Path(__file__).parents[3] / ".venv-img2dataset/bin/python")
    if not Path(python).is_file():
        pytest.skip("needs img2dataset in a virtual environment of its own: WIT_IMG2DATASET_PYTHON=its python")
    return python


def write_set(python: str, folder: Path, rows: list[dict[str, Any]], resize: str) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    (folder / "write.py").write_text(_WRITE)
    arguments = [str(folder / "list.parquet"), str(folder / "tars"), resize]
    command = [python, str(folder / "write.py"), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]


def written(folder: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return URL -> what img2dataset says of each sample, and its image."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, content in members.items():
            if name.endswith(".json"):
                facts = json.loads(content)
                assert members[f"{name[:-5]}.txt"].decode() == facts["caption"]
                found[facts["url"]] = facts, members[f"{name[:-5]}.jpg"]
    return found


@pytest.mark.parametrize("resize", ["no", "keep_ratio"])
def test_pairs_and_image_bytes_are_those_that_img2dataset_wrote(tmp_path: Path, img2dataset: str, resize: str) -> None:
    files = {n: picture(n, (96 + n, 80)) for n in range(PICTURES) if n not in MISSING}
    files[BROKEN] = files[BROKEN][:200]
    images: dict[str, bytes] = {}
    words = ["dog", "cat", "boat"]
    with serve_images(images) as web:
        images |= {f"{web.gateway}/{n}.jpg": content for n, content in files.items()}
        rows = [
            {"url": f"{web.gateway}/{n}.jpg", "text": f"A {words[n % 3]} on “picture” {n}", "similarity": n / 100}
            for n in range(PICTURES)
        ]
        write_set(img2dataset, tmp_path, rows, resize)
    theirs = written(tmp_path / "tars")
    assert len(theirs) == PICTURES - len(MISSING) - 1
    requests = web.requests.copy()

    (tmp_path / "words.txt").write_text("\n".join(words))
    import_allowlist(str(tmp_path / "words.txt"), str(tmp_path / "queries.parquet"))
    (tmp_path / "wit.toml").write_text(
        'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n'
        '[[sources]]\nkind = "webdataset"\npaths = ["tars/*.tar"]\nkeep = ["similarity", "key"]\n'
        "[fetch]\nparts = 2\nimage_size = 4096\n"
    )
    run_build(tmp_path / "wit.toml", progress=Progress(None))
    ours: dict[str, tuple[dict[str, Any], bytes]] = {}
    for path in sorted((tmp_path / "work/shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        ours |= {
            json.loads(content)["url"]: (json.loads(content), members[f"{name[:-5]}.jpg"])
            for name, content in members.items()
            if name.endswith(".json")
        }
    assert ours.keys() == theirs.keys()
    for url, (facts, image) in ours.items():
        said, stored = theirs[url]
        assert image == bare_jpeg(stored)
        assert (facts["width"], facts["height"]) == Image.open(io.BytesIO(stored)).size
        assert (facts["caption"], facts["sha256"]) == (said["caption"], said["sha256"])
        assert json.loads(facts["extra"]) == {"similarity": said["similarity"], "key": said["key"]}
    assert web.requests == requests, "nothing was requested from the web"
