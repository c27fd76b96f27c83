import itertools
from dataclasses import replace

import numpy as np
import pytest

from shoal.data.sampler import SPLITS, TEST, TRAIN, VALIDATION, Lanes, SplitRule, split_rows

SHAPES = [(1, 1), (7, 3), (10, 5), (64, 64), (65, 64), (100, 7), (103, 8), (5, 8), (1000, 32)]
WORKERS = [1, 2, 3, 4, 7]


def crew(rows, batch, workers, seed=0):
    return [Lanes(rows, batch, seed, worker, workers) for worker in range(workers)]


def shards(lanes):
    """The rows each worker holds, ascending, numbered over the training split."""
    rows = np.arange(lanes[0].rows)
    return [rows[lane.owner(rows) == lane.worker] for lane in lanes]


def batches(lanes, epoch):
    """Per batch, the rows each worker takes, named by their number in the training split."""
    held = [shard[lane.epoch(epoch)] for lane, shard in zip(lanes, shards(lanes), strict=True)]
    return [
        [rows[number * lane.width :][: lane.width] for lane, rows in zip(lanes, held, strict=True)]
        for number in range(lanes[0].steps)
    ]


@pytest.mark.parametrize(("rows", "batch", "workers"), [(10, 5, 2), (103, 8, 3), (65, 64, 4), (7, 3, 1)])
def test_the_rows_of_a_step_are_those_that_its_batch_has(rows, batch, workers):
    lanes = crew(rows, batch, workers)
    for epoch in (0, 1):
        for number, parts in enumerate(batches(lanes, epoch)):
            step = epoch * lanes[0].steps + number
            for lane, part in zip(lanes, parts, strict=True):
                assert lane.rows_of(step).tolist() == list(part)


def combinations():
    return [(r, b, w) for r, b in SHAPES for w in WORKERS if w <= b]


def test_a_rows_split_depends_on_seed_and_number_alone_however_the_rows_are_chunked():
    whole = split_rows(3, np.arange(10_000), 0.2, 0.1)
    cuts = [0, 1, 17, 4096, 9_999, 10_000]
    chunked = [split_rows(3, np.arange(a, b), 0.2, 0.1) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(chunked), whole)
    backwards = split_rows(3, np.arange(10_000)[::-1], 0.2, 0.1)[::-1]
    np.testing.assert_array_equal(backwards, whole)


def test_a_row_stays_in_its_split_when_the_data_grows():
    np.testing.assert_array_equal(
        split_rows(0, np.arange(500), 0.1, 0.1), split_rows(0, np.arange(5_000), 0.1, 0.1)[:500]
    )


def test_another_seed_splits_otherwise():
    first, second = (split_rows(seed, np.arange(1_000), 0.3, 0.3) for seed in (0, 1))
    assert (first != second).mean() > 0.3


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1])
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.25, 0.05), (0.0, 0.5), (0.5, 0.0)])
def test_the_shares_of_the_splits_hold_on_average(seed, validation, test):
    rows = 40_000
    counts = np.bincount(split_rows(seed, np.arange(rows), validation, test), minlength=3) / rows
    # Four standard deviations of a binomial share.
    np.testing.assert_allclose(counts, [1 - validation - test, validation, test], atol=4 * 0.5 / rows**0.5)


def test_a_share_of_nothing_gets_no_row():
    assert set(split_rows(0, np.arange(10_000), 0.0, 0.0)) == {0}


def test_rows_without_a_stated_split_are_split_by_both_shares():
    rows = np.arange(500)
    found = SplitRule(3, 0.2, 0.1).assign(rows, None, source_has_validation=True)
    np.testing.assert_array_equal(found, split_rows(3, rows, 0.2, 0.1))


@pytest.mark.parametrize("split", SPLITS)
def test_a_stated_split_is_kept_beside_a_stated_validation_split(split):
    found = SplitRule(3, 0.2, 0.1).assign(np.arange(500), split, source_has_validation=True)
    assert set(found) == {SPLITS.index(split)}
    assert found.dtype == np.int8


def test_of_a_stated_training_split_without_a_validation_split_only_the_validation_share_is_held_out():
    rows, rule = np.arange(500), SplitRule(3, 0.2, 0.1)
    found = rule.assign(rows, TRAIN, source_has_validation=False)
    np.testing.assert_array_equal(found, split_rows(3, rows, 0.2, 0.0))
    assert set(found) == {SPLITS.index(TRAIN), SPLITS.index(VALIDATION)}
    assert set(rule.assign(rows, TEST, source_has_validation=False)) == {SPLITS.index(TEST)}


@pytest.mark.parametrize(("rows", "batch", "workers"), combinations())
def test_a_batch_is_the_same_rows_for_every_number_of_workers(rows, batch, workers):
    for epoch in (0, 3):
        alone, together = batches(crew(rows, batch, 1), epoch), batches(crew(rows, batch, workers), epoch)
        assert len(alone) == len(together)
        for one, many in zip(alone, together, strict=True):
            assert sorted(one[0]) == sorted(np.concatenate(many))


