"""shards/, dedup/, evals/ -> report/: the account, the balance per query, and the overlap with its evidence.

Runs in one process: it reads only counts, a sample of shards, and the few images that are shown.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dedup.captions import count_long
from dedup.control import CONTROL_SET, Control, control_table
from dedup.decode import decode_rgb
from dedup.eval_sets.config import EvalSetConfig
from dedup.eval_sets.index import outline, read_thumbnails, thumbnail
from dedup.eval_sets.results import REQUIRED, results_folder
from dedup.measure import PLANTED
from dedup.overlap import pick_evidence
from dedup.published import Published, derive, write_published
from dedup.query_search import encode_queries
from dedup.report import write_report
from dedup.report_data import Balance, EvalReport, Evidence, QueryRow, ReportData, StageFlow
from dedup.reviews import Reviews
from pipeline.account import Account, read_account
from pipeline.config import Config
from pipeline.engine.run import Build
from pipeline.engine.units import digest, finish_stage, finished_stage, read_stage
from pipeline.engine.workspace import FileFacts, Workspace
from pipeline.errors import DamagedFileError, UserError
from pipeline.private_folder import scratch_folder
from pipeline.records import LOCATION
from pipeline.shards.listed import left_since, without
from pipeline.stages.annotate import read_annotations
from pipeline.stages.compliance import compliance_json, consent_lines, measure_compliance
from pipeline.stages.croissant import croissant
from pipeline.stages.data_card import SAMPLED_SHARDS, measure_composition, write_data_card
from pipeline.stages.evals import max_distance_bits, min_probability
from pipeline.stages.pairs_page import write_pairs_page
from pipeline.stages.sources_page import write_sources_page
from pipeline.stages.training_page import METRICS, write_training_page
from queries.allowlist import Allowlist

VERSION = 16
"""Raise it when the same build would give another report."""

_PAGES = (
    ("sources.html", "sources and what was dropped of them"),
    ("pairs.html", "the pairs, as histograms and at random"),
    ("data_card.md", "data card"),
    ("compliance.json", "compliance"),
)
"""Files beside index.html, and what they show."""

EVIDENCE_PER_SET = 24
_QUERY_ROWS = 20
_THUMBNAIL_PX = 128
_REVIEWS = "report/reviews.json"


def run_report(build: Build, config: Config, allowlist: Allowlist) -> None:
    """Write report/ unless it is up to date."""
    workspace = build.workspace
    manifest = workspace.read_json("shards/manifest.json")
    dedup = read_stage(workspace, "dedup")
    results = _result_hashes(workspace, config)
    annotations = {name: marker.to_json() for name, marker in read_annotations(workspace).items()}
    made_of = [manifest, results, *([annotations] if annotations else []), *_curves_hash(workspace)]
    unit_digest = digest(VERSION, made_of, {} if dedup is None else dedup.to_json(), allowlist.sha256)
    if finished_stage(workspace, "report", unit_digest) is None:
        outputs = _write(workspace, config, allowlist)
        finish_stage(workspace, "report", unit_digest, outputs, {})
        build.progress.say(f"report         {workspace.root}/report/index.html")
    else:
        build.progress.say("report         already done")


def _curves_hash(workspace: Workspace) -> list[str]:
    return [hashlib.sha256(workspace.read_bytes(METRICS)).hexdigest()] if workspace.exists(METRICS) else []


def _result_hashes(workspace: Workspace, config: Config) -> dict[str, str]:
    """Return name -> SHA-256 of the models' results: another evaluation may give files of the same size."""
    names = [name for evaluation in config.evals for name in _result_files(workspace, evaluation.name)]
    return {name: hashlib.sha256(workspace.read_bytes(name)).hexdigest() for name in names}


def _result_files(workspace: Workspace, name: str) -> list[str]:
    return sorted(file for file in workspace.sizes(results_folder(name)) if file.endswith(".parquet"))


