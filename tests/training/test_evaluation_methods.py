"""Methods' folders: how other projects name their pictures, and what is missing, broken or changed."""

import pytest
from PIL import Image

from tests.training.evaluation_sets import add_method, write_evaluation, write_results
from training.evaluate import main
from training.evaluation.errors import EvaluationError
from training.evaluation.folder import EvaluationFolder
from training.evaluation.generation import common_samples, generate, methods_of, missing_pictures
from training.evaluation.methods import LAYOUTS, FolderMethod, parse_method, require_distinct


@pytest.fixture
def evaluation(tmp_path):
    return write_evaluation(tmp_path)


def draw_quadrants(path, colours=("red", "green", "blue", "yellow")):
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = Image.new("RGB", (20, 20))
    for number, colour in enumerate(colours):
        grid.paste(colour, (10 * (number % 2), 10 * (number // 2), 10 * (number % 2) + 10, 10 * (number // 2) + 10))
    grid.save(path)


@pytest.mark.parametrize(
    ("layout", "name", "is_grid"),
    [
        ("plain", "{}.png", False),
        ("plain", "{}.webp", False),
        ("grid", "{}.png", True),
        ("relation-adapter", "{}/generated.jpg", False),
        ("relation-adapter", "{}.png", False),
        ("visualcloze", "{}/visualcloze.png", False),
        ("edit-transfer", "{}/result_4711.png", True),
        ("kontext-lora", "{}/output.png", False),
    ],
)
def test_every_project_is_read_as_it_names_its_pictures(evaluation, tmp_path, layout, name, is_grid):
    _, samples = evaluation
    draw_quadrants(tmp_path / "out" / name.format(samples[0].id))
    method = parse_method(f"theirs={layout}:{tmp_path / 'out'}")
    picture = method.draw(samples[0])
    assert picture.size == ((10, 10) if is_grid else (20, 20))
    assert method.fingerprint(samples[1]) is None
    if is_grid:
        assert picture.getpixel((5, 5)) == (255, 255, 0), "b̂′ is at the bottom right"


def test_of_several_pictures_the_first_number_is_taken(evaluation, tmp_path):
    _, samples = evaluation
    for seed in (100, 20, 3000):
        draw_quadrants(tmp_path / "out" / samples[0].id / f"result_{seed}.png")
    method = parse_method(f"theirs=edit-transfer:{tmp_path / 'out'}")
    assert method.find(samples[0]).name == "result_20.png"


def test_a_folder_may_have_a_colon_but_not_be_missing(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert parse_method(f"x={tmp_path / 'a:b'}").folder == tmp_path / "a:b"
    for text in ("x", "=folder", f"x={tmp_path / 'nothing'}", "x=", "x=plain:"):
        with pytest.raises(EvaluationError, match="NAME=LAYOUT:FOLDER"):
            parse_method(text)


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (["copy-b", "Copy-B"], []),
        (["LoRA+r4", "LoRA*r4"], []),
        (["LoRA*r4"], ["copy-b", "LoRA+r4"]),
        (["x", "x"], []),
        (["a" * 120, "a" * 121], []),
    ],
)
def test_two_methods_never_share_a_folder(names, known):
    with pytest.raises(EvaluationError, match=r"both lie in pictures/.*Rename one"):
        require_distinct(names, known)
    require_distinct(["copy-b", "LoRA r4"], ["copy-b", "LoRA-r4"])


def test_a_method_that_would_overwrite_an_earlier_one_is_refused(evaluation, tmp_path, capsys):
    folder, samples = evaluation
    words = ["generate", "--out", str(folder.root), "--method"]
    assert main([*words, f"LoRA+r4={write_results(tmp_path / 'plus', folder, samples, grey=0)}"]) == 0
    before = folder.picture("LoRA+r4", samples[0].id).read_bytes()
    assert main([*words, f"LoRA*r4={write_results(tmp_path / 'star', folder, samples, grey=255)}"]) == 2
    assert "'LoRA+r4' and 'LoRA*r4'" in capsys.readouterr().err
    assert folder.picture("LoRA+r4", samples[0].id).read_bytes() == before
    assert main([*words, f"LoRA+r4={tmp_path / 'plus'}"]) == 0, "a known method may come again"


def test_methods_can_be_left_out(evaluation):
    folder, _ = evaluation
    assert methods_of(folder, without=["copy-b"]) == ["copy-a-prime"]
    with pytest.raises(EvaluationError, match="copy-c"):
        methods_of(folder, without=["copy-c"])
    with pytest.raises(EvaluationError, match="none at all"):
        methods_of(folder, without=["copy-b", "copy-a-prime"])


def test_missing_and_broken_pictures_are_listed_and_the_rest_is_compared(evaluation, tmp_path, caplog):
    folder, samples = evaluation
    place = write_results(tmp_path / "out", folder, samples, grey=100)
    (place / f"{samples[0].id}.png").unlink()
    (place / f"{samples[1].id}.png").write_bytes(b"\x89PNG broken")
    generate(folder, FolderMethod("theirs", place, LAYOUTS["plain"]), samples)
    assert "theirs: 1 of 6 pictures missing, 1 unusable" in caplog.text

    methods = methods_of(folder)
    assert missing_pictures(folder, methods, samples)["theirs"] == [samples[0].id, samples[1].id]
    assert common_samples(folder, methods, samples) == samples[2:]
    with pytest.raises(EvaluationError, match="methods of the evaluation"):
        methods_of(folder, ["thiers"])


def test_no_common_sample_is_an_error_with_counts(evaluation, tmp_path):
    folder, samples = evaluation
    (tmp_path / "empty").mkdir()
    generate(folder, FolderMethod("theirs", tmp_path / "empty", LAYOUTS["plain"]), samples)
    with pytest.raises(EvaluationError, match="theirs lacks 6 of 6"):
        common_samples(folder, methods_of(folder), samples)


def test_a_second_run_brings_in_only_what_is_new_or_changed(evaluation, tmp_path):
    folder, samples = evaluation
    method = add_method(tmp_path, folder, samples[:4], "theirs", grey=100)
    generate(folder, method, samples)
    kept = folder.picture("theirs", samples[0].id).stat().st_mtime_ns

    write_results(method.folder, folder, samples[3:], grey=200)
    folder = EvaluationFolder(folder.root)
    before = {sample.id: folder.generated.find("theirs", sample.id) for sample in samples}
    generate(folder, method, samples)
    assert folder.picture("theirs", samples[0].id).stat().st_mtime_ns == kept
    changed = [s for s in samples if folder.generated.find("theirs", s.id) != before[s.id]]
    assert changed == samples[3:]
    assert common_samples(folder, methods_of(folder), samples) == samples


def test_a_deleted_picture_is_made_again(evaluation):
    folder, samples = evaluation
    folder.picture("copy-b", samples[0].id).unlink()
    assert missing_pictures(folder, ["copy-b"], samples)["copy-b"] == [samples[0].id]
    from training.evaluation.generation import Baseline

    generate(folder, Baseline("copy-b", folder), samples)
    assert folder.picture("copy-b", samples[0].id).is_file()
