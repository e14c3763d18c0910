"""Drawing: reproducible, with the promised probabilities, never a pair with itself, never shapes that do not fit."""

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.pair_images import pair_at
from training.data.buckets import aspects_match, cell_buckets, nearest_bucket
from training.data.index import DataError
from training.data.pairing import (
    CAPTION_DROPOUT,
    QuadrupletDrawer,
    all_captions,
    caption_of,
    choose,
    task_caption,
    uniforms,
)

BUCKETS = cell_buckets(64)


def drawer_of(records, **options):
    return QuadrupletDrawer(records, BUCKETS, **options)


def draw_many(drawer, count, *, epoch=0):
    """As a sampler of batch size 1 would."""
    return [drawer.draw(epoch, i, drawer.draw_bucket(epoch, i)) for i in range(count)]


def squares(**counts):
    return [pair_at(task, i) for task, count in counts.items() for i in range(count)]


def test_the_same_place_gives_the_same_quadruplet_whatever_was_chosen_before():
    first, second = drawer_of(squares(x=5, y=9)), drawer_of(squares(x=5, y=9))
    expected = draw_many(first, 50, epoch=3)
    assert [second.draw(3, i, second.draw_bucket(3, i)) for i in reversed(range(50))] == expected[::-1]


def test_places_epochs_seeds_and_attempts_differ():
    records = squares(x=40, y=40)
    drawer = drawer_of(records)
    bucket = drawer.draw_bucket(0, 0)
    variants = [drawer.draw(0, 0, bucket), drawer.draw(0, 1, bucket), drawer.draw(1, 0, bucket)]
    variants += [drawer.draw(0, 0, bucket, attempt=1), drawer_of(records, seed=1).draw(0, 0, bucket)]
    assert len({(q.a, q.b) for q in variants}) == 5


def test_another_process_and_hash_seed_draw_the_same():
    code = (
        "from pathlib import Path\n"
        "from training.data.buckets import cell_buckets\n"
        "from training.data.pairing import QuadrupletDrawer\n"
        "from training.data.index import PairRecord\n"
        "names = [(task, i) for task, count in (('x', 5), ('y', 9)) for i in range(count)]\n"
        "records = [PairRecord(f'{task}{i}', task, Path('a'), Path('b'), 64, 64) for task, i in names]\n"
        "drawer = QuadrupletDrawer(records, cell_buckets(64))\n"
        "print([(q.a, q.b) for q in (drawer.draw(0, i, drawer.draw_bucket(0, i)) for i in range(30))])"
    )  # fmt: skip
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str([(q.a, q.b) for q in draw_many(drawer_of(squares(x=5, y=9)), 30)])


def test_draws_never_change_between_versions():
    """A resumed run must go on with the same data after an update; change this only with a note to users."""
    drawer = drawer_of([pair_at("x", i, width=64 + 8 * (i % 4)) for i in range(10)] + squares(y=6), seed=7)
    draws = [(0, 2, 1), (4, 1, 1), (2, 1, 1), (12, 13, 1), (11, 14, 1), (4, 6, 1)]
    assert [(q.a, q.b, q.bucket) for q in draw_many(drawer, 6, epoch=2)] == draws


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(30, 130), st.integers(30, 130)), min_size=2, max_size=25))
def test_every_draw_keeps_the_rules(shapes):
    records = [pair_at(f"task{t}", i, width=w, height=h) for i, (t, w, h) in enumerate(shapes)]
    try:
        drawer = drawer_of(records)
    except DataError:
        for i, a in enumerate(records):
            for b in records[i + 1 :]:
                assert a.task != b.task or not aspects_match(a.aspect, b.aspect)
        return
    for quadruplet in draw_many(drawer, 40):
        a, b = records[quadruplet.a], records[quadruplet.b]
        own, other = nearest_bucket(BUCKETS, b.aspect), nearest_bucket(BUCKETS, a.aspect)
        assert a.id != b.id
        assert a.task == b.task
        assert quadruplet.bucket == own
        assert own == other or aspects_match(a.aspect, b.aspect)


def test_tasks_are_chosen_by_the_root_of_their_count_times_their_weight_and_pairs_by_weight():
    records = [pair_at("x", i) for i in range(4)] + [pair_at("y", i, weight=3.0) for i in range(4)]
    records += [pair_at("z", 0, weight=0.0), pair_at("z", 1, weight=2.0)]
    seen = Counter(records[q.b].id for q in draw_many(drawer_of(records), 9000))
    masses = {"x": 2 * 1.0, "y": 2 * 3.0, "z": 2**0.5 * 1.0}
    for task, mass in masses.items():
        share = sum(count for name, count in seen.items() if name.startswith(task)) / 9000
        assert share == pytest.approx(mass / sum(masses.values()), abs=0.025)
    assert seen["z/0000"] == 0  # never b; it may still be a
    assert seen["z/0001"] > 0


