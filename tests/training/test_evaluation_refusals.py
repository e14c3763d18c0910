"""Judges that refuse single questions, or send what is no answer at all, over a real HTTP server."""

import json

import pytest

from tests.training.evaluation_sets import add_method, mean_colour, write_evaluation
from tests.training.judge_server import MODEL, Reply, rating, serving, well_formed
from training.evaluate import main
from training.evaluation.endpoint import EndpointJudge
from training.evaluation.errors import JudgeError, RefusedQuestionError
from training.evaluation.folder import EvaluationFolder
from training.evaluation.judge import Asking, open_answers
from training.evaluation.prompts import read_prompt
from training.evaluation.rating import rate_all

RATING = read_prompt("rating")
#: (dark sample, light sample) × (dark, light method)
QUESTIONS = 4


@pytest.fixture
def evaluation(tmp_path):
    folder, samples = write_evaluation(tmp_path, tasks=("edit",), pairs=2)
    add_method(tmp_path, folder, samples, "dark", grey=0)
    add_method(tmp_path, folder, samples, "light", grey=255)
    return folder, samples, ["dark", "light"]


def rated(evaluation, server, *, tries_again=0, retries_invalid=False):
    """Rate everything, one question after the other, in a folder opened anew; returns the ratings."""
    folder = EvaluationFolder(evaluation[0].root)
    judge = EndpointJudge(server.url, MODEL, tries_again=tries_again)
    answers = open_answers(folder.root / "answers.jsonl")
    rate_all(folder, Asking(judge, answers, 1, retries_invalid), RATING, evaluation[2], evaluation[1])
    return {(record["method"], record["sample"]): record for record in folder.ratings}


def refusing(evaluation, method, number, reply):
    """A judge that refuses the question about one picture, whenever it is asked, and answers all others."""
    folder, samples, _ = evaluation
    colour = mean_colour(folder.picture(method, samples[number].id))

    def behave(asked):
        is_it = not asked.is_comparison and abs(asked.pictures[3].mean() - colour) < 1e-6
        return reply if is_it else well_formed(asked)

    return behave


REFUSALS = {
    "400": Reply("content policy", 400),
    "413": Reply("too large", 413),
    "422": Reply("no", 422),
    "200 with code": Reply(body='{"error": {"message": "content policy", "code": 400}}'),
    "200 without code": Reply(body='{"error": {"message": "content policy"}}'),
    "in a choice": Reply(body='{"choices": [{"error": {"message": "content policy", "code": 422}}]}'),
}


@pytest.mark.parametrize("number", [0, 1], ids=["first question", "later question"])
@pytest.mark.parametrize("kind", REFUSALS)
def test_one_refused_question_is_counted_and_the_rest_is_judged(evaluation, kind, number):
    with serving(refusing(evaluation, "dark", number, REFUSALS[kind])) as server:
        ratings = rated(evaluation, server)
        refused = ratings.pop(("dark", evaluation[1][number].id))
        assert refused["rating"] is None
        assert refused["refused"], "the server's words are kept"
        assert all(record["rating"] is not None and record["refused"] is None for record in ratings.values())
        asked = len(server.asked)
        rated(evaluation, server)
        assert len(server.asked) == asked, "it is not asked again"
        server.behave = well_formed
        ratings = rated(evaluation, server, retries_invalid=True)
    assert all(record["rating"] is not None for record in ratings.values())


def test_a_judge_that_refuses_everything_is_stopped_and_nothing_is_kept(evaluation):
    with serving(lambda asked: Reply("only 4 images", 400)) as server:
        with pytest.raises(RefusedQuestionError, match=r"3 refusal\(s\) in a row.*only 4 images.*limit-mm-per-prompt"):
            rated(evaluation, server)
        assert len(server.asked) <= QUESTIONS
        server.behave = well_formed
        assert all(record["rating"] is not None for record in rated(evaluation, server).values())


def test_a_row_of_refusals_from_a_judge_that_answers_others_does_not_end_every_later_run(evaluation):
    with serving(lambda asked: well_formed(asked) if asked.number == 0 else Reply("policy", 400)) as server:
        with pytest.raises(RefusedQuestionError, match="left out from now on; --retry-invalid"):
            rated(evaluation, server)
        asked = len(server.asked)
        ratings = rated(evaluation, server)
        assert len(server.asked) == asked
    assert sorted(record["rating"] is None for record in ratings.values()) == [False, True, True, True]


def test_refusals_are_told_by_the_commands(evaluation, capsys):
    folder = evaluation[0]
    with serving(refusing(evaluation, "dark", 0, REFUSALS["400"])) as server:
        words = ["judge", str(folder.root), "--endpoint", server.url, "--model", MODEL, "--clip-encoder", "none"]
        assert main([*words, "--methods", "dark", "light"]) == 0
    assert "1 refused\n  first refusal: Error code: 400" in capsys.readouterr().out
    assert main(["aggregate", str(folder.root), "--methods", "dark", "light", "--no-plot"]) == 0
    assert "accuracy left out, the judge refused the question: dark 1." in capsys.readouterr().out


BODIES = {
    "page": "<html>Bad gateway</html>",
    "list": "[]",
    "error with a code": '{"error": {"message": "overloaded", "code": 503}}',
    "nothing": "",
    "no choices": '{"object": "chat.completion"}',
}


@pytest.mark.parametrize("kind", BODIES)
def test_what_is_no_answer_is_asked_for_again_and_never_kept(evaluation, kind):
    with serving(lambda asked: Reply(body=BODIES[kind])) as server:
        with pytest.raises(JudgeError, match="server's log"):
            rated(evaluation, server, tries_again=1)
        before = len(server.asked)
        assert before in (2, 2 * 2), "the next question may have been under way"
        assert len(open_answers(evaluation[0].root / "answers.jsonl")) == 0
        server.behave = lambda asked: Reply(body=BODIES[kind]) if asked.number == before else well_formed(asked)
        ratings = rated(evaluation, server, tries_again=1)
    assert all(record["rating"] is not None for record in ratings.values())


@pytest.mark.parametrize(
    "message", [None, {}, {"content": None}, {"content": ["?"]}, {"content": None, "refusal": "no"}]
)
def test_a_message_without_words_is_unreadable(evaluation, message):
    with serving(lambda asked: Reply(body=json.dumps({"choices": [{"message": message}]}))) as server:
        ratings = rated(evaluation, server)
    assert {record["rating"] for record in ratings.values()} == {None}


def test_half_a_character_in_a_reply_is_kept_as_it_is(evaluation):
    words = "\ud83d " + rating(5, 6)
    with serving(lambda asked: Reply(words)) as server:
        ratings = rated(evaluation, server)
    assert {json.dumps(record["rating"]) for record in ratings.values()} == {'{"accuracy": 5, "consistency": 6}'}
    (answer, *_) = open_answers(evaluation[0].root / "answers.jsonl")
    assert answer["attempts"][0]["raw"] == words


def test_an_address_that_shows_a_web_page_is_told_before_any_work():
    with serving(well_formed) as server:
        server.models = "<html>Welcome</html>"
        with pytest.raises(JudgeError, match=r"no JSON: <html>Welcome.*correct --endpoint"):
            EndpointJudge(server.url, MODEL)
        for models in ("[]", '{"error": "no such path"}', '{"data": null}'):
            server.models = models
            EndpointJudge(server.url, MODEL)


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf", "soon"])
def test_a_time_to_wait_is_a_number_above_zero(tmp_path, seconds, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["judge", str(tmp_path), "--timeout-seconds", seconds])
    assert "--timeout-seconds: expected a" in capsys.readouterr().err
