"""A real ComfyUI on a temporary base directory, and a client for its HTTP interface.

The pack is linked into `custom_nodes`, together with the test-only pack beside this file. Whatever a test does, the
server's process group is stopped at the end of the block that started it.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

from tests.host.hosts import PACK

PACK_FOLDER = "comfyui-lorweb"
PACK_FOR_TESTS = Path(__file__).parent / "pack_for_tests"
START_SECONDS = 180
#: What no message of ours may hold; the host itself writes colors and bars.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202e]")
#: No first-run dialog, and text at any zoom, so that screenshots can be read.
FRONTEND_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}


@dataclass
class Outcome:
    """What became of one prompt.

    Attributes:
        status: `success`, `error`, `interrupted` or, when the server refused the graph, `refused`.
        outputs: node id → what the node showed or saved.
        error: exception message of the node that failed, or the server's refusal.
        error_type: Python's name of the exception, with its module.
        traceback: where it was raised, a line for each frame.
        node_type: class of the node that failed.
        cached: ids of the nodes that did not run again.
    """

    status: str
    outputs: dict = field(default_factory=dict)
    error: str = ""
    error_type: str = ""
    traceback: tuple = ()
    node_type: str = ""
    cached: frozenset = frozenset()

    def text(self, *node_ids):
        """Return what these nodes showed; without any, what all showed."""
        outputs = [self.outputs[node_id] for node_id in node_ids or self.outputs]
        return "\n".join(line for output in outputs for line in output.get("text", ()))


class Server:
    """A running ComfyUI."""

    def __init__(self, host, base, port, log):
        self.host = host
        self.base = base
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._client_id = uuid.uuid4().hex

    @property
    def log(self):
        """Everything that the server has printed so far."""
        return self._log.read_text(errors="replace")

    def get(self, path):
        """Return the parsed JSON answer of a GET."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path):
        """Return the raw answer of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path, body):
        """Return (HTTP status, parsed JSON or None) of a POST."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            status, text = refusal.code, refusal.read()
        return status, json.loads(text) if text.strip() else None

    def submit(self, graph):
        """Queue an API graph; return its prompt id, or an Outcome when the server refuses it."""
        status, answer = self.post("/prompt", {"prompt": graph, "client_id": self._client_id})
        if status != 200:
            return Outcome("refused", error=json.dumps(answer))
        return answer["prompt_id"]

    def run(self, graph, *, timeout_seconds=400):
        """Queue an API graph and return its Outcome when it is through."""
        prompt_id = self.submit(graph)
        return prompt_id if isinstance(prompt_id, Outcome) else self.wait(prompt_id, timeout_seconds=timeout_seconds)

    def succeed(self, graph, *, timeout_seconds=400):
        """Run a graph that must succeed; return its Outcome."""
        return self.check(self.run(graph, timeout_seconds=timeout_seconds))

    def check(self, outcome):
        """Return an Outcome if it is a success."""
        assert outcome.status == "success", (outcome, self.log[-4000:])
        return outcome

    def sample(self, graph):
        """Run a graph and return the latent that its node `latent` saves."""
        return self.latent(self.succeed(graph))

    def latent(self, outcome):
        """Return the latent that the node `latent` saved."""
        return load_file(self.saved(self.check(outcome).outputs["latent"]["latents"][0]))["latent_tensor"]

    def images(self, outcome):
        """Return the images that the only node with images saved or showed."""
        (shown,) = [output["images"] for output in outcome.outputs.values() if "images" in output]
        return [Image.open(self.saved(image)).convert("RGB") for image in shown]

    def refuse(self, graph, node_type, *words):
        """Run a graph that must fail at a node with a message of ours, in one line, that has these words."""
        outcome = self.run(graph)
        assert (outcome.status, outcome.node_type) == ("error", node_type), outcome
        assert ".lorweb_core." in outcome.error_type, outcome
        assert not CONTROLS.search(outcome.error), outcome.error
        missing = [word for word in words if word not in outcome.error]
        assert not missing, (missing, outcome.error)
        assert self.is_alive()

    def wait(self, prompt_id, *, timeout_seconds=400):
        """Return the Outcome of a queued prompt when it is through."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return _read_outcome(history[prompt_id])
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt_id} still runs after {timeout_seconds} s:\n{self.log[-3000:]}")

    def wait_until_sampling(self, prompt_id, *, timeout_seconds=120):
        """Return when the sampler of a queued prompt has begun to count its steps."""
        seen, deadline = len(self.log), time.monotonic() + timeout_seconds
        while "it/s]" not in self.log[seen:] and "s/it]" not in self.log[seen:]:
            assert time.monotonic() < deadline, self.log[-2000:]
            assert prompt_id not in self.get(f"/history/{prompt_id}"), "ended before it was interrupted"
            time.sleep(0.1)

    def interrupt(self):
        """Ask the server to stop the running prompt."""
        return self.post("/interrupt", {})

    def forget(self):
        """Have the server drop its models and kept results, as before the first prompt."""
        for _ in range(2):  # its worker misses the request while it is busy with the prompt before
            self.post("/free", {"free_memory": True})
            time.sleep(0.7)

    def is_alive(self):
        """Return whether the server still answers."""
        return "system" in self.get("/system_stats")

    def saved(self, entry):
        """Return the path of a file that a node's output names."""
        return self.base / entry["type"] / entry["subfolder"] / entry["filename"]

    def newest(self, prefix):
        """Return the last file that was saved under a filename_prefix."""
        return sorted((self.base / "output").glob(f"{prefix}_*.safetensors"))[-1]


