"""DeepFloyd IF in bfloat16: no further from diffusers' float32 than diffusers' own bfloat16 is."""

from __future__ import annotations

import copy
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from deepfloyd_models import VARIANTS, save_both, tiny_t5, unet, unet_config
from test_deepfloyd_networks import ours, relative_error
from test_deepfloyd_pipelines import PROMPTS, last_of_each_stage, same_noise

from cascade import Pipeline
from cascade.denoiser import Condition
from cascade.training.precision import computes_bf16
from conditioning.text import TextEmbedding, TextEncoder

pytestmark = [
    pytest.mark.skipif(not computes_bf16("cpu"), reason="this CPU emulates bfloat16, which takes minutes"),
    pytest.mark.filterwarnings("ignore:these weights are under"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SEEDS = range(3)


@pytest.mark.parametrize("variant", ["I", "I, widths no power of two", "II", "II, text alone"])
@torch.no_grad()
def test_a_network(variant: str) -> None:
    config = unet_config(**VARIANTS[variant])
    found, wanted = [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        theirs = unet(config)
        stage = ours(theirs, config)
        text = TextEmbedding(torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool), "kept")
        z, steps = torch.randn(2, 3, 32, 32), torch.tensor([417, 901])
        x, low_res, level = z, None, None
        known: dict[str, Any] = {}
        if config["in_channels"] == 6:
            low_res, level = torch.randn_like(z), torch.full((2,), stage.config.augmentation.logsnr(0.25))
            known["class_labels"] = torch.full((2,), 250)
            x = torch.cat([z, low_res], dim=1)
        exact = theirs(x, steps, encoder_hidden_states=text.tokens, **known).sample

        rounded = theirs.bfloat16()(x.bfloat16(), steps, encoder_hidden_states=text.tokens.bfloat16(), **known).sample
        denoiser = stage.bfloat16().denoiser
        denoiser.lay_out()
        prepared = denoiser.prepare(Condition(text.to(dtype=torch.bfloat16), low_res, level))
        own = denoiser.output(z, torch.from_numpy(stage.config.schedule.levels())[steps], prepared)
        found.append(relative_error(own, exact))
        wanted.append(relative_error(rounded.float(), exact))
    assert 1e-3 < mean(wanted) < 5e-2
    assert mean(found) <= 1.1 * mean(wanted)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> tuple[Path, Any, Any]:
    root = tmp_path_factory.mktemp("deepfloyd")
    return root, *save_both(root, tiny_t5(text_encoder))


@pytest.mark.slow
def test_both_pipelines(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, *exact = saved
    rounded = [copy.deepcopy(pipeline).to(torch.bfloat16) for pipeline in exact]
    pipe = Pipeline.from_pretrained(root / "IF-I", upscalers=[root / "IF-II"], dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": PROMPTS, "num_inference_steps": 6}

    def drawn(pipeline: Any, stage: int, seed: int, **more: Any) -> torch.Tensor:
        same_noise(monkeypatch, [seed, seed + 1], stage)
        return pipeline(**call, clean_caption=False, output_type="pt", **more).images.float()

    found, wanted = [], []
    for seed in SEEDS:
        first, small = (drawn(pipeline, 0, 2 * seed) for pipeline in (exact[0], rounded[0]))
        second, large = drawn(exact[1], 1, 2 * seed, image=first), drawn(rounded[1], 1, 2 * seed, image=small)
        own = last_of_each_stage(pipe, seed=2 * seed, **call)
        found.append([relative_error(own[0], first), relative_error(own[1], second)])
        wanted.append([relative_error(small, first), relative_error(large, second)])
    for stage in (0, 1):
        assert mean(each[stage] for each in found) <= 1.2 * mean(each[stage] for each in wanted)
