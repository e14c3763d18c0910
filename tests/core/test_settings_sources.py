"""Settings in YAML, both forms; and which source of settings wins."""

import json
from pathlib import Path

import pytest
import yaml

from lorweb_core.checkpoint import load_basis, save_basis
from lorweb_core.errors import CheckpointError, FileError, SettingsError
from lorweb_core.settings import CLIP_ENCODER_ID, SIGLIP_ENCODER_ID, RouterSettings
from lorweb_core.settings_sources import read_settings_file
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
    assert read_settings_file(GOLDEN / f"basis_{case}.yaml") == {
        "activation": "softmax" if manifest["softmax"] else "tanh",
        "heads": manifest["heads"],
        "reduction": manifest["mixing"],
        "query_mode": manifest["query_mode"],
        "encoder_id": CLIP_ENCODER_ID,
        **{"basis_size": manifest["N"], "rank": manifest["r"], "key_dim": manifest["key_dim"]},
        **{"query_projection": "linear", "external_query": True},
    }


@pytest.mark.parametrize("case", "ABCDEFGH")
def test_golden_bases_load_with_their_sidecar_and_assume_nothing(case):
    basis = load_basis(GOLDEN / f"basis_{case}.safetensors")
    assert basis.report == () and basis.settings_source == f"settings file basis_{case}.yaml"


def test_an_internal_query_is_refused_with_the_reason(tmp_path):
    with pytest.raises(CheckpointError, match=r"basis_J.*\(internal query\).*external_query: true"):
        load_basis(GOLDEN / "basis_J.safetensors")
    path = write_reference(tmp_path / "basis.safetensors", sizes={"transformer_blocks.0.attn.to_q": (18, 12)})
    (tmp_path / "basis.yaml").write_text(network_yaml(external_query=False))
    with pytest.raises(SettingsError, match=r"basis.yaml says external_query: false: the query is pooled"):
        load_basis(path)


