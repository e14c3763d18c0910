"""The trainer on a CUDA device, `pytest -m gpu`: there it has to do what it does on the CPU, but for rounding.

Never part of `make test` or `make test-all`: most machines that run these have no GPU.
"""

import pytest
import torch
from safetensors.torch import load_file

from training.checkpoints import list_checkpoints
from training.sample import main as sample
from training.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ON_GPU = ("run.device=cuda", "run.steps=4", "checkpoint.dtype=float32", "validation.every=2", "validation.pictures=1")


def _basis(config):
    return load_file(config.run_folder / f"{config.run.name}.safetensors")


def test_a_run_on_the_gpu_is_that_on_the_cpu(tiny_config):
    there = train(tiny_config(*ON_GPU, "run.name=gpu"))
    here = train(tiny_config(*ON_GPU, "run.device=cpu", "run.name=cpu"))
    assert there.losses == pytest.approx(here.losses, rel=1e-3)


def test_a_resumed_run_on_the_gpu_goes_on_as_the_straight_one(tiny_config):
    straight = tiny_config(*ON_GPU, "run.name=straight")
    train(straight)
    resumed = tiny_config(*ON_GPU, "run.name=resumed", "checkpoint.every=2", "checkpoint.keep=9")
    train(resumed)
    first = list_checkpoints(resumed.run_folder / "checkpoints")[0]
    train(resumed, resume=str(first))
    before, after = _basis(straight), _basis(resumed)
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-5


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_bases_train_with_eight_bit_states(tiny_config, quantize, dtype):
    options = (f"base.quantize={quantize}", "base.dtype=bfloat16", f"basis.dtype={dtype}", "optimiser.name=adamw8bit")
    result = train(tiny_config(*ON_GPU, *options, "base.gradient_checkpointing=true"))
    assert result.step == 4
    assert all(torch.isfinite(torch.tensor(result.losses)))


def test_a_compiled_base_trains_as_the_plain_one(tiny_config):
    plain = train(tiny_config(*ON_GPU, "run.name=plain"))
    compiled = train(tiny_config(*ON_GPU, "run.name=compiled", "base.compile=true"))
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-3)


def test_caches_of_everything_are_filled_and_used(tiny_config, tiny_parts, tmp_path):
    options = (
        f"base.model={tiny_parts / 'model-with-text'}", "text.caption_source=a", f"data.cache={tmp_path / 'cache'}",
        "data.cache_embeddings=true", "data.cache_latents=true", "data.workers=2",
    )  # fmt: skip
    first = train(tiny_config(*ON_GPU, *options, "run.name=first"))
    assert train(tiny_config(*ON_GPU, *options, "run.name=second")).losses == pytest.approx(first.losses, rel=1e-4)


def test_pictures_are_drawn(tiny_config, tiny_parts, tmp_path):
    basis = train(tiny_config(*ON_GPU)).basis_file
    pictures = sorted((tiny_parts / "pictures").rglob("*.png"))[:3]
    words = ["--base", str(tiny_parts / "model"), "--basis", str(basis), "--encoder", str(tiny_parts / "encoder")]
    words += ["--a", str(pictures[0]), "--a-prime", str(pictures[1]), "--b", str(pictures[2]), "--steps", "2"]
    for quantize in ("none", "nf4"):
        out = tmp_path / quantize
        assert sample([*words, "--out", str(out), "--device", "cuda", "--quantize", quantize]) == 0
        assert len(list(out.glob("*.png"))) == 2
