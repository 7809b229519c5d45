"""What the toybox detector learns from: targets, misshapen and melted toys, shards; and its losses."""

import numpy as np
import pytest
import torch

from cascade.data.toybox.materials import MATERIALS
from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.render import render
from cascade.data.toybox.scene import sample_scene
from pipelines.evaluation.detector.augmentation import melt, roughen
from pipelines.evaluation.detector.data import (
    FIELDS,
    MISSHAPEN_SEED,
    ROOM,
    SHARD,
    Crops,
    Pictures,
    draw_crops,
    draw_misshapen,
    draw_pictures,
    heart,
    seated,
    shard,
    things_of,
    to_images,
    usual,
)
from pipelines.evaluation.detector.misshapen import known, misshape
from pipelines.evaluation.detector.network import CROP, GRID, HEADS, SEEN, Detector, DetectorConfig, Seen, hearts
from pipelines.evaluation.detector.training import (
    MaterialTask,
    Targets,
    WhatAndWhereTask,
    as_many,
    choose_clear,
    choose_threshold,
    split,
    train,
)


def test_hearts_lie_in_their_things():
    """The pixel at a heart has the thing's colour: red where it is red."""
    scene = next(s for i in range(99) if (s := sample_scene(3, i, {"one": 1.0})).things[0].look.colour == "red")
    right, down = heart(scene.things[0])
    pixel = render([scene], 64)[0, :, int((down + 1) * 32), int((right + 1) * 32)]
    assert pixel[0] > pixel[1] + 0.3
    assert pixel[0] > pixel[2] + 0.3


@pytest.mark.parametrize(
    ("apart", "other", "counted"),
    [
        (0.8, {}, 1),
        (0.8, {"colour": 1}, 1),  # a mushroom's cap and its stem
        (0.8, {"noun": 1, "colour": 1}, 2),  # a chair and what stands on its seat
        (0.3, {"noun": 1, "colour": 1}, 1),
        (1.2, {}, 2),
    ],
)
def test_near_hearts_are_two_if_all_says_so(apart, other, counted):
    """Two cells below each other, which point to hearts that many cells apart."""
    maps = {name: torch.zeros(1, GRID, GRID, channels) for name, channels in HEADS.items()}
    maps["heart"] -= 9.0
    for row, up, looks in ((7, 0.0, {}), (8, 1.0 - apart, other)):
        maps["heart"][0, row, 5] = 2.0 + 0.1 * row
        maps["offset"][0, row, 5, 1] = -up
        for name in ("noun", "colour"):
            maps[name][0, row, 5, looks.get(name, 0)] = 1.0
    score, peak = hearts(maps)
    assert int((peak & (score > 0.5)).sum()) == counted


def test_targets_describe_the_nearest_thing():
    scene = sample_scene(3, 0, {"left": 1.0})
    things = torch.from_numpy(things_of(scene))[None]
    targets = Targets.of(things)
    at = (targets.heart[0] == 1).nonzero()
    assert len(at) == 2
    x = FIELDS.index("x")
    found = sorted(float(targets.thing[0, i, j, x]) for i, j in at.tolist())
    assert found == pytest.approx(sorted(float(thing.position[0]) for thing in scene.things))
    assert targets.offset[0][targets.heart[0] == 1].abs().max() <= 0.5
    nothing = Targets.of(torch.full_like(things, torch.nan))
    assert nothing.heart.max() < 1e-6
    assert nothing.weight.max() == 0


@pytest.fixture(scope="module")
def pictures():
    drawn = draw_pictures(usual, 1, 25)
    return to_images(drawn.pixels[1:]), torch.from_numpy(drawn.things[1:])  # the first is of the bare ground


FORM = FIELDS.index("form")


def test_melting_is_a_function_of_its_arguments(pictures):
    images, things = pictures
    for first, again in zip(*(melt(images, things, np.random.default_rng(1)) for _ in range(2)), strict=True):
        assert torch.equal(first.nan_to_num(), again.nan_to_num())
    assert things[..., FORM].nanmean() == 1  # as they were


