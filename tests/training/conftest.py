"""What several trainer tests share: the golden base, and a seeded tiny Kontext built in code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorweb_core.checkpoint import load_basis
from training.trainable import BasisShape, TrainableKontext

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

    def build(name, **options):
        basis = load_basis(GOLDEN / f"{name}.safetensors")
        first = next(iter(basis.layers.values()))
        gain = options.pop("coefficient_gain", 1.0)
        shape = BasisShape(first.basis_size, first.rank, first.key_dim, first.query_dim, gain)
        model = TrainableKontext(golden_transformer, shape, basis.settings, **options)
        model.load_basis(basis)
        return model

    return build
