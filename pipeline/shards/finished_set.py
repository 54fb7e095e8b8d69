"""A finished set: its account, pairs, samples, duplicates and overlap as Arrow tables.

Each table is read into memory. For a large set, name the columns that you need, or read the Parquet files one by one
(docs/architecture.md lists them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dedup.overlap import EvalIndex
from pipeline.account import Account, read_account
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.shards.listed import left_since, without
from pipeline.shards.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class FinishedSet:
    """A workspace with a finished build."""

    workspace: Workspace
    manifest: Manifest

    @cached_property
    def account(self) -> Account:
        """The account of every row, stage by stage."""
        return read_account(self.workspace)

    def pairs(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the candidates that at least one query matched: `pairs/`."""
        return self._concatenated("pairs", columns)

    def planned(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row for every planned pair, with `status`, and the `reason` if it is not a sample."""
        return self._concatenated("shards", columns)

    def samples(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of the pairs that are in the tars.

        Columns of annotations are named with a dot, such as `aesthetic.score`; they are null where a sample has none.
        """
        own = None if columns is None else [name for name in columns if "." not in name]
        wanted = None if own is None else [*own, *({"status", "uid"} - set(own))]
        rows = self.planned(wanted)
        rows = rows.filter(pc.equal(rows["status"], "success"))
        for column in columns or ():
            if "." in column:
                name, _, field = column.partition(".")
                annotation = self.annotation(name, [field])
                at = pc.index_in(rows["uid"], annotation["uid"].combine_chunks())
                rows = rows.append_column(column, annotation[field].take(at))
        return rows if columns is None else rows.select(list(columns))

    @property
    def annotations(self) -> tuple[str, ...]:
        """The names of the annotations that `wit annotate` joined."""
        names = self.workspace.sizes("annotations")
        return tuple(sorted({name.split("/")[1] for name in names}))

    def annotation(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the uids of an annotation with its columns, or some of them.

        Raises:
            UserError: there is no such annotation, or it has no such column.
        """
        if name not in self.annotations:
            raise UserError(f"there is no annotation {name!r}, only {', '.join(self.annotations) or 'none'}")
        table = self._concatenated(f"annotations/{name}", None)
        if missing := sorted(set(columns or ()) - set(table.column_names)):
            raise UserError(f"the annotation {name!r} has no column {missing[0]!r}: {', '.join(table.column_names)}")
        return table if columns is None else table.select(["uid", *columns])

    def duplicates(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row for every image that was dropped as a duplicate of another, its `survivor`."""
        return self.workspace.read_table("dedup/duplicates.parquet", None if columns is None else list(columns))

    @property
    def evals(self) -> tuple[str, ...]:
        """The names of the evaluation sets that the set was compared with."""
        names = self.workspace.sizes("dedup/overlap")
        return tuple(sorted(Path(name).name.removesuffix(".parquet") for name in names))

    def overlap(self, name: str) -> pa.Table:
        """Return the images that are also in evaluation set `name`; `kept` is whether the pair is in the tars.

        Raises:
            UserError: the set was not compared with it.
        """
        self._check_eval(name)
        return without(self.workspace.read_table(f"dedup/overlap/{name}.parquet"), left_since(self.workspace))

    def eval_index(self, name: str) -> EvalIndex:
        """Return the index of evaluation set `name`: its ids, hashes and qualities.

        Raises:
            UserError: the set was not compared with it.
        """
        self._check_eval(name)
        return EvalIndex.load(self.workspace.read_table(f"evals/{name}/index.parquet"))

    def _check_eval(self, name: str) -> None:
        if name not in self.evals:
            raise UserError(f"overlap was not measured with {name!r}, only with {', '.join(self.evals) or 'no set'}")

    def _concatenated(self, folder: str, columns: Sequence[str] | None) -> pa.Table:
        names = sorted(name for name in self.workspace.sizes(folder) if name.endswith(".parquet"))
        wanted = None if columns is None else list(columns)
        return pa.concat_tables([self.workspace.read_table(name, wanted) for name in names])


def open_set(workspace: str | Path) -> FinishedSet:
    """Open a finished workspace: a local folder or any fsspec URL.

    Raises:
        UserError: the workspace has no finished set.
    """
    root = str(workspace)
    try:
        manifest = read_manifest(f"{root.rstrip('/')}/shards")
    except FileNotFoundError:
        raise UserError(f"{root}: no finished set (shards/manifest.json is missing): run `wit build`") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    return FinishedSet(Workspace(root), manifest)
