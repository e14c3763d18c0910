"""An atlas of a basis: what its adapters do, and where an analogy lies among known ones.

    python -m training.atlas runs/mine/mine.safetensors --index mydata/pairs.jsonl --encoder clip-vit-large-patch14
    python -m training.atlas BASIS --index PAIRS --encoder DIR --a night_before.png --a-prime night_after.png

Writes atlas.html (one page that opens offline), atlas.json and analogies.jsonl into --out. Embeddings are kept in
OUT/cache as they are made: an interrupted run goes on, and a second basis or new pair costs seconds. Extra: `atlas`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lorweb_core.basis import Basis
from lorweb_core.checkpoint import load_basis
from lorweb_core.coefficients import Coefficients, encode_coefficients
from lorweb_core.command_line.arguments import whole_number
from lorweb_core.encoder import ImageEncoder, load_image_encoder
from lorweb_core.errors import LoRWeBError, OutputError, SettingsError
from lorweb_core.files import write_text_atomically
from lorweb_core.images import read_image

from .arguments import count, open_device
from .atlas_report.adapter_use import measure_use
from .atlas_report.analogies import choose_analogies, embed_analogies, embed_pictures, open_embeddings
from .atlas_report.analogy_space import MAPS, measure_space, nearest_tasks, require_scikit_learn, same_task_share
from .atlas_report.page import Atlas, NewAnalogy, build_page
from .data.index import SPLITS, PairIndex, PairRecord
from .data.problems import errors_among
from .data.validation import usable_pairs
from .quiet import silence_libraries
from .terminal import let_terminal_replace, log_to_terminal, show

logger = logging.getLogger(__name__)

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130
_SERVERS_IN_JSON = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    let_terminal_replace()
    log_to_terminal(logging.WARNING)
    options = build_parser().parse_args(arguments)
    silence_libraries()
    try:
        atlas = make_atlas(options)
        page = write_atlas(atlas, options.out)
    except LoRWeBError as error:
        print(f"atlas: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        print("atlas: interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    _report(atlas, page)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.atlas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("basis", type=Path, metavar="BASIS", help="the basis' .safetensors file")
    parser.add_argument(
        "--index", type=Path, required=True, metavar="PAIRS", help="pair index, less what training leaves out"
    )
    parser.add_argument("--encoder", metavar="DIR", help="image encoder, folder or id; default: the one named in BASIS")
    parser.add_argument("--out", type=Path, default=Path("runs/atlas"), metavar="FOLDER", help="(runs/atlas)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="kept embeddings (OUT/cache)")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="all", help="of the index (all)")
    parser.add_argument("--tasks", nargs="*", default=[], metavar="TASK", help="only these; all without")
    parser.add_argument("--per-task", type=whole_number, default=24, metavar="N", help="at most so many; 0: all (24)")
    parser.add_argument("--map", choices=MAPS, default="pca", help="how the map is drawn (pca)")
    parser.add_argument("--device", default="auto", help="of the encoder: auto (a GPU where there is one), cpu or cuda")
    new = parser.add_argument_group("a new pair, to find the known analogies next to it")
    new.add_argument("--a", type=Path, metavar="PICTURE", help="before")
    new.add_argument("--a-prime", type=Path, metavar="PICTURE", help="after")
    new.add_argument("--b", type=Path, metavar="PICTURE", help="what it is to be applied to (A itself)")
    new.add_argument("--neighbours", type=count, default=8, metavar="K", help="how many are shown (8)")
    return parser


def make_atlas(options: argparse.Namespace) -> Atlas:
    """Return everything the page tells; embeds what is missing.

    Raises: LoRWeBError: for whatever the user can put right.
    """
    require_scikit_learn()  # first: its absence should not cost the time of embedding
    _require_pair(options)
    basis = load_basis(options.basis)
    pairs = _read_pairs(options.index)
    chosen = choose_analogies(pairs, split=options.split, tasks=options.tasks, per_task=options.per_task)
    new = _load_new(options)
    encoder_source = options.encoder or basis.settings.encoder_id
    encoder = load_image_encoder(encoder_source, device=open_device(options.device))
    cache = open_embeddings(options.cache or options.out / "cache", basis, encoder, encoder_source)
    analogies, queries = embed_analogies(chosen, basis, encoder, cache)
    known = encode_coefficients(basis, queries)
    return Atlas(
        basis=basis,
        analogies=analogies,
        use=measure_use(known, [analogy.pair.task for analogy in analogies]),
        space=measure_space(known, _encode_new(new, basis, encoder), method=options.map),
        method=options.map,
        new=new,
        neighbours=options.neighbours,
    )


def write_atlas(atlas: Atlas, folder: Path) -> Path:
    """Write page, numbers and analogies; return the page's path.

    Raises: OutputError: when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            expected=f"to be able to create the folder {folder}",
            got=error.strerror or str(error),
            remedy="Choose another --out.",
        ) from error
    lines = [json.dumps(record, ensure_ascii=False) for record in _analogy_records(atlas)]
    write_text_atomically(folder / "analogies.jsonl", "\n".join(lines) + "\n")
    write_text_atomically(folder / "atlas.json", json.dumps(_numbers(atlas), indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(folder / "atlas.html", build_page(atlas))
    return folder / "atlas.html"


def _analogy_records(atlas: Atlas) -> list[dict[str, object]]:
    nearest = atlas.space.nearest
    return [
        {
            "pair": analogy.pair.id, "b": analogy.b.id, "task": analogy.pair.task,
            "map": [round(float(value), 6) for value in atlas.space.points[place]],
            "nearest": atlas.analogies[nearest[place]].pair.id,
            "distance": round(float(atlas.space.distances[place, nearest[place]]), 6),
        }
        for place, analogy in enumerate(atlas.analogies)
    ]  # fmt: skip


def _numbers(atlas: Atlas) -> dict[str, object]:
    tasks = atlas.tasks
    near, same = nearest_tasks(atlas.space, tasks), same_task_share(atlas.space, tasks)
    per_task = {
        task: {
            "analogies": tasks.count(task),
            "nearest_task": near[task][0] if task in near else None,
            "same_task_neighbours": same.get(task),
            "served_by": [vars(server) for server in atlas.use.servers_of(task, count=_SERVERS_IN_JSON)],
        }
        for task in atlas.use.tasks
    }
    new = [
        {"name": entry.name, "nearest": [
            {"pair": atlas.analogies[known].pair.id, "task": tasks[known], "distance": round(distance, 6)}
            for known, distance in atlas.space.nearest_known(place, count=atlas.neighbours)
        ]}
        for place, entry in enumerate(atlas.new)
    ]  # fmt: skip
    return {
        "basis": atlas.basis.name, "basis_id": atlas.basis.basis_id, "analogies": len(tasks), "map": atlas.method,
        "variance": [round(share, 6) for share in atlas.space.variance], "adapters": atlas.use.adapter_count,
        "dead": [{"layer_name": layer, "adapter": adapter} for layer, adapter in atlas.use.dead],
        "tasks": per_task, "new": new,
    }  # fmt: skip


def _read_pairs(path: Path) -> list[PairRecord]:
    """The pairs of an index that training would use at 256 px; what is left out is told with its first reason."""
    index = PairIndex.read_index(path)
    usable, problems = usable_pairs(index.records)
    left_out = len(index) - len(usable)
    if left_out:
        reason = errors_among(problems)[0]
        logger.warning("%d of %d pairs are left out, as in training; first reason: %s", left_out, len(index), reason)
    return usable


def _require_pair(options: argparse.Namespace) -> None:
    given = [word for word, value in (("--a", options.a), ("--a-prime", options.a_prime), ("--b", options.b)) if value]
    if given and (options.a is None or options.a_prime is None):
        raise SettingsError(
            expected="a new pair as --a and --a-prime together (and --b if you like)",
            got=f"only {' and '.join(given)}",
            remedy="Name both pictures of the pair, or leave them all out.",
        )


def _load_new(options: argparse.Namespace) -> list[NewAnalogy]:
    if options.a is None:
        return []
    a, a_prime = read_image(options.a), read_image(options.a_prime)
    b = read_image(options.b) if options.b else a
    name = f"{options.a.name} → {options.a_prime.name}" + (f" on {options.b.name}" if options.b else "")
    return [NewAnalogy(name, (a, a_prime, b))]


def _encode_new(new: Sequence[NewAnalogy], basis: Basis, encoder: ImageEncoder) -> Coefficients | None:
    queries = [embed_pictures(basis, encoder, *entry.pictures) for entry in new]
    return encode_coefficients(basis, torch.cat(queries)) if queries else None


def _report(atlas: Atlas, page: Path) -> None:
    use = atlas.use
    print(f"{len(atlas.analogies)} analogies of {len(use.tasks)} task(s), {len(use.layer_names)} layers")
    print(f"dead adapters: {len(use.dead)} of {use.adapter_count}")
    for place, entry in enumerate(atlas.new):
        show(f"nearest to {entry.name}:")
        for known, distance in atlas.space.nearest_known(place, count=atlas.neighbours):
            show(f"  {distance:.4f}  {atlas.analogies[known].pair.task}  {atlas.analogies[known].pair.id}")
    show(f"open {page}")


if __name__ == "__main__":
    sys.exit(main())
