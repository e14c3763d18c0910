"""Laws of Apply inside the host's own model, sampler and memory management."""

from dataclasses import replace

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.sd
import torch
from comfyui_lorweb.lorweb_core.basis import Basis, LayerBasis
from comfyui_lorweb.lorweb_core.errors import ModelError, ShapeError
from comfyui_lorweb.lorweb_core.mixing import mix_layer
from comfyui_lorweb.lorweb_core.settings import RouterSettings
from comfyui_lorweb.nodes.apply import ApplyMixedLoRA
from comfyui_lorweb.nodes.sockets import LoadedBasis
from refusals import expect
from seeded_basis import make_coefficients, make_loaded_basis
from tiny_flux import TINY, build_flux, sample_once


def apply(model, loaded, coefficients, strength=1.0, mode="forward"):
    return ApplyMixedLoRA().apply(model, loaded, coefficients, strength, mode)[0]


def assert_same(first, second, tolerance=3e-6):
    """Compare relative to the size of the latents, as float32 sums in another order differ."""
    assert (first - second).abs().max() <= tolerance * first.abs().max(), (first - second).abs().max()


def check_both_modes_agree_and_change_the_picture():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    coefficients = make_coefficients(loaded)
    base = sample_once(model)
    weights = sample_once(apply(model, loaded, coefficients, mode="weights"))
    forward = sample_once(apply(model, loaded, coefficients, mode="forward"))
    assert (weights - base).abs().max() > 0.1
    assert_same(weights, forward)


def check_biases_act_in_both_modes():
    model = build_flux(TINY)
    loaded, plain = make_loaded_basis(model, bias=True), make_loaded_basis(model)
    coefficients = make_coefficients(loaded)
    weights = sample_once(apply(model, loaded, coefficients, -0.7, "weights"))
    forward = sample_once(apply(model, loaded, coefficients, -0.7, "forward"))
    assert_same(weights, forward)
    assert (forward - sample_once(apply(model, plain, make_coefficients(plain), -0.7, "forward"))).abs().max() > 0.01


def check_strength_zero_is_bit_identical_to_no_node():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    base = sample_once(model)
    for mode in ("weights", "forward"):
        assert torch.equal(sample_once(apply(model, loaded, make_coefficients(loaded), 0.0, mode)), base)


def check_the_incoming_model_is_left_bit_identical():
    model = build_flux(TINY)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    base = sample_once(model)
    loaded = make_loaded_basis(model, bias=True)
    for mode in ("weights", "forward", "weights"):
        sample_once(apply(model, loaded, make_coefficients(loaded), 1.0, mode))
    assert torch.equal(sample_once(model), base)
    comfy.model_management.unload_all_models()
    after = model.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def check_each_sample_of_a_batch_gets_its_own_mix():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    both = make_coefficients(loaded, mixes=2)
    together = sample_once(apply(model, loaded, both), batch=2)
    for index in range(2):
        one = {**both, "layers": {name: mix[index : index + 1] for name, mix in both["layers"].items()}}
        alone = sample_once(apply(model, loaded, one, mode="forward"), batch=2)
        assert_same(together[index], alone[index])
    assert (together[0] - sample_once(apply(model, loaded, one, mode="forward"), batch=2)[0]).abs().max() > 1e-3


def check_per_sample_mixes_survive_classifier_free_guidance():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    both = make_coefficients(loaded, mixes=2)
    together = sample_once(apply(model, loaded, both), batch=2, cfg=3.0)
    one = {**both, "layers": {name: mix[:1] for name, mix in both["layers"].items()}}
    assert_same(together[0], sample_once(apply(model, loaded, one, mode="forward"), batch=2, cfg=3.0)[0], 1e-5)


