"""Folders, tar shards, datasets and the toybox behind one interface."""

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_folders import encoded, make_folder, picture

from cascade.data.decode import decode
from cascade.data.folder import FolderSource
from cascade.data.source import Unusable, hold_out, open_source
from cascade.data.strings import PackedStrings
from cascade.data.tar import TarSource


def contents(source):
    """Everything a source says, faults included."""

    def tell(read, index):
        try:
            return read(index)
        except Unusable as error:
            return f"unusable: {error}"

    return {
        source.name(i): (tell(source.captions, i), tell(lambda i: pixels(source.image(i)), i))
        for i in range(len(source))
    }


def pixels(data):
    return np.asarray(decode(data)).tobytes()


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(numbers):
    return {
        name: data
        for i in numbers
        for name, data in ((f"{i:04d}.png", encoded(picture(i))), (f"{i:04d}.txt", f"picture {i}".encode()))
    }


# Folders


def test_metadata_in_every_form(tmp_path):
    rows = [("a.png", "a red car"), ("b/c.png", 'a "blue", round\nball')]
    for name in ("a.png", "b/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(picture(len(name))))
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps({"file_name": f, "text": t}) + "\n\n" for f, t in rows))
    found = contents(FolderSource(tmp_path))
    assert [captions for captions, _ in found.values()] == [["a red car"], ['a "blue", round\nball']]
    assert found["b/c.png"][1] == pixels(encoded(picture(7)))
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('﻿file_name,Caption\na.png,a red car\nb/c.png,"a ""blue"", round\nball"\n')
    assert contents(FolderSource(tmp_path)) == found
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "b" / "metadata.jsonl").write_text('{"file_name": "c.png", "text": ["one", " ", "two "]}\n')
    (tmp_path / "a.txt").write_text("a red car\n\nan automobile\n")
    assert [captions for captions, _ in contents(FolderSource(tmp_path)).values()] == [
        ["a red car", "an automobile"],
        ["one", "two"],
    ]


def test_every_fault_has_a_name_and_a_reason(tmp_path):
    make_folder(tmp_path, 1)
    for name in ("bare", "empty", "latin", "number"):
        (tmp_path / f"{name}.png").write_bytes(encoded(picture()))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "gone.png", "text": "x"}\n{"file_name": "number.png", "text": 7}\n')
        file.write("no json\n[1]\n" + '{"file_name": "../../etc/passwd", "text": "x"}\n{"text": "x"}\n')
        file.write('{"file_name": "\\u0000.png", "text": "x"}\n{"file_name": "\\ud800.png", "text": "x"}\n')
    with pytest.warns(UserWarning, match=r"6 lines cannot be read.*line 4: no JSON"):
        found = contents(FolderSource(tmp_path))
    said = {name: next((part for part in parts if "unusable" in str(part)), None) for name, parts in found.items()}
    assert said.pop("0000.png") is None
    assert {name: reason.removeprefix("unusable: ")[:20] for name, reason in said.items()} == {
        "bare.png": "no caption: no bare.",
        "empty.png": "the caption is empty",
        "latin.png": "no caption: latin.tx",
        "number.png": "the caption is 7; ex",
        "gone.png": "the file cannot be r",
    }


def test_splits(tmp_path):
    for split, number in (("train", 3), ("val", 2), (".cache", 1)):
        make_folder(tmp_path / split, number)
    assert len(FolderSource(tmp_path)) == len(FolderSource(tmp_path, "train")) == 3
    assert len(FolderSource(tmp_path, "validation")) == len(FolderSource(tmp_path, "val")) == 2
    with pytest.raises(ValueError, match="no split 'test'; there is train, val"):
        FolderSource(tmp_path, "test")
    make_folder(tmp_path / "trees", 4)  # so `train` may hold pictures of trains
    assert len(FolderSource(tmp_path)) == 9


def test_what_is_passed_over(tmp_path):
    make_folder(tmp_path, 2)
    for hidden in (".cache/x.png", "._0000.png", "notes.md"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"x")
    assert list(contents(FolderSource(tmp_path))) == ["0000.png", "0001.png"]


