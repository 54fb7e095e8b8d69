"""`wit consent recheck`: which images of a finished set may no longer be used, as a block list for the next build.

From the record: images refused by a signal that was switched off when they were fetched. Live: robots.txt, headers and
files are requested again, with the same rates and rules as in the fetch, and only the result is stored. Both write
consent/withdrawn.txt, for `wit takedown`; listed in `fetch.consent.block_urls`, it does the same.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.engine.progress import Progress
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError
from pipeline.fetching.block_files import find_all_lists, read_block_lists
from pipeline.fetching.consent import NOT_HEEDED
from pipeline.fetching.fetcher import Fetcher
from pipeline.fetching.signing import open_signer
from pipeline.records import PLAN
from pipeline.stages.ledger import keep_ledger

WITHDRAWN = "consent/withdrawn.txt"


def recheck_record(workspace: Workspace) -> list[str]:
    """Return the URLs of samples refused by a signal that was switched off.

    Raises:
        UserError: the set is not finished.
    """
    found: set[str] = set()
    for _, rows in _samples(workspace, ["url", "status", "consent_said"]):
        refused = rows.filter(pc.fill_null(pc.match_substring(rows["consent_said"], NOT_HEEDED), False))
        found.update(refused["url"].to_pylist())
    return sorted(found)


def recheck_live(workspace: Workspace, config: Config, base_dir: Path, progress: Progress) -> list[str]:
    """Return the URLs of samples that are refused now; the ledger records when this was checked.

    Raises:
        UserError: the set is not finished, or requests are not possible.
    """
    fetch = config.fetch.model_copy(update={"archives": (), "network": True})
    if fetch.contact is None and not fetch.allow_private_hosts:
        raise ConfigError('fetch.contact is required to send requests: set fetch.contact = "mailto:you@example.org"')
    block_lists = read_block_lists(find_all_lists(fetch.consent, base_dir, workspace))
    found: set[str] = set()
    with (
        Fetcher(fetch, block_lists=block_lists, signer=open_signer(fetch, base_dir)) as fetcher,
        tempfile.TemporaryDirectory(prefix="wit-recheck-") as scratch,
    ):
        for stem, rows in _samples(workspace, [*PLAN.names, "status"]):
            plan = rows.select(PLAN.names).cast(PLAN)
            now = fetcher.fetch_part(
                plan,
                tar_stream=_Nowhere(),
                scratch_dir=Path(scratch),
                keep_ledger=partial(keep_ledger, workspace, f"consent/part-{stem}.parquet", None),
            )
            refused = now.filter(pc.is_valid(now["refused_by"]))
            found.update(refused["url"].to_pylist())
            progress.say(f"part {stem}: {rows.num_rows:,} samples checked again, {refused.num_rows:,} refused")
    return sorted(found)


def write_withdrawn(workspace: Workspace, urls: list[str]) -> str:
    """Write the block list; return its path."""
    with workspace.create(WITHDRAWN) as out:
        out.write("".join(f"{url}\n" for url in ["# images of the set whose use was refused later", *urls]).encode())
    return f"{workspace.root}/{WITHDRAWN}"


class _Nowhere(BytesIO):
    """A stream that discards all bytes."""

    def write(self, data: object) -> int:
        return memoryview(data).nbytes  # type: ignore[arg-type]


def _samples(workspace: Workspace, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the stem and the samples of each shard."""
    if not workspace.exists("shards/manifest.json"):
        raise UserError(f"{workspace.root}: no finished dataset; run `wit build` first")
    for shard in workspace.read_json("shards/manifest.json")["shards"]:
        stem = shard["tar"].removesuffix(".tar")
        rows = workspace.read_table(f"shards/{stem}.parquet", columns)
        yield stem, rows.filter(pc.equal(rows["status"], "success"))
