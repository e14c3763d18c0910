"""Running servers, one for each host and test session, with tiny model files and the example images."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch

from tests.host import graphs, models
from tests.host.browser import chromium_path, open_browser
from tests.host.server import prepare_base, running_server
from training.demo.comfyui import write_comfyui_folder

GGUF_PACK = Path.home() / "comfy" / "ComfyUI-GGUF"
#: Chosen in workflows, replaced or not loaded in tests; empty, so that the frontend finds them.
UNREAD_FILES = (
    "text_encoders/clip_l.safetensors",
    "text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors",
    "clip_vision/clip-vit-large-patch14.safetensors",
    "loras/lorweb_00001_.safetensors",
)


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Return a function host → its running server, started when first asked for."""
    running = {}
    with contextlib.ExitStack() as stack:

        def get(host):
            if host not in running:
                base = tmp_path_factory.mktemp("comfyui-" + "-".join(map(str, host.version)))
                fill_base(base, host)
                packs = [GGUF_PACK] if GGUF_PACK.is_dir() else []
                running[host] = stack.enter_context(running_server(host, base, extra_packs=packs))
            return running[host]

        get.running = running
        yield get


@pytest.fixture(scope="module", autouse=True)
def forgotten_results(servers):
    """Let servers forget what other files made them run: a node whose result is kept shows no text again.

    Whatever a file ran, nothing of it outlives its model.
    """
    for server in servers.running.values():
        server.forget()
    yield
    for server in servers.running.values():
        leaks = [line for line in server.log.splitlines() if "memory leak with model" in line]
        assert not leaks, leaks


@pytest.fixture
def server(servers, host):
    """The server of each host."""
    return servers(host)


@pytest.fixture(scope="session")
def newest_server(servers, newest_host):
    """The newest host's server."""
    return servers(newest_host)


@pytest.fixture
def edit():
    """The first workflow, ready to run, saving its latent."""
    return graphs.with_latent_saved(graphs.load_runnable(graphs.EDIT))


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium."""
    pytest.importorskip("playwright", reason="no playwright: pip install playwright")
    executable = chromium_path()
    if executable is None:
        pytest.skip("no Chromium: set CHROMIUM_PATH")
    with open_browser(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def frontend_server(request, servers):
    """The server that the parameter names, such as newest-vue, with the frontend's renderer that it names."""
    host_name, renderer = request.param.split("-")
    server = servers(request.getfixturevalue(f"{host_name}_host"))
    server.post("/api/settings/Comfy.VueNodes.Enabled", renderer == "vue")
    return server


def fill_base(base, host):
    """Write the files that the shipped workflows name."""
    prepare_base(base)
    for image in graphs.IMAGES.iterdir():
        shutil.copy(image, base / "input")
    folder, width = base / "models", models.width_for(host)
    plain = torch.float32 if width == models.TINY_WIDTH else torch.bfloat16
    models.write_flux(folder / "diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors", width, dtype=plain)
    models.write_basis(folder / "lorweb/lorweb.safetensors", width)
    models.write_vae(folder / "vae/ae.safetensors")
    models.write_clip_folder(folder / "clip_vision" / graphs.TINY_ENCODER)
    write_comfyui_folder(folder)
    for name in UNREAD_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
