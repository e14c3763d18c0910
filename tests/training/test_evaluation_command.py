"""The whole protocol from the command line: tiny Kontext, real judge server, interruptions, bad input."""

import json

import pytest

from tests.training.data_pictures import write_pair
from tests.training.evaluation_sets import write_index, write_results
from tests.training.judge_server import MODEL, Reply, comparison, serving, well_formed
from tests.training.test_evaluation_metrics import write_network
from training.evaluate import main
from training.evaluation.folder import EvaluationFolder
from training.evaluation.samples import read_samples
from training.train import train


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Random AlexNet weights and heads for LPIPS."""
    backbone, heads = write_network(tmp_path_factory.mktemp("weights"), "alex")
    return ["--lpips-backbone", str(backbone), "--lpips-heads", str(heads)]


@pytest.fixture
def started(tmp_path):
    """(generate's first words, evaluation folder) of a small set, already generated."""
    index = write_index(tmp_path / "data", tasks=("one", "two"), pairs=2)
    out = tmp_path / "evaluation"
    words = ["generate", "--set", str(index), "--split", "all", "--b-per-pair", "1", "--out", str(out)]
    assert main(words) == 0
    folder = EvaluationFolder(out)
    place = write_results(tmp_path / "theirs", folder, read_samples(folder), grey=40, size=(37, 31))
    assert main(["generate", "--out", str(out), "--method", f"theirs={place}"]) == 0
    return words, out


def judge_words(out, server, *measures):
    """The judge command; without measures only the quick ones, whose weights need no loading."""
    weights = measures or ("--clip-encoder", "none")
    return ["judge", str(out), "--endpoint", server.url, "--model", MODEL, *weights]


def test_generate_judge_aggregate_fill_the_papers_table(started, tiny_parts, weights, capsys):
    _, out = started
    with serving(well_formed) as server:
        words = judge_words(out, server, "--clip-encoder", str(tiny_parts / "encoder"), *weights)
        assert main([*words, "--both-orders", "--reference", "theirs"]) == 0
        asked = len(server.asked)
        assert main([*words, "--both-orders", "--reference", "theirs"]) == 0
        assert len(server.asked) == asked, "a second run asks nothing"
    capsys.readouterr()
    assert main(["aggregate", str(out), "--reference", "theirs"]) == 0
    table = (out / "results" / "table.md").read_text(encoding="utf-8")
    assert table.splitlines()[0].startswith(
        "| method | Pres. ↑ | Acc. ↑ | LPIPS ↓ | CLIP dir. ↑ | vs copy-b % | vs copy-a-prime % | PSNR(b′) dB ↑"
    )
    assert "not with the paper's numbers" in table
    assert "zero-length CLIP direction: the result equals b: copy-b 4." in table
    assert table in capsys.readouterr().out
    values = json.loads((out / "results" / "results.json").read_text(encoding="utf-8"))
    assert values["methods"]["copy-b"]["lpips"]["mean"] == 0.0
    assert values["methods"]["theirs"]["lpips"]["mean"] > 0.0
    assert values["methods"]["theirs"]["psnr"]["samples"] == 4, "pictures of another size are brought to b's"
    assert values["position_bias"]["agreement"] == 1.0
    assert {path.name for path in (out / "results").iterdir()} >= {"pareto.png", "sheet-01.png"}


def test_without_weights_or_judge_the_numbers_are_null_with_their_reasons(started, capsys):
    _, out = started
    assert main(["judge", str(out), "--clip-encoder", "none"]) == 0
    assert main(["aggregate", str(out), "--no-plot"]) == 0
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("| theirs"))
    assert row.split("|")[2:6] == [" null "] * 4
    assert "lpips left out, LPIPS has no weights: give --lpips-backbone: copy-b 4, copy-a-prime 4, theirs 4." in table
    assert "clip_direction left out, CLIP direction is switched off: copy-b 4, copy-a-prime 4, theirs 4." in table
    assert "No judge was asked" in table


