"""Folders of images with captions, as an evaluation reads them: as training does, and COCO's; nothing passed over."""

import json

import pytest
from image_folders import encoded, picture

from cascade.data.folder import FolderSource
from pipelines.evaluation.captioned import read_captioned


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture()))


@pytest.fixture
def photos(tmp_path):
    """Three images, and metadata that names them."""
    folder = tmp_path / "photos"
    for i in range(3):
        write_image(folder / f"{i}.png")
    lines = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(["a car", ["a ball", "a toy"], "a hat"])]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_it_is_what_training_reads(photos):
    found, source = read_captioned(photos), FolderSource(photos)
    assert found.images == [photos / source.name(i) for i in range(3)]
    assert [record.prompt for record in found.captions] == [text for i in range(3) for text in source.captions(i)]
    assert [record.extra["file_name"] for record in found.captions] == ["0.png", "1.png", "1.png", "2.png"]
    (photos / "metadata.jsonl").unlink()
    (photos / "metadata.csv").write_text("file_name,caption\n" + "".join(f"{i}.png,number {i}\n" for i in range(3)))
    assert [record.prompt for record in read_captioned(photos).captions] == ["number 0", "number 1", "number 2"]


def test_texts_beside_images(tmp_path):
    for name in ("b/x.jpg", "a.png"):
        write_image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"first of {name}\n\nsecond\n")
    found = read_captioned(tmp_path)
    assert found.images == [tmp_path / "a.png", tmp_path / "b" / "x.jpg"]
    assert [record.prompt for record in found.captions] == ["first of a.png", "second", "first of b/x.jpg", "second"]


@pytest.mark.parametrize("given", ["", "annotations/captions_val2014.json"])
def test_coco(tmp_path, given):
    images = [{"id": i, "file_name": f"COCO_{i}.jpg"} for i in (9, 4, 5)]
    for image in images:
        write_image(tmp_path / "val2014" / image["file_name"])
    annotations = [{"image_id": i, "caption": f"{text} "} for i, text in ((4, "a cat"), (9, "a dog"), (4, "a mat"))]
    (tmp_path / "annotations").mkdir()
    content = json.dumps({"images": images, "annotations": annotations})
    (tmp_path / "annotations" / "captions_val2014.json").write_text(content)
    found = read_captioned(tmp_path / given)
    assert [path.name for path in found.images] == ["COCO_9.jpg", "COCO_4.jpg", "COCO_5.jpg"]  # captions or not
    assert [record.prompt for record in found.captions] == ["a dog", "a cat", "a mat"]
    (tmp_path / "annotations" / "captions_train2014.json").write_text(content)
    if not given:
        with pytest.raises(ValueError, match=r"captions_train2014\.json, captions_val2014\.json; give the path"):
            read_captioned(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "missing.png", "text": "x"}', r"no image .*missing\.png, which .* has captions of"),
        ('{"file_name": "0.png"}', r"0\.png: the caption is None; expected text"),
        ('{"file_name": "0.png", "text": " "}', r"0\.png: the caption is empty; mend it, or take the image out"),
        ('{"file_name": "0.png", "text": 3}', r"0\.png: the caption is 3; expected text"),
        ('{"file_name": "0.png", "text": "a\\u0000"}', r"a caption of .*0\.png: .*NUL"),
    ],
)
def test_what_training_would_pass_over_is_named(photos, line, message):
    with (photos / "metadata.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=message):
        read_captioned(photos)


def test_an_image_without_a_caption_is_named(photos):
    write_image(photos / "3.png")
    with pytest.raises(ValueError, match=r"3\.png: no caption: no 3\.txt beside it, and no line of a metadata file"):
        read_captioned(photos)


def test_other_folders(photos, tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        read_captioned(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        read_captioned(tmp_path / "empty")
    (photos / "metadata.jsonl").unlink()
    coco = photos / "captions_x.json"
    coco.write_text('{"images": [{"id": 1}]}')
    with pytest.raises(ValueError, match="no file of COCO captions"):
        read_captioned(photos)
    coco.write_text('{"images": [{"id": 1, "file_name": "0.png"}], "annotations": []}')
    with pytest.raises(ValueError, match="no captions in"):
        read_captioned(photos)
