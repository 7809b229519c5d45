"""Rating: who sees what, what is kept of the answers, and that neither depends on luck."""

import io
import json
import sqlite3
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rating_runs import PROMPTS, make_run

from pipelines.batch.run import Run
from pipelines.evaluation.rating.access import Access, check_name
from pipelines.evaluation.rating.answers import QUESTIONS, Answer, Answers, controls_passed, read_answers
from pipelines.evaluation.rating.command import check_address, rate, summary
from pipelines.evaluation.rating.server import pixels_only
from pipelines.evaluation.rating.study import Source, Study
from pipelines.prompts import PromptRecord

RATERS = st.text(min_size=1, max_size=60)
EXPECTED_FOR_ADA = [
    (3, True, "a"),
    (4, False, "b"),
    (1, False, "a"),
    (3, False, "a"),
    (0, False, "a"),
    (1, True, "a"),
    (2, False, "a"),
]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """150 prompts; a study that looks at no image needs none."""
    prompts = [PromptRecord(f"thing {i} and {i % 7}", f"kind {i % 3}") for i in range(150)]
    run = Run(tmp_path_factory.mktemp("none"), {"images_per_prompt": 9, "seed": 0}, prompts, frozenset())
    return Study((run, run), ("a", "b"))


# ---- who sees what


@given(rater=RATERS)
def test_every_prompt_once_and_the_control_items(study, rater):
    screens = study.screens(rater)
    plain = [screen for screen in screens if not screen.control]
    assert sorted(screen.prompt for screen in plain) == list(range(len(PROMPTS)))
    assert all((s.first, s.second) == (Source(0, s.prompt), Source(1, s.prompt)) for s in plain)
    controls = [screen for screen in screens if screen.control]
    assert len(controls) == study.control_count == 2
    assert len({screen.prompt for screen in controls}) == 2
    for screen in controls:
        assert screen.first.run == screen.second.run
        assert screen.first.prompt == screen.prompt != screen.second.prompt


@given(rater=RATERS, choice=st.sampled_from(["a", "neither", "b"]))
def test_choices_and_preferences(study, rater, choice):
    for screen in study.screens(rater):
        assert screen.choice(screen.preference(choice)) == choice
        if choice != "neither":
            chosen = screen.first if screen.preference(choice) == "first" else screen.second
            assert screen.source(choice) == chosen


def test_what_a_rater_sees_is_a_function_of_seed_and_rater(runs, study):
    again = Study(runs, ("ours", "theirs"), controls=0.4)
    other = Study(runs, ("ours", "theirs"), controls=0.4, seed=1)
    raters = [f"rater-{i}" for i in range(20)]
    assert all(study.screens(rater) == again.screens(rater) for rater in raters)
    assert sum(study.screens(rater) == other.screens(rater) for rater in raters) == 0
    # A fixed point: answers in a file must keep their meaning in later versions.
    assert [(s.prompt, s.control, s.first_was) for s in study.screens("Ada")] == EXPECTED_FOR_ADA


def test_sides_and_places_are_random(large):
    raters = [large.screens(f"rater-{i}") for i in range(60)]
    plain = [[screen for screen in screens if not screen.control] for screens in raters]
    share = sum(s.first_was == "a" for screens in plain for s in screens) / 9000
    assert abs(share - 0.5) < 0.021  # 4 standard deviations, as below
    of_one = sum(s.first_was == "a" for screens in plain for s in screens if s.prompt == 3)
    assert abs(of_one - 30) < 16
    means = [sum(screens[i].prompt for screens in plain) / 60 for i in range(150)]
    assert max(abs(mean - 74.5) for mean in means) < 24
    controls = [s for screens in raters for s in screens if s.control]
    assert abs(sum(s.first_was == "a" for s in controls) / 900 - 0.5) < 0.067
    assert abs(sum(s.first.run for s in controls) / 900 - 0.5) < 0.067


def test_control_items_are_spread_and_far_from_their_prompt(large):
    assert large.control_count == 15
    for i in range(20):
        screens = large.screens(f"rater-{i}")
        places = [place for place, screen in enumerate(screens) if screen.control]
        assert all(11 * k <= place < 11 * (k + 1) for k, place in enumerate(places))
        for place in places:
            own = next(p for p, s in enumerate(screens) if s.prompt == screens[place].prompt and not s.control)
            assert 60 <= abs(own - place) <= 90


def test_a_control_shows_images_of_the_least_alike_caption(runs):
    prompts = [PromptRecord(text) for text in ("a red cube", "a red cube", "a red ball", "two ducks")]
    pair = tuple(replace(run, prompts=prompts) for run in runs)
    for screen in Study(pair, ("a", "b"), controls=1).screens("Ada"):
        if screen.control and screen.prompt < 3:
            assert screen.second.prompt == 3


def test_as_many_images_as_both_have(study, large):
    assert study.images == 3
    assert large.images == 8
    assert study.path(Source(1, 2), 0).name == "00002-0.png"


@pytest.mark.parametrize("controls", [-0.1, 1.5, float("nan")])
def test_share_of_controls(runs, controls):
    with pytest.raises(ValueError, match="--controls is"):
        Study(runs, ("a", "b"), controls=controls)


