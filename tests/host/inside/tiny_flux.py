"""A real Flux of the host, of any size, built in memory; its weights come from a diffusers state dict or a seed."""

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.flux.model import FluxParams

TINY = {
    "image_model": "flux",
    "guidance_embed": True,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
}
GOLDEN = TINY | {
    "vec_in_dim": 16,
    "context_in_dim": 32,
    "hidden_size": 32,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
}


def build_flux(config, state_dict=None, *, dtype=torch.float32, cast_to=None, seed=0):
    """Return a ModelPatcher around the host's Flux with the given (host-named) or seeded weights.

    `cast_to` is the dtype of computation where the weights' own dtype cannot compute (fp8).
    """
    config = dict(config)
    if "txt_ids_dims" in FluxParams.__annotations__:
        config["txt_ids_dims"] = []
    settings = comfy.supported_models.Flux(config)
    settings.set_inference_dtype(dtype, cast_to)
    model = settings.get_model({}, "")
    if state_dict is None:
        state_dict = seeded_state_dict(model.diffusion_model, seed)
    elif hasattr(settings, "process_unet_state_dict"):
        state_dict = settings.process_unet_state_dict(state_dict)
    problems = model.diffusion_model.load_state_dict(state_dict, strict=False)
    assert not problems.missing_keys and not problems.unexpected_keys, problems
    model.diffusion_model.to(dtype)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def seeded_state_dict(module, seed):
    """Return normal numbers of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        is_norm = name.endswith(("norm.scale", "norm.weight"))
        result[name] = 1 + 0.1 * noise if is_norm else noise * (tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.1)
    return result


def convert_from_diffusers(state_dict, config):
    """Return the weights under the host's names, q, k, v and MLP fused, by the host's own table."""
    table = comfy.utils.flux_to_diffusers(config, output_prefix="")
    result = {}
    slices = {}
    for name, tensor in state_dict.items():
        entry = table[name]
        if isinstance(entry, str):
            result[entry] = tensor
        elif len(entry) > 2:
            result[entry[0]] = entry[2](tensor)
        else:
            slices.setdefault(entry[0], []).append((entry[1][1], tensor))
    for name, parts in slices.items():
        result[name] = torch.cat([tensor for _, tensor in sorted(parts, key=lambda part: part[0])])
    return result


def sample_once(patcher, *, batch=1, size=16, steps=2, cfg=1.0, seed=3):
    """Return latents from the host's own sampler: euler, simple, with a reference latent."""
    import comfy.sample

    generator = torch.Generator().manual_seed(seed)
    config = patcher.model.model_config.unet_config
    context = torch.randn(1, 5, config["context_in_dim"], generator=generator)
    extras = {
        "pooled_output": torch.randn(1, config["vec_in_dim"], generator=generator),
        "guidance": 2.5,
        "reference_latents": [torch.randn(1, 16, size, size, generator=generator)],
    }
    noise = torch.randn(batch, 16, size, size, generator=generator)
    positive, negative = [[context, extras]], [[torch.zeros_like(context), extras]]
    latents = torch.zeros_like(noise)
    return comfy.sample.sample(patcher, noise, steps, cfg, "euler", "simple", positive, negative, latents, seed=seed)
