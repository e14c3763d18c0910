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
    assert write_sheets(folder, methods, samples, rows=2, sheets=0) == []
