"""What a training run is made of: one TOML file, checked key by key, with changes from the command line.

preset = "imagen_base_2b"        # a function of cascade.presets: the stage; [stage] changes it
recipe = "imagen_base"           # a function of cascade.training.recipes: [diffusion], [loop], [budget]

[data]
path = "photos"

[text]
embeddings = "photos-t5"         # made by `cascade embed`; or encoder = "google/t5-v1_1-xxl"
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from cascade import presets
from cascade.build import load_config as load_stage_config
from cascade.config import ConfigError, decode, encode
from cascade.data.skipped import MAX_SKIPPED
from cascade.stage import StageConfig
from cascade.training import recipes
from cascade.training.diffusion import DiffusionConfig
from cascade.training.distributed import World
from cascade.training.loop import LoopConfig
from cascade.training.schedule import Budget
from cascade.training.text import TextConfig, completed
from weights.hub import resolve
from weights.store import read_manifest


@dataclass(frozen=True)
class DataConfig:
    """path: what `open_source` takes: a folder of images, tar shards, a dataset. held_out: images kept from training,
    for validation and sample grids. crop: side in px of what a super-resolution stage trains on, of images reduced to
    its resolution. flip, small: see Transform. text_dropout: share of captions left out (Imagen: 0.1). max_skipped:
    share of items that may be unusable before the run stops.
    """

    path: str
    split: str | None = None
    held_out: int = 64
    crop: int | None = None
    position: Literal["center", "random"] = "random"
    flip: bool = False
    small: Literal["skip", "enlarge"] = "skip"
    text_dropout: float = 0.1
    max_skipped: float = MAX_SKIPPED

    def __post_init__(self) -> None:
        if self.held_out < 0:
            raise ValueError(f"held_out must not be negative, got {self.held_out}")
        if not 0 <= self.text_dropout <= 1:
            raise ValueError(f"text_dropout must be in [0, 1], got {self.text_dropout}")


@dataclass(frozen=True)
class GridConfig:
    """prompts: of the sample grid; without any, captions of held-out images. steps: to draw them in."""

    prompts: tuple[str, ...] = ()
    steps: int = 16
    columns: int = 4

    def __post_init__(self) -> None:
        for name in ("steps", "columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainConfig:
    """A run of one stage. start_from: a cascade (folder or hub id) whose stage of the same name and network is trained
    on, with its config unless the file says otherwise; None begins anew. trackers: of accelerate, by name; None is
    tensorboard where it is installed.
    """

    stage: StageConfig
    data: DataConfig
    text: TextConfig | None = None
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    budget: Budget = field(default_factory=lambda: Budget(steps=100_000))
    samples: GridConfig = field(default_factory=GridConfig)
    start_from: str | None = None
    trackers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.text is None) != (self.stage.network.text_width is None):
            kind = "takes no text: leave [text] out" if self.text is not None else "takes text: give [text]"
            raise ValueError(f"the network of stage {self.stage.name!r} {kind}")
        if self.data.crop is not None and self.stage.low_resolution is None:
            raise ValueError("data.crop is for super-resolution stages; a base draws whole images")
        World().rows(self.diffusion.batch_size, self.loop.accumulation)  # raises ValueError for a remainder


def load_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file; ``changes`` are "loop.learning_rate=1e-4". Raises ConfigError or OSError."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"no config could be read from {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    for change in changes:
        _change(data, change)
    whole: dict[str, Any] = {}
    if (preset := data.pop("preset", None)) is not None:
        whole["stage"] = encode(_named(presets, preset, "preset"))
    elif isinstance(start := data.get("start_from"), str):
        stage = data.get("stage")
        _, stored = stored_stage(start, stage.get("name") if isinstance(stage, dict) else None)
        whole["stage"] = encode(stored)
    if (recipe := data.pop("recipe", None)) is not None:
        settings = _named(recipes, recipe, "recipe")
        whole |= {"diffusion": encode(settings.diffusion), "loop": encode(settings.loop)}
        whole["budget"] = encode(settings.budget)
    if isinstance(data.get("text"), dict):
        data["text"] = completed(data["text"])
    if "budget" in data:
        whole.pop("budget", None)  # steps or minutes: one of the two, not both
    return decode(TrainConfig, merged(whole, data), path.name)


def stored_stage(cascade: str, stage: str | None) -> tuple[Path, StageConfig]:
    """The folder of a cascade's stage, and its config. Raises ConfigError, WeightsError."""
    folder = resolve(cascade)
    found = {name: load_stage_config(folder, name) for name in read_manifest(folder)["stages"]}
    for name, config in found.items():
        if config.name == stage:
            return folder / name, config
    names = ", ".join(config.name for config in found.values())
    raise ConfigError(f"{cascade} has no stage {stage!r}: stage.name is one of {names}")


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with what ``above`` says otherwise; a table of another "type" replaces the whole of it."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        alike = isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("type") in (None, old.get("type"))
        out[key] = merged(old, value) if alike else value  # pyright: ignore[reportArgumentType] (alike: both are)
    return out


def _change(data: dict[str, Any], change: str) -> None:
    """ "loop.bf16=false" into the tables; what is no TOML value is a string."""
    key, sign, text = change.partition("=")
    if not sign or not all(key.split(".")):
        raise ConfigError(f"{change!r}: expected a change such as loop.learning_rate=1e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{change!r}: {table} is no table")
    if tables == ["budget"]:
        data.clear()  # steps or minutes: the one given takes the other's place
    data[last] = value


def _named(module: ModuleType, name: Any, what: str) -> Any:
    known = module.__all__
    if name not in known:
        raise ConfigError(f"{what} {name!r}: expected one of {', '.join(known)}")
    function: Callable[[], Any] = getattr(module, name)
    return function()


# What a run may go on with otherwise: it changes how the same thing is computed, for how long, and what is shown of it.
FREE = (
    *(f"loop.{name}" for name in ("accumulation", "parallel", "activation_checkpointing", "compile", "workers")),
    *(f"loop.{name}" for name in ("max_skipped", "log_every", "report_every", "checkpoint_minutes", "keep")),
    *("budget", "samples", "stage.sampling", "trackers", "start_from"),
    *("data.path", "text.encoder", "text.embeddings"),
)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What would change a run that goes on: "loop.learning_rate was 0.001, is 0.0001"."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE)
    ]


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
