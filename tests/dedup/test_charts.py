import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedup.charts import bars, bucket_label, cap_place, count_buckets, grid, round_ceiling


@given(st.lists(st.integers(0, 2**40)))
def test_buckets_are_the_powers_of_two(counts: list[int]) -> None:
    buckets = count_buckets(np.array(counts, np.int64))
    assert sum(buckets) == len(counts)
    for number, size in enumerate(buckets):
        assert size == sum(count.bit_length() == number for count in counts)


def test_buckets_are_named_by_their_ends() -> None:
    assert [bucket_label(b) for b in (0, 1, 2, 3, 11)] == ["0", "1", "2–3", "4–7", "1,024–2,047"]


SERIES = st.lists(st.lists(st.integers(0, 10**9), min_size=3, max_size=3), min_size=1, max_size=2)


@given(SERIES, st.booleans())
def test_bars_stay_inside_and_keep_the_order_of_values(series: list[list[int]], log: bool) -> None:
    drawn = bars(series, ["a", "b", "c"], 90, 40, log=log)
    assert sorted(bar.value for bar in drawn) == sorted(value for values in series for value in values if value)
    by_value = sorted(drawn, key=lambda bar: bar.value)
    assert [bar.height for bar in by_value] == sorted(bar.height for bar in drawn)
    for bar in drawn:
        assert bar.x >= 0
        assert bar.x + bar.width <= 90.1
        assert bar.y >= 0
        assert bar.y + bar.height == pytest.approx(40)
        assert bar.height > 0 or not log


@given(st.lists(st.integers(0, 10**9), min_size=1))
def test_grid_lines_lie_at_the_height_of_a_bar_of_that_value(values: list[int]) -> None:
    lines = grid([values], 100)
    assert [line.value for line in lines] == [10**n for n in range(len(str(max(values))))] if max(values) else not lines
    for line in lines:
        [bar] = bars([[line.value], [max(values)]], ["x"], 10, 100, log=True)[:1]
        assert bar.y == pytest.approx(line.y, abs=0.02)


def test_the_cap_lies_in_its_bucket() -> None:
    for cap in (1, 2, 3, 4, 1_000, 20_000, 2**20):
        place = cap_place(cap, 30, 30)
        assert cap.bit_length() <= place < cap.bit_length() + 1


def test_axes_end_at_round_shares() -> None:
    assert [round_ceiling(v) for v in (0, 0.01, 0.011, 0.215, 0.4, 0.7, 1)] == [0.01, 0.01, 0.02, 0.25, 0.5, 1, 1]
