"""Going on with a run: what comes from the checkpoint, what from the configuration, and what is refused."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.run.checkpoints import list_checkpoints, load_latest
from training.train import train

OPTIONS = ("optimizer.schedule=constant",)


def test_changed_rates_hold_from_the_step_on_at_which_the_run_continues(tiny_config, assembled):
    train(tiny_config(*OPTIONS, "run.steps=2"))
    changed = ("optimizer.learning_rate=1e-5", "optimizer.router_learning_rate=1e-6")
    loop, state = assembled(tiny_config(*OPTIONS, "run.steps=4", *changed), resume="latest")
    loop.run(state)
    assert [group["lr"] for group in state.optimizer.param_groups] == [1e-5, 1e-6]
    assert all(float(moments["step"]) == 4 for moments in state.optimizer.state.values())


def test_another_kind_of_optimizer_is_refused_with_the_remedy(tiny_config):
    pytest.importorskip("bitsandbytes")
    train(tiny_config(*OPTIONS, "run.steps=1"))
    with pytest.raises(ValueError, match=r"optimizer\.name.*basis\.start_from"):
        train(tiny_config(*OPTIONS, "run.steps=2", "optimizer.name=adamw8bit"), resume="latest")


def test_ema_that_is_switched_on_later_starts_from_the_weights_of_then(tiny_config, assembled):
    train(tiny_config(*OPTIONS, "run.steps=2"))
    _, state = assembled(tiny_config(*OPTIONS, "run.steps=4", "optimizer.ema_decay=0.9"), resume="latest")
    assert all(torch.equal(tensor, state.ema.tensors[name]) for name, tensor in state.model.trained_state().items())


@pytest.mark.parametrize(("configured", "expected"), [(4, 2), (8, 8), (1, 1)])
def test_halved_micro_batch_stays_unless_another_one_is_configured(tiny_config, assembled, configured, expected):
    loop, state = assembled(tiny_config("run.steps=1", "run.micro_batch_size=4"))
    state.micro_batch_size, state.bad_steps = 2, 3  # as after running out of memory, and after steps with NaN
    loop.run(state)
    _, resumed = assembled(tiny_config("run.steps=2", f"run.micro_batch_size={configured}"), resume="latest")
    assert (resumed.micro_batch_size, resumed.bad_steps) == (expected, 3)


def test_going_back_to_an_earlier_checkpoint_makes_its_successors_the_latest(tiny_config):
    train(tiny_config("run.steps=6", "checkpoint.every=1", "checkpoint.keep=3"))
    again = tiny_config("run.steps=5", "checkpoint.every=1", "checkpoint.keep=3", "run.seed=1")
    folder = again.run_folder / "checkpoints"
    earliest = list_checkpoints(folder)[0]
    assert earliest.name == "step-000000004"
    train(again, resume=str(earliest))
    assert [path.name for path in list_checkpoints(folder)] == [f"step-{step:09d}" for step in (4, 6, 5)]
    result = train(tiny_config("run.steps=7", "checkpoint.every=1", "checkpoint.keep=3"), resume="latest")
    assert len(result.losses) == 2
    assert [path.name for path in list_checkpoints(folder)] == [f"step-{step:09d}" for step in (5, 6, 7)]


def test_run_whose_checkpoints_are_all_damaged_is_not_restarted(tiny_config):
    config = tiny_config("run.steps=4", "checkpoint.every=2")
    train(config)
    folders = list_checkpoints(config.run_folder / "checkpoints")
    for folder in folders:
        data = bytearray((folder / "state.pt").read_bytes())
        data[10:400] = bytes(390)
        (folder / "state.pt").write_bytes(data)
    with pytest.raises(ValueError, match="None of the 2 checkpoints"):
        train(config, resume="latest")
    assert list_checkpoints(config.run_folder / "checkpoints") == folders


def test_start_and_steps_are_lines_where_stderr_is_no_terminal(tiny_config, caplog, capsys):
    caplog.set_level("INFO")

    def output(*overrides, resume="latest"):
        caplog.clear()
        capsys.readouterr()
        train(tiny_config("checkpoint.every=2", *overrides), resume=resume)
        words = ("starting at", "resumed at", "nothing to do")
        assert "step/s" not in capsys.readouterr().err  # no bar
        steps = [line for line in caplog.messages if re.match(r"step \d/\d: loss .* s/step, ETA 0:00:00", line)]
        return [line for line in caplog.messages if line.startswith(words)], len(steps) == 1

    (line,), has_steps = output("run.steps=2")
    assert line.startswith("starting at step 0 of 2: no checkpoint in ")
    assert line.endswith("runs/tiny/checkpoints yet")
    assert has_steps
    assert output("run.steps=4") == (["resumed at step 2 of 4"], True)
    assert output("run.steps=3") == (["nothing to do: step 4 of 3 is done"], False)
    assert output("run.steps=2", "run.name=other", resume=None) == ([], True)


@pytest.fixture
def own_parts(tiny_parts, tmp_path):
    """A copy of the tiny parts that a test may change."""
    return shutil.copytree(tiny_parts, tmp_path / "parts")


def _resumed(tiny_config, parts, caplog, *overrides):
    """The warnings of going on for a step with the inputs in `parts`."""
    caplog.clear()
    steps = len(_losses(tiny_config)) + 1
    train(
        tiny_config(
            f"base.model={parts / 'model'}", f"encoder.model={parts / 'encoder'}",
            f"data.index={parts / 'pairs.jsonl'}", f"run.steps={steps}",
            "tracking.log_every=1", "optimizer.schedule=constant", "data.hold_out_tasks=0",
            "data.hold_out_pairs=0", *overrides,
        ),
        resume="latest",
    )  # fmt: skip
    return [record.getMessage() for record in caplog.records if "since the checkpoint" in record.getMessage()]


def _losses(tiny_config):
    path = tiny_config().run_folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_inputs_that_changed_before_a_run_continues_are_named_with_counts(tiny_config, own_parts, caplog):
    assert _resumed(tiny_config, own_parts, caplog) == []
    assert _resumed(tiny_config, own_parts, caplog) == []
    index = own_parts / "pairs.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[:8]))  # half of the pairs
    (output,) = _resumed(tiny_config, own_parts, caplog)
    assert output.startswith(
        "the pairs of the data changed since the checkpoint: 16 then, 8 now; 8 removed, 0 added, 0 "
    )
    index.write_text("".join(lines).replace("invert the", "negate the"))  # other captions
    (output,) = _resumed(tiny_config, own_parts, caplog)
    assert "8 then, 16 now; 0 removed, 8 added, 4 altered" in output
    image = next((own_parts / "images" / "mirror").glob("*_after.png"))
    shutil.copy(next((own_parts / "images" / "invert").glob("*_after.png")), image)  # replaced in place
    (output,) = _resumed(tiny_config, own_parts, caplog)
    assert "16 then, 16 now; 0 removed, 0 added, 1 altered: mirror/" in output
    (output,) = _resumed(tiny_config, own_parts, caplog, "data.hold_out_pairs=1")  # other splits
    assert "16 then, 16 now; 0 removed, 0 added, 4 altered" in output


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("model/transformer/diffusion_pytorch_model.safetensors", "base"),
        ("model/vae/diffusion_pytorch_model.safetensors", "base"),
        ("encoder/model.safetensors", "image encoder"),
    ],
)
def test_model_that_was_replaced_under_its_name_is_named(tiny_config, own_parts, caplog, file, kind):
    assert _resumed(tiny_config, own_parts, caplog) == []
    tensors = load_file(own_parts / file)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, own_parts / file, {"format": "pt"})
    (output,) = _resumed(tiny_config, own_parts, caplog)
    assert output.startswith(f"the files of the {kind} changed since the checkpoint: ")
    assert "0 removed, 0 added, 1 altered: " in output
    assert output.endswith(file.partition("/")[2])


def test_finished_run_is_left_as_it_is(tiny_config):
    config = tiny_config("run.steps=2")
    train(config)
    (folder,) = list_checkpoints(config.run_folder / "checkpoints")
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert train(config, resume="latest").losses == ()
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_stopped_run_that_cannot_be_saved_ends_with_an_error(tiny_config, assembled):
    config = tiny_config("run.steps=5", "checkpoint.every=100")
    loop, state = assembled(config)
    loop.stop.reason = "SIGTERM"
    (config.run_folder / "checkpoints").write_text("a file in the way")
    with pytest.raises(ValueError, match="Free disk space"):
        loop.run(state)


def test_disk_without_room_for_numbers_costs_no_steps(tiny_config, caplog):
    config = tiny_config("run.steps=3", "tracking.log_every=1", "validation.every=2", "validation.images=0")
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "metrics.jsonl").symlink_to("/dev/full")
    (config.run_folder / "validation").write_text("a file in the way")
    assert train(config).step == 3
    assert caplog.text.count("numbers of step") == 6
    assert "the validation of step 2 is not written" in caplog.text


def test_numbers_that_are_not_finite_are_null_in_the_metrics(tiny_config, assembled):
    config = tiny_config("run.steps=1")
    loop, _ = assembled(config)
    loop.monitor.log(1, {"train/gradient_norm": float("nan")})
    line = (config.run_folder / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["train/gradient_norm"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_gpu_that_is_not_there_is_refused(tiny_config):
    with pytest.raises(ValueError, match="does not exist here"):
        train(tiny_config("run.steps=1", "run.device=cuda"))


def test_trained_parameters_of_a_small_basis_are_reported_in_thousands(tiny_config, assembled, caplog):
    caplog.set_level("INFO")
    _, state = assembled(tiny_config("run.steps=1"))
    trained = sum(tensor.numel() for tensor in state.model.trained_state().values())
    assert f"20 layers, {trained / 1e3:.1f} thousand trained parameters" in caplog.messages
    assert 1e3 < trained < 1e5


def test_the_first_batch_of_a_resumed_run_finds_torch_s_own_generator_as_it_was(tiny_config, assembled):
    config = tiny_config("run.steps=1")
    train(config)
    loop, _ = assembled(tiny_config("run.steps=2"), resume="latest")
    next(loop.batches)
    loop.batches.close()
    assert torch.equal(torch.get_rng_state(), load_latest(config.run_folder / "checkpoints")["random"]["cpu"])
