"""From records to tables: means within tasks first, honest intervals, and every omission said."""

import json

import numpy as np
import pytest

from tests.training.evaluation_sets import add_method, write_evaluation
from training.evaluation import notes, tables
from training.evaluation.aggregation import INVALID, NOT_ASKED, REFUSED, STALE, evaluate
from training.evaluation.errors import EvaluationError
from training.evaluation.generation import picture_hash
from training.evaluation.measuring import NOT_MEASURED
from training.evaluation.pairwise import couple_key
from training.evaluation.paper_rows import paper_table
from training.evaluation.pareto import draw_pareto
from training.evaluation.sheets import write_sheets
from training.evaluation.summaries import summarise


def test_tasks_weigh_alike_whatever_their_size():
    values = [("small", 1.0), *[("large", 4.0)] * 9]
    summary = summarise(values, {})
    assert summary.mean == pytest.approx(2.5)
    assert (summary.samples, summary.tasks) == (10, 2)


def test_intervals_are_over_tasks_and_narrow_with_their_number():
    rng = np.random.default_rng(0)
    few = summarise([(f"t{i}", float(v)) for i, v in enumerate(rng.normal(5, 1, 5))], {})
    many = summarise([(f"t{i}", float(v)) for i, v in enumerate(rng.normal(5, 1, 200))], {})
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert many.standard_error == pytest.approx(1 / 200**0.5, rel=0.2)
    # Many samples of one task tell nothing about other tasks.
    alone = summarise([("only", float(v)) for v in rng.normal(5, 1, 200)], {})
    assert (alone.low, alone.high, alone.standard_error) == (None, None, None)
    assert summarise([("a", 1.0), ("b", 3.0)], {}) == summarise([("b", 3.0), ("a", 1.0)], {})


def test_nothing_gives_no_number_but_its_reasons():
    summary = summarise([], {"no weights": 3, "never": 0})
    assert summary.mean is None
    assert summary.left_out == {"no weights": 3}


@pytest.fixture
def evaluation(tmp_path):
    folder, samples = write_evaluation(tmp_path, tasks=("one", "two"), pairs=2)
    add_method(tmp_path, folder, samples, "mine", grey=0)
    add_method(tmp_path, folder, samples, "theirs", grey=255)
    return folder, samples, ["copy-b", "mine", "theirs"]


def file_rating(
    folder, method, sample, rating, *, model="gemma", source="own words", stale=False, words=None, refused=None
):
    folder.ratings.append(
        {
            "model": model, "prompt_sha256": words or f"hash of {source}", "prompt_source": source, "method": method,
            "sample": sample.id, "task": sample.task, "answer_key": "k", "rating": rating, "refused": refused,
            "picture_sha256": "old" if stale else picture_hash(folder, method, sample.id),
            "inputs_sha256": sample.inputs,
        }
    )  # fmt: skip


def file_comparison(folder, sample, shown, better, *, order="drawn"):
    folder.comparisons.append(
        {
            "model": "gemma", "prompt_sha256": "hash", "prompt_source": "own words", "methods": couple_key(*shown),
            "sample": sample.id, "task": sample.task, "order": order, "shown": list(shown), "answer_key": "k",
            "better": better, "pictures_sha256": [picture_hash(folder, name, sample.id) for name in shown],
            "inputs_sha256": sample.inputs,
        }
    )  # fmt: skip


def test_invalid_stale_and_missing_ratings_are_counted_never_scored(evaluation):
    folder, samples, methods = evaluation
    file_rating(folder, "mine", samples[0], {"accuracy": 9, "consistency": 3})
    file_rating(folder, "mine", samples[1], None)
    file_rating(folder, "mine", samples[2], {"accuracy": 1, "consistency": 1}, stale=True)
    result = evaluate(folder, methods, samples, reference="mine")
    accuracy = result.measures["mine"]["accuracy"]
    assert accuracy.mean == 9.0
    assert accuracy.left_out == {INVALID: 1, STALE: 1, NOT_ASKED: 1}
    assert result.measures["mine"]["preservation"].mean == 3.0
    assert result.measures["mine"]["lpips"].left_out == {NOT_MEASURED: 4}
    table = tables.as_markdown(result)
    assert f"accuracy left out, {INVALID}: mine 1." in table
    assert "0.00" not in table


def test_the_reference_wins_in_percent_and_disagreements_count_half(evaluation):
    folder, samples, methods = evaluation
    for sample, better in zip(samples, (1, 1, 2, None), strict=True):
        file_comparison(folder, sample, ("mine", "theirs"), better)
    file_comparison(folder, samples[0], ("theirs", "mine"), 1, order="reversed")
    file_comparison(folder, samples[3], ("theirs", "mine"), 1, order="reversed")
    result = evaluate(folder, methods, samples, reference="mine")
    wins = result.wins["mine"]["theirs"]
    by_task = {}
    for sample, value in zip(samples[:3], (50, 100, 0), strict=True):
        by_task.setdefault(sample.task, []).append(value)
    assert wins.mean == pytest.approx(np.mean([np.mean(values) for values in by_task.values()]))
    assert wins.left_out == {INVALID: 1}
    table = tables.as_markdown(result)
    assert "| vs theirs % |" in table
    assert "vs copy-b" not in table, "no column for what was not asked"
    assert "asked both ways it named the same winner in 0% of 1 couples" in table
    assert "Compared mine | theirs: 1 samples in both orders, a disagreement is half a win each, and 2 in one" in table
    assert f"Left out: {INVALID}: 1." in table


