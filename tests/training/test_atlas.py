"""`python -m training.atlas` on the tiny Kontext's basis: report, resuming, neighbours, dead adapters, mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorweb_core.checkpoint import load_basis
from lorweb_core.coefficients import encode_coefficients
from tests.host.browser import chromium_path, open_browser
from training.atlas import main
from training.atlas_report.adapter_use import measure_use
from training.atlas_report.analogies import choose_analogies
from training.atlas_report.analogy_space import measure_space, nearest_tasks, same_task_share
from training.atlas_report.page import Atlas, build_page
from training.data.index import PairIndex
from training.demo.dataset import write_dataset
from training.demo.scenes import MODEL_FOLDER

BASIS = MODEL_FOLDER / "basis.safetensors"
TASKS = ("frame-orange", "frame-lime", "grey")
FILES = ("atlas.html", "atlas.json", "analogies.jsonl")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Five pairs of each of three edits."""
    folder = tmp_path_factory.mktemp("pairs")
    everything = PairIndex.read_index(write_dataset(folder, pairs_per_edit=5, seed=3))
    chosen = [record for record in everything.records if record.task in TASKS]
    PairIndex(chosen).write_index(folder / "few.jsonl")
    return folder / "few.jsonl"


@pytest.fixture
def atlas(index, tmp_path):
    def run(*words, out=tmp_path / "atlas", basis=BASIS):
        options = ("--index", index, "--encoder", MODEL_FOLDER / "encoder", "--out", out)
        return main([str(word) for word in (basis, *options, *words)])

    return run


def _lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _shards(folder):
    return sorted(folder.glob("cache/analogies/*/shard-*.safetensors"))


