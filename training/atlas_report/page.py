"""The atlas as one HTML page that opens offline: no script, no font, no address of any network."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from lorweb_core.basis import Basis
from lorweb_core.images import ImageFileError

from ..data.pictures import load_pair
from .adapter_use import DEAD_SHARE, AdapterUse, Server
from .analogies import Analogy
from .analogy_space import AnalogySpace, nearest_tasks, same_task_share
from .drawings import draw_layers, draw_map, draw_servers, task_colour, thumbnail_strip

logger = logging.getLogger(__name__)

_SERVERS_OF_TASK, _SELECTIVE, _DEADEST_LAYERS = 3, 48, 12
_MAP_NAMES = {
    "pca": "Principal components 1 (across) and 2 (up), each on its own scale",
    "tsne": "t-SNE: near points are alike, far distances mean little, and a new pair is shown at its nearest known one",
}
_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere}
h1{margin-bottom:0}h2{margin-top:2.5rem}p.note{opacity:.75;max-width:70ch}
svg,img{max-width:100%}svg.map{background:#8881;border-radius:8px}svg.map circle{fill-opacity:.8;stroke:#fff8}
svg.map .star{font-size:34px;text-anchor:middle;fill:#d00;stroke:#fff}
svg.servers text{font-size:11px;text-anchor:end;fill:currentColor}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #8884;vertical-align:middle}
td:not(.n){min-width:8em}td:first-child{min-width:10em}td img{max-width:none;display:block}
td.n,th.n{text-align:right;white-space:nowrap}span.s{font-size:12px;white-space:nowrap}
i.chip{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.5em}
dl{display:grid;grid-template-columns:max-content auto;gap:.2rem 1.2rem}dd{margin:0}.wide{overflow-x:auto}
"""


@dataclass(frozen=True, eq=False)
class NewAnalogy:
    """A new pair (and its b) to be placed among the known analogies."""

    name: str
    pictures: tuple[Image.Image, Image.Image, Image.Image]


@dataclass(frozen=True, eq=False)
class Atlas:
    """Everything that the page tells."""

    basis: Basis
    analogies: Sequence[Analogy]
    use: AdapterUse
    space: AnalogySpace
    method: str
    new: Sequence[NewAnalogy] = ()
    neighbours: int = 8

    @property
    def tasks(self) -> list[str]:
        """The task of every analogy."""
        return [analogy.pair.task for analogy in self.analogies]


def build_page(atlas: Atlas) -> str:
    """Return the whole page."""
    title = f"Atlas of {escape(atlas.basis.name)}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>",
            _facts(atlas),
            *(_new_section(atlas, place) for place in range(len(atlas.new))),
            _map_section(atlas),
            _task_section(atlas),
            _servers_section(atlas.use),
            _layer_section(atlas.use),
            "</body></html>\n",
        ]
    )


def _facts(atlas: Atlas) -> str:
    use, same = atlas.use, same_task_share(atlas.space, atlas.tasks)
    tasks = atlas.tasks
    counted = [task for task in tasks if task in same]
    agreeing = sum(same[task] for task in counted) / len(counted) if counted else None
    facts = {
        "Basis": f"{atlas.basis.name} (id {atlas.basis.basis_id}), {len(use.layer_names)} layers, "
        f"{use.adapter_count} adapters, query mode {atlas.basis.settings.query_mode}",
        "Analogies": f"{len(tasks)}, of {len(use.tasks)} task(s)",
        "Dead adapters": f"{len(use.dead)} of {use.adapter_count}",
        "Space": f"{atlas.space.dimensions} dimensions hold 90 % of the variance",
        "Nearest neighbour of the same task": "no task has two analogies" if agreeing is None else f"{agreeing:.0%}",
    }
    return "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{escape(text)}</dd>" for n, text in facts.items()) + "</dl>"


def _new_section(atlas: Atlas, place: int) -> str:
    new = atlas.new[place]
    rows = []
    for known, distance in atlas.space.nearest_known(place, count=atlas.neighbours):
        analogy = atlas.analogies[known]
        rows.append([_chip(atlas.use, analogy.pair.task), escape(analogy.pair.id), _strip(analogy), f"{distance:.4f}"])
    votes = Counter(atlas.analogies[known].pair.task for known, _ in atlas.space.nearest_known(place, count=5))
    told = ", ".join(f"{escape(task)} ({count} of {votes.total()})" for task, count in votes.most_common(3))
    table = _table(["task", "known pair", "a, a′, b", "distance"], rows)
    strip = thumbnail_strip(new.pictures, new.name)
    return (
        f"<h2>Nearest known analogies of {escape(new.name)}</h2><p>{strip}</p>"
        f'<p>Tasks of the nearest five: {told}</p><div class="wide">{table}</div>'
    )


