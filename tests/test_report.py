"""`cascade drawbench report`: run folders, scores and answers of raters to a page and its figures."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from itertools import combinations

import pytest

from pipelines.batch import generate_batch, read_run
from pipelines.evaluation.intervals import clustered_share
from pipelines.evaluation.rating.answers import Answers
from pipelines.evaluation.report.command import report
from pipelines.evaluation.scores import Judge, score_run
from pipelines.prompts import PromptRecord

EVIL = '<script>alert("1")</script> & <b>a red car</b>'
PROMPTS = [
    PromptRecord("a red car", "cars"),
    PromptRecord("a blue car", "cars"),
    PromptRecord("a green ball", "balls & <i>more</i>"),
    PromptRecord("a red ball on a blue house", "balls & <i>more</i>"),
    PromptRecord(EVIL, "lonely"),
]
KNOWN = ["a", "red", "blue", "green", "car", "ball", "on"]
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a page holds, and whether its tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.found if (value := attributes.get(name)) is not None]


@pytest.fixture
def model(pipe, tmp_path):
    pipe.vocabulary = KNOWN
    pipe.save_pretrained(tmp_path / "model")
    pipe.name = str(tmp_path / "model")
    return pipe


@pytest.fixture
def run(model, tmp_path):
    """A run of two images a prompt; a judge that calls the images of the given flat numbers wrong."""

    def make(name="one", seed=0, wrong=(), prompts=PROMPTS, judged=True):
        with pytest.warns(UserWarning, match="not trained on"):
            generate_batch(
                model, prompts, tmp_path / name, images_per_prompt=2, seed=seed, num_inference_steps=1, progress=False
            )
        found = read_run(tmp_path / name)

        def judge(_run, keys):
            for prompt, image in keys:
                bad = 2 * prompt + image in wrong
                yield {
                    "prompt": prompt,
                    "image": image,
                    "right": not bad,
                    "wrong": ["colour", "noun"][: 1 + image] * bad,
                }

        if judged:
            score_run(found, Judge("eye", "1", judge))
        return tmp_path / name

    return make


def rate(path, first, second, votes, failed=(), prompts=PROMPTS):
    """votes[rater][prompt]: the first, n or s; None where nothing was answered. failed: who fails the controls."""
    answers = Answers(path, {"first": first, "second": second}, prompts)
    for rater, own in votes.items():
        for prompt, vote in enumerate(own):
            for question in ("quality", "alignment") if vote else ():
                preference = {"f": "first", "n": "neither", "s": "second"}[vote]
                answers.add(
                    rater=rater, prompt=prompt, control=False, question=question, preference=preference,
                    first_was="a", seconds=1.0, submission=f"{prompt} {question}",
                )  # fmt: skip
        answers.add(
            rater=rater, prompt=0, control=True, question="alignment", first_was="a", seconds=1.0, submission="control",
            preference="second" if rater in failed else "first",
        )  # fmt: skip
    answers.close()
    return path


def made(tmp_path):
    return (tmp_path / "out" / "report.html").read_text(), json.loads((tmp_path / "out" / "report.json").read_text())


def test_two_runs_with_judge_and_raters(run, tmp_path, capsys):
    runs = run("one", wrong={0, 1, 5}), run("two", seed=50)
    votes = {"ann": "fffns", "bob": "ffnfs", "cem": "fssff", "dee": "sssss"}
    ratings = rate(tmp_path / "answers.sqlite", "one", "two", votes, failed={"dee"})
    report(runs, tmp_path / "out", (ratings,))
    assert "report.html" in capsys.readouterr().out
    html, figures = made(tmp_path)

    (judge,) = figures["judges"]
    assert judge["judge"] == "eye"
    right = [[False, False], [True, True], [True, False], [True, True], [True, True]]
    share = clustered_share(right)
    one, two = judge["runs"]["one"], judge["runs"]["two"]
    assert one["overall"] == {
        "value": 0.7,
        "low": pytest.approx(share.low),
        "high": pytest.approx(share.high),
    }
    assert one["categories"]["cars"]["value"] == 0.5
    assert one["categories"]["lonely"] == {"value": 1.0, "low": None, "high": None}
    assert {name: found["images"] for name, found in one["wrong"].items()} == {"colour": 3, "noun": 2}
    assert (one["against"], two["overall"]["value"]) == (None, 1.0)
    assert two["against"]["value"] == pytest.approx(0.3)

    raters = figures["raters"]
    assert [name for name, of in raters["raters"].items() if of["excluded"]] == ["dee"]
    assert raters["answers"] == 30
    (pair,) = raters["questions"]["alignment"]["pairs"]
    assert (pair["first"], pair["second"], pair["raters"]) == ("one", "two", 3)
    overall = pair["overall"]
    assert [overall[name]["value"] for name in ("first", "neither", "second")] == pytest.approx(
        [9 / 15, 2 / 15, 4 / 15]
    )
    assert overall["net"]["value"] == pytest.approx((9 - 4) / 15)
    assert overall["net"]["low"] < overall["net"]["value"] < overall["net"]["high"]
    assert pair["categories"]["cars"]["first"]["value"] == pytest.approx(5 / 6)
    alone = {"value": pytest.approx(2 / 3), "low": None, "high": None}
    assert pair["categories"]["lonely"]["second"] == alone
    assert raters["questions"]["quality"]["ranking"] is None
    agreeing = (6 + 2 + 0 + 2 + 2) / 30  # of the ordered pairs of raters, prompt by prompt
    assert raters["questions"]["quality"]["agreeing"] == pytest.approx(agreeing)

    page = Page(html)
    assert "1 of 4 raters is left out, for passing less than 80% of the control items: dee." in page.text
    assert "60.0%" in page.text
    of_raters, _, of_judge = page.text.rpartition("Judge: eye")
    assert re.search(r"net preference that hardly inform, .*balls & <i>more</i>\. More raters or prompts", of_raters)
    assert re.search(r"Intervals that hardly inform, .*cars \(one\), .*\. More prompts would narrow them", of_judge)
    assert len([1 for tag, of in page.found if tag == "img" and of.get("class") == "wrong"]) == 3
    assert len([1 for tag, of in page.found if tag == "img" and of.get("class") == "right"]) == 17


def test_categories_in_which_a_model_is_clearly_ahead_are_counted(run, tmp_path):
    """In cars by little more than half of the votes, in trees by all of them."""
    kinds = ["car"] * 6 + ["tree"] * 10 + ["house"]
    prompts = [PromptRecord(f"a red {kind} {number}", kind) for number, kind in enumerate(kinds)]
    runs = run("one", judged=False, prompts=prompts), run("two", seed=50, judged=False, prompts=prompts)
    votes = {f"rater {n}": ("fsfsfs" if n % 2 else "sfsfsf" if n else "ffsfsf") + "f" * 10 + "s" for n in range(10)}
    ratings = rate(tmp_path / "answers.sqlite", "one", "two", votes, prompts=prompts)
    report(runs, tmp_path / "out", (ratings,))
    html, figures = made(tmp_path)
    (pair,) = figures["raters"]["questions"]["quality"]["pairs"]
    car, tree = (pair["categories"][name]["net"] for name in ("car", "tree"))
    assert car["low"] < 0 < car["value"]
    assert tree["low"] > 0
    # The only house has no interval that could leave out 0.
    assert "one ahead in 2 (1 clearly), two in 1 (none clearly) of 3 categories" in Page(html).text


def test_scores_of_two_versions_of_a_judge_are_not_compared(run, tmp_path):
    runs = run("one"), run("two", seed=50)
    path = runs[1] / "scores" / "eye.jsonl"
    path.write_text(path.read_text().replace('"version": "1"', '"version": "2"'))
    with pytest.raises(ValueError, match=r"two was scored by another eye \(2\) than one \(1\); delete the file"):
        report(runs, tmp_path / "out")
    report(runs[1:], tmp_path / "out")
    assert made(tmp_path)[1]["judges"][0]["version"] == "2"


def test_the_page_needs_nothing_beside_itself_and_runs_nothing(run, tmp_path):
    report((run(),), tmp_path / "out")
    html, figures = made(tmp_path)
    page = Page(html)
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "b", "i"}
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.attributes("src"))
    assert page.attributes("src")
    assert not re.search(r"url\(|@import|https?:", re.sub(r"<p>.*?</p>", "", html))
    links = [link.removeprefix("#") for link in page.attributes("href")]
    assert links
    assert set(links) <= set(page.attributes("id"))
    assert len(page.attributes("id")) == len(set(page.attributes("id")))
    assert EVIL in page.text
    assert "balls & <i>more</i>" in page.text
    assert figures["prompts"][-1] == EVIL


def test_words_that_the_model_was_never_taught(run, tmp_path):
    report((run(judged=False),), tmp_path / "out")
    html, figures = made(tmp_path)
    found = figures["runs"]["one"]["vocabulary"]
    assert found["taught"] == len(KNOWN)
    assert found["overall"] == {"prompts": 5, "strange_prompts": 2, "words": 12, "strange_words": 5}
    assert found["categories"] == {
        "cars": {"prompts": 2, "strange_prompts": 0, "words": 4, "strange_words": 0},
        "balls & <i>more</i>": {"prompts": 2, "strange_prompts": 1, "words": 7, "strange_words": 1},
        "lonely": {"prompts": 1, "strange_prompts": 1, "words": 7, "strange_words": 4},
    }
    assert found["most_frequent"][0] in ("house", "script", "b")
    text = Page(html).text
    assert "2 of the 5 prompts have words that one was never taught: 5 of 12 different words" in text
    assert "4 (57%)" in text
    assert "No judge has scored these runs" in Page(html).text


def test_a_model_that_is_gone_has_no_vocabulary(run, tmp_path):
    folder = run(judged=False)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    report((folder,), tmp_path / "out")
    assert made(tmp_path)[1]["runs"]["one"]["vocabulary"] is None


def test_three_models_are_ranked(run, tmp_path):
    runs = [run(name, seed=10 * i, judged=False) for i, name in enumerate(("one", "two", "three"))]
    names = ("A", "B", "C")
    votes = {"ann": "ffnsf", "bob": "fnfsf", "cem": "sffnn"}
    files = [
        rate(tmp_path / f"{a}{b}.sqlite", b, a, {r: v.translate(str.maketrans("fs", "sf")) for r, v in votes.items()})
        for a, b in combinations(names, 2)
    ]
    report(tuple(runs), tmp_path / "out", tuple(files), names)
    html, figures = made(tmp_path)
    asked = figures["raters"]["questions"]["alignment"]
    assert [(pair["first"], pair["second"]) for pair in asked["pairs"]] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert all(pair["overall"]["first"]["value"] == pytest.approx(8 / 15) for pair in asked["pairs"])
    strengths = asked["ranking"]["strengths"]
    assert list(strengths) == ["A", "B", "C"]
    assert sum(of["value"] for of in strengths.values()) == pytest.approx(0)
    assert strengths["B"]["score"] == pytest.approx(0.5)
    assert strengths["A"]["low"] < strengths["A"]["value"] < strengths["A"]["high"]
    assert "A, then B, then C" in Page(html).text


def test_a_ranking_that_cannot_be_is_explained(run, tmp_path):
    runs = [run(name, seed=10 * i, judged=False) for i, name in enumerate("ABC")]
    files = [rate(tmp_path / f"{a}{b}.sqlite", a, b, {"ann": "fffff"}) for a, b in combinations("ABC", 2)]
    report(tuple(runs), tmp_path / "out", tuple(files))
    html, figures = made(tmp_path)
    assert "no answer prefers any of" in figures["raters"]["questions"]["quality"]["ranking"]["problem"]
    assert "how far they are apart cannot be estimated" in Page(html).text
    assert "One rater answered" in Page(html).text


def test_who_failed_controls_counts_where_that_is_wanted(run, tmp_path):
    runs = run("one", judged=False), run("two", seed=50, judged=False)
    ratings = rate(
        tmp_path / "answers.sqlite", "one", "two", {"ann": "fffns", "dee": ["s", None, None, None, None]}, {"dee"}
    )
    report(runs, tmp_path / "out", (ratings,), controls=0.0)
    figures = made(tmp_path)[1]
    assert figures["raters"]["answers"] == 12
    assert not any(of["excluded"] for of in figures["raters"]["raters"].values())
    (pair,) = figures["raters"]["questions"]["quality"]["pairs"]
    assert (pair["overall"]["votes"], pair["categories"]["lonely"]["raters"]) == (6, 1)


def test_all_raters_may_have_failed(run, tmp_path):
    runs = run("one", judged=False), run("two", seed=50, judged=False)
    ratings = rate(tmp_path / "answers.sqlite", "one", "two", {"dee": "fffff"}, {"dee"})
    report(runs, tmp_path / "out", (ratings,))
    assert "No answers of raters are left." in Page(made(tmp_path)[0]).text


def test_a_judge_of_scores(run, tmp_path):
    folder = run(judged=False)

    def judge(_run, keys):
        yield from ({"prompt": prompt, "image": image, "score": prompt - image} for prompt, image in keys)

    score_run(read_run(folder), Judge("likeness", "1", judge))
    report((folder,), tmp_path / "out", sheet=0)
    html, figures = made(tmp_path)
    overall = figures["judges"][0]["runs"]["one"]["overall"]
    half = 2.776 * math.sqrt(2.5 / 5)  # five prompts with means -0.5 to 3.5
    assert overall == {
        "value": 1.5,
        "low": pytest.approx(1.5 - half, abs=2e-3),
        "high": pytest.approx(1.5 + half, abs=2e-3),
    }
    assert not Page(html).attributes("src")


def test_scores_that_are_not_of_all_images_are_noted(run, tmp_path):
    folder = run()
    report((folder,), tmp_path / "out", sheet=0)
    assert "has judged" not in made(tmp_path)[0]
    scores = folder / "scores" / "eye.jsonl"
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:8]))  # a header and seven images
    report((folder,), tmp_path / "out", sheet=0)
    assert "eye has judged 7 of the 10 images of one." in made(tmp_path)[0]


def test_prompts_without_categories_and_verdicts_without_reasons(run, tmp_path):
    runs = [
        run(name, seed=9 * i, judged=False, prompts=["a red car", "a house"]) for i, name in enumerate(("one", "two"))
    ]

    def judge(_run, keys):
        yield from ({"prompt": prompt, "image": image, "right": image == 1} for prompt, image in keys)

    for folder in runs:
        score_run(read_run(folder), Judge("eye", "1", judge))
    report(tuple(runs), tmp_path / "out")
    html, figures = made(tmp_path)
    assert figures["categories"] == {"no category": [0, 1]}
    assert "2 prompts, 2 images each." in Page(html).text
    assert figures["judges"][0]["runs"]["one"]["wrong"] == {}
    marks = [of.get("class") for tag, of in Page(html).found if tag == "img"]
    assert marks == ["wrong", "right"] * 4
    assert html.count("no category") == 2  # the contact sheet, and the contents


def test_it_is_the_same_again(run, tmp_path):
    folder = run()
    report((folder,), tmp_path / "out")
    before = made(tmp_path)
    report((folder,), tmp_path / "out")
    assert made(tmp_path) == before


def test_the_commands_make_the_run_again(run, model, tmp_path, monkeypatch, capsys):
    """The line in the method draws the same pixels, in another folder."""
    import shlex

    from pipelines import cli

    report((run(judged=False),), tmp_path / "out")
    line = next(line for line in Page(made(tmp_path)[0]).text.splitlines() if "cascade batch" in line)
    words = shlex.split(line[line.index("cascade batch") :])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.warns(UserWarning, match="not trained on"):
        assert cli.main(words[1:]) == 0
    again = read_run(tmp_path / "one-again")
    assert again.settings == read_run(tmp_path / "one").settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": ()}, "no run is given"),
        ({"names": ("a",)}, "--names gives 1 for 2 runs: a; give one for each run"),
        ({"names": ("a", "a")}, "2 runs are called 'a', 'a'"),
        ({"controls": 1.5}, "--controls is 1.5"),
        ({"sheet": -1}, "--sheet is -1"),
        ({"names": ("one", "else")}, "answers are about 'two', and the runs are called 'one', 'else'"),
    ],
)
def test_wrong_use_is_refused(run, tmp_path, options, message):
    runs = run("one", judged=False), run("two", seed=50, judged=False)
    ratings = rate(tmp_path / "answers.sqlite", "one", "two", {"ann": "fffns"})
    with pytest.raises(ValueError, match=message):
        report(**{"runs": runs, "output": tmp_path / "out", "ratings": (ratings,)} | options)
    assert not (tmp_path / "out").exists()


def test_runs_of_other_prompts_are_refused(run, tmp_path):
    others = [PromptRecord("a green car", "cars"), *PROMPTS[1:]]
    one, two, three = (
        run("one", judged=False),
        run("two", prompts=others, judged=False),
        run("three", prompts=PROMPTS[1:]),
    )
    with pytest.raises(ValueError, match=r"prompt 0 is 'a red car' .* in one and 'a green car' .* in two"):
        report((one, two), tmp_path / "out")
    with pytest.raises(ValueError, match="one has 5 prompts and three 4"):
        report((one, three), tmp_path / "out")
