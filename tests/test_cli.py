"""The command line's shell: dispatch, help, exit statuses, and how errors and warnings read."""

import os
import re
import warnings
from pathlib import Path

import pytest

import cascade
from pipelines import cli


def draw(prompt: str, seed: int = 0, error: str = "") -> None:
    """Draw one thing.

    Args:
        prompt: What to draw.
        seed: Which of its images.
        error: What goes wrong.
    """
    if error == "warning":
        warnings.warn("the word 'gnu' is new to me", stacklevel=1)
    elif error:
        raise {"value": ValueError("seed -1:\n  expected >= 0"), "key": KeyError("x"), "stop": KeyboardInterrupt()}[
            error
        ]
    if prompt == "missing":
        Path(prompt).read_text()
    print(f"{prompt} {seed}")


@pytest.fixture
def draw_command(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "draw", cli.Command(__name__, "draw", "draw one thing"))
    monkeypatch.delenv("CASCADE_TRACEBACK", raising=False)


def test_overview_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", text, re.MULTILINE)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_answers_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert f"cascade {name}" in capsys.readouterr().out


class TestCommandsOfTwoWords:
    @pytest.fixture(autouse=True)
    def _command(self, monkeypatch):
        monkeypatch.setitem(cli.COMMANDS, "paint draw", cli.Command(__name__, "draw", "draw one thing"))

    def test_runs(self, capsys):
        assert cli.main(["paint", "draw", "--prompt", "a cat"]) == 0
        assert capsys.readouterr().out == "a cat 0\n"

    def test_the_group_has_an_overview_of_its_own(self, capsys):
        assert cli.main(["paint", "--help"]) == 0
        text = capsys.readouterr().out
        assert "usage: cascade paint ..." in text
        assert "paint draw  draw one thing" in text
        assert "generate" not in text

    def test_the_group_alone_names_its_commands(self, capsys):
        assert cli.main(["paint"]) == 2
        assert capsys.readouterr().err.endswith("there are: paint draw\n")

    def test_a_wrong_second_word(self, capsys):
        assert cli.main(["paint", "drwa"]) == 2
        assert "did you mean 'paint draw'?" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cascade {cascade.__version__}\n"


def test_no_command_shows_the_overview_and_fails(capsys):
    assert cli.main([]) == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "hint"),
    [("genrate", "did you mean 'generate'?"), ("--seed", "there are: "), ("xyz", "there are: generate,")],
)
def test_unknown_command(name, hint, capsys):
    assert cli.main([name]) == 2
    error = capsys.readouterr().err
    assert repr(name) in error
    assert hint in error


@pytest.mark.usefixtures("draw_command")
class TestOneCommand:
    def test_runs_the_function(self, capsys):
        assert cli.main(["draw", "--prompt", "a cat", "--seed", "3"]) == 0
        assert capsys.readouterr().out == "a cat 3\n"

    def test_user_error_is_one_line(self, capsys):
        assert cli.main(["draw", "--prompt", "a cat", "--error", "value"]) == 2
        assert capsys.readouterr().err == "cascade: error: seed -1: expected >= 0\n"

    def test_missing_file_is_named(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["draw", "--prompt", "missing"]) == 2
        assert re.fullmatch(r"cascade: error: .*No such file.*'missing'\n", capsys.readouterr().err)

    def test_traceback_on_request(self, monkeypatch):
        monkeypatch.setitem(os.environ, "CASCADE_TRACEBACK", "1")
        with pytest.raises(ValueError, match="seed -1"):
            cli.main(["draw", "--prompt", "a cat", "--error", "value"])

    def test_a_bug_keeps_its_traceback(self):
        with pytest.raises(KeyError):
            cli.main(["draw", "--prompt", "a cat", "--error", "key"])

    def test_interruption(self, capsys):
        assert cli.main(["draw", "--prompt", "a cat", "--error", "stop"]) == 130
        assert "interrupted" in capsys.readouterr().err

    def test_wrong_option_fails(self, capsys):
        with pytest.raises(SystemExit) as stop:
            cli.main(["draw", "--prompt", "a cat", "--sed", "3"])
        assert stop.value.code == 2

    def test_warnings_read_as_lines_of_the_command(self, capsys):
        before = warnings.formatwarning
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, category, *where: print(
                warnings.formatwarning(message, category, *where), end=""
            )
            assert cli.main(["draw", "--prompt", "a cat", "--error", "warning"]) == 0
        assert capsys.readouterr().out == "cascade: warning: the word 'gnu' is new to me\na cat 0\n"
        assert warnings.formatwarning is before


@pytest.mark.parametrize(("said", "asked"), [(None, "1"), ("0", "0")])
def test_torch_is_asked_for_huge_pages_unless_the_user_says_no(said, asked, draw_command, monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", said or "")
    if said is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    assert cli.main(["draw", "--prompt", "a cat"]) == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == asked
