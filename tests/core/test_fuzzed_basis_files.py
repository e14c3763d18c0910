"""Damaged and invented basis files: each loads whole, or is refused with a message; nothing else ever happens."""

import json
import random
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorweb_core.checkpoint import load_basis
from lorweb_core.errors import LoRWeBError
from tests.basis_files import write_raw, write_reference
from tests.synthetic import SIZES

FIRST = next(iter(SIZES))


def load_or_refuse(path):
    """Load a file that may be damaged: it loads whole, or a LoRWeBError says why not; anything else fails the test."""
    try:
        basis = load_basis(path)
    except LoRWeBError as error:
        assert error.expected and error.got and error.remedy
        return
    for layer in basis.layers.values():
        assert bool(torch.isfinite(layer.lora_down).all()) and bool(torch.isfinite(layer.lora_up).all())


def damage_at_random(content, generator):
    """Return the file's bytes with a few of them flipped, mostly in the header, or cut, doubled or swapped."""
    damaged = bytearray(content)
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(generator.randint(1, 8)):
        end = header_end if generator.random() < 0.8 else len(damaged)
        position = generator.randrange(min(end, len(damaged)))
        kind = generator.random()
        if kind < 0.6:
            damaged[position] ^= 1 << generator.randrange(8)
        elif kind < 0.8:
            damaged[position] = generator.choice(b'0123456789[]{},:"-.eEF')
        elif kind < 0.9:
            del damaged[position : position + generator.randint(1, 40)]
        else:
            damaged[position:position] = damaged[position : position + generator.randint(1, 40)]
        if len(damaged) < 9:
            break
    return bytes(damaged)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_bytes_load_or_are_refused(tmp_path, count):
    sizes = {FIRST: (3, 3), "single_transformer_blocks.0.proj_out": (4, 3)}
    path = write_reference(tmp_path / "good.safetensors", sizes=sizes, basis_size=2, key_dim=2, query_dim=3)
    content = path.read_bytes()
    bad = tmp_path / "bad.safetensors"
    generator = random.Random(0)
    for _ in range(count):
        bad.write_bytes(damage_at_random(content, generator))
        load_or_refuse(bad)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "F8_E4M3", "I8", "BOOL", "X"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=4) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON_VALUES,
    }
)
FIELDS = st.sampled_from(["format_version", "heads", "activation", "reduction", "query_mode", "encoder", "rank"])
NAMES = st.sampled_from([f"transformer.{FIRST}.{part}" for part in ("lora_A", "lora_B", "lora_keys")]) | st.text()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(NAMES, ENTRY | JSON_VALUES, max_size=5) | JSON_VALUES, data=st.binary(max_size=64))
def test_any_header_loads_or_is_refused(tmp_path, header, data):
    load_or_refuse(write_raw(tmp_path / "bad.safetensors", header, data))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(FIELDS, JSON_VALUES | st.sampled_from([1, "softmax", "mean", "caa'", {"id": "x"}])))
def test_any_settings_in_the_header_load_or_are_refused(tmp_path, fields):
    load_or_refuse(write_reference(tmp_path / "bad.safetensors", metadata={"lorweb": json.dumps(fields)}))
