"""From records to tables: means within tasks first, honest intervals, and every omission counted."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from tests.training.evaluation.example_sets import add_method, write_evaluation
from training.evaluation.aggregation import NOT_JUDGED, evaluate, summarize
from training.evaluation.metrics import NOT_MEASURED
from training.evaluation.questions import NO_REPLY, ORDERS, UNREADABLE, Judging, make_question, shown_order
from training.evaluation.report import OWN_WORDING_NOTE, PAPER_ROWS, as_markdown, write_sheets

JUDGING = Judging("gemma", "rate", "compare", is_papers=False)


def test_means_are_within_a_task_first_then_over_tasks():
    summary = summarize([("small", 1.0), *[("large", 4.0)] * 8, ("large", "refused")])
    assert summary.mean == 2.5
    assert (summary.samples, summary.tasks, summary.left_out) == (9, 2, {"refused": 1})


def test_intervals_are_over_tasks_and_narrow_with_their_number():
    rng = np.random.default_rng(0)
    few = summarize([(f"t{i}", float(v)) for i, v in enumerate(rng.normal(5, 1, 5))])
    many = summarize([(f"t{i}", float(v)) for i, v in enumerate(rng.normal(5, 1, 200))])
    assert few.low < few.mean < few.high
    assert many.high - many.low == pytest.approx(2 * 1.96 / 200**0.5, rel=0.2)
    # Many samples of one task say nothing about other tasks.
    alone = summarize([("only", float(v)) for v in rng.normal(5, 1, 200)])
    assert (alone.low, alone.high) == (None, None)
    assert summarize([("a", 1.0), ("b", 3.0)]) == summarize([("b", 3.0), ("a", 1.0)])
    assert summarize([("a", "no weights")] * 3).left_out == {"no weights": 3}


@pytest.fixture
def evaluation(tmp_path):
    folder, samples = write_evaluation(tmp_path, ("mine", 0), ("theirs", 255), tasks=("one", "two"), pairs=2)
    JUDGING.save(folder)
    return folder, samples, ["copy-b", "mine", "theirs"]


def answer(folder, sample, methods, answer, *, failure=None, judging=JUDGING):
    """Keep an answer to the question about these methods' images."""
    question = make_question(folder, judging, sample, methods)
    record = {"key": question.key, "kind": question.kind, "model": judging.model, "replies": [], "details": None}
    folder.answers.append({**record, "answer": answer, "failure": failure})


def rate(folder, sample, method, accuracy, consistency=5, **how):
    answer(folder, sample, [method], {"accuracy": accuracy, "consistency": consistency}, **how)


def compare(folder, sample, winner, order):
    """Keep an answer in one order; winner None: unreadable."""
    shown = shown_order("mine", "theirs", sample.id, order)
    better = None if winner is None else {"better": 1 + shown.index(winner)}
    answer(folder, sample, shown, better, failure=None if better else UNREADABLE)


def test_ratings_without_an_answer_are_counted_never_scored(evaluation, tmp_path):
    folder, samples, methods = evaluation
    rate(folder, samples[0], "mine", 9, 3)
    answer(folder, samples[1], ["mine"], None, failure=UNREADABLE)
    answer(folder, samples[2], ["mine"], None, failure=NO_REPLY)
    result = evaluate(folder, methods, samples, reference="mine")
    accuracy = result.methods["mine"]["accuracy"]
    assert accuracy.mean == 9.0
    assert accuracy.left_out == {UNREADABLE: 1, NO_REPLY: 1, NOT_JUDGED: 1}
    assert result.methods["mine"]["preservation"].mean == 3.0
    assert result.methods["mine"]["lpips"].left_out == {NOT_MEASURED: 4}
    table = as_markdown(result)
    assert f"mine, Acc.: 1 without a number ({NO_REPLY})." in table
    assert "9.00 (n 1)" in table
    assert "| null |" in table
    add_method(tmp_path, folder, samples[:1], "mine", gray=70)
    changed = evaluate(folder, methods, samples, reference="mine").methods["mine"]["accuracy"]
    assert (changed.mean, changed.left_out[NOT_JUDGED]) == (None, 2), "an answer is about the image that was shown"


def test_win_rates_in_both_orders_by_hand(evaluation):
    folder, samples, methods = evaluation
    assert [sample.task for sample in samples] == ["one", "one", "two", "two"]
    winners = [("mine", "mine"), ("mine", "theirs"), ("theirs", "theirs"), ("mine", None)]
    for sample, pair in zip(samples, winners, strict=True):
        for winner, order in zip(pair, ORDERS, strict=True):
            compare(folder, sample, winner, order)
    result = evaluate(folder, methods, samples, reference="mine")
    wins = result.win_rates["theirs"]
    assert wins.mean == pytest.approx(((100 + 50) / 2 + 0) / 2)
    assert wins.left_out == {UNREADABLE: 1}, "the other order alone would go by position"
    assert result.bias.answers == 7
    assert (result.bias.both_orders, result.bias.agreement) == (3, pytest.approx(2 / 3))
    assert evaluate(folder, methods, samples, reference="theirs").win_rates["mine"].mean == 100 - wins.mean
    table = as_markdown(result)
    assert "| vs theirs % |" in table
    assert "vs copy-b" not in table, "no column for what was not asked"
    assert "the same image in both orders in 67% of 3" in table
    assert f"mine, vs theirs: 1 without a number ({UNREADABLE})." in table