def check_the_adapters_are_held_once_and_read_again_when_needed():
    model = build_flux(TINY)
    whole, reads = make_loaded_basis(model), []
    loaded = LoadedBasis(whole.basis, lambda: (reads.append(1), whole.basis)[1])
    coefficients = make_coefficients(loaded)
    expected = [sample_once(apply(model, whole, coefficients, mode=mode)) for mode in ("weights", "forward")]
    size = sum(tensor.nbytes for tensor in loaded)
    forward = [sample_once(apply(model, loaded, coefficients, mode="forward")) for _ in range(2)]
    assert all(layer.lora_down.is_meta and layer.lora_up.is_meta for layer in loaded.basis.layers.values())
    assert sum(tensor.nbytes for tensor in loaded) == size and not reads, (
        "the host's cache counts the tensors in a list"
    )
    weights = sample_once(apply(model, loaded, coefficients, mode="weights"))
    assert len(reads) == 1 and torch.equal(weights, expected[0])
    assert all(torch.equal(latents, expected[1]) for latents in forward)


def check_a_copy_for_another_gpu_works_in_mode_weights_and_is_refused_in_mode_forward():
    model = build_flux(TINY)
    if not hasattr(model, "deepclone_multigpu"):
        return  # an older host
    model.cached_patcher_init = (build_flux, (TINY,))
    loaded = make_loaded_basis(model)
    coefficients = make_coefficients(loaded)
    weights = apply(model, loaded, coefficients, mode="weights")
    copy = weights.deepclone_multigpu()
    assert copy.model is not weights.model
    assert torch.equal(sample_once(copy), sample_once(weights))
    words = ["one GPU", "mode weights", "MultiGPU"]
    expect(ModelError, words, apply(model, loaded, coefficients, mode="forward").deepclone_multigpu)
    model.set_additional_models("multigpu", [model.deepclone_multigpu()])
    expect(ModelError, words, sample_once, apply(model, loaded, coefficients, mode="forward"))


def check_any_other_number_of_latents_than_mixes_is_refused():
    """Also a multiple: rows picked out of a larger batch look like a whole one and would get others' mixes."""
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    for mixes, batch in ((2, 1), (2, 3), (2, 4), (4, 2), (6, 3)):
        patched = apply(model, loaded, make_coefficients(loaded, mixes=mixes))
        words = [f"{mixes} mixes", f"has {batch}", f"latent batch of {mixes}"]
        expect(ShapeError, words, lambda patched=patched, batch=batch: sample_once(patched, batch=batch, cfg=3.0))
    stacked = apply(
        apply(model, loaded, make_coefficients(loaded, mixes=2)), loaded, make_coefficients(loaded, mixes=3)
    )
    expect(ShapeError, ["mixes, one per analogy"], lambda: sample_once(stacked, batch=6, cfg=3.0))
    assert sample_once(model, batch=1, cfg=3.0).isfinite().all(), "the incoming model checks nothing"


def check_stacking_adds_up_in_any_order_and_mode():
    model = build_flux(TINY)
    first, second = make_loaded_basis(model, seed=0), make_loaded_basis(model, seed=5)
    c_first, c_second = make_coefficients(first), make_coefficients(second, seed=2)
    results = []
    for modes in (("weights", "weights"), ("weights", "forward"), ("forward", "weights"), ("forward", "forward")):
        once = apply(model, first, c_first, 0.8, modes[0])
        results.append(sample_once(apply(once, second, c_second, -0.5, modes[1])))
    swapped = apply(apply(model, second, c_second, -0.5, "forward"), first, c_first, 0.8, "forward")
    results.append(sample_once(swapped))
    for result in results[1:]:
        assert_same(results[0], result, 6e-6)


def check_the_same_basis_stacks_with_itself():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    coefficients = make_coefficients(loaded)
    half_twice = apply(apply(model, loaded, coefficients, 0.5, "forward"), loaded, coefficients, 0.5, "forward")
    assert_same(sample_once(half_twice), sample_once(apply(model, loaded, coefficients, 1.0, "forward")), 6e-6)
    assert len(half_twice.get_additional_models_with_key("lorweb")) == 1


