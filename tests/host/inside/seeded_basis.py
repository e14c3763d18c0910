"""A seeded basis over every block Linear of a Flux of the host, as the product's own objects."""

import re

import torch
from comfyui_lorweb.lorweb_core.basis import Basis, LayerBasis
from comfyui_lorweb.lorweb_core.coefficients import encode_coefficients
from comfyui_lorweb.lorweb_core.settings import RouterSettings
from comfyui_lorweb.nodes import host
from comfyui_lorweb.nodes.sockets import LoadedBasis

#: The 20 Linears of the format; the host's table lists newer aliases of the same weights as well.
_FORMAT_NAMES = re.compile(
    r"transformer_blocks\.\d+\.(norm1(_context)?\.linear|attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2))|single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv])"
)


def layer_sizes(patcher):
    """Return layer name → (in, out) for every Linear of the host model that the file format knows."""
    sizes = {}
    for parameter, entry in host.map_weight_targets(patcher).items():
        name = parameter.removesuffix(".weight")
        if not parameter.endswith(".weight") or not _FORMAT_NAMES.fullmatch(name):
            continue
        weight_key, part = (entry, None) if isinstance(entry, str) else (entry[0], entry[1])
        module = patcher.get_model_object(weight_key.removesuffix(".weight"))
        sizes[name] = (module.in_features, part[2] if part else module.out_features)
    return sizes


def make_loaded_basis(patcher, *, basis_size=3, rank=2, size=0.5, seed=0, bias=False):
    """Return a LoadedBasis whose delta is about `size` of the base weights' norm."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    layers = {}
    for name, (wide_in, wide_out) in layer_sizes(patcher).items():
        layers[name] = LayerBasis(
            lora_down=normal(basis_size, rank, wide_in) * wide_in**-0.5,
            lora_up=(normal(basis_size, rank, wide_out) * size).transpose(1, 2),
            keys=normal(basis_size, 4),
            query_projection=normal(4, 6),
            lora_bias=normal(basis_size, wide_out) * 0.1 if bias else None,
        )
    return LoadedBasis(Basis(layers=layers, settings=RouterSettings(), basis_id=f"seed{seed:012}", name="seeded"))


def make_coefficients(loaded, *, mixes=1, seed=1):
    """Return coefficients for seeded queries."""
    query = torch.randn(mixes, 6, generator=torch.Generator().manual_seed(seed))
    return encode_coefficients(loaded.basis, query)
