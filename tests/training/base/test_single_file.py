"""One-file bases: read without loss, scales honoured, or refused by their header."""

import json

import pytest
import torch
from safetensors.torch import save_file

from training.base.single_file import check_header, from_bfl, read_single_file
from training.base.source import FULL_SIZE_CONFIG, ModelSource, find_parts_here, find_source, read_transformer_config
from training.base.transformer import load_transformer
from training.config.schema import BaseModelConfig

#: Name in the file → the diffusers parts that it stacks, written down independently of `bfl_names`.
FUSED = {
    "double_blocks.{}.img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "double_blocks.{}.txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "double_blocks.{}.img_attn.proj": ["attn.to_out.0"],
    "double_blocks.{}.txt_attn.proj": ["attn.to_add_out"],
    "double_blocks.{}.img_mlp.0": ["ff.net.0.proj"],
    "double_blocks.{}.img_mlp.2": ["ff.net.2"],
    "double_blocks.{}.txt_mlp.0": ["ff_context.net.0.proj"],
    "double_blocks.{}.txt_mlp.2": ["ff_context.net.2"],
    "double_blocks.{}.img_mod.lin": ["norm1.linear"],
    "double_blocks.{}.txt_mod.lin": ["norm1_context.linear"],
    "single_blocks.{}.linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "single_blocks.{}.linear2": ["proj_out"],
    "single_blocks.{}.modulation.lin": ["norm.linear"],
}
NORMS = {
    "double_blocks.{}.img_attn.norm.query_norm.scale": "transformer_blocks.{}.attn.norm_q.weight",
    "double_blocks.{}.img_attn.norm.key_norm.scale": "transformer_blocks.{}.attn.norm_k.weight",
    "double_blocks.{}.txt_attn.norm.query_norm.scale": "transformer_blocks.{}.attn.norm_added_q.weight",
    "double_blocks.{}.txt_attn.norm.key_norm.scale": "transformer_blocks.{}.attn.norm_added_k.weight",
    "single_blocks.{}.norm.query_norm.scale": "single_transformer_blocks.{}.attn.norm_q.weight",
    "single_blocks.{}.norm.key_norm.scale": "single_transformer_blocks.{}.attn.norm_k.weight",
}
OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


def _as_bfl(state, blocks=2):
    """The diffusers state of the golden transformer under BFL names."""
    result = {}
    for kind in ("weight", "bias"):
        result |= {f"{name}.{kind}": state[f"{part}.{kind}"] for name, part in OUTSIDE.items()}
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        result[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
        for index in range(blocks):
            for name, parts in FUSED.items():
                prefix = "transformer_blocks" if name.startswith("double") else "single_transformer_blocks"
                pieces = [state[f"{prefix}.{index}.{part}.{kind}"] for part in parts]
                result[f"{name.format(index)}.{kind}"] = torch.cat(pieces)
    for name, part in NORMS.items():
        result |= {name.format(index): state[part.format(index)] for index in range(blocks)}
    return result


@pytest.fixture
def state(golden_transformer):
    return {name: tensor.clone() for name, tensor in golden_transformer.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_file_is_read_exactly_with_and_without_prefix(state, prefix, tmp_path):
    save_file({prefix + name: tensor for name, tensor in _as_bfl(state).items()}, tmp_path / "model.safetensors")
    read = read_single_file(tmp_path / "model.safetensors", dtype=torch.float32)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_plain_float8_is_upcast(state, tmp_path):
    weights = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in _as_bfl(state).items()}
    save_file(weights, tmp_path / "model.safetensors")
    read = read_single_file(tmp_path / "model.safetensors", dtype=torch.bfloat16)
    for name, tensor in state.items():
        assert torch.equal(read[name], tensor.to(torch.float8_e4m3fn).to(torch.bfloat16))


def _scaled_file(state, path, suffix, *, marker=False, quant_format=None):
    stored, expected = {}, {}
    for name, tensor in _as_bfl(state).items():
        if not name.endswith(".weight") or "blocks" not in name:
            stored[name] = expected[name] = tensor
            continue
        layer, scale = name.removesuffix(".weight"), tensor.abs().max() / 448
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[layer + suffix] = scale.reshape(1) if suffix == ".scale_weight" else scale
        stored[layer + ".scale_input"] = torch.ones(1)
        if quant_format is not None:
            text = json.dumps({"format": quant_format}).encode()
            stored[layer + ".comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
        expected[name] = stored[name].float() * scale
    if marker:
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(stored, path)
    return from_bfl(expected, "expected")


@pytest.mark.parametrize(
    ("suffix", "marker", "quant_format"),
    [(".scale_weight", True, None), (".weight_scale", False, None), (".weight_scale", False, "float8_e4m3fn")],
)
def test_scales_of_float8_files_are_honoured(state, tmp_path, suffix, marker, quant_format):
    path = tmp_path / "scaled.safetensors"
    expected = _scaled_file(state, path, suffix, marker=marker, quant_format=quant_format)
    read = read_single_file(path, dtype=torch.float32)
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(read[name], expected[name])
        torch.testing.assert_close(read[name], tensor, atol=float(tensor.abs().max()) / 16 + 1e-6, rtol=0)


MLP = "double_blocks.0.img_mlp.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights | {f"{MLP}.weight": torch.zeros(10, dtype=torch.uint8)}, "packed tensors of type U8"),
        (lambda weights: weights | {f"{MLP}.weight_scale": torch.ones(128)}, "per row or block"),
        (lambda weights: {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, "no FLUX transformer"),
        (lambda weights: {k: v for k, v in weights.items() if not k.startswith("guidance_in")}, "schnell"),
    ],
)
def test_other_weights_are_refused_by_the_header(state, tmp_path, change, message):
    save_file(change(_as_bfl(state)), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"(?s)(?=.*{message}).*bf16, fp16, fp8 or scaled fp8"):
        check_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (20).to_bytes(8, "little") + b"no json here, none!!"])
