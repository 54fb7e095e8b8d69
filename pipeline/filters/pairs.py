"""The filters of `pairs/`: conditions on one pair at a time, applied to the pairs that a query matches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.filters import FiltersConfig
from pipeline.engine.units import digest
from pipeline.errors import ConfigError, one_line
from pipeline.filters.hosts import HostEntryError, HostRules, host_reasons
from pipeline.filters.python_rules import Rule, load_rule, rule_reasons, rule_version
from pipeline.filters.text import REASON, text_reasons
from pipeline.paths import expand_paths
from pipeline.records import Reason
from pipeline.sources.language import LANGUAGE_PROBABILITY, UNDETERMINED, identify_languages


@dataclass(frozen=True)
class PairFilters:
    """What a worker needs to filter pairs; it pickles. `version` is "" where no filter is on."""

    config: FiltersConfig
    base_dir: str
    allow: HostRules
    block: HostRules
    version: str

    @classmethod
    def of(cls, config: FiltersConfig, base_dir: Path) -> "PairFilters":
        """Read the lists of hosts and find the Python filters.

        Raises:
            ConfigError: a list cannot be read, an entry is not a host, or there is no such function.
        """
        allow = _rules("allow", config.allow_hosts, config.allow_host_files, base_dir)
        block = _rules("block", config.block_hosts, config.block_host_files, base_dir)
        rules = [rule_version(call, str(base_dir)) for call in config.python_on("pairs")]
        hosts = [sorted(names) for rule in (allow, block) for names in (rule.at_and_below, rule.below)]
        decides = [config.of_pairs(), hosts if allow or block else [], rules]
        return cls(config, str(base_dir), allow, block, digest(decides) if any(decides) else "")

    def open(self) -> "OpenPairFilters":
        """Import the Python filters, in the process that uses them."""
        calls = self.config.python_on("pairs")
        return OpenPairFilters(self, tuple((load_rule(call, self.base_dir), call) for call in calls))


@dataclass(frozen=True)
class OpenPairFilters:
    """Pair filters in a worker."""

    filters: PairFilters
    rules: Sequence[tuple[Rule, str]] = ()

    def reasons(self, candidates: pa.RecordBatch) -> np.ndarray:
        """Return why candidates are dropped for their host or text, (n,) REASON, "" where they pass."""
        reasons = np.full(candidates.num_rows, "", REASON)
        if not self.filters.version:
            return reasons
        not_allowed, blocked = host_reasons(
            candidates.column("url"), candidates.column("page_url"), self.filters.allow, self.filters.block
        )
        reasons[not_allowed] = Reason.HOST_NOT_ALLOWED
        reasons[blocked] = Reason.BLOCKED_HOST
        by_text = text_reasons(candidates.column("caption"), self.filters.config)
        return np.where(reasons == "", by_text, reasons)

    def languages(self, captions: pa.StringArray) -> tuple[pa.StringArray, pa.StringArray]:
        """Return the language of each caption for the column `language`, and for the filter, which may be stricter."""
        return identify_twice(captions, self.filters.config.min_language_probability)

    def pair_reasons(self, pairs: pa.RecordBatch, languages: pa.StringArray) -> np.ndarray:
        """Return why pairs are dropped for their language or by a Python filter, (n,) REASON."""
        reasons = np.full(pairs.num_rows, "", REASON)
        if wanted := self.filters.config.languages:
            is_wanted = pc.is_in(languages, pa.array(wanted, pa.string()))
            reasons[~np.asarray(is_wanted.to_numpy(zero_copy_only=False))] = Reason.LANGUAGE
        for rule, call in self.rules:
            left = np.flatnonzero(reasons == "")
            reasons[left] = rule_reasons(rule, call, [pairs.take(pa.array(left))])
        return reasons


def identify_twice(captions: pa.StringArray, min_probability: float) -> tuple[pa.StringArray, pa.StringArray]:
    """Return languages that are at least LANGUAGE_PROBABILITY sure, and those that are `min_probability` sure.

    What is sure enough for the second has the same code in the first, so only the rest is looked at again.
    """
    sure = identify_languages(captions, min_probability)
    if min_probability == LANGUAGE_PROBABILITY:
        return sure, sure
    is_open = pc.equal(sure, UNDETERMINED)
    return pc.replace_with_mask(sure, is_open, identify_languages(captions.filter(is_open))), sure


def _rules(which: str, entries: Sequence[str], files: Sequence[str], base_dir: Path) -> HostRules:
    found = _parse(f"filters.{which}_hosts", entries)
    for path in expand_paths(files, base_dir, f"filters.{which}_host_files"):
        try:
            with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as file:
                more = _parse(f"filters.{which}_host_files: {path}", file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"filters.{which}_host_files: {path}: {one_line(error)}") from None
        found = HostRules(found.at_and_below | more.at_and_below, found.below | more.below)
    return found


def _parse(key: str, entries: Sequence[str]) -> HostRules:
    try:
        return HostRules.parse(entries)
    except HostEntryError as error:
        raise ConfigError(f"{key}: {error}") from None