def test_buckets_do_not_change_how_often_a_pair_is_chosen():
    records = [pair_at("x", i, width=64 if i < 6 else 128) for i in range(8)]
    seen = Counter(q.b for q in draw_many(drawer_of(records), 8000))
    assert np.abs(np.array([seen[i] for i in range(8)]) / 8000 - 1 / 8).max() < 0.02


def test_all_couples_are_equally_likely():
    seen = Counter((q.a, q.b) for q in draw_many(drawer_of(squares(x=5)), 8000))
    assert len(seen) == 20
    assert np.abs(np.array(list(seen.values())) / 8000 - 1 / 20).max() < 0.02


@pytest.mark.parametrize(
    ("widths", "groups"),
    [
        ([64] * 3 + [128] * 3, [{0, 1, 2}, {3, 4, 5}]),
        ([74, 84], [{0, 1}]),  # 13.5 % apart, of two buckets
        ([74, 86, 86], [{1, 2}]),  # 16 % apart, of two buckets
        ([64] * 3 + [200], [{0, 1, 2}]),
    ],
)
def test_pairs_of_a_task_are_combined_if_their_shapes_fit_and_without_partner_never_chosen(widths, groups):
    records = [pair_at("x", i, width=width) for i, width in enumerate(widths)] + squares(lonely=1)
    couples = {(q.a, q.b) for q in draw_many(drawer_of(records), 300)}
    assert couples == {couple for group in groups for couple in permutations(group, 2)}


def test_nothing_to_draw_is_an_error():
    with pytest.raises(DataError, match="two or more before/after pairs"):
        drawer_of(squares(x=1, y=1))
    with pytest.raises(DataError):
        drawer_of([])


def test_bucket_shares_sum_to_one_and_batches_follow_them():
    records = [pair_at("x", i, width=64 if i % 4 else 128) for i in range(16)]
    drawer = drawer_of(records)
    assert drawer.bucket_shares.sum() == pytest.approx(1)
    seen = Counter(drawer.draw_bucket(0, n) for n in range(3000))
    for bucket, share in enumerate(drawer.bucket_shares):
        assert seen[bucket] / 3000 == pytest.approx(share, abs=0.03)


def test_captions_come_from_where_they_should():
    task = "115-Colored Pencil_Filter"
    a, b = (pair_at(task, name, caption=f"make {name}") for name in "ab")
    for source, caption, captions in (
        ("a", "make a", ("", "make a", "make b")),
        ("b", "make b", ("", "make a", "make b")),
        ("none", "", ("",)),
        ("task", "Colored Pencil Filter", ("", "Colored Pencil Filter")),
    ):
        assert (caption_of(a, b, source), all_captions([a, b], source)) == (caption, captions)
    assert task_caption(pair_at("x", 0, task_caption="do x")) == "do x"
    assert task_caption(pair_at("2020", 0)) == "2020"


def test_one_prompt_in_twenty_is_empty():
    drawn = draw_many(drawer_of(squares(x=4)), 3000)
    assert CAPTION_DROPOUT == 0.05
    assert sum(q.caption == "" for q in drawn) / 3000 == pytest.approx(0.05, abs=0.015)


def test_uniform_numbers_are_uniform_and_independent():
    numbers = np.array([uniforms(0, "test", i) for i in range(4000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.02
    correlations = np.corrcoef(numbers.T) - np.eye(8)
    assert np.abs(correlations).max() < 0.06
    assert all(abs(float(np.corrcoef(column[:-1], column[1:])[0, 1])) < 0.06 for column in numbers.T)


def test_choosing_follows_the_running_sum_up_to_its_end():
    cumulative = np.array([0.0, 1.0, 1.0, 3.0, 3.0])
    assert [choose(cumulative, u) for u in (0.0, 0.3, 0.34, 0.99, np.nextafter(1.0, 0.0), 1.0)] == [1, 1, 3, 3, 3, 3]
    chosen = [choose(np.cumsum([0.1] * 7), u) for u in np.linspace(0, 1, 500)]
    assert all(later >= earlier for earlier, later in pairwise(chosen))
    assert set(chosen) == set(range(7))