def check_a_stock_lora_before_or_after_gives_the_same():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    coefficients = make_coefficients(loaded)
    other = make_loaded_basis(model, seed=9)
    mixes = make_coefficients(other)["layers"]
    lora = {}
    for name, layer in other.basis.layers.items():
        mixed = mix_layer(layer, mixes[name][0])
        lora[f"transformer.{name}.lora_A.weight"] = mixed.down.contiguous()
        lora[f"transformer.{name}.lora_B.weight"] = mixed.up.contiguous()

    def with_lora(patcher):
        return comfy.sd.load_lora_for_models(patcher, None, dict(lora), 0.6, 0.0)[0]

    for mode in ("weights", "forward"):
        before = sample_once(apply(with_lora(model), loaded, coefficients, 1.0, mode))
        after = sample_once(with_lora(apply(model, loaded, coefficients, 1.0, mode)))
        assert_same(before, after, 6e-6)
        assert (before - sample_once(apply(model, loaded, coefficients, 1.0, mode))).abs().max() > 0.01


def check_layers_outside_of_the_blocks_act_as_the_stock_loader_has_them():
    model = build_flux(TINY)
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for name, wide_in, wide_out in (
        ("norm_out.linear", 128, 256),
        ("proj_out", 128, 64),
        ("context_embedder", 64, 128),
    ):
        shapes = ((3, 2, wide_in), (3, wide_out, 2), (3, 4), (4, 6))
        down, up, keys, projection = (torch.randn(*shape, generator=generator) for shape in shapes)
        layers[name] = LayerBasis(down * wide_in**-0.5, up * 0.5, keys, projection)
    loaded = LoadedBasis(Basis(layers=layers, settings=RouterSettings(), basis_id="outside", name="outside"))
    coefficients = make_coefficients(loaded)
    lora = {}
    for name, layer in layers.items():
        mixed = mix_layer(layer, coefficients["layers"][name][0])
        lora |= {f"transformer.{name}.lora_A.weight": mixed.down, f"transformer.{name}.lora_B.weight": mixed.up}
    stock = sample_once(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0])
    assert (stock - sample_once(model)).abs().max() > 0.1
    for mode in ("weights", "forward"):
        assert_same(sample_once(apply(model, loaded, coefficients, 1.0, mode)), stock, 6e-6)


def check_a_new_mix_reloads_nothing_in_mode_forward():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    first = apply(model, loaded, make_coefficients(loaded, seed=1), mode="forward")
    sample_once(first)
    second = apply(model, loaded, make_coefficients(loaded, seed=2), mode="forward")
    banks = [patcher.get_additional_models_with_key("lorweb")[0] for patcher in (first, second)]
    assert banks[0].is_clone(banks[1]) and len(loaded.banks) == 1
    moves = []
    for module in (model.model, banks[0].model):
        original = module.to
        module.to = lambda *a, _original=original, **k: (moves.append(a), _original(*a, **k))[1]
    weights = {name: tensor.data_ptr() for name, tensor in model.model.state_dict().items()}
    sample_once(second)
    assert {name: tensor.data_ptr() for name, tensor in model.model.state_dict().items()} == weights
    assert not moves, moves
    assert any(bank.model is banks[0].model for bank in (entry.model for entry in loaded_models()))


def loaded_models():
    return comfy.model_management.current_loaded_models


def check_the_bank_is_counted_by_the_host_while_it_is_used():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    comfy.model_management.unload_all_models()
    patched = apply(model, loaded, make_coefficients(loaded), mode="forward")
    sample_once(patched)
    bank = patched.get_additional_models_with_key("lorweb")[0]
    assert bank.model_size() > 0
    assert any(entry.model.model is bank.model for entry in loaded_models())


def check_coefficients_of_other_router_settings_are_reported():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    coefficients = make_coefficients(loaded)
    assert "other settings" not in ApplyMixedLoRA().apply(model, loaded, coefficients, 1.0, "forward")[1]
    changed = LoadedBasis(replace(loaded.basis, settings=RouterSettings(activation="tanh", heads=2)))
    for mode in ("weights", "forward"):
        report = ApplyMixedLoRA().apply(model, changed, coefficients, 1.0, mode)[1]
        assert "activation softmax (the basis has tanh), heads 1 (the basis has 2). Encode" in report, report
    bare = {**coefficients, "settings": {}}
    assert "other settings" not in ApplyMixedLoRA().apply(model, changed, bare, 1.0, "forward")[1]


