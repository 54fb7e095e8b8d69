from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dedup.statistics import binomial_p_value, bonferroni, clopper_pearson, contamination, proportion, split_accuracy

COUNTS = st.integers(0, 60).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


def at_least(count: int, total: int, chance: float) -> float:
    """Sum the binomial distribution from `count` up, exactly."""
    p = Fraction(chance)
    return float(sum(comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(max(0, count), total + 1)))


@given(COUNTS, st.sampled_from([0.5, 0.95, 0.995]))
def test_the_interval_ends_where_the_tails_have_their_chance(counts: tuple[int, int], confidence: float) -> None:
    count, total = counts
    low, high = clopper_pearson(count, total, confidence)
    tail = (1 - confidence) / 2
    assert 0 <= low <= high <= 1
    assert low == 0 if count == 0 else at_least(count, total, low) == pytest.approx(tail, rel=1e-6)
    assert high == 1 if count == total else 1 - at_least(count + 1, total, high) == pytest.approx(tail, rel=1e-6)


@pytest.mark.parametrize(("count", "total"), [(0, 10_000), (1, 10_000), (215, 1_000), (8_041, 8_041)])
def test_the_interval_is_scipys(count: int, total: int) -> None:
    expected = stats.binomtest(count, total).proportion_ci(0.995, method="exact")
    assert clopper_pearson(count, total, 0.995) == pytest.approx((expected.low, expected.high))


@given(COUNTS, st.floats(0, 1))
def test_the_p_value_is_the_sum_of_the_tail(counts: tuple[int, int], null: float) -> None:
    assert binomial_p_value(*counts, null) == pytest.approx(at_least(*counts, null), abs=1e-9)


def test_the_p_value_is_one_tailed() -> None:
    expected = stats.binomtest(60, 100, 0.5, alternative="greater").pvalue
    assert binomial_p_value(60, 100, 0.5) == pytest.approx(expected)
    assert binomial_p_value(40, 100, 0.5) > 0.95


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_the_split_adds_up(examples: list[tuple[bool, bool]]) -> None:
    correct, overlap = np.array(examples, bool).reshape(-1, 2).T
    split = split_accuracy(correct, overlap)
    found = [right for right, is_found in examples if is_found]
    clean = [right for right, is_found in examples if not is_found]
    assert (split.overlap.count, split.overlap.total) == (sum(found), len(found))
    assert (split.clean.count, split.clean.total) == (sum(clean), len(clean))
    assert (split.all.count, split.all.total) == (sum(found) + sum(clean), len(examples))
    if found and clean:
        share = len(found) / len(examples)
        assert split.advantage is not None
        assert split.inflation == pytest.approx(share * split.advantage)
        assert split.p_value == pytest.approx(at_least(sum(found), len(found), sum(clean) / len(clean)), abs=1e-9)
    else:
        assert split.advantage is None
        assert split.p_value == 1
    assert (split.inflation is None) == (not clean)


def test_each_number_has_the_confidence_it_states() -> None:
    split = split_accuracy(np.array([True, False]), np.array([True, False]))
    assert {p.confidence for p in (split.all, split.clean, split.overlap)} == {0.995}
    assert contamination(3, 50).confidence == 0.95
    assert (contamination(3, 50).low, contamination(3, 50).high) == clopper_pearson(3, 50, 0.95)
    assert contamination(3, 50).value == 0.06


def test_nothing_measured_is_no_zero() -> None:
    nothing = proportion(0, 0, 0.95)
    assert nothing.value is None
    assert (nothing.low, nothing.high) == (0, 1)


def test_bonferroni_counts_the_sets() -> None:
    assert [bonferroni(p, 3) for p in (0.001, 0.01, 0.5)] == pytest.approx([0.003, 0.03, 1])
    # The threshold the paper's 35 sets come to: 0.05 / 35 = 0.00143.
    assert bonferroni(0.0014, 35) < 0.05 < bonferroni(0.0015, 35)


@pytest.mark.parametrize(("count", "total", "confidence"), [(2, 1, 0.95), (-1, 1, 0.95), (1, 2, 95), (1, 2, 0)])
def test_impossible_numbers_are_refused(count: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"count must be in|between 0 and 1"):
        clopper_pearson(count, total, confidence)


def test_arrays_of_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="two bool arrays"):
        split_accuracy(np.ones(3, bool), np.ones(2, bool))
    with pytest.raises(ValueError, match="two bool arrays"):
        split_accuracy(np.ones(3), np.ones(3, bool))
