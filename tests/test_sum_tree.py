"""The sum tree against plain lists, exact sums and the distribution it is meant to draw from."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_dqn.experience.sum_tree import SumTree

CAPACITIES = [1, 5, 31, 32, 33, 1024, 1025, 5000]  # on both sides of a block of 32 and of a group of 1,024
LAST = np.nextafter(1.0, 0.0)  # the largest fraction there is


def rng(seed=0):
    return np.random.default_rng(seed)


def tree_of(priorities, capacity=None):
    tree = SumTree(len(priorities) if capacity is None else capacity)
    tree.restore(np.asarray(priorities, np.float64))
    return tree


def levels(tree):
    """Copies of items, blocks and groups, flat."""
    return [level.copy().reshape(-1) for level in (tree._items, tree._blocks, tree._groups)]


def assert_sums_are_those_of_the_items(tree):
    items, blocks, groups = levels(tree)
    assert not items[tree.capacity :].any(), "something stands behind the last item"
    # block by block, as if each were the only one that changed
    again = [float(np.einsum("i->", block)) for block in items.reshape(-1, 32)]
    assert blocks.tolist() == again
    assert groups.tolist() == [float(np.einsum("i->", group)) for group in blocks.reshape(-1, 32)]
    assert tree.total == pytest.approx(math.fsum(items), rel=1e-14)


def naive_fill(priorities, start, count, priority):
    for offset in range(count):
        priorities[(start + offset) % len(priorities)] = priority


def naive_draw(priorities, point):
    """The item whose part of the line from 0 to the total a point falls into, in exact arithmetic."""
    below = Fraction(0)
    for item, priority in enumerate(priorities):
        below += Fraction(priority)
        if point < below:
            return item
    return max(item for item, priority in enumerate(priorities) if priority > 0)


def edges_of(priorities):
    """0, the largest fraction, every prefix sum as a fraction of the total, and what lies next to each of them."""
    sums = np.cumsum(priorities, dtype=np.float64)
    edges = np.concatenate([[0.0, LAST], sums / sums[-1]])
    edges = np.concatenate([edges, np.nextafter(edges, -1), np.nextafter(edges, 2)])
    return np.unique(np.clip(edges, 0.0, LAST))


def chi_square_p(counts, probabilities):
    """Probability of a chi-square at least this large (Wilson and Hilferty's approximation)."""
    expected = counts.sum() * probabilities
    assert expected.min() >= 5, "too few draws for a chi-square"
    degrees = len(counts) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    z = ((statistic / degrees) ** (1 / 3) - 1 + 2 / (9 * degrees)) / math.sqrt(2 / (9 * degrees))
    return math.erfc(z / math.sqrt(2)) / 2


# -- priorities and their sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_any_updates_and_fills_leave_what_they_would_leave_in_a_list(capacity):
    tree, naive, random = SumTree(capacity), [0.0] * capacity, rng(capacity)
    for _ in range(120):
        if random.random() < 0.4:
            start, count = int(random.integers(capacity)), int(random.integers(capacity + 1))
            priority = float(random.choice([0.0, random.random(), random.integers(1, 1000)]))
            tree.fill(start, count, priority)
            naive_fill(naive, start, count, priority)
        else:
            size = int(random.integers(1, 2 * capacity + 1)) if capacity < 100 else int(random.integers(1, 600))
            items = random.integers(capacity, size=size)
            priorities = random.random(size) ** -random.choice([0.5, 2.0])
            tree.update(items, priorities)
            for item, priority in zip(items.tolist(), priorities.tolist(), strict=True):
                naive[item] = priority
        assert tree.priorities.tolist() == naive
        assert_sums_are_those_of_the_items(tree)


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_whole_numbers_add_up_exactly(capacity):
    tree, naive, random = SumTree(capacity), [0] * capacity, rng(capacity)
    for _ in range(50):
        items = random.integers(capacity, size=int(random.integers(1, 100)))
        priorities = random.integers(2**20, size=len(items))
        tree.update(items, priorities.astype(np.float64))
        for item, priority in zip(items.tolist(), priorities.tolist(), strict=True):
            naive[item] = priority
        assert tree.total == sum(naive)
    _, blocks, groups = levels(tree)
    padded = naive + [0] * (len(blocks) * 32 - capacity)
    assert blocks.tolist() == [sum(padded[first : first + 32]) for first in range(0, len(padded), 32)]
    assert groups.tolist() == [sum(padded[first : first + 1024]) for first in range(0, len(padded), 1024)]


@pytest.mark.parametrize("capacity", [1, 2, 5, 31, 32, 33])
def test_a_fill_goes_on_at_the_start_after_the_last_item(capacity):
    for start in range(capacity):
        for count in range(capacity + 1):
            tree, naive = tree_of(np.arange(1.0, capacity + 1)), [float(item + 1) for item in range(capacity)]
            tree.fill(start, count, 0.5)
            naive_fill(naive, start, count, 0.5)
            assert tree.priorities.tolist() == naive
            assert tree.total == sum(naive)


@pytest.mark.parametrize("start", [0, 1, 31, 32, 1000, 1023, 1024, 2047, 2048, 2049])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 1023, 1024, 1025, 2050])
def test_a_fill_that_crosses_blocks_and_groups_keeps_their_sums(start, count):
    tree, naive = tree_of(np.arange(1.0, 2051)), [float(item + 1) for item in range(2050)]
    tree.fill(start, count, 0.3)
    naive_fill(naive, start, count, 0.3)
    assert tree.priorities.tolist() == naive
    assert_sums_are_those_of_the_items(tree)


