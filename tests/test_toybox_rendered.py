"""Collections of the toybox that were rendered beforehand: what training reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toybox_scenes import read, scenes

from cascade.data.toybox import caption, held_out, render, rendered, sample_scene
from cascade.data.toybox.rendered import render_collection
from cascade.data.toybox.source import ToyboxSource


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten scenes of 16 px in three files."""
    monkeypatch.setattr(rendered, "SHARD", 4)
    render_collection(tmp_path / "scenes", seed=7, count=10, size=16, workers=1)
    return tmp_path / "scenes"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pixels(source: ToyboxSource) -> np.ndarray:
    """N 3 H W uint8."""
    return np.stack([np.asarray(source.image(i)) for i in range(len(source))]).transpose(0, 3, 1, 2)


def test_a_collection_holds_its_scenes_and_their_pictures(collection: Path) -> None:
    source = ToyboxSource(collection)
    assert len(source) == 10
    assert tuple(source.scene(i) for i in range(10)) == scenes()[:10]
    found = pixels(source)
    assert found.shape == (10, 3, 16, 16)
    assert (found == ((render(scenes()[:10], 16) + 1) * 127.5).round().byte().numpy()).all()


def test_captions_are_those_of_the_scenes(collection: Path) -> None:
    source = ToyboxSource(collection)
    for i in range(10):
        scene = scenes()[i]
        said = {caption(scene.description, np.random.default_rng(seed), scene.ground) for seed in range(300)}
        texts = source.captions(i)
        assert texts == source.captions(i)
        assert len(set(texts)) > 1
        looks = {look for text in said for look in read(text)}
        assert all(set(read(text)) <= looks for text in texts)


def test_what_training_reads_shows_no_held_out_pairing(tmp_path: Path) -> None:
    """The pictures' scenes, and what the captions say, read back. An eighth of all scenes would otherwise."""
    count, held = 400, held_out()
    render_collection(tmp_path, seed=1, count=count, size=8, workers=1)
    source = ToyboxSource(tmp_path)
    assert len(source) == count
    assert not any(held.holds(source.scene(i).description) for i in range(count))
    for text in (text for i in range(count) for text in source.captions(i)):
        assert not {(look.noun, look.colour) for look in read(text)} & held.colours, text
        assert not {(look.noun, look.material) for look in read(text)} & held.materials, text
    anything = [sample_scene(1, i, pairings="any").description for i in range(count)]
    assert sum(map(held.holds, anything)) > 0.08 * count


def test_rendering_goes_on_where_it_stopped(collection: Path) -> None:
    whole = contents(collection)
    assert len(whole) == 6
    (collection / "images-00001.npy").unlink()
    (collection / "scenes-00001.jsonl").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in collection.iterdir()}
    render_collection(collection, seed=7, count=10, size=16, workers=1)
    assert contents(collection) == whole
    assert {name: (collection / name).stat().st_mtime_ns for name in times} == times


def test_a_killed_rendering_leaves_no_half_file(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contents(collection)
    (collection / "images-00002.npy").unlink()

    def half(file, pixels: np.ndarray) -> None:
        file.write(b"\x93NUMPY half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", half)
        with pytest.raises(KeyboardInterrupt):
            render_collection(collection, seed=7, count=10, size=16, workers=1)
    assert not (collection / "images-00002.npy").exists()
    render_collection(collection, seed=7, count=10, size=16, workers=1)
    assert {name: data for name, data in contents(collection).items() if name in whole} == whole


def test_a_collection_can_grow(collection: Path) -> None:
    """Its last file is short; the next scenes belong into it."""
    before = (collection / "images-00000.npy").stat().st_mtime_ns
    render_collection(collection, seed=7, count=15, size=16, workers=1)
    source = ToyboxSource(collection)
    assert len(source) == 15
    assert tuple(source.scene(i) for i in range(15)) == scenes()[:15]
    assert pixels(source).shape == (15, 3, 16, 16)
    assert (collection / "images-00000.npy").stat().st_mtime_ns == before


def test_scenes_of_other_materials_are_not_mixed_in(collection: Path) -> None:
    with pytest.raises(ValueError, match="of other materials"):
        render_collection(collection, seed=7, count=15, size=16, workers=1, made=0.8)


def test_rendering_leaves_the_threads_as_they_are(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        render_collection(tmp_path, seed=7, count=1, size=8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no rendered scenes in .*nowhere; make them with render_collection"):
        ToyboxSource(tmp_path / "nowhere")


@pytest.mark.slow
def test_several_processes_render_what_one_does(tmp_path: Path) -> None:
    count = rendered.SHARD + 3
    for workers in (1, 2):
        render_collection(tmp_path / str(workers), seed=7, count=count, size=8, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_scenes_of_another_world_are_refused(collection: Path) -> None:
    with pytest.raises(ValueError, match="of another seed, of other materials or of an earlier toybox"):
        render_collection(collection, seed=4, count=1, size=8)
