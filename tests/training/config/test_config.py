"""One typed tree, read from YAML and overrides, with all errors reported at once."""

import json
from pathlib import Path

import pytest
import yaml

from training.config.reading import SHIPPED, ConfigError, dotted_names, read_config, write_config
from training.config.schema import TrainConfig

WORKFLOWS = Path(__file__).parents[3] / "workflows"
SHIPPED_NAMES = sorted(path.name for path in SHIPPED.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_shipped_file_is_valid(name):
    config = read_config(name, ["data.index=pairs.jsonl"])
    assert isinstance(config, TrainConfig)


@pytest.mark.parametrize("name", sorted(set(SHIPPED_NAMES) - {"tiny.yaml"}))
def test_prompts_are_as_long_as_the_shipped_workflows_make_them(name):
    nodes = [node for path in WORKFLOWS.glob("*.json") for node in json.loads(path.read_text())["nodes"]]
    lengths = {tuple(node["widgets_values"]) for node in nodes if node["type"] == "T5TokenizerOptions"}
    assert lengths == {(0, read_config(name, ["data.index=x"]).text.max_tokens)}


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_every_value_of_a_shipped_file_has_a_comment(name):
    lines = (SHIPPED / name).read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if ":" in line and not line.lstrip().startswith("#") and not line.endswith(":")]
    assert values
    assert [line for line in values if "#" not in line] == []


def test_paper_file_has_the_values_of_the_published_run():
    config = read_config("paper.yaml", ["data.index=pairs.jsonl"])
    basis, optimizer = config.basis, config.optimizer
    assert (basis.basis_size, basis.rank, basis.key_dim, basis.gain) == (32, 4, 128, 1.0)
    assert (basis.activation, basis.query_mode, basis.include) == ("softmax", "cat-aa'b", ("*",))
    assert (config.run.steps, config.run.batch_size, optimizer.name) == (10_000, 6, "adamw8bit")
    assert (optimizer.learning_rate, optimizer.schedule) == (1e-3, "constant")
    assert (config.flow.timesteps, config.flow.copied_weight, config.text.caption_source) == ("bell", 1.0, "a")


def test_single_lora_has_the_capacity_of_the_paper_run():
    paper, single = (read_config(name, ["data.index=x"]).basis for name in ("paper.yaml", "single_lora.yaml"))
    assert single.basis_size == 1
    assert single.rank == paper.basis_size * paper.rank


def test_all_errors_are_reported_at_once_with_the_nearest_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "optimiser: {}\nbasis: {basis_sise: 4}\nrun: {batch_size: many, rank: 3}\n"
        "optimizer: {ema_decay: 2}\ndata: {resolution_px: 100}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_config(path, ["steps=3"])
    output = "\n".join(caught.value.errors)
    for part in (
        "optimiser: unknown name; did you mean optimizer?",
        "basis.basis_sise: unknown name; did you mean basis_size?",
        "run.rank: unknown name; did you mean basis.rank?",
        "run.batch_size",
        "optimizer.ema_decay",
        "data.index: has no default",
        "data.resolution_px",
        "'steps=3' is not of the form section.name=value",
    ):
        assert part in output


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["basis.basis_size=100", "basis.rank=100"], "at most 4096"),
        (["basis.heads=3"], "basis.heads: unknown name"),
        (["run.strategy=fsdp", "base.quantize=int8"], "fsdp"),
        (["run.name=../up"], "run.name"),
        (["optimizer.ema_decay=1.0"], "optimizer.ema_decay"),
        (["optimizer.learning_rate=.nan"], "learning_rate"),
    ],
)
def test_contradictions_are_refused(overrides, part):
    with pytest.raises(ConfigError, match=part):
        read_config("tiny.yaml", overrides)


def test_overrides_are_yaml_and_win():
    overrides = ["optimizer.learning_rate=3e-4", "data.hold_out_tasks=[one, two]", "basis.coefficient_gain=basis_size"]
    config = read_config("paper.yaml", ["data.index=x", *overrides])
    assert config.optimizer.learning_rate == 3e-4
    assert config.data.hold_out_tasks == ("one", "two")
    assert config.basis.gain == 32.0


def test_extending_file_replaces_single_values_only(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {index: x}\nbasis: {rank: 2, basis_size: 8}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nbasis: {rank: 16}\n")
    basis = read_config(tmp_path / "mine.yaml").basis
    assert (basis.rank, basis.basis_size) == (16, 8)


def test_file_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: mine.yaml\n")
    with pytest.raises(ConfigError, match="extend itself"):
        read_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", [None, "- a\n- list\n", "basis: [unclosed\n"])
def test_unreadable_file_names_the_shipped_ones(tmp_path, text):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml has 1 error") as caught:
        read_config(path)
    first, error, remedy = str(caught.value).splitlines()
    assert first.endswith("mine.yaml has 1 error:")
    assert "Errno" not in error
    assert remedy == "Correct the file or the command line (name=value)."
    assert text == "- a\n- list\n" or "Shipped files: 16gb.yaml" in error


def test_shipped_file_is_found_without_its_suffix_even_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_config("tiny") == read_config("tiny.yaml")
    assert read_config("24gb", ["data.index=x"]).base.quantize == "nf4"
    with pytest.raises(ConfigError, match="There is no file tinny"):
        read_config("tinny")


def test_resolved_file_reads_back_equal(tmp_path):
    config = read_config("paper.yaml", ["data.index=x", "data.hold_out_tasks=[one]", "basis.coefficient_gain=2"])
    write_config(tmp_path / "resolved.yaml", config)
    assert read_config(tmp_path / "resolved.yaml") == config


def test_names_are_unique_sections_and_names():
    names = dotted_names()
    assert len(names) == len(set(names)) <= 45
    shipped = yaml.safe_load(Path(SHIPPED / "paper.yaml").read_text(encoding="utf-8"))
    given = {f"{section}.{name}" for section, values in shipped.items() for name in values}
    assert given <= set(names)
    assert set(names) - given <= {"basis.start_from"}


def test_own_file_may_extend_a_shipped_one_or_one_beside_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: 16gb.yaml\nbasis:\n  rank: 2\n")
    config = read_config(tmp_path / "mine.yaml", ["data.index=x"])
    assert (config.basis.rank, config.basis.basis_size, config.base.quantize) == (2, 16, "nf4")
    (tmp_path / "16gb.yaml").write_text("data:\n  index: beside\n")
    assert str(read_config(tmp_path / "mine.yaml").data.index) == "beside"
