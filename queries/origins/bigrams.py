"""Source 2: pairs of words that occur together in Wikipedia far more often than by chance, ranked by PMI.

The pointwise mutual information of a pair is log2(P(a b) / (P(a) P(b))) = log2(count(a b) N / (count(a) count(b))), N
being the number of words counted. It is high for "ping pong" and for names ("Buenos Aires"), near 0 for "of the".

Why a rank and not a threshold such as 30: a pair occurs at most as often as each of its words, so its PMI is at most
log2(N / count(a b)). To exceed 30 among the 3 * 10^9 words of English Wikipedia a pair must occur three times at most;
in a corpus of 10^8 words no pair can. A rank means the same in every corpus. Because names and typing errors seen once
or twice have the highest PMI, a pair must occur at least `min_count` times.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from queries.list_files import CANDIDATES

ORIGIN = "bigram"
DEFAULT_MIN_COUNT = 50


def bigram_queries(counts: pa.Table, words: int, min_count: int = DEFAULT_MIN_COUNT) -> pa.Table:
    """Return the bigrams of COUNTS with at least `min_count` occurrences and a PMI above 0 as CANDIDATES, best first.

    `words` is N. `counts` must have the counts of both words of each such pair.
    """
    is_word = pc.equal(counts["second"], "")
    unigrams = counts.filter(is_word)
    pairs = counts.filter(pc.and_(pc.invert(is_word), pc.greater_equal(counts["count"], min_count)))
    vocabulary = unigrams["first"].combine_chunks()
    count_of = unigrams["count"].to_numpy().astype(np.float64)
    first, second = (count_of[pc.index_in(pairs[side], vocabulary).to_numpy()] for side in ("first", "second"))

    # Ranked by the ratio, not its logarithm: every machine rounds products and quotients alike, but not logarithms.
    ratio = pairs["count"].to_numpy() * (float(words) / first) / second
    pairs = pairs.append_column("ratio", pa.array(ratio)).filter(pa.array(ratio > 1))
    ranked = pairs.sort_by(
        [("ratio", "descending"), ("count", "descending"), ("first", "ascending"), ("second", "ascending")]
    )
    scores = np.round(np.log2(ranked["ratio"].to_numpy()), 3)
    queries = pc.binary_join_element_wise(ranked["first"], ranked["second"], " ")
    return pa.table([queries, pa.repeat(ORIGIN, ranked.num_rows), scores], schema=CANDIDATES)