@contextlib.contextmanager
def running_server(host, base, *, extra_packs=()):
    """Start a ComfyUI with the pack on `base`, yield a Server, and end it.

    Args:
        host: which ComfyUI.
        base: folder for models, input, output, user; made if needed.
        extra_packs: further custom node folders to link.
    """
    prepare_base(base, extra_packs)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = base / "server.log"
    process = _start(host, base, ["--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"], log)
    try:
        server = Server(host, base, port, log)
        deadline, is_ready = time.monotonic() + START_SECONDS, False
        while not is_ready:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"ComfyUI did not start:\n{server.log[-4000:]}")
            time.sleep(0.2)
            with contextlib.suppress(OSError):
                is_ready = server.is_alive()
        for name, value in FRONTEND_SETTINGS.items():
            server.post(f"/api/settings/{urllib.parse.quote(name)}", value)
        yield server
    finally:
        _end(process)


def run_quick_test(host, base):
    """Run the host's own `--quick-test-for-ci` with the pack; return (exit status, log)."""
    prepare_base(base)
    log = base / "quick.log"
    process = _start(host, base, ["--quick-test-for-ci"], log)
    try:
        return process.wait(START_SECONDS), log.read_text(errors="replace")
    finally:
        _end(process)


def prepare_base(base, extra_packs=()):
    """Make the host's folders and link the packs."""
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    packs = {PACK_FOLDER: PACK, **{path.name: path for path in (PACK_FOR_TESTS, *extra_packs)}}
    for name, target in packs.items():
        link = base / "custom_nodes" / name
        if not link.exists():
            link.symlink_to(target, target_is_directory=True)


def _start(host, base, arguments, log):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    database = f"sqlite:///{base}/user/comfyui.db"
    command = [host.python, "main.py", "--cpu", "--base-directory", base, "--database-url", database, *arguments]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=host.path, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _end(process):
    for stop, patience_seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 20)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
            return


def _read_outcome(entry):
    messages = dict(entry["status"]["messages"])
    failure = messages.get("execution_error", {})
    status = "interrupted" if "execution_interrupted" in messages else entry["status"]["status_str"]
    return Outcome(
        status=status,
        outputs=entry["outputs"],
        error=failure.get("exception_message", "").strip(),
        error_type=failure.get("exception_type", ""),
        traceback=tuple(failure.get("traceback", ())),
        node_type=failure.get("node_type", ""),
        cached=frozenset(messages.get("execution_cached", {}).get("nodes", ())),
    )
