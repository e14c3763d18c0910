"""Judges behind a real HTTP server that answers well, badly, late, in limits, or by position."""

import json

import pytest

from tests.training.evaluation_sets import add_method, mean_colour, write_evaluation
from tests.training.judge_server import MODEL, Reply, comparison, rating, serving, well_formed
from training.evaluation.endpoint import EndpointJudge
from training.evaluation.errors import EvaluationError, JudgeError
from training.evaluation.folder import EvaluationFolder
from training.evaluation.judge import TEMPERATURES, Asking, open_answers
from training.evaluation.pairwise import compare_all, couple_key, position_bias, wins_by_sample
from training.evaluation.prompts import read_prompt
from training.evaluation.rating import rate_all

RATING, COMPARISON = read_prompt("rating"), read_prompt("comparison")


@pytest.fixture
def evaluation(tmp_path):
    """(folder, two samples, methods): copy-b, and a darker and a lighter result."""
    folder, samples = write_evaluation(tmp_path, tasks=("edit",), pairs=2)
    add_method(tmp_path, folder, samples, "dark", grey=0)
    add_method(tmp_path, folder, samples, "light", grey=255)
    return folder, samples, ["dark", "light"]


def asking(server, folder, **how):
    options = {"timeout_seconds": how.pop("timeout_seconds", 20.0), "tries_again": how.pop("tries_again", 2)}
    return Asking(EndpointJudge(server.url, MODEL, **options), open_answers(folder.root / "answers.jsonl"), **how)


def rated(folder, samples, methods, server, **how):
    rate_all(folder, asking(server, folder, **how), RATING, methods, samples)
    return {(record["method"], record["sample"]): record["rating"] for record in folder.ratings}


def test_pictures_arrive_in_the_prompts_order_and_scores_are_kept(evaluation):
    folder, samples, methods = evaluation
    with serving(well_formed) as server:
        ratings = rated(folder, samples, methods, server)
        for asked in server.asked:
            a, a_prime, b, result = (picture.mean() for picture in asked.pictures)
            sample = next(s for s in samples if abs(mean_colour(folder.inputs(s.id) / "b.png") - b) < 1e-6)
            assert a == pytest.approx(mean_colour(folder.inputs(sample.id) / "a.png"))
            assert a_prime == pytest.approx(mean_colour(folder.inputs(sample.id) / "a_prime.png"))
            shown = [mean_colour(folder.picture(method, sample.id)) for method in methods]
            assert any(result == pytest.approx(mean) for mean in shown)
            assert asked.body["temperature"] == 0.0
            assert asked.body["model"] == MODEL
    assert len(ratings) == 4
    assert all(ratings["dark", s.id]["accuracy"] > ratings["light", s.id]["accuracy"] for s in samples)
    (record, *_) = folder.ratings
    assert (record["model"], record["prompt_sha256"], record["prompt_source"]) == (MODEL, RATING.sha256, "own words")
    answer = open_answers(folder.root / "answers.jsonl").find(record["answer_key"])
    assert answer["attempts"][0]["raw"].startswith("The colours turned.")


def test_answers_are_asked_once_and_shared_through_their_file(evaluation):
    folder, samples, methods = evaluation
    with serving(well_formed) as server:
        first = rated(folder, samples, methods, server)
        rated(folder, samples, methods, server)
        assert len(server.asked) == 4
        (folder.root / "ratings.jsonl").unlink()
        again = EvaluationFolder(folder.root)
        assert rated(again, samples, methods, server) == first
        assert len(server.asked) == 4, "the kept answers are enough to write the ratings anew"


def test_a_changed_picture_is_asked_anew(evaluation, tmp_path):
    folder, samples, methods = evaluation
    with serving(well_formed) as server:
        before = rated(folder, samples, methods, server)
        add_method(tmp_path, folder, samples[:1], "light", grey=60)
        after = rated(folder, samples, methods, server)
        assert len(server.asked) == 5
    assert before["light", samples[0].id] != after["light", samples[0].id]
    assert before["light", samples[1].id] == after["light", samples[1].id]


def test_equal_pictures_of_two_methods_are_one_question(evaluation, tmp_path):
    folder, samples, _ = evaluation
    add_method(tmp_path, folder, samples, "twin", grey=0)
    with serving(well_formed) as server:
        ratings = rated(folder, samples, ["dark", "twin"], server)
        assert len(server.asked) == 2
    assert len(ratings) == 4


