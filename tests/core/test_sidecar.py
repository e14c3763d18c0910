"""Settings in YAML, both forms; and which source of settings wins."""

import json
from pathlib import Path

import pytest
import yaml

from lorweb_core.checkpoint import load_basis, save_basis
from lorweb_core.errors import CheckpointError, SettingsError
from lorweb_core.settings import CLIP_ENCODER_ID, SIGLIP_ENCODER_ID, RouterSettings
from lorweb_core.sidecar import read_settings_file, reference_config
from tests.basis_files import write_reference
from tests.synthetic import make_basis

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"basis_size": 4, "rank": 2, "key_dim": 8}  # of tests.synthetic


def network_yaml(*, sizes=SIZES, linear=True, **arguments):
    """Return a reference config.yaml with the given network_kwargs."""
    named = {"loras_num": sizes["basis_size"], "lora_keys_dim": sizes["key_dim"], **arguments}
    network = {"type": "attlora", "linear_alpha": 4, "network_kwargs": named} | (
        {"linear": sizes["rank"]} if linear else {}
    )
    return yaml.safe_dump({"config": {"process": [{"network": network, "train": {"lr": "1e-3"}}]}})


FULL = {
    "lora_softmax": False,
    "lora_heads": 2,
    "mixing_coeffs_type": "sum",
    "query_mode": "ca'-ca",
    "external_query": True,
    "external_query_model": SIGLIP_ENCODER_ID,
    "query_projection_type": "linear",
}
FULL_SETTINGS = RouterSettings("tanh", 2, "sum", "ca'-ca", SIGLIP_ENCODER_ID)


@pytest.mark.parametrize("case", "ABCDEFGH")
def test_golden_sidecars_are_read_as_their_case_says(case):
    manifest = json.loads((GOLDEN / f"case_{case}.json").read_text())["manifest"]
    stated = read_settings_file(GOLDEN / f"basis_{case}.yaml")
    assert stated.router == {
        "activation": "softmax" if manifest["softmax"] else "tanh",
        "heads": manifest["heads"],
        "reduction": manifest["mixing"],
        "query_mode": manifest["query_mode"],
        "encoder_id": CLIP_ENCODER_ID,
    }
    assert stated.sizes == {"basis_size": manifest["N"], "rank": manifest["r"], "key_dim": manifest["key_dim"]}
    assert stated.has_projection is True


@pytest.mark.parametrize("case", "ABCDEFGH")
def test_golden_bases_load_with_their_sidecar_and_assume_nothing(case):
    basis = load_basis(GOLDEN / f"basis_{case}.safetensors")
    assert basis.report == () and basis.settings_source == f"settings file basis_{case}.yaml"


def test_an_internal_query_is_refused_with_the_reason(tmp_path):
    with pytest.raises(SettingsError, match=r"external_query: true.*got external_query: false.*cannot be computed"):
        read_settings_file(GOLDEN / "basis_J.yaml")
    with pytest.raises(CheckpointError, match=r"basis_J.*\(internal query\).*external_query: true"):
        load_basis(GOLDEN / "basis_J.safetensors")


