"""Stage III: Stable Diffusion's upscaler behind a cascade: the images of diffusers called directly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepfloyd_models import save_both, tiny_t5
from PIL import Image
from tiny_upscaler import save_tiny_upscaler

from cascade import Pipeline
from conditioning.text import TextEncoder
from pipelines import cli
from weights.store import WeightsError

pytestmark = [
    pytest.mark.filterwarnings("ignore:these weights are under"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PROMPTS = ["a red car", "a ball"]
STEPS = {"num_inference_steps": [2, 2, 3]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> Path:
    """IF-I, IF-II and x2: 16 -> 32 -> 64 px."""
    root = tmp_path_factory.mktemp("deepfloyd")
    save_both(root, tiny_t5(text_encoder))
    save_tiny_upscaler(root / "x2")
    return root


def load(root: Path, *names: str, **options: Any) -> Pipeline:
    pipe = Pipeline.from_pretrained(root / names[0], upscalers=[root / name for name in names[1:]], **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(root: Path) -> Pipeline:
    return load(root, "IF-I", "IF-II", "x2")


def directly(root: Path, images: torch.Tensor, seeds: list[int], prompts: list[str], **call: Any) -> torch.Tensor:
    """What diffusers makes of images in [0, 1], each with a generator of its seed, all in one batch."""
    from diffusers import StableDiffusionUpscalePipeline

    theirs = StableDiffusionUpscalePipeline.from_pretrained(root / "x2")
    theirs.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return theirs(prompts, images, generator=generators, output_type="pt", **call).images


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"noise_level": 100, "guidance_scale": 9.0}),
        (
            {"guidance_scale": [None, None, 1.0], "aug_level": [None, 0.25, 0.02], "negative_prompt": "a house"},
            {"noise_level": 20, "guidance_scale": 1.0},
        ),
        (
            {"guidance_scale": 3.0, "negative_prompt": ["a house", "a car"], "height": 64, "width": 128},
            {"noise_level": 100, "guidance_scale": 3.0, "negative_prompt": ["a house", "a car"]},
        ),
    ],
    ids=["as DeepFloyd uses it", "without guidance", "negative prompts, not square"],
)
def test_the_images_are_those_of_diffusers(root: Path, pipe: Pipeline, ours: dict, theirs: dict) -> None:
    out = pipe(PROMPTS, seed=3, output_type="pt", return_intermediates=True, **STEPS, **ours)
    assert [images.shape[-2] for images in out.intermediates] == [16, 32, 64]
    wanted = directly(root, out.intermediates[1], [3, 4], PROMPTS, num_inference_steps=3, **theirs)
    assert wanted.std() > 0.05
    torch.testing.assert_close(out.images, wanted, rtol=0, atol=1e-5)


def test_an_image_is_the_same_in_any_batch(pipe: Pipeline) -> None:
    call = {"prompt": "a ball", "output_type": "pt"} | STEPS
    whole = pipe(num_images_per_prompt=3, seed=5, max_batch_size=2, **call).images
    torch.testing.assert_close(whole[2:], pipe(seed=7, **call).images, rtol=0, atol=1e-4)
    assert (whole[0] - whole[1]).abs().max() > 1e-2


def test_output_types_agree(pipe: Pipeline) -> None:
    outputs = {kind: pipe("a ball", seed=0, output_type=kind, **STEPS).images for kind in ("pil", "np", "pt")}
    assert outputs["pil"][0].size == (64, 64)
    assert (np.asarray(outputs["pil"][0]) == outputs["np"][0]).all()
    assert np.abs(outputs["pt"][0].permute(1, 2, 0).numpy() * 255 - outputs["np"][0]).max() <= 0.51


def test_it_alone_and_left_out(pipe: Pipeline) -> None:
    out = pipe("a ball", seed=2, output_type="pt", return_intermediates=True, **STEPS)
    alone = pipe("a ball", seed=2, output_type="pt", image=out.intermediates[1], start_stage=2, **STEPS)
    torch.testing.assert_close(alone.images, out.images, rtol=0, atol=1e-5)
    without = pipe("a ball", seed=2, output_type="pt", stop_after=1, **STEPS)
    assert torch.equal(without.images, out.intermediates[1])
    assert (without.metadata[0]["height"], out.metadata[0]["height"]) == (32, 64)


def test_it_reads_the_prompt_beside_embeddings(pipe: Pipeline) -> None:
    text, null = pipe.encode_prompt(PROMPTS)
    embeds = {"prompt_embeds": text, "negative_prompt_embeds": null}
    wanted = pipe(PROMPTS, seed=0, output_type="pt", **STEPS).images
    assert torch.equal(pipe(PROMPTS, seed=0, output_type="pt", **embeds, **STEPS).images, wanted)
    with pytest.raises(ValueError, match="reads the prompt itself: give prompt, also beside prompt_embeds"):
        pipe(seed=0, **embeds, **STEPS)
    with pytest.raises(ValueError, match="prompt_embeds has 2 rows for 1 prompts"):
        pipe("a ball", seed=0, **embeds, **STEPS)


def test_progress(pipe: Pipeline, capsys: pytest.CaptureFixture) -> None:
    pipe.set_progress_bar_config(disable=False, leave=True)
    try:
        pipe(PROMPTS, seed=0, **STEPS)
    finally:
        pipe.set_progress_bar_config(disable=True)
    shown = capsys.readouterr().err
    assert [f"{name}: 100%" in shown for name in ("base-16", "sr-32", "x2")] == [True] * 3
    assert "6/6" in shown


def test_after_an_interruption_it_does_not_run(pipe: Pipeline) -> None:
    def stop(pipe: Pipeline, i: int, logsnr: float, kwargs: dict) -> None:
        pipe.interrupt = kwargs["stage"] == "sr-32"

    out = pipe(PROMPTS, seed=0, max_batch_size=1, output_type="pt", callback_on_step_end=stop, **STEPS)
    assert out.images.shape == (1, 3, 32, 32)
    assert len(out.seeds) == len(out.metadata) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": [2, 2]}, "num_inference_steps has 2 values and the cascade 3 stages"),
        ({"aug_level": [None, None, 0.36]}, "x2 was trained with aug_level up to 0.35, got 0.36"),
        ({"aug_level": 100}, r"aug_level is 100; expected a number in \[0, 1\]"),
        ({"num_inference_steps": [2, 2, 1001]}, "x2 draws in 1 to 1000 steps, got num_inference_steps 1001"),
        ({"height": 65}, "height 65 is no multiple of 2, by which x2 enlarges"),
        ({"start_stage": 2}, r"x2 \(start_stage 2\) enlarges an image: give it as image"),
        ({"start_stage": 2, "image": torch.zeros(3, 31, 32)}, "enlarges sides divisible by 2; height 31 is not"),
        ({"start_stage": 2, "image": torch.zeros(3, 32, 32), "height": 32}, "is enlarged by 2; leave out height"),
        ({"start_stage": 3}, "start_stage is 3"),
        ({"image": torch.zeros(3, 64, 64), "strength": 0.5}, "add stop_after=1"),
        ({"timesteps": ["fast27", None, None]}, "timesteps has 3 values and the cascade 2 stages"),
    ],
)
def test_bad_settings_are_refused_before_any_work(arguments: dict, message: str, pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match=message):
        pipe("a ball", callback_on_step_end=lambda *_: pytest.fail("a step was made"), **arguments)


def test_behind_any_cascade_and_saved_with_it(root: Path, pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "whole")
    whole = load(tmp_path, "whole")
    call = {"prompt": "a ball", "seed": 1, "output_type": "pt"} | STEPS
    assert torch.equal(whole(**call).images, pipe(**call).images)
    with pytest.raises(WeightsError, match=r"comes after .*upscaler, which enlarges finished images and must be the"):
        Pipeline.from_pretrained(tmp_path / "whole", upscalers=[root / "x2"])
    shutil.rmtree(tmp_path / "whole" / "upscaler")
    assert torch.equal(load(tmp_path, "whole", root / "x2")(**call).images, whole(**call).images)


def test_it_is_converted_along(root: Path, tmp_path: Path) -> None:
    save_tiny_upscaler(tmp_path / "fp16", variant="fp16")
    shutil.copytree(root / "IF-I", tmp_path / "IF-I")
    for path in [*(tmp_path / "IF-I").rglob("*.safetensors")]:
        path.rename(path.with_suffix(".fp16.safetensors"))
    words = ["convert", str(tmp_path / "IF-I"), str(tmp_path / "whole"), "-u", str(tmp_path / "fp16")]
    assert cli.main([*words, "--variant", "fp16"]) == 0
    call = {"prompt": "a ball", "seed": 1, "output_type": "pt", "num_inference_steps": 2}
    wanted = load(tmp_path, "IF-I", "fp16", variant="fp16")(**call).images
    assert torch.equal(load(tmp_path, "whole")(**call).images, wanted)


def test_half_precision_of_a_variant_and_without(root: Path, tmp_path: Path) -> None:
    save_tiny_upscaler(tmp_path / "fp16", variant="fp16")
    for name in ("IF-I", "IF-II"):
        shutil.copytree(root / name, tmp_path / name)
        for path in [*(tmp_path / name).rglob("*.safetensors")]:
            path.rename(path.with_suffix(".fp16.safetensors"))
    shutil.copytree(root / "x2", tmp_path / "x2")
    call = {"prompt": "a ball", "seed": 1, "output_type": "pt", "dtype": torch.bfloat16}
    dtype = call.pop("dtype")
    images = [
        load(tmp_path, "IF-I", x, variant="fp16", dtype=dtype)(**call, num_inference_steps=2).images
        for x in ("fp16", "x2")
    ]
    assert torch.equal(*images)
    assert images[0].dtype == torch.float32


def test_many_prompts_in_a_batch(root: Path, pipe: Pipeline, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from pipelines.batch.run import read_run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Path("prompts.txt").write_text("a red car\na ball\n")
    model = ["--model", str(root / "IF-I"), "--upscalers", str(root / "IF-II"), str(root / "x2"), "--offload", "model"]
    options = ["--timesteps", "700,0", "own", "--steps", "2", "2", "3", "--seed", "5", "--negative-prompt", "a house"]
    run = ["batch", "prompts.txt", "-o", "run", "--no-watermark", *model, *options]
    assert cli.main(run) == 0
    settings = read_run(tmp_path / "run").settings
    assert settings["upscaler"]["steps"] == 3
    assert settings["stages"]["base-16"]["timesteps"] == [700, 0]
    assert (settings["height"], settings["watermark"]) == (64, False)
    call = {"timesteps": [[700, 0], None], "num_inference_steps": [2, 2, 3], "negative_prompt": "a house"}
    wanted = pipe("a ball", seed=6, **call).images[0]
    with Image.open(tmp_path / "run/images/00001-0.png") as found:
        assert np.abs(np.asarray(found).astype(int) - np.asarray(wanted)).max() <= 1
    assert cli.main([*run, "--aug-level", "0.2", "0.2", "0.2"]) == 2
    assert "upscaler.aug_level is 0.1 there and 0.2 here" in capsys.readouterr().err


def remove(part: str) -> Any:
    return lambda at: shutil.rmtree(at / part)


def foreign(at: Path) -> None:
    index = at / "model_index.json"
    index.write_text(index.read_text().replace('"diffusers",\n    "UNet2D', '"mycode",\n    "UNet2D'))


def truncate(at: Path) -> None:
    path = at / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("vae"), r"vae.config\.json is missing; a StableDiffusionUpscalePipeline has unet, vae"),
        (remove("low_res_scheduler"), r"low_res_scheduler.* is missing"),
        (lambda at: (at / "unet/diffusion_pytorch_model.safetensors").unlink(), "no weights in .*unet"),
        (truncate, "truncated or damaged"),
        (foreign, "has unet of 'mycode'; it was not loaded"),
    ],
)
def test_a_damaged_one_is_named_before_any_weight_is_read(
    spoil: Any, message: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / "x2", tmp_path / "x2")
    spoil(tmp_path / "x2")
    monkeypatch.setattr("weights.shards.StoredTensors.read", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(WeightsError, match=message):
        load(root, "IF-I", tmp_path / "x2")


@pytest.mark.slow
def test_loading_and_saving_say_no_more_than_the_licence(root: Path, tmp_path: Path) -> None:
    """In a process of its own: libraries say things once."""
    import subprocess
    import sys

    code = "import sys; from cascade import Pipeline; Pipeline.from_pretrained(sys.argv[1], upscalers=sys.argv[2:4])"
    words = [str(root / "IF-I"), str(root / "IF-II"), str(root / "x2"), str(tmp_path / "saved")]
    run = subprocess.run(
        [sys.executable, "-c", f"{code}.save_pretrained(sys.argv[4])", *words], capture_output=True, text=True
    )
    assert run.returncode == 0
    (warning,) = [line for line in run.stderr.splitlines() if not line.startswith(" ")]
    assert "these weights are under the DeepFloyd IF License Agreement" in warning
    assert run.stdout == ""


def test_its_place(root: Path) -> None:
    with pytest.raises(WeightsError, match="give it as the last of upscalers, behind a model"):
        load(root, "x2")
    with pytest.raises(WeightsError, match=r"IF-II comes after .*x2, which enlarges finished images and must be the"):
        load(root, "IF-I", "x2", "IF-II")


def test_the_command_in_a_png_makes_it_again(root: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = ["--model", str(root / "IF-I"), "--upscalers", str(root / "IF-II"), str(root / "x2"), "--no-safety-checker"]
    options = ["--timesteps", "700,300,0", "own", "--steps", "3", "2", "4", "--aug-level", "0.3", "0.3", "0.1"]
    assert cli.main(["generate", "a ball", "-o", "x.png", "--seed", "4", *model, *options]) == 0
    before = Image.open("x.png").copy()
    assert before.size == (64, 64)
    metadata = json.loads(Image.open("x.png").text["cascade"])
    assert metadata["upscaler"] == {"steps": 4, "guidance_scale": 9.0, "aug_level": 0.1}
    assert metadata["stages"]["base-16"]["timesteps"] == [700, 300, 0]
    capsys.readouterr()
    assert cli.main(["info", "x.png"]) == 0
    shown = capsys.readouterr().out
    assert "upscaler: 4 steps, guidance 9, aug_level 0.1" in shown
    line = shown.strip().splitlines()[-1]
    assert "--timesteps 700,300,0 own" in line
    assert "--no-safety-checker" in line
    (tmp_path / "x.png").unlink()
    assert cli.main(shlex.split(line)[1:]) == 0
    assert (np.asarray(Image.open("x.png")) == np.asarray(before)).all()
