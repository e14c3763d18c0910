"""The ablation command on the shipped tiny Kontext; the training itself is tested with the trainer."""

import shutil

import pytest

from lorweb_core.errors import SettingsError
from training.demo.__main__ import main
from training.demo.ablation import VARIANTS, prepare_demo, write_test_images
from training.demo.scenes import MODEL_FOLDER, validation_edits
from training.demo.train import basis_config


def test_every_variant_is_a_valid_configuration_of_its_own(tmp_path):
    overrides = {words for _, words in VARIANTS.values()}
    assert len(overrides) == len(VARIANTS) - 1, "only the untrained encoder needs none"
    for words in overrides:
        assert basis_config(tmp_path, *words).basis.rank >= 4


@pytest.mark.slow
def test_trained_variants_are_measured_on_held_out_parameters(tmp_path):
    name = "lorweb-0.003-0.001-21-seed0"
    (tmp_path / name).mkdir()
    shutil.copy(MODEL_FOLDER / "basis.safetensors", tmp_path / name / f"{name}.safetensors")
    words = ["--steps", "21", "--per-edit", "1", "--pairs-per-edit", "1", "--variant", "lorweb"]
    assert main(["ablation", "--out", str(tmp_path), *words]) == 0
    table = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in table.splitlines() if line.startswith("| ")}
    copied, generated = (float(rows[method][5].split()[0]) for method in ("copy-b", "LoRWeB, 16 × rank 4"))
    assert generated > copied + 6
    assert "read large differences only" in table
    assert (tmp_path / "evaluation" / "results" / "sheet-01.png").is_file()


def test_no_edit_of_the_test_is_one_on_which_rates_were_chosen(tmp_path):
    tested = {analogy.sample.split("--")[0] for analogy in write_test_images(tmp_path, per_edit=1)}
    assert len(tested) == 18
    assert not tested & {edit.name for edit in validation_edits()}


def test_a_folder_made_with_other_pairs_and_an_unknown_variant_are_errors(tmp_path, capsys):
    prepare_demo(tmp_path, pairs_per_edit=1)
    with pytest.raises(SettingsError, match="Choose another --out"):
        prepare_demo(tmp_path, pairs_per_edit=2)
    assert main(["ablation", "--out", str(tmp_path), "--variant", "lorwep"]) == 2
    assert "lorwep is unknown. There are lorweb, fewer-larger" in capsys.readouterr().err