def test_the_written_config_is_read_back_and_has_every_key_the_reference_needs(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(reference_config(FULL_SETTINGS, basis_size=4, rank=2, key_dim=8, projects=True))
    stated = read_settings_file(path)
    assert RouterSettings(**stated.router) == FULL_SETTINGS
    assert (stated.sizes, stated.has_projection) == (SIZES, True)
    ours = yaml.safe_load(path.read_text())["config"]["process"][0]["network"]
    golden = yaml.safe_load((GOLDEN / "basis_A.yaml").read_text())["config"]["process"][0]["network"]
    assert ours.keys() == golden.keys() and ours["network_kwargs"].keys() == golden["network_kwargs"].keys()


def test_numbers_and_truths_written_as_text_are_understood(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(network_yaml(lora_heads="2", lora_softmax="True", external_query="true", extra="1e-3"))
    stated = read_settings_file(path)
    assert stated.router == {"heads": 2, "activation": "softmax"}


def test_the_plain_form_takes_any_subset(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("﻿activation: tanh\nencoder: {id: some/encoder, revision: abc}\nrank: 2\n", encoding="utf-8")
    stated = read_settings_file(path)
    assert stated.router == {"activation": "tanh", "encoder_id": "some/encoder", "encoder_revision": "abc"}
    assert stated.sizes == {"rank": 2}


BAD_YAML = {
    "no YAML": ("a: [1", "to be YAML text"),
    "a Python object": ("a: !!python/object/apply:os.system ['true']", "to be YAML text"),
    "deep nesting": ("[" * 3000, "to be YAML text"),
    "an impossible date": ("a: 2020-99-99", "to be YAML text"),
    "an unhashable key": ("? [1, 2]\n: 3", "to be YAML text"),
    "binary": ("\x00\x01", "to be YAML text"),
    "empty": ("", r"config\.process\[0\]\.network, or activation"),
    "a list": ("[1, 2]", r"config\.process\[0\]\.network, or activation"),
    "another program's file": ("job: train\n", r"config\.process\[0\]\.network, or activation"),
    "no process": ("config: {}", r"config\.process\[0\]\.network; got"),
    "process of text": ("config: {process: [abc]}", r"config\.process\[0\]\.network; got"),
    "odd network_kwargs": ("config: {process: [{network: {network_kwargs: 3}}]}", "network_kwargs .* a mapping; got 3"),
    "unknown field": ("activatoin: tanh", "got activatoin. Did you mean activation"),
    "heads of text": ("heads: two", "heads .* a whole number of at least 1; got 'two'"),
    "heads of half": ("heads: 1.5", "whole number"),
    "endless heads": ("heads: .inf", "whole number"),
    "no heads": ("heads: 0", "whole number"),
    "true heads": ("heads: true", "whole number"),
    "huge heads": (f"heads: {'9' * 400}", "whole number"),
    "odd encoder": ("encoder: [1]", "encoder .* mapping with id and revision"),
    "softmax maybe": (network_yaml(lora_softmax="maybe"), "lora_softmax .* true or false; got 'maybe'"),
    "odd projection": (network_yaml(query_projection_type="mlp"), "query_projection_type .* linear or none; got 'mlp'"),
    "too long": ("# " + "x" * 1_000_001, "at most 1,000,000 bytes"),
}


@pytest.mark.parametrize(("text", "message"), BAD_YAML.values(), ids=BAD_YAML)
def test_bad_settings_files_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_settings_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query_mode: cat-paa'b", 'query_mode to be one of .*; got "cat-paa\'b"'),
        ("activation: [softmax]", r"activation to be one of softmax, tanh; got \['softmax'\]"),
        ("reduction: {a: 1}", "reduction to be one of"),
        ("encoder: ''", "encoder_id to be a name"),
        ("base_model: 3", "base_model to be a name"),
        ("heads: 3", "heads to divide the key width 8 of layer transformer_blocks.0.attn.to_q; got 3"),
        ("rank: 4", "tensors with rank 4, as settings file basis.yaml says; got rank 2"),
    ],
)
def test_values_that_a_basis_cannot_have_are_refused(tmp_path, text, message):
    path = write_reference(tmp_path / "basis.safetensors")
    (tmp_path / "basis.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_basis(path)


def test_an_unreadable_settings_file_is_told(tmp_path):
    with pytest.raises(SettingsError, match=r"readable YAML file .*; got No such file"):
        read_settings_file(tmp_path / "none.yaml")


def test_the_first_source_that_states_a_setting_wins(tmp_path):
    path = tmp_path / "basis.safetensors"
    save_basis(path, make_basis().layers, RouterSettings(activation="tanh"))
    (tmp_path / "basis.yaml").write_text("activation: softmax\nheads: 4")
    (tmp_path / "given.yaml").write_text("reduction: sum")
    assert load_basis(path).settings == RouterSettings(activation="tanh")
    from_file = load_basis(path, settings=tmp_path / "given.yaml")
    assert from_file.settings == RouterSettings(activation="tanh", reduction="sum")
    assert from_file.settings_source == "settings file given.yaml and the header of basis.safetensors"
    given = load_basis(path, settings=FULL_SETTINGS)
    assert given.settings == FULL_SETTINGS and given.settings_source == "argument" and given.report == ()


def test_a_sidecar_that_is_not_needed_must_still_agree(tmp_path):
    path = tmp_path / "basis.safetensors"
    save_basis(path, make_basis().layers, RouterSettings())
    (tmp_path / "basis.yaml").write_text("rank: 77")
    with pytest.raises(SettingsError, match=r"tensors with rank 77, as settings file basis.yaml says; got rank 2"):
        load_basis(path)
    assert load_basis(path, settings=RouterSettings()).report == ()
    (tmp_path / "basis.yaml").write_text("rank: 2\nactivation: softmax")
    assert load_basis(path).report == (), "it says nothing new"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("activation: tanh\nheads: 1", "basis.yaml says otherwise: activation tanh."),
        ("steps: 100", "basis.yaml could not be read: Expected fields of settings file basis.yaml"),
    ],
)
def test_a_sidecar_without_effect_is_reported(tmp_path, text, words):
    path = tmp_path / "basis.safetensors"
    save_basis(path, make_basis().layers, RouterSettings())
    (tmp_path / "basis.yaml").write_text(text)
    basis = load_basis(path)
    assert basis.settings == RouterSettings()
    (line,) = basis.report
    assert line.startswith("basis.yaml was not used: the file has settings of its own") and words in line