def write_reports(workspace: Workspace, config: Config, allowlist: Allowlist, reviews: Sequence[Path] = ()) -> str:
    """Write report/ again, even if it is up to date; return the page's path.

    `reviews` are files that people saved from the page; they are kept as report/reviews.json for later reports.

    Raises:
        UserError: the build is not finished.
    """
    if not workspace.exists("shards/manifest.json"):
        raise UserError(f"{workspace.root}: no finished shards for a report; run `wit build` first")
    if reviews:
        with scratch_folder("reviews") as scratch:
            merged = Path(scratch) / "reviews.json"
            merged.write_text(Reviews.read(reviews).to_json(), encoding="utf-8")
            workspace.upload(merged, _REVIEWS)
    _write(workspace, config, allowlist)
    return f"{workspace.root}/report/index.html"


def _write(workspace: Workspace, config: Config, allowlist: Allowlist) -> dict[str, FileFacts]:
    account = read_account(workspace)
    manifest = workspace.read_json("shards/manifest.json")
    compliance = measure_compliance(workspace, manifest)
    left = left_since(workspace)
    balance = read_balance(workspace, allowlist, left)
    shards = [f"shards/{shard['tar'][:-4]}.parquet" for shard in manifest["shards"][:SAMPLED_SHARDS]]
    composition = measure_composition(workspace, shards)
    contained = np.zeros(len(allowlist.queries), np.int64)
    contained[list(composition.matches)] = list(composition.matches.values())
    reviews = _read_reviews(workspace)
    published = [
        read_measured(workspace, evaluation.name, measured=config.dedup.planted > 0) for evaluation in config.evals
    ]
    control = _read_control(workspace)
    data = ReportData(
        facts=_facts(config, allowlist, manifest),
        stages=tuple(StageFlow(s.stage, s.inputs, s.kept, s.reasons) for s in account.stages),
        evals=tuple(
            _eval_report(workspace, config, evaluation, one, reviews)
            for evaluation, one in zip(config.evals, published, strict=True)
        ),
        min_quality=config.dedup.min_quality,
        detector=config.dedup.detector != "pdq",
        control=None if control is None else Control.of(control, account.inputs_of("dedup")),
        refused=dict(compliance.refused),
        pages=_PAGES,
        balance=Balance.of(
            balance["matched"].to_numpy(),
            balance["kept"].to_numpy(),
            config.balance.cap,
            contained,
            composition.samples,
        ),
        head=_query_rows(balance, largest=True),
        tail=_query_rows(balance, largest=False),
        queries=encode_queries(
            balance["query"].to_pylist(), *(balance[name].to_numpy() for name in ("matched", "planned", "kept"))
        ),
    )
    consent = consent_lines(compliance, config)
    card = write_data_card(composition, account, config, manifest, consent, _annotations(workspace))
    with scratch_folder("report") as scratch:
        folder = Path(scratch)
        write_report(data, folder)
        write_published(published, folder, source="this dataset", control=control)
        (folder / "accounting.json").write_text(_account_json(account))
        (folder / "data_card.md").write_text(card)
        sources = write_sources_page(workspace, shards, len(manifest["shards"]))
        (folder / "sources.html").write_text(sources, encoding="utf-8", errors="replace")
        pairs = write_pairs_page(workspace, shards, len(manifest["shards"]), config.seed, allowlist.queries)
        (folder / "pairs.html").write_text(pairs, encoding="utf-8", errors="replace")
        if training := write_training_page(workspace):
            (folder / "training.html").write_text(training, encoding="utf-8", errors="replace")
        (folder / "compliance.json").write_text(_json(compliance_json(compliance, config)))
        pq.write_table(balance, folder / "balance.parquet", compression="zstd")
        written = {f"report/{f.name}": workspace.upload(f, f"report/{f.name}") for f in sorted(folder.iterdir())}
    described = workspace.write_json("shards/croissant.json", croissant(config, manifest, compliance))
    return written | {"shards/croissant.json": described}


def _annotations(workspace: Workspace) -> str:
    """Say what `wit annotate` joined, and to how many samples."""
    found = read_annotations(workspace).items()
    return "; ".join(f"{name} (of {marker.counts['kept']:,} samples)" for name, marker in sorted(found))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _account_json(account: Account) -> str:
    return json.dumps({"closes": not account.problems(), "stages": account.to_json()}, indent=1) + "\n"


