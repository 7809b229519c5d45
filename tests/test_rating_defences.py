"""The rating server: what it refuses of other sites, of strangers and of broken clients, and that it stands load."""

import http.client
import json
import re
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rating_runs import Client, eventually

from pipelines.evaluation.rating import web
from pipelines.evaluation.rating.access import Access
from pipelines.evaluation.rating.answers import read_answers


@pytest.fixture
def invited(serve):
    return serve(["rater-1", "rater-2"])


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
