"""The shipped toybox detector: reads true renders, refuses what it cannot read, and is stored safely."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade.data.toybox.materials import MATERIALS
from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.render import render
from cascade.data.toybox.scene import sample_scene
from pipelines.evaluation.detector.augmentation import melt, roughen
from pipelines.evaluation.detector.corruptions import blur, coarsen, jpeg, noise, smooth_noise, warp
from pipelines.evaluation.detector.data import (
    FIELDS,
    MISSHAPEN_SEED,
    ROOM,
    SHARD,
    Crops,
    Pictures,
    bare,
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
from pipelines.evaluation.detector.network import CONFIG, CROP, FOLDER, SEEN, SIZE, TENSORS, Detector, DetectorConfig
from pipelines.evaluation.detector.training import (
    MaterialTask,
    Targets,
    WhatAndWhereTask,
    choose_threshold,
)
from pipelines.evaluation.detector.validation import draw, find, mistakes, right_shares
from pipelines.evaluation.judge import UNCLEAR
from pipelines.evaluation.suite import TOYBOX, read_suite
from weights import WeightsError

PER_CATEGORY = 5


@pytest.fixture(scope="module")
def detector():
    return Detector.from_pretrained()


@pytest.fixture(scope="module")
def drawn():
    """A few true renders of every category of the suite."""
    by_category = {}
    for prompt in read_suite(TOYBOX):
        by_category.setdefault(prompt.category, []).append(prompt)
    few = [p for prompts in by_category.values() for p in prompts[:: len(prompts) // PER_CATEGORY][:PER_CATEGORY]]
    return draw(few, least=1)


@pytest.fixture(scope="module")
def found(detector, drawn):
    return find(detector, drawn)


@pytest.fixture
def images(drawn):
    return torch.stack([each.pixels for each in drawn[:4]]).float() / 127.5 - 1


def gist(found):
    """What a verdict depends on, rounded."""
    return [
        [(f.noun, f.colour, f.material, *np.round(f.position, 2), round(f.bulk, 2)) for f in each] for each in found
    ]


def test_true_renders_are_right(drawn, found):
    assert len(drawn) == 8 * PER_CATEGORY
    assert np.mean(list(right_shares(drawn, found).values())) >= 0.9, mistakes(drawn, found)


def test_another_prompt_is_wrong(drawn, found):
    assert np.mean(list(right_shares(drawn, found, wrong=True).values())) <= 0.1


def test_what_is_found_is_in_world_units(drawn, found):
    pairs = [(d.scene.things[0], f[0]) for d, f in zip(drawn, found, strict=True) if len(d.scene.things) == len(f) == 1]
    assert len(pairs) > 10
    for thing, seen in pairs:
        assert np.allclose(seen.position, thing.position, atol=0.15)
        assert seen.bulk == pytest.approx(thing.bulk, rel=0.1)
        assert 0 < seen.score <= 1


@pytest.mark.parametrize("corruption", ["blur 1 px", "noise 0.05", "JPEG 50"])
def test_spoilt_renders_are_right(detector, drawn, corruption):
    shares = right_shares(drawn, find(detector, drawn, corruption))
    assert np.mean(list(shares.values())) >= 0.85


def test_nothing_is_found_where_nothing_is(detector):
    ground = render([bare(sample_scene(7, i)) for i in range(4)], SIZE)
    grain = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    flat = torch.zeros(1, 3, SIZE, SIZE)
    assert detector.find(torch.cat([ground, grain, flat])) == [[]] * 7


def test_lumps_are_no_toys(detector, drawn):
    """True renders warped beyond recognition: hardly any is still right, though all were."""
    images = torch.stack([each.pixels for each in drawn]).float() / 127.5 - 1
    waves = smooth_noise(len(images), 2, 9, SIZE, torch.Generator().manual_seed(0))
    found = [detector.find(warp(images, amount * waves)) for amount in (2.0, 16.0)]
    slightly, badly = (np.mean(list(right_shares(drawn, each).values())) for each in found)
    assert slightly >= 0.6
    assert badly <= 0.1
    assert UNCLEAR in [thing.noun for things in found[1] for thing in things]


def test_a_noun_that_is_not_sure_enough_is_unclear(detector, images):
    strict = Detector(replace(detector.config, clear=1 - 1e-6))
    strict.load_state_dict(detector.state_dict())
    assert {thing.noun for things in strict.find(images) for thing in things} == {UNCLEAR}


def test_other_images_of_the_batch_do_not_matter(detector, images):
    assert gist(detector.find(images)) == gist([detector.find(image[None])[0] for image in images])


def test_no_images(detector):
    assert detector.find(torch.empty(0, 3, SIZE, SIZE)) == []


def test_other_sizes_are_resized(detector, drawn, images):
    large = render([each.scene for each in drawn[:2]], 384, supersample=1)
    names = [[(f.noun, f.colour) for f in each] for each in detector.find(images)]
    assert [[(f.noun, f.colour) for f in each] for each in detector.find(large)] == names[:2]
    small = torch.nn.functional.avg_pool2d(images, 2)
    assert [[(f.noun, f.colour) for f in each] for each in detector.find(small)] == names


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"\(3, 64, 64\): expected B 3 H H"),
        (torch.zeros(1, 3, 64, 48), r"\(1, 3, 64, 48\).*crop them to squares"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "torch.uint8: expected floats.*divide"),
        (torch.full((1, 3, 64, 64), 200.0), "200 to 200: expected.*rescale"),
        (torch.full((1, 3, 64, 64), torch.nan), "nan.*expected"),
    ],
)
def test_images_it_cannot_read_are_named(detector, images, message):
    with pytest.raises(ValueError, match=message):
        detector.find(images)


# Storage


def test_the_shipped_file_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4e6


def test_round_trip(detector, images, tmp_path):
    detector.save_pretrained(tmp_path)
    again = Detector.from_pretrained(tmp_path)
    assert again.config == detector.config
    assert again.find(images) == detector.find(images)  # to the bit: what was loaded is what float16 can say


def broken(tmp_path, change):
    """A copy of the shipped detector, with its tensors changed."""
    tensors = load_file(FOLDER / TENSORS)
    change(tensors)
    save_file(tensors, tmp_path / TENSORS)
    (tmp_path / CONFIG).write_bytes((FOLDER / CONFIG).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("material.nearness"), "1 missing: material.nearness"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda t: t.update({"material.nearness": torch.zeros(2, 2)}),
            r"misshapen: material.nearness \(2, 2\), expected",
        ),
        (lambda t: t["material.nearness"].fill_(torch.inf), "not finite in .*material.nearness"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    with pytest.raises(WeightsError, match=message):
        Detector.from_pretrained(broken(tmp_path, change))


def test_a_truncated_file_is_named(tmp_path):
    folder = broken(tmp_path, lambda t: None)
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:1000])
    with pytest.raises(WeightsError, match=f"{TENSORS} is truncated or damaged"):
        Detector.from_pretrained(folder)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=f"no .*{CONFIG}; train one"):
        Detector.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 2.0}, "threshold 2.0: expected a score"),
        ({"clear": 0.0}, "clear 0.0: expected a score"),
        ({"fine": [63, 2]}, "fine .*63.*multiple of 16"),
        ({"depth": 3}, "unknown key 'depth'"),
        ({"nouns": ["cube"]}, "nouns .*train the detector anew"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path, change, message):
    folder = broken(tmp_path, lambda t: None)
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        Detector.from_pretrained(folder)


# Training


def test_hearts_lie_in_their_things():
    """The pixel at a heart has the thing's colour: red where it is red."""
    scene = next(s for i in range(99) if (s := sample_scene(3, i, {"one": 1.0})).things[0].look.colour == "red")
    right, down = heart(scene.things[0])
    pixel = render([scene], 64)[0, :, int((down + 1) * 32), int((right + 1) * 32)]
    assert pixel[0] > pixel[1] + 0.3
    assert pixel[0] > pixel[2] + 0.3


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


