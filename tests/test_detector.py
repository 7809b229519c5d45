"""The shipped toybox detector: reads true renders, refuses what it cannot read, and is stored safely."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade.data.toybox.render import render
from cascade.data.toybox.scene import sample_scene
from pipelines.evaluation.detector.corruptions import blur, coarsen, jpeg, noise, smooth_noise, warp
from pipelines.evaluation.detector.data import (
    bare,
)
from pipelines.evaluation.detector.network import CONFIG, FOLDER, SIZE, TENSORS, Detector
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
