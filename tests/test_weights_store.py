"""weights/: the folder of a cascade, written all or nothing and read strictly; finding it, with and without network."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weights import (
    EMBEDDED,
    StageFiles,
    WeightsError,
    atomic_write,
    check_tensors,
    read_legacy,
    read_manifest,
    read_stage,
    resolve,
    save_cascade,
    store,
)

MANIFEST = {"text_encoder": None, "licence": "Apache-2.0", "provenance": {"steps": 3}}


def stages(value: float = 1.0) -> dict[str, StageFiles]:
    shared = torch.arange(6.0)
    return {
        "stage-0-base-64": StageFiles(
            {"network": "unet", "value": value},
            {"a.weight": torch.full((2, 3), value, dtype=torch.bfloat16), "b": torch.arange(6).reshape(2, 3).T},
        ),
        "stage-1-sr-256": StageFiles({"network": "efficient_unet"}, {"c": shared.requires_grad_(True)}),
    }


@pytest.fixture
def cascade(tmp_path: Path) -> Path:
    folder = tmp_path / "my-cascade"
    save_cascade(folder, MANIFEST, stages())
    return folder


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_cascade_reads_back_bit_equal(cascade: Path) -> None:
    assert read_manifest(cascade) == {"format": 1, "stages": ["stage-0-base-64", "stage-1-sr-256"], **MANIFEST}
    for name, stage in stages().items():
        found = read_stage(cascade, name)
        assert found.config == stage.config
        assert found.tensors.keys() == stage.tensors.keys()
        for key, tensor in stage.tensors.items():
            assert found.tensors[key].dtype == tensor.dtype
            assert torch.equal(found.tensors[key], tensor)


def test_the_same_cascade_gives_the_same_bytes_readable_by_others(cascade: Path, tmp_path: Path) -> None:
    save_cascade(tmp_path / "again", MANIFEST, stages())
    for path in [p for p in cascade.rglob("*") if p.is_file()]:
        again = tmp_path / "again" / path.relative_to(cascade)
        assert again.read_bytes() == path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((cascade / "cascade.json").stat().st_mode)


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing_drops_what_the_old_one_had(cascade: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(store, "_exchange", lambda a, b: False)
    save_cascade(
        cascade, MANIFEST, {"only": StageFiles({}, {})}, lambda folder: atomic_write(folder / "README.md", "hi")
    )
    assert sorted(p.name for p in cascade.iterdir()) == ["README.md", "cascade.json", "only"]
    assert [p.name for p in cascade.parent.iterdir()] == [cascade.name]


def test_a_failed_save_leaves_the_old_cascade(cascade: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "text_encoder").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_cascade(cascade, MANIFEST, stages(2.0), fail)
    assert read_stage(cascade, "stage-0-base-64").config["value"] == 1.0
    assert [p.name for p in cascade.parent.iterdir()] == [cascade.name]
    # A process that was killed cannot tidy up; the next save does.
    (cascade.parent / f".{cascade.name}.saving" / "stage-0-base-64").mkdir(parents=True)
    save_cascade(cascade, MANIFEST, stages(3.0))
    assert read_stage(cascade, "stage-0-base-64").config["value"] == 3.0
    assert [p.name for p in cascade.parent.iterdir()] == [cascade.name]


def test_a_save_killed_between_two_renames_is_explained(cascade: Path) -> None:
    cascade.rename(cascade.parent / f".{cascade.name}.previous")
    with pytest.raises(WeightsError, match=r"interrupted save left .*my-cascade\.previous: rename it back"):
        read_manifest(cascade)


def test_saving_refuses_what_is_no_cascade(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(WeightsError, match="thesis is not empty and is no cascade"):
        save_cascade(tmp_path / "thesis", MANIFEST, stages())
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    with pytest.raises(WeightsError, match=r"chapter\.txt is a file"):
        save_cascade(tmp_path / "thesis" / "chapter.txt", MANIFEST, stages())
    (tmp_path / "empty").mkdir()
    save_cascade(tmp_path / "empty", MANIFEST, stages())
    assert read_manifest(tmp_path / "empty")["format"] == 1


@pytest.mark.parametrize(
    ("manifest", "names", "message"),
    [
        ({**MANIFEST, "license": "MIT"}, ["a"], r"unknown keys \['license'\]; expected format, stages, text_encoder"),
        ({"text_encoder": None, "provenance": {}}, ["a"], "lacks 'licence'"),
        ({**MANIFEST, "licence": None}, ["a"], "licence = None; expected a string"),
        ({**MANIFEST, "text_encoder": "t5"}, ["a"], "text_encoder = 't5'; expected an object or null"),
        (MANIFEST, [], "expected a list of at least one folder name"),
        (MANIFEST, ["../elsewhere"], r"the stage '\.\./elsewhere'; expected names of folders"),
        ({**MANIFEST, "provenance": {"loss": float("nan")}}, ["a"], r"cascade\.json .*cannot be written as JSON"),
    ],
)
def test_saving_refuses_a_bad_manifest(tmp_path: Path, manifest: dict, names: list[str], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        save_cascade(tmp_path / "new", manifest, {name: StageFiles({}, {}) for name in names})
    assert list(tmp_path.iterdir()) == []


def test_reading_a_folder_that_is_not_there_or_no_cascade(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no folder .*nowhere; check the path"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"no cascade\.json in .*expected the folder of a cascade"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"cascade\.json has format 2 and this version reads format 1; update cascade-t2i"),
        ({"format": None}, "has format None"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"stages": ["/etc"]}, "the stage '/etc'"),
        ({"stages": ["a", "a"]}, "the stage 'a'; expected names of folders, each once"),
        ({"stages": "a"}, "has stages = 'a'; expected a list"),
    ],
)
def test_reading_refuses_a_bad_manifest(cascade: Path, changes: dict, message: str) -> None:
    edit(cascade / "cascade.json", **changes)
    with pytest.raises(WeightsError, match=message):
        read_manifest(cascade)


@pytest.mark.parametrize("text", ['{"format": 1', "", "[]", b"\xff\xfe"])
def test_malformed_json_names_the_file(cascade: Path, text: str | bytes) -> None:
    for path in (cascade / "cascade.json", cascade / "stage-0-base-64" / "config.json"):
        good = path.read_bytes()
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(WeightsError, match=rf"{path.name} (is not JSON|holds a JSON list)"):
            read_stage(cascade, "stage-0-base-64")
        path.write_bytes(good)


def test_missing_parts_of_a_stage_are_named(cascade: Path) -> None:
    with pytest.raises(WeightsError, match="names no stage 'stage-9'; it has stage-0-base-64, stage-1-sr-256"):
        read_stage(cascade, "stage-9")
    stage = cascade / "stage-0-base-64"
    for path in (stage / "model.safetensors", stage / "config.json"):
        path.rename(path.with_suffix(".away"))
        with pytest.raises(WeightsError, match=rf"{path.name} is missing: .*download it again"):
            read_stage(cascade, stage.name)
        path.with_suffix(".away").rename(path)
    stage.rename(cascade / "away")
    with pytest.raises(WeightsError, match="stage-0-base-64 is missing"):
        read_stage(cascade, stage.name)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_and_damaged_tensors(cascade: Path, keep: int) -> None:
    path = cascade / "stage-0-base-64" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors is truncated or damaged"):
        read_stage(cascade, "stage-0-base-64")


def test_check_tensors_names_what_differs() -> None:
    expected = {f"missing.{i}": (1,) for i in range(12)} | {"good": (2, 3), "bent": (4,)}
    found = {"good": torch.zeros(2, 3), "bent": torch.zeros(4, 1), "extra": (7,)}
    check_tensors({"good": (2, 3)}, {"good": torch.zeros(2, 3)}, "here")
    with pytest.raises(WeightsError) as caught:
        check_tensors(expected, found, "stage-0/model.safetensors")
    message = str(caught.value)
    assert "stage-0/model.safetensors" in message
    assert "12 missing: missing.0;" in message
    assert "missing.9 ..." in message
    assert "missing.10" not in message
    assert "1 unexpected: extra" in message
    assert "1 misshapen: bent (4, 1), expected (4,)" in message


@given(data=st.one_of(st.binary(), st.text()))
@settings(max_examples=20, deadline=None)
def test_atomic_write_writes_all(tmp_path_factory: pytest.TempPathFactory, data: bytes | str) -> None:
    path = tmp_path_factory.getbasetemp() / "file"
    path.write_text("old")
    atomic_write(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


class _Bomb:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("pwned",))


def test_legacy_files_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.arange(3)}, "good.bin")
    assert torch.equal(read_legacy("good.bin")["a"], torch.arange(3))
    torch.save({"a": torch.arange(3), "b": _Bomb()}, "bomb.bin")
    with pytest.raises(WeightsError, match=r"bomb\.bin holds more than tensors.*safetensors"):
        read_legacy("bomb.bin")
    assert not Path("pwned").exists()
    torch.save([torch.arange(3)], "list.bin")
    with pytest.raises(WeightsError, match="no table of named tensors"):
        read_legacy("list.bin")
    Path("cut.bin").write_bytes(Path("good.bin").read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"cut\.bin holds more than tensors, or is damaged"):
        read_legacy("cut.bin")
    with pytest.raises(WeightsError, match=r"no file none\.bin"):
        read_legacy("none.bin")


def test_resolve_finds_local_folders(cascade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(None) == EMBEDDED
    assert resolve(cascade) == cascade
    monkeypatch.chdir(cascade.parent)
    assert resolve("my-cascade") == Path("my-cascade")
    with pytest.raises(WeightsError, match=r"'my-cascade/cascade\.json' is a file; expected the folder"):
        resolve("my-cascade/cascade.json")


@pytest.mark.parametrize("model", ["my-cascad", "./a/b", "/no/where", "a/b/c", Path("a/b")])
def test_resolve_explains_a_misspelt_path(model: str | Path) -> None:
    with pytest.raises(WeightsError, match=r"no folder .*looked for .*check the path.*'owner/name'"):
        resolve(model)


def _pretend_cached(cache: Path, repo: str) -> Path:
    """The layout of huggingface_hub's cache, as a finished download leaves it."""
    root = cache / ("models--" + repo.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    snapshot = root / "snapshots" / ("0" * 40)
    save_cascade(snapshot, MANIFEST, stages())
    return snapshot


def test_resolve_works_from_the_cache_without_network(tmp_path: Path, no_hub: None) -> None:
    snapshot = _pretend_cached(tmp_path, "someone/cascade")
    for local_files_only in (True, False):
        found = resolve("someone/cascade", cache_dir=tmp_path, local_files_only=local_files_only)
        assert found.resolve() == snapshot.resolve()


def test_resolve_explains_a_hub_id_without_network(tmp_path: Path, no_hub: None) -> None:
    with pytest.raises(WeightsError, match=r"'someone/cascade' is not in the cache, and the hub could not be reached"):
        resolve("someone/cascade", cache_dir=tmp_path)
    with pytest.raises(WeightsError, match=r"at revision 'v2' is not in the cache, and local_files_only is set"):
        resolve("someone/cascade", cache_dir=tmp_path, revision="v2", local_files_only=True)
    with pytest.raises(WeightsError, match=r"neither a folder nor a valid hub id .*there is none at"):
        resolve("bad--name/..", cache_dir=tmp_path)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses every connection: a closed port of this machine."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