def test_what_melts_more_is_less_well_formed(pictures):
    images, things = pictures
    melted, told = melt(images, things, np.random.default_rng(0))
    changed = (melted - images).abs().mean(dim=(1, 2, 3))
    form = told[..., FORM].nan_to_num(nan=1.0).amin(dim=1)
    assert told[..., FORM].nan_to_num().min() >= 0
    assert told[..., FORM].nan_to_num().max() <= 1
    assert form[changed.argsort()[:8]].mean() > form[changed.argsort()[-8:]].mean() + 0.3
    others = [i for i, name in enumerate(FIELDS) if name not in ("form", "right", "down")]
    assert torch.equal(told[..., others].nan_to_num(), things[..., others].nan_to_num())


def test_hearts_move_with_the_warp(pictures):
    """Where a dot was painted on every heart, it is found at the melted heart."""
    _, things = pictures
    dots, at = torch.full((len(things), 3, SEEN, SEEN), -1.0), FIELDS.index("right")
    centre = lambda i, told: ((told[i, 0, at : at + 2] + 1) * (SEEN / 2)).tolist()  # noqa: E731
    for i in range(len(dots)):
        x, y = (int(v) for v in centre(i, things))
        dots[i, :, y - 1 : y + 2, x - 1 : x + 2] = 1.0
    melted, told = melt(dots, things, np.random.default_rng(0))
    moved = 0
    for i in range(len(dots)):
        if told[i, 0, FORM] < 0.3:  # smeared, or torn
            continue
        seen = ((melted[i, 0] + 1) > 0.5).nonzero().float().flip(1)  # x, y
        distance = (seen - torch.tensor(centre(i, told))).norm(dim=1)
        assert distance.min() < 3
        moved += centre(i, told) != centre(i, things)
    assert moved >= 5


def test_misshapen_nouns_are_other_nouns():
    rng = np.random.default_rng(0)
    for name in NOUNS:
        assert any(misshape(name, rng).parts != NOUNS[name].parts for _ in range(3))
    with known({"lump": misshape("castle", rng)}):
        assert "lump" in NOUNS
    assert "lump" not in NOUNS


def test_misshapen_pictures_tell_how_much_is_wrong():
    drawn = draw_misshapen(0, 10)
    true = [usual(i, MISSHAPEN_SEED) for i in range(10)]
    form = drawn.things[..., FORM]
    differs = (drawn.pixels != ((render(true, SEEN) + 1) * 127.5).round().byte().numpy()).mean(axis=(1, 2, 3))
    least = np.nanmin(form, axis=1)
    assert (least[differs == 0] == 1).all()
    assert least[differs.argmax()] < 0.3
    assert list(NOUNS)[-1] == "bottle"  # none of the misshapen ones has stayed


def test_chairs_carry_something():
    for i in range(8):
        nouns = [thing.look.noun for thing in seated(i).things]
        assert "chair" in nouns[1:]


def test_roughened_crops_are_of_no_material(pictures):
    crops = torch.zeros(64, 3, CROP, CROP) + torch.linspace(-1, 1, CROP)
    materials = torch.arange(64) % len(MATERIALS)
    rough, told = roughen(crops, materials, np.random.default_rng(0))
    changed = (rough != crops).flatten(1).any(dim=1)
    assert torch.equal(changed, told == len(MATERIALS))
    assert torch.equal(told[~changed], materials[~changed])
    assert {MATERIALS[m] for m in materials[changed].tolist()} == {"plain", "brick", "denim", "tile", "checker"}