def test_the_report_is_one_page_that_needs_no_network(atlas, tmp_path, capsys):
    assert atlas() == 0
    page = (tmp_path / "atlas" / "atlas.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert set(re.findall(r'src="([^,]+),', page)) == {"data:image/jpeg;base64", "data:image/png;base64"}
    assert page.count("<circle") == 15
    assert all(task in page for task in TASKS)
    assert "15 analogies of 3 task(s)" in capsys.readouterr().out


def test_the_numbers_cover_every_analogy_and_task(atlas, tmp_path):
    assert atlas() == 0
    numbers = json.loads((tmp_path / "atlas" / "atlas.json").read_text(encoding="utf-8"))
    records = _lines(tmp_path / "atlas" / "analogies.jsonl")
    assert len({record["pair"] for record in records}) == len(records) == 15
    assert all(record["pair"] != record["b"] and record["pair"] != record["nearest"] for record in records)
    assert set(numbers["tasks"]) == set(TASKS)
    for task in numbers["tasks"].values():
        assert task["served_by"]
        assert all(server["share"] > server["elsewhere"] for server in task["served_by"])


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_two_runs_write_equal_files(atlas, tmp_path, method):
    for name in ("first", "second"):
        assert atlas("--map", method, out=tmp_path / name) == 0
    for file in FILES:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_second_run_embeds_nothing_again(atlas, tmp_path, capsys):
    atlas("--per-task", "3")
    before = _shards(tmp_path / "atlas")
    assert "analogies: 100%" in capsys.readouterr().err
    atlas("--per-task", "3", "--map", "tsne")
    assert "analogies:" not in capsys.readouterr().err
    assert _shards(tmp_path / "atlas") == before


def test_an_image_that_was_replaced_in_place_is_another_analogy(index):
    records = PairIndex.read_index(index).records
    keys = [analogy.key for analogy in choose_analogies(records)]
    status = records[0].after.stat()
    os.utime(records[0].after, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    changed = [key != analogy.key for key, analogy in zip(keys, choose_analogies(records), strict=True)]
    assert changed[0] and 0 < sum(changed) <= 2
    os.utime(records[0].after, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_damaged_cache_is_made_again(atlas, tmp_path):
    atlas()
    wanted = (tmp_path / "atlas" / "analogies.jsonl").read_bytes()
    shard = _shards(tmp_path / "atlas")[0]
    shard.write_bytes(shard.read_bytes()[:-40])
    assert atlas() == 0
    assert (tmp_path / "atlas" / "analogies.jsonl").read_bytes() == wanted


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(index, atlas, tmp_path, capsys):
    everything = index.parent / "pairs.jsonl"
    options = [
        "--index",
        everything,
        "--per-task",
        2,
        "--encoder",
        MODEL_FOLDER / "encoder",
        "--out",
        tmp_path / "atlas",
    ]
    words = [sys.executable, "-m", "training.atlas", BASIS, *options]
    process = subprocess.Popen([str(word) for word in words], stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while not _shards(tmp_path / "atlas") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "atlas" / "atlas.html").exists()
    kept = _shards(tmp_path / "atlas")
    assert kept
    assert main([str(word) for word in (BASIS, *options)]) == 0
    err = capsys.readouterr().err
    total = len(choose_analogies(PairIndex.read_index(everything).records, per_task=2))
    assert 0 < int(re.findall(r"(\d+)/(\d+)", err)[-1][1]) <= total - 64
    assert set(kept) <= set(_shards(tmp_path / "atlas"))


def test_a_known_pair_finds_itself_and_does_not_move_the_map(index, atlas, tmp_path, capsys):
    atlas(out=tmp_path / "without")
    first = choose_analogies(PairIndex.read_index(index).records)[0]
    pair = ("--a", first.pair.before, "--a-prime", first.pair.after, "--b", first.b.before)
    assert atlas(*pair, "--neighbours", "3", out=tmp_path / "with") == 0
    files = [tmp_path / name / "analogies.jsonl" for name in ("without", "with")]
    assert files[0].read_bytes() == files[1].read_bytes()
    numbers = json.loads((tmp_path / "with" / "atlas.json").read_text(encoding="utf-8"))
    nearest = numbers["new"][0]["nearest"]
    assert len(nearest) == 3
    assert nearest[0]["pair"] == first.pair.id
    assert nearest[0]["distance"] == pytest.approx(0, abs=1e-5)
    assert f"  {first.pair.task}  {first.pair.id}" in capsys.readouterr().out
    assert "★" in (tmp_path / "with" / "atlas.html").read_text(encoding="utf-8")


def test_a_new_pair_without_b_is_asked_about_its_own_before_picture(index, atlas, tmp_path):
    record = PairIndex.read_index(index).records[0]
    assert atlas("--a", record.before, "--a-prime", record.after, "--map", "tsne", out=tmp_path) == 0
    numbers = json.loads((tmp_path / "atlas.json").read_text(encoding="utf-8"))
    star = re.search(r'class="star" x="([\d.]+)"', (tmp_path / "atlas.html").read_text(encoding="utf-8"))
    nearest = next(
        r for r in _lines(tmp_path / "analogies.jsonl") if r["pair"] == numbers["new"][0]["nearest"][0]["pair"]
    )
    circle = rf'cx="{star[1]}"[^\n]*{re.escape(nearest["pair"])} on '
    assert re.search(circle, (tmp_path / "atlas.html").read_text(encoding="utf-8").replace(f"{nearest['task']}\n", ""))


def _route(tasks, *, spread):
    """Coefficients of random queries, one cluster per task, and the basis."""
    basis = load_basis(BASIS)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(set(tasks)), basis.query_dim, generator=generator)
    places = [sorted(set(tasks)).index(task) for task in tasks]
    queries = centres[places] + spread * torch.randn(len(tasks), basis.query_dim, generator=generator)
    return encode_coefficients(basis, queries)


def test_shares_of_a_task_are_the_mean_over_its_analogies():
    tasks = ["x", "y", "x", "z", "z"]
    coefficients = _route(tasks, spread=0.5)
    use = measure_use(coefficients, tasks)
    assert use.adapter_count == sum(mix.shape[1] for mix in coefficients["layers"].values())
    for layer, name in enumerate(use.layer_names):
        mix = coefficients["layers"][name]
        torch.testing.assert_close(use.of_task[0, layer, : mix.shape[1]], mix[[0, 2]].mean(0))
        torch.testing.assert_close(use.elsewhere[0, layer, : mix.shape[1]], mix[[1, 3, 4]].mean(0))


def test_an_adapter_that_nobody_uses_is_dead_and_one_used_once_is_not():
    coefficients = _route(["x"] * 4, spread=0.5)
    name, mix = next(iter(coefficients["layers"].items()))
    even = torch.full_like(mix, 1 / mix.shape[1])
    even[:, 2] = even[:, 5] = 0.0
    even[3, 5] = 1 / mix.shape[1]
    coefficients["layers"] = {name: even}
    assert measure_use(coefficients, ["x"] * 4).dead == [(name, 2)]


def test_distances_are_the_root_mean_square_over_layers():
    tasks = ["x", "x", "y", "y"]
    coefficients = _route(tasks, spread=0.01)
    space = measure_space(coefficients, None, method="pca")
    squares = [float((mix[0] - mix[2]).double().square().sum()) for mix in coefficients["layers"].values()]
    assert float(space.distances[0, 2]) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-3)
    assert same_task_share(space, tasks) == {"x": 1.0, "y": 1.0}
    assert nearest_tasks(space, tasks)["x"][0] == "y"


def test_distances_of_many_near_analogies_are_those_of_float64():
    tasks = [f"task {number:02}" for number in range(40)]
    coefficients = _route(["x"] * len(tasks), spread=1e-3)
    space = measure_space(coefficients, coefficients, method="pca")
    layers = [mix.double() for mix in coefficients["layers"].values()]
    features = torch.cat(layers, dim=1) / np.sqrt(len(layers))
    expected = (features[:, None] - features[None]).square().sum(-1).sqrt()
    torch.testing.assert_close(space.new_distances.double(), expected, rtol=1e-4, atol=0)
    expected.fill_diagonal_(float("inf"))
    torch.testing.assert_close(space.distances.double(), expected, rtol=1e-4, atol=0)
    for task, (nearest, distance) in nearest_tasks(space, tasks).items():
        row = expected[tasks.index(task)]
        assert distance == pytest.approx(float(row.min()), rel=1e-4)
        assert float(row[tasks.index(nearest)]) == pytest.approx(float(row.min()), rel=1e-4)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_analogies_that_are_all_alike_are_drawn_at_one_place(method):
    coefficients = _route(["x"] * 4, spread=0.0)
    space = measure_space(coefficients, coefficients, method=method)
    assert np.isfinite(space.points).all()
    assert np.isfinite(space.new_points).all()


def test_damaged_pictures_are_left_out_and_told_once(index, tmp_path, caplog):
    records = [record for record in PairIndex.read_index(index).records if record.task == "grey"]
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(records[0].before.read_bytes()[:-60])  # its header is whole
    PairIndex([replace(records[0], before=damaged, sha256=""), *records[1:]]).write_index(tmp_path / "pairs.jsonl")
    words = (BASIS, "--index", tmp_path / "pairs.jsonl", "--encoder", MODEL_FOLDER / "encoder", "--out", tmp_path / "o")
    assert main([str(word) for word in words]) == 0
    assert len(_lines(tmp_path / "o" / "analogies.jsonl")) == 3  # the broken pair, and the one whose b it was
    assert caplog.text.count("damaged.png") == 1


def test_pairs_that_training_leaves_out_are_left_out(index, tmp_path, caplog):
    records = [record for record in PairIndex.read_index(index).records if record.task == "grey"]
    resized = tmp_path / "resized.png"
    with Image.open(records[1].after) as picture:
        picture.resize((picture.width, picture.height // 2)).save(resized)
    copy = replace(records[0], id="grey/copy")
    mismatch = replace(records[1], id="grey/mismatch", before=resized, sha256="")
    single = replace(records[2], id="single/0", task="single", sha256="")
    PairIndex([*records, copy, mismatch, single]).write_index(tmp_path / "pairs.jsonl")
    words = (BASIS, "--index", tmp_path / "pairs.jsonl", "--encoder", MODEL_FOLDER / "encoder", "--out", tmp_path / "o")
    assert main([str(word) for word in words]) == 0
    assert {line["pair"] for line in _lines(tmp_path / "o" / "analogies.jsonl")} == {record.id for record in records}
    assert "3 of 8 pairs are left out, as in training; first reason: error: " in caplog.text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tasks", "no-such-task"), "no-such-task"),
        (("--split", "test"), "at least 3 analogies"),
        (("--per-task", "1", "--tasks", "grey"), "at least 3 analogies"),
        (("--a", "one.png"), "--a and --a-prime together"),
        (("--a", "one.png", "--a-prime", "two.png"), "there is no such file"),
        (("--device", "cuda:99x"), "'cuda:99x' does not exist here"),
        (("--encoder", "no/such/folder"), "no folder at no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(atlas, capsys, words, told):
    assert atlas(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("atlas: ")
    assert told in err
    assert err.count("\n") == 1


def test_a_basis_that_is_none_is_refused(atlas, index, capsys):
    assert atlas(basis=index) == 2
    assert capsys.readouterr().err.startswith("atlas: ")


def test_scikit_learn_is_named_with_its_install_line(atlas, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    assert atlas() == 2
    err = capsys.readouterr().err
    assert "pip install scikit-learn" in err
    assert err.count("\n") == 1


def test_names_are_escaped_and_dead_adapters_named_in_the_page(index):
    records = [record for record in PairIndex.read_index(index).records if record.task == "grey"]
    analogies = choose_analogies([replace(record, task="<b>grey & co</b>") for record in records])
    tasks = [analogy.pair.task for analogy in analogies]
    coefficients = _route(tasks, spread=0.5)
    name = next(iter(coefficients["layers"]))
    coefficients["layers"][name][:, 3] = 0.0
    use, space = measure_use(coefficients, tasks), measure_space(coefficients, None, method="pca")
    page = build_page(Atlas(load_basis(BASIS), analogies, use, space, "pca"))
    assert f"<td>{name}</td><td>3</td>" in page
    assert "<b>" not in page
    assert "&lt;b&gt;grey &amp; co" in page


def test_a_long_task_name_takes_no_room_from_the_pictures(index, tmp_path):
    pytest.importorskip("playwright", reason="no playwright: pip install playwright")
    executable = chromium_path()
    if executable is None:
        pytest.skip("no Chromium: set CHROMIUM_PATH")
    long_name = "turn_the_photo_into_a_pencil_drawing_with_soft_shading_on_rough_paper_" * 2
    records = [
        replace(record, task=long_name if record.task == "grey" else record.task)
        for record in PairIndex.read_index(index).records
    ]
    analogies = choose_analogies(records)
    tasks = [analogy.pair.task for analogy in analogies]
    coefficients = _route(tasks, spread=0.5)
    use, space = measure_use(coefficients, tasks), measure_space(coefficients, None, method="pca")
    path = tmp_path / "atlas.html"
    path.write_text(build_page(Atlas(load_basis(BASIS), analogies, use, space, "pca")), encoding="utf-8")
    with open_browser(executable) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        strips = page.locator("table td img")
        sizes = [strips.nth(place).bounding_box() for place in range(strips.count())]
        page.screenshot(path=str(tmp_path / "atlas.png"), full_page=True)
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert len(sizes) == 3
    assert {(round(size["width"]), round(size["height"])) for size in sizes} == {(220, 72)}