@pytest.mark.parametrize(
    ("orders", "mode"),
    [(["drawn"], "one order, drawn at random; 4 samples"), (["drawn", "reversed"], "both orders, a disagreement is")],
)
def test_the_note_names_how_it_was_asked(evaluation, orders, mode):
    folder, samples, methods = evaluation
    for sample in samples:
        for order in orders:
            file_comparison(folder, sample, ("mine", "theirs"), 1, order=order)
    table = tables.as_markdown(evaluate(folder, methods, samples, reference="mine"))
    assert f"Compared mine | theirs: {mode}" in table
    assert "Left out: none." in table


def test_position_bias_counts_compared_samples_only(evaluation):
    folder, samples, methods = evaluation
    for sample in samples:
        file_comparison(folder, sample, ("mine", "theirs"), 1)
    folder.picture("copy-b", samples[0].id).unlink()
    assert evaluate(folder, methods, samples, reference="mine").bias.answers == len(samples) - 1


def test_several_references_give_a_column_of_win_rates_each(evaluation):
    folder, samples, methods = evaluation
    for sample in samples:
        file_comparison(folder, sample, ("mine", "theirs"), 1)
        file_comparison(folder, sample, ("mine", "copy-b"), 1)
        file_comparison(folder, sample, ("copy-b", "theirs"), 2)
    result = evaluate(folder, methods, samples, reference=["theirs", "copy-b"])
    table = tables.as_markdown(result)
    header, _, *rows = (line.split("|")[6:8] for line in table.splitlines()[:5])
    assert header == [" vs theirs % ", " vs copy-b % "]
    assert [[cell.split()[:1] for cell in row] for row in rows] == [
        [["0.0"], []], [["100.0"], ["100.0"]], [[], ["100.0"]]
    ]  # fmt: skip
    values = tables.as_json(result)
    assert values["win_rates"]["mine"]["copy-b"]["mean"] == 100.0
    assert values["win_rates_of_reference"]["mine"]["mean"] == 0.0


def test_numbers_over_fewer_samples_say_so_and_stand_again_over_the_common_ones(evaluation):
    folder, samples, methods = evaluation
    for sample, accuracy in zip(samples, (2, 4, 6, 8), strict=True):
        file_rating(folder, "mine", sample, {"accuracy": accuracy, "consistency": 5})
        file_rating(folder, "theirs", sample, {"accuracy": accuracy, "consistency": 5} if accuracy > 2 else None)
    result = evaluate(folder, methods, samples, reference="mine")
    values = tables.as_json(result)
    assert values["methods"]["mine"]["accuracy"]["mean"] != values["methods"]["theirs"]["accuracy"]["mean"]
    shared = values["methods_on_common_samples"]
    assert shared["mine"]["accuracy"] == shared["theirs"]["accuracy"], "copy-b has no number and takes none away"
    assert shared["mine"]["accuracy"]["samples"] == 3
    table = tables.as_markdown(result)
    own, common = (part for part in table.split("On the samples for which every method"))
    theirs = next(line for line in own.splitlines() if line.startswith("| theirs"))
    assert theirs.count("(n 3)") == 2
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in common.splitlines() if line.startswith("| ")}
    assert rows["mine"] == rows["theirs"]
    assert rows["copy-b"] == [" null ", " null "]


def test_the_newest_complete_wording_counts_unless_another_is_named(evaluation):
    folder, samples, methods = evaluation
    for words, accuracy, rated in (("1st", 3, samples), ("2nd", 5, samples), ("3rd", 9, samples[:1])):
        for method in methods:
            for sample in rated:
                rating = {"accuracy": accuracy, "consistency": 5}
                file_rating(
                    folder, method, sample, rating, words=words, source="paper" if words == "1st" else "own words"
                )

    def accuracy_by(wording):
        result = evaluate(folder, methods, samples, reference="mine", wording=wording)
        return result.measures["mine"]["accuracy"].mean, tables.as_markdown(result)

    number, table = accuracy_by(None)
    assert number == 5.0
    assert "This judge was also asked in other words, whose answers are not counted (rating 1st, 3rd)" in table
    assert [accuracy_by(wording)[0] for wording in ("paper", "own", "1s", "3rd")] == [3.0, 5.0, 3.0, 9.0]
    assert notes.PAPER_WORDS_NOTE in accuracy_by("paper")[1]
    for unknown in ("4th", ""):
        with pytest.raises(EvaluationError, match=r"1st \(rating, paper\), 2nd"):
            accuracy_by(unknown)


