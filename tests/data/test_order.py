"""The order is a pure function of (seed, epoch, step): against published Philox, and itself split differently."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import stats

from tests.support.runs import make_dataset
from vgg_ddp.config import Config
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.balanced_order import BalancedOrder
from vgg_ddp.data.order import Order, Slice, evaluation_slices, stratified_split
from vgg_ddp.data.validation import count_held_out
from vgg_ddp.distributed.world import World
from vgg_ddp.randomness import permutation, random_words, uniform
from vgg_ddp.training.parts import build_data

SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 2**31 - 1)
WORLDS = st.sampled_from([1, 2, 3, 4, 8])
WORD = 2**64


def philox4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x64 of ten rounds, as in Salmon et al. (SC 2011), figure 4 and table 2."""
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            right // WORD ^ counter[1] ^ key[0],
            right % WORD,
            left // WORD ^ counter[3] ^ key[1],
            left % WORD,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) % WORD, (key[1] + 0xBB67AE8584CAA73B) % WORD]
    return counter


def order_of(seed: int = 3, count: int = 41, batch: int = 8) -> Order:
    return Order(seed, np.arange(100, 100 + count), batch)


def same(left: list[Slice], right: list[Slice]) -> bool:
    return len(left) == len(right) and all(
        a.epoch == b.epoch and a.start == b.start and np.array_equal(a.samples, b.samples)
        for a, b in zip(left, right, strict=True)
    )


# Random words


def test_the_reference_below_gives_the_known_answers_of_random123() -> None:
    zeros = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    ones = [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    assert philox4x64_10([0] * 4, [0] * 2) == zeros
    assert philox4x64_10([WORD - 1] * 4, [WORD - 1] * 2) == ones


@given(SEEDS, EPOCHS, st.sampled_from(["order", "crop", "flip"]), st.integers(0, 10**9))
def test_words_are_philox_of_the_position_keyed_by_seed_epoch_and_purpose(
    seed: int, epoch: int, purpose: str, position: int
) -> None:
    key = [seed, epoch * 2**32 + zlib.crc32(purpose.encode())]
    expected = philox4x64_10([position + 1, 0, 0, 0], key)
    assert random_words(seed, epoch, purpose, position, position + 1).tolist() == [expected]


@given(SEEDS, EPOCHS, st.integers(0, 10**9), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_words_of_a_range_are_a_part_of_those_of_a_longer_range(
    seed: int, epoch: int, start: int, before: int, inside: int, after: int
) -> None:
    whole = random_words(seed, epoch, "crop", start, start + before + inside + after)
    part = random_words(seed, epoch, "crop", start + before, start + before + inside)
    assert part.shape == (inside, 4)
    assert_array_equal(part, whole[before : before + inside])


def test_streams_of_another_seed_epoch_or_purpose_share_no_word() -> None:
    streams = [(s, e, p) for s in (0, 1, 2**32 - 1) for e in (0, 1, 2**31 - 1) for p in ("order", "crop", "flip")]
    words = np.concatenate([random_words(*stream, 0, 250).reshape(-1) for stream in streams])
    assert len(np.unique(words)) == len(streams) * 1000


def test_words_are_these() -> None:
    """Literal values: a change here is a change of every run's order."""
    assert random_words(0, 0, "order", 0, 2).tolist() == [
        [15462046545428968562, 8645719588899236245, 16865532446424996608, 10867786946627665188],
        [16721596205573147716, 9739095333065057503, 15199709583384281719, 3356081305257286881],
    ]
    assert random_words(2**32 - 1, 7, "crop", 1000, 1001).tolist() == [
        [13973515557647560812, 12606825347880687982, 5212566521971030084, 11127724145405288738]
    ]


def test_uniform_covers_zero_to_below_one() -> None:
    extremes = uniform(np.array([0, 2**11 - 1, 2**63, WORD - 1], dtype=np.uint64))
    assert extremes.tolist() == [0.0, 0.0, 0.5, 1 - 2.0**-53]


@pytest.mark.parametrize("column", range(4))
def test_uniform_numbers_are_uniform(column: int) -> None:
    numbers = uniform(random_words(1, 2, "crop", 0, 20_000))[:, column]
    assert stats.kstest(numbers, "uniform").pvalue > 0.01
    assert stats.chisquare(np.histogram(numbers, bins=100, range=(0, 1))[0]).pvalue > 0.01


# Permutations


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 1000, 50_000])
def test_a_permutation_holds_each_number_once(count: int) -> None:
    assert_array_equal(np.sort(permutation(5, 6, count)), np.arange(count))


@given(SEEDS, EPOCHS, st.integers(0, 60))
def test_a_permutation_sorts_the_positions_by_their_words(seed: int, epoch: int, count: int) -> None:
    words = random_words(seed, epoch, "order", 0, count).reshape(-1).tolist()
    assert permutation(seed, epoch, count).tolist() == sorted(range(count), key=lambda i: words[i])


def test_all_permutations_are_equally_likely() -> None:
    drawn = [tuple(permutation(0, epoch, 4)) for epoch in range(6000)]
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.01