def test_an_interrupted_judge_goes_on_where_it_stopped(started, capsys):
    _, out = started

    def fails_after_five(asked):
        return well_formed(asked) if asked.number < 5 else Reply("overloaded", 503)

    with serving(fails_after_five) as server:
        words = [*judge_words(out, server), "--tries-again", "0", "--workers", "1"]
        assert main(words) == 2
        message = capsys.readouterr().err
        assert "overloaded" in message
        assert "run the same command again" in message
        with (out / "answers.jsonl").open("ab") as file:
            file.write(b'{"key": "half a rec')
        refused = len(server.asked) - 5
        server.behave = well_formed
        assert main(words) == 0
        # 12 ratings (those of copies are few different pictures), 8 comparisons; none asked twice
        answers = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len({answer["key"] for answer in answers}) == len(answers) == len(server.asked) - refused


def test_a_judge_by_position_is_reported(started, capsys):
    _, out = started

    def always_first(asked):
        return Reply(comparison(1)) if asked.is_comparison else well_formed(asked)

    with serving(always_first) as server:
        assert main([*judge_words(out, server), "--both-orders"]) == 0
    assert main(["aggregate", str(out), "--no-plot"]) == 0
    assert "chose the first picture in 100% of 16 answers" in capsys.readouterr().out


def test_sensitivity_is_zero_for_who_ignores_the_pair(tmp_path, weights, capsys):
    index = write_index(tmp_path / "data", tasks=("one",), pairs=4)
    out = tmp_path / "evaluation"
    words = ["generate", "--set", str(index), "--split", "all", "--pairs-per-b", "3", "--out", str(out)]
    assert main(words) == 0
    assert main(["sensitivity", str(out), "--clip-encoder", "none", *weights]) == 0
    values = json.loads((out / "results" / "sensitivity.json").read_text(encoding="utf-8"))
    assert values["copy-b"]["rms"]["mean"] == values["copy-b"]["lpips"]["mean"] == 0.0
    assert values["copy-a-prime"]["rms"]["mean"] > 0.05
    assert "4 pictures b in 1 task(s), 3 pairs each" in capsys.readouterr().out
    gone = sorted((out / "pictures" / "copy-b").iterdir())[0]
    gone.unlink()
    assert main(["sensitivity", str(out), "--clip-encoder", "none"]) == 0
    table = capsys.readouterr().out
    assert "4 pictures b in 1 task(s), 2–3 pairs each" in table
    assert f"since pictures are missing: copy-b lacks 1 (first {gone.stem})" in table


def test_a_set_tells_what_it_could_not_use(tmp_path, capsys):
    write_index(tmp_path / "data", tasks=("one",), pairs=2)
    write_pair(tmp_path / "data" / "lonely", "0000", 5)
    index, out = write_index(tmp_path / "data", tasks=("one",), pairs=2), tmp_path / "evaluation"
    words = ["generate", "--set", str(index), "--split", "all", "--b-per-pair", "1", "--out", str(out)]
    assert main(words) == 0
    told = ["1 pairs without a fitting b (first lonely/0000)", "tasks without samples: lonely"]
    error = capsys.readouterr().err
    assert all(f"not in the test set: {loss}\n" in error for loss in told)
    assert main(["aggregate", str(out), "--no-plot"]) == 0
    assert all(f"- Not in the test set: {loss}.\n" in capsys.readouterr().out for loss in told[:1])
    values = json.loads((out / "results" / "results.json").read_text(encoding="utf-8"))
    assert values["not_in_test_set"] == told


def test_a_new_table_takes_old_plots_and_sheets_away(started):
    pytest.importorskip("matplotlib")
    _, out = started
    with serving(well_formed) as server:
        assert main(judge_words(out, server)) == 0
    results = out / "results"
    assert main(["aggregate", str(out), "--sheets", "2", "--sheet-rows", "2"]) == 0
    (results / "mine.png").write_bytes(b"")
    assert {path.name for path in results.glob("*.png")} == {"mine.png", "pareto.png", "sheet-01.png", "sheet-02.png"}
    assert main(["aggregate", str(out), "--sheets", "1", "--sheet-rows", "2", "--no-plot"]) == 0
    assert {path.name for path in results.glob("*.png")} == {"mine.png", "sheet-01.png"}


