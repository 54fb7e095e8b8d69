"""What a report publishes besides its page: tables from which every number about the overlap can be derived again.

examples.parquet      every example of every set: whether it could be read, and its PDQ quality (`EXAMPLES`)
overlap.parquet       every matching pair, with what the match rests on (`PAIRS`)
captions.parquet      every pair whose caption is that of an example (`CAPTION_PAIRS`)
planted.parquet       planted edits of each set, and how many of them were found (`PLANTINGS`)
results.parquet       whether each evaluated model is correct on each example (`RESULTS`)
control.parquet       every rendered image of the negative control, and what matches it (`CONTROL`)
contamination.csv     a line per set, with the columns of the CONDA contamination database
<set>.clean_ids.txt, <set>.overlap_ids.txt   readable examples without and with a copy, one a line
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dedup.captions import CAPTION_OVERLAP, summarise_captions
from dedup.control import CONTROL, Control
from dedup.errors import DedupError
from dedup.eval_sets import find_set
from dedup.measure import PLANTED, Recall
from dedup.overlap import OVERLAP, summarise_overlap
from dedup.report_data import EvalReport, Evidence, ModelAccuracy
from dedup.reviews import Reviews
from dedup.statistics import contamination, split_accuracy

EXAMPLES = pa.schema(
    [
        ("eval", pa.string()),
        ("eval_id", pa.string()),
        ("reason", pa.string()),
        ("quality", pa.int32()),
        ("long_captions", pa.int32()),  # captions long enough to compare; null for an example without any
    ]
)
CAPTION_PAIRS = pa.schema([pa.field("eval", pa.string()), *CAPTION_OVERLAP, pa.field("kept", pa.bool_())])
PLANTINGS = pa.schema([pa.field("eval", pa.string()), *PLANTED])
PAIRS = pa.schema([pa.field("eval", pa.string()), *OVERLAP, pa.field("kept", pa.bool_())])
RESULTS = pa.schema([("eval", pa.string()), ("model", pa.string()), ("eval_id", pa.string()), ("correct", pa.bool_())])


@dataclass(frozen=True)
class Published:
    """One set: the columns of `EXAMPLES`, `PAIRS` and `RESULTS` but for its name (and the model's)."""

    name: str
    examples: pa.Table
    pairs: pa.Table
    results: Mapping[str, pa.Table] = field(default_factory=dict)  # by model
    planted: pa.Table = field(default_factory=PLANTED.empty_table)
    captions: pa.Table | None = None  # None: the set has no captions

    @property
    def readable(self) -> pa.Table:
        """Return the examples that could be indexed."""
        return self.examples.filter(pc.is_null(self.examples["reason"]))

    def overlapping(self) -> pa.Array:
        """Return the ids of the examples with a copy in the final shards."""
        return pc.unique(self.pairs.filter(self.pairs["kept"])["eval_id"])


def derive(
    published: Published,
    max_distance_bits: int,
    min_quality: int,
    evidence: Callable[[pa.Table], tuple[Evidence, ...]],
    reviews: Reviews,
) -> EvalReport:
    """Return the report of a set; `evidence` chooses from its pairs what is shown."""
    shown = evidence(published.pairs)
    readable = published.readable
    left_out = pc.value_counts(published.examples["reason"].drop_null()).to_pylist()
    return EvalReport(
        name=published.name,
        indexed=readable.num_rows,
        summary=summarise_overlap(published.pairs, max_distance_bits),
        max_distance_bits=max_distance_bits,
        evidence=shown,
        left_out={row["values"]: row["counts"] for row in sorted(left_out, key=lambda row: str(row["values"]))},
        flat=pc.sum(pc.less(readable["quality"], min_quality)).as_py() or 0,
        accuracies=accuracies(published),
        judged=reviews.of([(published.name, pair.eval_id, pair.uid) for pair in shown]),
        recall=Recall.of(published.planted),
        captions=None
        if published.captions is None
        else summarise_captions(readable["long_captions"], published.captions),
    )


def accuracies(published: Published) -> tuple[ModelAccuracy, ...]:
    """Split the accuracy of each model by the overlap; examples that could not be indexed cannot be compared."""
    found, readable = published.overlapping(), published.readable["eval_id"]
    scores = []
    for model, table in published.results.items():
        table = table.filter(pc.is_in(table["eval_id"], readable))
        overlaps = pc.is_in(table["eval_id"], found)
        scores.append(ModelAccuracy(model, split_accuracy(table["correct"].to_numpy(), overlaps.to_numpy())))
    return tuple(scores)


def write_published(sets: Sequence[Published], out_dir: Path, *, source: str, control: pa.Table | None = None) -> None:
    """Write the tables of all sets, the lists of ids, and contamination.csv; `source` names the searched dataset."""
    examples, pairs, results = [EXAMPLES.empty_table()], [PAIRS.empty_table()], [RESULTS.empty_table()]
    planted, captions = [PLANTINGS.empty_table()], [CAPTION_PAIRS.empty_table()]
    for one in sets:
        examples.append(_named(one.examples, EXAMPLES, {"eval": one.name}))
        pairs.append(_named(one.pairs, PAIRS, {"eval": one.name}))
        results += [_named(t, RESULTS, {"eval": one.name, "model": m}) for m, t in sorted(one.results.items())]
        planted.append(_named(one.planted, PLANTINGS, {"eval": one.name}))
        if one.captions is not None:
            captions.append(_named(one.captions, CAPTION_PAIRS, {"eval": one.name}))
        found = one.overlapping()
        ids = one.readable["eval_id"]
        overlaps = pc.is_in(ids, found)
        _write_lines(out_dir / f"{one.name}.overlap_ids.txt", ids.filter(overlaps).to_pylist())
        _write_lines(out_dir / f"{one.name}.clean_ids.txt", ids.filter(pc.invert(overlaps)).to_pylist())
    files = {
        "examples": examples,
        "overlap": pairs,
        "results": results,
        "planted": planted,
        "captions": captions,
    }
    for name, tables in (files | ({} if control is None else {"control": [control]})).items():
        partial = out_dir / f"{name}.parquet.tmp"
        pq.write_table(pa.concat_tables(tables), partial, compression="zstd")
        partial.replace(out_dir / f"{name}.parquet")
    _write(out_dir / "contamination.csv", _contamination(sets, source))


def read_published(folder: Path) -> dict[str, Published]:
    """Return what `write_published` wrote, by set.

    Raises:
        DedupError: a table is missing or is not one.
    """
    schemas = {
        "examples": EXAMPLES,
        "overlap": PAIRS,
        "results": RESULTS,
        "planted": PLANTINGS,
        "captions": CAPTION_PAIRS,
    }
    tables = {name: _read(folder / f"{name}.parquet", schema) for name, schema in schemas.items()}
    names = pc.unique(tables["examples"]["eval"]).to_pylist()
    return {name: _one(name, *(_of(table, "eval", name) for table in tables.values())) for name in names}


def read_control(folder: Path, images: int) -> Control:
    """Return the negative control as its table has it; `images` were compared with it.

    Raises:
        DedupError: the table is missing or is not one.
    """
    return Control.of(_read(folder / "control.parquet", CONTROL), images)


def _read(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(file, columns=schema.names).cast(schema)
    except FileNotFoundError:
        raise DedupError(f"{file}: no such file") from None
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DedupError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from error


def _one(
    name: str, examples: pa.Table, pairs: pa.Table, results: pa.Table, planted: pa.Table, captions: pa.Table
) -> Published:
    models = pc.unique(results["model"]).to_pylist()
    by_model = {model: _of(results, "model", model) for model in models}
    has_captions = examples["long_captions"].null_count < examples.num_rows
    return Published(name, examples, pairs, by_model, planted, captions if has_captions else None)


def _of(table: pa.Table, column: str, value: str) -> pa.Table:
    return table.filter(pc.equal(table[column], value)).drop_columns([column])


def _named(table: pa.Table, schema: pa.Schema, names: Mapping[str, str]) -> pa.Table:
    for name, value in names.items():
        table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return table.select(schema.names).cast(schema)


def _contamination(sets: Sequence[Published], source: str) -> str:
    """Return a line per set: percent of the test split that the source has, and how that was found."""
    lines = io.StringIO()
    writer = csv.writer(lines, delimiter=";", lineterminator="\n")
    writer.writerow(
        [
            *("Evaluation Dataset", "Subset", "Contaminated Source", "Model or corpus"),
            *("Train Split", "Development Split", "Test Split", "Approach"),
        ]
    )
    for one in sets:
        known = find_set(one.name)
        fraction = contamination(len(one.overlapping()), one.readable.num_rows).value
        percent = "" if fraction is None else f"{100 * fraction:.4g}"
        writer.writerow([known.title if known else one.name, "", source, "corpus", "", "", percent, "data-based"])
    return lines.getvalue()


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    _write(path, "".join(f"{line}\n" for line in lines))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(text, encoding="utf-8", errors="surrogateescape")
    partial.replace(path)