# Corruptions


def test_corruptions_keep_a_flat_picture(drawn):
    flat = torch.full((2, 3, 64, 64), 0.2)
    assert torch.allclose(blur(flat, torch.tensor([0.0, 2.0])), flat, atol=1e-5)
    assert torch.allclose(coarsen(flat, 16), flat, atol=1e-5)
    assert torch.allclose(jpeg(flat, [40, 95]), flat, atol=0.02)
    noisy = noise(flat, torch.tensor([0.0, 0.1]), torch.Generator().manual_seed(0))
    assert torch.equal(noisy[0], flat[0])
    assert noisy[1].std().item() == pytest.approx(0.1, rel=0.05)


def test_warps_take_pixels_from_elsewhere(images):
    still = torch.zeros(2, 2, SIZE, SIZE)
    assert torch.allclose(warp(images[:2], still), images[:2], atol=1e-3)
    still[:, 0] = 3.0
    assert torch.allclose(warp(images[:2], still)[..., :-3], images[:2, ..., 3:], atol=1e-3)


def test_blur_zero_leaves_an_image_as_it_is(images):
    blurred = blur(images[:2], torch.tensor([0.0, 1.0]))
    assert torch.allclose(blurred[0], images[0], atol=1e-5)
    assert (blurred[1] - images[1]).abs().max() > 0.05


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
