"""Judges behind a real HTTP server that answers well, badly, late, within limits, or by position."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.evaluation.example_sets import add_method, mean_color, write_evaluation
from tests.training.evaluation.judge_server import MODEL, Reply, comparison, rating, serving, well_formed
from training.evaluation.folder import EvaluationError, EvaluationFolder
from training.evaluation.judge import Judge, JudgeError
from training.evaluation.questions import (
    MAX_FAILURES_IN_A_ROW,
    MAX_REPLY_CHARACTERS,
    NO_REPLY,
    TEMPERATURES,
    UNREADABLE,
    ReplyError,
    all_questions,
    ask_all,
    make_question,
    read_prompts,
    read_reply,
    shown_order,
)

JUDGING = read_prompts(MODEL)


@pytest.fixture
def evaluation(tmp_path):
    """(folder, two samples) with a darker and a lighter result: four ratings."""
    return write_evaluation(tmp_path, ("dark", 0), ("light", 255), tasks=("edit",), pairs=2)


def ask(evaluation, server, *, methods=("dark", "light"), judging=JUDGING, workers=1, **client):
    """Have these methods rated, in a folder opened anew; returns (counts, (method, sample) → record or None)."""
    folder, samples = EvaluationFolder(evaluation[0].root), evaluation[1]
    questions = {(m, s.id): make_question(folder, judging, s, [m]) for m in methods for s in samples}
    judge = Judge(server.url, MODEL, **{"timeout_s": 20.0, "retries": 0} | client)
    counts = ask_all(folder, judge, list(questions.values()), workers=workers)
    return dict(counts), {name: folder.answers.get(question.key) for name, question in questions.items()}


def test_images_arrive_in_the_prompts_order_and_answers_are_kept(evaluation):
    folder, samples = evaluation
    colors = {
        tuple(round(mean_color(path), 6) for path in (*folder.triplet(sample.id), folder.image(method, sample.id)))
        for sample in samples
        for method in ("dark", "light")
    }
    with serving(well_formed) as server:
        counts, records = ask(evaluation, server, workers=4)
        assert {tuple(round(float(image.mean()), 6) for image in asked.images) for asked in server.asked} == colors
        assert {(asked.body["temperature"], asked.body["model"]) for asked in server.asked} == {(0.0, MODEL)}
    assert counts == {"answered": 4}
    for sample in samples:
        dark, light = (records[method, sample.id]["answer"] for method in ("dark", "light"))
        assert dark["accuracy"] > light["accuracy"]
    assert next(iter(records.values()))["replies"][0]["text"].startswith("The colors turned.")


def test_nothing_is_asked_twice_and_a_changed_image_is_asked_anew(evaluation, tmp_path):
    folder, samples = evaluation
    with serving(well_formed) as server:
        _, before = ask(evaluation, server)
        assert ask(evaluation, server)[1] == before
        assert len(server.asked) == 4
        add_method(tmp_path, folder, samples, "twin", gray=0)
        ask(evaluation, server, methods=("dark", "twin"))
        assert len(server.asked) == 4, "equal images of two methods are one question"
        add_method(tmp_path, folder, samples[:1], "light", gray=60)
        _, after = ask(evaluation, server)
        assert len(server.asked) == 5
    changed = [key for key in before if before[key]["answer"] != after[key]["answer"]]
    assert changed == [("light", samples[0].id)]


def test_an_unreadable_reply_is_asked_again_at_a_higher_temperature(evaluation):
    def broken_first(asked):
        return Reply(rating(7, 7) if asked.body["temperature"] else '{"metrics": {"accuracy": 7, ')

    with serving(broken_first) as server:
        counts, records = ask(evaluation, server)
        assert [asked.body["temperature"] for asked in server.asked] == [*TEMPERATURES[:2]] * 4
        assert len({asked.body["seed"] for asked in server.asked}) == 2
    assert counts == {"answered": 4}
    assert {json.dumps(record["answer"]) for record in records.values()} == {'{"accuracy": 7, "consistency": 7}'}


#: A reply that must be counted as unreadable, never end the run; by name.
BAD_REPLIES = {
    "no answer": "I would rather not.",
    "nothing": "",
    "4,301 digits": '{"metrics": {"accuracy": ' + "1" * 4301 + ', "consistency": 5}}',
    "half a million digits": '{"better": ' + "1" * 500_000 + "}",
    "deep objects": '{"a":' * 3000,
    "deep lists": '{"a": ' + "[" * 15_000,
    "braces": "{" * 20_000,
    "endless": "I think " * 10_000 + rating(5, 5),
    "half a character": "\ud83d",
}


@pytest.mark.parametrize("name", BAD_REPLIES)
def test_bad_replies_are_counted_as_unreadable_and_asked_again_by_the_next_run(evaluation, name):
    with serving(lambda asked: Reply(BAD_REPLIES[name])) as server:
        began = time.monotonic()
        counts, records = ask(evaluation, server, methods=("dark",))
        assert time.monotonic() - began < 10
        assert counts == {UNREADABLE: 2}
        assert all(record["answer"] is None and record["details"] for record in records.values())
        assert all(len(reply["text"]) <= MAX_REPLY_CHARACTERS for r in records.values() for reply in r["replies"])
        server.behave = well_formed
        counts, _ = ask(evaluation, server, methods=("dark",))
    assert counts == {"answered": 2}


#: What a server sends instead of an answer to one question; by name.
NO_REPLIES = {
    "400": Reply("content policy", 400),
    "413": Reply("too large", 413),
    "422": Reply("no", 422),
    "error with status 200": Reply(body='{"error": {"message": "content policy", "code": 400}}'),
    "web page": Reply(body="<html>Bad gateway</html>"),
    "empty body": Reply(body=""),
    "list": Reply(body="[]"),
    "no choices": Reply(body='{"object": "chat.completion"}'),
    "empty choices": Reply(body='{"choices": []}'),
    "no message": Reply(body='{"choices": [{"message": null}]}'),
    "deep body": Reply(body="[" * 100_000),
    "many digits": Reply(body='{"choices": ' + "1" * 5000 + "}"),
}


@pytest.mark.parametrize("name", NO_REPLIES)
def test_one_question_without_a_reply_is_counted_and_the_rest_is_judged(evaluation, name):
    folder, samples = evaluation
    color = mean_color(folder.image("dark", samples[0].id))

    def behave(asked):
        return NO_REPLIES[name] if abs(asked.images[3].mean() - color) < 1e-6 else well_formed(asked)

    with serving(behave) as server:
        counts, records = ask(evaluation, server)
        assert counts == {NO_REPLY: 1, "answered": 3}
        failed = records["dark", samples[0].id]
        assert (failed["answer"], failed["failure"]) == (None, NO_REPLY)
        assert failed["details"]
        server.behave = well_formed
        assert ask(evaluation, server)[0] == {"answered": 4}


def test_failures_in_a_row_end_the_run_and_the_next_one_gets_further(tmp_path):
    folder, samples = write_evaluation(tmp_path, ("dark", 0), tasks=("edit",), pairs=8)
    with serving(lambda asked: Reply("only 4 images", 400)) as server:
        with pytest.raises(JudgeError, match=r"last 5 questions.*only 4 images.*limit-mm-per-prompt"):
            ask((folder, samples), server, methods=("dark",))
        first = len(EvaluationFolder(folder.root).answers)
        assert MAX_FAILURES_IN_A_ROW <= first < len(samples)
        with pytest.raises(JudgeError, match="only 4 images"):
            ask((folder, samples), server, methods=("dark",))
        assert len(EvaluationFolder(folder.root).answers) == len(samples), "those never asked come first"
        server.behave = well_formed
        assert ask((folder, samples), server, methods=("dark",))[0] == {"answered": len(samples)}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply("not like this", 401), "OPENAI_API_KEY"),
        (Reply("not like this", 404), "server's log"),
        (Reply("not like this", 500), "server's log"),
        (Reply("slow down", 429, {"Retry-After": "3600"}), r"status 429\) and asks to wait 3600 s"),
        (Reply(rating(5, 5), delay_seconds=1.5), r"no answer in 0.3 s.*--timeout-seconds"),
    ],
)
def test_a_server_that_fails_says_what_to_do_and_the_answers_stay(evaluation, reply, message):
    with serving(lambda asked: well_formed(asked) if asked.number < 2 else reply) as server:
        with pytest.raises(JudgeError, match=rf"{message}.*run the same command again to continue"):
            ask(evaluation, server, timeout_s=0.3 if reply.delay_seconds else 20.0)
        assert len(EvaluationFolder(evaluation[0].root).answers) == 2
        server.behave = well_formed
        before = len(server.asked)
        assert ask(evaluation, server)[0] == {"answered": 4}
        assert len(server.asked) == before + 2


def test_a_wrong_address_or_model_is_an_error_before_any_work():
    with serving(well_formed) as server:
        url = server.url
        with pytest.raises(JudgeError, match=f"does not serve the model 'other'. It serves {MODEL}"):
            Judge(url, "other")
        for models in ("<html>Welcome</html>", "[]", '{"error": "no such path"}', '{"data": null}', "[" * 100_000):
            server.models = models  # not every server lists its models
            Judge(url, MODEL)
    with pytest.raises(JudgeError, match=r"cannot be reached.*Start the server or correct --endpoint"):
        Judge(url, MODEL, retries=0)


def test_the_order_is_random_over_samples_and_the_same_in_every_run():
    orders = {sample: shown_order("dark", "light", sample, "drawn") for sample in map(str, range(200))}
    assert 70 < sum(order[0] == "dark" for order in orders.values()) < 130
    for sample, order in orders.items():
        assert shown_order("light", "dark", sample, "drawn") == order
        assert shown_order("dark", "light", sample, "reversed") == order[::-1]


def test_both_orders_show_the_same_images_the_other_way_round(evaluation):
    folder, samples = evaluation

    def questions(both):
        return all_questions(folder, JUDGING, ["dark", "light"], samples[:1], reference="dark", asks_both_orders=both)

    assert [question.kind for question in questions(False)] == ["rating", "rating", "comparison"]
    drawn, other = questions(True)[2:]
    assert drawn == questions(False)[2]
    assert [drawn.images[f"result_{n}"] for n in (1, 2)] == [other.images[f"result_{n}"] for n in (2, 1)]
    with serving(well_formed) as server:
        ask_all(folder, Judge(server.url, MODEL), [drawn, other], workers=2)
    answers = [folder.answers.get(question.key)["answer"]["better"] for question in (drawn, other)]
    assert sorted(answers) == [1, 2], "this judge goes by the images"


def test_another_wording_is_another_question_and_must_place_all_images(evaluation, tmp_path):
    for kind in ("rating", "comparison"):
        text = getattr(JUDGING, kind)
        assert text.index("1. Describe what changed") < text.index('{"'), "a description before the numbers"
        (tmp_path / f"{kind}.txt").write_text(f"In other words: {text}", encoding="utf-8")
    theirs = read_prompts(MODEL, tmp_path)
    assert (JUDGING.is_papers, theirs.is_papers) == (False, True)
    with serving(well_formed) as server:
        ask(evaluation, server)
        ask(evaluation, server, judging=theirs)
        assert len(server.asked) == 8
    (tmp_path / "rating.txt").write_text("<<a>> becomes <<a_prime>>; <<b>>. Rate it.", encoding="utf-8")
    with pytest.raises(EvaluationError, match="<<result>> once"):
        read_prompts(MODEL, tmp_path)
    (tmp_path / "rating.txt").unlink()
    with pytest.raises(EvaluationError, match=r"rating\.txt cannot be read"):
        read_prompts(MODEL, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"metrics": {"accuracy": 7, "consistency": 9}, "explanation": "good"}',
        'First I describe.\n```json\n{"metrics": {"accuracy": 7, "consistency": 9}}\n```\nThat is all.',
        'Draft: {"metrics": {"accuracy": 1, "consistency": 1}}. No: {"metrics": {"accuracy": 7, "consistency": 9}}',
        'A set {a, b} and {"x": 1}, then {"accuracy": 7.0, "consistency": 9}',
        '{"metrics": {"accuracy": 7, "consistency": 9}, "explanation": "braces } { in a string"}',
        '{"n": ' + "1" * 4301 + '} {"accuracy": 7, "consistency": 9}',
    ],
)
def test_the_last_json_object_is_the_answer(text):
    assert read_reply("rating", text) == {"accuracy": 7, "consistency": 9}
    assert read_reply("comparison", f"words {comparison(2)}") == {"better": 2}


@pytest.mark.parametrize("value", ["11", "0", "7.5", "true", '"7"', "NaN", "Infinity", "1e999", "null", "[7]", "{}"])
def test_scores_are_whole_numbers_in_range(value):
    for text in (f'{{"accuracy": {value}, "consistency": 3}}', f'{{"metrics": {{"accuracy": {value}}}}}'):
        with pytest.raises(ReplyError, match="accuracy is not a whole number from 1 to 10"):
            read_reply("rating", text)
    with pytest.raises(ReplyError, match=r"better is not .* from 1 to 2"):
        read_reply("comparison", f'{{"better": {value}}}')
    for text in ("", "{}", '{"metrics": {"consistency": 3}}', '{"metrics": 5}'):
        with pytest.raises(ReplyError):
            read_reply("rating", text)


@given(st.text(), st.integers(1, 10), st.integers(1, 10), st.text(alphabet=st.characters(exclude_characters="{}")))
def test_whatever_stands_before_and_after_the_answer_is_read(before, accuracy, consistency, after):
    # A text that opens an object right before the answer would take it in; a new line in a string cannot.
    text = before + '"\n' + rating(accuracy, consistency) + after
    assert read_reply("rating", text) == {"accuracy": accuracy, "consistency": consistency}
