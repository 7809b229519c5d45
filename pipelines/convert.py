"""`cascade convert`: DeepFloyd IF in diffusers' layout to a cascade's folder, and a cascade of IF's stages back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

DTYPES = Literal["float32", "bfloat16", "float16"]


def convert(
    source: tyro.conf.Positional[str],
    destination: tyro.conf.Positional[Path],
    upscalers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-u"])] = (),
    variant: str | None = None,
    dtype: DTYPES | None = None,
) -> None:
    """Convert DeepFloyd IF between diffusers' layout and a cascade's folder; which of the two, the source tells.

    A cascade becomes a folder per stage, each a pipeline that diffusers loads, with text encoder, safety checker and
    watermark in the first. The networks are converted tensor by tensor, and the other files are copied.

    Args:
        source: A folder or a hub id.
        destination: The folder to write, which must not exist, or be empty.
        upscalers: The stages after the source, in diffusers' layout, to convert with it.
        variant: Of the source's files, such as fp16.
        dtype: To store the networks in; the source's own if left out.
    """
    import torch

    from pipelines.folders import fetch_folders
    from weights.deepfloyd import is_pipeline
    from weights.store import WeightsError

    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise WeightsError(f"{destination} exists already; choose another place")
    kind = None if dtype is None else getattr(torch, dtype)
    folders, upscaler = fetch_folders(source, upscalers, variant=variant)
    if is_pipeline(folders[0]):
        from_diffusers(folders, upscaler, destination, variant, kind)
    elif upscalers:
        raise WeightsError(f"{source} is a cascade already; --upscalers are for a source in diffusers' layout")
    else:
        to_diffusers(folders[0], destination, kind)
    print(destination)


def from_diffusers(
    folders: list[Path], upscaler: Path | None, destination: Path, variant: str | None, dtype: Any
) -> None:
    """Pipelines in diffusers' layout to one cascade, with all that belongs to them."""
    from cascade.build import deepfloyd_tensors, stage_folder
    from cascade.card import model_card
    from cascade.chain import Cascade
    from cascade.config import encode
    from pipelines.deepfloyd import TEXT, open_all
    from pipelines.extras import UPSCALER
    from weights.deepfloyd import LICENCE
    from weights.store import StageFiles, save_cascade

    with ExitStack() as stack:
        opened, encoder = open_all(folders, variant, stack)
        Cascade([stage for stage, _ in opened])  # refuses stages that do not fit
        text = None if encoder is None else TEXT | {"model": None, "preprocessing": "lower", "vocabulary": None}
        made_from = {"converted_from": [folder.name for folder in folders]}
        manifest = {"text_encoder": text, "licence": LICENCE, "provenance": made_from}

        def extra(target: Path) -> None:
            if encoder is not None:
                copy_text_encoder(encoder, target, variant)
            copy_guards(folders, target, variant)
            if upscaler is not None:
                copy_upscaler(upscaler, target / UPSCALER, variant)
            card = model_card(destination.name, [stage for stage, _ in opened], manifest)
            (target / "README.md").write_text(card, encoding="utf-8")

        stages = {
            stage_folder(i, stage.config): StageFiles(
                encode(stage.config), dict(deepfloyd_tensors(stage.config, stored, dtype))
            )
            for i, (stage, stored) in enumerate(opened)
        }
        save_cascade(destination, manifest, stages, extra)


def to_diffusers(folder: Path, destination: Path, dtype: Any) -> None:
    """A cascade whose stages are IF's to a pipeline per stage, and its upscaler; all or nothing. Raises WeightsError
    for other stages.
    """
    from safetensors.torch import save_file

    from cascade.build import deepfloyd_files, load_config, load_stage
    from cascade.config import encode
    from pipelines.extras import UPSCALER
    from weights.deepfloyd_export import diffusers_configs
    from weights.store import WeightsError, read_manifest

    manifest = read_manifest(folder)
    for name in manifest["stages"]:
        diffusers_configs(encode(load_config(folder, name)))  # refuses before anything is written
    text = manifest["text_encoder"]
    if text is not None and text.get("model") is not None:
        raise WeightsError(f"the text encoder of {folder} is {text['model']!r}, not in the folder; nothing to copy")

    def write(fresh: Path) -> None:
        for i, name in enumerate(manifest["stages"]):
            stage = load_stage(folder, name, dtype)
            configs, tensors = deepfloyd_files(stage.config, stage.denoiser.network.state_dict())
            with_text = i == 0 and text is not None
            (fresh / name).mkdir()
            guards = copy_guards([folder], fresh / name) if i == 0 else []
            index = pipeline_index("image_noising_scheduler" in configs, with_text, guards)
            _write_json(fresh / name / "model_index.json", index)
            for part, config in configs.items():
                (fresh / name / part).mkdir()
                file = "config.json" if part == "unet" else "scheduler_config.json"
                _write_json(fresh / name / part / file, config)
            tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
            path = fresh / name / "unet" / "diffusion_pytorch_model.safetensors"
            save_file(tensors, path, metadata={"format": "pt"})
            path.chmod((fresh / name / "model_index.json").stat().st_mode)
            if with_text:
                copy_text_encoder(folder, fresh / name)
        if (folder / UPSCALER).is_dir():
            copy_upscaler(folder / UPSCALER, fresh / UPSCALER)

    _atomically(destination, write)


