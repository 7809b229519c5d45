"""DeepFloyd IF on disk: shards, variants, legacy files, the hub's patterns, safety parts, and `cascade convert`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deepfloyd_models import save_both, save_pipeline, tiny_t5, unet_config

from cascade import Pipeline
from cascade.config import decode
from cascade.stage import StageConfig
from conditioning.text import TextEncoder
from pipelines import safety
from pipelines.cli import main
from weights import hub
from weights.deepfloyd import stage_config
from weights.shards import DIFFUSERS, StoredTensors, find_files
from weights.store import WeightsError, read_legacy, read_manifest

pytestmark = [
    pytest.mark.filterwarnings("ignore:these weights are under"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CALL: dict[str, Any] = {"prompt": ["a red car", "a ball"], "seed": 3, "num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> Path:
    root = tmp_path_factory.mktemp("deepfloyd")
    save_both(root, tiny_t5(text_encoder))
    return root


def load(*folders: str | Path, **options: Any) -> Pipeline:
    pipe = Pipeline.from_pretrained(folders[0], upscalers=folders[1:], **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Pipeline) -> torch.Tensor:
    return pipe(**CALL).images


# Files


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "fp16"},
        {"safe_serialization": False},
        {"max_shard_size": "300KB"},
        {"variant": "fp16", "max_shard_size": "300KB"},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()),
)
def test_every_form_of_weights_file_gives_the_same_images(options: dict, root: Path, tmp_path: Path) -> None:
    import diffusers

    original = diffusers.IFPipeline.from_pretrained(root / "IF-I", requires_safety_checker=False)
    if "safe_serialization" in options:  # transformers no longer writes legacy files
        original.unet.save_pretrained(tmp_path / "again" / "unet", **options)
        for name in ("scheduler", "text_encoder", "tokenizer", "model_index.json"):
            (tmp_path / "again" / name).symlink_to(root / "IF-I" / name)
    else:
        original.save_pretrained(tmp_path / "again", **options)
        model = root / "IF-I" / "tokenizer" / "spiece.model"
        (tmp_path / "again" / "tokenizer" / "spiece.model").write_bytes(model.read_bytes())
    files = sorted(path.name for path in (tmp_path / "again" / "unet").iterdir())
    assert (len(files) > 3) == ("max_shard_size" in options)
    variant = options.get("variant")
    assert torch.equal(draw(load(tmp_path / "again", variant=variant)), draw(load(root / "IF-I")))
    if variant is not None:
        with pytest.raises(WeightsError, match=r"no weights in .*something else: ask for variant='fp16'"):
            load(tmp_path / "again")


def test_a_missing_or_truncated_shard_is_named(root: Path, tmp_path: Path) -> None:
    import diffusers

    network = diffusers.UNet2DConditionModel.from_pretrained(root / "IF-I" / "unet")
    network.save_pretrained(tmp_path, max_shard_size="300KB")
    shards = find_files(tmp_path, DIFFUSERS)
    assert len(shards) > 2
    with StoredTensors(shards) as stored:
        name = next(iter(stored.shapes))
        assert torch.equal(stored.read(name), network.state_dict()[name])
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    with pytest.raises(WeightsError, match=rf"{shards[1].name} is truncated or damaged"):
        StoredTensors(shards)
    shards[1].unlink()
    with pytest.raises(WeightsError, match=rf"lacks the shards {shards[1].name};"):
        find_files(tmp_path, DIFFUSERS)


def test_a_legacy_file_is_read_when_it_is_needed(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(1000, 100), "b": torch.randn(3)}
    for zipped in (True, False):  # as since torch 1.6, and before
        path = tmp_path / f"{zipped}.bin"
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
        found = read_legacy(path)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
        if sys.platform == "linux":
            assert (str(path) in Path("/proc/self/maps").read_text()) == zipped
        with StoredTensors([path]) as stored:
            assert stored.shapes == {"a": (1000, 100), "b": (3,)}


class FakeHub:
    """snapshot_download over a folder that plays the hub: what was asked for appears in the cache."""

    def __init__(self, there: Path, cache: Path) -> None:
        self.there, self.cache, self.fetched = there, cache, []

    def __call__(self, model: str, *, allow_patterns: list[str], **_: Any) -> str:
        from fnmatch import fnmatch

        for path in self.there.rglob("*"):
            name = path.relative_to(self.there).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                (self.cache / name).write_bytes(path.read_bytes())
                self.fetched.append(name)
        self.cache.mkdir(exist_ok=True)
        return str(self.cache)


@pytest.mark.parametrize(
    ("variant", "there", "fetched"),
    [
        (None, ["{}.safetensors", "{}.fp16.safetensors", "{}.bin"], ["{}.safetensors"]),
        ("fp16", ["{}.safetensors", "{}.fp16.safetensors", "{}.fp16.bin"], ["{}.fp16.safetensors"]),
        (None, ["{}.bin", "{}.fp16.bin"], ["{}.bin"]),
        (
            "fp16",
            ["{}.safetensors.index.fp16.json", "{}.fp16-1.safetensors", "{}.fp16-2.safetensors", "{}.safetensors"],
            ["{}.fp16-1.safetensors", "{}.fp16-2.safetensors"],
        ),
    ],
)
def test_the_hub_is_asked_for_no_more_than_is_needed(
    variant: str | None, there: list[str], fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub"
    stems = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
    legacy = {"model": "pytorch_model"}
    for component, stem in stems.items():
        (repository / component).mkdir(parents=True)
        (repository / component / "config.json").write_text("{}")
        for name in there:
            own = legacy.get(stem, stem) if name.endswith(".bin") else stem
            shards = {str(i): file.format(stem) for i, file in enumerate(fetched)}
            text = json.dumps({"weight_map": shards}) if name.endswith(".json") else "weights"
            (repository / component / name.format(own)).write_text(text)
    for name in ("model_index.json", "tokenizer.model", "code.py"):
        (repository / name).write_text("{}")
    fake = FakeHub(repository, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    hub.resolve("someone/IF", variant=variant, leave_out=["text_encoder"])
    weights = [name for name in fake.fetched if not name.endswith((".json", ".model"))]
    assert sorted(set(weights)) == sorted(f"unet/{name.format(stems['unet'])}" for name in fetched)
    assert "code.py" not in fake.fetched
    hub.resolve("someone/IF", variant=variant)
    assert any(name.startswith("text_encoder/") and name.endswith((".bin", ".safetensors")) for name in fake.fetched)


def test_what_does_not_belong_together_is_refused_before_weights_are_fetched(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub(root / "IF-II", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    with pytest.raises(WeightsError, match="cannot enlarge what the stage before it draws"):
        Pipeline.from_pretrained("DeepFloyd/IF-II-M-v1.0", upscalers=["DeepFloyd/IF-II-M-v1.0"])
    assert "unet/config.json" in fake.fetched
    assert not [name for name in fake.fetched if name.endswith(".safetensors")]
    load("DeepFloyd/IF-II-M-v1.0")
    assert "unet/diffusion_pytorch_model.safetensors" in fake.fetched


# Safety checker and watermark


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> Path:
    """IF-I with a tiny safety checker, which lets everything pass, and a watermark, which is white."""
    from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
    from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
    from transformers import CLIPConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("guarded") / "IF-I"
    save_pipeline(folder, unet_config(), tiny_t5(text_encoder))
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 8}
    checker = IFSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    for head in (checker.p_head, checker.w_head):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, 0.4)
    checker.save_pretrained(folder / "safety_checker")
    watermarker = IFWatermarker()
    watermarker.watermark_image.fill_(255)
    watermarker.save_pretrained(folder / "watermarker")
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**sides).save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["deepfloyd_if", "IFSafetyChecker"]
    index["watermarker"] = ["deepfloyd_if", "IFWatermarker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_the_safety_checker_blackens_what_it_flags(guarded: Path) -> None:
    pipe = load(guarded)
    shown = pipe(**CALL)
    assert shown.flagged == [False, False]
    assert shown.images.std() > 0.1
    torch.nn.init.constant_(pipe.safety_checker.model.w_head.bias, 0.6)
    hidden = pipe(**CALL)
    assert hidden.flagged == [True, True]
    assert (hidden.images == 0).all()
    without = load(guarded, safety_checker=False)(**CALL)
    assert without.flagged is None
    assert torch.equal(without.images, shown.images)


def test_the_safety_checker_sees_few_at_a_time(guarded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checker = load(guarded).safety_checker
    head, scores = checker.model.p_head, []
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    head.register_forward_hook(lambda *call: scores.append(call[-1].flatten()))
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    checker(images)
    together = scores.pop()
    head.bias.data += 0.5 - together.sort().values[2:4].mean()  # so that two of them are above the threshold
    wanted = (together > together.median()).tolist()

    monkeypatch.setattr(safety, "AT_A_TIME", 2)
    shown, flagged = checker(images)
    assert [len(each) for each in scores] == [2, 2, 1]
    assert flagged == wanted
    for i, image in enumerate(images):
        assert torch.equal(shown[i], torch.full_like(image, -1) if flagged[i] else image)


def test_the_watermark_is_on_pil_images(guarded: Path) -> None:
    import numpy as np

    call = CALL | {"output_type": "pil", "num_inference_steps": 1, "height": 64, "width": 96}
    marked = [np.asarray(image) for image in load(guarded)(**call).images]
    plain = [np.asarray(image) for image in load(guarded, watermark=False)(**call).images]
    for with_it, without in zip(marked, plain, strict=True):
        changed = (with_it != without).any(axis=2)
        assert changed.any()
        assert (with_it[changed] == 255).all()
        assert not changed[:32, :48].any()  # it is in the corner at the lower right


def test_safety_parts_come_along(guarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved as a cascade, converted to one, and from there back to diffusers' layout."""
    load(guarded).save_pretrained(tmp_path / "saved")
    assert main(["convert", str(guarded), str(tmp_path / "converted")]) == 0
    assert main(["convert", str(tmp_path / "saved"), str(tmp_path / "back")]) == 0
    for folder in ("saved", "converted", "back/stage-0-base-16"):
        pipe = load(tmp_path / folder)
        assert pipe(**CALL).flagged == [False, False]
        torch.nn.init.constant_(pipe.safety_checker.model.w_head.bias, 0.6)
        assert pipe(**CALL).flagged == [True, True]
        assert (pipe.watermarker.watermark_image == 255).all()
        without = load(tmp_path / folder, safety_checker=False, watermark=False)
        assert without.safety_checker is without.watermarker is None
    index = json.loads((tmp_path / "back/stage-0-base-16/model_index.json").read_text())
    before = json.loads((guarded / "model_index.json").read_text())
    assert {name: index[name] for name in before} | {"_diffusers_version": ""} == before | {
        "_diffusers_version": "",
        "requires_safety_checker": True,
    }


