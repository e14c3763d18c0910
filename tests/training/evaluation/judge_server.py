"""A real HTTP server that speaks the chat protocol of OpenAI-compatible endpoints and answers as a test wants."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

MODEL = "stub/judge-1"


@dataclass(frozen=True)
class Asked:
    """One request as the server understood it.

    Attributes:
        number: counted from 0 over the server's life.
        text: all words of the message, joined.
        images: decoded PNGs in their order, [H, W, 3].
        body: the whole JSON.
    """

    number: int
    text: str
    images: list[np.ndarray]
    body: dict

    @property
    def is_comparison(self) -> bool:
        return len(self.images) == 5


@dataclass(frozen=True)
class Reply:
    """What the server sends back: words of the model, or with `body` anything else, as it is."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    body: str | None = None


class JudgeServer:
    """A running server.

    Attributes:
        url: for --endpoint.
        asked: every request so far.
        behave: request → reply; may be changed while the server runs.
        models: body of the list of models; None gives a proper one.
    """

    models: str | None = None

    def __init__(self, behave: Callable[[Asked], Reply]) -> None:
        self.behave, self.asked, self._lock = behave, [], threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, body: dict) -> Asked:
        content = body["messages"][0]["content"]
        words = "\n".join(part["text"] for part in content if part["type"] == "text")
        images = [_decode(part["image_url"]["url"]) for part in content if part["type"] == "image_url"]
        with self._lock:
            self.asked.append(Asked(len(self.asked), words, images, body))
            return self.asked[-1]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(behave: Callable[[Asked], Reply]) -> Iterator[JudgeServer]:
    """Run a server for the length of a block."""
    server = JudgeServer(behave)
    try:
        yield server
    finally:
        server.stop()


def rating(accuracy: object, consistency: object) -> str:
    """A well-formed reply to a rating question."""
    metrics = {"accuracy": accuracy, "consistency": consistency}
    return "The colors turned. " + json.dumps({"metrics": metrics, "explanation": "as described"})


def comparison(better: object) -> str:
    """A well-formed reply to a comparison question."""
    return "Both turned. " + json.dumps({"better": better, "explanation": "as described"})


def well_formed(asked: Asked) -> Reply:
    """Rate by brightness of the result (darker is better); compare likewise: by the images, not their order."""
    if asked.is_comparison:
        first, second = (image.mean() for image in asked.images[3:])
        return Reply(comparison(1 if first <= second else 2))
    darkness = 1 - asked.images[3].mean() / 255
    return Reply(rating(1 + round(9 * darkness), 10 - round(9 * darkness)))


def _handler_of(judge: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": ""}
            self._send(200, judge.models or {"object": "list", "data": [model]})

        def do_POST(self) -> None:
            asked = judge.take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = judge.behave(asked)
            time.sleep(reply.delay_seconds)
            if reply.status != 200:
                self._send(reply.status, {"error": {"message": reply.text or "refused", "type": "stub"}}, reply.headers)
                return
            if reply.body is not None:
                self._send(200, reply.body)
                return
            message = {"role": "assistant", "content": reply.text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            self._send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]})

        def _send(self, status: int, body: dict | str, headers: dict[str, str] | None = None) -> None:
            is_page = isinstance(body, str) and body.startswith("<")
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            try:
                self.send_response(status)
                for name, value in {
                    **(headers or {}),
                    "Content-Type": "text/html" if is_page else "application/json",
                }.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has stopped waiting, as slow replies want it to

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _decode(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    if head != "data:image/png;base64":
        raise ValueError(f"not a PNG as a data URL: {head}")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