def test_a_judge_of_positions_gives_half_wins_and_shows(evaluation):
    folder, samples, methods = evaluation
    for sample in samples:
        for order in ORDERS:
            answer(folder, sample, shown_order("mine", "theirs", sample.id, order), {"better": 1})
    result = evaluate(folder, methods, samples, reference="mine")
    assert result.win_rates["theirs"].mean == 50.0
    assert (result.bias.first_share, result.bias.agreement) == (1.0, 0.0)


def test_the_latest_judging_counts_and_the_papers_rows_need_its_prompts(evaluation):
    folder, samples, methods = evaluation
    papers = Judging("gemma", "rate as in the paper", "compare", is_papers=True)
    for sample in samples:
        rate(folder, sample, "mine", 5)
        rate(folder, sample, "mine", 8, judging=papers)
    result = evaluate(folder, methods, samples, reference="mine")
    assert result.methods["mine"]["accuracy"].mean == 5.0
    table = as_markdown(result)
    assert OWN_WORDING_NOTE in table
    assert "RelationAdapter" not in table
    papers.save(folder)
    result = evaluate(folder, methods, samples, reference="mine")
    assert result.methods["mine"]["accuracy"].mean == 8.0
    table = as_markdown(result)
    assert OWN_WORDING_NOTE not in table
    assert "| LoRWeB, 32 × rank 4 | 7.87 | 5.94 | 0.31 | 0.21 | 57.9 | 70.4 | 68.1 | 58.5 |" in table
    assert "| RelationAdapter | 7.01 | 5.93 | 0.43 | 0.22 |  |  |  |  |" in table
    assert {len(row) for row in PAPER_ROWS.values()} == {4, 8}


def test_missing_images_shrink_the_comparison_and_the_table_says_so(evaluation):
    folder, samples, methods = evaluation
    for sample in samples:
        compare(folder, sample, "mine", "drawn")
    folder.image("theirs", samples[0].id).unlink()
    result = evaluate(folder, methods, samples, reference="mine")
    assert (result.samples, result.bias.answers) == (3, 3)
    assert f"Compared without 1 samples for which theirs has no image (first {samples[0].id})" in as_markdown(result)


def test_columns_stand_in_the_papers_order_and_bars_in_names_break_nothing(evaluation, tmp_path):
    folder, samples, _ = evaluation
    add_method(tmp_path, folder, samples, "LoRA | r4", gray=9)
    answer(folder, samples[0], shown_order("mine", "LoRA | r4", samples[0].id, "drawn"), {"better": 1})
    result = evaluate(folder, ["mine", "LoRA | r4"], samples, reference="mine")
    values = json.loads(json.dumps(asdict(result), allow_nan=False))
    assert values["win_rates"]["LoRA | r4"]["samples"] == 1
    assert values["methods"]["mine"]["lpips"]["mean"] is None
    assert values["judge"] == {"model": "gemma", "wording": "own"}
    table = as_markdown(result)
    assert table.startswith("| method | Pres. ↑ | Acc. ↑ | LPIPS ↓ | CLIP dir. ↑ | vs LoRA \\| r4 % |")
    lines = [line.replace("\\|", "") for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_sheets_have_heads_and_names_and_replace_earlier_ones(evaluation):
    folder, samples, methods = evaluation
    write_sheets(folder, methods, samples, rows=2, sheets=5, cell_px=96)
    (folder.results / "sheet-of-mine.png").write_bytes(b"")
    write_sheets(folder, methods, samples, rows=4, sheets=1, cell_px=96)
    assert sorted(path.name for path in folder.results.iterdir()) == ["sheet-01.png", "sheet-of-mine.png"]
    sheet = np.asarray(Image.open(folder.results / "sheet-01.png").convert("L"))
    assert sheet.shape[1] == (3 + len(methods) + 1) * 102 + 6, "a, a′, b, methods, true b′"
    for column in range(7):
        assert sheet[:22, 6 + 102 * column : 102 * (column + 1)].min() < 100, f"no head above column {column}"
    for row in range(4):
        top = 22 + row * 124
        assert sheet[top : top + 22].min() < 128, f"no task name above row {row}"
        assert sheet[top + 22 + 1, 6 + 102 * 6 + 1] < 255, "the true b′"
