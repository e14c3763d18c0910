"""Router settings: what the tensors of a basis do not show about how a query becomes coefficients.

Where they come from (YAML file, header, sidecar, shapes) is `settings_sources`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import SettingsError

CLIP_ENCODER_ID = "openai/clip-vit-large-patch14"
SIGLIP_ENCODER_ID = "google/siglip2-base-patch16-224"
KONTEXT_ID = "black-forest-labs/FLUX.1-Kontext-dev"

#: Query modes and how many image embeddings each joins into one query embedding.
QUERY_MODES = {"cat-aa'b": 3, "aa'bb'": 1, "caa'bb'": 1, "caa'b": 1, "caa'": 1, "ca'-ca": 1, "ca'-ca+cb": 1}
_CHOICES = {"activation": ("softmax", "tanh"), "reduction": ("mean", "sum"), "query_mode": tuple(QUERY_MODES)}


@dataclass(frozen=True)
class RouterSettings:
    """How a query embedding becomes coefficients. Raises SettingsError for a value outside these sets.

    Attributes:
        activation: `softmax` over the N adapters, or elementwise `tanh`, of the scaled scores.
        heads: H; keys and queries are split into H contiguous slices of K/H.
        reduction: over heads, `mean`, or `sum` clamped to [0, 1] (softmax) or [-1, 1] (tanh).
        query_mode: which images are embedded and how they are joined; one of `QUERY_MODES`.
        encoder_id: Hugging Face id of the image encoder.
        encoder_revision: its commit, or "" when unknown.
        base_model: Hugging Face id of the base model the basis was trained on.
    """

    activation: str = "softmax"
    heads: int = 1
    reduction: str = "mean"
    query_mode: str = "cat-aa'b"
    encoder_id: str = CLIP_ENCODER_ID
    encoder_revision: str = ""
    base_model: str = KONTEXT_ID

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise SettingsError(f"{name} is {getattr(self, name)!r:.80}. Known are {', '.join(known)}.")
        if isinstance(self.heads, bool) or not isinstance(self.heads, int) or self.heads < 1:
            raise SettingsError(f"heads is {self.heads!r:.80}. It must be a whole number of at least 1.")
        for name in ("encoder_id", "encoder_revision", "base_model"):
            value = getattr(self, name)
            if not isinstance(value, str) or not (value or name == "encoder_revision"):
                raise SettingsError(f"{name} is {value!r:.80}. It must be a name such as {CLIP_ENCODER_ID}.")

    @property
    def embeddings_per_query(self) -> int:
        """How many image embeddings are joined into one query embedding (3 or 1)."""
        return QUERY_MODES[self.query_mode]
