"""The rating server: what it serves and to whom, what it refuses, and that it stands kills and load."""

import http.client
import io
import json
import random
import re
import socket
import sqlite3
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rating_runs import PROMPTS, Client, ServerProcess, eventually, make_run

from pipelines.batch.run import read_run
from pipelines.evaluation.rating import web
from pipelines.evaluation.rating.access import Access
from pipelines.evaluation.rating.answers import QUESTIONS, Answers, read_answers
from pipelines.evaluation.rating.server import RatingServer
from pipelines.evaluation.rating.study import Study
from pipelines.prompts import PromptRecord


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = make_run(folder / "a", seed=10), make_run(folder / "b", images=4, seed=20)
    return Study((read_run(runs[0]), read_run(runs[1])), ("ours", "theirs"), controls=0.4)


@pytest.fixture(scope="module")
def serve(study, tmp_path_factory):
    """Start a server in a thread; all are stopped in the end."""
    running = []

    def run(invited=None, host="127.0.0.1", url=None):
        answers = Answers(tmp_path_factory.mktemp("answers") / "answers.sqlite", study.about, study.prompts)
        server = RatingServer(study, answers, Access(answers.key, invited), host, 0, url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return server

    yield run
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()
        server.answers.close()


@pytest.fixture(scope="module")
def server(serve):
    return serve()


@pytest.fixture
def client(server):
    client = Client(server.server_address[1])
    yield client
    client.connection.close()


@pytest.fixture
def ada(client):
    assert client.enter(name="Ada") == (200, {"rater": "Ada"})
    return client


@pytest.fixture
def invited(serve):
    return serve(["rater-1", "rater-2"])


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


# ---- what is refused


def test_every_reply_has_the_security_headers(ada):
    for path in ("/", "/api/session", "/api/screen/0", "/image/0/a/0", "/nothing"):
        headers = ada.request("GET", path)[1]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Python" not in headers["Server"]


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/page/../answers.py",
        "//etc/passwd",
        "/images/00000-0.png",
        "/image/0/a/../../../run.json",
        "/image/0/a/0/..",
        "/image/0/a/3",
        "/image/0/a/-1",
        "/image/0/c/0",
        "/image/7/a/0",
        "/image/999999/a/0",
        "/image/0/a/0?x=1",
        "/image/0/a/0%00.png",
        "/answers.sqlite",
        "/index.html",
        "/server.py",
        "/api/screen/7",
        "/api/screen/-1",
        "/api/screen/1e0",
        "/api/session/",
        "http://127.0.0.1/",
        "*",
    ],
)
def test_paths_that_are_none(ada, path):
    status, _, body = ada.request("GET", path)
    assert status == 404
    assert set(json.loads(body)) == {"error"}


@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_no_other_path_leads_anywhere(server, path):
    client = Client(server.server_address[1])
    status = client.request("GET", f"/{path}")[0]
    client.connection.close()
    assert status in (400, 404) or f"/{path}" in ("/", "/style.css", "/rate.js", "/icon.svg", "/api/session")


@pytest.mark.parametrize("path", ["/api/screen/0", "/image/0/a/0"])
def test_nothing_without_a_rater(server, client, path):
    assert client.request("GET", path)[0] == 401
    client.cookie = f"{server.cookie}=QWRh.AAAA"
    assert client.request("GET", path)[0] == 401
    client.cookie = f"{server.cookie}={Access(bytes(32)).credential('Ada')}"
    assert client.request("GET", path)[0] == 401


def test_no_answer_without_a_rater(server, client):
    before = len(read_answers(server.answers.path))
    assert client.answer(0, "quality", "a", "submission-1")[0] == 401
    assert len(read_answers(server.answers.path)) == before


def test_links(invited):
    client = Client(invited.server_address[1])
    assert client.get("/api/session")["enter_by"] == "link"
    assert client.enter(name="rater-1")[0] == 403
    link = invited.link("rater-1")
    assert link.startswith(f"http://127.0.0.1:{invited.server_address[1]}/#")
    credential = link.split("#")[1]
    for forged in (
        "",
        "x",
        credential[:-3],
        credential + "A",
        f"{credential}.",
        Access(bytes(32)).credential("rater-1"),
    ):
        assert client.enter(credential=forged)[0] == 403
    assert client.enter(credential=invited.access.credential("rater-3"))[0] == 403, "nobody invited rater-3"
    assert client.cookie is None
    assert client.enter(credential=credential) == (200, {"rater": "rater-1"})
    assert client.get("/api/session")["rater"] == "rater-1"
    client.connection.close()


