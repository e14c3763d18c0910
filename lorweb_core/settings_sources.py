"""Where the settings of a basis file come from: the first source that states a setting gives it.

1. an explicit argument (settings, or a YAML file); 2. our header key `lorweb`; 3. a sidecar: `<name>.yaml` beside the
file, or `config.yaml` when the file is the only .safetensors of its folder; 4. defaults from shapes, with a warning
that names what was assumed. A source must agree with the tensors on N, r and key width, also a sidecar that the header
leaves nothing to say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import SettingsError
from .header_settings import read_header_settings
from .layer_tensors import SUFFIX_PROJECTION, LayerTensors, query_widths
from .settings import RouterSettings
from .sidecar import StatedSettings, name_settings_file, read_settings_file

#: Settings without which coefficients would be guesses; a source that lacks one leaves it to the next.
NEEDED = ("activation", "heads", "reduction", "query_mode", "encoder_id")
#: Widths of common image embeddings that are divisible by 3, so no three joined ones.
_SINGLE_EMBEDDING_WIDTHS = (768, 1152)
_SIZE_LETTERS = {"basis_size": "N", "rank": "r", "key_dim": "K"}


@dataclass(frozen=True)
class ResolvedSettings:
    """Settings, the sources they came from (for people), and lines that say what was assumed."""

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
    Raises: SettingsError, CheckpointError: for a source that is unusable or contradicts the tensors.
    """
    if isinstance(explicit, RouterSettings):
        require_fitting(explicit, layers)
        return ResolvedSettings(explicit, "argument", ())
    values: dict[str, Any] = {}
    used, read = [], []
    for stated in _sources(path, metadata, explicit):
        read.append(stated.source)
        _require_agreement(stated, layers)
        added = {name: value for name, value in stated.router.items() if name not in values}
        values |= added
        used += [stated.source] if added else []
        if all(name in values for name in NEEDED):
            break
    assumed = {name: value for name, value in _defaults(layers).items() if name not in values}
    settings = RouterSettings(**values, **assumed)
    require_fitting(settings, layers)
    source = " and ".join([*used, "defaults"] if assumed else used)
    report = _report_assumptions(path, used, assumed, layers)
    sidecar = None if explicit else find_sidecar(path)
    if sidecar and name_settings_file(sidecar) not in read:
        report += _report_unused(sidecar, settings, layers)
    return ResolvedSettings(settings, source, report)


def sizes_of(layers: Mapping[str, LayerTensors]) -> dict[str, set[int]]:
    """Return basis_size, rank and key_dim → the values found among the layers."""
    return {name: {layer.sizes[letter] for layer in layers.values()} for name, letter in _SIZE_LETTERS.items()}


def require_fitting(settings: RouterSettings, layers: Mapping[str, LayerTensors]) -> None:
    """Raise a SettingsError unless heads divide the keys and the query mode divides the query width."""
    for name, layer in layers.items():
        if layer.sizes["K"] % settings.heads:
            raise SettingsError(
                expected=f"heads to divide the key width {layer.sizes['K']} of layer {name}",
                got=str(settings.heads),
                remedy="Correct heads in the settings; the published basis uses 1.",
            )
    width = max(query_widths(layers))
    if width % settings.embeddings_per_query:
        raise SettingsError(
            expected=f"a query mode that fits the query width {width}",
            got=f"{settings.query_mode}, which joins {settings.embeddings_per_query} embeddings of equal width",
            remedy="Correct query_mode in the settings; the mode is that of the training.",
        )


def find_sidecar(path: Path) -> Path | None:
    """Return the YAML file that belongs to a basis file, if there is one."""
    own = path.with_suffix(".yaml")
    if own.is_file():
        return own
    shared = path.with_name("config.yaml")
    return shared if shared.is_file() and len(_bases_beside(path)) == 1 else None


def _sources(path: Path, metadata: Mapping[str, str], explicit: Path | None) -> Iterator[StatedSettings]:
    if explicit is not None:
        yield read_settings_file(explicit)
    header = read_header_settings(metadata, path.name)
    if header is not None:
        yield header
    sidecar = find_sidecar(path)
    if sidecar is not None:
        yield read_settings_file(sidecar)


def _bases_beside(path: Path) -> list[Path]:
    return [file for file in path.parent.iterdir() if file.suffix.lower() == ".safetensors"]


def _require_agreement(stated: StatedSettings, layers: Mapping[str, LayerTensors]) -> None:
    """Raise a SettingsError, naming all contradictions, unless the source fits the tensors."""
    found = sizes_of(layers)
    wrong = [
        (f"{name} {stated.sizes[name]}", f"{name} {_join_numbers(found[name])}")
        for name in stated.sizes
        if stated.sizes[name] not in found[name]
    ]
    projects = any(SUFFIX_PROJECTION in layer.suffixes for layer in layers.values())
    if stated.has_projection is not None and stated.has_projection != projects:
        names = {True: "a query projection (linear)", False: "no query projection (none)"}
        wrong.append((names[stated.has_projection], names[projects]))
    if wrong:
        raise SettingsError(
            expected=f"tensors with {', '.join(claim for claim, _ in wrong)}, as {stated.source} says",
            got=", ".join(fact for _, fact in wrong),
            remedy="The settings belong to another basis; put the right file beside this one, or name one explicitly.",
        )


def _defaults(layers: Mapping[str, LayerTensors]) -> dict[str, Any]:
    width = max(query_widths(layers))
    is_joined = width % 3 == 0 and width not in _SINGLE_EMBEDDING_WIDTHS
    plain = asdict(RouterSettings())
    return {name: plain[name] for name in NEEDED} | {"query_mode": "cat-aa'b" if is_joined else "aa'bb'"}


def _report_assumptions(
    path: Path, used: Collection[str], assumed: Mapping[str, Any], layers: Mapping[str, LayerTensors]
) -> tuple[str, ...]:
    if not assumed:
        return ()
    stated_by = " and ".join(used) or "header or sidecar"
    listed = ", ".join(f"{name} {value}" for name, value in assumed.items())
    lines = [
        f"{path.name}: {len(assumed)} settings not stated by {stated_by}; assumed {listed}. "
        f"To be sure, put its config.yaml beside it as {path.stem}.yaml."
    ]
    if assumed.get("query_mode") == "aa'bb'":
        lines.append(
            f"{path.name}: query width {max(query_widths(layers))} is one image embedding; which single-picture "
            "query mode was trained cannot be read from the file."
        )
    if path.with_name("config.yaml").is_file() and find_sidecar(path) is None:
        count = len(_bases_beside(path))
        lines.append(f"{path.name}: config.yaml was not read, since the folder holds {count} .safetensors files.")
    return tuple(lines)


def _report_unused(sidecar: Path, settings: RouterSettings, layers: Mapping[str, LayerTensors]) -> tuple[str, ...]:
    """Return a line when a sidecar that the header overrules says something else, or is no settings file at all.

    Raises: SettingsError: when it contradicts the tensors, and so belongs to another basis.
    """
    line = f"{sidecar.name} was not used: the file has settings of its own"
    try:
        stated = read_settings_file(sidecar)
    except SettingsError as error:
        return (f"{line} ({sidecar.name} could not be read: {error})",)
    _require_agreement(stated, layers)
    others = [f"{name} {value}" for name, value in stated.router.items() if value != getattr(settings, name)]
    return (f"{line}, and {sidecar.name} says otherwise: {', '.join(others)}.",) if others else ()


def _join_numbers(numbers: Collection[int]) -> str:
    return "/".join(str(number) for number in sorted(numbers))