def test_few_controls_are_one_and_none_are_none(runs):
    assert Study(runs, ("a", "b"), controls=0.01).control_count == 1
    assert not any(screen.control for screen in Study(runs, ("a", "b"), controls=0).screens("Ada"))


def test_runs_that_cannot_be_compared(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "fewer", PROMPTS[:2])
    make_run(tmp_path / "other", [*PROMPTS[:3], PromptRecord("a blue hat", "text"), PROMPTS[4]])
    make_run(tmp_path / "alone", PROMPTS[:1])
    out = tmp_path / "answers.sqlite"
    with pytest.raises(ValueError, match=r"5 prompts and .* 2"):
        rate(tmp_path / "a", tmp_path / "fewer", out)
    with pytest.raises(ValueError, match=r"prompt 3 is 'ein .* and 'a blue hat'"):
        rate(tmp_path / "a", tmp_path / "other", out)
    with pytest.raises(ValueError, match="'a' and 'a'; give two names"):
        rate(tmp_path / "a", tmp_path / "a", out)
    with pytest.raises(ValueError, match="say --controls 0"):
        rate(tmp_path / "alone", tmp_path / "alone", out, names=("a", "b"))
    (tmp_path / "a" / "images" / "00001-1.png").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 15 images"):
        rate(tmp_path / "a", tmp_path / "other", out)
    with pytest.raises(ValueError, match=r"no run\.json"):
        rate(tmp_path, tmp_path / "other", out)
    assert not out.exists()


# ---- who may come in


@given(rater=RATERS, key=st.binary(min_size=32, max_size=32))
def test_a_credential_is_its_raters_own(rater, key):
    credential = Access(key).credential(rater)
    assert Access(key).rater(credential) == rater
    assert Access(bytes(32 * [7])).rater(credential) == (rater if key == bytes(32 * [7]) else None)
    assert Access(key, {"somebody else ..." * 5}).rater(credential) is None


@given(forged=st.text(max_size=100) | st.none() | st.integers() | st.lists(st.text()))
def test_forged_credentials(forged):
    assert Access(b"k" * 32).rater(forged) is None


def test_a_changed_credential():
    access = Access(b"k" * 32)
    credential = access.credential("Ada")
    name, signature = credential.split(".")
    for forged in (
        f"{name}.",
        f".{signature}",
        name,
        f"{name}.{signature[:-2]}",
        f"{credential}.x",
        f"QmVh.{signature}",
    ):
        assert access.rater(forged) is None
    flipped = [credential[:i] + ("A" if c != "A" else "B") + credential[i + 1 :] for i, c in enumerate(credential)]
    assert [access.rater(forged) for forged in flipped[:-1]] == [None] * (len(flipped) - 1)  # the last has unused bits


@pytest.mark.parametrize("name", ["", "  ", "a" * 61, "a\x00b", "\ud800", "a\u202eb", None, 3, ["Ada"]])
def test_names_nobody_has(name):
    with pytest.raises(ValueError, match="name"):
        check_name(name)


def test_a_name_is_tidied():
    assert check_name("  Ada \n Lovelace\t") == "Ada Lovelace"
    assert check_name("Zoe\u0308") == "Zoë"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (("0.0.0.0", 8000, None, 5), "say --url"),
        (("0.0.0.0", 8000, "http://here:8000", None), "say --raters"),
        (("192.0.2.1", 8000, None, None), "say --raters"),
        (("127.0.0.1", 8000, "https://rate.example.org", None), "say --raters"),
        (("127.0.0.1", 70000, None, None), "--port"),
        (("127.0.0.1", 8000, None, 0), "--raters"),
        (("127.0.0.1", 8000, "rate.example.org", 5), "--url"),
        (("127.0.0.1", 8000, "https://rate.example.org/path", 5), "--url"),
    ],
)
def test_addresses(address, message):
    with pytest.raises(ValueError, match=message):
        check_address(*address)


def test_addresses_that_will_do():
    check_address("127.0.0.1", 0, None, None)
    check_address("::1", 8000, "http://localhost:8000", None)
    check_address("0.0.0.0", 8000, "https://rate.example.org/", 25)


# ---- what is kept

ANSWER = {
    "rater": "Ada",
    "prompt": 1,
    "control": False,
    "question": "quality",
    "preference": "first",
    "first_was": "a",
    "seconds": 2.5,
    "submission": "0123456789",
}


@pytest.fixture
def opened(study, tmp_path):
    """Open the file of answers; all are closed in the end."""
    files = []

    def run(path=tmp_path / "answers.sqlite", about=study.about):
        files.append(Answers(path, about, study.prompts))
        return files[-1]

    yield run
    for file in files:
        file.close()


def test_answers_are_read_while_they_are_written(opened):
    answers = opened()
    assert read_answers(answers.path) == []
    answers.add(**ANSWER)
    expected = Answer("Ada", "ours", "theirs", 1, "counting", "quality", "first", False, None, 2.5)
    assert read_answers(answers.path) == [expected]


