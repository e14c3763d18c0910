"""Export: what stock loaders see equals the mix, rank reduction is optimal and honest, nothing half-written."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lorweb_core.errors import CheckpointError, OutputError, SettingsError
from lorweb_core.export import balance_pair, export_mixed_lora, reduce_rank
from lorweb_core.mixing import layer_delta
from tests.basis_files import read_deltas
from tests.synthetic import make_basis


def mixes_of(basis, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(layer.basis_size, generator=generator) for name, layer in basis.layers.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_an_exported_file_holds_the_mix(tmp_path, dtype, tolerance):
    basis = make_basis()
    mixes = mixes_of(basis)
    path = tmp_path / "lora.safetensors"
    report = export_mixed_lora(path, basis, mixes, strength=-1.5, dtype=dtype)
    deltas = read_deltas(path)
    assert deltas.keys() == basis.layers.keys() == report.kept_energy.keys()
    for name, layer in basis.layers.items():
        expected = layer_delta(layer, mixes[name], strength=-1.5)
        torch.testing.assert_close(deltas[name], expected, atol=tolerance * float(expected.abs().max()), rtol=0)
    assert report.rank == 8 and set(report.kept_energy.values()) == {1.0}


def test_tiny_coefficients_survive_half_precision(tmp_path):
    basis = make_basis()
    mixes = {name: 1e-6 * mix for name, mix in mixes_of(basis).items()}
    export_mixed_lora(tmp_path / "lora.safetensors", basis, mixes, dtype=torch.float16)
    for name, delta in read_deltas(tmp_path / "lora.safetensors").items():
        expected = layer_delta(basis.layers[name], mixes[name])
        torch.testing.assert_close(delta, expected, atol=3e-3 * float(expected.abs().max()), rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.sampled_from([(6, 30), (30, 6), (20, 20)]),
    total=st.integers(1, 12),
    rank=st.integers(1, 12),
)
def test_rank_reduction_equals_the_svd_of_the_full_product(seed, sizes, total, rank):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(total, sizes[0], generator=generator)
    up = torch.randn(sizes[1], total, generator=generator)
    reduced = reduce_rank(down, up, rank=rank)
    left, values, right = torch.linalg.svd((up @ down).double(), full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close((reduced.up @ reduced.down).double(), best, atol=1e-3, rtol=1e-3)
    energy = float(values[:rank].square().sum() / values.square().sum())
    assert reduced.kept_energy == pytest.approx(energy, abs=1e-5)


def test_a_zero_mix_counts_as_kept():
    assert reduce_rank(torch.zeros(3, 8), torch.randn(9, 3), rank=1).kept_energy == 1.0


def test_balancing_keeps_the_product_and_equalises_the_norms():
    down, up = 1e-7 * torch.randn(4, 8), 1e3 * torch.randn(9, 4)
    down[2] = 0
    balanced_down, balanced_up = balance_pair(down, up)
    torch.testing.assert_close(balanced_up @ balanced_down, up @ down)
    used = [0, 1, 3]
    torch.testing.assert_close(balanced_down.norm(dim=1)[used], balanced_up.norm(dim=0)[used])


def test_a_smaller_rank_reports_what_it_keeps_and_the_header_states_it(tmp_path):
    basis = make_basis()
    report = export_mixed_lora(tmp_path / "lora.safetensors", basis, mixes_of(basis), strength=0.5, rank=2)
    assert report.rank == 2
    assert all(0 < kept < 1 for kept in report.kept_energy.values())
    assert "4 layers, rank 2, energy kept" in report.describe()
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        provenance = json.loads(file.metadata()["lorweb_mix"])
    assert provenance["basis_id"] == basis.basis_id and provenance["basis_name"] == "synthetic"
    assert provenance["strength"] == 0.5 and provenance["rank"] == 2


def test_a_rank_above_a_layers_width_keeps_that_width_and_the_whole_delta(tmp_path):
    basis = make_basis(sizes={"transformer_blocks.0.attn.to_q": (4, 6)}, rank=3)
    mixes = mixes_of(basis)
    report = export_mixed_lora(tmp_path / "lora.safetensors", basis, mixes, rank=10, dtype=torch.float32)
    assert report.rank == 4
    for name, delta in read_deltas(tmp_path / "lora.safetensors").items():
        expected = layer_delta(basis.layers[name], mixes[name])
        torch.testing.assert_close(delta, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


HUGE = make_basis()
for layer in HUGE.layers.values():
    layer.lora_up.mul_(1e15)
BASIS = make_basis()
FP32 = {"dtype": torch.float32}
OVERFLOW = r"overflows float32 at strength .*smaller strength"
#: Basis, factor on its coefficients, options, error, message.
REFUSED = {
    "biases": (make_basis(bias=True), 1, {}, CheckpointError, "4 layers .* per-adapter biases.*Use Apply Mixed LoRA"),
    "negative rank": (BASIS, 1, {"rank": -1}, SettingsError, "rank 0"),
    "half precision": (
        BASIS, 1, {"dtype": torch.float16, "strength": 1e12}, OutputError, "range of torch.float16.*bf16 or fp32"
    ),
    "float32": (BASIS, 1e9, FP32 | {"strength": 1e38}, OutputError, OVERFLOW),
    "negative strength": (BASIS, 1e9, FP32 | {"strength": -1e30}, OutputError, OVERFLOW),
    "bfloat16": (BASIS, 1e9, {"strength": 1e38}, OutputError, OVERFLOW),
    "smaller rank": (BASIS, 1e9, FP32 | {"strength": 1e38, "rank": 1}, OutputError, OVERFLOW),
    "smaller rank, negative strength": (BASIS, 1e9, {"strength": -1e30, "rank": 1}, OutputError, OVERFLOW),
    "delta beyond float32": (HUGE, 1, {"strength": 1e30, "rank": 1}, OutputError, OVERFLOW),
}  # fmt: skip


@pytest.mark.parametrize(("basis", "factor", "options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_lora_file_cannot_hold_is_refused_and_nothing_is_left(tmp_path, basis, factor, options, error, message):
    mixes = {name: factor * mix for name, mix in mixes_of(basis).items()}
    with pytest.raises(error, match=message):
        export_mixed_lora(tmp_path / "lora.safetensors", basis, mixes, **options)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    basis, layers = make_basis(), []
    path = tmp_path / "none" / "lora.safetensors"
    with pytest.raises(OutputError, match="cannot be written"):
        export_mixed_lora(path, basis, mixes_of(basis), rank=1, on_layer=lambda: layers.append(1))
    assert not layers and not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_the_old_file(tmp_path):
    basis, path = make_basis(), tmp_path / "lora.safetensors"
    path.write_text("old")

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_mixed_lora(path, basis, mixes_of(basis), on_layer=interrupt)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_stock_diffusers_loads_an_exported_file_and_gets_the_same_weights(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    sizes = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "transformer_blocks." in name
    }
    basis = make_basis(sizes=sizes)
    assert len(sizes) == 20
    mixes = {name: 0.1 * mix for name, mix in mixes_of(basis).items()}
    path = tmp_path / "lora.safetensors"
    export_mixed_lora(path, basis, mixes, dtype=torch.float32)
    inputs = {
        "hidden_states": torch.randn(1, 4, 64),
        "encoder_hidden_states": torch.randn(1, 3, 32),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([2.5]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
        "return_dict": False,
    }
    adapted = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in basis.layers.items():
            adapted.get_submodule(name).weight += layer_delta(layer, mixes[name])
        base, expected = model(**inputs)[0], adapted(**inputs)[0]
        model.load_lora_adapter(str(path), prefix="transformer")
        loaded = model(**inputs)[0]
    assert (expected - base).abs().max() > 0.1
    torch.testing.assert_close(loaded, expected, atol=1e-5, rtol=1e-4)