def pipeline_index(large: bool, with_text: bool, guards: Sequence[str]) -> dict[str, Any]:
    """The contents of model_index.json. guards: those of `GUARDS` that are there."""
    from importlib.metadata import version

    text = {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"]}
    checked = "safety_checker" in guards
    safety = {
        "safety_checker": ["deepfloyd_if", "IFSafetyChecker"] if checked else (None, None),
        "feature_extractor": ["transformers", "CLIPImageProcessor"] if checked else (None, None),
        "watermarker": ["deepfloyd_if", "IFWatermarker"] if "watermarker" in guards else (None, None),
    }
    noising = {"image_noising_scheduler": ["diffusers", "DDPMScheduler"]} if large else {}
    return {
        "_class_name": "IFSuperResolutionPipeline" if large else "IFPipeline",
        "_diffusers_version": version("diffusers"),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        **noising,
        **(text if with_text else dict.fromkeys(text, (None, None))),
        **safety,
        "requires_safety_checker": checked,
    }


def copy_text_encoder(source: Path, target: Path, variant: str | None = None) -> None:
    """text_encoder/ and tokenizer/."""
    shutil.copytree(source / "tokenizer", target / "tokenizer")
    copy_component(source / "text_encoder", target / "text_encoder", variant)


def copy_guards(folders: Sequence[Path], target: Path, variant: str | None = None) -> list[str]:
    """safety_checker/, with feature_extractor/, and watermarker/ of the first folder that has each; which there are."""
    from pipelines.extras import GUARDS, find_guard

    found = {name: folder for name in GUARDS if (folder := find_guard(folders, name)) is not None}
    for name, folder in found.items():
        copy_component(folder / name, target / name, variant)
    if "safety_checker" in found:
        shutil.copytree(found["safety_checker"] / "feature_extractor", target / "feature_extractor")
    return list(found)


def copy_upscaler(source: Path, target: Path, variant: str | None = None) -> None:
    """All that it has, of the weights one variant."""
    from pipelines.upscaler import CONFIGS, WEIGHTS, own_variant

    target.mkdir()
    shutil.copy(source / "model_index.json", target)
    for part in CONFIGS:
        if part in WEIGHTS:
            copy_component(source / part, target / part, own_variant(source, variant))
        else:
            shutil.copytree(source / part, target / part)


def copy_component(source: Path, target: Path, variant: str | None = None) -> None:
    """A component's config, and its weights of the variant, under the names without it."""
    from weights.shards import COMPONENTS, OPTIONAL, find_files

    stems = COMPONENTS[source.name]
    target.mkdir()
    shutil.copy(source / "config.json", target)
    middle = "" if variant is None else f".{variant}"
    files = find_files(source, stems, variant, optional=source.name in OPTIONAL)
    for file in files:
        shutil.copy(file, target / (file.name.replace(middle, "") if len(files) == 1 else file.name))
    if len(files) > 1:
        stem, ending = (stems[0], "safetensors") if files[0].suffix != ".bin" else (stems[1], "bin")
        index = f"{stem}.{ending}.index"
        shutil.copy(source / f"{index}{middle}.json", target / f"{index}.json")


def _atomically(destination: Path, write: Callable[[Path], None]) -> None:
    """Let a folder be written beside its place, and put it there at the end."""
    fresh = destination.absolute().parent / f".{destination.name}.saving"
    shutil.rmtree(fresh, ignore_errors=True)  # of a conversion that was killed
    fresh.mkdir(parents=True)
    try:
        write(fresh)
        fresh.replace(destination)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