def test_permutations_are_these() -> None:
    """Literal values: a change here is a change of every run's order."""
    assert permutation(0, 0, 10).tolist() == [7, 1, 5, 3, 9, 6, 0, 4, 2, 8]
    assert permutation(0, 1, 10).tolist() == [0, 8, 9, 4, 1, 5, 7, 2, 6, 3]
    assert permutation(1, 0, 10).tolist() == [3, 2, 9, 4, 1, 5, 0, 6, 8, 7]


# The order of training


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    first, second = order_of(), order_of()
    expected = list(first.slices(epoch=4))
    for epoch in (0, 9):  # neither earlier requests nor NumPy's random state make a difference
        list(second.slices(epoch))
    next(second.slices(epoch=4, rank=1, world_size=2))
    np.random.seed(1)
    assert same(list(second.slices(epoch=4)), expected)
    assert not same(list(second.slices(epoch=5)), expected)
    assert not same(list(order_of(seed=4).slices(epoch=4)), expected)


@given(SEEDS, EPOCHS, WORLDS, st.integers(1, 6), st.integers(0, 100), st.integers(0, 5))
def test_the_ranks_slices_are_the_global_batch_in_order(
    seed: int, epoch: int, world: int, share: int, count: int, first_step: int
) -> None:
    order = Order(seed, np.arange(count) * 3, batch=world * share)
    alone = list(order.slices(epoch, first_step=first_step))
    ranks = [list(order.slices(epoch, rank, world, first_step)) for rank in range(world)]
    assert [len(slices) for slices in ranks] == [len(alone)] * world
    for step, whole in enumerate(alone):
        parts = [slices[step] for slices in ranks]
        assert_array_equal(np.concatenate([part.samples for part in parts]), whole.samples)
        assert [part.start for part in parts] == [whole.start + rank * share for rank in range(world)]
        assert {(part.epoch, part.stop - part.start) for part in parts} == {(epoch, share)}


@given(SEEDS, EPOCHS, st.integers(0, 100), st.integers(1, 40))
def test_an_epoch_visits_each_sample_at_most_once_and_drops_less_than_a_batch(
    seed: int, epoch: int, count: int, batch: int
) -> None:
    samples = np.arange(1000, 1000 + count)
    order = Order(seed, samples, batch)
    slices = list(order.slices(epoch))
    visited = [sample for part in slices for sample in part.samples]
    assert len(slices) == order.steps_per_epoch
    assert {len(part.samples) for part in slices} <= {batch}
    assert len(set(visited)) == len(visited)
    assert set(visited) <= set(samples)
    assert 0 <= count - len(visited) < batch


@given(SEEDS, EPOCHS, WORLDS, st.integers(0, 12))
def test_starting_at_a_step_gives_the_rest_of_the_same_order(seed: int, epoch: int, world: int, step: int) -> None:
    order = Order(seed, np.arange(99), batch=8 if world != 3 else 9)
    for rank in range(world):
        whole = list(order.slices(epoch, rank, world))
        assert same(list(order.slices(epoch, rank, world, first_step=step)), whole[step:])


def test_a_sample_left_out_of_one_epoch_is_in_others() -> None:
    order = order_of(count=41, batch=8)
    seen = {sample for epoch in range(10) for part in order.slices(epoch) for sample in part.samples}
    assert seen == set(range(100, 141))


# The balanced order


UNEVEN = st.lists(st.integers(1, 25), min_size=1, max_size=6)  # images of each class


