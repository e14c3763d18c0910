"""A real HTTP server that speaks the chat protocol of OpenAI-compatible endpoints and answers as a test wants."""

import base64
import io
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

MODEL = "stub/judge-1"


@dataclass(frozen=True)
class Asked:
    """One request: its number from 0, all words joined, the decoded images [H, W, 3] in order, the whole JSON."""

    number: int
    text: str
    images: list
    body: dict

    @property
    def is_comparison(self):
        return len(self.images) == 5


@dataclass(frozen=True)
class Reply:
    """What the server sends back: words of the model, or with `body` anything else, as it is."""

    text: str = ""
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay_seconds: float = 0.0
    body: str | None = None


class JudgeServer:
    """A running server at `url`; `asked` has every request so far.

    A test may change `behave` (request → reply) and `models` (body of the list of models; None: a proper one).
    """

    models = None

    def __init__(self, behave):
        self.behave, self.asked, self._lock = behave, [], threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, body):
        content = body["messages"][0]["content"]
        words = "\n".join(part["text"] for part in content if part["type"] == "text")
        images = [_decode(part["image_url"]["url"]) for part in content if part["type"] == "image_url"]
        with self._lock:
            self.asked.append(Asked(len(self.asked), words, images, body))
            return self.asked[-1]


@contextmanager
def serving(behave):
    """Run a server for the length of a block."""
    server = JudgeServer(behave)
    try:
        yield server
    finally:
        server._server.shutdown()
        server._server.server_close()


def rating(accuracy, consistency):
    """A well-formed reply to a rating question."""
    metrics = {"accuracy": accuracy, "consistency": consistency}
    return "The colors turned. " + json.dumps({"metrics": metrics, "explanation": "as described"})


def comparison(better):
    """A well-formed reply to a comparison question."""
    return "Both turned. " + json.dumps({"better": better, "explanation": "as described"})


def well_formed(asked):
    """Rate by brightness of the result (darker is better); compare likewise: by the images, not their order."""
    if asked.is_comparison:
        first, second = (image.mean() for image in asked.images[3:])
        return Reply(comparison(1 if first <= second else 2))
    darkness = 1 - asked.images[3].mean() / 255
    return Reply(rating(1 + round(9 * darkness), 10 - round(9 * darkness)))


def _handler_of(judge):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": ""}
            self._send(200, judge.models or {"object": "list", "data": [model]})

        def do_POST(self):
            asked = judge.take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = judge.behave(asked)
            time.sleep(reply.delay_seconds)
            message = {"role": "assistant", "content": reply.text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            body = {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
            if reply.status != 200:
                body = {"error": {"message": reply.text or "refused", "type": "stub"}}
            self._send(reply.status, body if reply.body is None else reply.body, reply.headers)

        def _send(self, status, body, headers=None):
            is_page = isinstance(body, str) and body.startswith("<")
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            sizes = {"Content-Type": "text/html" if is_page else "application/json", "Content-Length": str(len(data))}
            try:
                self.send_response(status)
                for name, value in {**(headers or {}), **sizes}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has stopped waiting, as slow replies want it to

        def log_message(self, format, *args):
            pass

    return Handler


def _decode(url):
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64", "a PNG as a data URL"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
