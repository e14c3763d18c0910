"""The ablation command on the shipped tiny Kontext; the variants' training itself is the trainer's subject."""

import shutil

import pytest

from lorweb_core.errors import SettingsError
from training.demo.__main__ import basis_config
from training.demo.ablation import main, prepare_demo, variants, write_test_images
from training.demo.scenes import MODEL_FOLDER, validation_edits

needs_model = pytest.mark.skipif(not (MODEL_FOLDER / "basis.safetensors").is_file(), reason="no demo model")


def test_every_variant_changes_something_of_its_own(tmp_path):
    contenders = [variant.contender for variant in variants(tmp_path)]
    assert len({contender.name for contender in contenders}) == len(contenders)
    assert len({contender.overrides for contender in contenders}) == len(contenders)


def test_every_variant_is_a_valid_configuration(tmp_path):
    for variant in variants(tmp_path):
        assert basis_config(tmp_path, *variant.contender.overrides).basis.rank >= 4


@needs_model
@pytest.mark.slow
def test_trained_variants_are_measured_on_held_out_parameters(tmp_path, capsys):
    name = "lorweb-gain-n-0.003-0.001-21-seed0"
    (tmp_path / name).mkdir()
    shutil.copy(MODEL_FOLDER / "basis.safetensors", tmp_path / name / f"{name}.safetensors")
    words = ["--steps", "21", "--per-edit", "1", "--pairs-per-edit", "1", "--variant", "lorweb"]
    results = tmp_path / "table.md"
    assert main(["--out", str(tmp_path), "--results", str(results), *words]) == 0
    table = results.read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in table.splitlines() if line.startswith("| ")}
    copied, drawn = (float(rows[method][5].split()[0]) for method in ("copy-b", "LoRWeB, 16 × rank 4"))
    assert drawn > copied + 6
    assert "read large differences only" in table
    assert (tmp_path / "evaluation" / "results" / "sheet-01.png").is_file()


def test_no_edit_of_the_test_is_one_on_which_rates_were_chosen(tmp_path):
    tested = {analogy.sample.split("--")[0] for analogy in write_test_images(tmp_path, per_edit=1)}
    assert len(tested) == 18
    assert not tested & {edit.name for edit in validation_edits()}


@needs_model
def test_a_folder_made_with_other_pairs_is_not_taken_for_these(tmp_path):
    prepare_demo(tmp_path, pairs_per_edit=1)
    with pytest.raises(SettingsError, match="Choose another --out"):
        prepare_demo(tmp_path, pairs_per_edit=2)


@needs_model
def test_unknown_variants_are_an_error(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--pairs-per-edit", "1", "--variant", "lorwep"]) == 2
    assert "--variant lorwep is unknown. There are lorweb, fewer-larger" in capsys.readouterr().err