@pytest.fixture
def tasks():
    """Both, tiny, on noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(4, 3, SEEN, SEEN), dtype=np.uint8)
    pictures = Pictures(pixels, np.stack([things_of(sample_scene(3, i)) for i in range(4)]))
    crops = Crops(rng.integers(256, size=(4, 3, CROP + ROOM, CROP + ROOM), dtype=np.uint8), np.arange(4))
    model = Detector(DetectorConfig(fine=(16, 1), coarse=(16, 1), material_fine=(16, 1), material_coarse=(16, 0)))
    what_and_where = WhatAndWhereTask(model.what_and_where, [pictures], batch_size=2)
    return what_and_where, MaterialTask(model.material, [crops], batch_size=2)


def test_losses_are_functions_of_weights_and_step(tasks):
    for task in tasks:
        first, figures = task.loss(task.batch(5, range(2)))
        torch.manual_seed(1)
        again, _ = task.loss(task.batch(5, range(2)))
        other, _ = task.loss(task.batch(6, range(2)))
        assert first.item() == again.item() != other.item()
        assert all(np.isfinite(value) for value in figures.values())
        first.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in task.model.parameters())


def test_the_threshold_is_a_score(tasks):
    assert 0 < choose_threshold(tasks[0].model, tasks[0].shards[0]) < 1


class Told:
    """Sees in each picture of one colour a thing as clear as the picture is bright; in a black one nothing."""

    def see(self, pictures):
        bright = (pictures.mean(dim=(1, 2, 3)) + 1) / 2
        image = bright.nonzero()[:, 0]
        return Seen(image=image, heart=image, score=image, clear=bright[image], at={})


def lessons_of(bright, right):
    pixels = np.broadcast_to(np.array(bright, np.uint8)[:, None, None, None], (len(bright), 3, SEEN, SEEN))
    things = np.full((len(bright), 5, len(FIELDS)), np.nan, np.float32)
    things[:, 0] = 0.0
    things[:, 0, FORM] = right
    return Pictures(pixels, things)


@pytest.mark.parametrize(
    ("right", "above", "below"),
    [
        ((0, 0, 0, 0, 1, 0, 1, 1), 180, 200),  # the one at 140 is given up: to be too kind at 180 would cost twice
        ((0, 0, 1, 1, 1, 0, 1, 1), 60, 100),  # but three are not
    ],
)
def test_what_is_clear_is_chosen_by_the_eye(right, above, below):
    """Each of the pictures is brighter than the last; the first is of nothing."""
    examined = lessons_of((0, 60, 100, 120, 140, 180, 200, 240), right)
    clear = choose_clear(Told(), [examined])  # type: ignore[arg-type]
    assert above / 255 < clear <= below / 255 + 0.01


def test_of_lessons_some_are_kept():
    learned, examined = split(lessons_of(range(20), [1] * 20))
    assert examined.pixels[:, 0, 0, 0].tolist() == [0, 5, 10, 15]
    assert len(learned.pixels) == len(learned.things) == 16
    renders = lessons_of(range(20), [1] * 20)
    renders.things[:3] = np.nan  # the bare ground
    assert as_many(examined, renders).pixels[:, 0, 0, 0].tolist() == [3, 4, 5, 6]


def test_true_renders_count_as_lessons():
    """That a dark picture is a true render outweighs what is darker and right, or brighter and not, nowhere else."""
    lessons = lessons_of((60, 100, 200), (0, 0, 1))
    assert choose_clear(Told(), [lessons]) > 100 / 255  # type: ignore[arg-type]
    renders = lessons_of((90, 90, 90), (1, 1, 1))
    assert 60 / 255 < choose_clear(Told(), [lessons, renders]) <= 90 / 255 + 0.01  # type: ignore[arg-type]


def test_shards_are_drawn_once_and_read_after(tmp_path):
    drawn = []

    def draw(first, count):
        drawn.append((first, count))
        return draw_crops(1, first, 2)

    once, again = (shard(tmp_path, 3, draw, Crops) for _ in range(2))
    assert drawn == [(3 * SHARD, SHARD)]
    assert once.pixels.shape == (2, 3, CROP + ROOM, CROP + ROOM)
    assert np.array_equal(once.pixels, again.pixels)
    assert np.array_equal(once.materials, again.materials)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-003"]


def test_the_first_picture_is_of_the_bare_ground():
    pictures = draw_pictures(lambda index: sample_scene(1, index, {"stack": 1.0}), 0, 2)
    assert np.isnan(pictures.things[0]).all()
    assert (~np.isnan(pictures.things[1, :, 0])).sum() == 3


def test_one_part_is_trained_on_and_the_other_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.evaluation.detector.data.SHARD", 32)
    small = Detector(DetectorConfig(fine=(16, 1), coarse=(16, 1), material_fine=(16, 1), material_coarse=(16, 1)))
    monkeypatch.setattr("pipelines.evaluation.detector.training.DetectorConfig", lambda: small.config)
    small.save_pretrained(tmp_path / "before")
    options = {"shards": 1, "crowds": 0, "seats": 0, "misshapen": 1, "runs": tmp_path / "runs"}
    with pytest.raises(ValueError, match="start_from"):
        train(0.01, only="what-and-where", **options)
    folder = tmp_path / "after"
    train(0.01, start_from=tmp_path / "before", only="what-and-where", folder=folder, **options)
    before, after = (Detector.from_pretrained(path).state_dict() for path in (tmp_path / "before", folder))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"what_and_where"}
    assert not (tmp_path / "runs" / "crops").exists()