@pytest.mark.skipif(os.name != "posix", reason="names are Unicode elsewhere")
def test_a_name_that_is_no_unicode(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(path + b".png", "wb") as image, open(path + b".txt", "w") as text:
        image.write(encoded(picture()))
        text.write("a café")
    assert next(iter(contents(FolderSource(tmp_path)).values()))[0] == ["a café"]


# Tar shards


def test_a_shard_says_what_a_folder_says(tmp_path):
    members = samples(range(5)) | {"sub/x.y.jpg": encoded(picture(), "JPEG"), "sub/x.json": b'{"caption": "seven"}'}
    source = open_source(shard(tmp_path / "a.tar", members))
    found = contents(source)
    assert list(found) == [f"a.tar/{i:04d}" for i in range(5)] + ["a.tar/sub/x"]
    assert [captions for captions, _ in found.values()] == [[f"picture {i}"] for i in range(5)] + [["seven"]]
    assert found["a.tar/0003"][1] == pixels(encoded(picture(3)))
    assert contents(pickle.loads(pickle.dumps(source))) == found


def test_many_shards_and_splits(tmp_path):
    shard(tmp_path / "data-train-0.tar", samples(range(3)))
    shard(tmp_path / "data-train-1.tar", samples(range(3, 5)))
    shard(tmp_path / "data-val-0.tar", samples(range(5, 6)))
    assert [captions for captions, _ in contents(open_source(tmp_path)).values()] == [
        [f"picture {i}"] for i in range(5)
    ]
    assert list(contents(open_source(tmp_path, "validation"))) == ["data-val-0.tar/0005"]


def test_the_index_is_kept_until_the_shard_changes(tmp_path, monkeypatch):
    path = shard(tmp_path / "a.tar", samples(range(3)))
    found = contents(TarSource(path))
    read = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a: pytest.fail("indexed again"))
    assert contents(TarSource(path)) == found
    monkeypatch.setattr(tarfile, "open", read)
    (tmp_path / ".a.tar.index").write_bytes(b"junk")
    assert contents(TarSource(path)) == found
    shard(path, samples(range(4)))
    assert len(TarSource(path)) == 4


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    path = shard(tmp_path / "a.tar", samples(range(3)))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cascade.data.tar.atomic_write", refuse)
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert len(TarSource(path)) == 3


WHOLE = 10