def _facts(config: Config, allowlist: Allowlist, manifest: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return (
        ("Pairs", f"{manifest['samples']:,}"),
        ("Queries", f"{len(allowlist.queries):,}"),
        ("Cap per query", f"{config.balance.cap:,}"),
        ("Seed", str(config.seed)),
        ("Detector of edited copies", "none" if config.dedup.detector == "pdq" else config.dedup.detector),
        ("Near duplicates", f"PDQ within {config.dedup.max_distance_bits} bits"),
        ("Matches with evaluation sets", "removed" if config.dedup.evals == "remove" else "reported"),
        ("Made with", f"wit-pipeline {manifest['code_version']}"),
    )


def read_balance(workspace: Workspace, allowlist: Allowlist, left: pa.Table) -> pa.Table:
    """Return one row per query: matched in the pool, planned, survived fetching and deduplication, kept by the cap.

    `left` (schema LISTED): the pairs that have left the set since.
    """
    planned = workspace.read_table("plan/balance.parquet")
    final = workspace.read_table("dedup/balance.parquet")
    lost = np.bincount(pc.list_flatten(left["selected_by"]).to_numpy(), minlength=final.num_rows)
    return pa.table(
        {
            "query": pa.array(allowlist.queries, pa.string()),
            "matched": planned["matched"],
            "planned": planned["selected"],
            "survived": final["matched"],
            "kept": pc.subtract(final["selected"], pa.array(lost, final["selected"].type)),
        }
    )


def _query_rows(balance: pa.Table, *, largest: bool) -> tuple[QueryRow, ...]:
    """Return the most matched queries, or the least matched of those with a match; ties by the query's id."""
    matched = balance["matched"].to_numpy()
    order = np.argsort(-matched if largest else matched, kind="stable")
    chosen = balance.take(pa.array(order[matched[order] > 0][:_QUERY_ROWS])).to_pylist()
    return tuple(QueryRow(row["query"], row["matched"], row["planned"], row["kept"]) for row in chosen)


def _read_reviews(workspace: Workspace) -> Reviews:
    if not workspace.exists(_REVIEWS):
        return Reviews({})
    with scratch_folder("reviews") as scratch:
        copy = Path(scratch) / "reviews.json"
        copy.write_bytes(workspace.read_bytes(_REVIEWS))
        return Reviews.read([copy])


def read_measured(workspace: Workspace, name: str, *, measured: bool) -> Published:
    """Return the examples of a set, their copies, what models make of them, and the recall if it was measured."""
    index = workspace.read_table(f"evals/{name}/index.parquet", ["eval_id", "reason", "quality"])
    left = left_since(workspace)
    pairs = without(workspace.read_table(f"dedup/overlap/{name}.parquet"), left)
    captions = None
    long_captions = pa.nulls(index.num_rows, pa.int32())
    if workspace.exists(f"dedup/captions/{name}.parquet"):
        captions = without(workspace.read_table(f"dedup/captions/{name}.parquet"), left)
        long_captions = count_long(index["eval_id"], workspace.read_table(f"evals/{name}/captions.parquet"))
    index = index.append_column("long_captions", long_captions)
    planted = f"measured/{name}.parquet"
    recall = workspace.read_table(planted) if measured else PLANTED.empty_table()
    return Published(name, index, pairs, read_results(workspace, name, index), recall, captions)


def _read_control(workspace: Workspace) -> pa.Table | None:
    """Return the negative control and its matches; None if the build has none."""
    if not workspace.exists("dedup/control.parquet"):
        return None
    index = workspace.read_table(f"control/{CONTROL_SET}/index.parquet", ["eval_id"])
    return control_table(index["eval_id"], workspace.read_table("dedup/control.parquet", ["eval_id", "uid"]))


def _eval_report(
    workspace: Workspace, config: Config, evaluation: EvalSetConfig, published: Published, reviews: Reviews
) -> EvalReport:
    name = evaluation.name

    def evidence(pairs: pa.Table) -> tuple[Evidence, ...]:
        labels = workspace.read_table(f"evals/{name}/index.parquet", ["eval_id", "label"])
        return _evidence(workspace, name, pick_evidence(pairs, EVIDENCE_PER_SET), labels)

    bits = max_distance_bits(config, evaluation)
    derived = derive(published, bits, config.dedup.min_quality, evidence, reviews)
    probability = None if config.dedup.detector == "pdq" else min_probability(evaluation)
    return replace(derived, evidence_limit=EVIDENCE_PER_SET, min_probability=probability)


def _evidence(workspace: Workspace, name: str, picked: pa.Table, index: pa.Table) -> tuple[Evidence, ...]:
    if not picked.num_rows:
        return ()
    labels = dict(zip(index["eval_id"].to_pylist(), index["label"].to_pylist(), strict=True))
    with workspace.open(f"evals/{name}/thumbnails.parquet") as file:
        thumbnails = read_thumbnails(file, picked["eval_id"].to_pylist())
    rows = picked.to_pylist()
    pairs = _read_pairs(workspace, [(row["part"], row["uid"]) for row in rows])
    return tuple(
        Evidence(
            eval_id=row["eval_id"],
            label=labels.get(row["eval_id"]),
            uid=row["uid"],
            distance=row["distance"],
            view=row["view"],
            degree=row["degree"],
            edit=row["edit"],
            caption=pairs[row["uid"]]["caption"],
            url=pairs[row["uid"]]["url"],
            page_url=pairs[row["uid"]]["page_url"],
            eval_jpeg=outline(thumbnails.get(row["eval_id"]), row),
            image_jpeg=pairs[row["uid"]]["jpeg"],
        )
        for row in rows
    )


def _read_pairs(workspace: Workspace, wanted: Iterable[tuple[int, str]]) -> dict[str, dict[str, Any]]:
    """Return uid -> caption, url, page_url and a small JPEG of pairs given by their shard's number and uid."""
    by_shard: dict[int, set[str]] = {}
    for shard, uid in wanted:
        by_shard.setdefault(shard, set()).add(uid)
    found: dict[str, dict[str, Any]] = {}
    columns = ["uid", "caption", "url", "page_url", *LOCATION.names]
    for shard, uids in sorted(by_shard.items()):
        table = workspace.read_table(f"shards/{shard:05d}.parquet", columns)
        rows = table.filter(pc.is_in(table["uid"], pa.array(sorted(uids)))).to_pylist()
        found |= {row["uid"]: row for row in rows}
    ranges = [(f"shards/{row['shard']}", row["offset"], row["offset"] + row["size"]) for row in found.values()]
    for row, image in zip(found.values(), workspace.read_ranges(ranges), strict=True):
        row["jpeg"] = _small(image)
    return found


def _small(image: bytes) -> bytes:
    return thumbnail(decode_rgb(image), _THUMBNAIL_PX)


def read_results(workspace: Workspace, name: str, index: pa.Table) -> dict[str, pa.Table]:
    """Return the per-example results of each evaluated model: eval_id and correct.

    Raises:
        UserError: a file has no results or results of another set, or two files have results of one model.
    """
    files: dict[str, str] = {}
    results = {}
    for file in _result_files(workspace, name):
        model, table = _read_results(workspace, name, file, index)
        if model in files:
            raise UserError(
                f"{workspace.root}: {files[model]} and {file} both hold results for model {model!r}: delete one of them"
            )
        files[model] = file
        results[model] = table
    return results


def _read_results(workspace: Workspace, name: str, path: str, index: pa.Table) -> tuple[str, pa.Table]:
    """Return the model's name and `REQUIRED`."""
    file, way_out = f"{workspace.root}/{path}", "evaluate the model on the set as it is now, or delete the file"
    try:
        whole = workspace.read_table(path, REQUIRED.names)
        table = whole.cast(REQUIRED)
    except (DamagedFileError, pa.ArrowException, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file} holds no per-example results ({reason}): {way_out}") from error
    unknown = table.filter(pc.invert(pc.is_in(table["eval_id"], index["eval_id"])))
    if unknown.num_rows:
        raise UserError(
            f"{file}: {unknown.num_rows:,} of {table.num_rows:,} examples are not in evals/{name}/index.parquet, such "
            f"as {unknown['eval_id'][0].as_py()!r}: {way_out}"
        )
    if table["correct"].null_count or len(pc.unique(table["eval_id"])) < table.num_rows:
        raise UserError(f"{file} has duplicate eval_ids, or nulls in `correct`: {way_out}")
    return _model_name(whole.schema.metadata) or PurePosixPath(path).stem, table


def _model_name(metadata: Mapping[bytes, bytes] | None) -> str | None:
    """Return the model's name in the metadata that `wit evaluate` writes; None for results of other programs."""
    try:
        name = json.loads((metadata or {})[b"wit"])["model"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None
