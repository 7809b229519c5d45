"""`cascade train-text`: a T5 from the captions of a data set, which `cascade embed` then takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import CAPTIONS
from image_folders import encoded, picture

from cascade.training.checkpoint import find_checkpoint, read_state
from conditioning.text import TextEncoder
from pipelines import cli


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for i, caption in enumerate([*CAPTIONS, CAPTIONS[0]]):
        (tmp_path / "data" / f"{i}.png").write_bytes(encoded(picture(0, (4, 4))))
        (tmp_path / "data" / f"{i}.txt").write_text(caption)
    return tmp_path


def command(*options: str) -> int:
    return cli.main(["train-text", "data", "-o", "t5", "--vocab-size", "400", "--device", "cpu", *options])


def test_from_captions_to_embeddings(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("--steps", "2") == 0
    assert "trained on 36 captions" in capfd.readouterr().out
    first = TextEncoder.from_pretrained("t5")
    assert first.tokenizer.words(first.tokenizer.ids("a red house")) == ["\u2581a", "\u2581red", "\u2581house"]
    assert command("--steps", "4") == 0  # two more
    checkpoint = find_checkpoint(Path("t5"))
    assert checkpoint is not None
    assert read_state(checkpoint)["progress"]["steps"] == 4
    again = TextEncoder.from_pretrained("t5")
    assert not torch.equal(again.model.shared.weight, first.model.shared.weight)
    assert cli.main(["embed", "data", "--text-encoder", "t5", "-o", "cache"]) == 0
    assert "36 captions embedded" in capfd.readouterr().out


def test_it_goes_on_with_the_same_captions_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--steps", "1") == 0
    Path("data/0.txt").write_text("a purple ball")
    assert command("--steps", "2") == 2
    assert "t5 holds a run of another configuration (captions was" in capsys.readouterr().err
    assert command("--steps", "0", "-o", "new") == 2
    assert "a budget must be positive" in capsys.readouterr().err
    assert not Path("new").exists()
