"""Layer names of FLUX.1 in diffusers' spelling: their order, and the part of the model each layer belongs to.

A layer name is a module path such as `transformer_blocks.3.ff_context.net.0.proj`: block kind, block index, module.
The order is that of the computation: double blocks by index, inside a block by the lists below, then single blocks.
Unknown names are kept: they sort last and belong to the part `other`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Block kinds in computing order, with their diffusers prefix.
BLOCK_PREFIXES = {"transformer_blocks": "double", "single_transformer_blocks": "single"}

#: Modules of one block in computing order, with the part each belongs to. A single block's `proj_out` takes
#: attention and MLP together; four fifths of its input are MLP, so it counts as MLP.
MODULE_PARTS = {
    "double": {
        "norm1.linear": "modulation",
        "norm1_context.linear": "modulation",
        "attn.to_q": "attention",
        "attn.to_k": "attention",
        "attn.to_v": "attention",
        "attn.add_q_proj": "attention",
        "attn.add_k_proj": "attention",
        "attn.add_v_proj": "attention",
        "attn.to_out.0": "attention",
        "attn.to_add_out": "attention",
        "ff.net.0.proj": "mlp",
        "ff.net.2": "mlp",
        "ff_context.net.0.proj": "mlp",
        "ff_context.net.2": "mlp",
    },
    "single": {
        "norm.linear": "modulation",
        "attn.to_q": "attention",
        "attn.to_k": "attention",
        "attn.to_v": "attention",
        "proj_mlp": "mlp",
        "proj_out": "mlp",
    },
}

#: Modules of a double block that act on the text stream; single blocks have one joint stream.
CONTEXT_MODULES = frozenset(
    {
        "norm1_context.linear",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    }
)

PARTS = ("modulation", "attention", "mlp", "other")


@dataclass(frozen=True)
class LayerName:
    """A layer name taken apart.

    block_kind is `double`, `single`, or `other` for a name outside of the blocks, with index -1 and the whole name as
    module; part is one of `PARTS`; is_context: the layer acts on the text stream of a double block.
    """

    block_kind: str
    block_index: int
    module: str
    part: str
    is_context: bool


def parse_layer_name(layer_name: str) -> LayerName:
    """Return the name's block kind, index, module and part; never fails."""
    prefix, _, rest = layer_name.partition(".")
    index, _, module = rest.partition(".")
    kind = BLOCK_PREFIXES.get(prefix, "other")
    if kind == "other" or not module or not (index.isascii() and index.isdecimal() and len(index) < 10):
        return LayerName("other", -1, layer_name, "other", is_context=False)
    part = MODULE_PARTS[kind].get(module, "other")
    is_context = kind == "double" and module in CONTEXT_MODULES
    return LayerName(kind, int(index), module, part, is_context=is_context)


def sort_layer_names(layer_names: Iterable[str]) -> list[str]:
    """Return the names in computing order; unknown modules last in their block, unknown names last of all."""
    return sorted(layer_names, key=_sort_key)


def _sort_key(layer_name: str) -> tuple[int, int, int, str]:
    parsed = parse_layer_name(layer_name)
    modules = list(MODULE_PARTS.get(parsed.block_kind, ()))
    kinds = [*BLOCK_PREFIXES.values(), "other"]
    position = modules.index(parsed.module) if parsed.module in modules else len(modules)
    return kinds.index(parsed.block_kind), parsed.block_index, position, layer_name