def test_damaged_safety_parts_are_named(guarded: Path, tmp_path: Path) -> None:
    import shutil

    for spoil, message in (
        ("feature_extractor", "feature_extractor.* is missing: .* or pass safety_checker=False"),
        ("safety_checker", "lacks safety_checker/"),
        ("watermarker", "lacks watermarker/"),
    ):
        shutil.copytree(guarded, tmp_path / spoil)
        shutil.rmtree(tmp_path / spoil / spoil)
        with pytest.raises(WeightsError, match=message):
            load(tmp_path / spoil)


# cascade convert


def test_converted_to_a_cascade_and_back_the_images_are_the_same(root: Path, tmp_path: Path, capsys: Any) -> None:
    import diffusers

    ours, back = tmp_path / "mine", tmp_path / "back"
    assert main(["convert", str(root / "IF-I"), str(ours), "--upscalers", str(root / "IF-II")]) == 0
    assert read_manifest(ours)["stages"] == ["stage-0-base-16", "stage-1-sr-32"]
    wanted = draw(load(root / "IF-I", root / "IF-II"))
    assert torch.equal(draw(load(ours)), wanted)
    assert main(["info", str(ours)]) == 0
    assert "DeepFloyd IF License Agreement" in capsys.readouterr().out
    assert main(["convert", str(ours), str(back)]) == 0
    again = back / "stage-0-base-16", back / "stage-1-sr-32"
    assert torch.equal(draw(load(*again)), wanted)
    for name, folder in zip(("IF-I", "IF-II"), again, strict=True):
        theirs, found = (diffusers.UNet2DConditionModel.from_pretrained(at / "unet") for at in (root / name, folder))
        assert all(torch.equal(found.state_dict()[key], value) for key, value in theirs.state_dict().items())
        configs = [_configs(at) for at in (root / name, folder)]
        assert decode(StageConfig, configs[0], "theirs") == decode(StageConfig, configs[1], "back")
    assert diffusers.IFPipeline.from_pretrained(again[0]).text_encoder is not None
    assert diffusers.IFSuperResolutionPipeline.from_pretrained(again[1]).text_encoder is None


