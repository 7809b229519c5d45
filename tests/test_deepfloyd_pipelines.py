"""DeepFloyd IF's pipelines: the same images as diffusers' own, saved to disk and loaded by ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deepfloyd_models import TEXT_WIDTH, VARIANTS, save_both, save_pipeline, tiny_t5, unet_config

from cascade import Pipeline
from cascade.config import ConfigError
from cascade.randomness import Draws
from conditioning.text import TextEmbedding, TextEncoder
from pipelines.cli import main
from weights.store import WeightsError

pytestmark = [
    pytest.mark.filterwarnings("ignore:these weights are under"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PROMPTS = ["A Red car on a blue house ", "a ball"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> tuple[Path, Any, Any]:
    """A folder with IF-I and IF-II, and diffusers' pipelines that were saved there."""
    root = tmp_path_factory.mktemp("deepfloyd")
    return root, *save_both(root, tiny_t5(text_encoder))


@pytest.fixture
def pipe(saved: tuple[Path, Any, Any]) -> Pipeline:
    pipe = Pipeline.from_pretrained(saved[0] / "IF-I", upscalers=[saved[0] / "IF-II"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same_noise(monkeypatch: pytest.MonkeyPatch, seeds: list[int], stage: int, enlarges: bool = False) -> None:
    """Let diffusers draw what `Draws` gives a stage: x_T, for stage II the low-resolution noise, then every step's."""
    draws = Draws(seeds, stage)
    purposes = iter(["start", "augmentation"] if stage or enlarges else ["start"])

    def randn_tensor(shape: tuple[int, ...], dtype: torch.dtype, **_: Any) -> torch.Tensor:
        return draws.normal(next(purposes, "steps"), tuple(shape[1:])).to(dtype)

    for module in ("pipeline_if", "pipeline_if_superresolution"):
        monkeypatch.setattr(f"diffusers.pipelines.deepfloyd_if.{module}.randn_tensor", randn_tensor)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", randn_tensor)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def last_of_each_stage(pipe: Pipeline, **call: Any) -> list[torch.Tensor]:
    """What every stage draws, as it is before clipping."""
    found: dict[str, torch.Tensor] = {}
    pipe(callback_on_step_end=lambda _, i, t, step: found.update({step["stage"]: step["z"]}), **call)
    return list(found.values())


def both(
    monkeypatch: pytest.MonkeyPatch, saved: tuple[Path, Any, Any], pipe: Pipeline, ours: dict, *theirs: dict
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(found, wanted) of every stage; diffusers' stage II is given diffusers' stage I."""
    _, small, large = saved
    found = last_of_each_stage(pipe, prompt=PROMPTS, seed=5, **ours)
    known = {"prompt": PROMPTS, "clean_caption": False, "output_type": "pt"}
    same_noise(monkeypatch, [5, 6], 0)
    first = small(**known, **theirs[0]).images
    yield found[0], first
    same_noise(monkeypatch, [5, 6], 1)
    yield found[1], large(image=first, **known, **theirs[1]).images


CALLS: dict[str, tuple[dict, dict, dict]] = {
    "ten steps": ({"num_inference_steps": 10}, {"num_inference_steps": 10}, {"num_inference_steps": 10}),
    "another size, scale and noise level": (
        {"num_inference_steps": [4, 3], "guidance_scale": [3.0, 9.0], "aug_level": 0.4, "height": 16, "width": 48},
        {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 8, "width": 24},
        {"num_inference_steps": 3, "guidance_scale": 9.0, "noise_level": 400, "height": 16, "width": 48},
    ),
    "negative prompts": (
        {"num_inference_steps": 3, "negative_prompt": ["a house", "A CAR"]},
        {"num_inference_steps": 3, "negative_prompt": ["a house", "A CAR"]},
        {"num_inference_steps": 3, "negative_prompt": ["a house", "A CAR"]},
    ),
    "an empty negative prompt among others": (
        {"num_inference_steps": 3, "negative_prompt": ["", "A CAR"]},
        {"num_inference_steps": 3, "negative_prompt": ["", "A CAR"]},
        {"num_inference_steps": 3, "negative_prompt": ["", "A CAR"]},
    ),
    "without guidance": (
        {"num_inference_steps": 3, "guidance_scale": 1.0},
        {"num_inference_steps": 3, "guidance_scale": 1.0},
        {"num_inference_steps": 3, "guidance_scale": 1.0},
    ),
    # At step 999 alpha is 5e-5: there float32 itself leaves a pixel near 0 uncertain by 1e-2.
    "step lists": (
        {"timesteps": [[980, 700, 420, 99, 0], [900, 640, 310, 0]]},
        {"timesteps": [980, 700, 420, 99, 0]},
        {"timesteps": [900, 640, 310, 0]},
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_images_are_those_of_diffusers(call: str, saved: Any, pipe: Pipeline, monkeypatch: Any) -> None:
    for found, wanted in both(monkeypatch, saved, pipe, *CALLS[call]):
        assert found.shape == wanted.shape
        assert wanted.std() > 0.1
        assert relative_error(found, wanted) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if "fixed" not in name])  # diffusers' pipelines need 6
def test_ten_steps_of_every_kind_of_network(
    variant: str, text_encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = unet_config(**VARIANTS[variant])
    theirs = save_pipeline(tmp_path / "IF", config, tiny_t5(text_encoder, config["encoder_hid_dim"] or 64))
    pipe = Pipeline.from_pretrained(tmp_path / "IF")
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(2, 3, 8, 8) if config["in_channels"] == 6 else None
    (found,) = last_of_each_stage(pipe, prompt=PROMPTS, seed=5, num_inference_steps=10, image=image)
    same_noise(monkeypatch, [5, 6], 0, enlarges=image is not None)
    known: dict[str, Any] = {} if image is None else {"image": image * 2 - 1}
    wanted = theirs(PROMPTS, num_inference_steps=10, clean_caption=False, output_type="pt", **known).images
    assert wanted.std() > 0.1
    assert relative_error(found, wanted) <= 1e-4


def test_the_thresholds_are_at_work_in_both_stages(saved: Any, pipe: Pipeline) -> None:
    own = [stage.config.sampling.thresholding for stage in pipe.cascade.stages]
    assert [(each.kind, each.max_value) for each in own] == [("dynamic", 1.5), ("dynamic", 1.0)]
    call = {"prompt": "a ball", "seed": 0, "num_inference_steps": 3}
    with_them = last_of_each_stage(pipe, **call)
    for kinds in (["static", None], [None, "none"]):
        without = last_of_each_stage(pipe, thresholding=kinds, **call)
        changed = 0 if kinds[0] else 1
        assert relative_error(without[changed], with_them[changed]) > 1e-3


@pytest.mark.parametrize(
    "name", ["fast27", "smart27", "smart50", "smart100", "smart185", "super27", "super40", "super100"]
)
def test_step_lists_by_name(name: str, pipe: Pipeline) -> None:
    from diffusers.pipelines.deepfloyd_if import timesteps

    from pipelines.timesteps import with_timesteps

    settings = [stage.config.sampling for stage in pipe.cascade.stages]
    wanted = tuple(getattr(timesteps, f"{name}_timesteps"))
    assert [each.timesteps for each in with_timesteps(pipe.cascade, settings, name, None)] == [wanted] * 2
    one = with_timesteps(pipe.cascade, settings, [name, None], [None, 7])
    assert (one[0].timesteps, one[0].steps, one[1].timesteps) == (wanted, len(wanted), None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"timesteps": "smart28"}, ValueError, "timesteps is 'smart28'; expected .*smart27"),
        ({"timesteps": [3, 5, 0]}, ValueError, "falling whole numbers from 999 to 0"),
        ({"timesteps": [1000, 0]}, ValueError, "falling whole numbers from 999 to 0"),
        ({"timesteps": [[9, 0.5], None]}, TypeError, "expected whole numbers"),
        ({"timesteps": ["fast27"]}, ValueError, "timesteps has 1 values and the cascade 2 stages"),
        ({"timesteps": "fast27", "num_inference_steps": 3}, ValueError, "give one of them"),
        ({"num_inference_steps": 1001}, ValueError, "from 1 to the table's 1000"),
        ({"aug_level": 1.0}, ValueError, "trained with aug_level up to 0.999"),
        ({"aug_level": 250}, ValueError, "aug_level is 250"),
        ({"height": 40, "width": 35}, ValueError, "which 40 x 35 is not a whole multiple of"),
    ],
)
def test_bad_settings_are_refused_before_any_work(arguments: dict, error: type, message: str, pipe: Pipeline) -> None:
    with pytest.raises(error, match=message):
        pipe("a ball", callback_on_step_end=lambda *_: pytest.fail("a step was made"), **arguments)


# Text


def test_embeddings_are_those_of_diffusers(saved: Any, pipe: Pipeline) -> None:
    text, null = pipe.encode_prompt(PROMPTS)
    wanted, negative = saved[1].encode_prompt(PROMPTS, clean_caption=False)
    assert text.tokens.shape == (2, 77, TEXT_WIDTH)
    torch.testing.assert_close(text.tokens, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(null.tokens, negative, rtol=1e-5, atol=1e-6)
    assert text.visible.all()


def test_an_empty_negative_prompt_is_what_diffusers_takes_for_none(saved: Any, pipe: Pipeline) -> None:
    def null(prompts: Any, negative: Any) -> torch.Tensor:
        return pipe.encode_prompt(prompts, negative)[1].tokens

    for prompts, negative in (("a ball", ""), (PROMPTS, [" ", ""]), (PROMPTS, ["", "a house"])):
        wanted = saved[1].encode_prompt(prompts, negative_prompt=negative, clean_caption=False)[1]
        torch.testing.assert_close(null(prompts, negative), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(null(PROMPTS, ""), null(PROMPTS, None))


def test_no_text_is_encoded_once(pipe: Pipeline) -> None:
    first, second = pipe.text_encoder.null(1), pipe.text_encoder.null(3)
    assert len(second) == 3
    assert torch.equal(second.tokens[2:], first.tokens)
    calls: list[Any] = []
    pipe.text_encoder.model.register_forward_hook(lambda *_: calls.append(1))
    pipe.text_encoder.null(2)
    assert not calls
    pipe.to(dtype=torch.bfloat16)
    assert pipe.text_encoder.null(1).tokens.dtype == torch.bfloat16


def test_without_a_text_encoder_both_embeddings_are_needed(saved: Any, tmp_path: Path, pipe: Pipeline) -> None:
    with torch.random.fork_rng():
        save_pipeline(tmp_path / "bare", unet_config(), None)
    bare = Pipeline.from_pretrained(tmp_path / "bare")
    bare.set_progress_bar_config(disable=True)
    text, null = pipe.encode_prompt("a ball")
    with pytest.raises(ValueError, match="no text encoder; give prompt_embeds"):
        bare("a ball")
    with pytest.raises(ValueError, match="give negative_prompt_embeds too"):
        bare(prompt_embeds=text)
    embeds = {"prompt_embeds": text, "negative_prompt_embeds": null}
    assert bare(num_inference_steps=2, seed=0, output_type="pt", **embeds).images.shape == (1, 3, 16, 16)
    trimmed = TextEmbedding(text.tokens[:, :5], text.mask[:, :5] | True, "kept")
    with pytest.raises(ValueError, match=r"must be of one length, got \[5, 77\]"):
        bare(num_inference_steps=2, prompt_embeds=trimmed, negative_prompt_embeds=null)


def test_captions_are_cleaned_when_asked(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conditioning.captions.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs ftfy and bs4, not installed here: pip install ftfy beautifulsoup4"):
        Pipeline.from_pretrained(saved[0] / "IF-I", clean_caption=True)


def test_cleaning_is_that_of_diffusers() -> None:
    pytest.importorskip("ftfy")
    pytest.importorskip("bs4")
    from conditioning.captions import preprocess

    assert (
        preprocess(" A &amp;quot;Red&amp;quot; CAR http://example.com/x.jpg by @someone #123 ", "clean")
        == "a red car by"
    )


# Loading


def test_a_stage_alone(saved: Any) -> None:
    alone = Pipeline.from_pretrained(saved[0] / "IF-II")
    alone.set_progress_bar_config(disable=True)
    assert alone.cascade.stages[0].config.low_resolution == (8, 8)
    image = torch.rand(3, 8, 12)
    out = alone("a ball", image=image, num_inference_steps=2, seed=0, output_type="pt")
    assert out.images.shape == (1, 3, 32, 48)


def test_saved_as_a_cascade_the_images_are_the_same(pipe: Pipeline, tmp_path: Path) -> None:
    call = {"prompt": PROMPTS, "seed": 1, "num_inference_steps": 2, "output_type": "pt"}
    wanted = pipe(**call).images
    pipe.save_pretrained(tmp_path / "mine")
    again = Pipeline.from_pretrained(tmp_path / "mine")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(**call).images, wanted)
    assert again.licence == pipe.licence != ""


@pytest.fixture
def copied(saved: Any, tmp_path: Path) -> Path:
    """Both pipelines, to be damaged."""
    for name in ("IF-I", "IF-II"):
        shutil.copytree(saved[0] / name, tmp_path / name)
    return tmp_path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


UNET = "unet/diffusion_pytorch_model.safetensors"
DAMAGES: dict[str, tuple[Any, str]] = {
    "no index": (lambda at: (at / "model_index.json").unlink(), "model_index.json"),
    "no unet": (lambda at: shutil.rmtree(at / "unet"), r"unet.config\.json is missing"),
    "no noising scheduler": (
        lambda at: shutil.rmtree(at / "image_noising_scheduler"),
        "image_noising_scheduler.* is missing: a IFSuperResolutionPipeline has unet, scheduler, image",
    ),
    "no weights": (
        lambda at: (at / UNET).unlink(),
        "no weights in .*unet: expected diffusion_pytorch_model.safetensors",
    ),
    "truncated weights": (lambda at: truncate(at / UNET), "truncated or damaged"),
    "another pipeline": (
        lambda at: change(at / "model_index.json", _class_name="StableDiffusionPipeline"),
        "is of a StableDiffusionPipeline; of diffusers' pipelines Cascade reads DeepFloyd IF's alone",
    ),
    "another architecture": (
        lambda at: change(at / "unet/config.json", mid_block_type="UNetMidBlock2DCrossAttn"),
        "mid_block_type = 'UNetMidBlock2DCrossAttn'",
    ),
    "a value of another kind": (
        lambda at: change(at / "unet/config.json", block_out_channels="64"),
        "IF-II: a config has a value of a kind that it cannot have",
    ),
    "another width": (
        lambda at: change(at / "unet/config.json", time_embedding_dim=128),
        r"misshapen: .*time_embedding.linear_1.weight \(64, 96\), expected \(128, 96\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_stage_is_named_before_any_weight_is_read(damage: str, copied: Path, monkeypatch: Any) -> None:
    spoil, message = DAMAGES[damage]
    spoil(copied / "IF-II")
    monkeypatch.setattr("weights.shards.StoredTensors.read", lambda *_: pytest.fail("weights were read"))
    with pytest.raises((WeightsError, ConfigError), match=message):
        Pipeline.from_pretrained(copied / "IF-I", upscalers=[copied / "IF-II"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda at: shutil.rmtree(at / "text_encoder"), "lacks text_encoder/, which its model_index.json names"),
        (lambda at: shutil.rmtree(at / "tokenizer"), r"spiece\.model is missing"),
        (lambda at: truncate(at / "text_encoder/model.safetensors"), "truncated or damaged"),
        (
            lambda at: change(at / "text_encoder/config.json", d_model=32),
            "d_model = 32; the networks take text 24 wide",
        ),
    ],
)
def test_a_damaged_text_encoder_is_named_before_any_weight_is_read(
    spoil: Any, message: str, copied: Path, monkeypatch: Any
) -> None:
    spoil(copied / "IF-I")
    monkeypatch.setattr("weights.shards.StoredTensors.read", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(WeightsError, match=message):
        Pipeline.from_pretrained(copied / "IF-I", upscalers=[copied / "IF-II"])


def test_stages_in_the_wrong_order(saved: Any) -> None:
    small, large = saved[0] / "IF-I", saved[0] / "IF-II"
    with pytest.raises(WeightsError, match="is a stage I, which draws from noise; it cannot come after 'sr-32'"):
        Pipeline.from_pretrained(large, upscalers=[small])
    with pytest.raises(WeightsError, match="cannot enlarge what the stage before it draws"):
        Pipeline.from_pretrained(small, upscalers=[large, large])
    with pytest.raises(WeightsError, match="upscalers are for a DeepFloyd IF pipeline"):
        Pipeline.from_pretrained(upscalers=[large])
    with pytest.raises(TypeError, match="expected a list"):
        Pipeline.from_pretrained(small, upscalers=str(large))


def test_a_hub_id_without_network(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'DeepFloyd/IF-I-M-v1\.0' is not in the cache"):
        Pipeline.from_pretrained("DeepFloyd/IF-I-M-v1.0", cache_dir=tmp_path)
    with pytest.raises(WeightsError, match=r"'stabilityai/stable-diffusion-x4-upscaler' is not in the cache"):
        Pipeline.from_pretrained(upscalers=["stabilityai/stable-diffusion-x4-upscaler"], cache_dir=tmp_path)


@pytest.mark.filterwarnings("default:these weights are under")
def test_the_licence_is_named_once_however_the_weights_are_kept(saved: Any, tmp_path: Path) -> None:
    def load(*folders: Path) -> Pipeline:
        with pytest.warns(UserWarning, match="these weights are under the DeepFloyd IF License Agreement") as told:
            pipe = Pipeline.from_pretrained(folders[0], upscalers=folders[1:])
        (licence,) = [each for each in told if "License" in str(each.message)]
        assert licence.filename == __file__  # where it was asked for
        return pipe

    load(saved[0] / "IF-I", saved[0] / "IF-II").save_pretrained(tmp_path / "saved")
    assert main(["convert", str(saved[0] / "IF-II"), str(tmp_path / "converted")]) == 0
    for folder in (tmp_path / "saved", tmp_path / "converted"):
        load(folder)
        assert "Licence: DeepFloyd IF License Agreement" in (folder / "README.md").read_text()


def test_loading_options_of_diffusers_are_answered_with_ours(saved: Any) -> None:
    with pytest.raises(TypeError, match="Pipeline takes no torch_dtype, as diffusers' do: give dtype"):
        Pipeline.from_pretrained(saved[0] / "IF-I", torch_dtype=torch.float16)
    with pytest.raises(TypeError, match=r"dtype is 'float16'; expected .*torch\.float16"):
        Pipeline.from_pretrained(saved[0] / "IF-I", dtype="float16")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="unexpected keyword argument 'surprise'"):
        Pipeline.from_pretrained(saved[0] / "IF-I", surprise=1)