def balanced(counts: list[int], batch: int, seed: int = 3) -> BalancedOrder:
    """Classes of these sizes; sample k of class c is 1000 c + k, so that the sample numbers have gaps."""
    labels = np.repeat(np.arange(len(counts)), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    mixed = permutation(seed, 0, len(labels))
    return BalancedOrder(seed, (labels * 1000 + within)[mixed], batch, labels[mixed])


@given(SEEDS, UNEVEN, st.integers(1, 8), st.integers(0, 4), st.integers(1, 5))
def test_balanced_classes_come_equally_often_in_any_epochs(
    seed: int, counts: list[int], batch: int, first: int, epochs: int
) -> None:
    order = balanced(counts, batch, seed)
    drawn = [
        sample for epoch in range(first, first + epochs) for part in order.slices(epoch) for sample in part.samples
    ]
    assert len(drawn) == epochs * (sum(counts) // batch) * batch
    times = np.bincount(np.array(drawn, dtype=np.int64) // 1000, minlength=len(counts))
    assert times.max() - times.min() <= 1


@given(SEEDS, UNEVEN, st.integers(1, 8), st.integers(1, 9))
def test_a_balanced_class_repeats_none_of_its_images_before_all_were_seen(
    seed: int, counts: list[int], batch: int, epochs: int
) -> None:
    """So after any number of epochs, the images of a class were seen equally often, give or take one."""
    order = balanced(counts, batch, seed)
    drawn = np.concatenate([order.epoch(epoch) for epoch in range(epochs)])
    for label, count in enumerate(counts):
        times = np.bincount(drawn[drawn // 1000 == label] % 1000, minlength=count)
        assert len(times) == count
        assert times.max() - times.min() <= 1


@given(SEEDS, st.integers(0, 10**6), UNEVEN, st.sampled_from([1, 2, 3, 4]), st.integers(0, 5))
def test_a_balanced_order_is_the_same_on_any_ranks_and_after_a_restart(
    seed: int, epoch: int, counts: list[int], world: int, first_step: int
) -> None:
    order = balanced(counts, 12, seed)
    alone = list(order.slices(epoch))
    assert same(list(balanced(counts, 12, seed).slices(epoch, first_step=first_step)), alone[first_step:])
    ranks = [list(order.slices(epoch, rank, world, first_step)) for rank in range(world)]
    for step, whole in enumerate(alone[first_step:]):
        assert_array_equal(np.concatenate([slices[step].samples for slices in ranks]), whole.samples)


def test_a_balanced_order_depends_on_seed_and_epoch() -> None:
    orders = [balanced([40, 8, 3], 8, seed).epoch(epoch).tolist() for seed in (3, 4) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_training_that_balances_classes_sees_them_equally_often(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(3), [50, 9, 4])
    dataset = make_dataset(tmp_path / "uneven", labels, ["a", "b", "c"])
    words = DataConfig(balance_classes=True, validation=0.25, image_size=16, resize=16, workers=0)
    data = build_data(Config(batch=12, data=words, loader="torch"), dataset, World(0, 1, 0, 1, torch.device("cpu")))
    batches = list(data.train_loader.stream(data.order.slices(epoch=0)))
    assert np.bincount(np.concatenate([batch.labels.numpy() for batch in batches])).tolist() == [16, 16, 16]
    assert np.isin(data.validation.samples, data.order.samples).sum() == 0


# The split for validation


@given(SEEDS, st.lists(st.integers(0, 4), max_size=80), st.floats(0, 0.99))
def test_a_split_is_disjoint_whole_and_holds_out_the_share_of_each_class(
    seed: int, classes: list[int], share: float
) -> None:
    labels = np.array(classes, dtype=np.int64)
    training, held_out = stratified_split(labels, share, seed)
    assert_array_equal(np.sort(np.concatenate([training, held_out])), np.arange(len(labels)))
    assert (np.diff(training) > 0).all()
    assert (np.diff(held_out) > 0).all()
    for label in range(5):
        assert abs((labels[held_out] == label).sum() - share * (labels == label).sum()) <= 0.5


def test_a_split_follows_from_labels_share_and_seed_alone() -> None:
    labels = np.arange(500) % 7
    expected = stratified_split(labels, 0.1, 3)
    stratified_split(labels[::-1], 0.3, 9)
    permutation(3, 2**31 - 1, 10)
    again, other = stratified_split(labels, 0.1, 3), stratified_split(labels, 0.1, 4)
    assert_array_equal(again[1], expected[1])
    assert not np.array_equal(other[1], expected[1])


# The order of evaluation


@given(st.integers(0, 60), st.integers(1, 17), st.sampled_from([1, 2, 3, 8]))
def test_evaluation_visits_each_sample_once_in_the_same_batches_at_any_world_size(
    count: int, batch: int, world: int
) -> None:
    samples = np.arange(count) * 2 + 1
    alone = list(evaluation_slices(samples, batch))
    dealt = [part for rank in range(world) for part in evaluation_slices(samples, batch, rank, world)]
    assert same(sorted(dealt, key=lambda part: part.start), alone)
    assert [sample for part in alone for sample in part.samples] == samples.tolist()
    assert all(len(part.samples) == batch for part in alone[:-1])
    shares = [sum(1 for _ in evaluation_slices(samples, batch, rank, world)) for rank in range(world)]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("count", [1, 2, 95, 96, 97, 1000])
def test_every_sample_is_visited_once_by_any_number_of_ranks(count: int) -> None:
    samples = np.arange(count)
    order = Order(0, samples, min(96, count))
    shuffled = permutation(0, 0, count)
    assert_array_equal(np.sort(shuffled), samples)
    whole = shuffled[: order.steps_per_epoch * order.batch].reshape(-1, order.batch)
    for size in range(1, 13):
        visited = [dealt.samples for rank in range(size) for dealt in evaluation_slices(samples, 17, rank, size)]
        assert_array_equal(np.sort(np.concatenate(visited)), samples)
        if order.batch % size == 0:
            ranks = [np.stack([local.samples for local in order.slices(0, rank, size)]) for rank in range(size)]
            assert_array_equal(np.concatenate(ranks, axis=1), whole)


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    share=st.floats(0.05, 1),
    validation=st.floats(0, 0.9),
    seed=st.integers(0, 3),
)
def test_how_many_are_held_out_follows_from_the_counts(
    counts: list[int], share: float, validation: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    _, used = stratified_split(labels, share, seed)
    split = SimpleNamespace(class_counts=counts)
    found = count_held_out(
        SimpleNamespace(splits={"train": split}),  # type: ignore[arg-type]
        SimpleNamespace(train_share=share, validation=validation),  # type: ignore[arg-type]
    )
    held_out = labels[used][stratified_split(labels[used], validation, seed)[1]]
    assert found == np.bincount(held_out, minlength=len(counts)).tolist()
