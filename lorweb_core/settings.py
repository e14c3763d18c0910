"""Router settings: what the tensors cannot tell about how a query becomes coefficients.

Where they come from (argument, metadata, sidecar, shapes) is `checkpoint`'s subject; here are the values, their
names in the reference's `config.yaml`, and their checks. Source: the format's description in the README.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import SettingsError

CLIP_ENCODER_ID = "openai/clip-vit-large-patch14"
SIGLIP_ENCODER_ID = "google/siglip2-base-patch16-224"
KONTEXT_ID = "black-forest-labs/FLUX.1-Kontext-dev"

ACTIVATIONS = ("softmax", "tanh")
REDUCTIONS = ("mean", "sum")
#: Query modes and how many image embeddings each joins into one query embedding.
QUERY_MODES = {"cat-aa'b": 3, "aa'bb'": 1, "caa'bb'": 1, "caa'b": 1, "caa'": 1, "ca'-ca": 1, "ca'-ca+cb": 1}


@dataclass(frozen=True)
class RouterSettings:
    """How a query embedding becomes coefficients.

    Attributes:
        activation: `softmax` over the N adapters, or elementwise `tanh`, of the scaled scores.
        heads: H; keys and queries are split into H contiguous slices of K/H.
        reduction: over heads, `mean`, or `sum` clamped to [0, 1] (softmax) or [-1, 1] (tanh).
        query_mode: which pictures are embedded and how they are joined; one of `QUERY_MODES`.
        encoder_id: Hugging Face id of the image encoder.
        encoder_revision: its commit, or "" when unknown.
        base_model: Hugging Face id of the base model the basis was trained on.
    Raises: SettingsError: for a value outside these sets.
    """

    activation: str = "softmax"
    heads: int = 1
    reduction: str = "mean"
    query_mode: str = "cat-aa'b"
    encoder_id: str = CLIP_ENCODER_ID
    encoder_revision: str = ""
    base_model: str = KONTEXT_ID

    def __post_init__(self) -> None:
        _require_choice("activation", self.activation, ACTIVATIONS)
        _require_choice("reduction", self.reduction, REDUCTIONS)
        _require_choice("query_mode", self.query_mode, tuple(QUERY_MODES))
        if isinstance(self.heads, bool) or not isinstance(self.heads, int) or self.heads < 1:
            raise SettingsError(
                expected="heads to be a whole number of at least 1",
                got=repr(self.heads),
                remedy="Correct it in the settings; the published basis uses 1.",
            )
        for name in ("encoder_id", "encoder_revision", "base_model"):
            value = getattr(self, name)
            if not isinstance(value, str) or not (value or name == "encoder_revision"):
                raise SettingsError(
                    expected=f"{name} to be a name such as {CLIP_ENCODER_ID}",
                    got=repr(value),
                    remedy="Correct it in the settings.",
                )

    @property
    def embeddings_per_query(self) -> int:
        """How many image embeddings are joined into one query embedding (3 or 1)."""
        return QUERY_MODES[self.query_mode]


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(
            expected=f"{name} to be one of {', '.join(choices)}",
            got=repr(value),
            remedy="Correct it in the settings, or use a basis that was trained with a supported value.",
        )
