"""Collections of the toybox that were rendered beforehand: what training reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toybox_scenes import read, scenes

from cascade.data.toybox import caption, held_out, render, rendered, sample_scene
from cascade.data.toybox.rendered import RenderedToybox, render_collection


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten scenes of 16 px in three files."""
    monkeypatch.setattr(rendered, "SHARD", 4)
    render_collection(tmp_path / "scenes", seed=7, count=10, size=16, workers=1)
    return tmp_path / "scenes"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_collection_holds_its_scenes_and_their_pictures(collection: Path) -> None:
    source = RenderedToybox(collection)
    assert len(source) == 10
    assert tuple(source.scene(i) for i in range(10)) == scenes()[:10]
    found = source.images(np.arange(10), np.random.default_rng(0))
    assert found.shape == (10, 3, 16, 16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, render(scenes()[:10], 16), rtol=0, atol=0.5 / 127.5 + 1e-6)
    order = np.array([9, 0, 4, 4])
    assert torch.equal(source.images(order, np.random.default_rng(1)), found[order])


def test_captions_are_those_of_the_scenes(collection: Path) -> None:
    source, order = RenderedToybox(collection), np.array([9, 0, 4, 4])
    texts = source.captions(order, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    assert texts == [caption(scenes()[i].description, rng, scenes()[i].ground) for i in order]
    assert texts == source.captions(order, np.random.default_rng(3))


def test_what_training_reads_shows_no_held_out_pairing(tmp_path: Path) -> None:
    """The pictures' scenes, and what the captions say, read back. An eighth of all scenes would otherwise."""
    count, held = 400, held_out()
    render_collection(tmp_path, seed=1, count=count, size=8, workers=1)
    source, rng = RenderedToybox(tmp_path), np.random.default_rng(0)
    assert len(source) == count
    assert not any(held.holds(source.scene(i).description) for i in range(count))
    for text in source.captions(np.arange(count), rng):
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
    source = RenderedToybox(collection)
    assert len(source) == 15
    assert tuple(source.scene(i) for i in range(15)) == scenes()[:15]
    assert source.images(np.arange(15), np.random.default_rng(0)).shape == (15, 3, 16, 16)
    assert (collection / "images-00000.npy").stat().st_mtime_ns == before


def test_rendering_leaves_the_threads_as_they_are(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        render_collection(tmp_path, seed=7, count=1, size=8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_crops_are_parts_of_the_pictures(collection: Path) -> None:
    source, whole = RenderedToybox(collection, crop=6), RenderedToybox(collection)
    order = np.arange(10)
    found = source.images(order, np.random.default_rng(5))
    assert found.shape == (10, 3, 6, 6)
    assert torch.equal(found, source.images(order, np.random.default_rng(5)))
    assert not torch.equal(found, source.images(order, np.random.default_rng(6)))
    windows = whole.images(order, np.random.default_rng(0)).unfold(2, 6, 1).unfold(3, 6, 1)  # B 3 y x 6 6
    places = set()
    for picture, window in zip(found, windows, strict=True):
        same = (window.permute(1, 2, 0, 3, 4) == picture).flatten(2).all(dim=2).nonzero().tolist()
        assert same
        places.add(tuple(same[0]))
    assert len({y for y, _ in places}) > 3
    assert len({x for _, x in places}) > 3
    assert any(y != x for y, x in places)


def test_what_is_not_there_is_named(collection: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no rendered scenes in .*nowhere; make them with render_collection"):
        RenderedToybox(tmp_path / "nowhere")
    for crop in (0, 17):
        with pytest.raises(ValueError, match=f"crop must be within the images' 16 px, got {crop}"):
            RenderedToybox(collection, crop=crop)


@pytest.mark.slow
def test_several_processes_render_what_one_does(tmp_path: Path) -> None:
    count = rendered.SHARD + 3
    for workers in (1, 2):
        render_collection(tmp_path / str(workers), seed=7, count=count, size=8, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_scenes_of_another_world_are_refused(collection: Path) -> None:
    with pytest.raises(ValueError, match="another seed, or of an earlier toybox"):
        render_collection(collection, seed=4, count=1, size=8)
