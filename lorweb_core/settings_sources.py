"""Where the settings of a basis file come from: the first source that states a setting gives it.

1. an explicit argument (settings, or a YAML file); 2. our header key `lorweb`; 3. a sidecar: `<name>.yaml` beside the
file, or `config.yaml` when the file is the only .safetensors of its folder; 4. defaults from shapes.

Sizes come from the tensors alone: the published config.yaml may say `linear: 1` beside tensors of rank 4, since the
reference takes them from its command line. What a source says otherwise, and what was assumed, is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import FileError, SettingsError
from .header_settings import read_header_settings
from .layer_tensors import SUFFIX_PROJECTION, LayerTensors, query_widths
from .settings import RouterSettings
from .sidecar import read_settings_file

#: Settings without which coefficients would be guesses.
NEEDED = ("activation", "heads", "reduction", "query_mode", "encoder_id")
#: Widths of common image embeddings that are divisible by 3, so no three joined ones.
_SINGLE_EMBEDDING_WIDTHS = (768, 1152)
_SIZE_LETTERS = {"basis_size": "N", "rank": "r", "key_dim": "K"}


@dataclass(frozen=True)
class ResolvedSettings:
    """Settings, the sources they came from (for people), and lines that say what was assumed or disagreed."""

    settings: RouterSettings
    source: str
    report: tuple[str, ...]


def resolve_settings(
    path: Path,
    metadata: Mapping[str, str],
    layers: Mapping[str, LayerTensors],
    explicit: RouterSettings | Path | None,
) -> ResolvedSettings:
    """Return the settings of a basis file.

    Args:
        path: the basis file; sidecars are looked for beside it.
        metadata: its header strings.
        layers: its layers' tensors.
        explicit: settings that replace all others, or a YAML file whose entries go before them.
    Raises: SettingsError, CheckpointError, FileError: for a source that is unusable or asks for an internal query.
    """
    if isinstance(explicit, RouterSettings):
        require_fitting(explicit, layers)
        return ResolvedSettings(explicit, "argument", ())
    report = []
    sources = [] if explicit is None else [read_settings_file(explicit)]
    if explicit is not None and not sources[0].router:
        raise SettingsError(f"{explicit.name} states no router settings. Name the config.yaml of the basis.")
    header = read_header_settings(metadata, path.name)
    sources += [header] if header else []
    sidecar = find_sidecar(path)
    if sidecar:
        try:
            sources.append(read_settings_file(sidecar))
        except (FileError, SettingsError) as error:
            if not all(any(name in stated.router for stated in sources) for name in NEEDED):
                raise
            report.append(f"{path.name}: {sidecar.name} was not needed and is unusable: {error}")

    facts = _tensor_facts(layers)
    values: dict[str, Any] = {}
    used: list[str] = []
    for stated in sources:
        wrong = {name: value for name, value in stated.facts.items() if value not in facts[name]}
        if wrong.get("external_query") is False and _may_be_internal(layers):
            raise SettingsError(
                f"{stated.source} says external_query: false: the query is pooled from each layer's own input, and "
                "the coefficients change with every step. Use a basis whose query comes from an image encoder."
            )
        if wrong:
            found = {name: "/".join(map(str, facts[name])) for name in wrong}
            report.append(f"{path.name}: the tensors have {_list(found)}; {stated.source} says {_list(wrong)}.")
        overruled = {name: value for name, value in stated.router.items() if values.get(name, value) != value}
        if overruled and explicit is None:
            report.append(f"{path.name}: {stated.source} says {_list(overruled)}, but {used[0]} counts.")
        added = {name: value for name, value in stated.router.items() if name not in values}
        values |= added
        used += [stated.source] if added else []

    width = max(query_widths(layers))
    is_joined = width % 3 == 0 and width not in _SINGLE_EMBEDDING_WIDTHS
    defaults = asdict(RouterSettings(query_mode="cat-aa'b" if is_joined else "aa'bb'"))
    assumed = {name: defaults[name] for name in NEEDED if name not in values}
    settings = RouterSettings(**values, **assumed)
    require_fitting(settings, layers)
    if assumed:
        read = " and ".join(stated.source for stated in sources) or "header or sidecar"
        report.append(
            f"{path.name}: {len(assumed)} settings not stated by {read}; assumed {_list(assumed)}. "
            f"To be sure, put its config.yaml beside it as {path.stem}.yaml."
        )
    if assumed.get("query_mode") == "aa'bb'":
        report.append(
            f"{path.name}: query width {width} is one image embedding; which single-picture query mode was trained "
            "cannot be read from the file."
        )
    if assumed and not sidecar and path.with_name("config.yaml").is_file():
        count = len(_bases_beside(path))
        report.append(f"{path.name}: config.yaml was not read, since the folder holds {count} .safetensors files.")
    return ResolvedSettings(settings, " and ".join([*used, "defaults"] if assumed else used), tuple(report))


def sizes_of(layers: Mapping[str, LayerTensors]) -> dict[str, list[int]]:
    """Return basis_size, rank and key_dim → the values found among the layers."""
    return {name: sorted({layer.sizes[letter] for layer in layers.values()}) for name, letter in _SIZE_LETTERS.items()}


def require_fitting(settings: RouterSettings, layers: Mapping[str, LayerTensors]) -> None:
    """Raise a SettingsError unless heads divide the keys and the query mode divides the query width."""
    for name, layer in layers.items():
        if layer.sizes["K"] % settings.heads:
            raise SettingsError(
                f"heads is {settings.heads}, which does not divide the key width {layer.sizes['K']} of layer {name}. "
                "Correct heads in the settings; the published basis uses 1."
            )
    width = max(query_widths(layers))
    if width % settings.embeddings_per_query:
        raise SettingsError(
            f"query_mode is {settings.query_mode}, which joins {settings.embeddings_per_query} embeddings of equal "
            f"width, but the query width is {width}. Correct query_mode; the mode is that of the training."
        )


def find_sidecar(path: Path) -> Path | None:
    """Return the YAML file that belongs to a basis file, if there is one."""
    own = path.with_suffix(".yaml")
    if own.is_file():
        return own
    shared = path.with_name("config.yaml")
    return shared if shared.is_file() and len(_bases_beside(path)) == 1 else None


def _tensor_facts(layers: Mapping[str, LayerTensors]) -> dict[str, list[Any]]:
    """Return the facts that sources may state → the values that the tensors agree with."""
    projections = sorted({"linear" if SUFFIX_PROJECTION in layer.suffixes else "none" for layer in layers.values()})
    return {**sizes_of(layers), "query_projection": projections, "external_query": [True]}


def _may_be_internal(layers: Mapping[str, LayerTensors]) -> bool:
    return all(layer.sizes["Q"] == layer.sizes["in"] for layer in layers.values())


def _bases_beside(path: Path) -> list[Path]:
    return [file for file in path.parent.iterdir() if file.suffix.lower() == ".safetensors"]


def _list(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {str(value)[:80]}" for name, value in values.items())