def test_the_plain_form_takes_any_subset(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("﻿activation: tanh\nencoder: {id: some/encoder, revision: abc}\nrank: 2\n", encoding="utf-8")
    encoder = {"encoder_id": "some/encoder", "encoder_revision": "abc"}
    assert read_settings_file(path) == {"activation": "tanh", **encoder, "rank": 2}


BAD_FILES = {
    "no YAML": ("a: [1", "bad.yaml is not usable YAML"),
    "unknown field": ("activatoin: tanh", "an unknown field 'activatoin'; did you mean activation"),
    "another unknown field": ("heads: 1\nsteps: 3", "an unknown field 'steps'; known are activation"),
    "heads of text": ("heads: two", "bad.yaml: heads is 'two'. It must be a whole number of at least 1"),
    "heads of half": ("heads: 1.5", "heads is 1.5"),
    "endless heads": ("heads: .inf", "heads is inf"),
    "no heads": ("heads: 0", "heads is 0"),
    "true heads": ("heads: true", "heads is True"),
    "huge heads": (f"heads: {'9' * 400}", "integer of more than 64 bits"),
    "odd encoder": ("encoder: [1]", r"encoder_id is \[1\]"),
    "empty encoder": ("encoder: ''", "encoder_id is ''. It must be a name"),
    "encoder without id": ("encoder: {revision: a}", "encoder_id is None"),
    "odd base": ("base_model: 3", "base_model is 3"),
    "odd mode": ("query_mode: cat-paa'b", 'query_mode is "cat-paa\'b". Known are cat-aa'),
    "odd activation": ("activation: [softmax]", r"activation is \['softmax'\]. Known are softmax, tanh"),
    "odd reduction": ("reduction: {a: 1}", "reduction is"),
    "softmax maybe": (network_yaml(lora_softmax="maybe"), "lora_softmax is 'maybe'. Write true or false"),
    "too long": ("# " + "x" * 50_001, "more than 50,000 bytes"),
    "heads that do not divide": ("heads: 3", "heads is 3, which does not divide the key width 8 of layer transformer"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_settings_that_no_basis_can_have_are_refused(tmp_path, text, message):
    path = write_reference(tmp_path / "bad.safetensors")
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises((SettingsError, FileError), match=message):
        load_basis(path)


def test_an_explicit_file_must_state_something(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors")
    with pytest.raises(FileError, match="There is no file"):
        load_basis(path, settings=tmp_path / "none.yaml")
    (tmp_path / "given.yaml").write_text("steps: 3")
    with pytest.raises(SettingsError, match=r"given.yaml states no router settings"):
        load_basis(path, settings=tmp_path / "given.yaml")


#: The published file: the sizes, softmax and mode are given on the reference's command line.
PUBLISHED = """
job: extension
config:
  name: lorweb
  process:
    - type: sd_trainer
      network:
        type: attlora
        linear: 1
        linear_alpha: 1
        network_kwargs:
          lora_keys_dim: 8
          lora_heads: 2
          mixing_coeffs_type: sum
          external_query: true
          pooling_type: avg
          query_projection_type: linear
          external_query_model: google/siglip2-base-patch16-224
"""
FULL_FILE = PUBLISHED.replace("linear: 1", "linear: 2") + "".join(
    f"          {line}\n" for line in ("loras_num: 4", "lora_softmax: false", "query_mode: ca'-ca")
)
IN_PUBLISHED = RouterSettings(heads=2, reduction="sum", encoder_id=SIGLIP_ENCODER_ID)
TWO = "2 settings not stated by settings file config.yaml; assumed activation softmax, query_mode cat-aa'b"
ALL = "5 settings not stated by settings file config.yaml"
VARIANTS = {
    "published": (PUBLISHED, IN_PUBLISHED, ["the tensors have rank 2; settings file config.yaml says rank 1.", TWO]),
    "full": (FULL_FILE, FULL_SETTINGS, []),
    "text for numbers": (FULL_FILE.replace("heads: 2", "heads: '2'").replace("num: 4", "num: '4'"), FULL_SETTINGS, []),
    "floats": (FULL_FILE.replace("heads: 2", "heads: 2.0").replace("linear: 2", "linear: 2.0"), FULL_SETTINGS, []),
    "text for truths": (FULL_FILE.replace(": false", ": 'False'").replace(": true", ": 'true'"), FULL_SETTINGS, []),
    "further processes": (FULL_FILE.replace("process:", "process:\n    - null\n    - {type: x}"), FULL_SETTINGS, []),
    "wrong sizes": (
        FULL_FILE.replace(": 4", ": 32").replace("keys_dim: 8", "keys_dim: wide").replace("type: linear", "type: none"),
        FULL_SETTINGS,
        ["have basis_size 4, key_dim 8, query_projection linear; settings file config.yaml says basis_size 32, "
         "key_dim wide, query_projection none."],
    ),
    "internal query": (
        FULL_FILE.replace("external_query: true", "external_query: false"),
        FULL_SETTINGS,
        ["have external_query True; settings file config.yaml says external_query False."],
    ),
    "no network_kwargs": ("config: {process: [{network: {linear: 2}}]}", RouterSettings(), [ALL]),
    "no network": ("config: {process: [{type: sd_trainer}]}", RouterSettings(), [ALL]),
    "no process": ("config: {process: abc}", RouterSettings(), [ALL]),
    "a number of processes": ("config: {process: 5}", RouterSettings(), [ALL]),
    "a true process": ("config: {process: true}", RouterSettings(), [ALL]),
    "job only": ("job: extension", RouterSettings(), [ALL]),
    "another program's": ("[1, {steps: 3}]", RouterSettings(), [ALL]),
    "empty": ("", RouterSettings(), [ALL]),
    "only comments": ("# config\n", RouterSettings(), [ALL]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "settings", "lines"), VARIANTS.values(), ids=VARIANTS)
def test_a_basis_loads_with_any_form_of_its_config(tmp_path, text, settings, lines):
    path = write_reference(tmp_path / "basis.safetensors")
    (tmp_path / "config.yaml").write_text(text)
    basis = load_basis(path)
    assert basis.settings == settings
    assert len(basis.report) == len(lines)
    for line, words in zip(basis.report, lines, strict=True):
        assert line.startswith("basis.safetensors: ") and words in line


def test_the_first_source_that_states_a_setting_wins(tmp_path):
    path = tmp_path / "basis.safetensors"
    save_basis(path, make_basis().layers, RouterSettings(activation="tanh"))
    (tmp_path / "basis.yaml").write_text("activation: softmax\nheads: 4")
    (tmp_path / "given.yaml").write_text("reduction: sum")
    assert load_basis(path).settings == RouterSettings(activation="tanh")
    from_file = load_basis(path, settings=tmp_path / "given.yaml")
    assert from_file.settings == RouterSettings(activation="tanh", reduction="sum")
    assert from_file.settings_source == "settings file given.yaml and the header of basis.safetensors"
    assert from_file.report == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rank: 2\nactivation: softmax", None),
        ("rank: 77", "the tensors have rank 2; settings file basis.yaml says rank 77."),
        ("activation: tanh\nheads: 1", "settings file basis.yaml says activation tanh, but the header of basis."),
        ("heads: 1\nsteps: 100", "basis.yaml was not needed and is unusable: settings file basis.yaml has an unknown"),
        ("a: [1", "basis.yaml was not needed and is unusable: "),
    ],
)
def test_a_sidecar_beside_settings_in_the_header_is_only_reported(tmp_path, text, words):
    path = tmp_path / "basis.safetensors"
    save_basis(path, make_basis().layers, RouterSettings())
    (tmp_path / "basis.yaml").write_text(text)
    basis = load_basis(path)
    assert basis.settings == RouterSettings() and len(basis.report) == (words is not None)
    assert words is None or words in basis.report[0]
    assert basis.settings_source == "the header of basis.safetensors"


def test_sizes_in_the_header_that_the_tensors_do_not_have_are_reported(tmp_path):
    text = '{"format_version": 1, "basis_size": 5, "activation": "tanh"}'
    basis = load_basis(write_reference(tmp_path / "basis.safetensors", metadata={"lorweb": text}))
    assert basis.settings == RouterSettings("tanh")
    assert "the tensors have basis_size 4; the header of basis.safetensors says basis_size 5." in basis.report[0]


def test_a_given_file_of_the_sidecars_name_does_not_hide_the_sidecar(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors")
    (tmp_path / "config.yaml").write_text("heads: 2")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("activation: tanh")
    assert load_basis(path, settings=tmp_path / "other" / "config.yaml").settings == RouterSettings("tanh", heads=2)


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


def test_a_mode_that_does_not_divide_the_query_width_is_refused(tmp_path):
    path = write_reference(tmp_path / "basis.safetensors", query_dim=16)
    (tmp_path / "basis.yaml").write_text("query_mode: cat-aa'b")
    with pytest.raises(SettingsError, match=r"query_mode is cat-aa'b, which joins 3 .* but the query width is 16"):
        load_basis(path)
