"""Settings in YAML, both forms; and which source of settings wins."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lorweb_core.checkpoint import load_basis
from lorweb_core.errors import CheckpointError, FileError, SettingsError
from lorweb_core.settings import CLIP_ENCODER_ID, SIGLIP_ENCODER_ID, RouterSettings
from lorweb_core.settings_sources import read_settings_file
from tests.basis_files import header_settings, write_reference

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
def test_golden_sidecars_are_read_as_their_case_says_and_nothing_is_assumed(case):
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


STATED = header_settings(encoder=CLIP_ENCODER_ID)
TANH = header_settings(encoder=CLIP_ENCODER_ID, activation="tanh")
HEADER = "the header of basis.safetensors"
#: Header of the basis, files beside it (one in `given` is the one that the user names), settings, their source, report.
SOURCES = {
    "header": (
        TANH, {"basis.yaml": "activation: softmax\nheads: 4"}, RouterSettings("tanh"), HEADER,
        ["settings file basis.yaml says activation softmax, heads 4, but the header of basis."],
    ),
    "given file": (
        TANH, {"basis.yaml": "activation: softmax\nheads: 4", "given/given.yaml": "reduction: sum"},
        RouterSettings("tanh", reduction="sum"), f"settings file given.yaml and {HEADER}", [],
    ),
    "given file of the sidecar's name": (
        None, {"config.yaml": "heads: 2", "given/config.yaml": "activation: tanh"}, RouterSettings("tanh", heads=2),
        "settings file config.yaml and settings file config.yaml and defaults", ["3 settings not stated"],
    ),
    "config.yaml": (
        None, {"config.yaml": network_yaml(**FULL)}, FULL_SETTINGS, "settings file config.yaml", []
    ),
    "sidecar of its own name": (
        None, {"config.yaml": network_yaml(**FULL), "basis.yaml": network_yaml(**FULL | {"query_mode": "ca'-ca+cb"})},
        replace(FULL_SETTINGS, query_mode="ca'-ca+cb"), "settings file basis.yaml", [],
    ),
    "config.yaml of several bases": (
        None, {"config.yaml": network_yaml(**FULL), "basis_000000500.safetensors": ""}, RouterSettings(), "defaults",
        ["5 settings not stated", "config.yaml was not read, since the folder holds 2 .safetensors files"],
    ),
    "defaults for what a sidecar lacks": (
        None, {"basis.yaml": network_yaml(lora_heads=2, mixing_coeffs_type="sum")},
        RouterSettings(heads=2, reduction="sum"), "settings file basis.yaml and defaults",
        ["3 settings not stated by settings file basis.yaml; assumed activation softmax, query_mode cat-aa'b, "
         f"encoder_id {CLIP_ENCODER_ID}"],
    ),
    "sizes in the header": (
        header_settings(encoder=CLIP_ENCODER_ID, basis_size=5), {}, RouterSettings(), HEADER,
        ["the tensors have basis_size 4; the header of basis.safetensors says basis_size 5."],
    ),
    "agreeing sidecar": (STATED, {"basis.yaml": "rank: 2\nactivation: softmax"}, RouterSettings(), HEADER, []),
    "sizes in the sidecar": (
        STATED, {"basis.yaml": "rank: 77"}, RouterSettings(), HEADER,
        ["the tensors have rank 2; settings file basis.yaml says rank 77."],
    ),
    "unknown field in the sidecar": (
        STATED, {"basis.yaml": "heads: 1\nsteps: 100"}, RouterSettings(), HEADER,
        ["basis.yaml was not needed and is unusable: settings file basis.yaml has an unknown"],
    ),
    "unusable sidecar": (
        STATED, {"basis.yaml": "a: [1"}, RouterSettings(), HEADER, ["basis.yaml was not needed and is unusable: "]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("metadata", "files", "settings", "source", "report"), SOURCES.values(), ids=SOURCES)
def test_the_first_source_that_states_a_setting_wins_and_contradictions_are_reported(
    tmp_path, caplog, metadata, files, settings, source, report
):
    path = write_reference(tmp_path / "basis.safetensors", metadata=metadata)
    (tmp_path / "given").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    given = next((tmp_path / name for name in files if name.startswith("given/")), None)
    basis = load_basis(path, settings=given)
    assert (basis.settings, basis.settings_source) == (settings, source)
    assert len(basis.report) == len(report), basis.report
    for line, words in zip(basis.report, report, strict=True):
        assert line.startswith("basis.safetensors: ") and words in line and line in caplog.text


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
