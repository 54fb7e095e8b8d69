"""`wit build`: run the stages in order; each reads the files of the one before."""

import logging
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions

from dedup.eval_sets.read import read_examples
from pipeline.account import Account, read_account
from pipeline.beam.options import parse_beam_options
from pipeline.engine.lock import build_lock
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import withdraw
from pipeline.errors import ConfigError, DamagedFileError, UserError, one_line
from pipeline.fetching.block_files import find_block_lists, read_block_lists
from pipeline.fetching.lower_bound import describe_bound, lower_bound
from pipeline.fetching.retry import Retry
from pipeline.filters.pairs import PairFilters
from pipeline.project import STAGES, Project, code_version
from pipeline.stages.balance.scans import QueryHashes
from pipeline.stages.dedup.steps import run_dedup
from pipeline.stages.described import load_detector
from pipeline.stages.fetched import check_fetched, run_fetched
from pipeline.stages.filtered import ImageFilters, run_filtered
from pipeline.stages.pairs import run_pairs
from pipeline.stages.plan import read_hosts, run_plan
from pipeline.stages.report import run_report
from pipeline.stages.searched import run_searched
from pipeline.stages.shards import run_shards, write_manifest

logger = logging.getLogger(__name__)


def run_build(
    project: Project | str | Path,
    options: PipelineOptions | Sequence[str] = (),
    *,
    to: str = STAGES[-1],
    refetch: bool = False,
    retry: Retry | None = None,
    progress: Progress | None = None,
) -> Account:
    """Run the stages up to `to`, skipping finished work. Return the account, which closes.

    `project` may be the path of a config, `options` a list such as ["--runner", "SparkRunner"]. `retry` names failures
    of an earlier fetch to request again.

    Raises:
        UserError: the build cannot continue, or its account does not close.
    """
    project = project if isinstance(project, Project) else Project.load(Path(project))
    options = options if isinstance(options, PipelineOptions) else parse_beam_options(options)
    build = Build(project.workspace, options, progress or Progress())
    _check_inputs(project)
    if "fetched" in STAGES[: STAGES.index(to) + 1] and project.config.requests_images:
        project.config.fetch.check_contact()
    with build_lock(build.workspace):
        _run_and_mend(project, build, STAGES[: STAGES.index(to) + 1], refetch, retry)
        build.workspace.remove_temporary_files()
        account = read_account(build.workspace).up_to(to)
    problems = account.problems()
    if problems:
        raise UserError("the account does not close: " + "; ".join(problems))
    return account


def _check_inputs(project: Project) -> None:
    """Check the inputs of later stages, so that a wrong path fails now and not after hours."""
    PairFilters.of(project.config.filters, project.base_dir)
    ImageFilters.of(project.config, project.base_dir)
    load_detector(project.config, project.base_dir)
    read_block_lists(find_block_lists(project.config.fetch.consent, project.base_dir))
    for evaluation in project.config.evals:
        path, kind = project.resolve(evaluation.path), evaluation.kind
        try:
            next(read_examples(kind, path, image_column=evaluation.image, label_column=evaluation.label), None)
        except Exception as error:  # any error of a store: missing package, credentials or network
            raise ConfigError(f"evals: {evaluation.name}: {one_line(error)}") from None


def _run_and_mend(project: Project, build: Build, stages: tuple[str, ...], refetch: bool, retry: Retry | None) -> None:
    """Run the stages; write damaged files again if that needs no request to the web."""
    mended = set[str]()
    while True:
        try:
            _run_stages(project, build, stages, refetch, retry)
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


def _run_stages(project: Project, build: Build, stages: tuple[str, ...], refetch: bool, retry: Retry | None) -> None:
    config, base_dir = project.config, project.base_dir
    allowlist = project.load_allowlist()
    keys = QueryHashes(project.allowlist_path, config.seed)
    build.workspace.remove_temporary_files()
    if "fetched" in stages and not refetch:
        check_fetched(build.workspace, config, base_dir)

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
    fetched = run_fetched(build, config, base_dir, plan, refetch, retry)
    if "dedup" not in stages:
        return
    filtered = run_filtered(build, config, base_dir, fetched)
    decided = run_dedup(build, config, base_dir, allowlist, keys, fetched, filtered)
    if "shards" not in stages:
        return
    shards = run_shards(build, fetched, filtered, decided, find_block_lists(config.fetch.consent, base_dir))
    account = read_account(build.workspace)
    detector = load_detector(config, base_dir)
    hashes = {"allowlist_sha256": allowlist.sha256} | ({"detector_sha256": detector.sha256} if detector else {})
    write_manifest(build, shards, account, config.recipe() | hashes, code_version())
    if "report" in stages:
        run_report(build, config, allowlist)
