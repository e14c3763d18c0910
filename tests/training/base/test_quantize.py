"""Quantized bases under the trained Linear: close to the full one, gradients reach the basis, nothing else changes."""

import pytest
import torch
from torch import nn

from training.adapter.linear import LoRWeBLinear, target_layers
from training.adapter.trainable import BasisShape, TrainableKontext
from training.base.quantize import quantize_blocks

PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
#: Largest relative error of output and input gradient that the packing itself may cause (measured 0.5 % and 9 %).
ERRORS = {"int8": 0.02, "nf4": 0.15}


class _Blocks(nn.Module):
    """Two block lists with one Linear each, as a transformer has them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.transformer_blocks = nn.ModuleList([nn.Sequential(nn.Linear(128, 192))])
        self.single_transformer_blocks = nn.ModuleList([nn.Sequential(nn.Linear(192, 64))])

    def forward(self, x):
        return self.single_transformer_blocks[0](self.transformer_blocks[0](x))


@pytest.fixture(params=["int8", "nf4"])
def mode(request):
    pytest.importorskip(PACKAGES[request.param])
    return request.param


def _attached(model):
    linears = {}
    for name, sizes in target_layers(model).items():
        parent, _, child = name.rpartition(".")
        generator = torch.Generator().manual_seed(len(linears))
        linear = LoRWeBLinear(model.get_submodule(name), *sizes, basis_size=3, rank=2)
        linear.initialize(generator)
        nn.init.normal_(linear.up, std=0.05, generator=generator)
        linear.scale = torch.full((2, 6), 1 / 3)
        model.get_submodule(parent).register_module(child, linear)
        linears[name] = linear
    return linears


def _relative(value, reference):
    return float((value - reference).norm() / reference.norm())


def test_output_and_gradients_stay_close_to_the_full_base(mode):
    full, packed = _Blocks().bfloat16(), _Blocks().bfloat16()
    quantize_blocks(packed, mode, torch.device("cpu"))
    results = []
    for model in (full, packed):
        linears = _attached(model)
        x = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(9)).bfloat16().requires_grad_()
        output = model(x)
        output.float().square().mean().backward()
        down = linears["transformer_blocks.0.0"].down.grad
        results.append((output.detach().float(), x.grad.float(), down))
    for value, reference in zip(results[1], results[0], strict=True):
        assert _relative(value, reference) < ERRORS[mode]


def test_whole_transformer_trains_on_a_quantized_base(golden_transformer, mode):
    from lorweb_core.settings import RouterSettings

    quantize_blocks(golden_transformer, mode, torch.device("cpu"))
    model = TrainableKontext(golden_transformer, BasisShape(2, 2, 4, 6), RouterSettings())
    assert len(model.linears) == 40
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 40 + 2


def test_missing_package_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match="pip install"):
        quantize_blocks(_Blocks(), "int8", torch.device("cpu"))
