"""cascade/data/samples.py: a sample is a function of (seed, index), and of nothing else."""

import json
import multiprocessing
import pickle
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from image_folders import encoded, make_folder, picture

from cascade.data.folder import FolderSource
from cascade.data.order import item_of
from cascade.data.samples import PATIENCE, TrainingSet
from cascade.data.skipped import NothingUsable, SkipLog, Skipped, TooManySkipped, find_skipped
from cascade.data.transform import Transform
from cascade.presets import toybox_base
from cascade.training.diffusion import Batches, DiffusionConfig
from cascade.training.distributed import World
from cascade.training.loading import load

TRANSFORM = Transform((16, 16), crop=(8, 8), position="random", flip=True)


class Pictures:
    """As many items as one likes; every seventh is unusable."""

    def __init__(self, length, broken=7):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def name(self, index):
        return str(index)

    def captions(self, index):
        return [f"picture {index}", f"image {index}", f"number {index}"]

    def image(self, index):
        return b"" if self.broken and index % self.broken == 0 else picture(index % 20, (16, 20))


def everything(sample):
    return (sample.index, sample.caption, sample.dropped, sample.name, sample.skipped, sample.image.numpy().tobytes())


def load_batches(data, size, *, first_step=0, rank=0, world=1, workers=0):
    """What the training loop of one process gets to see, without end."""
    parts = World(rank, world).rows(size, 1)
    with closing(load(Batches(toybox_base(), data, DiffusionConfig(size)), parts, first_step, workers)) as batches:
        for batch in batches:
            yield batch.samples


def batched(batches, count):
    return [
        everything_of
        for batch in islice(batches, count)
        for everything_of in zip(
            batch.indices,
            batch.captions,
            batch.dropped.tolist(),
            batch.names,
            batch.skipped,
            [image.numpy().tobytes() for image in batch.images],
            strict=True,
        )
    ]