@given(cut=st.integers(0, WHOLE * 4096))
def test_a_shard_cut_anywhere(tmp_path_factory, cut):
    """Samples before the cut are as they were; one item says that there were more."""
    folder = tmp_path_factory.mktemp("cut")
    data = shard(folder / "whole.tar", samples(range(WHOLE))).read_bytes()
    before = list(contents(TarSource(folder / "whole.tar")).values())
    path = folder / "a.tar"
    path.write_bytes(data[:cut])
    end = data.rindex(b"picture 9") + 512  # where the blocks of zeros begin that a shard ends with
    if cut >= end + 512:
        assert list(contents(TarSource(path)).values()) == before
        return
    with pytest.warns(UserWarning, match=r"a\.tar is cut off or damaged after \d+ samples"):
        found = contents(TarSource(path))
    captions, image = found.pop("a.tar/(the rest)")
    assert "cut off" in captions
    assert "no image" in image
    intact = [parts for parts in found.values() if not any("unusable" in str(part) for part in parts)]
    assert intact == before[: len(intact)]
    assert len(found) - len(intact) <= 1
    blocks = len(data[: data.rindex(b"picture 0") + 512])
    assert len(intact) >= min(WHOLE, (cut // blocks) - 1)


def test_junk_within_a_shard(tmp_path):
    path = shard(tmp_path / "a.tar", samples(range(6)))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"0003.png") // 512 * 512
    data[at : at + 512] = os.urandom(512)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged after 3 samples"):
        found = contents(TarSource(path))
    assert list(found) == ["a.tar/0000", "a.tar/0001", "a.tar/0002", "a.tar/(the rest)"]


def test_half_samples(tmp_path):
    path = shard(tmp_path / "a.tar", {"a.png": encoded(picture()), "b.txt": b"b", "c.png": b"", "c.json": b"[1"})
    found = contents(TarSource(path))
    assert found["a.tar/a"][0] == "unusable: no caption: no .txt or .json of that name"
    assert found["a.tar/b"][1] == "unusable: no image of that name"
    assert "cannot be read" in found["a.tar/c"][0]


def test_what_is_no_shard(tmp_path):
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(shard(tmp_path / "a.tar", samples(range(1))).read_bytes())
    with pytest.raises(ValueError, match="compressed"):
        open_source(tmp_path / "a.tar.gz")
    shard(tmp_path / "empty.tar", {"readme.md": b"x"})
    with pytest.raises(ValueError, match=r"no samples in .*empty.tar"):
        open_source(tmp_path / "empty.tar")


# Toybox, datasets, and what they share


def test_toybox(tmp_path):
    from cascade.data.toybox import render, sample_scene
    from cascade.data.toybox.rendered import render_collection

    render_collection(tmp_path, seed=0, count=3, size=16, workers=1)
    source = open_source(tmp_path)
    assert len(source) == 3
    images = ((render([sample_scene(0, i) for i in range(3)], 16) + 1) * 127.5).round().byte()
    assert all((np.asarray(source.image(i)).transpose(2, 0, 1) == images[i].numpy()).all() for i in range(3))
    assert source.captions(1) == source.captions(1)
    assert len(set(source.captions(1))) > 1
    copy = pickle.dumps(source)
    assert len(copy) < 1000
    assert pixels(pickle.loads(copy).image(2)) == pixels(source.image(2))


def test_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    from cascade.data.hub import DatasetSource

    files = [encoded(picture(i)) for i in range(3)]
    rows = {"image": [*files, None], "text": ["zero", " ", "two", "three"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(tmp_path / "saved")
        source = open_source(tmp_path / "saved")
    found = contents(source)
    assert found["row 0"] == (["zero"], pixels(files[0]))
    assert found["row 1"][0] == "unusable: the caption is empty"
    assert found["row 3"][1] == "unusable: the row has no image"
    assert contents(pickle.loads(pickle.dumps(source))) == found
    assert len(open_source(tmp_path / "saved", "test")) == 1
    with pytest.raises(ValueError, match="no caption column was found among image"):
        DatasetSource(dataset.select_columns(["image"]))
    with pytest.raises(ValueError, match="no split 'validation'"):
        open_source(tmp_path / "saved", "validation")


def test_without_datasets_the_remedy_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'cascade-t2i\[data\]'"):
        open_source("someone/pictures")


@pytest.mark.parametrize("data", ["nowhere", "./nowhere", "/a/b", "a/b/c"])
def test_no_such_data(data):
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_source(data)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"no images in .*expected .avif"):
        open_source(tmp_path)


def test_held_out_items_are_not_trained_on(tmp_path):
    source = FolderSource(make_folder(tmp_path, 30))
    training, validation = hold_out(source, 7)
    assert (len(training), len(validation)) == (23, 7)
    names = [part.name(i) for part in (training, validation) for i in range(len(part))]
    assert sorted(names) == [source.name(i) for i in range(30)]
    assert names[23:] != [source.name(i) for i in range(7)]
    assert validation.captions(0) == [f"picture number {int(validation.name(0)[:4])}"]
    assert pixels(validation.image(0)) == pixels(encoded(picture(int(validation.name(0)[:4]))))
    with pytest.raises(IndexError):
        validation.name(7)
    with pytest.raises(ValueError, match="held_out is 30, and there are 30 items: expected 1 to 29"):
        hold_out(source, 30)


@given(st.lists(st.text()))
def test_packed_strings(strings):
    strings = [text for text in strings if text.isprintable()]
    packed = PackedStrings(strings)
    assert list(packed) == strings
    assert list(pickle.loads(pickle.dumps(packed))) == strings
    assert packed[1:] == strings[1:]
    with pytest.raises(IndexError):
        packed[len(strings)]


def test_a_folder_moves(tmp_path):
    """A source reads when asked: a file that has gone since is an item that cannot be used."""
    source = FolderSource(make_folder(tmp_path / "a", 2))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(Unusable, match="No such file"):
        source.image(0)
