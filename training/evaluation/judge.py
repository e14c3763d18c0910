"""The client of a judge: any server with OpenAI's chat API, such as vLLM, Ollama, llama.cpp, LM Studio or a paid one.

The `openai` package waits as `Retry-After` says when the server limits the rate, and retries lost connections,
timeouts and server errors. What remains is either about one question (`QuestionError`) or about the server
(`JudgeError`, which says what to do).
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from lorweb_core.errors import LoRWeBError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionContentPartParam

_KEY_VARIABLE = "OPENAI_API_KEY"
_CONTINUE = "The answers so far are kept; run the same command again to continue."
_MAX_REPLY_TOKENS = 2048
#: Statuses that are about the question: content policy, too long, too large.
_REFUSING_STATUSES = (400, 413, 422)


class JudgeError(LoRWeBError):
    """The judge cannot be reached, does not serve the model, or answers nothing usable."""


class QuestionError(Exception):
    """The judge refused this question, or sent something that is not an answer; others may be answered."""


class Judge:
    """A vision-language model behind a server.

    Args:
        base_url: such as http://localhost:8000/v1; the key is read from OPENAI_API_KEY (local servers need none).
        model: its name on the server.
        timeout_s: for one reply.
        retries: after rate limits, lost connections, timeouts and server errors, with growing waits.
    Raises JudgeError if the package openai is missing, or if the server cannot be reached or does not have the model.
    """

    def __init__(self, base_url: str, model: str, *, timeout_s: float = 300.0, retries: int = 5) -> None:
        try:
            import openai
        except ImportError as error:
            raise JudgeError('The judge needs the package openai: pip install "lorweb[eval]".') from error
        self.model, self._url, self._timeout_s, self._openai = model, base_url, timeout_s, openai
        key = os.environ.get(_KEY_VARIABLE) or "none"
        self._client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout_s, max_retries=retries)
        try:  # a wrong address or name should fail before any work
            names = [served.id for served in self._client.with_options(max_retries=1).models.list()]
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError) as error:
            raise self._explain(error) from error
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, RecursionError):
            names = []  # not every server lists its models
        if names and model not in names:
            shown = ", ".join(map(str, names[:5]))
            raise JudgeError(
                f"{base_url} does not serve the model {model!r}. It serves {shown}: name one with --model."
            )

    def reply(self, parts: Sequence[str | Image.Image], *, temperature: float, seed: int) -> str:
        """Return the model's reply to text and images in order; "" if it is empty. Called from several threads.

        Raises QuestionError if there is no reply to this question, JudgeError if the server cannot be used.
        """
        content: list[ChatCompletionContentPartParam] = []
        for part in parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
                continue
            png = io.BytesIO()
            part.save(png, format="PNG")
            url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode('ascii')}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        try:
            completion = self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": content}], temperature=temperature, seed=seed,
                max_tokens=_MAX_REPLY_TOKENS,
            )  # fmt: skip
        except self._openai.APIStatusError as error:
            if error.status_code in _REFUSING_STATUSES:
                raise QuestionError(f"refused: {_one_line(error)}") from error
            raise self._explain(error) from error
        except self._openai.OpenAIError as error:
            raise self._explain(error) from error
        except (ValueError, RecursionError) as error:  # a body that is not JSON
            raise QuestionError(f"no chat completion: {_one_line(error)}") from error
        try:  # openai builds its types without checks: any field may be missing or something else
            message = completion.choices[0].message
            text = message.content or message.refusal or ""
        except (AttributeError, TypeError, IndexError, KeyError) as error:
            raise QuestionError(f"no chat completion: {_one_line(completion)}") from error
        return text if isinstance(text, str) else ""

    def _explain(self, error: Exception) -> JudgeError:
        openai, who = self._openai, f"The judge {self.model} at {self._url}"
        if isinstance(error, openai.APITimeoutError):
            return JudgeError(f"{who} gave no answer in {self._timeout_s:g} s. Raise --timeout-seconds. {_CONTINUE}")
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            return JudgeError(
                f"{who} cannot be reached ({type(cause).__name__}: {cause}). Start the server or correct --endpoint. "
                f"{_CONTINUE}"
            )
        if isinstance(error, openai.RateLimitError):
            wait = error.response.headers.get("retry-after")
            when = f" and asks to wait {wait} s" if wait else ""
            return JudgeError(f"{who} limits the rate (status 429){when}. Wait, or lower --workers. {_CONTINUE}")
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return JudgeError(f"{who} wants a valid key in {_KEY_VARIABLE}: {_one_line(error)}. {_CONTINUE}")
        return JudgeError(f"{who} failed: {_one_line(error)}. See the server's log. {_CONTINUE}")


def _one_line(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
