"""`wit build`: run the stages in order; each reads the files of the one before."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from dedup.eval_sets.read import read_examples
from pipeline.account import Account, read_account
from pipeline.beam.options import parse_beam_options
from pipeline.engine.lock import build_lock
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import Marker, read_markers, read_stage, withdraw
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, DamagedFileError, UserError, one_line
from pipeline.fetching.block_files import find_all_lists, find_block_lists, find_takedowns, read_block_lists
from pipeline.fetching.lower_bound import describe_bound, lower_bound
from pipeline.fetching.retry import Retry
from pipeline.fetching.signing import open_signer
from pipeline.filters.pairs import PairFilters
from pipeline.project import STAGES, Project, code_version
from pipeline.shards.manifest import read_manifest
from pipeline.stages.annotate import prune_annotations
from pipeline.stages.balance.scans import QueryHashes
from pipeline.stages.dedup.steps import run_dedup
from pipeline.stages.described import load_detector
from pipeline.stages.fetched import check_fetched, run_fetched
from pipeline.stages.filtered import ImageFilters, run_filtered
from pipeline.stages.index import run_index
from pipeline.stages.listed import run_listed
from pipeline.stages.merged import (
    forget_merged,
    keep_takedowns,
    open_others,
    read_merged_sources,
    run_merged_pairs,
    seed_fetched,
)
from pipeline.stages.pairs import run_pairs
from pipeline.stages.plan import read_hosts, run_plan
from pipeline.stages.report import run_report
from pipeline.stages.searched import run_searched
from pipeline.stages.shards import run_shards, write_manifest
from pipeline.stages.takedown import Request, ask_for_refill, keep_request, log_takedown
from queries.allowlist import Allowlist

logger = logging.getLogger(__name__)

STAGE_OF_STEP = {
    "scored": "dedup",
    "filtered": "dedup",
    "evals": "dedup",
    "described": "dedup",
    "control": "dedup",
    "lookup": "dedup",
    "measured": "dedup",
    "listed": "shards",
    "manifest": "shards",
    "index": "report",
}
"""The stages of the steps that are not named after them."""


def run_build(
    project: Project | str | Path,
    options: PipelineOptions | Sequence[str] = (),
    *,
    to: str = STAGES[-1],
    refetch: bool = False,
    retry: Retry | None = None,
    progress: Progress | None = None,
    merge: Sequence[str] = (),
) -> Account:
    """Run the stages up to `to`, skipping finished work. Return the account, which closes.

    With `merge`, the pairs and images are those of other finished workspaces, not of the config's sources.

    `project` may be the path of a config, `options` a list such as ["--runner", "SparkRunner"]. `retry` names failures
    of an earlier fetch to request again.

    Raises:
        UserError: the build cannot continue, or its account does not close.
    """
    project = project if isinstance(project, Project) else Project.load(Path(project))
    options = options if isinstance(options, PipelineOptions) else parse_beam_options(options)
    check_paths(project, options)
    build = _build_of(project, options, progress)
    _check_inputs(project)
    if "fetched" in STAGES[: STAGES.index(to) + 1] and project.config.requests_images:
        project.config.fetch.check_contact()
    stages = STAGES[: STAGES.index(to) + 1]
    with build_lock(build.workspace), build.progress.kept_in(build.workspace, "wit build", stages, STAGE_OF_STEP):
        _run_and_mend(project, build, partial(_run_stages, project, build, stages, refetch, retry, merge))
        build.workspace.remove_temporary_files()
        account = read_account(build.workspace).up_to(to)
    problems = account.problems()
    if problems:
        raise UserError("the account does not close: " + "; ".join(problems))
    return account


def _build_of(project: Project, options: PipelineOptions, progress: Progress | None) -> Build:
    run = project.config.run
    return Build(project.workspace, options, progress or Progress(), run.min_free_bytes, run.memory_bytes)


def check_paths(project: Project, options: PipelineOptions) -> None:
    """Raise ConfigError where the machines of a runner cannot read a path, because it lies on this one."""
    if options.view_as(StandardOptions).runner != "DataflowRunner":
        return
    config = project.config
    named = [("workspace", config.workspace)]
    if len(config.allowlist.paths) == 1:  # several are merged into the workspace
        named.append(("allowlist.path", config.allowlist.paths[0]))
    named += [("sources.paths", path) for source in config.sources for path in source.paths]
    named += [("fetch.archives", path) for path in config.fetch.archives]
    named += [(f"evals.{evaluation.name}.path", evaluation.path) for evaluation in config.evals]
    for key, path in named:
        if "://" not in path or path.startswith("file://"):
            raise ConfigError(f"{key} = {path!r}: machines of Dataflow cannot read it; put it on gs://")


def _check_inputs(project: Project) -> None:
    """Check the inputs of later stages, so that a wrong path fails now and not after hours."""
    PairFilters.of(project.config.filters, project.base_dir)
    ImageFilters.of(project.config, project.base_dir)
    load_detector(project.config, project.base_dir)
    read_block_lists(find_all_lists(project.config.fetch.consent, project.base_dir, project.workspace))
    open_signer(project.config.fetch, project.base_dir)
    for evaluation in project.config.evals:
        path, kind = project.resolve(evaluation.path), evaluation.kind
        try:
            columns = {"label_column": evaluation.label, "caption_column": evaluation.caption}
            next(read_examples(kind, path, image_column=evaluation.image, **columns), None)
        except Exception as error:  # any error of a store: missing package, credentials or network
            raise ConfigError(f"evals: {evaluation.name}: {one_line(error)}") from None


def _run_and_mend(project: Project, build: Build, run: Callable[[], None]) -> None:
    """Run the stages; write damaged files again if that needs no request to the web."""
    mended = set[str]()
    while True:
        try:
            run()
            return
        except DamagedFileError as error:
            if error.file in mended:
                raise UserError(f"{error}, for the second time: check this machine's disk and memory") from error
            if error.file.startswith(("fetched/", ".wit/earlier/", ".wit/crawl/")) and project.config.fetch.network:
                raise UserError(
                    f"{error}. Its images must be requested from the web again: "
                    "`wit verify --discard -c CONFIG` deletes it, and the next build fetches them"
                ) from error
            if not withdraw(build.workspace, error.file):
                raise
            mended.add(error.file)
            logger.warning("%s; it is written again", error)


def _run_stages(
    project: Project,
    build: Build,
    stages: tuple[str, ...],
    refetch: bool,
    retry: Retry | None,
    merge: Sequence[str],
) -> None:
    config, base_dir = project.config, project.base_dir
    allowlist = project.load_allowlist()
    keys = QueryHashes(project.allowlist_path, config.seed)
    build.workspace.remove_temporary_files()
    if "fetched" in stages and not refetch:
        check_fetched(build.workspace, config, base_dir)

    others: list[Workspace] = []
    if merge:
        others = open_others(build.workspace, merge, as_json(recipe_of(project, allowlist)))
        keep_takedowns(build.workspace, others)
        pairs = run_merged_pairs(build, others)
    else:
        forget_merged(build.workspace)
        pairs = run_pairs(build, config, base_dir, allowlist, project.allowlist_path)
        if config.search and run_searched(build, config, pairs, allowlist.queries):
            pairs = run_pairs(build, config, base_dir, allowlist, project.allowlist_path)
    if "plan" not in stages:
        return
    plan = run_plan(build, config, allowlist, keys, pairs)
    for line in describe_bound(lower_bound(read_hosts(build.workspace), config.fetch), is_brief="fetched" in stages):
        build.progress.say(line)
    if "fetched" not in stages:
        return
    if others:
        seed_fetched(build.workspace, others, config, base_dir, plan)
    fetched = run_fetched(build, config, base_dir, plan, refetch, retry)
    if "dedup" not in stages:
        return
    filtered = run_filtered(build, config, base_dir, fetched)
    decided = run_dedup(build, config, base_dir, allowlist, keys, fetched, filtered)
    if "shards" not in stages:
        return
    _finish_set(project, build, allowlist, fetched, filtered, decided)
    if "report" in stages:
        run_index(build, pairs, fetched)
        run_report(build, config, allowlist)


def _finish_set(
    project: Project,
    build: Build,
    allowlist: Allowlist,
    fetched: Mapping[str, Marker],
    filtered: Mapping[str, Marker],
    decided: Marker,
) -> None:
    """Write the shards that are not up to date, without what is listed now, and the manifest."""
    config = project.config
    named = find_block_lists(config.fetch.consent, project.base_dir)
    withdrawn = run_listed(build, fetched, decided, named, find_takedowns(build.workspace))
    shards = run_shards(build, fetched, filtered, decided, withdrawn)
    numbers = {name: f"{number:05d}" for number, name in enumerate(fetched)}
    prune_annotations(
        build.workspace, {numbers[n]: left.file for n, left in withdrawn.items() if left.file is not None}
    )
    account = read_account(build.workspace)
    sources = read_merged_sources(build.workspace)
    recipe = recipe_of(project, allowlist) | ({} if sources is None else {"sources": sources})
    write_manifest(build, shards, account, recipe, code_version())


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value as it comes back from a JSON file."""
    return cast(dict[str, Any], json.loads(json.dumps(value)))


