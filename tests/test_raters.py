"""The automated raters of benchmarks/, and the outside judge that they see with."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rating_runs import ROOT, free_port, make_run

from pipelines.evaluation.rating.answers import controls_passed, read_answers
from pipelines.prompts import PromptRecord

pytestmark = pytest.mark.slow
CAPTIONS = ["a red cube", "a blue ball", "two yellow cones"]


def picture(caption):
    from cascade.data.toybox import Description, Look, arrange, render

    look = {"a red cube": Look("cube", "red"), "a blue ball": Look("ball", "blue")}.get(caption, Look("cone", "yellow"))
    scene = arrange(Description((look,), count=2 if caption.startswith("two") else 1), np.random.default_rng(0))
    return Image.fromarray(((render([scene], 128)[0].permute(1, 2, 0) + 1) * 127.5).byte().numpy())


def test_the_denoising_judge_knows_the_caption_of_a_picture(tmp_path):
    manifest, output = tmp_path / "manifest.jsonl", tmp_path / "scores.jsonl"
    entries = []
    for i, shown in enumerate(CAPTIONS):
        picture(shown).save(tmp_path / f"{i}.png")
        entries += [
            {"prompt": i, "image": k, "text": said, "path": str(tmp_path / f"{i}.png")}
            for k, said in enumerate(CAPTIONS)
        ]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    subprocess.run([sys.executable, ROOT / "benchmarks/denoising_judge.py", manifest, output], check=True)
    scores = np.zeros((3, 3))
    for line in output.read_text().splitlines():
        found = json.loads(line)
        scores[found["prompt"], found["image"]] = found["score"]
    assert scores.argmax(axis=1).tolist() == [0, 1, 2]
    assert (scores.diagonal() > 0).all()


@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium")
def test_raters_answer_a_whole_study_by_what_they_see(tmp_path):
    pytest.importorskip("selenium", reason="selenium is not installed")
    prompts = [PromptRecord(caption) for caption in CAPTIONS]
    for name, seed in (("a", 10), ("b", 20)):
        make_run(tmp_path / name, prompts, images=2, size=64, seed=seed)
    command = [sys.executable, ROOT / "benchmarks/raters.py", tmp_path / "a", tmp_path / "b", "-o"]
    command += [tmp_path / "answers.sqlite", "--raters", "2", "--port", str(free_port())]
    subprocess.run(command, check=True)
    answers = read_answers(tmp_path / "answers.sqlite")
    assert {answer.rater for answer in answers} == {"looks-1", "guesses-2"}
    assert controls_passed(answers).keys() == {"looks-1", "guesses-2"}
    assert sum(not answer.control for answer in answers) == 2 * 2 * len(prompts)
    assert sum(answer.control for answer in answers) == 2
