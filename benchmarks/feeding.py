"""Train on a set in an S3 store with limited bandwidth: when the first step comes, and how much the steps wait.

    python -m benchmarks.feeding [--shards 40] [--samples 1600] [--megabytes-per-s 50] [--steps 60]

The store is moto's S3 server on this machine, in a process of its own; all its responses together keep the limit. The
set is as img2dataset writes it: tars and `NNNNN_stats.json`, no manifest. The model is a tiny one, whose steps are made
so long that the store gives 1.6 times what they use. Before, the same steps run on the set as local files: what the
first step takes there is the start of any run. Imports do not count. Prints one line of JSON.
"""

import argparse
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import s3fs  # noqa: F401  # fsspec would import it in the run
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from benchmarks.photos import photo
from pipeline.shards.tar import TarWriter
from trainer.config import settings_from
from trainer.data import Batch
from trainer.train import train

_PIECE = 1 << 16
_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--samples", type=int, default=1_600, help="per shard; img2dataset writes 10,000")
    parser.add_argument("--megabytes-per-s", type=float, default=50.0)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options)))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Write the set, serve it, train on it; return the figures."""
    write_set(folder / "set", options.shards, options.samples)
    size = sum(tar.stat().st_size for tar in (folder / "set").glob("*.tar"))
    rate = options.megabytes_per_s * 1e6
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(folder / "set", rate, sender), daemon=True)
    server.start()
    os.environ |= {**_KEYS, "AWS_ENDPOINT_URL": receiver.recv()}
    batch = 256
    bytes_per_step = batch * size / (options.shards * options.samples)
    step_s, shard_s = 1.6 * bytes_per_step / rate, size / options.shards / rate
    try:
        local = run(folder, f"{folder}/set/*.tar", batch, step_s, 4)
        remote = run(folder, "s3://bucket/set/*.tar", batch, step_s, options.steps)
    finally:
        server.kill()
    first_s = remote["first_step_s"], local["first_step_s"]
    return {
        "shards": options.shards, "shard_mb": round(size / options.shards / 1e6, 1), "shard_s": round(shard_s, 2),
        "set_s": round(size / rate, 1), **remote, "local_first_step_s": first_s[1],
        "first_step_shards": round((first_s[0] - first_s[1]) / shard_s, 1),
    }  # fmt: skip


def write_set(folder: Path, shards: int, samples: int) -> None:
    """Write shards of made-up photographs, the same hundred in all of them, as img2dataset writes them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    photos = [photo(random) for _ in range(100)]
    stats = json.dumps({"count": samples + 9, "successes": samples, "failed_to_download": 9})
    for shard in range(shards):
        with (folder / f"{shard:05d}.tar").open("wb") as stream, TarWriter(stream) as tar:
            for number in range(samples):
                tar.add(f"{shard:05d}{number:04d}.jpg", photos[number % len(photos)])
                tar.add(f"{shard:05d}{number:04d}.txt", b"a photo of the sea")
        (folder / f"{shard:05d}_stats.json").write_text(stats)


def run(folder: Path, glob: str, batch: int, step_s: float, steps: int) -> dict[str, float]:
    """Train with steps of at least `step_s`; return the seconds to the first, and the share of waiting after it."""
    output = folder / ("remote" if "://" in glob else "local")
    table = {
        "model": "tiny", "shards": [glob], "output": str(output), "batch": batch, "steps": steps, "log_steps": 1,
        "lanes": 4, "window": 4_000, "workers": 1, "prefetch": 1, "device": "cpu", "threads": 1, "tensorboard": False,
    }  # fmt: skip
    arrived: list[float] = []

    def pace(step: int, samples: Batch) -> None:
        arrived.append(time.perf_counter())
        time.sleep(step_s)

    logging.disable(logging.WARNING)
    start = time.perf_counter()
    train(settings_from({"workspace": str(folder / "work"), "train": table}, folder), on_step=pace)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()][1:]
    waited = sum(line["train/data_wait"] * line["train/step_ms"] for line in lines)
    return {
        "first_step_s": round(arrived[0] - start, 2),
        "steps_s": round(arrived[-1] - arrived[0], 1),
        "waiting": round(waited / sum(line["train/step_ms"] for line in lines), 4),
    }


def serve(folder: Path, bytes_per_s: float, sender: Any) -> None:
    """Serve a folder as s3://bucket/set/ with a limited bandwidth; send the endpoint when it is ready."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)
    limit = _Limit(bytes_per_s)

    def limited(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return limit.spread(application(environment, start_response))

    server = make_server("127.0.0.1", 0, limited, threaded=True)
    endpoint = f"http://127.0.0.1:{server.port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    client.create_bucket(Bucket="bucket")
    for file in sorted(folder.iterdir()):
        client.put_object(Bucket="bucket", Key=f"set/{file.name}", Body=file.read_bytes())
    limit.is_on = True
    sender.send(endpoint)
    threading.Event().wait()


class _Limit:
    """Lets responses pass at a common rate."""

    def __init__(self, bytes_per_s: float) -> None:
        self.is_on = False
        self._rate, self._free_at, self._lock = bytes_per_s, 0.0, threading.Lock()

    def spread(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the bytes in pieces, each at its time."""
        for chunk in chunks:
            for start in range(0, len(chunk), _PIECE):
                piece = chunk[start : start + _PIECE]
                if self.is_on:
                    with self._lock:
                        now = time.perf_counter()
                        self._free_at = max(now, self._free_at) + len(piece) / self._rate
                        wait_s = self._free_at - now
                    time.sleep(wait_s)
                yield piece


if __name__ == "__main__":
    main()