def test_a_priority_given_twice_counts_once():
    tree = SumTree(4)
    tree.update(np.array([1, 1, 1, 2, 2]), np.array([3.0, 3.0, 3.0, 4.0, 4.0]))
    assert tree.priorities.tolist() == [0, 3, 4, 0]
    assert tree.total == 7


@pytest.mark.parametrize("size", [2, 33, 5000])
def test_of_different_priorities_for_one_item_the_last_counts(size):
    tree = tree_of(np.ones(100))
    tree.update(np.full(size, 40), np.arange(1.0, size + 1))
    assert tree.priorities[40] == size
    assert tree.total == 99 + size


def test_setting_the_same_priority_again_changes_nothing():
    tree = tree_of(rng().random(2000))
    before = levels(tree)
    for _ in range(3):
        items = rng(1).integers(2000, size=500)
        tree.update(items, tree.priorities[items])
    assert all((now == then).all() for now, then in zip(levels(tree), before, strict=True))


def test_no_update_at_all_is_none():
    tree = tree_of([1.0, 2.0])
    tree.update(np.zeros(0, np.int64), np.zeros(0))
    tree.fill(1, 0, 9.0)
    assert tree.priorities.tolist() == [1, 2]
    assert tree.total == 3


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_restored_tree_has_the_same_sums_to_the_last_bit(capacity, threads):
    tree, random = SumTree(capacity), rng(capacity)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in [1, 2, 3, 7, 32, 100, 1000] * 3:
            tree.update(random.integers(capacity, size=size), random.random(size) ** -3)
        tree.fill(capacity // 2, 1, 0.1)
        restored = tree_of(tree.priorities.copy(), capacity)
        assert all((now == then).all() for now, then in zip(levels(restored), levels(tree), strict=True))
        assert restored.total == tree.total
        fractions = random.random(500)
        assert (restored.sample(fractions)[0] == tree.sample(fractions)[0]).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "capacity"), [(0, 5), (3, 5), (5, 5), (1024, 1024), (1500, 2000)])
def test_restoring_forgets_what_was_there_and_shares_nothing(count, capacity):
    tree, saved = tree_of(np.full(capacity, 7.0)), rng().random(count)
    kept = saved.copy()
    tree.restore(saved)
    saved[:] = -1
    assert tree.priorities.tolist() == [*kept.tolist(), *[0.0] * (capacity - count)]
    assert_sums_are_those_of_the_items(tree)


@pytest.mark.parametrize("capacity", [*CAPACITIES, 100_000])
def test_a_tree_takes_the_memory_that_was_foretold(capacity):
    arrays = [value for value in vars(SumTree(capacity)).values() if isinstance(value, np.ndarray)]
    assert SumTree.num_bytes(capacity) == sum(array.nbytes for array in arrays)
    assert sum(array.size for array in arrays) >= capacity


def drift_after(batches, capacity=20_000, size=1000):
    """Relative error of the total after many updates between 1e-3 and 1e6, none of them undone."""
    tree, random = SumTree(capacity), rng()
    for _ in range(batches):
        tree.update(random.integers(capacity, size=size), 10.0 ** random.uniform(-3, 6, size=size))
    # what is left is small, beside everything that has come and gone
    for first in range(0, capacity, size):
        tree.update(np.arange(first, min(first + size, capacity)), random.uniform(1e-4, 1e-3, size=size))
    exact = math.fsum(tree.priorities)
    assert_sums_are_those_of_the_items(tree)
    return abs(tree.total - exact) / exact


def test_ten_million_updates_leave_no_error_in_the_total():
    assert drift_after(10_000) < 1e-13


# -- draws -------------------------------------------------------------------------------------------------------------


