"""The whole protocol from the command line: tiny Kontext, real judge server, killed runs, changed files, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.training.data.pair_images import paint, write_pair
from tests.training.evaluation.example_sets import write_index, write_results
from tests.training.evaluation.judge_server import MODEL, Reply, comparison, serving, well_formed
from tests.training.evaluation.test_metrics import write_network
from training.evaluate import main
from training.evaluation.folder import EvaluationFolder
from training.evaluation.test_set import read_samples
from training.train import train

ROOT = Path(__file__).parents[3]


@pytest.fixture
def started(tmp_path):
    """(generate's arguments, evaluation folder) of a small set, already generated."""
    index = write_index(tmp_path / "data", tasks=("one", "two"), pairs=2)
    out = tmp_path / "evaluation"
    words = ["generate", "--set", str(index), "--split", "all", "--b-per-pair", "1", "--out", str(out)]
    assert main(words) == 0
    folder = EvaluationFolder(out)
    words += ["--method", f"theirs={write_results(tmp_path / 'theirs', folder, read_samples(folder), gray=40)}"]
    assert main(words) == 0
    return words, out


def judge_words(out, server, *metrics):
    """The judge command; by default with the quick metrics only, whose weights need no loading."""
    weights = metrics or ("--clip-encoder", "none")
    return ["judge", str(out), "--endpoint", server.url, "--model", MODEL, *weights]


def test_generate_judge_aggregate_fill_the_papers_table(started, tiny_parts, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    _, out = started
    assert main(["judge", str(out), "--clip-encoder", "none"]) == 0
    assert main(["aggregate", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "no plot" in shown
    row = next(line for line in shown.splitlines() if line.startswith("| theirs"))
    assert row.split("|")[2:6] == [" null "] * 4, "without judge and weights"
    assert "null" not in row.split("|")[6:]
    backbone, heads = write_network(tmp_path, "alex")
    weights = ["--lpips-backbone", str(backbone), "--lpips-heads", str(heads)]
    with serving(well_formed) as server:
        words = [*judge_words(out, server, "--clip-encoder", str(tiny_parts / "encoder"), *weights), "--both-orders"]
        assert main(words) == 0
        assert "28 questions: 28 answered\n" in capsys.readouterr().out
        asked = len(server.asked)
        assert main(words) == 0
        assert len(server.asked) == asked, "a second run asks nothing"
    capsys.readouterr()
    assert main(["aggregate", str(out), "--sheets", "2", "--sheet-rows", "2"]) == 0
    table = (out / "results" / "table.md").read_text(encoding="utf-8")
    columns = "Pres. ↑ | Acc. ↑ | LPIPS ↓ | CLIP dir. ↑ | vs copy-b % | vs copy-a-prime % | GMSD ↓ | PSNR(b′) dB ↑"
    assert table.startswith(f"| method | {columns}")
    assert "copy-b, CLIP dir.: 4 without a number (the result equals b)." in table
    assert table in capsys.readouterr().out
    values = json.loads((out / "results" / "results.json").read_text(encoding="utf-8"))
    assert (values["reference"], values["samples"], values["tasks"]) == ("theirs", 4, 2)
    assert values["methods"]["copy-b"]["lpips"]["mean"] == 0.0 < values["methods"]["theirs"]["lpips"]["mean"]
    assert values["methods"]["copy-b"]["clip_direction"]["left_out"] == {"the result equals b": 4}
    assert values["bias"]["agreement"] == 1.0
    results = {"pareto.png", "results.json", "sheet-01.png", "sheet-02.png", "table.md"}
    assert {path.name for path in (out / "results").iterdir()} == results
    assert main(["aggregate", str(out), "--sheets", "1", "--no-plot", "--method", "theirs", "--method", "copy-b"]) == 0
    assert {path.name for path in (out / "results").iterdir()} == results - {"pareto.png", "sheet-02.png"}
    assert "copy-a-prime" not in capsys.readouterr().out


def test_a_killed_judge_continues_where_it_stopped(started):
    _, out = started
    with serving(lambda asked: Reply(well_formed(asked).text, delay_seconds=0.2)) as server:
        words = [*judge_words(out, server), "--workers", "1"]
        command = [sys.executable, "-m", "training.evaluate", *words]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        deadline = time.monotonic() + 120
        while len(server.asked) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with (out / "answers.jsonl").open("ab") as file:
            file.write(b'{"key": "half a rec')
        before = len(EvaluationFolder(out).answers)
        asked = len(server.asked)
        assert 0 < before <= asked < 20
        assert main(words) == 0
        added = len(EvaluationFolder(out).answers) - before
        assert len(server.asked) - asked == added, "what was answered is not asked again"
        assert main(words) == 0
        assert len(server.asked) - asked == added


def test_failures_of_the_judge_are_counted_and_a_stopped_run_says_how_to_continue(started, capsys):
    _, out = started
    with serving(lambda asked: well_formed(asked) if asked.number < 5 else Reply("overloaded", 503)) as server:
        words = [*judge_words(out, server), "--retries", "0", "--workers", "1"]
        assert main(words) == 2
        message = capsys.readouterr().err
        assert "overloaded" in message
        assert "run the same command again to continue" in message
        server.behave = lambda asked: Reply(comparison(3)) if asked.is_comparison else well_formed(asked)
        assert main([*words, "--method", "theirs", "--method", "copy-b"]) == 0
        assert "12 questions: 8 answered, 4 unreadable reply\nRun the same command again" in capsys.readouterr().out


def test_a_test_set_reports_what_it_could_not_use(tmp_path, capsys):
    write_pair(tmp_path / "data" / "lonely", "0000", 5)
    index, out = write_index(tmp_path / "data", tasks=("one",), pairs=3), tmp_path / "evaluation"
    source = tmp_path / "data" / "one" / "0001_after.png"
    whole = source.read_bytes()
    source.write_bytes(whole[:60])
    words = ["generate", "--set", str(index), "--split", "all", "--b-per-pair", "1", "--out", str(out)]
    assert main(words) == 0
    reported = [
        "1 pairs without a fitting b (first lonely/0000)", "1 tasks without analogies (first lonely)",
        "2 analogies with unreadable images (first one--",
    ]  # fmt: skip
    error = capsys.readouterr().err
    assert all(f"not in the test set: {line}" in error for line in reported)
    assert main(["aggregate", str(out), "--no-plot"]) == 0
    table = capsys.readouterr().out
    assert all(f"- Not in the test set: {line}" in table for line in reported)
    source.write_bytes(whole)
    assert main(words) == 0
    assert reported[-1] not in capsys.readouterr().err
    assert len(read_samples(EvaluationFolder(out))) == 3


@pytest.mark.parametrize("name", ["inputs/{}/a.png", "inputs/{}/prompt.txt", "truth/{}.png"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_file_of_a_sample_is_reported_and_restored(started, name, damage, capsys):
    words, out = started
    path = out / name.format(read_samples(EvaluationFolder(out))[0].id)
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(whole[:8])
    assert main(["judge", str(out), "--clip-encoder", "none"]) == 2
    assert f"missing or changed, such as {path.relative_to(out)}. Run `generate`" in capsys.readouterr().err
    assert main(words) == 0
    assert path.read_bytes() == whole
    assert main(["judge", str(out), "--clip-encoder", "none"]) == 0


def test_a_changed_image_of_equal_size_and_everything_made_from_it_is_made_again(started, tmp_path):
    words, out = started
    source = tmp_path / "data" / "one" / "0000_before.png"
    paint(1, size=(48, 40)).save(source, format="BMP")
    assert main(words) == 0
    with serving(well_formed) as server:
        judge = judge_words(out, server)
        assert main(judge) == 0
        asked, size = len(server.asked), source.stat().st_size
        paint(2, size=(48, 40)).save(source, format="BMP")
        assert source.stat().st_size == size
        assert main(words) == 0
        assert main(judge) == 0
        assert len(server.asked) > asked
    folder = EvaluationFolder(out)
    sample = next(found["sample"] for found in folder.samples if found["b"] == "one/0000")
    for path in (folder.inputs(sample) / "b.png", folder.image("copy-b", sample)):
        assert Image.open(path).tobytes() == Image.open(source).tobytes()


def test_our_generator_runs_once_and_again_only_when_something_changes(tmp_path, tiny_config, tiny_parts, capsys):
    basis = train(tiny_config("run.steps=1")).basis_file
    out = tmp_path / "evaluation"
    words = [
        "generate", "--set", str(tiny_parts / "pairs.jsonl"), "--split", "all", "--per-task", "1", "--caption", "none",
        "--out", str(out), "--generator", f"LoRWeB={basis}", "--base", str(tiny_parts / "model"), "--encoder",
        str(tiny_parts / "encoder"), "--steps", "1", "--megapixels", "0.05", "--dtype", "float32",
    ]  # fmt: skip
    assert main(words) == 0
    assert "LoRWeB: 4 images" in capsys.readouterr().out
    images = sorted((out / "images" / "LoRWeB").iterdir())
    times = [path.stat().st_mtime_ns for path in images]
    images[0].unlink()
    assert main(words) == 0
    assert [path.stat().st_mtime_ns for path in images][1:] == times[1:]
    assert main([*words, "--noise-seed", "1"]) == 0
    assert all(new != old for new, old in zip([p.stat().st_mtime_ns for p in images], times, strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge", "{out}", "--endpoint", "http://127.0.0.1:9/v1"], "--endpoint needs --model"),
        (["judge", "{out}", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "Start the server"),
        (["judge", "{out}", "--reference", "mine"], "not one of the methods copy-b, copy-a-prime, theirs"),
        (["judge", "{out}", "--clip-encoder", "{out}/nowhere"], "nowhere"),
        (["judge", "{out}", "--device", "cuda:99"], "cuda:99"),
        *[(["judge", "{out}", "--timeout-seconds", seconds], "--timeout-seconds") for seconds in ("0", "nan", "soon")],
        (["aggregate", "{out}", "--sheet-rows", "0"], "--sheet-rows"),
        (["aggregate", "{out}", "--method", "mine"], "no method mine"),
        (["aggregate", "{out}/nowhere"], "generate --out"),
        (["generate", "--out", "{out}", "--set", "{out}/no.jsonl"], "training.prepare"),
        (["generate", "--out", "{out}", "--method", "theirs"], "NAME=LAYOUT:FOLDER"),
        (["generate", "--out", "{out}", "--generator", "x=none.safetensors"], "NAME=BASIS"),
        (["generate"], "--out"),
    ],
)
def test_bad_input_gets_one_message_that_says_what_to_do(started, capsys, words, message):
    _, out = started
    capsys.readouterr()
    assert main([word.replace("{out}", str(out)) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
