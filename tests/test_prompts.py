"""Prompt files and suites: every format, what is wrong named by line, public suites checked and fetched."""

import csv
import json
import os
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.data.toybox import Description, Look
from pipelines.evaluation import public_suites
from pipelines.evaluation.public_suites import PUBLIC, find_prompts, named_suite
from pipelines.evaluation.suite import TOYBOX, Prompt, from_record, read_suite
from pipelines.prompts import BadLine, PromptRecord, read_prompts

GENEVAL = {"tag": "counting", "include": [{"class": "bench", "count": 2}], "prompt": "a photo of two benches"}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "a red cube\n\n  a blue ball \n", [("a red cube", "", {}), ("a blue ball", "", {})]),
        ("a.TXT", "\ufeffa café\r\nnaïve\rΩ", [("a café", "", {}), ("naïve", "", {}), ("Ω", "", {})]),
        (
            "a.csv",
            'Prompts,Category\n"a red, ""big"" cube",Colors\nb,\n',
            [('a red, "big" cube', "Colors", {}), ("b", "", {})],
        ),
        ("a.csv", "Challenge,CAPTION\nBasic,a\n,b\n", [("a", "", {"Challenge": "Basic"}), ("b", "", {})]),
        ("a.csv", 'text\n"two\nlines"\n', [("two\nlines", "", {})]),
        ("a.tsv", 'Prompt\tTAG\tNote\na "quoted\tArts\t"x\n', [('a "quoted', "Arts", {"Note": '"x'})]),
        (
            "a.jsonl",
            '{"category": "c", "prompt": "p", "expected": {"count": 1}}\n',
            [("p", "c", {"expected": {"count": 1}})],
        ),
        ("a.jsonl", json.dumps(GENEVAL), [(GENEVAL["prompt"], "counting", {"include": GENEVAL["include"]})]),
        (
            "a.jsonl",
            '{"Caption": "line\u2028separator", "prompt": "p"}',
            [("p", "", {"Caption": "line\u2028separator"})],
        ),
    ],
)
def test_formats(write, name, content, expected):
    found = read_prompts(write(name, content))
    assert [(one.prompt, one.category, one.extra) for one in found.records] == expected
    assert not found.bad


def test_a_folder_of_texts(write, tmp_path):
    write("b.txt", "a\ngreen  tree\n")
    write("a.txt", "a red cube")
    write("notes.md", "no prompt")
    assert read_prompts(tmp_path).records == [
        PromptRecord("a red cube", extra={"item_id": "a"}),
        PromptRecord("a green tree", extra={"item_id": "b"}),
    ]


