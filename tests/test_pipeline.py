"""`Pipeline` on a tiny real cascade, 8 -> 16 px: what comes out, what it depends on, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cascade import Pipeline
from cascade.chain import Cascade
from cascade.thresholding import Thresholding
from conditioning.lowres import downsample
from conditioning.text import TextEmbedding
from tests.conftest import tiny_stages
from weights.store import WeightsError

PROMPTS = ["a red car", "a green ball on a blue house"]


def tensor(pipe, *args, **kwargs):
    return pipe(*args, output_type="pt", **kwargs).images


class TestImages:
    def test_one_prompt_one_image(self, pipe):
        out = pipe("a red car", seed=3)
        assert out.images[0].size == (16, 16)
        assert out.images[0].mode == "RGB"
        assert out.seeds == [3]

    def test_output_types_agree(self, pipe):
        pil, array, pt = (pipe("a red car", seed=0, output_type=kind).images for kind in ("pil", "np", "pt"))
        assert (array.shape, array.dtype, pt.shape) == ((1, 16, 16, 3), np.uint8, (1, 3, 16, 16))
        assert (np.array(pil[0]) == array[0]).all()
        assert ((pt[0].permute(1, 2, 0) * 255).round().byte().numpy() == array[0]).all()

    def test_prompt_major_order_and_counted_seeds(self, pipe):
        out = pipe(PROMPTS, num_images_per_prompt=2, seed=5)
        assert out.seeds == [5, 6, 7, 8]
        assert [entry["prompt"] for entry in out.metadata] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2

    def test_image_k_is_the_same_in_any_batch(self, pipe):
        together = tensor(pipe, PROMPTS, num_images_per_prompt=3, seed=5)
        split = tensor(pipe, PROMPTS, num_images_per_prompt=3, seed=5, max_batch_size=4)
        alone = torch.cat([tensor(pipe, PROMPTS[k // 3], seed=5 + k) for k in range(6)])
        torch.testing.assert_close(split, together, atol=1e-4, rtol=0)
        torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)
        assert (together[0] - together[1]).abs().max() > 0.05

    def test_the_text_matters(self, pipe):
        a, b = tensor(pipe, "a red car", seed=0), tensor(pipe, "a green ball on a blue house", seed=0)
        assert (a - b).abs().max() > 1e-3

    def test_a_negative_prompt_matters_only_where_guidance_is_on(self, pipe):
        def draw(negative, scale):
            return tensor(pipe, "a red car", negative, seed=0, guidance_scale=scale)

        assert (draw(None, 3.0) - draw("a blue house", 3.0)).abs().max() > 1e-4
        assert torch.equal(draw(None, 1.0), draw("a blue house", 1.0))

    def test_an_empty_negative_prompt_is_no_text(self, pipe):
        def null(negative):
            return pipe.encode_prompt(PROMPTS, negative)[1]

        for empty in ("", " ", ["", " "]):
            assert torch.equal(null(empty).tokens, null(None).tokens)
        mixed, said = null(["", "a blue house"]), null("a blue house")
        assert torch.equal(mixed.tokens[1], said.tokens[1])
        assert mixed.mask.sum(dim=1).tolist() == [1, said.mask[1].sum()]
        assert (mixed.tokens[0] == 0).all()
        assert torch.equal(tensor(pipe, "a red car", "", seed=0), tensor(pipe, "a red car", seed=0))

    def test_embeddings_instead_of_prompts(self, pipe):
        embeds, null = pipe.encode_prompt(PROMPTS, "a blue ball")
        given_ = tensor(pipe, prompt_embeds=embeds, negative_prompt_embeds=null, seed=0)
        torch.testing.assert_close(given_, tensor(pipe, PROMPTS, "a blue ball", seed=0), atol=1e-5, rtol=0)

    def test_the_same_embeddings_without_an_encoder(self, pipe):
        embeds, _ = pipe.encode_prompt(PROMPTS)
        bare = Pipeline(pipe.cascade)
        bare.set_progress_bar_config(disable=True)
        assert torch.equal(tensor(bare, prompt_embeds=embeds, seed=0), tensor(pipe, prompt_embeds=embeds, seed=0))

    def test_settings_per_stage(self, pipe):
        out = pipe("a red car", seed=0, num_inference_steps=[5, None], sampler=["heun", "dpmpp_2m"], aug_level=0.3)
        base, sr = out.metadata[0]["stages"].values()
        assert (base["steps"], sr["steps"], base["sampler"], sr["sampler"], sr["aug_level"]) == (
            5,
            3,
            "heun",
            "dpmpp_2m",
            0.3,
        )

    def test_every_setting_changes_the_picture(self, pipe):
        plain = tensor(pipe, "a red car", seed=0)
        for setting in (
            {"num_inference_steps": 7},
            {"guidance_scale": 9.0},
            {"thresholding": "none"},
            {"aug_level": 0.4},
            {"sampler": "ddpm"},
        ):
            assert (tensor(pipe, "a red car", seed=0, **setting) - plain).abs().max() > 1e-3, setting

    def test_non_square(self, pipe):
        assert tensor(pipe, "a red car", seed=0, height=16, width=32).shape == (1, 3, 16, 32)

    def test_bfloat16(self, pipe):
        full = tensor(pipe, "a red car", seed=0)
        half = tensor(pipe.to(torch.bfloat16), "a red car", seed=0)
        assert half.dtype == torch.float32
        assert (half - full).abs().mean() < 0.05
        pipe.text_encoder.to(dtype=torch.float32)  # the encoder is shared among tests

    def test_unseeded_calls_differ_and_record_their_seed(self, pipe):
        first, second = pipe("a red car"), pipe("a red car")
        assert first.seeds != second.seeds
        again = pipe("a red car", seed=first.seeds[0])
        assert (np.array(again.images[0]) == np.array(first.images[0])).all()

    def test_a_generator_supplies_seeds(self, pipe):
        draw = [pipe("a red car", generator=torch.Generator().manual_seed(7)).seeds for _ in range(2)]
        assert draw[0] == draw[1]
        many = pipe(PROMPTS, generator=[torch.Generator().manual_seed(7), torch.Generator().manual_seed(8)]).seeds
        assert many[0] == draw[0][0]
        assert many[1] != many[0] + 1


class TestStages:
    def test_stop_after_and_intermediates(self, pipe):
        out = pipe("a red car", seed=0, return_intermediates=True, output_type="pt")
        base = pipe("a red car", seed=0, stop_after=0, output_type="pt")
        assert [images.shape[-1] for images in out.intermediates] == [8, 16]
        assert torch.equal(out.intermediates[0], base.images)

    def test_a_stage_can_be_redone_alone(self, pipe):
        out = pipe("a red car", seed=0, return_intermediates=True, output_type="pt")
        again = tensor(pipe, "a red car", seed=0, image=out.intermediates[0], start_stage=1)
        torch.testing.assert_close(again, out.images, atol=1e-4, rtol=0)

    def test_upscaling_ones_own_image(self, pipe):
        image = Image.new("RGB", (12, 8), "red")
        assert tensor(pipe, "a red car", image=image, start_stage=1, seed=0).shape == (1, 3, 16, 24)

    def test_variation_keeps_more_at_less_strength(self, pipe):
        image = torch.zeros(3, 16, 16)
        image[:, :, 8:] = 1
        small = downsample(image[None], (8, 8))

        def distance(strength):
            drawn = tensor(pipe, "a red car", image=small[0], strength=strength, seed=0, stop_after=0)
            return (drawn - small).abs().mean()

        assert distance(0.05) < 0.5 * distance(1.0)

    def test_inpainting_keeps_what_is_known(self, pipe):
        image, mask = torch.rand(3, 16, 16), torch.zeros(16, 16)
        mask[:, 8:] = 1
        drawn = tensor(pipe, "a red car", image=image, mask_image=mask, seed=0)[0]
        torch.testing.assert_close(drawn[:, :, :8], image[:, :, :8], atol=1e-5, rtol=0)
        assert (drawn[:, :, 8:] - image[:, :, 8:]).abs().mean() > 0.05

    def test_without_text(self):
        """A plain SR3: one stage, an image in, a larger one out."""
        from dataclasses import replace

        from cascade.build import build_stage

        config = tiny_stages()[1].config
        stage = build_stage(replace(config, network=replace(config.network, text_width=None)))
        pipe = Pipeline(Cascade([stage]))
        pipe.set_progress_bar_config(disable=True)
        assert tensor(pipe, image=torch.rand(2, 3, 8, 8), seed=0).shape == (2, 3, 16, 16)
        with pytest.raises(ValueError, match="takes no text"):
            pipe("a red car", image=torch.rand(3, 8, 8))
        with pytest.raises(ValueError, match="enlarges an image"):
            pipe()


class TestCallbacks:
    def test_every_step_is_reported(self, pipe):
        seen = []
        pipe(
            "a red car",
            seed=0,
            callback_on_step_end=lambda p, i, t, kw: seen.append((kw["stage"], i, t, kw["x0"].shape[-1])),
        )
        assert [(name, i, size) for name, i, _, size in seen] == [("base-8", i, 8) for i in range(4)] + [
            ("sr-16", i, 16) for i in range(3)
        ]
        levels = [t for name, _, t, _ in seen if name == "base-8"]
        assert levels == sorted(levels)

    def test_interruption_gives_what_there_is(self, pipe):
        def stop(pipe, i, logsnr, kwargs):
            pipe.interrupt = kwargs["stage"] == "base-8" and i == 1

        assert tensor(pipe, "a red car", seed=0, callback_on_step_end=stop).shape[-1] == 8
        assert tensor(pipe, "a red car", seed=0).shape[-1] == 16

    def test_the_progress_bar_can_be_turned_off(self, pipe, capsys):
        pipe.set_progress_bar_config(disable=False)
        pipe("a red car", seed=0)
        assert "base-8" in capsys.readouterr().err
        pipe.set_progress_bar_config(disable=True)
        pipe("a red car", seed=0)
        assert not capsys.readouterr().err


class TestSaving:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_saved_pipeline_gives_the_same_pixels(self, pipe, tmp_path, dtype):
        pipe.to(dtype)
        pipe.save_pretrained(tmp_path / "mine")
        again = Pipeline.from_pretrained(tmp_path / "mine", dtype=dtype)
        again.set_progress_bar_config(disable=True)
        assert torch.equal(tensor(again, PROMPTS, seed=0), tensor(pipe, PROMPTS, seed=0))
        assert (tmp_path / "mine" / "README.md").read_text().startswith("# mine")
        pipe.to(torch.float32)  # the encoder is shared among tests

    def test_the_vocabulary_and_the_limits_come_back(self, pipe, tmp_path):
        pipe.vocabulary = ["a", "red", "car"]
        pipe.save_pretrained(tmp_path / "mine")
        again = Pipeline.from_pretrained(tmp_path / "mine")
        assert again.vocabulary == ["a", "red", "car"]
        assert again.text_encoder.max_length == 64
        with pytest.warns(UserWarning, match="'elephant'"):
            again.encode_prompt("a red elephant")

    def test_bad_folders(self, pipe, tmp_path):
        with pytest.raises(WeightsError, match="no folder"):
            Pipeline.from_pretrained(tmp_path / "nowhere")
        with pytest.raises(WeightsError, match=r"cascade\.json"):
            Pipeline.from_pretrained(tmp_path)
        pipe.save_pretrained(tmp_path / "mine")
        path = tmp_path / "mine" / "stage-0-base-8" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"colour": "red"}))
        with pytest.raises(ValueError, match="'colour'"):
            Pipeline.from_pretrained(tmp_path / "mine")
        path.write_text(json.dumps(config | {"network": config["network"] | {"width": 64}}))
        with pytest.raises(WeightsError, match="expected"):
            Pipeline.from_pretrained(tmp_path / "mine")
        path.write_text(json.dumps(config))
        manifest = tmp_path / "mine" / "cascade.json"
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
        with pytest.raises(WeightsError, match="99"):
            Pipeline.from_pretrained(tmp_path / "mine")

    def test_a_hub_id_without_network(self, tmp_path):
        with pytest.raises(WeightsError, match="not in the cache"):
            Pipeline.from_pretrained("nobody/nothing", cache_dir=tmp_path)


IMAGE = torch.zeros(3, 8, 8)
BAD = [
    ({"prompt": ""}, "empty"),
    ({"prompt": "  "}, "empty"),
    ({"prompt": ["a red car", ""]}, r"prompt\[1\]"),
    ({"prompt": []}, "empty list"),
    ({"prompt": 3}, "expected a string"),
    ({"prompt": ["a", None]}, r"prompt\[1\]"),
    ({"prompt": None}, "give prompt or prompt_embeds"),
    ({"negative_prompt": ["a", "b"]}, "2 entries for 1 prompts"),
    ({"negative_prompt": []}, "empty list"),
    ({"negative_prompt": ["a", None]}, r"negative_prompt\[1\] is None"),
    ({"noise_level": 250}, "aug_level=0.25 for noise_level=250"),
    ({"clean_caption": True}, "give it to Pipeline.from_pretrained"),
    ({"num_inference_steps": 0}, "at least 1"),
    ({"num_inference_steps": 2.5}, "2.5"),
    ({"num_inference_steps": [1, 2, 3]}, "3 values and the cascade 2 stages"),
    ({"guidance_scale": math.nan}, "nan"),
    ({"guidance_scale": -1}, "-1"),
    ({"guidance_scale": math.inf}, "inf"),
    ({"guidance_scale": "7"}, "expected a number"),
    ({"sampler": "euler"}, "'euler'.*ddim"),
    ({"sampler": 1}, "expected its name"),
    ({"thresholding": "clip"}, "'clip'"),
    ({"thresholding": 0.9}, "0.9"),
    ({"aug_level": 1.5}, "1.5"),
    ({"aug_level": 0.7}, "trained with aug_level up to 0.5"),
    ({"num_images_per_prompt": 0}, "at least 1"),
    ({"max_batch_size": 0}, "at least 1"),
    ({"height": 15}, "try 16"),
    ({"width": 18}, "try 16|try 20"),
    ({"height": -16}, "at least 1"),
    ({"height": "16"}, "whole number"),
    ({"seed": -1}, "-1"),
    ({"seed": 1.5}, "1.5"),
    ({"seed": 2**63}, "expected from 0"),
    ({"seed": 0, "generator": torch.Generator()}, "both seed and generator"),
    ({"generator": 7}, "torch.Generator"),
    ({"generator": [torch.Generator()] * 2}, "2 entries for 1 images"),
    ({"start_stage": 2}, "start_stage is 2"),
    ({"start_stage": 1}, "give it as image"),
    ({"stop_after": 2}, "stop_after is 2"),
    ({"stop_after": 0, "start_stage": 1, "image": IMAGE}, "stop_after is 0"),
    ({"image": IMAGE}, "strength"),
    ({"image": "cat.png", "start_stage": 1}, "str"),
    ({"image": IMAGE * 2 - 1, "start_stage": 1}, r"\(image \+ 1\) / 2"),
    ({"image": IMAGE + 300, "start_stage": 1}, r"\[0, 1\]"),
    ({"image": IMAGE * math.nan, "start_stage": 1}, "nan"),
    ({"image": IMAGE.byte(), "start_stage": 1}, "uint8"),
    ({"image": torch.zeros(1, 8, 8), "start_stage": 1}, "3 x H x W"),
    ({"image": np.zeros((8, 8), np.uint8), "start_stage": 1}, "H x W x 3"),
    ({"image": torch.zeros(3, 7, 8), "start_stage": 1}, "try 16|try 12"),
    ({"image": [IMAGE, torch.zeros(3, 8, 16)], "start_stage": 1}, "different sizes"),
    ({"image": [IMAGE, IMAGE], "start_stage": 1}, "2 images for 1 prompts"),
    ({"image": IMAGE, "start_stage": 1, "height": 32}, "becomes 16 x 16"),
    ({"strength": 0.5}, "give it as image"),
    ({"image": torch.zeros(3, 16, 16), "strength": 0}, "strength is 0"),
    ({"image": torch.zeros(3, 16, 16), "strength": 1.5}, "1.5"),
    ({"image": torch.zeros(3, 16, 16), "mask_image": torch.zeros(8, 8)}, "one size"),
    ({"mask_image": torch.zeros(16, 16)}, "give it as image"),
    ({"output_type": "jpeg"}, "jpeg"),
    ({"prompt_embeds": TextEmbedding.null(1, 16)}, "not both"),
    ({"prompt": None, "prompt_embeds": TextEmbedding.null(1, 8)}, "width 8"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 4, 16)}, "TextEmbedding"),
    ({"negative_prompt_embeds": TextEmbedding.null(3, 16)}, "3 rows for 1 prompts"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[str(list(bad.items())[-1])[:40] for bad, _ in BAD])
def test_bad_input_is_refused_before_any_work(pipe, monkeypatch, bad, message):
    def no_work(*args, **kwargs):
        raise AssertionError("work had begun")

    for stage in pipe.cascade.stages:
        monkeypatch.setattr(stage.denoiser.network, "forward", no_work)
    with pytest.raises((ValueError, TypeError), match=message):
        pipe(**{"prompt": "a red car", **bad})


@given(
    st.one_of(
        st.none(), st.integers(-2, 40), st.floats(), st.text(max_size=3), st.lists(st.integers(-1, 3), max_size=3)
    ),
    st.sampled_from(["num_inference_steps", "guidance_scale", "aug_level", "seed", "height", "start_stage", "sampler"]),
)
@settings(max_examples=80)
def test_any_value_is_drawn_with_or_refused_with_its_name(pipe_for_hypothesis, value, name):
    """Never another error, never a picture of NaN."""
    arguments = {"num_inference_steps": [2, 1], "seed": 0} | {name: value}
    try:
        images = tensor(pipe_for_hypothesis, "a red car", **arguments)
    except (ValueError, TypeError) as error:
        message = str(error)
    else:
        message = name
        assert images.isfinite().all()
    assert name in message or str(value) in message


@pytest.fixture(scope="module")
def pipe_for_hypothesis(text_encoder):
    pipe = Pipeline(Cascade(tiny_stages()), text_encoder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_words_outside_the_vocabulary_are_warned_about_once(pipe):
    pipe.vocabulary = ["a", "red", "car"]
    with pytest.warns(UserWarning, match="not trained on 'elephant', 'ünder'.*a, red, car") as record:
        pipe("A red Elephant, ünder a CAR!", seed=0)
    assert len(record) == 1


def test_thresholding_takes_its_own_settings(pipe):
    out = pipe("a red car", seed=0, thresholding=Thresholding("dynamic", percentile=0.9, max_value=1.5))
    assert out.metadata[0]["stages"]["base-8"]["thresholding"]["max_value"] == 1.5


def test_an_encoder_of_another_width_is_refused(text_encoder):
    from dataclasses import replace

    from cascade.build import build_stage

    config = tiny_stages()[0].config
    stage = build_stage(replace(config, network=replace(config.network, text_width=24)))
    with pytest.raises(ValueError, match="width 16"):
        Pipeline(Cascade([stage]), text_encoder)
