"""The command line: what each command writes, and exit code 2 with a short message for every user error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file

from lorweb_core.checkpoint import load_basis
from lorweb_core.coefficients import encode_coefficients
from lorweb_core.coefficients_file import load_coefficients, save_coefficients
from lorweb_core.command_line import COMMANDS, app
from lorweb_core.mixing import layer_delta
from lorweb_core.settings import RouterSettings
from tests.basis_files import header_settings, read_deltas, write_reference
from tests.images import write_tiny_clip
from tests.synthetic import SIZES

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
IMAGES = GOLDEN / "images"


def write_coefficients(path, basis_path, query):
    """Write the coefficients that a basis gives for query embeddings, and return the path."""
    save_coefficients(path, encode_coefficients(load_basis(basis_path), query))
    return path


def golden_query(case):
    return load_file(GOLDEN / f"io_{case}.safetensors")["in.external_query"]


def assert_refused(result, *parts):
    """A user error: exit code 2, nothing on stdout, one message on stderr that has all parts."""
    code, out, err = result
    assert (code, out) == (2, []) and len(err) <= 4 and "error" in err[-1].lower(), result
    for part in parts:
        assert part in err[-1], err


def golden_basis(case):
    return GOLDEN / f"basis_{case}.safetensors"


def test_it_runs_as_a_module_and_warns_of_assumed_settings_on_stderr(tmp_path):
    path = write_reference(tmp_path / "plain.safetensors")
    result = run_module("inspect", path)
    assert result.returncode == 0 and "Basis size N:  4" in result.stdout and "Settings from: defaults" in result.stdout
    assert result.stderr.startswith("WARNING: plain.safetensors: 5 settings not stated")
    assert len(result.stderr.splitlines()) == 1


def test_an_error_is_one_line_and_exit_code_2():
    result = run_module("inspect", "missing.safetensors")
    assert result.returncode == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr and "missing.safetensors" in result.stderr


def test_without_typer_it_says_what_to_install():
    script = "import runpy, sys; sys.modules['typer'] = None; runpy.run_module('lorweb_core', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr == "The command line needs typer: pip install typer\n"


def run_module(*words):
    return subprocess.run([sys.executable, "-m", "lorweb_core", *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_parse(run, command):
    code, out, err = run(command, "--help")
    assert code == 0 and err == [] and "  examples:" in out
    text = "\n".join(out).replace("\\\n", " ")
    examples = [line.split() for line in text.splitlines() if line.strip().startswith("python -m lorweb_core")]
    assert examples
    for words in examples:
        typer.main.get_command(app).commands[words[3]].make_context("", words[4:])


def test_inspect_prints_what_a_basis_holds(run):
    code, out, err = run("inspect", golden_basis("C"))
    text = "\n".join(out)
    assert (code, err) == (0, [])
    for part in (
        "Layers:        40",
        f"Basis id:      {load_basis(golden_basis('C')).basis_id}",
        f"Parameters:    {sum(tensor.numel() for tensor in load_file(golden_basis('C')).values()):,}",
        "Basis size N:  4",
        "Rank r:        1",
        "Key width:     8",
        "softmax, heads 2, sum",
        "Query width:   36 (cat-aa'b",
        "Settings from: settings file basis_C.yaml",
        "Training:      step 500",
    ):
        assert part in text


@pytest.mark.parametrize("case", "ABCDEFGH")
def test_mix_reproduces_the_golden_coefficients_and_their_lora(run, tmp_path, case):
    recorded = load_file(GOLDEN / f"io_{case}.safetensors")
    given, output = tmp_path / "given.safetensors", tmp_path / "out.safetensors"
    write_coefficients(given, golden_basis(case), golden_query(case))
    code, out, err = run("mix", golden_basis(case), "--coefficients", given, "-o", output, "--dtype", "fp32")
    assert (code, err) == (0, [])
    coefficients = load_coefficients(given).coefficients["layers"]
    batch = len(golden_query(case))
    outputs = [output] if batch == 1 else [tmp_path / f"out-{index:03d}.safetensors" for index in range(batch)]
    assert len(out) == batch
    assert sorted(tmp_path.glob("out*")) == outputs
    basis = load_basis(golden_basis(case))
    assert coefficients.keys() == basis.layers.keys()
    for index, path in enumerate(outputs):
        deltas = read_deltas(path)
        for name, layer in basis.layers.items():
            expected = recorded[f"coeff.{name}"][index]
            torch.testing.assert_close(coefficients[name][index], expected, atol=2e-6, rtol=0)
            torch.testing.assert_close(deltas[name], layer_delta(layer, expected), atol=1e-5, rtol=1e-4)


def images_of(encoder):
    """Options of `mix` for three images and a tiny image encoder, which is written into a folder."""
    write_tiny_clip(encoder)
    images = (IMAGES / f"q0_{part}.png" for part in ("a", "ap", "b"))
    return ("--a", next(images), "--a-prime", next(images), "--b", next(images), "--encoder", encoder)


def test_mix_takes_strength_rank_and_settings(run, tmp_path):
    metadata = header_settings(encoder="clip")
    basis_path = write_reference(tmp_path / "basis.safetensors", query_dim=36, metadata=metadata)
    (tmp_path / "other.yaml").write_text("activation: tanh")
    common = ("mix", basis_path, *images_of(tmp_path / "clip"), "--dtype", "fp32", "-o")
    options = {"a": (), "b": ("--strength", "-2"), "c": ("--rank", "3"), "d": ("--settings", tmp_path / "other.yaml")}
    for name, words in options.items():
        assert run(*common, tmp_path / f"{name}.safetensors", *words)[0] == 0
    plain, reversed_, other = (read_deltas(tmp_path / f"{name}.safetensors") for name in "abd")
    for name in SIZES:
        torch.testing.assert_close(reversed_[name], -2 * plain[name], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(other[name], plain[name])
    ranks = {len(tensor) for name, tensor in load_file(tmp_path / "c.safetensors").items() if "lora_A" in name}
    assert ranks == {3}


def test_mix_takes_three_images_and_keeps_their_coefficients(run, tmp_path):
    output, kept, again = (tmp_path / f"{name}.safetensors" for name in ("out", "kept", "again"))
    words = images_of(tmp_path / "clip")
    result = run("mix", golden_basis("A"), *words, "-o", output, "--coefficients-out", kept)
    assert result[0] == 0, result
    assert len(read_deltas(output)) == 40
    recorded = load_file(GOLDEN / "query.safetensors")
    query = torch.cat([recorded[f"q0.embed.{part}"].flatten() for part in ("a", "ap", "b")])
    expected = encode_coefficients(load_basis(golden_basis("A")), query[None])["layers"]
    for name, values in load_coefficients(kept).coefficients["layers"].items():
        torch.testing.assert_close(values, expected[name], atol=2e-6, rtol=0)
    assert run("mix", golden_basis("A"), "--coefficients", kept, "-o", again)[0] == 0
    assert all(torch.equal(tensor, load_file(again)[name]) for name, tensor in load_file(output).items())


def test_mix_of_images_reports_every_error(run, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    words = images_of(tmp_path / "clip")

    def mix(query_dim, *changes, encoder="openai/clip-vit-large-patch14"):
        metadata = header_settings(encoder=encoder)
        basis = write_reference(tmp_path / "basis.safetensors", query_dim=query_dim, metadata=metadata)
        return run("mix", basis, *words, *changes, "-o", tmp_path / "out.safetensors")

    assert_refused(mix(2304), "width 768", "gives 12", "clip-vit-large-patch14")
    siglip = mix(36, encoder="google/siglip2-base-patch16-224")
    assert_refused(siglip, "a SigLIP encoder", "the CLIP model clip gives 12", "siglip2-base")
    assert_refused(mix(36, "--encoder", tmp_path / "none"), "none is not a folder", "nothing is downloaded")
    assert_refused(mix(36, "--b", tmp_path / "text.png"), "cannot be used", "text.png", "save it as PNG")
    assert_refused(mix(36, "--b", tmp_path / "missing.png"), "missing.png", "no such file")
    assert not (tmp_path / "out.safetensors").exists()


def test_convert_moves_the_sidecar_into_the_header(run, tmp_path):
    output = tmp_path / "out.safetensors"
    code, out, err = run("convert", golden_basis("G"), output)
    assert (code, err) == (0, []) and out == [f"Wrote {output}: 40 layers, settings from settings file basis_G.yaml"]
    before, after = load_basis(golden_basis("G")), load_basis(output)
    assert after.settings == before.settings and after.settings_source == "the header of out.safetensors"
    raw_before, raw_after = load_file(golden_basis("G")), load_file(output)
    assert raw_before.keys() == raw_after.keys()
    assert all(torch.equal(raw_before[name], raw_after[name]) for name in raw_before)
    assert after.metadata["name"] == "golden_G" and "ss_base_model_version" not in after.metadata
    assert json.loads(after.metadata["lorweb"])["training"] == {"step": 500, "epoch": 0}


@pytest.mark.parametrize(
    ("word", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_convert_changes_the_dtype(run, tmp_path, word, dtype):
    assert run("convert", golden_basis("A"), tmp_path / "out.safetensors", "--dtype", word)[0] == 0
    before, after = load_file(golden_basis("A")), load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(after[name], before[name].to(dtype)) for name in before)


def test_convert_for_the_reference_writes_the_config_beside_it(run, tmp_path):
    inner = tmp_path / "ours.safetensors"
    assert run("convert", golden_basis("B"), inner)[0] == 0
    folder = tmp_path / "reference"
    folder.mkdir()
    for _ in range(2):  # the same config.yaml may stay
        code, out, _ = run("convert", inner, folder / "basis.safetensors", "--for-reference")
        assert code == 0 and out[-1] == f"Wrote {folder / 'config.yaml'}"
    ours, golden = (yaml.safe_load(path.read_text()) for path in (folder / "config.yaml", GOLDEN / "basis_B.yaml"))
    golden["config"]["process"][0]["network"]["linear_alpha"] = 2  # without effect; we write r
    assert ours == golden
    assert load_file(folder / "basis.safetensors").keys() == load_file(golden_basis("B")).keys()


def test_convert_for_the_reference_refuses_what_the_reference_cannot_read(run, tmp_path):
    output = tmp_path / "out" / "basis.safetensors"
    output.parent.mkdir()
    biased = write_reference(tmp_path / "biased.safetensors", bias=True, metadata=header_settings())
    assert_refused(run("convert", biased, output, "--for-reference"), "per-adapter biases in 4 layers")
    single = write_reference(tmp_path / "single.safetensors", sizes={"a": (4, 4)}, metadata=header_settings())
    assert_refused(run("convert", single, output, "--for-reference"), "a single layer")
    for other in ("mine: true", "# mine" * 1000):
        (output.parent / "config.yaml").write_text(other)
        result = run("convert", golden_basis("A"), output, "--for-reference")
        assert_refused(result, "already exists with other content")
    assert [path.name for path in output.parent.iterdir()] == ["config.yaml"]


def test_convert_takes_settings_that_a_file_lacks(run, tmp_path):
    source = write_reference(tmp_path / "plain.safetensors")
    (tmp_path / "given.yaml").write_text(
        "{activation: tanh, heads: 2, reduction: sum, query_mode: caa', encoder: me/mine}"
    )
    output = tmp_path / "out.safetensors"
    assert run("convert", source, output, "--settings", tmp_path / "given.yaml")[0] == 0
    assert load_basis(output).settings == RouterSettings("tanh", 2, "sum", "caa'", "me/mine")


def test_an_input_is_never_overwritten(run, tmp_path):
    basis = write_reference(tmp_path / "basis.safetensors", metadata=header_settings())
    link = tmp_path / "link.safetensors"
    link.symlink_to(basis)
    before = basis.read_bytes()
    assert_refused(run("convert", basis, basis), "also an input", "another name")
    assert_refused(run("convert", basis, link), "also an input")
    numbered = tmp_path / "e-001.safetensors"
    write_coefficients(numbered, basis, torch.ones(2, 18))
    content = numbered.read_bytes()
    assert_refused(run("mix", basis, "--coefficients", numbered, "-o", basis), "also an input")
    assert_refused(run("mix", basis, "--coefficients", numbered, "-o", tmp_path / "e.safetensors"), "also an input")
    same = tmp_path / "x.safetensors"
    words = ("mix", basis, "--coefficients", numbered, "-o", same, "--coefficients-out", same)
    assert_refused(run(*words), "also another output")
    assert basis.read_bytes() == before and numbered.read_bytes() == content
    assert not (tmp_path / "e-000.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("blnd", ["No such command 'blnd'"]),
        ("inspect", ["Missing argument 'BASIS'"]),
        ("mix B -o o.safetensors", ["either --coefficients, or --a", "missing: --a, --a-prime, --b, --encoder"]),
        ("mix B --a x.png -o o.safetensors", ["missing: --a-prime, --b, --encoder"]),
        ("mix B --coefficients c --a x -o o.safetensors", ["either --coefficients, or", "exclude each other"]),
        ("mix B --coefficients c -o o.pt", ["o.pt does not end in .safetensors"]),
        ("mix B --coefficients c -o o.safetensors --coefficients-out c.json", ["c.json does not end in .safetensors"]),
        ("mix B --coefficients c -o o.safetensors --strength nan", ["--strength", "nan is not a finite number"]),
        ("mix B --coefficients c -o o.safetensors --strength much", ["--strength", "number"]),
        ("mix B --coefficients c -o o.safetensors --rank -1", ["--rank"]),
        ("mix B --coefficients c -o o.safetensors --dtype fp8", ["--dtype", "'fp8'"]),
    ],
)
def test_a_usage_error_is_a_short_message(run, words, parts):
    assert_refused(run(*words.split()), *parts)


def test_without_a_command_it_prints_its_help(run):
    code, out, err = run()
    assert (code, out) == (2, []) and "Commands:" in err


def test_wrong_files_are_one_line(run, tmp_path):
    output = ("-o", tmp_path / "o.safetensors")
    good = write_coefficients(tmp_path / "good.safetensors", golden_basis("A"), golden_query("A"))
    (tmp_path / "broken.safetensors").write_bytes(b"PK\x03\x04" + b"\x00" * 99)

    def mix(coefficients, *words, basis=None):
        return run("mix", basis or golden_basis("A"), "--coefficients", tmp_path / coefficients, *output, *words)

    assert_refused(mix("broken.safetensors"), "PyTorch pickle")
    assert_refused(mix(good.name, "--settings", tmp_path / "none.yaml"), "There is no file")
    assert_refused(run("inspect", tmp_path), "is a folder, not a file")
    biased = write_reference(tmp_path / "biased.safetensors", bias=True, query_dim=36, metadata=header_settings())
    own = write_coefficients(tmp_path / "own.safetensors", biased, golden_query("A"))
    assert_refused(mix(own.name, basis=biased), "4 layers", "per-adapter biases")
    missing = tmp_path / "missing" / "o.safetensors"
    assert_refused(run("convert", golden_basis("A"), missing), "cannot be written", "No such file", "existing folder")
    assert not (tmp_path / "o.safetensors").exists()
