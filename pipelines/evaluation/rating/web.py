"""A small web server that can face strangers: http.server with limits.

Every request must name a host that is known here (a page that rebinds its own name to this address does not), every
POST must come from this server's own page and be a small JSON object, and none may take long: connections are counted,
and those that outstay a deadline are cut, whatever they trickle.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

MOST_CONNECTIONS = 1000
REQUEST_SECONDS, RESPONSE_SECONDS = 20.0, 120.0  # to send a request, to take its answer
MOST_BODY = 4096  # bytes

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is not served; the message goes to whoever sent it."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class LimitedServer(ThreadingHTTPServer):
    """A thread per connection, of at most MOST_CONNECTIONS. Raises ValueError where the port is taken.

    It answers to no name until `know` has told it its own.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, host: str, port: int, handler: type[LimitedHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.know()
        self._deadlines: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            raise ValueError(f"cannot listen on {host}, port {port} ({error.strerror}); try another --port") from None

    def know(self, *origins: str) -> None:
        """Go by these, each a scheme and a host as in a browser's address."""
        self.origins = frozenset(origin.lower() for origin in origins)
        self.hosts = frozenset(urlsplit(origin).netloc for origin in self.origins)

    def allow(self, connection: socket.socket, seconds: float) -> None:
        """Cut the connection so many seconds from now, unless told otherwise until then."""
        with self._lock:
            self._deadlines[connection] = monotonic() + seconds

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._deadlines) >= MOST_CONNECTIONS
        if full:
            self.shutdown_request(request)
            return
        self.allow(request, REQUEST_SECONDS)
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called at least twice a second by `serve_forever`: wake the threads whose connections are late; they end."""
        now = monotonic()
        with self._lock:
            late = [connection for connection, deadline in self._deadlines.items() if deadline < now]
        for connection in late:
            with suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line, and none for a browser that has gone away."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"cascade: error while serving: {error!r}", file=sys.stderr)


class LimitedHandler(BaseHTTPRequestHandler):
    """Checks each request, then calls `get` or `post`, which send a reply or raise Refused."""

    server: LimitedServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "cascade", ""
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together

    def get(self, path: str) -> None:
        raise NotImplementedError

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def handle_one_request(self) -> None:
        self.server.allow(self.connection, REQUEST_SECONDS)
        super().handle_one_request()

    def do_GET(self) -> None:
        self._serve(lambda: self.get(self.path))

    def do_POST(self) -> None:
        self._serve(lambda: self.post(self.path, self._object()))

    def _serve(self, route: Callable[[], None]) -> None:
        try:
            self._check_host()
            route()
        except Refused as refused:
            self.reply_json({"error": str(refused)}, refused.status)
        except ConnectionError:
            raise
        except Exception as error:
            print(f"cascade: error while serving {self.path!r}: {type(error).__name__}: {error}", file=sys.stderr)
            self.reply_json({"error": "the server could not do this; try again"}, HTTPStatus.SERVICE_UNAVAILABLE)

    def _check_host(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            self.close_connection = True
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server does not go by that name")

    def check_own_page(self) -> None:
        """Refuse what a page of another site has a browser ask for."""
        if self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "asked for by another site")

    def _object(self) -> Mapping[str, Any]:
        body = self._body()
        self.check_own_page()
        if self.headers.get("Origin", "").lower() not in self.server.origins:
            raise Refused(HTTPStatus.FORBIDDEN, "sent from another site")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "expected a JSON object")
        return found

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length", [])
        self.close_connection = True  # unless the body is read, what follows is no request
        if "Transfer-Encoding" in self.headers or len(lengths) != 1 or not re.fullmatch("[0-9]{1,20}", lengths[0]):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        length = int(lengths[0])
        if length > MOST_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MOST_BODY} bytes")
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionResetError("the request ended within its body")
        self.close_connection = self.headers.get("Connection", "").lower() == "close"
        return body

    def reply_json(
        self, body: Any, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
    ) -> None:
        self.reply(json.dumps(body).encode(), "application/json", status, headers)

    def reply(
        self,
        body: bytes,
        content_type: str,
        status: HTTPStatus = HTTPStatus.OK,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.server.allow(self.connection, RESPONSE_SECONDS)
        self.send_response(status)
        closing = {"Connection": "close"} if self.close_connection else {}
        described = {"Content-Type": content_type, "Content-Length": str(len(body))}
        for name, value in {**SECURITY_HEADERS, **described, **closing, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: requests that are no HTTP, unknown methods."""
        self.close_connection = True
        self.request_version = self.protocol_version  # a status line, too, for what looked like HTTP/0.9
        status = HTTPStatus(code)
        self.reply_json({"error": status.phrase}, status)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who asked for what would be a list of the raters' every step."""
