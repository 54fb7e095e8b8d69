import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from queries.int_table import IntTable

KEYS = st.one_of(st.integers(0, 40), st.integers(0, 2**63 - 1), st.integers(0, 60).map(lambda n: n << 32))


@given(st.dictionaries(KEYS, st.integers(0, 2**31 - 1), max_size=60), st.lists(KEYS, max_size=60))
def test_a_table_finds_what_a_dict_finds(stored: dict[int, int], asked: list[int]) -> None:
    table = IntTable(np.array(list(stored), dtype=np.int64), np.array(list(stored.values()), dtype=np.int32))
    asked += list(stored)
    found = table.find(np.array(asked, dtype=np.int64))
    assert found.tolist() == [stored.get(key, -1) for key in asked]


def test_a_large_table_of_consecutive_keys() -> None:
    keys = np.arange(0, 300_000, 3, dtype=np.int64)
    table = IntTable(keys, np.arange(100_000, dtype=np.int32))
    assert (table.find(keys) == np.arange(100_000)).all()
    assert (table.find(keys + 1) == -1).all()
