"""searched/: what search APIs found for queries of the allowlist, those with the fewest pairs first.

It runs in the main process, because an API counts requests and not workers. Results go on as tables of URLs:

    searched/<api>/<xx>/<query>.json   what a query has found, and how to go on (see pipeline/search/asking.py)
    searched/<api>/<xx>.parquet        the same of all queries in a folder, a source file of the pairs stage
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import requests

from pipeline.config import Config
from pipeline.config.sources import SearchConfig, SourceConfig
from pipeline.engine.run import Build
from pipeline.engine.units import Marker
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError
from pipeline.search.asking import Asker, SearchEndsError, results_of
from pipeline.search.interface import open_api

logger = logging.getLogger(__name__)

FACTS = ("query", "license", "license_url", "creator", "attribution")
"""Columns that go on in `extra`, to the data card."""
_COLUMNS = ("url", "title", "description", "page_url", *FACTS)
_SCHEMA = pa.schema([(name, pa.string()) for name in _COLUMNS])

RESULTS = SourceConfig(
    kind="url-table", paths=("searched",), caption=("title", "description"), page_url="page_url", keep=FACTS
)
"""How the pairs stage reads the results."""


def run_searched(build: Build, config: Config, pairs: Mapping[str, Marker], queries: Sequence[str]) -> bool:
    """Ask the APIs for queries that have too few pairs; return whether anything new was found."""
    counts = count_pairs(build.workspace, pairs, len(queries))
    is_new = False
    for search in config.search:
        if (search.api == "openverse") and search.daily_budget is None:
            raise ConfigError("search: openverse needs a daily_budget: what your registration allows")
        wanted = choose_queries(counts, search.below or config.balance.cap, search.queries)
        is_new |= _ask(build, config, search, [queries[number] for number in wanted])
    return is_new


def count_pairs(workspace: Workspace, pairs: Mapping[str, Marker], queries: int) -> np.ndarray:
    """Return how many pairs each query matches, (queries,) int64."""
    counts = np.zeros(queries, np.int64)
    for marker in pairs.values():
        for name in (name for name in marker.outputs if name.startswith("pairs/")):
            for batch in workspace.read_batches(name, ["query_ids"]):
                ids = pc.list_flatten(batch.column("query_ids")).to_numpy(zero_copy_only=False)
                counts += np.bincount(ids.astype(np.int64), minlength=queries)
    return counts


def choose_queries(counts: np.ndarray, below: int, limit: int | None) -> list[int]:
    """Return the queries with fewer than `below` pairs, those with the fewest first, at most `limit`."""
    order = np.argsort(counts, kind="stable")
    return order[counts[order] < below][:limit].tolist()


def _ask(build: Build, config: Config, search: SearchConfig, queries: Sequence[str]) -> bool:
    """Ask one API; return whether there are new results."""
    agent = f"{config.fetch.agent} ({config.fetch.contact})" if config.fetch.contact else config.fetch.agent
    if search.api == "wikimedia-commons" and config.fetch.contact is None:
        raise ConfigError("search: wikimedia-commons needs fetch.contact: Wikimedia's User-Agent policy requires it")
    with requests.Session() as session:
        session.headers["User-Agent"] = agent
        asker = Asker(
            build.workspace,
            search.api,
            open_api(search.api, search.base_url),
            session,
            search.daily_budget or _COMMONS_BUDGET,
            search.interval_s,
        )
        done = failed = 0
        try:
            for query in queries:
                if not asker.is_done(query):
                    is_done = asker.ask(query, search.per_query)
                    done, failed = done + is_done, failed + (not is_done)
        except SearchEndsError as end:
            logger.warning("search: %s: %s", search.api, end)
        if failed:
            logger.warning("search: %s: %d queries got no response that can be read; run again", search.api, failed)
        build.progress.say(f"searched       {search.api}: {done:,} queries asked")
    return write_tables(build.workspace, search.api)


_COMMONS_BUDGET = 10_000


def write_tables(workspace: Workspace, api: str) -> bool:
    """Write the tables of the results of an API, those that change; return whether there is one."""
    contents = workspace.read_jsons(f"searched/{api}")
    folders: dict[str, list[dict[str, str]]] = {}
    for name, content in sorted(contents.items()):
        parts = name.split("/")
        if len(parts) == 4:
            folders.setdefault(parts[2], []).extend(results_of(content))
    is_new = False
    for folder, rows in folders.items():
        table = pa.Table.from_pylist([{name: row[name] for name in _COLUMNS} for row in rows], _SCHEMA)
        name = f"searched/{api}/{folder}.parquet"
        if not workspace.exists(name) or not workspace.read_table(name).equals(table):
            with workspace.create(name) as out:
                pq.write_table(table, out, compression="zstd")
            is_new = True
    return is_new


def result_tables(workspace: Workspace, config: Config) -> list[str]:
    """Return the tables of results, of the APIs in the config."""
    apis = {search.api for search in config.search}
    names = [name for api in sorted(apis) for name in sorted(workspace.sizes(f"searched/{api}"))]
    return [name for name in names if name.endswith(".parquet")]