def test_a_batch_is_the_same_rows_for_every_number_of_workers_in_random_shapes():
    draw = np.random.default_rng(0)
    for _ in range(150):
        rows, batch = int(draw.integers(1, 200)), int(draw.integers(1, 40))
        workers, epoch = int(draw.integers(1, batch + 1)), int(draw.integers(0, 9))
        seed = int(draw.integers(0, 2**63 - 1))
        alone = batches(crew(rows, batch, 1, seed), epoch)
        together = batches(crew(rows, batch, workers, seed), epoch)
        for one, many in zip(alone, together, strict=True):
            assert sorted(one[0]) == sorted(np.concatenate(many)), (rows, batch, workers, epoch, seed)


@pytest.mark.parametrize(("rows", "batch", "workers"), combinations())
def test_an_epoch_sees_every_row_exactly_once_in_equally_many_steps_on_every_worker(rows, batch, workers):
    lanes = crew(rows, batch, workers)
    seen = np.concatenate([part for one in batches(lanes, 1) for part in one])
    np.testing.assert_array_equal(np.sort(seen), np.arange(rows))
    assert {lane.steps for lane in lanes} == {-(-rows // batch)}


@pytest.mark.parametrize(("rows", "batch", "workers"), combinations())
def test_counts_agree_with_the_owners_of_rows_and_with_batches(rows, batch, workers):
    lanes = crew(rows, batch, workers)
    for lane, shard in zip(lanes, shards(lanes), strict=True):
        assert len(shard) == len(lane.epoch(0))
    for number, parts in enumerate(batches(lanes, 0)):
        assert [lane.local_count(number) for lane in lanes] == [len(part) for part in parts]
        assert {lane.global_count(number) for lane in lanes} == {sum(map(len, parts))}


def test_in_a_short_last_batch_some_workers_have_no_row():
    lanes = crew(rows=9, batch=8, workers=4)
    assert [lane.local_count(1) for lane in lanes] == [1, 0, 0, 0]
    assert [len(part) for part in batches(lanes, 0)[1]] == [1, 0, 0, 0]


def test_past_the_end_of_an_epoch_there_is_nothing():
    lane = Lanes(rows=10, batch_size=4, seed=0)
    assert (lane.global_count(3), lane.local_count(3)) == (0, 0)


def test_epochs_differ_from_each_other_and_repeat_themselves():
    lane = Lanes(rows=1000, batch_size=10, seed=0)
    assert (lane.epoch(0) != lane.epoch(1)).mean() > 0.9
    np.testing.assert_array_equal(lane.epoch(1), Lanes(rows=1000, batch_size=10, seed=0).epoch(1))


def test_seeds_give_different_orders():
    first, second = (Lanes(rows=1000, batch_size=10, seed=seed).epoch(0) for seed in (0, 1))
    assert (first != second).mean() > 0.9


def test_lanes_are_shuffled_independently_of_each_other():
    order = Lanes(rows=1000, batch_size=10, seed=0).epoch(0).reshape(100, 10) // 10
    assert all((order[:, 0] != order[:, lane]).mean() > 0.9 for lane in range(1, 10))


LENGTHS = np.random.default_rng(0).integers(50, 1500, 5000)


def crew_by_length(rows, batch, workers, seed=0):
    plain = crew(rows, batch, workers, seed)
    return [replace(lane, lengths=LENGTHS[held]) for lane, held in zip(plain, shards(plain), strict=True)]


def rows_by_lane(lanes, epoch):
    """Per batch, its rows by number, whichever worker takes them."""
    return [sorted(np.concatenate(batch).tolist()) for batch in batches(lanes, epoch)]


@pytest.mark.parametrize(("rows", "batch", "workers"), combinations())
def test_rows_grouped_by_length_are_seen_once_in_batches_that_no_number_of_workers_changes(
    rows, batch, workers
):
    seen = rows_by_lane(crew_by_length(rows, batch, workers), epoch=3)
    assert sorted(itertools.chain(*seen)) == list(range(rows))
    assert seen == rows_by_lane(crew_by_length(rows, batch, 1), epoch=3)
    assert [len(one) for one in seen] == [
        len(one) for one in rows_by_lane(crew(rows, batch, workers), epoch=3)
    ]


def test_batches_of_rows_grouped_by_length_have_little_padding_and_differ_from_epoch_to_epoch():
    def padded(lanes, epoch):
        return sum(max(LENGTHS[batch]) * len(batch) for batch in rows_by_lane(lanes, epoch)) / LENGTHS.sum()

    grouped = crew_by_length(len(LENGTHS), 16, 2)
    assert padded(crew(len(LENGTHS), 16, 2), 0) > 1.7
    assert padded(grouped, 0) < 1.2
    first, second = (rows_by_lane(grouped, epoch) for epoch in (0, 1))
    assert not set(map(tuple, first)) & set(map(tuple, second))
    longest = [max(LENGTHS[batch]) for batch in first[:-1]]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2, "batches come in a random order"
