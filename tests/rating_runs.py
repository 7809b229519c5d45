"""What the tests of rating share: run folders without a model, the server as a process, a client."""

import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.batch.run import Lines, claim, image_path, sha256
from pipelines.prompts import PromptRecord

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = [
    PromptRecord("a red cube", "colours"),
    PromptRecord("two blue ducks", "counting"),
    PromptRecord('a "green" <b>tree</b> & more', "text"),
    PromptRecord("ein weißer Hase, シロ", "text"),
    PromptRecord("a yellow train behind one black hat", "positional"),
]


def make_run(folder, prompts=PROMPTS, images=3, size=8, seed=0):
    """A complete run of flat images whose colours say run, prompt and image; its PNGs say "secret" in their text."""
    content = "".join(record.to_json() + "\n" for record in prompts)
    settings = {
        "prompts": {"sha256": hashlib.sha256(content.encode()).hexdigest()},
        "images_per_prompt": images,
        "seed": seed,
    }
    claim(folder, settings, {}, content)
    manifest = Lines(folder / "manifest-0.jsonl")
    info = PngInfo()
    info.add_itxt("cascade", '{"model": "secret"}')
    for i in range(len(prompts)):
        for k in range(images):
            path = image_path(folder, i, k)
            Image.fromarray(np.full((size, size, 3), (seed, i, k), np.uint8)).save(path, pnginfo=info)
            manifest.append({"prompt": i, "image": k, "sha256": sha256(path)})
    manifest.close()
    return folder


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class ServerProcess:
    """The command, in a process of its own."""

    def __init__(self, folder, *arguments, port=None, env=None):
        self.port = port or free_port()
        self._command = [
            sys.executable,
            "-c",
            "import tyro; from pipelines.evaluation.rating.command import rate; tyro.cli(rate)",
        ]
        self._command += [str(folder / "a"), str(folder / "b"), "-o", str(folder / "answers.sqlite")]
        self._command += ["--port", str(self.port), *arguments]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            # Where the tests run in the background, they and their children would ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.printed = []
        for line in self.process.stdout:
            self.printed.append(line.strip())
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError(f"the server did not start: {self.printed}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def interrupt(self):
        """Ctrl-C; what it printed then."""
        self.process.send_signal(signal.SIGINT)
        printed, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        return printed


class Client:
    """A rater's browser as far as HTTP goes. Raises OSError or HTTPException where the connection breaks."""

    def __init__(self, port, host="127.0.0.1"):
        self.host, self.port, self.cookie = f"{host}:{port}", port, None
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def request(self, method, path, body=None, headers=None):
        """Status, headers and body."""
        sent = {"Host": self.host} | ({"Cookie": self.cookie} if self.cookie else {})
        if method == "POST":
            sent |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        sent |= headers or {}
        sent = {name: value for name, value in sent.items() if value is not None}
        try:
            self.connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if isinstance(body, dict | list):
                body = json.dumps(body).encode()
            if body is not None and "Transfer-Encoding" not in sent:
                sent.setdefault("Content-Length", str(len(body)))
            for name, value in sent.items():
                self.connection.putheader(name, value)
            self.connection.endheaders(body)
            response = self.connection.getresponse()
            return response.status, response.headers, response.read()
        except BaseException:
            self.connection.close()
            raise

    def get(self, path):
        status, _, body = self.request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def enter(self, **who):
        status, headers, body = self.request("POST", "/api/enter", who)
        if status == 200:
            self.cookie = headers["Set-Cookie"].split(";")[0]
        return status, json.loads(body)

    def answer(self, screen, question, choice, submission, seconds=1.5):
        sent = {"screen": screen, "question": question, "choice": choice, "seconds": seconds, "submission": submission}
        status, _, body = self.request("POST", "/api/answer", sent)
        return status, json.loads(body)


def eventually(condition, seconds=30):
    """Wait until something is true, without counting on how long that takes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
