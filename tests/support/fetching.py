"""Plans, configs and results of fetch tests."""

import io
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config.fetch import FetchConfig
from pipeline.fetching.archives import ArchiveIndex
from pipeline.fetching.fetcher import Fetcher
from pipeline.records import FETCHED, PLAN, pair_uid


def config(**changes: Any) -> FetchConfig:
    """Return a config for a server on this machine: no pacing, short deadlines."""
    settings: dict[str, Any] = {
        "allow_private_hosts": True,
        "host_interval_s": 0.0,
        "host_concurrency": 16,
        "timeout_s": 1.0,
        "retries": 0,
        "host_failures": 1_000,
        "max_bytes": 1_000_000,
    }
    return FetchConfig(**(settings | changes))


def plan_of(urls: Sequence[str], captions: Sequence[str] | None = None) -> pa.Table:
    """Return a plan with one pair per URL."""
    texts = captions or [f"caption {number}" for number in range(len(urls))]
    rows = [
        {
            "uid": pair_uid(url, text),
            "url": url,
            "caption": text,
            "text_field": "alt",
            "page_url": "",
            "source": "test",
            "language": "en",
            "query_ids": [1],
            "selected_by": [1],
        }
        for url, text in zip(urls, texts, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


@dataclass(frozen=True)
class Result:
    """What a fetch gave; `reasons` is in plan order, "success" where there is none."""

    table: pa.Table
    tar: bytes

    @property
    def reasons(self) -> list[str]:
        rows = zip(self.table["reason"].to_pylist(), self.table["status"].to_pylist(), strict=True)
        return [reason or status for reason, status in rows]

    @property
    def members(self) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(self.tar)) as tar:
            return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]

    def check_laws(self, plan: pa.Table) -> None:
        """Assert conservation, and that table and tar agree."""
        assert self.table.schema == FETCHED
        assert self.table.select(PLAN.names).equals(plan)
        kept = []
        for row in self.table.to_pylist():
            assert (row["reason"] is None) == (row["status"] == "success")
            if row["reason"] is None:
                assert row["pdq"] is not None
                assert len(row["sha256"]) == 64
                assert 0 < row["width"] <= row["original_width"]
                kept.append(f"{row['uid']}.jpg")
        assert list(self.members) == kept


def fetch(fetcher: Fetcher, plan: pa.Table) -> Result:
    """Fetch one part, and check what must hold for every part."""
    tar = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = fetcher.fetch_part(plan, tar_stream=tar, scratch_dir=Path(folder))
        assert not list(Path(folder).iterdir())
    result = Result(table, tar.getvalue())
    result.check_laws(plan)
    return result


def fetch_urls(
    urls: Sequence[str], *, workers: int = 1, archives: ArchiveIndex | None = None, **changes: Any
) -> Result:
    """Fetch URLs with a fetcher of their own."""
    with Fetcher(config(**changes), workers=workers, archives=archives) as fetcher:
        return fetch(fetcher, plan_of(urls))