def recipe_of(project: Project, allowlist: Allowlist) -> dict[str, Any]:
    """Return the recipe of the manifest: what decides which pairs are in the set."""
    detector = load_detector(project.config, project.base_dir)
    hashes = {"allowlist_sha256": allowlist.sha256} | ({"detector_sha256": detector.sha256} if detector else {})
    return project.config.recipe() | hashes


@dataclass(frozen=True)
class Takedown:
    """What a takedown did to the set: the pairs that left, and the shards that were written again, of how many."""

    pairs: int
    shards: int
    of_shards: int


def run_takedown(
    project: Project,
    request: Request,
    options: PipelineOptions,
    progress: Progress | None = None,
    *,
    refill: bool = False,
) -> Takedown:
    """Take pairs out of a finished set, without a request to the web; only shards that change are written.

    With `refill`, the deduplication stage runs again without them: queries that fall below the cap get other pairs that
    were fetched for them. If it is killed, the next takedown or build completes it: the request is kept first.

    Raises:
        UserError: there is no finished set, or not of this config. The request is kept even so.
    """
    build = _build_of(project, options, progress)
    workspace = build.workspace
    stages = ("dedup", "shards", "report") if refill else ("shards", "report")
    with build_lock(workspace), build.progress.kept_in(workspace, "wit takedown", stages, STAGE_OF_STEP):
        keep_request(workspace, request)
        log_takedown(workspace, request, event="received")
        allowlist = project.load_allowlist()
        before = _shard_facts(workspace)
        fetched = _finished_inputs(project, workspace, allowlist, "fetched" if refill else "dedup")
        filtered = read_markers(workspace, "filtered")
        if refill:
            ask_for_refill(workspace)
            keys = QueryHashes(project.allowlist_path, project.config.seed)
            decided = run_dedup(build, project.config, project.base_dir, allowlist, keys, fetched, filtered)
        else:
            decided = cast(Marker, read_stage(workspace, "dedup"))
        _finish_set(project, build, allowlist, fetched, filtered, decided)
        run_report(build, project.config, allowlist)
        workspace.remove_temporary_files()
        account = read_account(workspace)
        after = _shard_facts(workspace)
        touched = sum(before.get(name) != facts for name, facts in after.items())
        pairs = sum(counts for counts, _ in before.values()) - sum(counts for counts, _ in after.values())
        log_takedown(workspace, request, event="done", pairs=pairs, shards=touched)
    if problems := account.problems():
        raise UserError("the account does not close: " + "; ".join(problems))
    return Takedown(pairs, touched, len(after))


