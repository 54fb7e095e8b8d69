"""Source 1: the words of Wikipedia that occur often, by count (CLIP section 2.2: "at least 100 times")."""

import pyarrow as pa
import pyarrow.compute as pc

from queries.list_files import CANDIDATES

ORIGIN = "unigram"
DEFAULT_MIN_COUNT = 100


def unigram_queries(counts: pa.Table, min_count: int = DEFAULT_MIN_COUNT) -> pa.Table:
    """Return words of COUNTS with `min_count` or more occurrences as CANDIDATES, best first; the score is the count."""
    frequent = counts.filter((pc.field("second") == "") & (pc.field("count") >= min_count))
    ranked = frequent.sort_by([("count", "descending"), ("first", "ascending")])
    columns = [ranked["first"], pa.repeat(ORIGIN, ranked.num_rows), ranked["count"].cast(pa.float64())]
    return pa.table(columns, schema=CANDIDATES)
