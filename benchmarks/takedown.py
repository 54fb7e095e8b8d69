"""Take 100 URLs out of a set of 1,000 shards: which shards are written again, and how long it takes.

    python -m benchmarks.takedown [--shards 1000] [--urls 4000] [--folder DIR]

The set is built from a web on this machine, as in `benchmarks.operations`. With `--folder` it stays, and the next run
goes on there. Every file of shards/ is compared before and after: the shards of the URLs have changed, all others are
the same bytes with the same time, and the manifest agrees with the files.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.operations import WORDS, Web, run, samples, url_of
from queries.allowlist import import_allowlist

TAKEN_DOWN = 100


def write_project(folder: Path, urls: int, shards: int, port: int) -> Path:
    """Write a table of URLs and a config; return the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    rows = [
        {"url": url_of(number), "caption": f"Number {number}: a {WORDS[random.integers(len(WORDS))]}"}
        for number in range(urls)
    ]
    if not (folder / "urls.parquet").exists():
        pq.write_table(pa.Table.from_pylist(rows), folder / "urls.parquet")
        (folder / "words.txt").write_text("\n".join(WORDS))
        import_allowlist(str(folder / "words.txt"), str(folder / "queries.parquet"))
    config = folder / "wit.toml"
    config.write_text(
        'workspace = "work"\nseed = 5\n[allowlist]\npath = "queries.parquet"\n'
        '[[sources]]\nkind = "url-table"\npaths = ["urls.parquet"]\nurl = "url"\ncaption = "caption"\n'
        f'[balance]\ncap = {urls}\n[fetch]\nparts = {shards}\ngateway = "http://127.0.0.1:{port}"\n'
        'contact = "mailto:test@example.org"\nhost_interval_s = 0.0\nretries = 0\nimage_size = 64\n'
    )
    return config


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Return the SHA-256 and the time of change of each tar and table of a set."""
    paths = [*folder.glob("*.tar"), *folder.glob("*.parquet")]
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in paths}


def take_down(config: Path) -> None:
    """Take random URLs of the set down, and compare its files before and after."""
    rows = samples(config)
    urls = sorted({row["url"] for row in rows.values()})
    chosen = set(np.random.default_rng(2).choice(urls, TAKEN_DOWN, replace=False).tolist())
    request = config.parent / "request.txt"
    request.write_text("".join(f"{url}\n" for url in sorted(chosen)))
    shards = config.parent / "work" / "shards"
    before = state(shards)
    run("takedown", str(request), "-c", str(config), "--quiet")
    after = state(shards)
    changed = {name for name in before if after[name] != before[name]}
    tars = {row["shard"] for row in rows.values() if row["url"] in chosen}
    assert before.keys() == after.keys()
    assert changed == tars | {name.replace(".tar", ".parquet") for name in tars}, "other shards were written"
    left = samples(config)
    assert {uid for uid, row in rows.items() if row["url"] not in chosen} == left.keys()
    run("verify", "-c", str(config))
    print(f"           {len(rows) - len(left):,} pairs of {len(tars):,} shards of {len(before) // 2:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--urls", type=int, default=4_000)
    parser.add_argument("--folder", type=Path, help="keep the set there, and go on with it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Web(down=False).running() as web:
        config = write_project(args.folder or Path(scratch), args.urls, args.shards, web.port)
        run("build", "-c", str(config), "--quiet")
        take_down(config)


if __name__ == "__main__":
    main()