def _shard_facts(workspace: Workspace) -> dict[str, tuple[int, str]]:
    """Return shard -> its samples and the digest of what it was made of."""
    return {name: (m.counts["kept"], m.digest) for name, m in read_markers(workspace, "shards").items()}


def _finished_inputs(
    project: Project, workspace: Workspace, allowlist: Allowlist, last_stage: str
) -> dict[str, Marker]:
    """Return the markers of fetched/ of a set that is finished up to a stage.

    Raises:
        UserError: it is not, or it was built with another config.
    """
    kept = "the request is kept, and `wit build` heeds it"
    account = read_account(workspace).up_to(last_stage)
    lines = [line.stage for line in account.stages]
    if account.problems() or ("balance" if last_stage == "dedup" else "fetched") not in lines:
        raise UserError(f"{workspace.root}: there is no finished dataset to take pairs out of; {kept}")
    if workspace.exists("shards/manifest.json"):
        manifest = read_manifest(f"{workspace.root}/shards")
        sources = read_merged_sources(workspace)
        recipe = recipe_of(project, allowlist) | ({} if sources is None else {"sources": sources})
        if manifest.content.get("recipe") != as_json(recipe):
            raise UserError(f"{workspace.root}: the config has changed since the dataset was built; {kept}")
    fetched = read_markers(workspace, "fetched")
    return {name: fetched[name] for name in sorted(fetched)}
