"""Keys name contents: what has changed is made anew, what is damaged is restored, what an earlier run made stays."""

import json
import os
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.training.data_pictures import paint
from tests.training.evaluation_sets import write_evaluation, write_index, write_results
from tests.training.judge_server import MODEL, serving, well_formed
from tests.training.test_evaluation_metrics import write_network
from training.analogy_sampler import DrawOptions
from training.config import BaseModelConfig
from training.evaluate import main
from training.evaluation.folder import EvaluationFolder
from training.evaluation.generation import Baseline
from training.evaluation.model_files import model_key
from training.evaluation.our_generator import GeneratorSettings, parse_generator
from training.evaluation.samples import read_samples


@pytest.fixture
def started(tmp_path):
    """(generate's words, evaluation folder) of a small set with its baselines and a method `theirs`."""
    index = write_index(tmp_path / "data", tasks=("one",), pairs=2)
    out = tmp_path / "evaluation"
    words = ["generate", "--set", str(index), "--split", "all", "--b-per-pair", "1", "--out", str(out)]
    assert main(words) == 0
    folder = EvaluationFolder(out)
    place = write_results(tmp_path / "theirs", folder, read_samples(folder), grey=40)
    words += ["--method", f"theirs={place}"]
    assert main(words) == 0
    return words, out


def measured(out):
    """(method, sample) → numbers."""
    return {(r["method"], r["sample"]): r["numbers"] for r in EvaluationFolder(out).measurements}


def change_weights(path):
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file(tensors | {name: tensors[name].flip(0).contiguous()}, path, metadata={"format": "pt"})


def test_another_encoder_in_a_folder_of_the_same_name_measures_anew(started, tiny_parts, tmp_path):
    _, out = started
    for place in ("first", "second"):
        shutil.copytree(tiny_parts / "encoder", tmp_path / place / "encoder")
    assert main(["judge", str(out), "--clip-encoder", str(tmp_path / "first" / "encoder")]) == 0
    first = measured(out)
    file = (out / "measurements.jsonl").read_bytes()
    assert main(["judge", str(out), "--clip-encoder", str(tmp_path / "second" / "encoder")]) == 0
    assert (out / "measurements.jsonl").read_bytes() == file, "the same weights elsewhere are the same"
    change_weights(tmp_path / "second" / "encoder" / "model.safetensors")
    assert main(["judge", str(out), "--clip-encoder", str(tmp_path / "second" / "encoder")]) == 0
    changed = [
        key for key, numbers in measured(out).items() if numbers["clip_direction"] != first[key]["clip_direction"]
    ]
    assert {method for method, _ in changed} == {"copy-a-prime", "theirs"}


def test_other_heads_of_lpips_measure_anew_and_mixed_weights_are_told(started, tmp_path, capsys):
    _, out = started
    backbone, heads = write_network(tmp_path, "alex")
    words = [
        "judge",
        str(out),
        "--clip-encoder",
        "none",
        "--lpips-backbone",
        str(backbone),
        "--lpips-heads",
        str(heads),
    ]
    assert main(words) == 0
    first = measured(out)
    torch.save({name: 2 * head for name, head in torch.load(heads, weights_only=True).items()}, heads)
    assert main([*words, "--methods", "theirs"]) == 0
    second = measured(out)
    for key in second:
        factor = 2 if key[0] == "theirs" else 1
        assert second[key]["lpips"] == pytest.approx(factor * first[key]["lpips"], rel=1e-4)
    assert main(["aggregate", str(out), "--no-plot"]) == 0
    assert "**lpips mixes numbers by different weights** (alex-" in capsys.readouterr().out
    assert main(words) == 0
    assert main(["aggregate", str(out), "--no-plot"]) == 0
    assert "lpips by alex-" in capsys.readouterr().out


def test_a_run_without_weights_keeps_earlier_numbers(started, tiny_parts, tmp_path):
    _, out = started
    backbone, heads = write_network(tmp_path, "alex")
    lpips = ["--lpips-backbone", str(backbone), "--lpips-heads", str(heads)]
    assert main(["judge", str(out), "--clip-encoder", str(tiny_parts / "encoder")]) == 0
    only_clip = measured(out)
    assert all(numbers["lpips"] is None for numbers in only_clip.values())
    assert main(["judge", str(out), "--clip-encoder", "none", *lpips]) == 0
    both = measured(out)
    assert all(numbers["lpips"] is not None for numbers in both.values())
    assert all(numbers["clip_direction"] == only_clip[key]["clip_direction"] for key, numbers in both.items())
    assert main(["judge", str(out), "--clip-encoder", "none"]) == 0
    assert measured(out) == both


