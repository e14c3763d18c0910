"""A judge behind an OpenAI-compatible chat endpoint: vLLM, Ollama, llama.cpp, LM Studio, or a paid service.

The `openai` package speaks the protocol: it waits as `Retry-After` says when rate-limited, and tries again after lost
connections, timeouts and server errors. A body that is no completion (an error object or a web page with status 200)
is asked for again here. What is left becomes a JudgeError that says what to do.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from .chat_bodies import REFUSING_STATUSES, BodyError, read_completion, read_model_names
from .errors import JudgeError, RefusedQuestionError
from .judge import Part

_KEY_VARIABLE = "OPENAI_API_KEY"
_GO_ON = "Answers so far are kept; run the same command again to go on."
_LIMITS_HINT = (
    "The model has to take five pictures in one message (vLLM: --limit-mm-per-prompt '{\"image\": 5}'), and its "
    "context has to hold them."
)
_MAX_REPLY_TOKENS = 2048
#: Before a body that is no completion is asked for again: doubled each time, as `openai` does for server errors.
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 8.0


class EndpointJudge:
    """A model served at an address.

    Args:
        base_url: for example http://localhost:8000/v1; the key is read from OPENAI_API_KEY (local servers need none).
        model: as the server names it.
        timeout_seconds: for one reply.
        tries_again: after rate limits, lost connections, timeouts and server errors, with growing waits.
    Raises: JudgeError: when the package openai is missing, the server cannot be reached, or does not have the model.
    """

    def __init__(self, base_url: str, model: str, *, timeout_seconds: float = 300.0, tries_again: int = 5) -> None:
        openai = _import_openai()
        self.model = model
        self._url, self._timeout_seconds, self._errors = base_url, timeout_seconds, openai
        self._tries_again = tries_again
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=os.environ.get(_KEY_VARIABLE) or "none",
            timeout=timeout_seconds,
            max_retries=tries_again,
        )
        self._require_model()

    def reply(self, parts: Sequence[Part], *, temperature: float, seed: int) -> str:
        """Return the model's words; "" when it said nothing.

        Raises: JudgeError: when the server cannot be reached or limits us for too long; RefusedQuestionError when it
            refuses this question.
        """
        content = [_as_content(part) for part in parts]
        tried = 0
        while True:
            try:
                return read_completion(self._complete(content, temperature, seed))
            except BodyError as error:
                if tried == self._tries_again or error.is_lasting:
                    raise self._explain_body(error) from error
            time.sleep(min(_FIRST_WAIT_SECONDS * 2**tried, _LONGEST_WAIT_SECONDS))
            tried += 1

    def _complete(self, content: list[Any], temperature: float, seed: int) -> str:
        """Return the body of a completion."""
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                temperature=temperature,
                seed=seed,
                max_tokens=_MAX_REPLY_TOKENS,
            )
        except self._errors.OpenAIError as error:
            raise self._explain(error) from error
        return str(response.text)

    def _require_model(self) -> None:
        """Ask for the list of models first: a wrong address or name should not cost a run's start."""
        errors = self._errors
        try:
            body = self._client.with_options(max_retries=1).models.with_raw_response.list().text
        except errors.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._explain(error) from error
            return  # not every server has such a list
        except errors.OpenAIError as error:
            raise self._explain(error) from error
        try:
            names = read_model_names(body)
        except BodyError as error:
            raise self._explain_body(error) from error
        if names and self.model not in names:
            raise JudgeError(
                expected=f"a model that {self._url} serves: {', '.join(names[:5])}",
                got=self.model,
                remedy="Name one of these with --model, or start the server with the model.",
            )

    def _explain(self, error: Exception) -> JudgeError:
        errors = self._errors
        expected, got = f"an answer from {self.model} at {self._url}", " ".join(str(error).split())[:300]
        if isinstance(error, errors.APITimeoutError):
            got = f"none within {self._timeout_seconds:g} s"
            return JudgeError(expected=expected, got=got, remedy=f"Raise --timeout-seconds. {_GO_ON}")
        if isinstance(error, errors.APIConnectionError):
            cause = error.__cause__ or error
            got = f"no connection ({type(cause).__name__}: {cause})"
            return JudgeError(expected=expected, got=got, remedy=f"Start the server or correct --endpoint. {_GO_ON}")
        if isinstance(error, errors.RateLimitError):
            wait = error.response.headers.get("retry-after")
            got = "429 Too Many Requests" + (f", to be asked again after {wait} s" if wait else "")
            return JudgeError(expected=expected, got=got, remedy=f"Wait, or lower --workers. {_GO_ON}")
        if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
            return JudgeError(expected=expected, got=got, remedy=f"Put a valid key into {_KEY_VARIABLE}. {_GO_ON}")
        if isinstance(error, errors.APIStatusError) and error.status_code in REFUSING_STATUSES:
            return RefusedQuestionError(expected=expected, got=got, remedy=f"{_LIMITS_HINT} {_GO_ON}")
        return JudgeError(expected=expected, got=got, remedy=f"Look into the server's log. {_GO_ON}")

    def _explain_body(self, error: BodyError) -> JudgeError:
        expected = f"an answer from {self.model} at {self._url}"
        if error.is_of_question:
            return RefusedQuestionError(expected=expected, got=str(error), remedy=f"{_LIMITS_HINT} {_GO_ON}")
        hint = "Look into the server's log, and correct --endpoint if it is no OpenAI-compatible address (…/v1)."
        return JudgeError(expected=expected, got=str(error), remedy=f"{hint} {_GO_ON}")


def _as_content(part: Part) -> Any:  # noqa: ANN401 (one of the protocol's content dicts)
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_as_base64(part)}"}}


def _as_base64(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _import_openai() -> Any:  # noqa: ANN401 (a module)
    try:
        import openai
    except ImportError as error:
        raise JudgeError(
            expected="the package openai, which speaks to the judge",
            got="no such package",
            remedy='Install it: pip install "lorweb[eval]", or pip install openai.',
        ) from error
    return openai
