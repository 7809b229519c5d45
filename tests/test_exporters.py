"""Layouts of other benchmarks: what their evaluation scripts look for, and names that stay where they belong."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from pipelines import cli
from pipelines.batch import generate_batch
from pipelines.prompts import PromptRecord


@pytest.fixture
def export(pipe, tmp_path, capsys):
    """Draw a run of these records, export it; the exit status and what was printed."""

    def run(layout, records, images=1, out="out"):
        generate_batch(pipe, records, tmp_path / "run", images_per_prompt=images, progress=False)
        status = cli.main(["export", str(tmp_path / "run"), str(tmp_path / out), "--layout", layout])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def linked(path, source):
    return os.path.samefile(path, source)


def test_geneval(export, tmp_path):
    extra = {"include": [{"class": "bench", "count": 1}], "exclude": [{"class": "bench", "count": 2}]}
    records = [PromptRecord("a photo of a bench", "counting", extra), PromptRecord("a cow", "one", {"include": []})]
    assert export("geneval", records, images=2) == (0, f"{tmp_path / 'out'}\n")
    assert files(tmp_path / "out") == [
        f"{i:05d}/{name}" for i in range(2) for name in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    ]
    with open(tmp_path / "out" / "00000" / "metadata.jsonl") as file:
        assert json.load(file) == {"tag": "counting", "prompt": "a photo of a bench", **extra}
    assert linked(tmp_path / "out/00001/samples/0001.png", tmp_path / "run/images/00001-1.png")


def test_geneval_needs_its_metadata(export, tmp_path):
    status, printed = export("geneval", ["a red car"])
    assert status == 2
    assert 'prompt 0 has no "include"' in printed
    assert not (tmp_path / "out").exists()


def test_t2i_compbench(export, tmp_path):
    prompts = ["a green bench and a blue bowl", '../a_b/c: "d"\n.', "...", "é" * 300]
    with pytest.warns(UserWarning, match="longer than the 64 tokens"):
        assert export("t2i-compbench", prompts, images=2)[0] == 0
    names = sorted(os.listdir(tmp_path / "out" / "samples"), key=lambda name: int(name.split("_")[-1].split(".")[0]))
    assert [name.split("_")[0] for name in names[::2]] == [
        "a green bench and a blue bowl",
        "a b c d .",
        "prompt",
        "é" * 122,
    ]
    assert [name[-11:] for name in names] == [f"_{j:06d}.png" for j in range(8)]
    assert files(tmp_path / "out") == sorted(f"samples/{name}" for name in names)
    assert linked(tmp_path / "out" / "samples" / names[3], tmp_path / "run/images/00001-1.png")


def test_dpg_bench(export, tmp_path):
    records = [PromptRecord("a red car", extra={"item_id": "coco_1-2"}), PromptRecord("a ball", extra={"item_id": 7})]
    assert export("dpg-bench", records, images=4)[0] == 0
    assert files(tmp_path / "out") == ["7.png", "coco_1-2.png"]
    with Image.open(tmp_path / "out" / "coco_1-2.png") as image:
        whole = np.array(image)
    for k, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        with Image.open(tmp_path / "run" / "images" / f"00000-{k}.png") as image:
            assert (whole[y : y + 16, x : x + 16] == np.array(image)).all()


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([None], 1, "prompt 0 has the item_id ''"),
        (["../x"], 1, "item_id '../x'; expected letters"),
        (["a.b"], 1, "item_id 'a.b'"),
        (["a", "a"], 1, "two prompts have the item_id 'a'"),
        (["a"], 3, "3 images a prompt; DPG-Bench takes 4, or 1"),
    ],
)
def test_dpg_bench_refuses(export, tmp_path, ids, images, message):
    records = [PromptRecord("a red car", extra={} if one is None else {"item_id": one}) for one in ids]
    status, printed = export("dpg-bench", records, images=images)
    assert status == 2
    assert message in printed
    assert not (tmp_path / "out").exists()


def test_hpsv2(export, tmp_path):
    records = [PromptRecord(f"car {i}", style) for i, style in enumerate(["photo", "anime", "photo"])]
    assert export("hpsv2", records, images=2)[0] == 0
    assert files(tmp_path / "out") == ["anime/00000.jpg", "photo/00000.jpg", "photo/00001.jpg"]
    assert linked(tmp_path / "out/photo/00001.jpg", tmp_path / "run/images/00002-0.png")
    with Image.open(tmp_path / "out/photo/00001.jpg") as image:
        image.load()


def test_hpsv2_needs_its_styles(export):
    status, printed = export("hpsv2", [PromptRecord("a car", "../photo")])
    assert status == 2
    assert re.search("category '../photo'; expected anime, concept-art, paintings, photo", printed)


def test_images_are_copied_where_links_cannot_be(export, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    assert export("hpsv2", [PromptRecord("a car", "photo")])[0] == 0
    copy, source = tmp_path / "out/photo/00000.jpg", tmp_path / "run/images/00000-0.png"
    assert copy.read_bytes() == source.read_bytes()
    assert not linked(copy, source)


def test_a_folder_with_something_in_it_is_refused(export, tmp_path):
    (tmp_path / "out").mkdir()
    assert export("t2i-compbench", ["a red car"])[0] == 0
    status, printed = export("t2i-compbench", ["a red car"])
    assert status == 2
    assert "is not empty; choose another folder" in printed


def test_an_incomplete_run_is_refused(export, tmp_path):
    assert export("t2i-compbench", ["a red car"])[0] == 0
    (tmp_path / "run/images/00000-0.png").unlink()
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "other"), "--layout", "geneval"]) == 2
    assert not (tmp_path / "other").exists()
