"""Small seeded bases and their coefficients for tests: real objects of the product, built in code."""

import torch

from lorweb_core.basis import Basis, LayerBasis
from lorweb_core.coefficients import encode_coefficients
from lorweb_core.settings import RouterSettings

SIZES = {
    "transformer_blocks.0.attn.to_q": (12, 12),
    "transformer_blocks.0.ff.net.0.proj": (12, 48),
    "transformer_blocks.0.ff.net.2": (48, 12),
    "single_transformer_blocks.0.proj_out": (60, 12),
}


def make_layer(
    in_features, out_features, *, basis_size=4, rank=2, key_dim=8, query_dim=18, seed=0, bias=False, project=True
):
    """Return one layer of seeded normal numbers, in the memory order that a loaded file has."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return LayerBasis(
        lora_down=normal(basis_size, rank, in_features),
        lora_up=normal(basis_size, rank, out_features).transpose(1, 2),
        keys=normal(basis_size, key_dim),
        query_projection=normal(key_dim, query_dim) if project else None,
        lora_bias=normal(basis_size, out_features) if bias else None,
    )


def make_basis(*, sizes=None, settings=None, **layer_options):
    """Return a basis over `sizes` (layer name → (in, out)); every layer has its own numbers."""
    layers = {
        name: make_layer(*size, seed=index, **layer_options)
        for index, (name, size) in enumerate((sizes or SIZES).items())
    }
    return Basis(layers=layers, settings=settings or RouterSettings(), basis_id="0123456789abcdef", name="synthetic")


def make_coefficients(seed=0, mixes=2, basis=None):
    """Return the coefficients of a basis (by default `make_basis()`) for seeded query embeddings."""
    query = torch.randn(mixes, 18, generator=torch.Generator().manual_seed(seed))
    return encode_coefficients(basis or make_basis(), query)


def change_layers(coefficients, change):
    """Return new coefficients with `change` applied to every layer's tensor."""
    return {**coefficients, "layers": {name: change(mix) for name, mix in coefficients["layers"].items()}}


def assert_same_coefficients(first, second):
    """Compare basis, layers, their order and every bit."""
    assert list(first["layers"]) == list(second["layers"]) and first["basis_id"] == second["basis_id"]
    for name, mix in first["layers"].items():
        assert torch.equal(mix, second["layers"][name]), name
