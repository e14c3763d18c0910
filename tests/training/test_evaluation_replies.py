"""Replies of judges: what counts as an answer and what does not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.replies import Rating, ReplyError, last_json_object, read_comparison, read_rating


@pytest.mark.parametrize(
    "text",
    [
        '{"metrics": {"accuracy": 7, "consistency": 9}, "explanation": "good"}',
        'First I describe.\n```json\n{"metrics": {"accuracy": 7, "consistency": 9}}\n```\nThat is all.',
        'Draft: {"metrics": {"accuracy": 1, "consistency": 1}}. No: {"metrics": {"accuracy": 7, "consistency": 9}}',
        'A set {a, b} and {"x": 1}, then {"accuracy": 7.0, "consistency": 9}',
        '{"metrics": {"accuracy": 7, "consistency": 9}, "explanation": "braces } { in a string"}',
    ],
)
def test_the_last_balanced_object_is_the_answer(text):
    assert read_rating(text) == Rating(7, 9)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty reply"),
        ("I cannot judge this.", "no JSON object"),
        ('{"metrics": {"accuracy": 7, ', "no JSON object"),
        ('{"metrics": {"accuracy": 11, "consistency": 3}}', "outside 1–10"),
        ('{"metrics": {"accuracy": 0, "consistency": 3}}', "outside 1–10"),
        ('{"metrics": {"accuracy": 7.5, "consistency": 3}}', "no whole number"),
        ('{"metrics": {"accuracy": true, "consistency": 3}}', "no whole number"),
        ('{"metrics": {"accuracy": "7", "consistency": 3}}', "no whole number"),
        ('{"metrics": {"accuracy": NaN, "consistency": 3}}', "no whole number"),
        ('{"metrics": {"accuracy": Infinity, "consistency": 3}}', "no whole number"),
        ('{"metrics": {"consistency": 3}}', "accuracy is missing"),
        ('{"metrics": 5}', "metrics is no object"),
    ],
)
def test_anything_else_is_a_problem_with_a_name(text, problem):
    with pytest.raises(ReplyError, match=problem):
        read_rating(text)


def test_a_comparison_names_one_of_two():
    assert read_comparison('words {"better": 2, "explanation": "…"}') == 2
    with pytest.raises(ReplyError, match="outside 1–2"):
        read_comparison('{"better": 3}')
    with pytest.raises(ReplyError, match="no whole number"):
        read_comparison('{"better": null}')


@given(st.text(), st.integers(1, 10), st.integers(1, 10), st.text(alphabet=st.characters(exclude_characters="{}")))
def test_whatever_stands_before_and_after_the_answer_is_read(before, accuracy, consistency, after):
    answer = json.dumps({"metrics": {"accuracy": accuracy, "consistency": consistency}})
    # A text that opens an object of its own right before the answer would take it in; a new line in a string cannot.
    assert read_rating(before + '"\n' + answer + after) == Rating(accuracy, consistency)


@given(st.text())
def test_no_text_makes_the_search_fail(text):
    found = last_json_object(text)
    assert found is None or isinstance(found, dict)