def test_the_papers_rows_have_its_win_rates_in_its_columns():
    header, _, full, *rows = paper_table()
    assert header.endswith("| CLIP dir. ↑ | vs LoRA % | vs Edit-Transfer % | vs VisualCloze % | vs RelationAdapter % |")
    assert full == "| LoRWeB, 32 × rank 4 | 7.87 | 5.94 | 0.31 | 0.21 | 57.9 | 70.4 | 68.1 | 58.5 |"
    assert {row.count("|") for row in rows} == {10}
    assert any(row.startswith("| tanh instead of softmax | 7.94 | 4.49 |") for row in rows)


def test_names_with_bars_do_not_break_the_table(evaluation, tmp_path):
    folder, samples, _ = evaluation
    add_method(tmp_path, folder, samples, "LoRA | r4", grey=9)
    for sample in samples:
        file_comparison(folder, sample, ("mine", "LoRA | r4"), 1)
    table = tables.as_markdown(evaluate(folder, ["mine", "LoRA | r4"], samples, reference="mine"))
    lines = [line.replace("\\|", "") for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_refused_questions_are_counted_apart_from_unreadable_replies(evaluation):
    folder, samples, methods = evaluation
    file_rating(folder, "mine", samples[0], None, refused="content policy")
    file_rating(folder, "mine", samples[1], None)
    accuracy = evaluate(folder, methods, samples, reference="mine").measures["mine"]["accuracy"]
    assert accuracy.left_out == {REFUSED: 1, INVALID: 1, NOT_ASKED: 2}


def test_missing_pictures_shrink_the_comparison_and_the_table_says_so(evaluation):
    folder, samples, methods = evaluation
    folder.picture("theirs", samples[0].id).unlink()
    result = evaluate(folder, methods, samples, reference="mine")
    assert [sample.id for sample in result.samples] == [sample.id for sample in samples[1:]]
    table = tables.as_markdown(result)
    assert (
        f"Compared on the common set only, since pictures are missing: theirs lacks 1 (first {samples[0].id})" in table
    )


def test_own_words_are_never_set_beside_the_papers_numbers(evaluation):
    folder, samples, methods = evaluation
    for sample in samples:
        file_rating(folder, "mine", sample, {"accuracy": 5, "consistency": 5})
    table = tables.as_markdown(evaluate(folder, methods, samples, reference="mine"))
    assert notes.OWN_WORDS_NOTE in table
    assert "RelationAdapter" not in table
    for sample in samples:
        file_rating(folder, "mine", sample, {"accuracy": 5, "consistency": 5}, model="other", source="paper")
    with pytest.raises(EvaluationError, match=r"gemma, other.*--judge"):
        evaluate(folder, methods, samples, reference="mine")
    table = tables.as_markdown(evaluate(folder, methods, samples, reference="mine", judge="other"))
    assert "| RelationAdapter | 7.01 | 5.93 | 0.43 | 0.22 |" in table
    assert notes.PAPER_WORDS_NOTE in table


def test_columns_stand_in_the_papers_order(evaluation):
    folder, samples, methods = evaluation
    header = tables.as_markdown(evaluate(folder, methods, samples, reference="mine")).splitlines()[0]
    assert header.startswith("| method | Pres. ↑ | Acc. ↑ | LPIPS ↓ | CLIP dir. ↑ |")


def test_json_holds_every_number_and_is_plain(evaluation):
    folder, samples, methods = evaluation
    file_rating(folder, "mine", samples[0], {"accuracy": 9, "consistency": 3})
    values = json.loads(
        json.dumps(tables.as_json(evaluate(folder, methods, samples, reference="mine")), allow_nan=False)
    )
    assert values["methods"]["mine"]["accuracy"]["mean"] == 9.0
    assert values["methods"]["copy-b"]["lpips"]["mean"] is None
    assert values["judge"]["model"] == "gemma"


def test_the_plot_needs_two_measures_with_numbers(evaluation, tmp_path):
    folder, samples, methods = evaluation
    pytest.importorskip("matplotlib")
    assert not draw_pareto(evaluate(folder, methods, samples, reference="mine"), tmp_path / "pareto.png")
    for method in methods:
        for number, sample in enumerate(samples):
            file_rating(folder, method, sample, {"accuracy": 3 + number, "consistency": 9 - number})
    assert draw_pareto(evaluate(folder, methods, samples, reference="mine"), tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_sheets_show_every_task_before_any_twice(evaluation):
    folder, samples, methods = evaluation
    paths = write_sheets(folder, methods, samples, rows=2, sheets=5, cell_px=32)
    assert [path.name for path in paths] == ["sheet-01.png", "sheet-02.png"]
    (folder.results / "sheet-of-mine.png").write_bytes(b"")
    assert write_sheets(folder, methods, samples, rows=4, sheets=1, cell_px=32) == paths[:1]
    assert sorted(path.name for path in folder.results.iterdir()) == ["sheet-01.png", "sheet-of-mine.png"]
    assert write_sheets(folder, methods, samples, rows=2, sheets=0) == []
