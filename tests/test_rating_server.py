"""The rating server: what it serves and to whom, what it does where it cannot, and that answers stand kills."""

import http.client
import io
import json
import random
import re
import sqlite3
import threading
import time
from collections import Counter

import pytest
from PIL import Image
from rating_runs import PROMPTS, Client, ServerProcess, eventually, make_run

from pipelines.batch.run import read_run
from pipelines.evaluation.rating.answers import QUESTIONS, read_answers
from pipelines.evaluation.rating.server import RatingServer
from pipelines.evaluation.rating.study import Study
from pipelines.prompts import PromptRecord

# ---- what a rater gets


def test_the_page(client):
    for path, kind, holds in (
        ("/", "text/html", b"<main>"),
        ("/style.css", "text/css", b":root"),
        ("/rate.js", "text/javascript", b"QUESTIONS"),
        ("/icon.svg", "image/svg+xml", b"<svg"),
    ):
        status, headers, body = client.request("GET", path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert holds in body
        elsewhere = set(re.findall(rb"(?:https?:)?//[a-z0-9]+\.[^\"\s]*", body))
        assert elsewhere <= {b"http://www.w3.org/2000/svg"}, "nothing is asked for elsewhere"


def test_a_session(server, client):
    assert client.get("/api/session") == {"rater": None, "enter_by": "name", "answered": []}
    client.enter(name=" Grace  Hopper ")
    assert client.get("/api/session") == {"rater": "Grace Hopper", "enter_by": "name", "answered": [0] * 7}
    assert client.answer(2, "alignment", "b", "submission-1") == (200, {"kept": "submission-1"})
    assert client.get("/api/session")["answered"] == [0, 0, 1, 0, 0, 0, 0]
    assert client.get("/api/screen/2")["answers"] == {"alignment": "b"}
    client.answer(2, "alignment", "a", "submission-2")
    assert client.get("/api/screen/2")["answers"] == {"alignment": "a"}
    status, headers, _ = client.request("POST", "/api/leave", {})
    assert status == 200
    assert "Max-Age=0" in headers["Set-Cookie"]


def test_screens_show_the_right_images(server, study, ada):
    for number, screen in enumerate(study.screens("Ada")):
        shown = ada.get(f"/api/screen/{number}")
        assert shown["caption"] == PROMPTS[screen.prompt].prompt
        for side in "ab":
            source = screen.source(side)
            assert len(shown["images"][side]) == 3
            for k, url in enumerate(shown["images"][side]):
                status, headers, body = ada.request("GET", f"/{url}")
                assert (status, headers["Content-Type"]) == (200, "image/png")
                pixel = Image.open(io.BytesIO(body)).getpixel((0, 0))
                assert pixel == ((10, 20)[source.run], source.prompt, k)


def test_an_answer_is_about_the_model_not_the_side(server, study, client):
    client.enter(name="Alan")
    for number in range(7):
        client.answer(number, "quality", "a", f"quality-{number}")
        client.answer(number, "alignment", "b", f"alignment-{number}")
    screens = {(s.prompt, s.control): s for s in study.screens("Alan")}
    found = [answer for answer in read_answers(server.answers.path) if answer.rater == "Alan"]
    assert len(found) == 5 * 2 + 2
    for answer in found:
        side = "a" if answer.question == "quality" else "b"
        screen = screens[answer.prompt, answer.control]
        assert answer.preference == ("first" if screen.first_was == side else "second")
        assert answer.category == PROMPTS[answer.prompt].category
        assert answer.passed == (answer.preference == "first" if answer.control else None)


def test_nothing_sent_says_which_model_it_is_of(server, study, ada):
    sent = []
    for path in ("/", "/rate.js", "/style.css", "/api/session"):
        sent.append(ada.request("GET", path))
    for number in range(7):
        status, headers, body = ada.request("GET", f"/api/screen/{number}")
        sent.append((status, headers, body))
        shown = json.loads(body)
        assert shown.keys() == {"caption", "images", "answers"}
        # The addresses are the same whatever is behind them.
        assert shown["images"] == {side: [f"image/{number}/{side}/{k}" for k in range(3)] for side in "ab"}
        sent += [ada.request("GET", f"/image/{number}/{side}/{k}") for side in "ab" for k in range(3)]
    sent.append(
        ada.request(
            "POST",
            "/api/answer",
            {"screen": 0, "question": "quality", "choice": "a", "seconds": 0, "submission": "blindness"},
        )
    )
    telling = [b"ours", b"theirs", b"secret", b'control"', b"first_was", str(study.runs[0].folder.parent).encode()]
    for status, headers, body in sent:
        assert status == 200
        everything = body + str(headers.items()).encode()
        assert not [word for word in telling if word in everything]
        assert not {"etag", "last-modified"} & {name.lower() for name in headers}
    lengths = {len(str(headers.items())) for _, headers, _ in sent[5:11]}
    assert len(lengths) == 1


def test_several_raters_in_one_process_are_kept_apart(server, study):
    clients = [Client(server.server_address[1]) for _ in range(3)]
    for i, client in enumerate(clients):
        client.enter(name=f"one of {i}")
        client.answer(i, "quality", "a", "the-same-name")
    for i, client in enumerate(clients):
        assert client.get("/api/session")["answered"] == [int(k == i) for k in range(7)]
        client.connection.close()


def test_a_connection_serves_many_requests(server, ada):
    ada.get("/api/session")
    there = ada.connection.sock
    for _ in range(5):
        ada.get("/api/session")
        assert ada.answer(0, "quality", "a", "submission-again")[0] == 200
        assert ada.request("GET", "/nothing")[0] == 404
    assert ada.connection.sock is there


# ---- what goes wrong


def test_what_cannot_be_written_is_not_acknowledged(serve, capfd):
    server = serve()
    client = Client(server.server_address[1])
    client.enter(name="Ada")
    server.answers._db.execute("PRAGMA query_only = 1")
    assert client.answer(0, "quality", "a", "submission-1")[0] == 503
    server.answers._db.execute("PRAGMA query_only = 0")
    assert client.answer(0, "quality", "a", "submission-1")[0] == 200
    assert len(read_answers(server.answers.path)) <= 1
    client.connection.close()
    assert "readonly" in capfd.readouterr().err


def test_an_image_that_is_gone(serve, study, capfd):
    server = serve()
    client = Client(server.server_address[1])
    client.enter(name="Ada")
    path = study.path(study.screens("Ada")[0].source("a"), 0)
    content = path.read_bytes()
    path.unlink()
    status, _, body = client.request("GET", "/image/0/a/0")
    path.write_bytes(content)
    assert status == 503
    assert path.name.encode() not in body
    assert path.name in capfd.readouterr().err
    client.connection.close()


def test_a_port_that_is_taken(server, study):
    with pytest.raises(ValueError, match=r"cannot listen .* try another --port"):
        RatingServer(study, server.answers, server.access, "127.0.0.1", server.server_address[1])


# ---- the command


def test_the_command_and_ctrl_c(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    process = ServerProcess(tmp_path, "--raters", "2", "--names", "ours", "theirs")
    assert process.printed[0].startswith("ours against theirs: 5 prompts and 1 control item a rater, 3 images a side")
    links = dict(
        re.fullmatch(r"(rater-\d)  http://127\.0\.0\.1:\d+/#(.+)", line).groups() for line in process.printed[1:3]
    )
    client = Client(process.port)
    assert client.enter(credential=links["rater-2"]) == (200, {"rater": "rater-2"})
    for number in range(6):
        assert client.answer(number, "alignment", "a", f"submission-{number}")[0] == 200
    printed = process.interrupt()
    assert re.search(r"5 answers\n  rater-2: 5 answers, [01] of 1 control items passed\n", printed)
    client.connection.close()
    process.start()
    assert [line.split("#")[1] for line in process.printed[1:3]] == list(links.values()), "links stay good"
    assert client.get("/api/session")["answered"] == [1] * 6
    process.interrupt()
    client.connection.close()


RATERS, SCREENS = 50, 100


@pytest.mark.slow
def test_fifty_raters_ten_thousand_answers_and_kills(tmp_path):
    """Each of 50 raters answers 100 screens while the server is killed and started again and again; a rater whose
    answer was not acknowledged sends it again, and some send an acknowledged one twice."""
    prompts = [PromptRecord(f"thing {i}, {i % 9}", f"kind {i % 11}") for i in range(91)]
    make_run(tmp_path / "a", prompts, images=1)
    make_run(tmp_path / "b", prompts, images=1, seed=1)
    process = ServerProcess(tmp_path, "--controls", "0.099")
    acknowledged, failures, retries = [{} for _ in range(RATERS)], [], Counter()

    def insist(attempt):
        while True:
            try:
                return attempt()
            except (OSError, http.client.HTTPException):
                retries["request"] += 1
                time.sleep(0.05)

    def work(i):
        rng, client = random.Random(i), Client(process.port)
        try:
            assert insist(lambda: client.enter(name=f"rater {i}"))[0] == 200
            for screen in range(SCREENS):
                for question in QUESTIONS:
                    choice, name = rng.choice(["a", "neither", "b"]), f"{question}-{screen}"
                    for _ in range(1 + (rng.random() < 0.05)):
                        status, reply = insist(lambda: client.answer(screen, question, choice, name))  # noqa: B023
                        assert (status, reply) == (200, {"kept": name})
                    acknowledged[i][screen, question] = choice
        except BaseException as error:
            failures.append(error)
        finally:
            client.connection.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(RATERS)]
    for thread in threads:
        thread.start()
    rng, kills = random.Random(0), 0
    for quarter in range(1, 6):
        wanted = quarter * RATERS * SCREENS * 2 // 6 + rng.randrange(300)
        eventually(lambda: failures or sum(map(len, acknowledged)) >= wanted, seconds=600)  # noqa: B023
        if failures:
            break
        process.kill()
        kills += 1
        before = {i: dict(answers) for i, answers in enumerate(acknowledged)}
        check(tmp_path, before, at_most=RATERS)
        process.start()
    for thread in threads:
        thread.join()
    process.interrupt()
    assert not failures
    assert (kills, sum(map(len, acknowledged))) == (5, RATERS * SCREENS * 2 == 10_000 and 10_000)
    assert retries["request"] > 0, "no kill hit a request"
    check(tmp_path, dict(enumerate(acknowledged)), at_most=0)


def check(folder, acknowledged, at_most):
    """Every acknowledged answer is there, once, as it was given; at most so many are that nobody has been told of."""
    study = Study((read_run(folder / "a"), read_run(folder / "b")), ("a", "b"), controls=0.099)
    db = sqlite3.connect(folder / "answers.sqlite")
    rows = db.execute("SELECT rater, prompt, control, question, preference FROM answers").fetchall()
    db.close()
    there = {row[:4]: row[4] for row in rows}
    assert len(there) == len(rows), "an answer is there twice"
    for i, given_ in acknowledged.items():
        screens = study.screens(f"rater {i}")
        for (number, question), choice in given_.items():
            screen = screens[number]
            kept = there.pop((f"rater {i}", screen.prompt, int(screen.control), question))
            assert kept == screen.preference(choice)
    assert len(there) <= at_most