def check_the_report_says_how_long_prompts_were_in_training():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    header = '{"format_version": 1, "training": {"step": 1, "max_tokens": %s}}'
    for metadata, words in (
        (
            {},
            "trained with 512 T5 tokens per prompt, ComfyUI pads to 256: T5 Tokenizer Options before the prompt needs",
        ),
        ({"lorweb": header % 128}, "needs min_length 128"),
        ({"lorweb": header % 256}, "no T5 Tokenizer Options is needed"),
        ({"lorweb": header % 1}, "Text: trained without text; use Empty Prompt (No Text)"),
    ):
        changed = LoadedBasis(replace(loaded.basis, metadata=metadata))
        report = ApplyMixedLoRA().apply(model, changed, make_coefficients(loaded), 1.0, "forward")[1]
        assert words in report, report


def check_weights_with_several_mixes_is_refused():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    coefficients = make_coefficients(loaded, mixes=3)
    expect(ModelError, ["3 mixes", "mode forward"], lambda: apply(model, loaded, coefficients, 1.0, "weights"))


def check_a_bias_that_a_weight_cannot_take_is_refused_in_mode_weights():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model, bias=True)
    model.get_model_object("diffusion_model.double_blocks.0.img_attn.proj").bias = None
    where = ["refused 1 of", "double_blocks.0.img_attn.proj.bias", "mode forward"]
    expect(ModelError, where, lambda: apply(model, loaded, make_coefficients(loaded), 1.0, "weights"))


def check_a_model_of_other_width_or_depth_is_refused():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    coefficients = make_coefficients(loaded)
    wide = build_flux(TINY | {"hidden_size": 256, "num_heads": 2})
    expect(ModelError, ["128", "256", "base model"], apply, wide, loaded, coefficients)
    deep = make_loaded_basis(build_flux(TINY | {"depth": 2}))
    expect(
        ModelError,
        ["34 layers", "lacks 14 of them", "transformer_blocks.1"],
        lambda: apply(model, deep, make_coefficients(deep)),
    )


def check_other_models_are_refused():
    import comfy.model_base
    import comfy.supported_models

    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    coefficients = make_coefficients(loaded)
    for kind, class_name in (("chroma", "Chroma"), ("flux2", "Flux2")):
        other = build_flux(TINY)
        other.model.__class__ = getattr(comfy.model_base, class_name, comfy.model_base.Flux)
        other.model.model_config.unet_config["image_model"] = kind
        expect(ModelError, ["FLUX.1-Kontext", kind, "Load Diffusion Model"], apply, other, loaded, coefficients)
    unet = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 1],
        "transformer_depth_output": [0, 0, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": 2048,
        "adm_in_channels": 2816,
        "use_linear_in_transformer": True,
        "num_head_channels": 32,
        "use_checkpoint": False,
        "use_spatial_transformer": True,
        "legacy": False,
        "num_classes": "sequential",
        "use_temporal_attention": False,
    }
    settings = comfy.supported_models.SDXL(unet)
    settings.set_inference_dtype(torch.float32, None)
    sdxl = comfy.model_patcher.ModelPatcher(
        comfy.model_base.SDXL(settings), load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )
    expect(ModelError, ["FLUX.1-Kontext", "SDXL"], apply, sdxl, loaded, coefficients)


def check_a_nunchaku_wrapper_is_named_with_the_way_out():
    model = build_flux(TINY)
    loaded = make_loaded_basis(model)
    model.model.diffusion_model.__class__ = type("ComfyFluxWrapper", (type(model.model.diffusion_model),), {})
    expect(ModelError, ["Nunchaku", "Save Mixed LoRA"], apply, model, loaded, make_coefficients(loaded))