def test_several_references_are_compared_and_methods_left_out(started, capsys):
    _, out = started
    with serving(well_formed) as server:
        assert main([*judge_words(out, server), "--reference", "theirs", "--reference", "copy-b"]) == 0
        assert sum(asked.is_comparison for asked in server.asked) > 0
    capsys.readouterr()
    assert main(["aggregate", str(out), "--reference", "theirs", "--reference", "copy-b", "--no-plot"]) == 0
    table = capsys.readouterr().out
    assert "| vs theirs % | vs copy-b % |" in table
    assert main(["aggregate", str(out), "--without", "copy-b", "--no-plot"]) == 0
    assert "copy-b" not in capsys.readouterr().out
    assert main(["aggregate", str(out), "--without", "copy-b", "--reference", "copy-b"]) == 2


@pytest.mark.parametrize("resamples", ["0", "1", "-3", "many"])
def test_a_bootstrap_needs_two_resamples(tmp_path, resamples, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["aggregate", str(tmp_path), "--resamples", resamples])
    assert "--resamples: expected a whole number" in capsys.readouterr().err


def test_our_generator_draws_once_and_again_only_when_something_changes(tmp_path, tiny_config, tiny_parts, capsys):
    basis = train(tiny_config("run.steps=1")).basis_file
    out = tmp_path / "evaluation"
    words = [
        "generate", "--set", str(tiny_parts / "pairs.jsonl"), "--split", "all", "--per-task", "1", "--caption", "none",
        "--out", str(out), "--generator", f"LoRWeB={basis}", "--base", str(tiny_parts / "model"), "--encoder",
        str(tiny_parts / "encoder"), "--steps", "1", "--megapixels", "0.05", "--dtype", "float32",
    ]  # fmt: skip
    assert main(words) == 0
    assert "LoRWeB: 4 pictures" in capsys.readouterr().out
    pictures = sorted((out / "pictures" / "LoRWeB").iterdir())
    times = [path.stat().st_mtime_ns for path in pictures]
    pictures[0].unlink()
    assert main(words) == 0
    assert [path.stat().st_mtime_ns for path in pictures][1:] == times[1:]
    assert main([*words, "--noise-seed", "1"]) == 0
    assert all(new != old for new, old in zip([p.stat().st_mtime_ns for p in pictures], times, strict=True))
    assert main(["judge", str(out), "--clip-encoder", str(tiny_parts / "encoder")]) == 0
    assert main(["aggregate", str(out), "--no-plot"]) == 0
    assert "| LoRWeB | null | null | null |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge", "{out}", "--endpoint", "http://127.0.0.1:9/v1"], "no --model"),
        (["judge", "{out}", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "Start the server"),
        (["judge", "{out}", "--endpoint", "http://x/v1", "--local-model", "y"], "one judge"),
        (["judge", "{out}", "--reference", "mine"], "--reference to be one of copy-b, copy-a-prime, theirs"),
        (["aggregate", "{out}", "--methods", "mine"], "got mine"),
        (["aggregate", "{out}", "--judge", "gpt"], "none was; got gpt"),
        (["aggregate", "{out}", "--without", "mine"], "got mine"),
        (["aggregate", "{out}", "--wording", "own"], "asked with: none; got 'own'"),
        (["aggregate", "{out}/nowhere"], "generate --set"),
        (["sensitivity", "{out}", "--clip-encoder", "none"], "--pairs-per-b"),
        (["generate", "--out", "{out}", "--set", "{out}/no.jsonl"], "training.prepare"),
        (["generate", "--out", "{out}", "--method", "theirs"], "NAME=LAYOUT:FOLDER"),
        (["generate", "--out", "{out}", "--generator", "x=none.safetensors"], "NAME=BASIS"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(started, capsys, words, message):
    _, out = started
    capsys.readouterr()
    assert main([word.replace("{out}", str(out)) for word in words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate:")]
    assert message in line
