"""The rating page's server: what a rater may see, and what they answer.

    GET  /  /style.css  /rate.js  /icon.svg     the page
    POST /api/enter     {"name"} or {"credential"} -> a cookie, which all that follows needs
    POST /api/leave     takes it back
    GET  /api/session   who the rater is, and how many questions of each screen are answered
    GET  /api/screen/N  the N-th screen of this rater: its caption, its images, what was answered
    POST /api/answer    {"screen", "question", "choice", "seconds", "submission"}
    GET  /image/N/a/K   the N-th screen's K-th image on side a

Nothing that is sent says which model a set is of: a URL holds only a place on a screen of that rater, and of a PNG only
the pixels leave.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pipelines.evaluation.rating.access import Access, check_name
from pipelines.evaluation.rating.answers import QUESTIONS, Answers
from pipelines.evaluation.rating.study import Screen, Study
from pipelines.evaluation.rating.web import LimitedHandler, LimitedServer, Refused

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/rate.js": ("rate.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
COOKIE_SECONDS = 90 * 24 * 3600
LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]


class RatingServer(LimitedServer):
    """Serves one study. url: what raters' addresses start with; the host and port that are listened on if None."""

    def __init__(
        self, study: Study, answers: Answers, access: Access, host: str, port: int, url: str | None = None
    ) -> None:
        super().__init__(host, port, RatingHandler)
        self.study, self.answers, self.access = study, answers, access
        self.files = {path: ((PAGE / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
        self.screens = lru_cache(maxsize=256)(study.screens)
        port = self.server_address[1]
        names = LOOPBACK if is_loopback(host) else [_in_url(host)]
        self.url = (url or f"http://{_in_url(host)}:{port}").rstrip("/")
        self.know(self.url, *(f"http://{name}:{port}" for name in names))
        # Browsers keep the cookies of all ports of a host together.
        self.cookie = f"rater-{port}"

    def link(self, rater: str) -> str:
        """A rater's own address. What follows the # stays in the browser: no log and no other site gets to see it."""
        return f"{self.url}/#{self.access.credential(rater)}"


class RatingHandler(LimitedHandler):
    server: RatingServer

    def get(self, path: str) -> None:
        if path in self.server.files:
            self.reply(*self.server.files[path])
            return
        self.check_own_page()
        if path == "/api/session":
            self._session()
        elif found := re.fullmatch(r"/api/screen/([0-9]{1,6})", path):
            self._screen(int(found[1]))
        elif found := re.fullmatch(r"/image/([0-9]{1,6})/(a|b)/([0-9])", path):
            self._image(int(found[1]), found[2], int(found[3]))
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        if path == "/api/enter":
            self._enter(body)
        elif path == "/api/leave":
            self.reply_json({}, headers=self._cookie("", 0))
        elif path == "/api/answer":
            self._answer(body)
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _enter(self, body: Mapping[str, Any]) -> None:
        access = self.server.access
        if access.invited is None and body.keys() == {"name"}:
            try:
                rater = check_name(body["name"])
            except ValueError as error:
                raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        else:
            rater = access.rater(body.get("credential"))
            if rater is None:
                raise Refused(HTTPStatus.FORBIDDEN, "this link is not valid; ask for a new one")
        self.reply_json({"rater": rater}, headers=self._cookie(access.credential(rater), COOKIE_SECONDS))

    def _cookie(self, value: str, seconds: int) -> dict[str, str]:
        cookie = f"{self.server.cookie}={value}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Strict"
        return {"Set-Cookie": cookie + ("; Secure" if self.server.url.startswith("https:") else "")}

    def _rater(self) -> str:
        rater = self._known()
        if rater is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, "who rates?")
        return rater

    def _known(self) -> str | None:
        for part in "; ".join(self.headers.get_all("Cookie", [])).split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.server.cookie and (rater := self.server.access.rater(value)) is not None:
                return rater
        return None

    def _number(self, rater: str, number: Any) -> Screen:
        screens = self.server.screens(rater)
        if type(number) is not int or not 0 <= number < len(screens):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such screen")
        return screens[number]

    def _session(self) -> None:
        rater, answered = self._known(), []
        if rater is not None:
            there = self.server.answers.of(rater)
            answered = [
                sum((screen.prompt, screen.control, question) in there for question in QUESTIONS)
                for screen in self.server.screens(rater)
            ]
        enter_by = "name" if self.server.access.invited is None else "link"
        self.reply_json({"rater": rater, "enter_by": enter_by, "answered": answered})

    def _screen(self, number: int) -> None:
        rater = self._rater()
        screen = self._number(rater, number)
        there = self.server.answers.of(rater)
        answers = {
            question: screen.choice(preference)
            for question in QUESTIONS
            if (preference := there.get((screen.prompt, screen.control, question)))
        }
        study = self.server.study
        images = {side: [f"image/{number}/{side}/{k}" for k in range(study.images)] for side in "ab"}
        caption = study.prompts[screen.prompt].prompt
        self.reply_json({"caption": caption, "images": images, "answers": answers})

    def _image(self, number: int, side: str, place: int) -> None:
        screen = self._number(self._rater(), number)
        if place >= self.server.study.images:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such image")
        path = self.server.study.path(screen.source(side), place)
        self.reply(pixels_only(path.read_bytes()), "image/png")

    def _answer(self, body: Mapping[str, Any]) -> None:
        rater = self._rater()
        question, choice, seconds, submission = (
            body.get(name) for name in ("question", "choice", "seconds", "submission")
        )
        screen = self._number(rater, body.get("screen"))
        if question not in QUESTIONS or choice not in ("a", "neither", "b"):
            raise Refused(HTTPStatus.BAD_REQUEST, "expected a question and a choice of the page")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 1e7:
            raise Refused(HTTPStatus.BAD_REQUEST, "expected how many seconds it took")
        if not isinstance(submission, str) or not re.fullmatch(r"[A-Za-z0-9_-]{8,64}", submission):
            raise Refused(HTTPStatus.BAD_REQUEST, "expected a submission of 8 to 64 letters and digits")
        try:
            self.server.answers.add(
                rater=rater,
                prompt=screen.prompt,
                control=screen.control,
                question=question,
                preference=screen.preference(choice),
                first_was=screen.first_was,
                seconds=float(seconds),
                submission=submission,
            )
        except ValueError as error:
            raise Refused(HTTPStatus.CONFLICT, str(error)) from None
        self.reply_json({"kept": submission})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def pixels_only(png: bytes) -> bytes:
    """A PNG without what it says about itself (prompt, seed, model): its critical chunks, and transparency.

    A chunk is length, type, data and checksum (RFC 2083, section 3.2); critical types begin with a capital letter.
    Raises ValueError for what is no PNG.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("expected a PNG")
    kept, at = [png[:8]], 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4])
        kind = png[at + 4 : at + 8]
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(png[at:end])
        at = end
    return b"".join(kept)