def assert_can_be_drawn(tree, items, drawn):
    assert ((items >= 0) & (items < tree.capacity)).all()
    assert (drawn == tree.priorities[items]).all()
    assert (drawn > 0).all(), "an item of priority 0 was drawn"


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_draws_at_the_edges_between_items_are_exact(capacity, share):
    # whole numbers that add up to a power of 2, so that neither a sum nor a fraction of the total is rounded
    random = rng(capacity)
    priorities = random.integers(1, 9, size=capacity) * (random.random(capacity) < share)
    priorities[random.integers(capacity)] += 2**17 - priorities.sum()
    tree, sums, fractions = tree_of(priorities), priorities.cumsum(), edges_of(priorities)
    assert tree.total == 2**17
    items, drawn = tree.sample(fractions)
    assert_can_be_drawn(tree, items, drawn)
    points = fractions * 2**17
    assert (points < sums[items]).all()
    assert (points >= sums[items] - priorities[items]).all()


@pytest.mark.parametrize("capacity", [1, 5, 33, 1025])
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_draws_are_those_of_exact_arithmetic_but_for_rounding(capacity, scale):
    random = rng(capacity)
    priorities = scale * random.random(capacity) ** 3
    fractions = np.concatenate([[0.0, LAST], random.random(30)])
    items, drawn = (tree := tree_of(priorities)).sample(fractions)
    assert_can_be_drawn(tree, items, drawn)
    total, rounding = sum(map(Fraction, priorities.tolist())), Fraction(1, 2**50)
    for item, fraction in zip(items.tolist(), map(Fraction, fractions.tolist()), strict=True):
        lowest, highest = (naive_draw(priorities.tolist(), (fraction + way * rounding) * total) for way in (-1, 1))
        assert lowest <= item <= highest


@pytest.mark.parametrize("seed", range(20))
def test_what_has_priority_zero_is_never_drawn_whatever_the_rounding(seed):
    random = rng(seed)
    for capacity in CAPACITIES:
        share, spread = random.choice([0.002, 0.05, 0.5]), random.choice([0, 3, 8])
        priorities = 10.0 ** random.uniform(-spread, spread, size=capacity) * random.random(capacity)
        priorities[random.random(capacity) >= share] = 0
        priorities[random.integers(capacity)] = 0.1
        tree = tree_of(priorities)
        fractions = np.concatenate([edges_of(priorities), random.random(1000)])
        items, drawn = tree.sample(fractions)
        assert_can_be_drawn(tree, items, drawn)
        # what is drawn instead is what lies next to it
        above, points = priorities.cumsum()[items], fractions * priorities.sum()
        rounding = 1e-13 * priorities.sum()
        assert (points < above + rounding).all()
        assert (points >= above - drawn - rounding).all()
        first, last = np.flatnonzero(priorities)[[0, -1]]
        assert tree.sample(np.array([0.0]))[0] == first
        # the last item may be too small to be found between the largest fraction and 1
        assert first <= tree.sample(np.array([LAST]))[0] <= last


@pytest.mark.parametrize("filled", [1, 2, 31, 32, 33, 1023, 1024, 1025, 3000, 4999])
@pytest.mark.parametrize("priority", [0.1, 1 / 3, 1e-300, 1e300])
def test_what_was_never_filled_is_never_drawn(filled, priority):
    tree = SumTree(5000)
    tree.fill(0, filled, priority)
    items, drawn = tree.sample(np.concatenate([edges_of(np.full(filled, priority)), rng().random(2000)]))
    assert_can_be_drawn(tree, items, drawn)
    assert items.max() == tree.sample(np.array([LAST]))[0] == filled - 1
    assert items.min() == 0


@pytest.mark.parametrize("item", [0, 31, 32, 1023, 1024, 4999])
def test_a_single_item_is_all_there_is_to_draw(item):
    tree = SumTree(5000)
    tree.update(np.array([item]), np.array([0.7]))
    items, drawn = tree.sample(np.array([0.0, np.nextafter(0.0, 1.0), 0.5, LAST]))
    assert items.tolist() == [item] * 4
    assert drawn.tolist() == [0.7] * 4


@pytest.mark.parametrize("capacity", [1, 33, 5000])
def test_nothing_can_be_drawn_where_every_priority_is_zero(capacity):
    tree = SumTree(capacity)
    with pytest.raises(ValueError, match="every priority is 0"):
        tree.sample(np.array([0.0]))
    tree.fill(0, capacity, 0.1)
    assert_can_be_drawn(tree, *tree.sample(rng().random(10)))
    # and nothing is left over of what was there
    tree.update(np.arange(capacity), np.zeros(capacity))
    assert tree.total == 0
    with pytest.raises(ValueError, match="every priority is 0"):
        tree.sample(np.array([0.5]))


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_priorities_from_1e_minus_300_to_1e300_can_stand_side_by_side(capacity):
    random = rng(capacity)
    priorities = 10.0 ** random.uniform(-300, 300, size=capacity)
    tree = tree_of(priorities)
    fractions = np.concatenate([edges_of(priorities), random.random(2000)])
    items, drawn = tree.sample(fractions)
    assert_can_be_drawn(tree, items, drawn)
    assert_sums_are_those_of_the_items(tree)
    # the hundred largest span twelve orders of magnitude, and the rest is nothing beside them
    # the hundred largest span many orders of magnitude, and all the others are nothing beside them
    largest = np.argsort(priorities)[-100:]
    assert np.isin(tree.sample(random.random(2000))[0], largest).all()


