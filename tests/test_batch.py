"""Batches: the images are the pipeline's, whatever batch, process or resumption they come from."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from batch_runs import PROMPTS, closeness, contents, manifest_lines, pixels, sampling_watched

from pipelines.batch import read_run
from pipelines.batch.run import sha256
from pipelines.metadata import read_png
from pipelines.process import Process
from pipelines.prompts import PromptRecord


def test_the_images_are_the_pipelines(pipe, batch, tmp_path):
    result = batch(batch_size=4)
    assert (result.made, result.kept, result.failed) == (15, 0, 0)
    out = pipe(PROMPTS, num_images_per_prompt=3, seed=5)
    for j, (image, metadata) in enumerate(zip(out.images, out.metadata, strict=True)):
        path = tmp_path / "run" / "images" / f"{j // 3:05d}-{j % 3}.png"
        assert np.abs(pixels(path).astype(int) - np.array(image)).max() <= 1
        assert read_png(path) == metadata
    assert pipe.text_encoder is not None


def test_a_single_batch_of_everything_is_bit_for_bit_the_pipelines(pipe, batch, tmp_path):
    batch(batch_size=15, negative_prompt="a blue house", num_inference_steps=[3, 2], guidance_scale=2.0)
    out = pipe(PROMPTS, "a blue house", num_images_per_prompt=3, seed=5, num_inference_steps=[3, 2], guidance_scale=2.0)
    drawn = [pixels(path) for path in sorted((tmp_path / "run" / "images").iterdir())]
    assert (np.array(drawn) == np.array([np.array(image) for image in out.images])).all()
    assert read_png(tmp_path / "run" / "images" / "00000-0.png")["negative_prompt"] == "a blue house"


def test_an_empty_negative_prompt_is_no_text(batch, tmp_path):
    batch("none")
    batch(negative_prompt=" ")
    for name in contents(tmp_path / "run"):
        assert (pixels(tmp_path / "run" / "images" / name) == pixels(tmp_path / "none" / "images" / name)).all()


def test_the_run_folder_says_all(batch, tmp_path):
    records = [PromptRecord("a red car", "toys", {"expected": {"count": 1}}), PromptRecord("a blue ball")]
    batch(prompts=records)
    run = read_run(tmp_path / "run", verify=True)
    assert run.prompts == records
    assert (run.images_per_prompt, run.settings["seed"], run.missing) == (3, 5, [])
    assert run.settings["stages"]["base-8"]["steps"] == 4
    assert [[path.name for path in paths] for _, _, paths in run][1] == [f"00001-{k}.png" for k in range(3)]
    for line in manifest_lines(tmp_path / "run"):
        path = run.path(line["prompt"], line["image"])
        assert line["file"] == f"images/{path.name}"
        assert line["sha256"] == sha256(path)
        assert line["seed"] == read_png(path)["seed"] == run.seed(line["prompt"], line["image"])
    whole = json.loads((tmp_path / "run" / "run.json").read_text())
    assert whole.keys() == {"format", "settings", "model", "loaded_with", "provenance"}
    assert not (tmp_path / "run" / "errors.jsonl").exists()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_batch_size_does_not_matter(batch, tmp_path, size):
    batch("whole", batch_size=15)
    batch(batch_size=size)
    assert contents(tmp_path / "run").keys() == contents(tmp_path / "whole").keys()
    assert closeness(tmp_path / "run", tmp_path / "whole") >= 0.999


def test_processes_share_the_work(batch, tmp_path):
    batch("whole", batch_size=2)
    for rank in range(3):
        result = batch(batch_size=2, process=Process(rank, 3))
        assert result.made == [6, 5, 4][rank]
        assert result.failed == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert len(manifest_lines(tmp_path / "run")) == 15
    assert {path.name for path in (tmp_path / "run").glob("manifest-*")} == {f"manifest-{r}.jsonl" for r in range(3)}


def test_it_goes_on_with_another_number_of_processes(batch, tmp_path):
    batch("whole", batch_size=2)
    batch(batch_size=2, process=Process(1, 3))
    result = batch(batch_size=2)
    assert (result.made, result.kept) == (10, 5)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def damage(folder):
    """Delete, corrupt, truncate, and forget an image each; leave what kills leave. The names of those to be made."""
    images = folder / "images"
    (images / "00000-1.png").unlink()
    (images / "00001-0.png").write_bytes(b"no image")
    (images / "00003-2.png").write_bytes((images / "00003-2.png").read_bytes()[:-1])
    manifest = folder / "manifest-0.jsonl"
    lines = [line for line in manifest.read_bytes().splitlines(True) if b"00002-2" not in line]
    manifest.write_bytes(b"".join(lines) + b'{"prompt": 4, "ima')
    for half_written in (
        images / ".00000-1.png.123.saving",
        folder / ".run.json.1.saving",
        folder / ".prompts.jsonl.2.saving",
    ):
        half_written.write_bytes(b"half")
    return {"00000-1.png", "00001-0.png", "00003-2.png", "00002-2.png"}


def test_a_second_run_makes_exactly_what_is_missing(batch, tmp_path):
    batch(batch_size=4)
    folder = tmp_path / "run"
    before = contents(folder)
    gone = damage(folder)
    written = {path.name: path.stat().st_mtime_ns for path in (folder / "images").glob("0*") if path.name not in gone}
    known = len(manifest_lines_readable(folder))
    result = batch(batch_size=4)
    assert (result.made, result.kept, result.failed) == (4, 11, 0)
    assert contents(folder) == before
    assert not [*folder.rglob("*.saving")]
    assert all((folder / "images" / name).stat().st_mtime_ns == time for name, time in written.items())
    assert {Path(line["file"]).name for line in manifest_lines_readable(folder)[known:]} == gone
    assert batch(batch_size=4).made == 0
    assert read_run(folder, verify=True).missing == []


def manifest_lines_readable(folder):
    found = []
    for line in (folder / "manifest-0.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            assert line == '{"prompt": 4, "ima'
    return found


def test_only_groups_with_something_missing_are_drawn(pipe, batch, tmp_path, monkeypatch):
    batch(batch_size=4)
    for name in ("00000-1.png", "00004-2.png"):
        (tmp_path / "run" / "images" / name).unlink()
    calls = []
    with sampling_watched(monkeypatch, pipe, lambda stage, seeds: calls.append((stage, seeds))):
        assert batch(batch_size=4).made == 2
    first, second = [5, 6, 7, 8], [17, 18, 19]
    assert calls == [(0, first), (1, first), (0, second), (1, second)]


def test_what_was_drawn_is_let_go_before_more_is(pipe, batch, monkeypatch):
    output, drawn, held = type(pipe)._output, [], []

    def watched(self, job, stages):
        drawn.append(weakref.ref(stages[-1]))
        return output(self, job, stages)

    monkeypatch.setattr(type(pipe), "_output", watched)
    with sampling_watched(monkeypatch, pipe, lambda *_: held.extend(1 for each in drawn if each() is not None)):
        batch(batch_size=4)
    assert (len(drawn), len(held)) == (4, 0)


def test_names_never_come_from_prompts(batch, tmp_path):
    prompts = ["../../a red car", "/etc/passwd", "a\\b:c*?.png", "." * 300, "-rf", "line\nbreak \u2028 \u202e end"]
    with pytest.warns(UserWarning, match="1 of 6 prompts are longer"):
        assert batch(prompts=prompts, images_per_prompt=1).made == 6
    assert {path.name for path in (tmp_path / "run" / "images").iterdir()} == {f"{i:05d}-0.png" for i in range(6)}
    assert [record.prompt for record in read_run(tmp_path / "run").prompts] == prompts
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_prompts_that_are_too_long_are_warned_about_once(batch):
    prompts = [f"a red car on a {colour} ball{' and a green house' * 20}" for colour in ("red", "blue", "green")]
    prompts.append("a red car")
    with pytest.warns(
        UserWarning, match="^3 of 4 prompts are longer than the 64 tokens .* the first is .*a red ball"
    ) as caught:
        batch(prompts=prompts, images_per_prompt=1, batch_size=1)
    assert len(caught) == 1


def test_words_the_model_does_not_know_are_warned_about_once(pipe, batch):
    pipe.vocabulary = ["a", "red", "car", "ball", "blue"]
    with pytest.warns(UserWarning, match="3 of 5 prompts .*: 'on', 'house', 'green'$") as caught:
        batch()
    assert len(caught) == 1


def test_the_package_offers_what_it_says():
    import pipelines.batch

    assert all(hasattr(pipelines.batch, name) for name in pipelines.batch.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        pipelines.batch.nothing  # noqa: B018