def _configs(folder: Path) -> dict[str, Any]:
    files = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/*config.json")}
    return stage_config({name: files[name] for name in files if name in ("unet",) or "scheduler" in name}, "test")


def test_another_dtype_and_one_stage(root: Path, tmp_path: Path) -> None:
    from weights.store import read_stage

    assert main(["convert", str(root / "IF-II"), str(tmp_path / "sr"), "--dtype", "bfloat16"]) == 0
    tensors = read_stage(tmp_path / "sr", "stage-0-sr-32").tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/IF-I", "{root}"], "exists already; choose another place"),
        (["{root}/IF-II", "{new}", "-u", "{root}/IF-I"], "cannot come after"),
        (["{root}/nothing", "{new}"], "no folder"),
        (["{root}/IF-I", "{new}", "--variant", "fp16"], "ask for no variant"),
        (["{toybox}", "{new}"], "is not of DeepFloyd IF's architecture"),
        (["{toybox}", "{new}", "-u", "{root}/IF-II"], "upscalers are for a DeepFloyd IF pipeline"),
    ],
)
def test_what_cannot_be_converted(arguments: list[str], message: str, root: Path, tmp_path: Path, capsys: Any) -> None:
    places = {"root": root, "new": tmp_path / "new", "toybox": hub.EMBEDDED}
    assert main(["convert", *(each.format(**places) for each in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
