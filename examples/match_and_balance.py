"""Match the captions of a table against queries, and keep at most `cap` pairs of each query.

python examples/match_and_balance.py
"""

import pyarrow as pa

from pipeline import balance
from queries import QueryMatcher, normalize

QUERIES = ["dog", "red house", "boat"]
CAP = 2

pairs = pa.table(
    {
        "url": [f"http://images.example/{number}.jpg" for number in range(6)],
        "caption": ["A dog", "Dogs", "My dog at the red house", "DOG!", "A red-house", "a boat"],
    }
)
matcher = QueryMatcher(QUERIES)
pairs = pairs.append_column("query_ids", matcher.match(pairs["caption"]))

kept = balance(pairs, cap=CAP, seed=7, queries=QUERIES)

for row in kept.to_pylist():
    print(f"{normalize(row['caption'])!r:26} selected by {[QUERIES[query] for query in row['selected_by']]}")
print(f"{kept.num_rows} of {pairs.num_rows} pairs kept")