def test_a_sidecar_of_its_own_name_goes_before_config_yaml(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors")
    (tmp_path / "config.yaml").write_text(network_yaml(**FULL))
    assert load_basis(path).settings == FULL_SETTINGS
    (tmp_path / "basis.yaml").write_text(network_yaml(**{**FULL, "query_mode": "caa'"}))
    assert load_basis(path).settings.query_mode == "caa'"


def test_config_yaml_beside_several_bases_is_left_alone_and_said_so(tmp_path, caplog):
    path = write_reference(tmp_path / "basis.safetensors")
    write_reference(tmp_path / "basis_000000500.safetensors")
    (tmp_path / "config.yaml").write_text(network_yaml(**FULL))
    basis = load_basis(path)
    assert basis.settings == RouterSettings()
    assert "config.yaml was not read, since the folder holds 2 .safetensors files" in basis.report[-1]
    assert basis.report[-1] in caplog.text


def test_what_a_sidecar_lacks_is_assumed_and_named(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors")
    (tmp_path / "basis.yaml").write_text(network_yaml(lora_heads=2, mixing_coeffs_type="sum"))
    basis = load_basis(path)
    assert basis.settings == RouterSettings(heads=2, reduction="sum")
    assert basis.settings_source == "settings file basis.yaml and defaults"
    assert len(basis.report) == 1
    for part in (
        "3 settings not stated by settings file basis.yaml",
        "activation softmax",
        "query_mode cat-aa'b",
        CLIP_ENCODER_ID,
    ):
        assert part in basis.report[0]


@pytest.mark.parametrize(
    ("query_dim", "mode"), [(2304, "cat-aa'b"), (36, "cat-aa'b"), (768, "aa'bb'"), (1152, "aa'bb'"), (1024, "aa'bb'")]
)
def test_without_any_source_the_query_width_decides_the_mode_with_a_warning(tmp_path, caplog, query_dim, mode):
    basis = load_basis(write_reference(tmp_path / "basis.safetensors", query_dim=query_dim))
    assert basis.settings == RouterSettings(query_mode=mode)
    assert basis.settings_source == "defaults"
    assert f"query_mode {mode}" in caplog.text and "basis.yaml" in caplog.text
    assert len(basis.report) == (1 if mode == "cat-aa'b" else 2)


def test_a_sidecar_of_another_basis_is_refused_with_both_values(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors", project=False, key_dim=9)
    text = network_yaml(sizes={"basis_size": 32, "rank": 1, "key_dim": 128}, query_projection_type="linear")
    (tmp_path / "basis.yaml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_basis(path)
    assert caught.value.expected.startswith(
        "tensors with basis_size 32, key_dim 128, rank 1, a query projection (linear)"
    )
    assert caught.value.got == "basis_size 4, key_dim 9, rank 2, no query projection (none)"


def test_linear_alpha_is_ignored(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors")
    (tmp_path / "basis.yaml").write_text(network_yaml(**FULL).replace("linear_alpha: 4", "linear_alpha: 64"))
    assert load_basis(path).settings == FULL_SETTINGS


def test_a_mode_that_does_not_divide_the_query_width_is_refused(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors", query_dim=16)
    with pytest.raises(SettingsError, match="fits the query width 16; got cat-aa'b, which joins 3"):
        load_basis(path, settings=RouterSettings())
