"""Basis files: what is read and written, and how memory is used; errors are in `test_bad_basis_files`."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorweb_core.basis import LayerBasis
from lorweb_core.checkpoint import load_basis, save_basis
from lorweb_core.errors import CheckpointError, SettingsError
from lorweb_core.settings import SIGLIP_ENCODER_ID, RouterSettings
from lorweb_core.settings_sources import read_training_facts, trained_text_tokens
from tests.basis_files import reference_tensors, split_raw, write_raw, write_reference
from tests.synthetic import SIZES, make_basis, make_layer

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
FIRST = "transformer_blocks.0.attn.to_q"
SETTINGS = RouterSettings("tanh", 2, "sum", "ca'-ca", SIGLIP_ENCODER_ID, "abc123", "some/base")


def tensors_of(layer):
    return [layer.lora_down, layer.lora_up, layer.keys, layer.query_projection, layer.lora_bias]


def assert_equal_layers(first, second):
    assert list(first) == list(second)
    for name in first:
        for one, other in zip(tensors_of(first[name]), tensors_of(second[name]), strict=True):
            assert (one is None) == (other is None)
            assert one is None or (one.dtype == other.dtype and torch.equal(one, other)), name


@pytest.mark.parametrize("case", "ABCDEFGH")
def test_golden_tensors_arrive_in_our_orientation(case):
    basis = load_basis(GOLDEN / f"basis_{case}.safetensors")
    raw = load_file(GOLDEN / f"basis_{case}.safetensors")
    assert len(basis.layers) == 40 and len(raw) == 160
    for name, layer in basis.layers.items():
        assert torch.equal(layer.lora_down, raw[f"transformer.{name}.lora_A"].transpose(1, 2))
        assert torch.equal(layer.lora_up, raw[f"transformer.{name}.lora_B"].transpose(1, 2))
        assert torch.equal(layer.keys, raw[f"transformer.{name}.lora_keys"])
        assert torch.equal(layer.query_projection, raw[f"transformer.{name}.att_lora_to_q.weight"])
        assert layer.lora_bias is None


def test_layers_come_in_the_order_of_computation_and_their_stacked_matrices_are_views(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors")
    basis = load_basis(path)
    file_order = list(split_raw(path)[0])
    assert file_order[-1].startswith("transformer.transformer_blocks")  # which are computed first
    assert list(basis.layers) == list(SIZES)
    for layer in basis.layers.values():
        stacked_down, stacked_up = layer.lora_down.flatten(0, 1), layer.lora_up.transpose(1, 2).flatten(0, 1)
        assert stacked_down.data_ptr() == layer.lora_down.data_ptr()
        assert stacked_up.data_ptr() == layer.lora_up.data_ptr()


FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_dtype_is_kept_and_float8_becomes_bfloat16_without_loss(tmp_path, dtype):
    path = write_reference(tmp_path / "basis.safetensors", dtype=dtype)
    raw = load_file(path)
    layer = load_basis(path).layers[FIRST]
    kept = torch.bfloat16 if dtype.itemsize == 1 else dtype
    assert all(tensor.dtype == kept for tensor in tensors_of(layer) if tensor is not None)
    assert torch.equal(layer.lora_down, raw[f"transformer.{FIRST}.lora_A"].to(kept).transpose(1, 2))
    assert torch.equal(layer.lora_up, raw[f"transformer.{FIRST}.lora_B"].to(kept).transpose(1, 2))


def test_size_rank_bias_and_projection_may_differ_between_layers(tmp_path):
    names = list(SIZES)
    layers = {
        names[0]: make_layer(12, 12, basis_size=5, rank=3, query_dim=8),
        names[1]: make_layer(12, 48, basis_size=1, rank=1, query_dim=8, bias=True),
        names[2]: make_layer(48, 12, key_dim=8, project=False),
    }
    path = tmp_path / "basis.safetensors"
    save_basis(path, layers, RouterSettings(query_mode="caa'"))
    basis = load_basis(path)
    assert_equal_layers(basis.layers, layers)
    assert json.loads(basis.metadata["lorweb"])["basis_size"] is None


@pytest.mark.parametrize(
    ("metadata", "tokens"),
    [
        ({}, 512),  # the reference's own files
        ({"training_info": '{"step": 10000}'}, 512),
        ({"lorweb": '{"training": {"max_tokens": 256}}'}, 256),
        ({"lorweb": '{"training": {"step": 1}}'}, None),
        ({"lorweb": '{"training": {"max_tokens": true}}'}, None),
    ],
)
def test_length_of_prompts_in_training_is_read_from_the_file(metadata, tokens):
    assert trained_text_tokens(metadata) == tokens


@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"project": False, "key_dim": 18}, {"basis_size": 1, "rank": 1}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_save_and_load_are_bit_equal(tmp_path, options, dtype):
    original = make_basis(**options)
    layers = {
        name: LayerBasis(*(None if tensor is None else tensor.to(dtype) for tensor in tensors_of(layer)))
        for name, layer in original.layers.items()
    }
    path = tmp_path / "basis.safetensors"
    facts = {"training": {"step": 7, "data": "größer"}, "metadata": {"author": "me"}}
    save_basis(path, layers, SETTINGS, **facts)
    basis = load_basis(path)
    assert_equal_layers(basis.layers, layers)
    assert basis.settings == SETTINGS and basis.report == ()
    assert basis.settings_source == "the header of basis.safetensors"
    assert read_training_facts(basis.metadata) == facts["training"]
    assert (basis.metadata["author"], basis.metadata["format"]) == ("me", "pt")
    save_basis(tmp_path / "again.safetensors", basis.layers, SETTINGS, **facts)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_saved_file_has_the_reference_names_and_our_header(tmp_path):
    path = tmp_path / "basis.safetensors"
    save_basis(path, make_basis().layers, SETTINGS)
    assert load_file(path).keys() == reference_tensors().keys()
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["lorweb"]) == {
            "format_version": 1, "basis_size": 4, "rank": 2, "key_dim": 8, "heads": 2, "activation": "tanh",
            "reduction": "sum", "query_mode": "ca'-ca", "encoder": {"id": SIGLIP_ENCODER_ID, "revision": "abc123"},
            "base_model": "some/base", "training": {},
        }  # fmt: skip


def test_saving_casts_to_a_dtype(tmp_path):
    layers, path = make_basis().layers, tmp_path / "half.safetensors"
    save_basis(path, layers, RouterSettings(), dtype=torch.float16)
    assert torch.equal(load_basis(path).layers[FIRST].lora_down, layers[FIRST].lora_down.half())


def test_saving_refuses_what_could_not_be_loaded(tmp_path):
    path = tmp_path / "basis.safetensors"
    with pytest.raises(CheckpointError, match="no layer to save"):
        save_basis(path, {}, RouterSettings())
    with pytest.raises(SettingsError, match="does not divide the key width"):
        save_basis(path, make_basis().layers, RouterSettings(heads=3))
    layers = {"a": make_layer(4, 4, query_dim=9), "b": make_layer(4, 4, query_dim=12)}
    with pytest.raises(CheckpointError, match="1 of 2 another"):
        save_basis(path, layers, RouterSettings())
    assert list(tmp_path.iterdir()) == []


def test_the_basis_id_follows_header_keys_and_projections(tmp_path):
    def id_of(name, change=lambda tensors: None, metadata=None):
        tensors = reference_tensors()
        change(tensors)
        return load_basis(write_reference(tmp_path / name, tensors, metadata=metadata)).basis_id

    def change(suffix):
        return lambda tensors: tensors[f"transformer.{FIRST}.{suffix}"].view(-1)[0].add_(1)

    plain = id_of("a.safetensors")
    assert len(plain) == 16 and int(plain, 16)
    assert id_of("renamed.safetensors") == plain
    others = [id_of("b.safetensors", change("lora_keys")), id_of("c.safetensors", change("att_lora_to_q.weight"))]
    others.append(id_of("d.safetensors", metadata={"format": "pt", "step": "2"}))
    assert len({plain, *others}) == 4


def test_the_file_may_be_cut_replaced_or_deleted_while_the_basis_is_in_use(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors")
    before = reference_tensors()
    basis = load_basis(path)
    with path.open("r+b") as file:
        file.truncate(10)
    path.write_bytes(b"\xff" * 100_000)
    path.unlink()
    gc.collect()
    for name, layer in basis.layers.items():
        assert torch.equal(layer.lora_down, before[f"transformer.{name}.lora_A"].transpose(1, 2))
        assert torch.equal(layer.lora_up, before[f"transformer.{name}.lora_B"].transpose(1, 2))


def test_progress_counts_layers_and_may_stop_the_load(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors")
    steps = []
    load_basis(str(path), on_progress=lambda *step: steps.append(step))
    assert steps == [(done, 4) for done in (1, 2, 3, 4)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_basis(path, on_progress=stop)


def test_fields_that_a_later_version_appends_are_ignored(tmp_path):
    path = tmp_path / "basis.safetensors"
    save_basis(path, make_basis().layers, SETTINGS)
    header, data = split_raw(path)
    settings = json.loads(header["__metadata__"]["lorweb"]) | {"later": [1, 2]}
    header["__metadata__"]["lorweb"] = json.dumps(settings)
    assert load_basis(write_raw(path, header, data)).settings == SETTINGS


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' memory counters")
def test_loading_a_full_size_basis_takes_little_more_memory_than_the_file(tmp_path):
    path = tmp_path / "full.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, ROOT / "benchmarks" / "synthetic_basis.py", path], check=True, env=environment)
    measure = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "basis_loading.py", path, "--json"],
        check=True, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    result = json.loads(measure.stdout)
    assert result["layers"] == 494
    assert result["peak_anonymous_bytes"] <= 1.2 * path.stat().st_size