def test_fenced_and_corrected_replies_are_read(evaluation):
    folder, samples, methods = evaluation
    reply = f"```json\n{rating(2, 2)}\n```\nOn second thoughts:\n```json\n{rating(8, 9)}\n```"
    with serving(lambda asked: Reply(reply)) as server:
        ratings = rated(folder, samples, methods, server)
    assert set(map(json.dumps, ratings.values())) == {'{"accuracy": 8, "consistency": 9}'}


def test_an_unreadable_reply_is_asked_again_warmer(evaluation):
    folder, samples, methods = evaluation

    def broken_first(asked):
        return Reply(rating(7, 7) if asked.body["temperature"] else '{"metrics": {"accuracy": 7, ')

    with serving(broken_first) as server:
        ratings = rated(folder, samples, methods, server, workers=1)
        assert [asked.body["temperature"] for asked in server.asked] == [*TEMPERATURES[:2]] * 4
        assert len({asked.body["seed"] for asked in server.asked}) == 2
    assert all(value == {"accuracy": 7, "consistency": 7} for value in ratings.values())
    attempts = next(iter(open_answers(folder.root / "answers.jsonl")))["attempts"]
    assert [attempt.get("problem") for attempt in attempts] == ["no JSON object", None]


def test_replies_that_stay_unreadable_are_invalid_and_never_scored(evaluation):
    folder, samples, methods = evaluation
    with serving(lambda asked: Reply("I would rather not.")) as server:
        ratings = rated(folder, samples, methods, server)
        assert len(server.asked) == 4 * len(TEMPERATURES)
        assert set(ratings.values()) == {None}
        rated(folder, samples, methods, server)
        assert len(server.asked) == 4 * len(TEMPERATURES), "an invalid answer is kept, too"
        server.behave = well_formed
        ratings = rated(folder, samples, methods, server, retries_invalid=True)
    assert None not in ratings.values()


def test_a_rate_limit_is_waited_for_as_the_server_says(evaluation):
    folder, samples, methods = evaluation

    def limited_once(asked):
        return Reply("slow down", 429, {"Retry-After": "1"}) if asked.number == 0 else well_formed(asked)

    with serving(limited_once) as server:
        assert None not in rated(folder, samples, methods, server, workers=1).values()
        assert len(server.asked) == 5


def test_a_rate_limit_without_end_stops_with_what_to_do_and_goes_on_later(evaluation):
    folder, samples, methods = evaluation

    def limited_after_two(asked):
        return well_formed(asked) if asked.number < 2 else Reply("slow down", 429, {"Retry-After": "3600"})

    with serving(limited_after_two) as server:
        with pytest.raises(JudgeError, match=r"429.*asked again after 3600 s.*run the same command again"):
            rated(folder, samples, methods, server, workers=1)
        assert len(folder.ratings) == 2
        asked_before = len(server.asked)
        server.behave = well_formed
        again = EvaluationFolder(folder.root)
        assert len(rated(again, samples, methods, server, workers=1)) == 4
        assert len(server.asked) == asked_before + 2


def test_a_slow_judge_is_told_with_its_time(evaluation):
    folder, samples, methods = evaluation
    with serving(lambda asked: Reply(rating(5, 5), delay_seconds=1.5)) as server:
        with pytest.raises(JudgeError, match=r"none within 0.3 s.*--timeout-seconds"):
            rated(folder, samples, methods, server, timeout_seconds=0.3, tries_again=0, workers=1)
        ratings = rated(folder, samples[:1], methods[:1], server, timeout_seconds=20.0)
    assert len(ratings) == 1


def test_an_unreachable_judge_is_told_before_any_work(evaluation):
    with serving(well_formed) as server:
        url = server.url
    with pytest.raises(JudgeError, match=r"no connection.*Start the server or correct --endpoint"):
        EndpointJudge(url, MODEL, tries_again=0)


def test_a_model_that_is_not_served_is_told_with_those_that_are():
    with serving(well_formed) as server, pytest.raises(JudgeError, match=f"serves: {MODEL}; got other"):
        EndpointJudge(server.url, "other")


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "limit-mm-per-prompt"), (401, "OPENAI_API_KEY"), (404, "server's log"), (500, "server's log")],
)
def test_refusals_say_what_to_do(evaluation, status, message):
    folder, samples, methods = evaluation
    with serving(lambda asked: Reply("not like this", status)) as server, pytest.raises(JudgeError, match=message):
        rated(folder, samples, methods, server, tries_again=0, workers=1)
    assert len(folder.ratings) == 0


