"""The loop: it learns, does the same in every arrangement, and survives what happens to runs."""

import itertools
import json
import math
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lorweb_core.checkpoint import load_basis
from training.run.checkpoints import list_checkpoints, load_checkpoint
from training.run.loop import DivergenceError
from training.run.optimizers import set_learning_rate
from training.train import main, train


def _file_of(config):
    return config.run_folder / f"{config.run.name}.safetensors"


def _saved(config):
    """The trained weights (or their EMA) of a run's last checkpoint, in float32."""
    state = load_checkpoint(list_checkpoints(config.run_folder / "checkpoints")[-1])
    return state["ema"]["tensors"] if state["ema"] else state["trained"]


def _assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def _trained(state):
    return {name: tensor.detach().clone() for name, tensor in state.model.trained_state().items()}


def test_loss_falls_and_the_file_loads_in_the_core(tiny_config):
    config = tiny_config("run.steps=40", "optimizer.schedule=constant")
    result = train(config)
    assert result.step == 40
    assert sum(result.losses[-10:]) < 0.9 * sum(result.losses[:10])
    basis = load_basis(result.basis_file)
    assert len(basis.layers) == 20
    assert basis.settings == config.router_settings()
    assert basis.report == ()
    assert {layer.total_rank for layer in basis.layers.values()} == {8}


def test_captions_are_encoded_and_used(tiny_config, tiny_parts, assembled):
    model = tiny_parts / "model-with-text"
    config = tiny_config("run.steps=1", f"base.model={model}", "text.caption_source=a", "run.batch_size=16")
    loop, state = assembled(config)
    batch = next(loop.batches)
    embeds = loop.encoder.encode(batch, slice(None))[1].prompt_embeds
    assert embeds.shape == (16, 24, 32)
    for first, second in zip(range(0, 15), range(1, 16), strict=True):
        is_same = torch.equal(embeds[first], embeds[second])
        assert is_same == (batch["caption"][first] == batch["caption"][second])
    assert torch.equal(loop.encoder.encode(batch, slice(5, 9))[1].prompt_embeds, embeds[5:9])  # a later micro-batch
    loop.run(state)
    assert state.step == 1


def test_captions_without_text_encoders_are_refused(tiny_config):
    with pytest.raises(ValueError, match="caption_source: none"):
        train(tiny_config("run.steps=1", "text.caption_source=task"))


def test_file_has_the_names_and_shapes_of_the_reference_and_no_machine_path(tiny_config):
    config = tiny_config("run.steps=1")
    tensors = load_file(train(config).basis_file)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    assert tensors[f"{layer}.lora_A"].shape == (4, 32, 2)
    assert tensors[f"{layer}.lora_B"].shape == (4, 2, 32)
    assert tensors[f"{layer}.lora_keys"].shape == (4, 8)
    assert tensors[f"{layer}.att_lora_to_q.weight"].shape == (8, 36)
    assert len(tensors) == 20 * 4
    assert str(config.run.folder) not in _file_of(config).read_bytes()[:4000].decode("latin-1")


def test_resumed_run_equals_the_straight_one_bit_for_bit(tiny_config):
    straight = tiny_config("run.steps=8", "run.name=straight")
    train(straight)
    resumed = tiny_config("run.steps=8", "run.name=resumed")
    _, state = _stopped_after(resumed, 3)
    assert state.step == 3
    result = train(resumed, resume="latest")
    assert len(result.losses) == 5
    _assert_equal(_saved(straight), _saved(resumed))
    assert _file_of(straight).stat().st_size == _file_of(resumed).stat().st_size


def test_resumed_run_with_ema_equals_the_straight_one(tiny_config):
    options = ("run.steps=6", "optimizer.ema_decay=0.9")
    straight, resumed = tiny_config(*options, "run.name=straight"), tiny_config(*options, "run.name=resumed")
    train(straight)
    _stopped_after(resumed, 2)
    train(resumed, resume="latest")
    _assert_equal(_saved(straight), _saved(resumed))
    assert _file_of(straight).stat().st_size == _file_of(resumed).stat().st_size