@pytest.fixture(scope="module")
def first_thousand():
    data = TrainingSet(Pictures(300), TRANSFORM, seed=3, text_dropout=0.1)
    return [everything(data[i]) for i in range(1000)]


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_workers_change_nothing(workers, first_thousand):
    data = TrainingSet(Pictures(300), TRANSFORM, seed=3, text_dropout=0.1)
    assert batched(load_batches(data, 50, workers=workers), 20) == first_thousand


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_ranks_change_nothing(workers, first_thousand):
    data = TrainingSet(Pictures(300), TRANSFORM, seed=3, text_dropout=0.1)
    ranks = [batched(load_batches(data, 50, rank=rank, world=2, workers=workers), 20) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == first_thousand
    assert [row[0] for row in ranks[1][:26]] == [*range(25, 50), 75]


def test_a_run_is_taken_up_at_one_integer(first_thousand):
    data = TrainingSet(Pictures(300), TRANSFORM, seed=3, text_dropout=0.1)
    assert batched(load_batches(data, 50, first_step=7, workers=2), 3) == first_thousand[350:500]


def test_it_can_be_pickled(tmp_path, first_thousand):
    data = TrainingSet(FolderSource(make_folder(tmp_path, 5)), TRANSFORM)
    assert everything(pickle.loads(pickle.dumps(data))[7]) == everything(data[7])


def test_seed_zero_is_a_seed():
    made = {
        seed: [everything(TrainingSet(Pictures(50), TRANSFORM, seed=seed)[i]) for i in range(20)] for seed in (0, 1, 2)
    }
    assert made[0] == [everything(TrainingSet(Pictures(50), TRANSFORM, seed=0)[i]) for i in range(20)]
    assert made[0] != made[1] != made[2] != made[0]


def test_an_epoch_shows_each_item_once_and_differently_each_time():
    data = TrainingSet(Pictures(60, broken=0), TRANSFORM, seed=0)
    epochs = [[data[60 * epoch + i] for i in range(60)] for epoch in range(6)]
    for epoch in epochs:
        assert sorted(int(sample.name) for sample in epoch) == list(range(60))
    same = [sample for epoch in epochs for sample in epoch if sample.name == "17"]
    assert len({sample.image.numpy().tobytes() for sample in same}) > 2
    assert len({sample.caption for sample in same}) > 1


def test_the_share_of_dropped_captions():
    data = TrainingSet(Pictures(50, broken=0), Transform((16, 16)), text_dropout=0.3)
    assert 240 < sum(data[i].dropped for i in range(1000)) < 360
    assert not any(TrainingSet(Pictures(50), TRANSFORM)[i].dropped for i in range(100))


def test_what_stands_in_for_a_broken_item():
    data = TrainingSet(Pictures(70), TRANSFORM, seed=1)
    samples = [data[i] for i in range(70)]
    broken = [sample for sample in samples if sample.skipped]
    assert [int(sample.skipped[0].name) for sample in broken] == [
        item_of(sample.index, 70, 1) for sample in samples if item_of(sample.index, 70, 1) % 7 == 0
    ]
    assert len({sample.name for sample in broken}) > 5  # not one neighbour for all
    assert all(int(sample.name) % 7 for sample in samples)
    assert {one.reason for sample in broken for one in sample.skipped} == {"the file is empty"}


def test_bad_settings():
    for settings, message in (({"seed": -1}, "-1"), ({"text_dropout": 1.5}, "1.5")):
        with pytest.raises(ValueError, match=message):
            TrainingSet(Pictures(3), TRANSFORM, **settings)
    with pytest.raises(ValueError, match="no images"):
        TrainingSet(Pictures(0), TRANSFORM)


# What is left out


def train(folder, log, batches=40, workers=0, **limit):
    """A run's way through the data."""
    source = FolderSource(folder)
    data = TrainingSet(source, Transform((16, 16)))
    skips = SkipLog(log, len(source), **limit)
    for batch in islice(load_batches(data, 10, workers=workers), batches):
        skips.record(batch.skipped)
    return skips


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tenth_damaged_trains(tmp_path, workers):
    folder = make_folder(tmp_path / "data", 99, 11)
    skips = train(folder, tmp_path / "skipped.jsonl", workers=workers)
    assert skips.seen == 400
    assert 0.07 < skips.skipped / skips.seen < 0.13
    logged = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert len(logged) == len({line["name"] for line in logged}) == 11
    found = list(find_skipped(FolderSource(folder), Transform((16, 16)), range(110)))
    assert sorted((one.name, one.reason) for one in found) == sorted((line["name"], line["reason"]) for line in logged)
    assert [one.name for one in found] == sorted(one.name for one in found)


@pytest.mark.parametrize("workers", [0, 2])
def test_sixty_per_cent_damaged_stops_with_the_list(tmp_path, workers):
    folder = make_folder(tmp_path / "data", 44, 66)
    with pytest.raises(TooManySkipped) as stopped:
        train(folder, tmp_path / "skipped.jsonl", workers=workers)
    message = str(stopped.value)
    assert "of 110 items (60%) cannot be used, and data.max_skipped is 0.25" in message
    assert message.endswith(f"are in {tmp_path / 'skipped.jsonl'}")
    lines = stopped.value.listed().splitlines()
    assert len(lines) == 11
    assert lines[0].startswith(("  bad-0", "  missing-0"))
    assert lines[10] == "  and 56 more"
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 66
    assert train(folder, tmp_path / "all.jsonl", limit=0.9).seen == 400


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_at_all(tmp_path, workers):
    data = TrainingSet(Pictures(50, broken=1), TRANSFORM)
    with pytest.raises(NothingUsable, match=f"^{PATIENCE} items in a row cannot be used$") as stopped:
        next(load_batches(data, 2, workers=workers))
    assert len(stopped.value.skipped) > 30
    assert {one.reason for one in stopped.value.skipped} == {"the file is empty"}
    assert ("samples.py" in str(stopped.value.__cause__)) == bool(workers)  # where in the worker it was raised
    error = SkipLog(tmp_path / "log", 50, limit=0.5).too_many(str(stopped.value), stopped.value.skipped)
    assert str(error).startswith(f"{PATIENCE} items in a row cannot be used, and data.max_skipped is 0.5")
    assert len((tmp_path / "log").read_text().splitlines()) == len(stopped.value.skipped) == len(error.skipped)


def test_a_bug_in_a_worker_is_told_with_its_place():
    class Broken(Pictures):
        def image(self, index):
            raise KeyError("a bug")

    with pytest.raises(KeyError, match=r"worker process 0(.|\n)*in image"):
        next(load_batches(TrainingSet(Broken(5), TRANSFORM), 2, workers=1))


def test_no_worker_outlives_its_iterator():
    """One that did would keep a failed run's process from ending."""
    before = set(multiprocessing.active_children())
    batches = load_batches(TrainingSet(Pictures(50), TRANSFORM), 2, workers=2)
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


def test_the_verdict_waits_for_an_epoch_or_enough_items(tmp_path):
    fault = (Skipped("x", "broken"),)
    skips = SkipLog(tmp_path / "log", items=8)
    skips.record([fault, fault, fault, (), (), ()])
    with pytest.raises(TooManySkipped, match="3 of 8"):
        skips.record([(), ()])
    skips = SkipLog(tmp_path / "log", items=10**6)
    skips.record([fault] * 199)
    with pytest.raises(TooManySkipped, match="200 of 200"):
        skips.record([fault])


def test_the_log_goes_on_where_it_was_cut(tmp_path):
    log = tmp_path / "log"
    first = SkipLog(log, 10)
    first.record([(Skipped("a", "broken"), Skipped("b", "broken")), ()])
    log.write_bytes(log.read_bytes() + b'\n{"name": "c"')
    second = SkipLog(log, 10)
    assert [one.name for one in second.named] == ["a", "b"]
    second.record([(Skipped("a", "broken"), Skipped("c", "broken")), ()])
    assert [one.name for one in SkipLog(log, 10).named] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"1\.5"):
        SkipLog(log, 10, limit=1.5)


def test_super_resolution_trains_on_crops(tmp_path):
    """256 px of a picture reduced to 1024 is what a stage at 1024 px would see there."""
    (tmp_path / "a.png").write_bytes(encoded(picture(0, (70, 140))))
    (tmp_path / "a.txt").write_text("a picture")
    source = FolderSource(tmp_path)
    whole = Transform((64, 128))(source.image(0), np.random.default_rng(0))
    data = TrainingSet(source, Transform((64, 128), crop=(16, 16), position="random"))
    for i in range(10):
        image = data[i].image
        assert image.dtype == torch.uint8
        windows = whole.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
        assert (windows == image).all(dim=(2, 3, 4)).any()
