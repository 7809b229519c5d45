"""Loading DeepFloyd IF from diffusers' layout: its stages, and one text encoder for all.

Everything is checked by configs and headers before the first weight is read; by configs, before one is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from cascade.build import fill_deepfloyd, open_deepfloyd
from cascade.chain import Cascade
from cascade.config import decode
from cascade.stage import Stage, StageConfig
from conditioning.captions import check_preprocessing
from conditioning.text import TextEncoder
from conditioning.tokenizer import MODEL_FILE
from pipelines.extras import has
from weights.deepfloyd import LICENCE, is_pipeline, read_stage_config
from weights.shards import TRANSFORMERS, StoredTensors, find_files
from weights.store import WeightsError, read_json

# The text encoder as every IF network was trained with it: 77 tokens, padding and all, T5("") for no text.
TEXT: dict[str, Any] = {"max_length": 77, "padding": "kept", "null_prompt": ""}


def read_configs(folders: Sequence[Path]) -> list[StageConfig]:
    """The configs of the stages in some folders. Raises WeightsError or ConfigError, also where one cannot follow the
    other.
    """
    found: list[StageConfig] = []
    for folder in folders:
        if not is_pipeline(folder):
            raise WeightsError(
                f"no model_index.json in {folder}: expected a DeepFloyd IF pipeline in diffusers' layout, which "
                "upscalers must be too"
            )
        before = found[-1] if found else None
        data = read_stage_config(folder, list(before.resolution) if before else None)
        config = decode(StageConfig, data, str(folder))
        if before and config.low_resolution is None:
            raise WeightsError(
                f"{folder} is a stage I, which draws from noise; it cannot come after {before.name!r}. Give stage I as "
                "the model, and stage II as upscalers"
            )
        if before and not before.resolution < config.resolution:
            raise WeightsError(
                f"{folder} draws {config.resolution} and cannot enlarge what the stage before it draws, "
                f"{before.resolution}"
            )
        found.append(config)
    return found


def find_text_encoder(folders: Sequence[Path], width: int | None) -> Path | None:
    """The first folder with a text encoder, its configs checked against the networks', if there is one. Raises
    WeightsError.
    """
    for folder in folders:
        if has(folder, "text_encoder"):
            config = folder / "text_encoder" / "config.json"
            for path in (config, folder / "tokenizer" / MODEL_FILE):
                if not path.is_file():
                    raise WeightsError(f"{path} is missing; copy or download it again")
            if (found := read_json(config).get("d_model")) != width:
                raise WeightsError(f"{config} has d_model = {found!r}; the networks take text {width} wide")
            return folder
    return None


def open_all(
    folders: Sequence[Path], variant: str | None, stack: ExitStack
) -> tuple[list[tuple[Stage, StoredTensors]], Path | None]:
    """The stages in some folders, without memory, with their tensors, which ``stack`` closes; and the folder with the
    text encoder. Only configs and headers are read. Raises WeightsError or ConfigError.
    """
    configs = read_configs(folders)
    encoder = find_text_encoder(folders, configs[0].network.text_width)
    opened = []
    for folder, config in zip(folders, configs, strict=True):
        stage, stored = open_deepfloyd(folder, variant, config.low_resolution)
        opened.append((stage, stack.enter_context(stored)))
    if encoder is not None:
        StoredTensors(find_files(encoder / "text_encoder", TRANSFORMERS, variant)).close()
    return opened, encoder


def load_deepfloyd(
    folders: Sequence[Path],
    extras: Callable[[], dict[str, Any]],
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    clean_caption: bool = False,
) -> dict[str, Any]:
    """What a `Pipeline` is made of, from the folders of its stages in their order. extras: loads what is small, once
    the rest is known to fit. Raises WeightsError, ConfigError.
    """
    text: dict[str, Any] = TEXT | {"preprocessing": "clean" if clean_caption else "lower"}
    check_preprocessing(text["preprocessing"])
    with ExitStack() as stack:
        opened, encoder = open_all(folders, variant, stack)
        parts = {"licence": LICENCE, "text_source": {"model": None}} | extras()
        cascade = Cascade([fill_deepfloyd(stage, stored, dtype) for stage, stored in opened])
    if encoder is not None:
        parts["text_encoder"] = TextEncoder.from_pretrained(encoder, dtype=dtype, variant=variant, **text)
    return parts | {"cascade": cascade}
