"""`wit queries build`: count Wikipedia on Beam, choose a list by the recipe, write it with its manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.allowlist.count import WikipediaCounts, WikipediaInputs, count_wikipedia, find_site
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError
from queries import recipe
from queries.allowlist import write_allowlist
from queries.origins import bigrams, titles, unigrams, wordnet
from queries.recipe import Recipe

_DEFAULT_PROJECT = "en.wikipedia"

_LEAST_COUNT = 25
"""Counts from here on are kept, so that a list with other thresholds needs no new count."""

_TITLES_PER_ENTRY = 4
"""Titles kept for each entry asked for: some share a normal form with each other or with entries of other sources."""

_MOST_TITLES = _TITLES_PER_ENTRY * 500_000
"""Titles are kept as if for so long a list at least, so that a list of another size needs no new count."""


@dataclass(frozen=True)
class Inputs:
    """The files to build a list from; each kind may be missing. `project` None: that of the dump."""

    dumps: tuple[str, ...] = ()
    page_views: tuple[str, ...] = ()
    wordnet: str | None = None
    project: str | None = None


def build_starter(size: int, wordnet_folder: str, out: str) -> dict[str, Any]:
    """Write a list from wordfreq and WordNet; return its manifest."""
    chosen, lacks = recipe.choose_starter(size, wordnet_folder)
    files = [{"kind": "package", "path": "wordfreq"}, {"kind": "wordnet", "path": wordnet_folder}]
    facts = {"source": files, "recipe": {"starter": True, "size": size}, "origins": chosen.report, "lacks": lacks}
    return write_allowlist(chosen.table, out, facts)


def build_allowlist(
    inputs: Inputs, asked: Recipe, out: str, *, work: str, options: PipelineOptions, progress: Progress
) -> dict[str, Any]:
    """Write the list of a recipe; return its manifest. Counts are kept under `work`: run again to resume.

    Raises:
        ConfigError: there is nothing to build from.
        UserError: an input cannot be used.
    """
    candidates: dict[str, pa.Table] = {}
    facts: dict[str, Any] = {"source": _files(inputs), "recipe": asdict(asked)}
    if not facts["source"]:
        raise ConfigError("nothing to build a list from: give --dump, --pageviews or --wordnet, or use --starter")
    if inputs.wordnet is not None:
        candidates[wordnet.ORIGIN] = wordnet.wordnet_queries(inputs.wordnet)
    if inputs.dumps or inputs.page_views:
        site = find_site(inputs.dumps)
        project = inputs.project or (site.project if site else _DEFAULT_PROJECT)
        least = min(_LEAST_COUNT, asked.min_count, asked.min_bigram_count)
        most_titles = max(_TITLES_PER_ENTRY * asked.size, _MOST_TITLES)
        wiki = WikipediaInputs(inputs.dumps, inputs.page_views, project, site, least, most_titles)
        counted = count_wikipedia(Build(Workspace(work), options, progress), wiki)
        candidates |= _wikipedia_candidates(inputs, asked, counted)
        facts |= {"project": project, "pages": dict(counted.pages), "words": counted.words}
    chosen, lacks = recipe.choose(asked, candidates)
    lacks += _doubts_about_titles(inputs, candidates)
    return write_allowlist(chosen.table, out, facts | {"origins": chosen.report, "lacks": lacks})


def _doubts_about_titles(inputs: Inputs, candidates: Mapping[str, pa.Table]) -> list[str]:
    if not inputs.page_views:
        return []
    if not inputs.dumps:
        return ["a check of the titles against a dump: redirects and disambiguation pages may be among them (--dump)"]
    if candidates[titles.ORIGIN].num_rows == 0:
        return ["titles: none that the page-view files have is an article of the dump"]
    return []


def _files(inputs: Inputs) -> list[dict[str, str]]:
    kinds: list[tuple[str, Sequence[str]]] = [
        ("dump", inputs.dumps),
        ("pageviews", inputs.page_views),
        ("wordnet", [inputs.wordnet] if inputs.wordnet else []),
    ]
    return [{"kind": kind, "path": path} for kind, paths in kinds for path in paths]


def _wikipedia_candidates(inputs: Inputs, asked: Recipe, counted: WikipediaCounts) -> dict[str, pa.Table]:
    found: dict[str, pa.Table] = {}
    if inputs.dumps:
        found[unigrams.ORIGIN] = unigrams.unigram_queries(counted.counts, asked.min_count)
        found[bigrams.ORIGIN] = bigrams.bigram_queries(counted.counts, counted.words, asked.min_bigram_count)
    if inputs.page_views:
        found[titles.ORIGIN] = titles.title_queries(counted.views, asked.min_views)
    return found
