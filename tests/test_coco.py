"""`cascade evaluate`: captions and references from a folder, a sweep of guidance weights, what is refused."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tiny_clip import save_tiny_clip

from pipelines import cli
from pipelines.batch import read_run
from pipelines.evaluation.coco import cached_features, draw_captions
from pipelines.evaluation.curve import curve
from pipelines.evaluation.metrics import Moments, frechet_distance, open_features
from pipelines.evaluation.metrics.images import extract
from pipelines.evaluation.scores import read_scores
from pipelines.prompts import PromptRecord

CAPTIONS = ["a red car", "a blue ball on a red house", "a green house", "a red ball", "a blue car", "a green ball"]


def write_image(path, number=0, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    """Six images of 20 x 16 px with a caption each."""
    lines = []
    for i, text in enumerate(CAPTIONS):
        write_image(tmp_path / "photos" / f"{i}.png", i)
        lines.append(json.dumps({"file_name": f"{i}.png", "text": text}))
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "photos"


RECORDS = [PromptRecord(f"number {i}") for i in range(100)]


class TestDraw:
    def test_it_is_random_without_repetition_and_the_same_again(self):
        found = draw_captions(RECORDS, 30, seed=1)
        assert len({record.prompt for record in found}) == 30
        assert found == draw_captions(RECORDS, 30, seed=1) != draw_captions(RECORDS, 30, seed=2)
        assert len(draw_captions(RECORDS, None, seed=0)) == 100

    @pytest.mark.parametrize("count", [0, 101])
    def test_as_many_as_there_are(self, count):
        with pytest.raises(ValueError, match=f"-n is {count}, and there are 100 captions"):
            draw_captions(RECORDS, count, 0)


def places(root):
    """Of the points."""
    return [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in root.findall("{*}circle")]


class TestCurve:
    def test_points_lie_where_their_values_say(self):
        values, labels = [(24.0, 12.5), (26.1, 8.25), (27.0, 10.0)], ["1", "2 & 3", "4"]
        points = [(x, y, label) for (x, y), label in zip(values, labels, strict=True)]
        root = ElementTree.fromstring(curve(points, "<title>", "CLIP", "FD"))
        circles = places(root)
        assert {"<title>", "CLIP", "FD", *labels} <= {text.text for text in root.findall("{*}text")}
        for axis, sign in ((0, 1), (1, -1)):  # SVG counts downwards
            steps = zip(pairwise(circles), pairwise(values), strict=True)
            slopes = [sign * (b[axis] - a[axis]) / (q[axis] - p[axis]) for (a, b), (p, q) in steps]
            assert slopes[0] == pytest.approx(slopes[1], rel=0.01)
            assert slopes[0] > 0

    @pytest.mark.parametrize("points", [[(0.0, 0.0, "1")], [(5.0, 1e-6, "1"), (5.0, 2e-6, "2")], [(-1, 3e5, "x")]])
    def test_points_that_agree(self, points):
        root = ElementTree.fromstring(curve(points, "t", "x", "y"))
        assert len(places(root)) == len(points)
        assert all(math.isfinite(place) and 0 < place < 640 for pair in places(root) for place in pair)


@pytest.fixture
def model(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def evaluate(photos, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def run(*arguments, data="photos"):
        return cli.main(["evaluate", data, "-o", "out", "--model", "model", *arguments])

    return run


def test_end_to_end(evaluate, tmp_path, capsys, monkeypatch):
    save_tiny_clip(tmp_path / "clip")
    arguments = ["--guidance", "1", "3", "-n", "5", "--few", "--clip", "clip", "--seed", "4"]
    assert evaluate(*arguments) == 0
    printed = capsys.readouterr().out
    assert "Frechet*" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["captions"], results["references"], results["side"]) == (5, 6, 16)
    assert [row["guidance"] for row in results["results"]] == [1, 3]
    one, three = results["results"]
    assert one["frechet"] != three["frechet"]

    # The figures are those of the files that lie there.
    features = open_features("toybox")
    references = extract(features, [tmp_path / "photos" / f"{i}.png" for i in range(6)], side=16)
    for row in (one, three):
        run = read_run(tmp_path / "out" / row["run"])
        assert run.settings["stages"]["base-8"]["guidance_scale"] == row["guidance"]
        assert run.settings["stages"]["sr-16"]["guidance_scale"] == 1
        assert {record.prompt for record in run.prompts} < set(CAPTIONS)
        drawn = extract(features, [path for _, _, paths in run for path in paths])
        wanted = frechet_distance(Moments.of(references), Moments.of(drawn), few=True)
        assert row["frechet"] == pytest.approx(wanted, rel=1e-6)
        (scores,) = read_scores(run.folder)
        assert row["clip_score"] == pytest.approx(sum(value.score for value in scores.values.values()) / 5)
        assert f"{row['frechet']:.4g}" in printed
    ElementTree.parse(tmp_path / "out" / "curve.svg")

    # Again, with one weight more: what is there is neither drawn nor computed anew.
    def refuse(*arguments, **options):
        raise AssertionError("features are computed anew")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert evaluate("--guidance", "1", "3", "2", *arguments[3:]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    again = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert again[:2] == [one, three]
    monkeypatch.setattr("pipelines.evaluation.metrics.images.extract", refuse)
    assert evaluate("--guidance", "2", *arguments[3:]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["results"] == again[2:]


def test_without_clip_there_is_no_curve(evaluate, tmp_path, capsys):
    assert evaluate("--guidance", "1", "--few") == 0
    assert "no CLIP score, and no curve, without --clip" in capsys.readouterr().out
    assert not (tmp_path / "out" / "curve.svg").exists()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["clip"] is None
    assert results["results"][0]["clip_score"] is None


def test_it_loads_and_draws_as_the_other_commands_do(evaluate, tmp_path):
    options = ["--thresholding", "static", "--steps", "2", "--sr-guidance", "2", "--offload", "model"]
    assert evaluate("--guidance", "1", "--few", *options) == 0
    settings = read_run(tmp_path / "out" / "guidance-1").settings
    for name, scale in (("base-8", 1), ("sr-16", 2)):
        stage = settings["stages"][name]
        assert (stage["thresholding"]["kind"], stage["steps"], stage["guidance_scale"]) == ("static", 2, scale)


def test_other_captions_are_not_mixed_in(evaluate, capsys):
    assert evaluate("--guidance", "1", "--few") == 0
    assert evaluate("--guidance", "1", "--few", "--seed", "1") == 2
    assert "holds a run with other settings: seed is 0 there and 1 here" in capsys.readouterr().err


def test_references_smaller_than_the_images_are_warned_about(evaluate, photos):
    write_image(photos / "3.png", 3, size=(20, 12))
    with pytest.warns(UserWarning, match="the references are of 12 px and more, the drawn images of 16"):
        evaluate("--guidance", "1", "--few")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance", "1"], "6 references and 6 drawn images are too few for features of 112 dimensions"),
        (["--guidance", "1", "--few", "-n", "3"], "6 references and 3 drawn images are too few"),
        (["--guidance", "1", "--few", "-n", "7"], "-n is 7, and there are 6 captions"),
        (["--guidance", "1", "1.0", "--few"], "expected one scale or more, each once"),
        (["--guidance", "--few"], "expected one scale or more, each once"),
        (["--guidance", "1", "--features", "vgg"], "expected toybox, inception:FILE"),
        (["--guidance", "1", "--few", "--clip", "./none"], "no folder './none'"),
        (["--guidance", "1", "--few", "--timesteps", "x"], "timesteps is 'x'; expected falling whole numbers"),
    ],
)
def test_bad_input_is_one_line_before_any_work(evaluate, tmp_path, capsys, arguments, message):
    assert evaluate(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("cascade: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_reference_that_is_no_image_is_named(evaluate, photos, tmp_path, capsys):
    (photos / "4.png").write_text("nothing")
    assert evaluate("--guidance", "1", "--few") == 2
    assert "4.png is no image that can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_features_are_kept_by_content(photos, tmp_path):
    features = open_features("toybox")
    paths = [photos / f"{i}.png" for i in range(6)]
    cached_features(features, paths, 16, tmp_path, "references")
    (kept,) = (tmp_path / "features").iterdir()
    renamed = [path.rename(path.with_name(f"renamed-{path.name}")) for path in paths]
    cached_features(features, renamed, 16, tmp_path, "references")
    assert list((tmp_path / "features").iterdir()) == [kept]
    cached_features(features, renamed, 20, tmp_path, "references")
    write_image(renamed[0], 99)
    changed = cached_features(features, renamed, 16, tmp_path, "references")
    assert len(list((tmp_path / "features").iterdir())) == 3
    assert (changed == extract(features, renamed, side=16)).all()


@pytest.mark.slow
def test_processes_share_the_drawing(evaluate, tmp_path):
    root = Path(__file__).resolve().parents[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = ["pipelines.cli", "evaluate", "photos", "-o", "shared", "--model", "model", "--guidance", "1", "--few"]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*launch, *command, "--batch-size", "2"], env=environment, cwd=tmp_path, check=True, timeout=600)
    assert len(list((tmp_path / "shared" / "guidance-1").glob("manifest-*.jsonl"))) == 2
    assert evaluate("--guidance", "1", "--few", "--batch-size", "2") == 0
    shared, alone = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("shared", "out"))
    assert shared["results"][0]["frechet"] == pytest.approx(alone["results"][0]["frechet"], rel=0.05)