def _stopped_after(config, steps):
    from training.run.distributed import Processes
    from training.run.signals import StopRequest
    from training.train import assemble

    stop = StopRequest()
    loop, state = assemble(config, Processes("cpu"), stop)
    calls = []

    def ask_to_stop(*_):
        calls.append(1)
        if len(calls) == steps:
            stop.reason = "the test"

    state.model.transformer.register_forward_pre_hook(ask_to_stop)
    loop.run(state)
    return loop, state


def test_micro_batches_add_up_to_the_whole_batch(tiny_config, assembled):
    states = []
    for size in (8, 3):
        loop, state = assembled(tiny_config("run.steps=3", f"run.micro_batch_size={size}", f"run.name=m{size}"))
        loop.run(state)
        states.append(_trained(state))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=2e-6, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(tiny_config, assembled):
    gradients = []
    for is_on in (False, True):
        loop, state = assembled(tiny_config("run.steps=1", f"run.name=g{is_on}"))
        if is_on:
            state.model.transformer.enable_gradient_checkpointing()
        for linear in state.model.linears.values():  # with up = 0 the router would have no gradient
            torch.nn.init.normal_(linear.up, std=0.1, generator=torch.Generator().manual_seed(1))
        loop.step(state)
        gradients.append([p.grad for p in state.model.adapter_parameters() + state.model.router_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert float(gradients[0][-1].abs().max()) > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate more than there is"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_update(tiny_config, assembled, error):
    loop, plain = assembled(tiny_config("run.steps=2", "run.micro_batch_size=2", "run.name=plain"))
    loop.run(plain)
    loop, halved = assembled(tiny_config("run.steps=2", "run.name=halved"))

    def refuse_large_batches(_module, _args, kwargs):
        if len(kwargs["hidden_states"]) > 2:
            raise error

    halved.model.transformer.register_forward_pre_hook(refuse_large_batches, with_kwargs=True)
    loop.run(halved)
    assert halved.micro_batch_size == 2
    for name, tensor in _trained(plain).items():
        torch.testing.assert_close(tensor, _trained(halved)[name], atol=2e-6, rtol=1e-4)


def test_another_error_of_the_forward_pass_is_not_taken_for_lack_of_memory(tiny_config, assembled):
    loop, state = assembled(tiny_config("run.steps=2"))

    def fail(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    state.model.transformer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        loop.run(state)


def test_out_of_memory_outside_of_a_step_says_what_to_change(tiny_config, monkeypatch):
    def run_out(*_args, **_options):
        raise torch.OutOfMemoryError("tried to allocate more than there is")

    monkeypatch.setattr("training.run.session.load_transformer", run_out)
    with pytest.raises(ValueError, match="--check shows what takes how much"):
        train(tiny_config("run.steps=1"))


def test_out_of_memory_with_one_sample_says_what_to_change(tiny_config, assembled):
    loop, state = assembled(tiny_config("run.steps=2", "run.micro_batch_size=1"))

    def refuse(*_):
        raise torch.OutOfMemoryError("nothing left")

    state.model.transformer.register_forward_pre_hook(refuse)
    with pytest.raises(ValueError, match="micro_batch_size"):
        loop.run(state)


def _break_steps(state, steps):
    """Let the transformer give NaN in these steps."""

    def spoil(_module, _args, output):
        return (output[0] * math.nan,) if state.step in steps else None

    state.model.transformer.register_forward_hook(spoil)


def test_step_with_a_non_finite_loss_is_skipped_and_counted(tiny_config, assembled):
    loop, state = assembled(tiny_config("run.steps=4"))
    _break_steps(state, {1})
    loop.run(state)
    assert (state.step, state.bad_steps) == (4, 1)
    assert all(bool(tensor.isfinite().all()) for tensor in _trained(state).values())


def test_run_stops_after_too_many_non_finite_steps(tiny_config, assembled, monkeypatch):
    monkeypatch.setattr("training.run.loop.MAX_BAD_STEPS", 2)
    loop, state = assembled(tiny_config("run.steps=9"))
    _break_steps(state, range(9))
    with pytest.raises(DivergenceError, match="learning_rate"):
        loop.run(state)
    assert state.bad_steps == 3


def _signal_in_step_one(monkeypatch, number, *, times=1):
    """Signal this process in the middle of the second step."""

    def signal_and_update(optimizer, schedule, step, steps):
        for _ in range(times if step == 1 else 0):
            os.kill(os.getpid(), number)
        return set_learning_rate(optimizer, schedule, step, steps)

    monkeypatch.setattr("training.run.loop.set_learning_rate", signal_and_update)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_signal_saves_and_ends_cleanly_and_the_run_continues(tiny_config, tiny_overrides, name, monkeypatch):
    config = tiny_config("run.steps=4", "checkpoint.every=100")
    _signal_in_step_one(monkeypatch, getattr(signal, name))
    before = signal.getsignal(signal.SIGTERM)
    result = train(config)
    assert (result.step, result.basis_file) == (2, None)
    assert [path.name for path in list_checkpoints(config.run_folder / "checkpoints")] == ["step-000000002"]
    assert signal.getsignal(signal.SIGTERM) == before
    assert train(config, resume="latest").step == 4


def test_second_interrupt_ends_at_once_and_says_how_to_continue(tiny_overrides, monkeypatch, capsys, caplog):
    _signal_in_step_one(monkeypatch, signal.SIGINT, times=2)
    assert main(["--config", "tiny.yaml", *tiny_overrides("run.steps=4")]) == 130
    assert "--resume latest" in capsys.readouterr().err
    assert "Ctrl-C again" in caplog.text


def test_existing_run_is_not_overwritten_unasked(tiny_config, tiny_overrides, capsys):
    train(tiny_config("run.steps=1"))
    assert main(["--config", "tiny.yaml", *tiny_overrides("run.steps=1")]) == 2
    assert "--resume latest" in capsys.readouterr().err


def test_resume_latest_without_a_checkpoint_starts(tiny_config):
    assert train(tiny_config("run.steps=1"), resume="latest").step == 1


def test_gain_is_folded_into_the_file(tiny_config, assembled):
    config = tiny_config("run.steps=3")
    loop, state = assembled(config)
    loop.run(state)
    layer = load_basis(list_checkpoints(config.run_folder / "checkpoints")[-1] / "basis.safetensors").layers
    name, linear = next(iter(state.model.linears.items()))
    up = linear.up.detach().unflatten(0, (4, 2)).transpose(1, 2)
    torch.testing.assert_close(layer[name].lora_up.float(), 4 * up, atol=1e-5, rtol=1e-3)  # a float16 file
    assert state.model.router.gain == 4


def test_run_starts_from_a_finished_basis(tiny_config, assembled):
    first = train(tiny_config("run.steps=3")).basis_file
    _, state = assembled(tiny_config("run.steps=1", "run.name=second", f"basis.start_from={first}"))
    again = state.model.layers()
    for name, layer in load_basis(first).layers.items():
        torch.testing.assert_close(again[name].lora_up, layer.lora_up.float())
        torch.testing.assert_close(again[name].keys, layer.keys.float())


def test_file_holds_the_ema_of_the_weights(tiny_config, assembled):
    config = tiny_config("run.steps=3", "optimizer.ema_decay=0.9")
    loop, state = assembled(config)
    loop.run(state)
    saved = load_basis(list_checkpoints(config.run_folder / "checkpoints")[-1] / "basis.safetensors").layers
    for name, layer in state.model.layers(state.ema.tensors).items():
        assert torch.equal(saved[name].lora_up, layer.lora_up.half())
        assert torch.equal(saved[name].keys, layer.keys.half())
        assert not torch.equal(saved[name].lora_up, state.model.layers()[name].lora_up.half())
        assert saved[name].lora_up.abs().max() > 0  # as it is at the start


def _first_step(assembled, config):
    """Loss, guidance, reported and clipped gradient norm of a run's first step."""
    loop, state = assembled(config)
    told = []
    state.model.transformer.register_forward_pre_hook(lambda _, __, inputs: told.append(inputs), with_kwargs=True)
    loss, norm, _ = loop.step(state)
    gradients = [p.grad.flatten() for p in state.model.trained_parameters() if p.grad is not None]
    return loss, told[0]["guidance"], norm, float(torch.cat(gradients).norm())


def test_copied_weight_of_a_run_is_that_of_its_loss(tiny_config, assembled):
    """The mean weight is 1, so that the loss at weight w is (answer + 3·w·copied) / (1 + 3·w)."""
    losses = {
        w: _first_step(assembled, tiny_config(f"flow.copied_weight={w}", f"run.name=w{w}"))[0] for w in (0, 0.5, 1, 2)
    }
    answer, copied = losses[0], (4 * losses[1] - losses[0]) / 3
    assert abs(answer - copied) > 1e-3
    for w in (0.5, 2):
        assert losses[w] == pytest.approx((answer + 3 * w * copied) / (1 + 3 * w), rel=1e-5)


def test_every_step_has_noise_of_its_own_and_its_loss_is_the_mean_over_the_samples(tiny_config, assembled):
    loop, state = assembled(tiny_config("optimizer.learning_rate=1e-12", "run.micro_batch_size=5"))
    loop = replace(loop, batches=itertools.repeat(next(loop.batches)))
    losses = []
    state.model.register_forward_hook(lambda _module, _inputs, output: losses.extend(output.tolist()))
    for step in (0, 1, 0):
        state.step = step
        mean = loop.step(state)[0]
        assert mean == pytest.approx(sum(losses[-8:]) / 8, rel=1e-5)
    assert losses[:8] == losses[16:]
    assert len({*losses}) == 16


def test_guidance_in_training_is_one(tiny_config, assembled):
    assert _first_step(assembled, tiny_config())[1].tolist() == [1.0] * 8


def test_gradients_are_clipped_to_the_largest_norm_and_reported_as_they_were(tiny_config, assembled, monkeypatch):
    free = _first_step(assembled, tiny_config("run.name=free"))[2:]
    monkeypatch.setattr("training.run.loop.MAX_GRADIENT_NORM", 1e-3)
    clipped = _first_step(assembled, tiny_config("run.name=clipped"))[2:]
    assert 1e-2 < free[0] < 1
    assert free[1] == pytest.approx(free[0])
    assert clipped == pytest.approx((free[0], 1e-3), rel=1e-3)


def test_metrics_are_written_as_lines_of_json(tiny_config):
    config = tiny_config("run.steps=5", "tracking.log_every=2")
    train(config)
    lines = [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert all(math.isfinite(line["train/loss"]) for line in lines)


def test_seconds_per_step_leave_validation_out(tiny_config, monkeypatch):
    from training.run.validation import Validator

    compute = Validator.compute
    monkeypatch.setattr(Validator, "compute", lambda *arguments: time.sleep(5) or compute(*arguments))
    config = tiny_config("run.steps=2", "tracking.log_every=1", "validation.every=1", "validation.images=0")
    train(config)
    lines = map(json.loads, (config.run_folder / "metrics.jsonl").read_text().splitlines())
    assert all(line.get("train/seconds_per_step", 0) < 5 for line in lines)


def test_patterns_choose_the_layers(tiny_config):
    config = tiny_config("run.steps=1", "basis.include=['transformer_blocks*.attn.*']")
    names = load_basis(train(config).basis_file).layers
    assert len(names) == 8
    assert all(".attn." in name and name.startswith("transformer_blocks") for name in names)


@pytest.mark.parametrize("mode", ["aa'bb'", "caa'b", "caa'", "ca'-ca", "ca'-ca+cb"])
def test_every_query_mode_trains(tiny_config, mode):
    config = tiny_config("run.steps=1", f'basis.query_mode="{mode}"')
    assert load_basis(train(config).basis_file).query_dim == 12


def test_tanh_trains(tiny_config):
    config = tiny_config("run.steps=2", "basis.activation=tanh")
    assert load_basis(train(config).basis_file).settings.activation == "tanh"