def test_the_cookie(serve, client):
    _, headers, _ = client.request("POST", "/api/enter", {"name": "Ada"})
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(headers["Set-Cookie"].split("; "))
    assert "Secure" not in headers["Set-Cookie"]
    behind = serve(["rater-1"], url="https://rate.example.org")
    proxied = Client(behind.server_address[1])
    proxied.host = "rate.example.org"
    who = {"credential": behind.access.credential("rater-1")}
    status, headers, _ = proxied.request("POST", "/api/enter", who, {"Origin": "https://rate.example.org"})
    assert status == 200
    assert "Secure" in headers["Set-Cookie"].split("; ")
    assert proxied.request("POST", "/api/enter", who, {"Origin": "http://rate.example.org"})[0] == 403
    assert behind.link("rater-1").startswith("https://rate.example.org/#")
    proxied.connection.close()


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", "0.0.0.0:{port}"]
)
def test_hosts_it_does_not_go_by(client, host):
    """A page that has rebound its own name to this address names itself in Host."""
    host = host and host.format(port=client.port)
    assert client.request("GET", "/", headers={"Host": host})[0] == 421
    assert client.request("POST", "/api/enter", {"name": "Ada"}, {"Host": host})[0] == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_hosts_it_goes_by(server, host):
    client = Client(server.server_address[1], host)
    assert client.request("GET", "/")[0] == 200
    assert client.enter(name="Ada")[0] == 200
    client.connection.close()


def test_two_hosts(client):
    sock = socket.create_connection(("127.0.0.1", client.port))
    good = f"Host: 127.0.0.1:{client.port}\r\n"
    sock.sendall(f"GET / HTTP/1.1\r\n{good}Host: evil.example\r\n\r\n".encode())
    assert sock.recv(100).startswith(b"HTTP/1.1 421")
    sock.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": None},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_posts_of_other_sites(server, ada, headers):
    headers = {name: value and value.format(port=ada.port) for name, value in headers.items()}
    body = {"screen": 0, "question": "quality", "choice": "a", "seconds": 1, "submission": "cross-origin"}
    before = len(read_answers(server.answers.path))
    assert ada.request("POST", "/api/answer", body, headers)[0] == 403
    assert ada.request("POST", "/api/enter", {"name": "Eve"}, headers)[0] == 403
    assert len(read_answers(server.answers.path)) == before


