"""`wit why`: the path of one pair through every stage, with the rule, query or neighbour that decided.

Everything is read from files. With index/ (index.py) a lookup reads a handful of them; of a workspace that has none
yet, every table of pairs/ is looked through.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from pipeline.config import Config
from pipeline.engine.units import read_stage
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.fetching.block_files import find_takedowns, read_block_lists
from pipeline.records import Reason
from pipeline.stages.index import Kind, look_up
from pipeline.stages.plan import part_names
from pipeline.stages.plan_candidates import url_hashes
from pipeline.web.urls import normalize_url
from queries.allowlist import Allowlist

_UID, _SHA256 = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{64}")
_FACTS = [
    "status", "reason", "error_message", "http_status", "original_width", "original_height", "width", "height",
    "sha256", "pdq_quality", "refused_by", "consent_checked", "consent_said", "rights", "creator", "license_url",
]  # fmt: skip
_MOST_QUERIES = 10
_SAME_IMAGE = (Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE, Reason.OTHER_CAPTION_OF_SAME_IMAGE)

Record = dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """Looks up pairs of one workspace."""

    workspace: Workspace
    config: Config
    allowlist: Allowlist

    def find(self, wanted: str) -> Iterator[Record]:
        """Yield what became of each pair with this uid, URL, SHA-256 or evaluation example: stage.fact -> value.

        Raises:
            UserError: nothing has been matched yet.
        """
        if not self.workspace.exists("pairs"):
            raise UserError(f"{self.workspace.root}: nothing has been matched yet; run `wit build` first")
        for pair in self._pairs(wanted):
            yield self._path(pair)

    def _pairs(self, wanted: str) -> Iterator[Record]:
        """Yield the rows of pairs/ that are meant, each uid once."""
        url = normalize_url(wanted) if "://" in wanted else None
        seen: set[str] = set()
        if url is not None:
            found = self._rows(Kind.URL, "url", url)
        elif _UID.fullmatch(wanted.lower()):
            found = self._rows(Kind.UID, "uid", wanted.lower())
        elif _SHA256.fullmatch(wanted.lower()):
            found = self._by_sha256(wanted.lower())
        else:
            found = self._by_example(wanted)
        for row in found:
            if row["uid"] not in seen:
                seen.add(row["uid"])
                yield row

    def _rows(self, kind: Kind, column: str, value: str) -> Iterator[Record]:
        names = look_up(self.workspace, kind, value)
        for name in self._tables("pairs") if names is None else names:
            yield from self.workspace.read_table(name, filters=[(column, "==", value)]).to_pylist()

    def _by_sha256(self, sha256: str) -> Iterator[Record]:
        names = look_up(self.workspace, Kind.SHA256, sha256)
        for name in self._tables("fetched") if names is None else names:
            for row in self.workspace.read_table(
                name, ["uid", "sha256"], filters=[("sha256", "==", sha256)]
            ).to_pylist():
                yield from self._rows(Kind.UID, "uid", row["uid"])

    def _by_example(self, eval_id: str) -> Iterator[Record]:
        for name in self._tables("dedup/overlap"):
            rows = self.workspace.read_table(name, ["uid", "eval_id"], filters=[("eval_id", "==", eval_id)])
            for uid in sorted(set(rows["uid"].to_pylist())):
                yield from self._rows(Kind.UID, "uid", uid)

    @cached_property
    def _parts(self) -> int:
        """The number of parts; any number while nothing is planned."""
        plan = read_stage(self.workspace, "plan")
        return 1 if plan is None else len(part_names(plan))

    def _tables(self, folder: str) -> list[str]:
        return sorted(name for name in self.workspace.sizes(folder) if name.endswith(".parquet"))

    def _path(self, pair: Record) -> Record:
        record: Record = {f"pairs.{name}": pair[name] for name in ("uid", "url", "caption", "text_field", "page_url")}
        record |= {"pairs.source": pair["source"], "pairs.language": pair["language"]}
        record["pairs.queries"] = self._queries(pair["query_ids"])
        part = int(url_hashes([pair["url"]], self.config.seed)[0] % self._parts)
        planned = self._row(f"plan/part-{part:05d}.parquet", pair["uid"])
        if planned is None:
            if self.workspace.exists("plan/balance.parquet"):
                record["plan.reason"] = str(Reason.OVER_CAP)
                record["plan.because"] = self._balance("plan/balance.parquet", pair["query_ids"])
            return record
        record["plan.part"] = part
        record["plan.selected_by"] = self._queries(planned["selected_by"])
        fetched = self._row(f"fetched/part-{part:05d}.parquet", pair["uid"], _FACTS)
        if fetched is None:
            return record
        record |= {f"fetched.{name}": fetched[name] for name in _FACTS}
        record |= {f"fetched.{name}": value for name, value in self._ledger(part, pair["url"]).items()}
        filtered = self._row(f"filtered/part-{part:05d}.parquet", pair["uid"])
        if filtered is not None and fetched["status"] == "success":
            record |= {f"filtered.{name}": filtered.get(name) for name in ("status", "reason", "score")}
        if (filtered or fetched)["status"] == "success":
            record |= self._decided(part, pair)
        return record

    def _decided(self, part: int, pair: Record) -> Record:
        decision = self._row(f"dedup/decisions/part-{part:05d}.parquet", pair["uid"])
        if decision is None:
            return {}
        record: Record = {"dedup.reason": decision["reason"]}
        if decision["reason"] in _SAME_IMAGE:
            record |= self._neighbour(part, pair["uid"])
        for name in self._tables("dedup/overlap"):
            for row in self.workspace.read_table(name, filters=[("uid", "==", pair["uid"])]).to_pylist():
                example = f"{row['eval_id']} at {row['distance']} bits ({row['view']})"
                record[f"dedup.overlap.{name.rsplit('/', 1)[1].removesuffix('.parquet')}"] = example
        if decision["reason"] == Reason.OVER_FINAL_CAP:
            record["balance.because"] = self._balance("dedup/balance.parquet", pair["query_ids"])
        record["balance.selected_by"] = self._queries(decision["selected_by"])
        stored = self._row(f"shards/{part:05d}.parquet", pair["uid"])
        if stored is not None:
            record |= {f"shards.{name}": stored.get(name) for name in ("status", "reason", "refused_by", "shard")}
            record |= {f"shards.{name}": stored.get(name) for name in ("offset", "size", "captions")}
        return record

    def _neighbour(self, part: int, uid: str) -> Record:
        name = "dedup/duplicates.parquet"
        rows = self.workspace.read_table(name, filters=[("part", "==", part), ("uid", "==", uid)]).to_pylist()
        limit = self.config.dedup.max_distance_bits
        found: Record = {}
        for row in rows:
            survivor = self._row(f"fetched/part-{row['survivor_part']:05d}.parquet", row["survivor"], ["url"])
            found["dedup.survivor"] = row["survivor"]
            found["dedup.survivor_url"] = survivor["url"] if survivor is not None else None
            found["dedup.distance"] = f"{row['distance']} bits, at most {limit} are a duplicate"
        return found

    def _row(self, name: str, uid: str, columns: list[str] | None = None) -> Record | None:
        if not self.workspace.exists(name):
            return None
        wanted = None if columns is None else ["uid", *columns]
        rows = self.workspace.read_table(name, wanted, filters=[("uid", "==", uid)]).to_pylist()
        return rows[0] if rows else None

    def _ledger(self, part: int, url: str) -> Mapping[str, Any]:
        name = f"consent/part-{part:05d}.parquet"
        if not self.workspace.exists(name):
            return {}
        rows = self.workspace.read_table(name, filters=[("url", "==", url)]).drop_columns(["url"]).to_pylist()
        return rows[0] if rows else {}

    def _queries(self, ids: list[int] | None) -> str:
        texts = [repr(self.allowlist.queries[number]) for number in (ids or [])[:_MOST_QUERIES]]
        more = len(ids or []) - len(texts)
        return ", ".join(texts) + (f" and {more:,} more" if more > 0 else "")

    def _balance(self, name: str, ids: list[int]) -> str:
        """Say how many pairs each query matches and selects: all of them have a smaller priority than this pair."""
        rows = self.workspace.read_table(name).take(pa.array(ids[:_MOST_QUERIES])).to_pylist()
        counts = [
            f"{self.allowlist.queries[number]!r} selects {row['selected']:,} of {row['matched']:,}"
            for number, row in zip(ids, rows, strict=False)
        ]
        return ", ".join(counts) + ", all of smaller priority"

    def taken_down(self, wanted: str) -> bool:
        """Return whether a takedown names this URL, uid or SHA-256 itself."""
        lists = read_block_lists(find_takedowns(self.workspace))
        url = normalize_url(wanted) if "://" in wanted else None
        if url is not None:
            return lists.of_url(url, urlsplit(url).hostname or "") is not None
        if _UID.fullmatch(wanted.lower()):
            return lists.of_uid(wanted.lower()) is not None
        return bool(_SHA256.fullmatch(wanted.lower())) and lists.of_fingerprints(wanted.lower(), bytes(32)) is not None
