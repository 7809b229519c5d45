"""Judges of a run: what they say is kept, checked and resumed, be it the toybox detector, CLIP or a program."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image
from rating_runs import make_run
from tiny_clip import save_tiny_clip

from cascade.data.toybox import Description, Look, arrange, plain_caption, render
from pipelines.batch import read_run
from pipelines.evaluation.detector import Detector
from pipelines.evaluation.metrics import Clip
from pipelines.evaluation.outside import outside_judge
from pipelines.evaluation.score import open_judge, score
from pipelines.evaluation.scores import ImageScore, Judge, Scores, read_scores, score_run
from pipelines.images import from_tensor, to_tensor
from pipelines.prompts import PromptRecord

PROMPTS = [
    PromptRecord("a red car", "colours", {"difficulty": 2}),
    PromptRecord("a blue ball; rm -rf $HOME", "counting"),
    PromptRecord("a green house", "colours"),
]
KEYS = [(prompt, image) for prompt in range(3) for image in range(2)]


@pytest.fixture
def run(tmp_path):
    return read_run(make_run(tmp_path / "run", PROMPTS, images=2))


def lines_of(run, name):
    return (run.folder / "scores" / f"{name}.jsonl").read_text().splitlines()


def numbered(name="numbers", version="1", upto=None, seen=None):
    """Says 10 * prompt + image; after `upto` images it fails."""

    def judge(run, todo):
        for i, (prompt, image) in enumerate(todo):
            if i == upto:
                raise ValueError("the judge is tired")
            if seen is not None:
                seen.append((prompt, image))
            yield {"prompt": prompt, "image": image, "score": 10 * prompt + image}

    return Judge(name, version, judge)


class TestStore:
    def test_what_is_said_is_read_back(self, run):
        found = score_run(run, numbered())
        assert found == Scores("numbers", "1", "score", {(p, k): ImageScore(10 * p + k) for p, k in KEYS})
        assert read_scores(run.folder) == [found]
        header, *lines = map(json.loads, lines_of(run, "numbers"))
        assert header == {"judge": "numbers", "version": "1", "measure": "score"}
        assert lines[3] == {"prompt": 1, "image": 1, "score": 11}

    def test_rights_and_wrongs(self, run):
        def judge(run, todo):
            yield from (
                {"prompt": p, "image": k, "right": k == 0, "wrong": [] if k == 0 else ["noun"]} for p, k in todo
            )

        found = score_run(run, Judge("verdicts", "1", judge))
        assert found.measure == "right"
        assert found.values[0, 0] == ImageScore(1.0)
        assert found.values[2, 1] == ImageScore(0.0, ("noun",))
        score_run(run, numbered())
        assert [scores.judge for scores in read_scores(run.folder)] == ["numbers", "verdicts"]

    def test_a_run_without_scores(self, run):
        assert read_scores(run.folder) == []

    def test_it_goes_on_where_it_was(self, run):
        with pytest.raises(ValueError, match="tired"):
            score_run(run, numbered(upto=4))
        assert len(read_scores(run.folder)[0].values) == 4
        seen = []
        score_run(run, numbered(seen=seen))
        assert seen == KEYS[4:]
        assert len(lines_of(run, "numbers")) == 1 + len(KEYS)
        score_run(run, numbered(seen=seen))
        assert seen == KEYS[4:]

    @pytest.mark.parametrize("cut", range(0, 250, 7))
    def test_a_line_cut_short_does_not_count(self, run, cut):
        """Wherever a kill cuts the file, the next run mends it."""
        whole = score_run(run, numbered())
        path = run.folder / "scores" / "numbers.jsonl"
        path.write_bytes(path.read_bytes()[:cut])
        kept = path.read_text().count("\n") - 1 if cut else 0
        assert sum(len(scores.values) for scores in read_scores(run.folder)) in (max(0, kept), kept + 1)
        assert score_run(run, numbered()) == whole
        assert read_scores(run.folder) == [whole]

    def test_another_version_is_refused(self, run):
        score_run(run, numbered())
        with pytest.raises(ValueError, match=r"by another numbers \(1 there, 2 here\).*another name"):
            score_run(run, numbered(version="2"))
        assert len(score_run(run, numbered("others", version="2")).values) == 6

    def test_two_at_once_are_refused(self, run):
        def judge(run, todo):
            score_run(run, numbered())
            yield from ()

        with pytest.raises(ValueError, match="another process is writing"):
            score_run(run, Judge("numbers", "1", judge))

    @pytest.mark.parametrize("name", ["", "../x", ".hidden", "a b", "a/b"])
    def test_a_name_stays_in_the_folder(self, name):
        with pytest.raises(ValueError, match="names a file"):
            numbered(name)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"prompt": 0, "image": 0, "score": NaN}', "finite"),
            ('{"prompt": 0, "image": 0, "score": true}', "finite"),
            ('{"prompt": "0", "image": 0, "score": 1}', "expected a number as in the manifest"),
            ('{"prompt": 0, "image": 0, "right": 1}', 'true or false for "right"'),
            ('{"prompt": 0, "image": 0, "right": true, "wrong": "noun"}', "a list of texts"),
            ('{"prompt": 0, "image": 0, "right": true, "score": 1}', "either"),
            ('{"prompt": 0, "image": 0, "points": 1}', "either"),
            ('{"prompt": 0, "image": 0, "right": true}', 'a "right" in a file of "score"'),
            ("[0]", "expected an object"),
        ],
    )
    def test_a_damaged_file_is_named(self, run, line, message):
        score_run(run, numbered())
        with (run.folder / "scores" / "numbers.jsonl").open("a") as file:
            file.write(line + "\n")
        with pytest.raises(ValueError, match=message) as error:
            read_scores(run.folder)
        assert "numbers.jsonl, line 8" in str(error.value)

    def test_a_file_of_something_else_is_named(self, run):
        (run.folder / "scores").mkdir()
        (run.folder / "scores" / "x.jsonl").write_text('{"prompt": 0}\n')
        with pytest.raises(ValueError, match=r"x\.jsonl, line 1: .* is no header"):
            read_scores(run.folder)


JUDGE = """
import json, sys
from PIL import Image, ImageStat

