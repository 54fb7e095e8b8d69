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
from queries.redact import redact

_DEFAULT_PROJECT = "en.wikipedia"

_MIN_STORED_COUNT = 25
"""Counts of at least this many are stored, so that a list with other thresholds needs no new count."""

_TITLES_PER_ENTRY = 4
"""Titles stored per requested entry: some have the same normal form as another title or an entry of another source."""

_MIN_STORED_TITLES = _TITLES_PER_ENTRY * 500_000
"""At least this many titles are stored, so that a list of another size needs no new count."""


@dataclass(frozen=True)
class Inputs:
    """The files to build a list from; each kind is optional. `project`: default that of the dump."""

    dumps: tuple[str, ...] = ()
    page_views: tuple[str, ...] = ()
    wordnet: str | None = None
    project: str | None = None


def build_starter(size: int, wordnet_folder: str, out: str) -> dict[str, Any]:
    """Write a list from wordfreq and WordNet; return its manifest."""
    chosen, lacks = recipe.choose_starter(size, wordnet_folder)
    files = [{"kind": "package", "path": "wordfreq"}, {"kind": "wordnet", "path": redact(wordnet_folder)}]
    facts = {"source": files, "recipe": {"starter": True, "size": size}, "origins": chosen.report, "lacks": lacks}
    return write_allowlist(chosen.table, out, facts)


def build_allowlist(
    inputs: Inputs, wanted: Recipe, out: str, *, work: str, options: PipelineOptions, progress: Progress
) -> dict[str, Any]:
    """Write the list of a recipe; return its manifest. Counts are stored under `work`: run again to resume.

    Raises:
        ConfigError: there are no inputs.
        UserError: an input cannot be used.
    """
    candidates: dict[str, pa.Table] = {}
    facts: dict[str, Any] = {"source": _files(inputs), "recipe": asdict(wanted)}
    if not facts["source"]:
        raise ConfigError("no inputs for a list: set --dump, --pageviews or --wordnet, or use --starter")
    if inputs.wordnet is not None:
        candidates[wordnet.ORIGIN] = wordnet.wordnet_queries(inputs.wordnet)
    if inputs.dumps or inputs.page_views:
        site = find_site(inputs.dumps)
        project = inputs.project or (site.project if site else _DEFAULT_PROJECT)
        min_count = min(_MIN_STORED_COUNT, wanted.min_count, wanted.min_bigram_count)
        max_titles = max(_TITLES_PER_ENTRY * wanted.size, _MIN_STORED_TITLES)
        wiki = WikipediaInputs(inputs.dumps, inputs.page_views, project, site, min_count, max_titles)
        counted = count_wikipedia(Build(Workspace(work), options, progress), wiki)
        candidates |= _wikipedia_candidates(inputs, wanted, counted)
        facts |= {"project": project, "pages": dict(counted.pages), "words": counted.words}
    chosen, lacks = recipe.choose(wanted, candidates)
    lacks += _title_warnings(inputs, candidates)
    return write_allowlist(chosen.table, out, facts | {"origins": chosen.report, "lacks": lacks})


def _title_warnings(inputs: Inputs, candidates: Mapping[str, pa.Table]) -> list[str]:
    if not inputs.page_views:
        return []
    if not inputs.dumps:
        return ["a check of the titles against a dump: redirects and disambiguation pages may be among them (--dump)"]
    if candidates[titles.ORIGIN].num_rows == 0:
        return ["titles: no title of the page-view files is an article of the dump"]
    return []


def _files(inputs: Inputs) -> list[dict[str, str]]:
    kinds: list[tuple[str, Sequence[str]]] = [
        ("dump", inputs.dumps),
        ("pageviews", inputs.page_views),
        ("wordnet", [inputs.wordnet] if inputs.wordnet else []),
    ]
    return [{"kind": kind, "path": redact(path)} for kind, paths in kinds for path in paths]


def _wikipedia_candidates(inputs: Inputs, wanted: Recipe, counted: WikipediaCounts) -> dict[str, pa.Table]:
    candidates: dict[str, pa.Table] = {}
    if inputs.dumps:
        candidates[unigrams.ORIGIN] = unigrams.unigram_queries(counted.counts, wanted.min_count)
        candidates[bigrams.ORIGIN] = bigrams.bigram_queries(counted.counts, counted.words, wanted.min_bigram_count)
    if inputs.page_views:
        candidates[titles.ORIGIN] = titles.title_queries(counted.views, wanted.min_views)
    return candidates