def _map_section(atlas: Atlas) -> str:
    order = {task: number for number, task in enumerate(atlas.use.tasks)}
    titles = [f"{analogy.pair.task}\n{analogy.pair.id} on {analogy.b.id}" for analogy in atlas.analogies]
    new = [(point, entry.name) for point, entry in zip(atlas.space.new_points, atlas.new, strict=True)]
    drawing = draw_map(atlas.space.points, [task_colour(order[task]) for task in atlas.tasks], titles, new)
    seen = f", {sum(atlas.space.variance[:2]):.0%} of the variance" if atlas.method == "pca" else ""
    star = " ★ is the new pair." if new else ""
    return (
        f"<h2>Map of the analogies</h2>{drawing}<p class=note>One point per analogy, coloured by task; rest the "
        f"pointer on a point for its name. {_MAP_NAMES[atlas.method]}{seen}.{star}</p>"
    )


def _task_section(atlas: Atlas) -> str:
    near, same = nearest_tasks(atlas.space, atlas.tasks), same_task_share(atlas.space, atlas.tasks)
    counts, rows = Counter(atlas.tasks), []
    for task in atlas.use.tasks:
        example = next(analogy for analogy in atlas.analogies if analogy.pair.task == task)
        servers = "<br>".join(_describe(server) for server in atlas.use.servers_of(task, count=_SERVERS_OF_TASK))
        neighbour = f"{escape(near[task][0])} ({near[task][1]:.3f})" if task in near else "–"
        agreeing = f"{same[task]:.0%}" if task in same else "–"
        rows.append([_chip(atlas.use, task), _strip(example), servers or "–", neighbour, str(counts[task]), agreeing])
    heads = ["task", "an example: a, a′, b", "served by (share; elsewhere)", "nearest task", "analogies", "same task"]
    note = (
        "Served by: the adapters that this task uses more than the others do. Nearest task: by the distance of the "
        "mean coefficients. Same task: how many of its analogies have their nearest neighbour in it."
    )
    return f'<h2>Tasks</h2><p class=note>{note}</p><div class="wide">{_table(heads, rows)}</div>'


def _servers_section(use: AdapterUse) -> str:
    chosen = use.most_selective(_SELECTIVE)
    if len(use.tasks) < 2 or not chosen:
        return ""
    note = (
        f"The {len(chosen)} adapters whose use differs most between tasks, in computing order; brighter is a larger "
        "share of the layer's mix. Rest the pointer on a cell for layer, adapter and share."
    )
    return f'<h2>Adapters × tasks</h2><p class=note>{note}</p><div class="wide">{draw_servers(use, chosen)}</div>'


def _layer_section(use: AdapterUse) -> str:
    dead = Counter(layer for layer, _ in use.dead)
    sizes = {name: int((~row.isnan()).sum()) for name, row in zip(use.layer_names, use.mean, strict=True)}
    rows = []
    for layer, count in dead.most_common(_DEADEST_LAYERS):
        numbers = ", ".join(str(adapter) for name, adapter in use.dead if name == layer)
        rows.append([escape(layer), numbers, f"{count} of {sizes[layer]}"])
    table = _table(["layer", "dead adapters", "how many"], rows) if rows else "<p>There are none.</p>"
    more = f"<p>… and {len(dead) - len(rows)} more layers (all in atlas.json).</p>" if len(dead) > len(rows) else ""
    first, last = escape(use.layer_names[0]), escape(use.layer_names[-1])
    return (
        f"<h2>Adapters of every layer</h2><p class=note>Rows: layers from {first} (top) to {last}; columns: adapters "
        "0 to N − 1. Brighter: a larger share in the analogy that uses the adapter most; black ones are hardly ever "
        f"used.</p>{draw_layers(use.highest, 'highest share, layer × adapter')}"
        "<h2>Dead adapters</h2><p class=note>Dead: below "
        f"{DEAD_SHARE:.0%} of an even share in every one of these analogies. Tasks that the index lacks may use them."
        f"</p>{table}{more}"
    )


def _describe(server: Server) -> str:
    text = f"{server.layer_name} · {server.adapter} ({server.share:.1%}; {server.elsewhere:.1%})"
    return f'<span class="s">{escape(text)}</span>'


def _strip(analogy: Analogy) -> str:
    try:
        pictures = (*load_pair(analogy.pair), load_pair(analogy.b)[0])
    except ImageFileError as error:  # its embedding is kept, but the file has gone since
        logger.warning("no thumbnail of %s: %s: %s", analogy.pair.id, error.kind, error.reason)
        return escape(f"({error.kind})")
    return thumbnail_strip(pictures, f"{analogy.pair.id} on {analogy.b.id}")


def _chip(use: AdapterUse, task: str) -> str:
    return f'<i class="chip" style="background:{task_colour(use.tasks.index(task))}"></i>{escape(task)}'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already; numbers in the last column."""

    def line(cells: Sequence[str], tag: str) -> str:
        *others, last = cells
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in others) + f'<{tag} class="n">{last}</{tag}></tr>'

    return (
        "<table>" + line([escape(head) for head in heads], "th") + "".join(line(row, "td") for row in rows) + "</table>"
    )
