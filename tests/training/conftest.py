"""What several trainer tests share: the golden base, and a seeded tiny Kontext with images, built in code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorweb_core.checkpoint import load_basis
from tests.training.data.pair_images import index_folder
from training.adapter.trainable import BasisShape, TrainableKontext
from training.config.reading import read_config
from training.demo.tiny_kontext import write_image_pairs, write_tiny_encoder, write_tiny_kontext
from training.run.distributed import Processes
from training.run.signals import StopRequest
from training.train import assemble

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def golden_transformer():
    """The tiny FLUX transformer of the golden data, float32, train mode off."""
    from diffusers import FluxTransformer2DModel

    config = {k: v for k, v in json.loads((GOLDEN / "config.json").read_text()).items() if not k.startswith("_")}
    model = FluxTransformer2DModel(**config)
    model.load_state_dict(load_file(GOLDEN / "base_model.safetensors"), strict=True)
    return model.eval()


@pytest.fixture
def machine_error(golden_transformer):
    """How far the stock base alone is from its golden output here: about 0 on the machine the data were made on.

    Other processors round exp() of the timestep frequencies differently; times 1000 that is up to 1e-4 in the output.
    """
    golden = load_file(GOLDEN / "io_A.safetensors")
    inputs = {name.removeprefix("in."): tensor for name, tensor in golden.items() if name.startswith("in.")}
    inputs.pop("external_query")
    with torch.no_grad():
        output = golden_transformer(**inputs, return_dict=False)[0]
    return float((output - golden["out.base"]).abs().max())


@pytest.fixture
def golden_trainable(golden_transformer):
    """A function: name of a golden basis → the golden base with that basis attached."""

    def build(name, *, coefficient_gain=1.0):
        basis = load_basis(GOLDEN / f"{name}.safetensors")
        first = next(iter(basis.layers.values()))
        shape = BasisShape(first.basis_size, first.rank, first.key_dim, first.query_dim, coefficient_gain)
        model = TrainableKontext(golden_transformer, shape, basis.settings)
        model.load_basis(basis)
        return model

    return build


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory):
    """Folder with `model/`, `model-with-text/`, `encoder/`, `images/`, `pairs.jsonl`; read-only by agreement."""
    folder = tmp_path_factory.mktemp("tiny-parts")
    write_tiny_kontext(folder / "model", has_text=False)
    write_tiny_kontext(folder / "model-with-text")
    write_tiny_encoder(folder / "encoder")
    index_folder(write_image_pairs(folder / "images"), folder / "pairs.jsonl")
    return folder


def tiny_words(parts, runs, *more):
    """All overrides of tiny.yaml for runs with these parts in a folder `runs`."""
    return [
        f"base.model={parts / 'model'}",
        f"encoder.model={parts / 'encoder'}",
        f"data.index={parts / 'pairs.jsonl'}",
        f"run.folder={runs}",
        "text.caption_source=none",
        "validation.every=0",
        *more,
    ]


@pytest.fixture
def tiny_overrides(tiny_parts, tmp_path):
    """A function: further `name=value`s → all overrides of tiny.yaml for this test; runs lie in tmp_path."""
    return lambda *more: tiny_words(tiny_parts, tmp_path / "runs", *more)


@pytest.fixture
def tiny_config(tiny_overrides):
    """A function: `name=value`s → the configuration tiny.yaml with them."""
    return lambda *overrides: read_config("tiny.yaml", tiny_overrides(*overrides))


@pytest.fixture
def assembled():
    """A function: configuration → (loop, state), on one process, with nobody asking to stop."""
    return lambda config, **options: assemble(config, Processes("cpu"), StopRequest(), **options)