def test_the_last_answer_counts_and_all_are_kept(opened):
    answers = opened()
    answers.add(**ANSWER)
    answers.add(**ANSWER | {"submission": "other-question", "question": "alignment"})
    answers.add(**ANSWER | {"submission": "corrected", "preference": "neither", "seconds": 1.0})
    answers.add(**ANSWER | {"submission": "0123456789", "rater": "Bea"})
    assert [(a.rater, a.question, a.preference) for a in read_answers(answers.path)] == [
        ("Ada", "alignment", "first"),
        ("Ada", "quality", "neither"),
        ("Bea", "quality", "first"),
    ]
    assert answers.of("Ada") == {(1, False, "quality"): "neither", (1, False, "alignment"): "first"}
    rows = sqlite3.connect(answers.path)
    assert rows.execute("SELECT count(*) FROM answers").fetchone() == (4,)
    rows.close()


def test_a_submission_is_kept_once(opened):
    answers = opened()
    for _ in range(3):
        answers.add(**ANSWER)
    answers.add(**ANSWER | {"submission": "corrected", "preference": "second"})
    answers.add(**ANSWER)  # a late duplicate does not undo the correction
    assert [a.preference for a in read_answers(answers.path)] == ["second"]
    with pytest.raises(ValueError, match="was another answer"):
        answers.add(**ANSWER | {"preference": "second"})


def test_control_items_are_passed_where_the_prompts_own_images_are_preferred(opened):
    answers = opened()
    for i, preference in enumerate(("first", "neither", "second")):
        for question in QUESTIONS:
            row = {"prompt": i, "control": True, "question": question, "submission": f"{question}-{i}"}
            answers.add(**ANSWER | row | {"preference": preference})
    answers.add(**ANSWER)
    found = read_answers(answers.path)
    assert [(a.question, a.passed) for a in found if a.control] == [
        ("alignment", True),
        ("alignment", False),
        ("alignment", False),
    ]
    assert controls_passed(found) == {"Ada": (1, 3)}
    assert summary(answers.path).splitlines()[1] == "  Ada: 1 answers, 1 of 3 control items passed"


def test_threads_lose_nothing(opened):
    answers = opened()

    def add(rater):
        for i in range(20):
            for _ in range(2):
                answers.add(**ANSWER | {"rater": rater, "prompt": i % 5, "submission": f"submission-{i}"})

    threads = [threading.Thread(target=add, args=(f"rater-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = sqlite3.connect(answers.path)
    assert rows.execute("SELECT count(*), count(DISTINCT rater || submission) FROM answers").fetchone() == (160, 160)
    rows.close()
    assert len(read_answers(answers.path)) == 40


def test_it_goes_on_where_it_was_but_only_with_the_same_study(opened, study):
    first = opened()
    first.add(**ANSWER)
    key = first.key
    first.close()
    again = opened()
    assert again.key == key
    assert again.of("Ada") == {(1, False, "quality"): "first"}
    with pytest.raises(
        ValueError, match=r"the first name is 'ours' there and 'mine' here; --seed is 0 there and 1 here"
    ):
        opened(about=study.about | {"seed": 1, "first": "mine"})


def test_files_that_are_no_answers(opened, tmp_path):
    (tmp_path / "text").write_text("no database, but longer than the hundred bytes of its header " * 4)
    with pytest.raises(ValueError, match="holds no answers"):
        opened(tmp_path / "text")
    with pytest.raises(ValueError, match="holds no answers"):
        read_answers(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    before = (tmp_path / "other").read_bytes()
    with pytest.raises(ValueError, match="another program's"):
        opened(tmp_path / "other")
    with pytest.raises(ValueError, match="another program's"):
        read_answers(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="no answers at"):
        read_answers(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no folder"):
        opened(tmp_path / "nowhere" / "answers.sqlite")
    with pytest.raises(OSError, match="unable to open"):
        opened(tmp_path)


# ---- what leaves


def test_pixels_only(study):
    png = study.path(Source(0, 1), 2).read_bytes()
    assert b"secret" in png
    bare = pixels_only(png)
    assert b"secret" not in bare
    image = Image.open(io.BytesIO(bare))
    image.load()
    assert image.info == {}
    assert image.getpixel((0, 0)) == (10, 1, 2)
    with pytest.raises(ValueError, match="PNG"):
        pixels_only(b"GIF89a")


def test_pixels_only_keeps_transparency():
    data = io.BytesIO()
    image = Image.new("P", (4, 4))
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.save(data, "PNG", transparency=0, dpi=(72, 72))
    assert set(Image.open(io.BytesIO(pixels_only(data.getvalue()))).info) == {"transparency"}


@given(rest=st.binary(max_size=200))
def test_pixels_only_of_a_damaged_file(rest):
    assert pixels_only(b"\x89PNG\r\n\x1a\n" + rest)[:8] == b"\x89PNG\r\n\x1a\n"


def test_about_is_json_and_names_what_determines_the_items(study):
    assert json.loads(json.dumps(study.about)) == study.about
    assert study.about["first_run"] != study.about["second_run"]
