"""Frequent captions against a dictionary of sets, file by file and all together."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.frequency import CAPTION_USES, frequent_captions, needed_uses

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=60)
BUCKETS = 3


def uses(rows: list[tuple[int, int]]) -> pa.Table:
    captions, urls = np.array(rows, np.uint64).reshape(-1, 2).T
    return pa.table([captions, urls, (urls % np.uint64(BUCKETS)).astype(np.int32)], CAPTION_USES)


@given(st.lists(ROWS, max_size=4), st.integers(1, 5))
def test_what_files_send_is_enough_to_find_each_frequent_caption_and_where_it_is(files, limit: int) -> None:
    images, buckets = defaultdict(set), defaultdict(set)
    for caption, url in (row for file in files for row in file):
        images[caption].add(url)
        buckets[caption].add(url % BUCKETS)
    expected = {(c, b) for c, urls in images.items() if len(urls) > limit for b in buckets[c]}
    sent = pa.concat_tables([CAPTION_USES.empty_table(), *(needed_uses(uses(file), limit) for file in files)])
    assert needed_uses(sent, limit).num_rows <= sent.num_rows
    for rows in (sent, needed_uses(sent, limit)):
        found = frequent_captions(rows, limit).to_pylist()
        assert [(row["caption_hash"], row["bucket"]) for row in found] == sorted(expected)


def test_a_caption_of_a_million_images_is_few_rows() -> None:
    urls = np.random.default_rng(1).integers(0, 1 << 62, 1_000_000).astype(np.uint64)
    table = pa.table([np.zeros(len(urls), np.uint64), urls, (urls % np.uint64(64)).astype(np.int32)], CAPTION_USES)
    assert needed_uses(table, 10).num_rows <= 11 + 64