@pytest.mark.parametrize("where", [0, 40, 1023, 1024, 2999])
def test_many_tiny_items_beside_a_huge_one_each_keep_their_share(where):
    priorities = np.ones(3000)
    priorities[where] = huge = 2.0**40
    tree = tree_of(priorities)
    # the middle of every tiny item's part
    middles = np.concatenate([np.arange(where), huge + np.arange(where, 2999)]) + 0.5
    items, _ = tree.sample(middles / tree.total)
    assert items.tolist() == [item for item in range(3000) if item != where]
    items, _ = tree.sample(rng().random(5000))
    assert (items == where).all()


@pytest.mark.parametrize("where", [0, 40, 1024, 2999])
def test_items_too_small_to_count_beside_a_huge_one_do_no_harm(where):
    priorities = np.full(3000, 1e-300)
    priorities[where] = 1e300
    tree = tree_of(priorities)
    items, drawn = tree.sample(np.concatenate([rng().random(2000), [0.0, LAST]]))
    assert_can_be_drawn(tree, items, drawn)
    assert (items[:2000] == where).all()
    # once it is small as well they are as they always were
    tree.update(np.array([where]), np.array([1e-300]))
    items, _ = tree.sample((np.arange(3000) + 0.5) / 3000)
    assert items.tolist() == list(range(3000))


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_many_draws_at_once_are_those_one_by_one(capacity):
    tree = tree_of(rng(capacity).random(capacity) ** 2)
    fractions = np.concatenate([rng(1).random(50), [0.0, LAST]])
    items, drawn = tree.sample(fractions)
    assert items.shape == drawn.shape == fractions.shape
    alone = [tree.sample(np.array([fraction])) for fraction in fractions]
    assert items.tolist() == [int(item[0]) for item, _ in alone]
    assert drawn.tolist() == [float(priority[0]) for _, priority in alone]


def test_drawing_changes_nothing():
    tree, fractions = tree_of(rng().random(3000)), rng(1).random(100)
    before, asked = levels(tree), fractions.copy()
    tree.sample(fractions)
    assert (fractions == asked).all()
    assert all((now == then).all() for now, then in zip(levels(tree), before, strict=True))


def test_after_priorities_have_shrunk_a_millionfold_draws_follow_the_small_ones():
    capacity, draws, random = 3000, 400_000, rng()
    tree = SumTree(capacity)
    tree.fill(0, capacity, 1e4)
    for items in random.permutation(capacity).reshape(-1, 50):
        tree.update(items, 1e-2 * random.random(50))
    exact = math.fsum(tree.priorities)
    assert abs(tree.total - exact) / exact < 1e-14
    probabilities = tree.priorities / exact
    drawn = np.bincount(tree.sample(random.random(draws))[0], minlength=capacity) / draws
    # what so many draws from the right distribution differ from it on average
    floor = np.sqrt(2 * probabilities * (1 - probabilities) / (math.pi * draws)).sum() / 2
    assert np.abs(drawn - probabilities).sum() / 2 < floor + 0.01


def test_draws_follow_the_priorities():
    seeds = range(20)
    for seed in seeds:
        random = rng(seed)
        # some of each block and group, and 0 among them
        priorities = random.uniform(0.5, 3.0, size=2100) * (random.random(2100) < 0.5)
        there = priorities > 0
        items, _ = tree_of(priorities).sample(random.random(60_000))
        counts = np.bincount(items, minlength=2100)
        assert not counts[~there].any()
        p = chi_square_p(counts[there], priorities[there] / priorities.sum())
        # neither worse nor better than chance would have it
        assert 0.001 / len(seeds) < p < 1 - 0.001 / len(seeds)


def test_the_chi_square_of_these_tests_is_that_of_the_tables():
    # 20 degrees of freedom: 31.41 is exceeded with probability .05, 45.31 with .001
    probabilities = np.full(21, 1 / 21)
    for statistic, p in [(31.41, 0.05), (45.31, 0.001), (10.85, 0.95)]:
        shift = math.sqrt(statistic * 1000 / 2)
        counts = np.full(21, 1000.0)
        counts[:2] += [shift, -shift]
        assert chi_square_p(counts, probabilities) == pytest.approx(p, rel=0.05)
