"""What `cascade train` is told: config files, presets, recipes, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cascade.config import decode, encode
from cascade.presets import imagen_base_2b
from cascade.training import recipes
from cascade.training.config import TrainConfig, differences, load_config, merged
from cascade.training.cost import training_cost
from cascade.training.loop import LoopConfig
from cascade.training.run import check_workers


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=f"no config could be read from '{path}': {reason}"):
            load_config(path)


@pytest.mark.parametrize("name", recipes.__all__)
def test_a_file_may_build_on_a_preset_and_a_recipe(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.toml").write_text(
        f'preset = "imagen_base_2b"\nrecipe = "{name}"\n[stage.network]\ntext_width = 512\n'
        '[data]\npath = "x"\n[text]\nembeddings = "y"\n[budget]\nminutes = 5\n'
    )
    config = load_config(tmp_path / "x.toml", ["loop.keep=3", "stage.sampling.steps=7"])
    settings = getattr(recipes, name)()
    assert config.stage.network.text_width == 512
    assert config.stage.network.width == imagen_base_2b().network.width
    assert config.stage.sampling.steps == 7
    assert config.diffusion == settings.diffusion
    assert (config.loop.keep, config.loop.learning_rate) == (3, settings.loop.learning_rate)
    assert config.budget.minutes == 5
    assert decode(TrainConfig, json.loads(json.dumps(encode(config))), "x") == config


def test_tables_are_merged_unless_they_are_of_another_type() -> None:
    below = {"a": {"type": "X", "b": 1, "c": 2}, "d": 3}
    assert merged(below, {"a": {"c": 4}}) == {"a": {"type": "X", "b": 1, "c": 4}, "d": 3}
    assert merged(below, {"a": {"type": "Y"}}) == {"a": {"type": "Y"}, "d": 3}


def test_differences_leave_out_what_may_change() -> None:
    before = {"loop": {"workers": 0, "learning_rate": 1.0}, "budget": {"steps": 1}, "trackers": None, "x": (1, 2)}
    now = {"loop": {"workers": 2, "learning_rate": 2.0}, "budget": {"steps": 9}, "trackers": ["a"], "x": [1, 2]}
    assert differences(before, now) == ["loop.learning_rate was 1.0, is 2.0"]


def test_the_cost_of_imagens_base_is_counted_without_its_weights() -> None:
    cost = training_cost(imagen_base_2b(), (64, 64))
    assert cost.parameters == pytest.approx(2236.1e6, rel=1e-3)
    from cascade.build import build_stage
    from cascade.flops import step_flops

    with torch.device("meta"):
        forward = step_flops(build_stage(imagen_base_2b()))
    assert cost.flops == pytest.approx(3 * forward, rel=0.05)
    assert cost.memory(LoopConfig("adafactor"), 1) < cost.memory(LoopConfig("adamw"), 1)
    assert cost.memory(LoopConfig(parallel="fsdp"), 1, processes=8) < 0.5 * cost.memory(LoopConfig(), 1, processes=8)


def test_more_workers_than_cores_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3}, raising=False)
    check_workers(2)
    with pytest.warns(UserWarning, match=r"^loop\.workers is 3, and there are 2 cores"):
        check_workers(3)