def compared(folder, samples, server, **how):
    both = how.pop("asks_both_orders", False)
    compare_all(folder, asking(server, folder, **how), COMPARISON, [("light", "dark")], samples, asks_both_orders=both)
    return list(folder.comparisons)


def test_a_judge_of_pictures_gives_the_same_winner_in_both_orders(evaluation):
    folder, samples, _ = evaluation
    with serving(well_formed) as server:
        records = compared(folder, samples, server, asks_both_orders=True)
        assert len(server.asked) == 4
    assert wins_by_sample(records, "dark") == {sample.id: 1.0 for sample in samples}
    bias = position_bias(records)
    assert (bias.first_share, bias.answers, bias.both_orders, bias.agreement) == (0.5, 4, 2, 1.0)


def test_a_judge_of_positions_wins_half_and_is_found_out(evaluation):
    folder, samples, _ = evaluation
    with serving(lambda asked: Reply(comparison(1))) as server:
        records = compared(folder, samples, server, asks_both_orders=True)
    assert wins_by_sample(records, "dark") == {sample.id: 0.5 for sample in samples}
    bias = position_bias(records)
    assert (bias.first_share, bias.agreement) == (1.0, 0.0)


def test_an_unreadable_answer_in_one_order_takes_the_other_with_it(evaluation):
    folder, samples, _ = evaluation
    with serving(lambda asked: Reply(comparison(1))) as server:
        compared(folder, samples, server)
        server.behave = lambda asked: Reply("both are nice")
        records = compared(EvaluationFolder(folder.root), samples, server, asks_both_orders=True)
    assert [record["better"] for record in records] == [1, 1, None, None]
    assert wins_by_sample(records, "dark") == {}, "half an answer goes by position"


def test_the_order_is_random_over_samples_and_fixed_over_runs(tmp_path):
    folder, samples = write_evaluation(tmp_path, tasks=("one", "two"), pairs=8, size=(16, 16))
    add_method(tmp_path, folder, samples, "dark", grey=0)
    add_method(tmp_path, folder, samples, "light", grey=255)
    with serving(lambda asked: Reply(comparison(1))) as server:
        first = compared(folder, samples, server)
        assert len(server.asked) == len(samples)
        (folder.root / "comparisons.jsonl").unlink()
        again = compared(EvaluationFolder(folder.root), samples, server)
        assert len(server.asked) == len(samples)
    assert {r["sample"]: r["shown"] for r in first} == {r["sample"]: r["shown"] for r in again}
    assert 3 <= sum(record["shown"][0] == "dark" for record in first) <= 13
    assert {record["methods"] for record in first} == {couple_key("dark", "light")}


def test_invalid_comparisons_are_left_out_of_the_wins(evaluation):
    folder, samples, _ = evaluation
    with serving(lambda asked: Reply("both are nice")) as server:
        records = compared(folder, samples, server)
    assert wins_by_sample(records, "dark") == {}
    assert position_bias(records).first_share is None


def test_own_prompts_ask_for_a_description_before_the_numbers():
    for prompt in (RATING, COMPARISON):
        assert prompt.text.index("1. Describe what changed") < prompt.text.index('{"')
        assert prompt.source == "own words"


def test_another_wording_is_another_judge_and_must_place_all_pictures(evaluation, tmp_path):
    folder, samples, methods = evaluation
    (tmp_path / "prompts").mkdir()
    path = tmp_path / "prompts" / "rating.txt"
    path.write_text("<<a>> becomes <<a_prime>>; <<b>> became <<result>>. Rate it.", encoding="utf-8")
    theirs = read_prompt("rating", tmp_path / "prompts")
    assert theirs.source == "paper"
    with serving(well_formed) as server:
        rated(folder, samples, methods, server)
        rate_all(folder, asking(server, folder), theirs, methods, samples)
        assert len(server.asked) == 8
    assert len(folder.ratings) == 8
    path.write_text("<<a>> becomes <<a_prime>>; <<b>>. Rate it.", encoding="utf-8")
    with pytest.raises(EvaluationError, match="<<result>> once"):
        read_prompt("rating", tmp_path / "prompts")
