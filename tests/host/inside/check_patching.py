"""Laws of Apply inside the host's own model, sampler and memory management."""

import json
from dataclasses import replace

import comfy.model_base
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
from tiny_flux import TINY, build_flux, sample_once, seeded_state_dict

FP8 = torch.float8_e4m3fn


def make_case(*, mixes=1, **options):
    """Return a seeded model, a basis over all of its layers, and coefficients."""
    model = build_flux(TINY)
    loaded = make_loaded_basis(model, **options)
    return model, loaded, make_coefficients(loaded, mixes=mixes)


def apply(model, loaded, coefficients, strength=1.0, mode="forward"):
    return ApplyMixedLoRA().apply(model, loaded, coefficients, strength, mode)[0]


def assert_same(first, second, tolerance=3e-6):
    """Compare relative to the size of the latents, as float32 sums in another order differ."""
    assert (first - second).abs().max() <= tolerance * first.abs().max(), (first - second).abs().max()


def check_both_modes_agree_and_change_the_image():
    model, loaded, coefficients = make_case()
    weights, forward = (sample_once(apply(model, loaded, coefficients, mode=mode)) for mode in ("weights", "forward"))
    assert (weights - sample_once(model)).abs().max() > 0.1
    assert_same(weights, forward)


def check_biases_act_in_both_modes():
    model, loaded, coefficients = make_case(bias=True)
    plain = make_loaded_basis(model)
    weights = sample_once(apply(model, loaded, coefficients, -0.7, "weights"))
    forward = sample_once(apply(model, loaded, coefficients, -0.7, "forward"))
    assert_same(weights, forward)
    assert (forward - sample_once(apply(model, plain, make_coefficients(plain), -0.7, "forward"))).abs().max() > 0.01


def check_strength_zero_is_bit_identical_to_no_node():
    model, loaded, coefficients = make_case()
    base = sample_once(model)
    for mode in ("weights", "forward"):
        patched = apply(model, loaded, coefficients, 0.0, mode)
        assert torch.equal(sample_once(patched), base)
        assert not patched.patches and not patched.object_patches


def check_the_incoming_model_is_left_bit_identical():
    model, loaded, coefficients = make_case(bias=True)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    base = sample_once(model)
    for mode in ("weights", "forward", "weights"):
        sample_once(apply(model, loaded, coefficients, 1.0, mode))
    assert torch.equal(sample_once(model), base)
    comfy.model_management.unload_all_models()
    after = model.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def check_each_sample_of_a_batch_gets_its_own_mix():
    model, loaded, both = make_case(mixes=2)
    for cfg, tolerance in ((1.0, 3e-6), (3.0, 1e-5)):  # with guidance, each step runs every sample twice
        together = sample_once(apply(model, loaded, both), batch=2, cfg=cfg)
        for index in range(2):
            one = {**both, "layers": {name: mix[index : index + 1] for name, mix in both["layers"].items()}}
            alone = sample_once(apply(model, loaded, one), batch=2, cfg=cfg)
            assert_same(together[index], alone[index], tolerance)
        assert (together[0] - alone[0]).abs().max() > 1e-3, "both mixes give the same"


def check_the_adapters_are_held_once_and_read_again_when_needed():
    (model, whole, coefficients), reads = make_case(), []
    loaded = LoadedBasis(whole.basis, lambda: (reads.append(1), whole.basis)[1])
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
    model, loaded, coefficients = make_case()
    if not hasattr(model, "deepclone_multigpu"):
        return  # an older host
    model.cached_patcher_init = (build_flux, (TINY,))
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
    model, first, c_first = make_case()
    second = make_loaded_basis(model, seed=5)
    c_second = make_coefficients(second, seed=2)
    results = []
    for modes in (("weights", "weights"), ("weights", "forward"), ("forward", "weights"), ("forward", "forward")):
        once = apply(model, first, c_first, 0.8, modes[0])
        results.append(sample_once(apply(once, second, c_second, -0.5, modes[1])))
    swapped = apply(apply(model, second, c_second, -0.5, "forward"), first, c_first, 0.8, "forward")
    results.append(sample_once(swapped))
    for result in results[1:]:
        assert_same(results[0], result, 6e-6)


def check_the_same_basis_stacks_with_itself():
    model, loaded, coefficients = make_case()
    half_twice = apply(apply(model, loaded, coefficients, 0.5, "forward"), loaded, coefficients, 0.5, "forward")
    assert_same(sample_once(half_twice), sample_once(apply(model, loaded, coefficients, 1.0, "forward")), 6e-6)
    assert len(half_twice.get_additional_models_with_key("lorweb")) == 1


def load_stock_lora(patcher, loaded, mixes, strength):
    """Return the model with the mixed LoRA as a file, in the host's own loader."""
    lora = {}
    for name, layer in loaded.basis.layers.items():
        mixed = mix_layer(layer, mixes[name][0])
        lora[f"transformer.{name}.lora_A.weight"] = mixed.down.contiguous()
        lora[f"transformer.{name}.lora_B.weight"] = mixed.up.contiguous()
    return comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0.0)[0]


def check_a_stock_lora_before_or_after_gives_the_same():
    model, loaded, coefficients = make_case()
    other = make_loaded_basis(model, seed=9)
    mixes = make_coefficients(other)["layers"]

    def with_lora(patcher):
        return load_stock_lora(patcher, other, mixes, 0.6)

    for mode in ("weights", "forward"):
        before = sample_once(apply(with_lora(model), loaded, coefficients, 1.0, mode))
        after = sample_once(with_lora(apply(model, loaded, coefficients, 1.0, mode)))
        assert_same(before, after, 6e-6)
        assert (before - sample_once(apply(model, loaded, coefficients, 1.0, mode))).abs().max() > 0.01