@pytest.mark.parametrize(
    ("name", "lines", "bad", "message"),
    [
        ("a.txt", [b"good", b"caf\xe9", b"good"], 2, "UTF-8"),
        ("a.txt", [b"good", b"nul\0", b"good"], 2, "NUL"),
        ("a.csv", [b"prompt,category", b"good,", b" ,Colors", b"good,"], 3, "empty"),
        ("a.csv", [b"prompt,category", b"good,", b"a red, round cube,Colors", b"good,"], 3, "quote the field"),
        ("a.csv", [b"prompt", b"good", b'"a" cube', b"good"], 3, "quotes are doubled"),
        ("a.tsv", [b"prompt\ttag", b"good", b"a\tb\tc", b"good"], 3, "3 fields under 2 columns"),
        ("a.jsonl", [b'{"prompt": "good"}', b"a red cube", b'{"prompt": "good"}'], 2, "expected one object a line"),
        ("a.jsonl", [b'{"prompt": "good"}', b"[]", b'{"prompt": "good"}'], 2, "JSON list"),
        ("a.jsonl", [b'{"prompt": "good"}', b"{}", b'{"prompt": "good"}'], 2, "name what to draw"),
        ("a.jsonl", [b'{"prompt": "good"}', b'{"prompt": 3}', b'{"prompt": "good"}'], 2, "expected text"),
        ("a.jsonl", [b'{"prompt": "good"}', b'{"prompt": ""}', b'{"prompt": "good"}'], 2, "empty"),
        ("a.jsonl", [b'{"prompt": "good"}', b'{"prompt": "\\ud800"}', b'{"prompt": "good"}'], 2, "Unicode"),
        ("a.jsonl", [b'{"prompt": "good"}', b'{"prompt": "a", "x": NaN}', b'{"prompt": "good"}'], 2, "NaN"),
        ("a.jsonl", [b'{"prompt": "good"}', b'{"prompt": "a", "Prompt": "b"}', b'{"prompt": "good"}'], 2, "keep one"),
        ("a.jsonl", [b'{"prompt": "good"}', b"[" * 100_000, b'{"prompt": "good"}'], 2, "recursion|nested|JSON"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(write, name, lines, bad, message):
    found = read_prompts(write(name, b"\n".join(lines)))
    assert [one.prompt for one in found.records] == ["good", "good"]
    assert [one.line for one in found.bad] == [bad]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.bad[0].problem)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.doc", "a", r"expected .txt, .csv, .tsv, .jsonl: rename or convert"),
        ("a.txt", "", "holds no prompt"),
        ("a.jsonl", "x\ny\n", "line 1: no JSON"),
        (
            "a.csv",
            "a red cube\na blue ball\n",
            "first line names .'a red cube'.. Name the columns there, or use a .txt",
        ),
        ("a.csv", '"prompt" x\n', "line 1: .*; the first line names the columns"),
        ("a.csv", "prompt,PROMPT\na,b\n", "keep one"),
        ("a.txt", "ab".encode("utf-16"), "UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(write, name, content, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_prompts(write(name, content))
    assert name in str(refused.value)


def test_a_missing_file():
    with pytest.raises(FileNotFoundError):
        read_prompts("nowhere.txt")
    with pytest.raises(ValueError, match="no file nowhere; expected a path, or a suite: drawbench"):
        find_prompts("nowhere")


@given(data=st.binary(max_size=200), ending=st.sampled_from(["txt", "csv", "tsv", "jsonl"]))
def test_no_bytes_break_the_reader(tmp_path_factory, data, ending):
    path = tmp_path_factory.getbasetemp() / f"fuzz.{ending}"
    path.write_bytes(b"prompt,category\n" + data if ending == "csv" else data)
    try:
        found = read_prompts(path)
    except ValueError as error:
        refused = str(error)
    else:
        refused = "fuzz"
        assert all(isinstance(bad, BadLine) and bad.line > 0 for bad in found.bad)
        assert all(record.prompt.strip() for record in found.records)
    assert "fuzz" in refused  # an error names the file


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(texts, texts, st.dictionaries(st.text(), json_values))
def test_json_lines_come_back(tmp_path_factory, prompt, category, extra):
    taken = {"prompt", "category"}
    record = PromptRecord(
        prompt, category, {key: own for key, own in extra.items() if key.strip().lower() not in taken}
    )
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    path.write_text(record.to_json() + "\n")
    assert read_prompts(path).records == [record]


@given(st.lists(st.tuples(texts, texts), min_size=1))
def test_tables_come_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Prompt", "Category"])
        writer.writerows(rows)
    wanted = [tuple(part.replace("\r\n", "\n").replace("\r", "\n").strip() for part in row) for row in rows]
    assert [(one.prompt, one.category) for one in read_prompts(path).records] == wanted


def test_a_record_says_prompt_and_category_once():
    with pytest.raises(ValueError, match="'Prompt'"):
        PromptRecord("a", extra={"Prompt": "b"})


def test_the_toybox_by_name():
    found = find_prompts("toybox")
    assert [from_record(one) for one in found.records] == read_suite(TOYBOX)


def test_a_path_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toybox").mkdir()
    Path("toybox/one.txt").write_text("a red cube")
    assert [one.prompt for one in find_prompts("toybox").records] == ["a red cube"]


def test_records_become_suite_lines():
    prompt = Prompt("toys", "a red cube", Description((Look("cube", "red"),)))
    expected = json.loads(prompt.to_json())["expected"]
    assert from_record(PromptRecord("a red cube", "toys", {"expected": expected})) == prompt
    assert from_record(PromptRecord("a cat", "Colors", {"Challenge": "Basic"})) == Prompt("Colors", "a cat")
    expected["looks"][0]["noun"] = "cat"
    with pytest.raises(ValueError, match="noun 'cat'"):
        from_record(PromptRecord("a cat", "toys", {"expected": expected}))


SUITES = os.environ.get("CASCADE_SUITES")


@pytest.mark.skipif(not SUITES, reason="CASCADE_SUITES names no folder")
@pytest.mark.parametrize(("name", "rows"), [("drawbench", 200), ("partiprompts", 1632), ("geneval", 553)])
def test_the_public_files(name, rows):
    found = find_prompts(name)
    assert len(found.records) == rows == sum(PUBLIC[name].counts.values())
    assert not found.bad
    assert Counter(one.category for one in found.records) == PUBLIC[name].counts


@pytest.mark.skipif(not SUITES, reason="CASCADE_SUITES names no folder")
def test_public_details():
    parti = find_prompts("partiprompts").records
    assert parti[0] == PromptRecord(
        "bond", "Abstract", {"Challenge": "Basic", "Note": "Biology-inspired concepts with multiple meanings"}
    )
    assert any('"' in one.prompt for one in parti)
    assert find_prompts("geneval").records[0] == PromptRecord(
        "a photo of a bench", "single_object", {"include": [{"class": "bench", "count": 1}]}
    )


def drawbench(change=0):
    lines = ["Prompts,Category"]
    for category, count in PUBLIC["drawbench"].counts.items():
        lines += [f"prompt {i},{category}" for i in range(count + change)]
        change = 0
    return "\n".join(lines) + "\n"


def test_a_suite_is_checked(tmp_path, monkeypatch, write):
    monkeypatch.setenv("CASCADE_SUITES", str(tmp_path))
    with pytest.raises(ValueError, match=r"drawbench\.csv. Download it there with `python -m .* drawbench`"):
        named_suite("drawbench")
    write("drawbench.csv", drawbench())
    assert len(named_suite("drawbench").records) == 200
    write("drawbench.csv", drawbench(-1) + "more,Noise\n")
    with pytest.raises(ValueError, match=r"24 in 'Colors', expected 25; 1 in 'Noise', expected 0\. Fetch it anew"):
        named_suite("drawbench")
    write("drawbench.csv", drawbench() + "a,b,c\n")
    with pytest.raises(ValueError, match="line 202: 3 fields"):
        named_suite("drawbench")


def test_no_folder_of_suites(tmp_path, monkeypatch):
    monkeypatch.delenv("CASCADE_SUITES", raising=False)
    with pytest.raises(ValueError, match="CASCADE_SUITES is not set; set it"):
        named_suite("geneval")
    with pytest.raises(ValueError, match="make it first"):
        named_suite("geneval", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'imagenet'; expected one of drawbench"):
        named_suite("imagenet", tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "home").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "home")) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", tmp_path / "home"
        running.shutdown()
        thread.join()


def test_a_suite_is_downloaded_once_it_is_right(tmp_path, server):
    address, home = server
    target = tmp_path / "suites"
    target.mkdir()
    (home / "file").write_text(drawbench(1))
    with pytest.raises(ValueError, match="26 in 'Colors'"):
        public_suites.download("drawbench", target, home=f"{address}/file")
    assert not list(target.iterdir())
    (home / "file").write_text(drawbench())
    path = public_suites.download("drawbench", target, home=f"{address}/file")
    assert [*target.iterdir()] == [path]
    assert len(named_suite("drawbench", target).records) == 200
    with pytest.raises(OSError, match="404"):
        public_suites.download("drawbench", target, home=f"{address}/missing")
    with pytest.raises(ValueError, match="no https address"):
        public_suites.download("drawbench", target, home="http://example.org/x")


def test_every_home_is_https():
    assert all(suite.home.startswith("https://") for suite in PUBLIC.values())
