"""The body of a chat completion → the model's words; or what the body is instead.

Servers and proxies send status 200 with an error object or a web page, too; neither is an answer of the model, so
neither may be kept as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorweb_core.errors import FileError
from lorweb_core.files import parse_json

#: HTTP statuses that speak of the question, not of the judge: content policy, too long, too large.
REFUSING_STATUSES = (400, 413, 422)
_SHOWN_CHARACTERS = 200


class BodyError(ValueError):
    """A body holds no words of the model; the text says what it holds.

    Attributes:
        is_lasting: asking again is useless.
        is_of_question: it may speak of this question alone: an error object that names no other cause.
    """

    def __init__(self, found: str, *, is_lasting: bool = False, is_of_question: bool = False) -> None:
        super().__init__(found)
        self.is_lasting, self.is_of_question = is_lasting, is_of_question


def read_completion(body: str) -> str:
    """Return the words of the first choice; "" when the model said nothing.

    Raises: BodyError: when the body is no completion.
    """
    completion = _read_json(body)
    if not isinstance(completion, dict):
        raise BodyError(f"no JSON object: {_shorten(body)}")
    _require_no_error(completion)
    choices = completion.get("choices")
    if not isinstance(choices, list):
        raise BodyError(f"an object without choices: {_shorten(body)}")
    if not choices:
        return ""
    choice = choices[0] if isinstance(choices[0], Mapping) else {}
    _require_no_error(choice)
    message = choice.get("message")
    words = [message.get(name) for name in ("content", "refusal")] if isinstance(message, Mapping) else []
    return next((text for text in words if isinstance(text, str) and text), "")


def read_model_names(body: str) -> list[str]:
    """Return the names in a list of models; [] where the server has no such list.

    Raises: BodyError: when the body is no JSON, a web page for example.
    """
    found = _read_json(body)
    models = found.get("data") if isinstance(found, dict) else None
    names = [model.get("id") for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    return [name for name in names if isinstance(name, str)]


def _read_json(body: str) -> Any:  # noqa: ANN401 (whatever it holds)
    try:
        return parse_json(body, "the reply")
    except FileError as error:
        raise BodyError(f"no JSON: {_shorten(body)}") from error


def _require_no_error(found: Mapping[str, Any]) -> None:
    error = found.get("error")
    if not error:
        return
    details = error if isinstance(error, Mapping) else {"message": error}
    code = str(details.get("code") or "")
    is_refusal = code in map(str, REFUSING_STATUSES)
    raise BodyError(
        f"an error with status 200: {_shorten(str(details.get('message') or error))}",
        is_lasting=is_refusal,
        is_of_question=is_refusal or not code.isdecimal(),
    )


def _shorten(text: str) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= _SHOWN_CHARACTERS else f"{folded[:_SHOWN_CHARACTERS]} …"