@pytest.mark.parametrize("path", ["/api/session", "/api/screen/0", "/image/0/a/0"])
def test_other_sites_get_to_see_nothing(ada, path):
    assert ada.request("GET", path, headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert ada.request("GET", path, headers={"Sec-Fetch-Site": "same-origin"})[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_can_send(ada, kind):
    assert ada.request("POST", "/api/enter", {"name": "Eve"}, {"Content-Type": kind})[0] == 415


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1", b"null", b'"x"', b"\xff\xfe", b"[" * 4000, b'{"a":' * 500, b"9" * 4000]
)
def test_bodies_that_are_no_object(ada, body):
    assert ada.request("POST", "/api/answer", body)[0] == 400
    assert ada.get("/api/session")["rater"] == "Ada"


@pytest.mark.parametrize(
    "change",
    [
        {"screen": 7},
        {"screen": -1},
        {"screen": True},
        {"screen": "0"},
        {"screen": 0.0},
        {"screen": None},
        {"screen": [0]},
        {"question": "beauty"},
        {"question": ["quality"]},
        {"choice": "first"},
        {"choice": {}},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": 1e300},
        {"seconds": 10**400},
        {"seconds": "1"},
        {"seconds": True},
        {"submission": "short"},
        {"submission": "x" * 65},
        {"submission": "with spaces in it"},
        {"submission": None},
    ],
    ids=str,
)
def test_malformed_answers(server, ada, change):
    body = {"screen": 0, "question": "quality", "choice": "a", "seconds": 1, "submission": "malformed-1"} | change
    before = len(read_answers(server.answers.path))
    assert ada.request("POST", "/api/answer", body)[0] in (400, 404)
    assert len(read_answers(server.answers.path)) == before


@given(
    body=st.dictionaries(
        st.sampled_from(["screen", "question", "choice", "seconds", "submission"]),
        st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text() | st.lists(st.integers()),
    )
)
def test_random_answers(server, body):
    client = Client(server.server_address[1])
    client.enter(name="Random")
    assert client.request("POST", "/api/answer", body)[0] in (200, 400, 404)
    client.connection.close()


@pytest.mark.parametrize("name", ["", "a" * 61, "\u202e", 5, None])
def test_names_that_are_none(client, name):
    assert client.enter(name=name)[0] == 400


def test_a_submission_used_for_another_answer(ada):
    assert ada.answer(1, "quality", "a", "submission-x")[0] == 200
    assert ada.answer(1, "quality", "a", "submission-x")[0] == 200
    assert ada.answer(1, "quality", "b", "submission-x")[0] == 409


def raw(port, data):
    """What comes back on a connection of its own, until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        received = b""
        try:
            sock.sendall(data)
            while part := sock.recv(65536):
                received += part
        except ConnectionError:
            pass
        return received


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Content-Length: 4097", 413),
        ("Content-Length: 99999999999999999999", 413),
        ("Content-Length: -1", 411),
        ("Content-Length: +5", 411),
        ("Content-Length: 1\r\nContent-Length: 2", 411),
        ("Transfer-Encoding: chunked", 411),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2", 411),
        ("X-Nothing: here", 411),
    ],
)
def test_bodies_of_no_or_no_good_length(client, headers, status):
    head = f"POST /api/enter HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n{headers}\r\n\r\n"
    reply = raw(client.port, head.encode())
    assert reply.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Connection: close" in reply, "what follows must not be taken for a request"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET /\r\n\r\n", None),
        (b"GET\r\n\r\n", 400),
        ("GET /image/٠/a/0 HTTP/1.1\r\n\r\n".encode(), 400),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70000 + b"\r\n\r\n", 431),
        (b"DELETE / HTTP/1.1\r\n\r\n", 501),
        (b"PUT /api/answer HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 501),
        (b"OPTIONS * HTTP/1.1\r\nConnection: close\r\n\r\n", 501),
    ],
)
def test_what_is_no_request(client, request_, status, capfd):
    reply = raw(client.port, request_)
    assert b"Traceback" not in reply
    assert b"ours" not in reply
    if status and reply:  # a reply is lost where the connection is closed upon what was still being sent
        assert re.match(rb"HTTP/1\.[01] (\d+)", reply)[1] == str(status).encode()
    assert client.enter(name="Ada")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


# ---- clients that are slow, or many


def test_slow_clients_are_cut_off_and_hinder_nobody(serve, monkeypatch):
    monkeypatch.setattr(web, "REQUEST_SECONDS", 0.5)
    server = serve()
    port = server.server_address[1]
    slow = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(40)]
    begun = time.monotonic()
    for i, sock in enumerate(slow):
        sock.sendall((b"", b"GET / HT", b"POST /api/enter HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n")[i % 3])
    client = Client(port)
    assert client.enter(name="Ada")[0] == 200
    ended = set()
    while len(ended) < len(slow):  # trickling does not help
        for sock in set(slow) - ended:
            try:
                sock.sendall(b"a")
                sock.setblocking(False)
                if sock.recv(1000) == b"":
                    ended.add(sock)
            except BlockingIOError:
                pass
            except OSError:
                ended.add(sock)
            sock.close() if sock in ended else sock.setblocking(True)
        assert time.monotonic() - begun < 30
    client.connection.close()
    eventually(lambda: not server._deadlines)


def test_too_many_connections_are_turned_away(serve, monkeypatch):
    monkeypatch.setattr(web, "MOST_CONNECTIONS", 5)
    server = serve()
    port = server.server_address[1]
    idle = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(5)]
    eventually(lambda: len(server._deadlines) == 5)
    client = Client(port)
    with pytest.raises((OSError, http.client.HTTPException)):
        client.enter(name="Ada")
    for sock in idle:
        sock.close()
    eventually(lambda: not server._deadlines)
    assert client.enter(name="Ada")[0] == 200
    client.connection.close()


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