def check_layers_outside_of_the_blocks_act_as_the_stock_loader_has_them():
    model = build_flux(TINY)
    generator = torch.Generator().manual_seed(0)
    layers = {}
    sizes = {"norm_out.linear": (128, 256), "proj_out": (128, 64), "context_embedder": (64, 128)}
    for name, (wide_in, wide_out) in sizes.items():
        shapes = ((3, 2, wide_in), (3, wide_out, 2), (3, 4), (4, 6))
        down, up, keys, projection = (torch.randn(*shape, generator=generator) for shape in shapes)
        layers[name] = LayerBasis(down * wide_in**-0.5, up * 0.5, keys, projection)
    loaded = LoadedBasis(Basis(layers=layers, settings=RouterSettings(), basis_id="outside", name="outside"))
    coefficients = make_coefficients(loaded)
    stock = sample_once(load_stock_lora(model, loaded, coefficients["layers"], 1.0))
    assert (stock - sample_once(model)).abs().max() > 0.1
    for mode in ("weights", "forward"):
        assert_same(sample_once(apply(model, loaded, coefficients, 1.0, mode)), stock, 6e-6)


def check_a_new_mix_reloads_nothing_in_mode_forward_and_the_host_counts_the_bank():
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
    counted = [entry.model.model for entry in comfy.model_management.current_loaded_models]
    assert banks[0].model_size() > 0 and any(bank is banks[0].model for bank in counted)


def check_coefficients_of_other_router_settings_are_reported():
    model, loaded, coefficients = make_case()
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
    for tokens, words in (
        (
            None,
            "trained with 512 T5 tokens per prompt, ComfyUI pads to 256: T5 Tokenizer Options before the prompt needs",
        ),
        (128, "needs min_length 128"),
        (256, "no T5 Tokenizer Options is needed"),
        (1, "Text: trained without text; use Empty Prompt (No Text)"),
    ):
        header = {"format_version": 1, "training": {"step": 1, "max_tokens": tokens}}
        metadata = {"lorweb": json.dumps(header)} if tokens else {}
        changed = LoadedBasis(replace(loaded.basis, metadata=metadata))
        report = ApplyMixedLoRA().apply(model, changed, make_coefficients(loaded), 1.0, "forward")[1]
        assert words in report, report


def check_weights_with_several_mixes_is_refused():
    model, loaded, coefficients = make_case(mixes=3)
    expect(ModelError, ["3 mixes", "mode forward"], apply, model, loaded, coefficients, 1.0, "weights")


def check_a_bias_that_a_weight_cannot_take_is_refused_in_mode_weights():
    model, loaded, coefficients = make_case(bias=True)
    model.get_model_object("diffusion_model.double_blocks.0.img_attn.proj").bias = None
    where = ["refused 1 of", "double_blocks.0.img_attn.proj.bias", "mode forward"]
    expect(ModelError, where, apply, model, loaded, coefficients, 1.0, "weights")


def check_a_model_of_other_width_or_depth_is_refused():
    model, loaded, coefficients = make_case()
    wide = build_flux(TINY | {"hidden_size": 256, "num_heads": 2})
    expect(ModelError, ["128", "256", "base model"], apply, wide, loaded, coefficients)
    deep = make_loaded_basis(build_flux(TINY | {"depth": 2}))
    words = ["34 layers", "lacks 14 of them", "transformer_blocks.1"]
    expect(ModelError, words, apply, model, deep, make_coefficients(deep))


def check_other_models_are_refused():
    _, loaded, coefficients = make_case()
    for kind, class_name in (("chroma", "Chroma"), ("flux2", "Flux2")):
        other = build_flux(TINY)
        other.model.__class__ = getattr(comfy.model_base, class_name, comfy.model_base.Flux)
        other.model.model_config.unet_config["image_model"] = kind
        expect(ModelError, ["FLUX.1-Kontext", kind, "Load Diffusion Model"], apply, other, loaded, coefficients)


def check_a_nunchaku_wrapper_is_named_with_the_way_out():
    model, loaded, coefficients = make_case()
    model.model.diffusion_model.__class__ = type("ComfyFluxWrapper", (type(model.model.diffusion_model),), {})
    expect(ModelError, ["Nunchaku", "Save Mixed LoRA"], apply, model, loaded, coefficients)


def build_fp8_and_its_exact_twin():
    """Return a model with fp8 weights computing in float32, and a float32 model of the same rounded weights."""
    weights = seeded_state_dict(build_flux(TINY).model.diffusion_model, 0)
    rounded = {name: tensor.to(FP8).float() for name, tensor in weights.items()}
    quantized = build_flux(
        TINY, {name: tensor.to(FP8) for name, tensor in rounded.items()}, dtype=FP8, cast_to=torch.float32
    )
    return quantized, build_flux(TINY, rounded)


def check_forward_on_fp8_equals_weights_on_the_same_numbers_unquantized():
    quantized, exact = build_fp8_and_its_exact_twin()
    loaded = make_loaded_basis(quantized, size=0.1)
    coefficients = make_coefficients(loaded)
    forward = sample_once(apply(quantized, loaded, coefficients))
    expected = sample_once(apply(exact, loaded, coefficients, mode="weights"))
    effect = (expected - sample_once(exact)).norm()
    assert (forward - expected).norm() < 1e-4 * effect
    patched, report = ApplyMixedLoRA().apply(quantized, loaded, coefficients, 1.0, "weights")
    assert "13 of 13 weights (torch.float8_e4m3fn), and the host rounds them again" in report, report
    assert (sample_once(patched) - expected).norm() > 100 * (forward - expected).norm()
    assert torch.equal(sample_once(quantized), sample_once(build_fp8_and_its_exact_twin()[0]))
