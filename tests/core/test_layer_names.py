"""Layer names: order of computation, and the part of the model each belongs to."""

import random

import pytest

from benchmarks.synthetic_basis import layer_sizes
from lorweb_core.layer_names import PARTS, parse_layer_name, sort_layer_names

FULL_MODEL = [name for name, _, _ in layer_sizes()]


def test_names_sort_into_the_order_of_computation():
    shuffled = random.Random(0).sample(FULL_MODEL, len(FULL_MODEL))
    ordered = sort_layer_names(shuffled)
    blocks = [name.rpartition(".attn.to_q")[0] for name in ordered if name.endswith("attn.to_q")]
    assert blocks == [f"transformer_blocks.{i}" for i in range(19)] + [
        f"single_transformer_blocks.{i}" for i in range(38)
    ]
    assert ordered[:3] == [
        f"transformer_blocks.0.{module}" for module in ("norm1.linear", "norm1_context.linear", "attn.to_q")
    ]
    assert ordered[-1] == "single_transformer_blocks.37.proj_out"
    assert sort_layer_names(ordered[::-1]) == ordered


def test_every_adapted_layer_of_the_full_model_is_known():
    parsed = [parse_layer_name(name) for name in FULL_MODEL]
    assert len(parsed) == 494
    counts = {part: sum(name.part == part for name in parsed) for part in PARTS}
    assert counts == {"modulation": 38 + 38, "attention": 19 * 8 + 38 * 3, "mlp": 19 * 4 + 38 * 2, "other": 0}
    assert sum(name.is_context for name in parsed) == 19 * 7


def test_a_name_comes_apart_into_block_and_module():
    name = parse_layer_name("transformer_blocks.12.ff_context.net.0.proj")
    assert (name.block_kind, name.block_index, name.module) == ("double", 12, "ff_context.net.0.proj")
    assert name.part == "mlp" and name.is_context
    single = parse_layer_name("single_transformer_blocks.3.attn.to_q")
    assert (single.block_kind, single.block_index, single.part, single.is_context) == ("single", 3, "attention", False)


@pytest.mark.parametrize(
    "name", ["", ".", "x_embedder", "transformer_blocks", "transformer_blocks.0", "transformer_blocks.x.attn.to_q",
             "transformer_blocks.².attn.to_q", "transformer_blocks.-1.attn.to_q", "transformer_blocks.99999999999.a"]
)  # fmt: skip
def test_unknown_names_are_kept_and_sort_last(name):
    parsed = parse_layer_name(name)
    assert (parsed.block_kind, parsed.module, parsed.part) == ("other", name, "other")
    assert sort_layer_names([name, *FULL_MODEL[:5]])[-1] == name


def test_an_unknown_module_sorts_last_in_its_block():
    names = ["transformer_blocks.1.norm1.linear", "transformer_blocks.0.new.module", "transformer_blocks.0.ff.net.2"]
    assert sort_layer_names(names) == [names[2], names[1], names[0]]
    assert parse_layer_name(names[1]).part == "other"