@pytest.mark.parametrize("flag", ["--lpips-backbone", "--clip-encoder"])
def test_weights_that_were_named_and_are_missing_are_a_mistake(started, tmp_path, flag, capsys):
    _, out = started
    assert main(["judge", str(out), "--clip-encoder", "none", flag, str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (out / "measurements.jsonl").exists()


def test_a_model_is_named_by_its_content(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "model" / "part").mkdir(parents=True)
        (tmp_path / place / "model" / "part" / "weights.safetensors").write_bytes(b"same")
    first, second = (tmp_path / place / "model" for place in ("one", "two"))
    assert model_key(first) == model_key(second)
    (second / ".cache").mkdir()
    (second / ".cache" / "x").write_bytes(b"not the model's")
    assert model_key(first) == model_key(second)
    (second / "part" / "weights.safetensors").write_bytes(b"else")
    assert model_key(first) != model_key(second)
    assert model_key(first / "part" / "weights.safetensors") != model_key(second / "part" / "weights.safetensors")
    assert (model_key("owner/model"), model_key(None)) == ("owner/model", None)


def test_large_weights_are_named_by_size_and_time(tmp_path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    before = model_key(path)
    assert model_key(path) == before
    os.utime(path, ns=(0, 1))
    assert model_key(path) != before


def test_our_generator_draws_again_when_base_or_encoder_changes(tmp_path):
    folder, samples = write_evaluation(tmp_path, tasks=("edit",), pairs=2)
    for name in ("basis.safetensors", "base.safetensors", "encoder/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"first")
    base = BaseModelConfig(model=str(tmp_path / "base.safetensors"))
    settings = GeneratorSettings(base, DrawOptions(), encoder=str(tmp_path / "encoder"))

    def name():
        method = parse_generator(f"mine={tmp_path / 'basis.safetensors'}", settings, folder, samples)
        return method.fingerprint(samples[0])

    names = [name()]
    assert name() == names[0]
    for changed in ("basis.safetensors", "base.safetensors", "encoder/model.safetensors"):
        (tmp_path / changed).write_bytes(b"other")
        names.append(name())
    assert len(set(names)) == len(names)


def test_a_changed_picture_of_equal_size_is_brought_in_and_everything_of_it_made_anew(started, tmp_path):
    words, out = started
    source = tmp_path / "data" / "one" / "0000_before.png"
    paint(1, size=(48, 40)).save(source, format="BMP")
    assert main(words) == 0
    with serving(well_formed) as server:
        judge = ["judge", str(out), "--clip-encoder", "none", "--endpoint", server.url, "--model", MODEL]
        assert main(judge) == 0
        asked, size = len(server.asked), source.stat().st_size
        numbers = measured(out)
        paint(2, size=(48, 40)).save(source, format="BMP")
        assert source.stat().st_size == size
        assert main(words) == 0
        assert main(judge) == 0
        assert len(server.asked) > asked, "a is shown to the judge, so its change makes another question"
    folder = EvaluationFolder(out)
    of_b = next(sample for sample in read_samples(folder) if sample.b == "one/0000")
    assert Image.open(folder.inputs(of_b.id) / "b.png").tobytes() == Image.open(source).tobytes()
    assert folder.generated.find("copy-b", of_b.id)["source"] == Baseline("copy-b", folder).fingerprint(of_b)
    assert measured(out)["theirs", of_b.id] == numbers["theirs", of_b.id], "PSNR is of b′, which is the same"


def test_a_changed_truth_is_measured_anew_and_not_judged_again(started, tmp_path):
    words, out = started
    with serving(well_formed) as server:
        judge = ["judge", str(out), "--clip-encoder", "none", "--endpoint", server.url, "--model", MODEL]
        assert main(judge) == 0
        before = measured(out)
        folder = EvaluationFolder(out)
        sample = read_samples(folder)[0]
        truth = tmp_path / "data" / "one" / f"{sample.b[-4:]}_after.png"
        paint(77, size=(48, 40)).save(truth)
        assert main(words) == 0
        assert main(judge) == 0
    after = measured(out)
    assert after["theirs", sample.id]["psnr"] != before["theirs", sample.id]["psnr"]


def test_a_broken_test_picture_is_left_out_and_taken_once_it_is_restored(tmp_path, capsys, caplog):
    words = ["generate", "--set", str(write_index(tmp_path / "data", tasks=("one",), pairs=3)), "--split", "all"]
    words += ["--b-per-pair", "1", "--out", str(tmp_path / "evaluation")]
    source = tmp_path / "data" / "one" / "0001_after.png"
    whole = source.read_bytes()
    source.write_bytes(whole[:60])
    assert main(words) == 0
    assert "Mend the files and run the same command again" in caplog.text
    assert "not in the test set: 2 analogies with unusable pictures (first one--" in capsys.readouterr().err
    assert main(["judge", str(tmp_path / "evaluation"), "--clip-encoder", "none"]) == 0
    assert main(["aggregate", str(tmp_path / "evaluation"), "--no-plot"]) == 0
    assert "- Not in the test set: 2 analogies with unusable pictures" in capsys.readouterr().out
    source.write_bytes(whole)
    assert main(words) == 0
    assert "not in the test set" not in capsys.readouterr().err
    assert len(read_samples(EvaluationFolder(tmp_path / "evaluation"))) == 3


@pytest.mark.parametrize("name", ["inputs/{}/a.png", "inputs/{}/b.png", "inputs/{}/prompt.txt", "truth/{}.png"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_file_of_a_sample_is_told_and_restored(started, name, damage, capsys):
    words, out = started
    path = out / name.format(read_samples(EvaluationFolder(out))[0].id)
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(whole[:8])
    capsys.readouterr()
    assert main(["judge", str(out), "--clip-encoder", "none"]) == 2
    message = capsys.readouterr().err
    assert f"1 missing or changed, first {path.relative_to(out)}" in message
    assert "`python -m training.evaluate generate` with the set's own --set" in message
    assert main(words) == 0
    assert path.read_bytes() == whole
    assert main(["judge", str(out), "--clip-encoder", "none"]) == 0


def test_a_truncated_result_counts_as_missing_and_is_brought_in_again(started, capsys):
    words, out = started
    folder = EvaluationFolder(out)
    path = folder.picture("theirs", read_samples(folder)[0].id)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert main(["judge", str(out), "--clip-encoder", "none"]) == 0
    assert main(["aggregate", str(out), "--no-plot"]) == 0
    assert f"theirs lacks 1 (first {path.stem}). `generate` with the method" in capsys.readouterr().out
    assert main(words) == 0
    assert path.read_bytes() == whole


_NEW_FIELDS = ("choice", "files", "file_sha256", "sources", "inputs_sha256", "refused")


def test_folders_of_earlier_versions_are_filled_anew_without_asking_again(started, capsys):
    words, out = started
    with serving(well_formed) as server:
        judge = ["judge", str(out), "--clip-encoder", "none", "--endpoint", server.url, "--model", MODEL]
        assert main(judge) == 0
        assert main(["aggregate", str(out), "--no-plot"]) == 0
        table, asked = (out / "results" / "table.md").read_text(encoding="utf-8"), len(server.asked)
        for file in out.glob("*.jsonl"):
            records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            kept = [{name: value for name, value in r.items() if name not in _NEW_FIELDS} for r in records]
            file.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        assert main(["aggregate", str(out), "--no-plot"]) == 0
        assert main(words) == 0
        assert main(judge) == 0
        assert len(server.asked) == asked
    assert main(["aggregate", str(out), "--no-plot"]) == 0
    assert (out / "results" / "table.md").read_text(encoding="utf-8") == table


def test_lines_without_what_is_needed_are_made_again(started, caplog):
    words, out = started
    with (out / "generated.jsonl").open("a", encoding="utf-8") as file:
        sample = read_samples(EvaluationFolder(out))[0].id
        file.write(json.dumps({"method": "theirs", "sample": sample}) + "\n")
        file.write(json.dumps({"method": "ghost", "sample": sample}) + "\n")
    assert main(["judge", str(out), "--clip-encoder", "none"]) == 0
    assert "generated.jsonl: 2 half-written or damaged line(s)" in caplog.text
    assert main(words) == 0