mode, manifest, output = sys.argv[1:]
with open(manifest) as lines, open(output, "w") as out:
    for i, line in enumerate(lines):
        entry = json.loads(line)
        said = {"prompt": entry["prompt"], "image": entry["image"]}
        with Image.open(entry["path"]) as image:
            said["score"] = ImageStat.Stat(image.convert("L")).mean[0]
        if mode == "half" and i == 3:
            out.write('{"prompt": 1, "im')
            sys.exit(3)
        if mode == "lazy" and i == 2:
            continue
        if mode == "nan" and i == 2:
            said["score"] = float("nan")
        if mode == "twice" and i == 2:
            out.write(json.dumps(said) + chr(10))
        if mode == "stranger" and i == 2:
            said["image"] = 7
        if mode == "garbled" and i == 2:
            out.write("score: 1" + chr(10))
        if mode == "mixed" and i == 2:
            said["right"] = said.pop("score") > 0
        out.write(json.dumps(said) + chr(10))
"""


class TestOutside:
    @pytest.fixture
    def command(self, tmp_path):
        script = tmp_path / "it's a judge.py"
        script.write_text(JUDGE)
        return lambda mode: f'"{sys.executable}" "{script}" {mode}'

    def test_it_scores_what_the_manifest_lists(self, run, command):
        found = score_run(run, outside_judge(command("well"), "grey"))
        assert found.measure == "score"
        for key, value in found.values.items():
            with Image.open(run.path(*key)) as image:
                assert value.score == pytest.approx(np.array(image.convert("L")).mean())
        assert set(found.values) == set(KEYS)

    def test_the_manifest(self, run, tmp_path):
        copy = tmp_path / "copy.jsonl"
        judge = f"{sys.executable} -c 'import shutil, sys; shutil.copy(sys.argv[1], \"{copy}\")'"
        with pytest.raises(ValueError, match="left out 6 of 6 images"):
            score_run(run, outside_judge(judge, "copier"))
        entries = [json.loads(line) for line in copy.read_text().splitlines()]
        assert [(entry["prompt"], entry["image"]) for entry in entries] == KEYS
        assert entries[0] == {
            "prompt": 0,
            "image": 0,
            "text": "a red car",
            "path": str(run.path(0, 0).absolute()),
            "category": "colours",
            "extra": {"difficulty": 2},
        }

    @pytest.mark.parametrize(
        ("mode", "message", "kept"),
        [
            ("half", "ended with status 3; the 3 scores", 3),
            ("lazy", "left out 1 of 6 images, the first image 0 of prompt 1", 5),
            ("nan", "in line 3: the score of image 0 of prompt 1 is nan", 0),
            ("twice", "in line 4: a second score for image 0 of prompt 1", 0),
            ("stranger", "in line 3: image 7 of prompt 1 is not in the manifest", 0),
            ("garbled", "in line 3: Expecting value", 0),
            ("mixed", 'in line 3: both "score" and "right"', 0),
        ],
    )
    def test_one_that_fails(self, run, command, mode, message, kept):
        """What is sure is kept, and the next judge of that name is given the rest."""
        with pytest.raises(ValueError, match=message):
            score_run(run, outside_judge(command(mode), "grey"))
        assert sum(len(scores.values) for scores in read_scores(run.folder)) == kept
        if kept:
            judge = replace(outside_judge(command("well"), "grey"), version=outside_judge(command(mode)).version)
            assert set(score_run(run, judge).values) == set(KEYS)

    def test_its_command_is_noted_and_is_not_what_it_is_known_by(self, run, command, tmp_path):
        """It may lie elsewhere, and be run by another python; it may not say other things."""
        found = score_run(run, outside_judge(command("well")))
        assert found.judge == "it-s-a-judge"
        header = json.loads(lines_of(run, "it-s-a-judge")[0])
        assert (header["version"], header["command"]) == (found.version, command("well"))
        moved = (tmp_path / "it's a judge.py").rename(tmp_path / "judge.py")
        assert score_run(run, outside_judge(f"env {sys.executable} {moved} well", found.judge)) == found
        for changed in (f'"{sys.executable}" "{moved}" half', f'"{sys.executable}" "{moved}" well'):
            with pytest.raises(ValueError, match="by another it-s-a-judge"):
                score_run(run, outside_judge(changed, found.judge))
            moved.write_text(JUDGE + "\n# changed")

    @pytest.mark.parametrize(
        ("command", "name"),
        [
            (f"{sys.executable} -c 'pass'", Path(sys.executable).stem),
            (f"{sys.executable} -u some/aesthetic.py --scale 2.py", "aesthetic"),
            ("sh ../..sh", "judge"),
            ("env 'my judge.sh'", "my-judge"),
        ],
    )
    def test_what_it_is_called(self, command, name):
        assert outside_judge(command).name == name
        assert outside_judge(command, "mine").name == "mine"

    @pytest.mark.parametrize("command", ["no-such-program --x", "", "  ", '"unclosed'])
    def test_what_is_no_command(self, command):
        with pytest.raises(ValueError, match=r"no such program|no command line"):
            outside_judge(command, "x")

    def test_no_shell_reads_the_command(self, run, tmp_path):
        mark = tmp_path / "mark"
        with pytest.raises(ValueError, match="left out 6 of 6"):
            score_run(run, outside_judge(f"echo x; touch {mark}", "echo"))
        assert not mark.exists()


class TestToybox:
    @pytest.fixture
    def scenes(self, tmp_path):
        """A run whose images are true renders: of what is asked for, and of something else."""
        red, blue = (Description((Look("car", colour),)) for colour in ("red", "blue"))
        records = [
            PromptRecord(plain_caption(one), "colours", {"expected": json.loads(one.to_json())}) for one in (red, blue)
        ]
        run = read_run(make_run(tmp_path / "run", records, images=2))
        for key, shown in {(0, 0): red, (0, 1): blue, (1, 0): blue, (1, 1): red}.items():
            scene = arrange(shown, np.random.default_rng(0))
            from_tensor(render([scene], 256), "pil")[0].save(run.path(*key))
        return run

    def test_right_and_wrong(self, scenes, capsys):
        score(scenes.folder, "toybox", batch_size=3, device="cpu")
        assert capsys.readouterr().out == f"{scenes.folder}: toybox: 4 images, 50.0% right\n"
        (found,) = read_scores(scenes.folder)
        right, wrong = ImageScore(1.0), ImageScore(0.0, ("colour",))
        assert found.measure == "right"
        assert found.values == {(0, 0): right, (0, 1): wrong, (1, 0): right, (1, 1): wrong}

    def test_scores_by_other_rules_or_settings_are_not_mixed(self, scenes, monkeypatch):
        score(scenes.folder, "toybox", device="cpu")
        monkeypatch.setattr("pipelines.evaluation.judge.RULES", 99)
        with pytest.raises(ValueError, match=r"by another toybox \(sha256.* there, sha256.* rules 99 here\)"):
            score(scenes.folder, "toybox", device="cpu")
        config = Detector.from_pretrained().config
        assert f"threshold {config.threshold:g}, clear {config.clear:g}," in open_judge("toybox", device="cpu").version

    def test_images_that_are_not_there_are_said(self, scenes, capsys):
        scenes.path(1, 1).unlink()
        score(scenes.folder, "toybox", device="cpu")
        assert "3 images, 66.7% right" in (said := capsys.readouterr().out)
        assert "lacks 1 images" in said

    def test_a_prompt_without_its_scene_is_named(self, run):
        with pytest.raises(ValueError, match=r"prompt 0 \('a red car'\) does not say what scene is expected"):
            score(run.folder, "toybox", device="cpu")

    def test_a_scene_that_is_none_is_named(self, tmp_path):
        records = [PromptRecord("a red car", extra={"expected": {"looks": 3}})]
        make_run(tmp_path / "run", records, images=1)
        with pytest.raises(ValueError, match=r"prompt 0 \('a red car'\): its expected scene is none"):
            score(tmp_path / "run", "toybox", device="cpu")


class TestClip:
    def test_each_image_with_its_own_prompt(self, run, tmp_path, capsys):
        folder = save_tiny_clip(tmp_path / "clip")
        score(run.folder, f"clip:{folder}", batch_size=4, device="cpu")
        assert "clip: 6 images, mean score " in capsys.readouterr().out
        (found,) = read_scores(run.folder)
        assert found.measure == "score"
        clip = Clip.from_pretrained(folder)
        for (prompt, image), value in found.values.items():
            with Image.open(run.path(prompt, image)) as opened:
                wanted = clip.score(to_tensor(opened), [run.prompts[prompt].prompt]).item()
            assert value.score == pytest.approx(wanted, abs=1e-3)
        assert len({value.score for value in found.values.values()}) > 2

    def test_it_must_be_there(self, tmp_path):
        with pytest.raises(ValueError, match="no folder"):
            open_judge(f"clip:{tmp_path / 'missing'}")


class TestCommand:
    def test_the_command_line(self, run, tmp_path, capsys):
        (tmp_path / "judge.py").write_text(JUDGE)
        command = f"{sys.executable} {tmp_path / 'judge.py'} well"
        tyro.cli(score, args=[str(run.folder), "--judge", command])
        assert capsys.readouterr().out.startswith(f"{run.folder}: judge: 6 images, mean score ")
        tyro.cli(score, args=[str(run.folder), "--judge", command, "--name", "grey"])
        assert capsys.readouterr().out.startswith(f"{run.folder}: grey: 6 images, mean score ")

    def test_no_run(self, tmp_path):
        with pytest.raises(ValueError, match=r"no run\.json"):
            score(tmp_path, "toybox")

    def test_help_needs_no_torch(self):
        code = "import sys, pipelines.evaluation.score, pipelines.evaluation.coco; assert 'torch' not in sys.modules"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