def test_damaged_and_cut_files_and_gguf_are_refused_by_the_header(state, tmp_path, content):
    path, gguf = tmp_path / "model.safetensors", tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="bf16, fp16, fp8 or scaled fp8"):
        check_header(path)
    save_file(_as_bfl(state), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"is not a whole \.safetensors file.*bf16, fp16, fp8 or scaled fp8"):
        check_header(path)
    gguf.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match=r"GGUF.*bf16, fp16, fp8 or scaled fp8"):
        check_header(gguf)


def test_unknown_quantization_formats_and_tensors_are_refused(state, tmp_path):
    path = tmp_path / "x.safetensors"
    _scaled_file(state, path, ".weight_scale", quant_format="nvfp4")
    with pytest.raises(ValueError, match="nvfp4"):
        read_single_file(path, dtype=torch.float32)
    save_file(_as_bfl(state) | {"double_blocks.0.lora.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"double_blocks\.0\.lora\.weight"):
        read_single_file(path, dtype=torch.float32)


def test_smaller_model_is_refused_before_training(state, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(_as_bfl(state), path)
    with pytest.raises(ValueError, match="missing, unexpected or of another shape"):
        load_transformer(BaseModelConfig(model=str(path)), ModelSource(path, tmp_path), torch.device("cpu"))


@pytest.mark.parametrize("content", [b"[1]", b"{}", b"no json"])
def test_unreadable_quantization_format_is_refused(state, tmp_path, content):
    marker = {f"{MLP}.comfy_quant": torch.tensor(list(content), dtype=torch.uint8)}
    save_file(_as_bfl(state) | marker, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="something unreadable"):
        read_single_file(tmp_path / "x.safetensors", dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.safetensors", "models/diffusion_models"),
        ("nowhere", "owner/name"),
        ("nowhere/tiny-parts/model", "tiny-parts nowhere/tiny-parts` writes it"),
        ("tiny-parts/model", "tiny-parts tiny-parts` writes it"),
        ("owner/no--such--name", r"HFValidationError.*hf auth login"),
    ],
)
def test_names_that_are_not_found_say_where_to_look_or_what_to_do(name, message):
    with pytest.raises(ValueError, match=message):
        find_source(name, None)


def test_misspelt_path_in_a_folder_of_this_machine_is_not_taken_for_a_repository(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="There is no diffusers folder"):
        find_parts_here("models/kontxt", None)


def test_parts_in_the_local_cache_are_distinguished_from_those_to_download(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "somebody/some-kontext"
    assert find_parts_here(name, None).repositories == (name,)
    cached = tmp_path / "models--somebody--some-kontext"
    snapshot = cached / "snapshots" / ("0" * 40)
    (snapshot / "vae").mkdir(parents=True)
    (snapshot / "vae" / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    parts = find_parts_here(name, None)
    assert (parts.transformer, parts.components, parts.repositories) == (None, snapshot, (name,))
    assert read_transformer_config(parts) == FULL_SIZE_CONFIG


@pytest.mark.slow
def test_full_width_file_equals_the_conversion_of_diffusers(tmp_path):
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    torch.manual_seed(0)
    model = FluxTransformer2DModel(**{**FULL_SIZE_CONFIG, "num_layers": 1, "num_single_layers": 1}).bfloat16()
    stored = _as_bfl(model.state_dict(), blocks=1)
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(stored))
    ours = from_bfl(stored, "file")
    assert ours.keys() == theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
