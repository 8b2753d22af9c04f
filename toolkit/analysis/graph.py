"""The lineage of a study as SVG: one box a stage, layered from its inputs on the left to its results on the right.

Widths are computed from character counts, so that drawing needs neither a browser nor a font. The colours are CSS
variables with a light and a dark value: the picture follows the page or the viewer that shows it.
"""

import html
from collections.abc import Mapping, Sequence

from toolkit.plan import StagePlan

CHARACTER, ROW, PAD = 7.3, 17, 12  # pixels: width of a character at 13 px, line height, padding of a box
GAP_X, GAP_Y, LANE = 44, 20, 2
SWEEPS = 4
STYLE = """
.dag { --ink: #1d2733; --soft: #5b6775; --line: #a9b4c0; --box: #ffffff; --edge: #ccd4dc;
  --done: #009e73; --running: #0072b2; --failed: #d55e00; --blocked: #cc79a7; --never: #c3cbd3;
  font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px; }
@media (prefers-color-scheme: dark) { .dag:not([data-theme=light] *) { --ink: #e6eaee; --soft: #9aa7b4; --line: #5c6975;
  --box: #1d242c; --edge: #3a4550; --never: #4b5661; } }
[data-theme=dark] .dag { --ink: #e6eaee; --soft: #9aa7b4; --line: #5c6975;
  --box: #1d242c; --edge: #3a4550; --never: #4b5661; }
.dag rect.box { fill: var(--box); stroke: var(--edge); }
.dag text { fill: var(--ink); } .dag .name { font-weight: 600; } .dag .soft { fill: var(--soft); font-size: 11.5px; }
.dag path { fill: none; stroke: var(--line); stroke-width: 1.4; } .dag marker path { fill: var(--line); stroke: none; }
.dag .done { fill: var(--done); } .dag .running { fill: var(--running); } .dag .failed { fill: var(--failed); }
.dag .blocked { fill: var(--blocked); } .dag .never-run { fill: var(--never); }
"""


Node = str | tuple[str, str, int]  # a stage, or the lane of an edge (from, to) in a layer


def dag_svg(stages: Sequence[StagePlan]) -> str:
    """A standalone `<svg>`. Stages come after their inputs; an input that is not among the stages is not drawn."""
    known = {s.stage: s for s in stages}
    edges = [(name, s.stage) for s in stages for name in dict.fromkeys(s.inputs) if name in known]
    depth = _depths(stages, edges)
    chains = [_chain(a, b, depth) for a, b in edges]
    layers = _order(_layers(depth, chains), chains)
    sizes: dict[Node, tuple[float, float]] = {name: _size(stage) for name, stage in known.items()}
    for layer in layers:
        widest = max(sizes[node][0] for node in layer if node in known)
        sizes.update({node: (widest, LANE) for node in layer if node not in known})
    places, width, height = _places(layers, sizes)
    parts = [_edge(chain, places, sizes) for chain in chains]
    parts += [_box(known[name], places[name], sizes[name]) for name in known]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="dag" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" style="max-width:100%;min-width:{0.68 * width:.0f}px;height:auto" role="img" '
        f'aria-label="lineage of the stages"><style>{STYLE}</style>'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z"/></marker></defs>{"".join(parts)}</svg>'
    )


def _depths(stages: Sequence[StagePlan], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Stage -> layer: the length of its longest chain of inputs; a source moves next to what uses it first."""
    depth: dict[str, int] = {}
    for s in stages:
        depth[s.stage] = max((depth[a] + 1 for a, b in edges if b == s.stage and a in depth), default=0)
    for s in reversed(stages):
        below = [depth[b] for a, b in edges if a == s.stage]
        if below and not any(b == s.stage for _, b in edges):
            depth[s.stage] = min(below) - 1
    return depth


def _chain(start: str, end: str, depth: Mapping[str, int]) -> list[Node]:
    """The nodes that an edge goes through: it has a lane of its own in every layer between its ends."""
    return [start, *((start, end, level) for level in range(depth[start] + 1, depth[end])), end]


def _layers(depth: Mapping[str, int], chains: Sequence[Sequence[Node]]) -> list[list[Node]]:
    layers: list[list[Node]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name, level in depth.items():
        layers[level].append(name)
    for chain in chains:
        for node in chain[1:-1]:
            layers[depth[str(chain[0])] + chain.index(node)].append(node)
    return layers


def _order(layers: list[list[Node]], chains: Sequence[Sequence[Node]]) -> list[list[Node]]:
    """Layers reordered so that few edges cross: each node goes to the mean place of its neighbours, in sweeps
    (K. Sugiyama et al., "Methods for visual understanding of hierarchical system structures", 1981)."""
    pairs = [pair for chain in chains for pair in zip(chain, chain[1:])]
    above: dict[Node, list[Node]] = {node: [a for a, b in pairs if b == node] for layer in layers for node in layer}
    below: dict[Node, list[Node]] = {node: [b for a, b in pairs if a == node] for layer in layers for node in layer}
    for sweep in range(SWEEPS):
        near = above if sweep % 2 == 0 else below
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            rank = {node: (i + 0.5) / len(row) for row in layers for i, node in enumerate(row)}
            layer.sort(
                key=lambda node: sum(rank[m] for m in near[node]) / len(near[node]) if near[node] else rank[node]
            )
    return layers


def _size(stage: StagePlan) -> tuple[float, float]:
    widest = max(len(stage.stage) * 1.08, *(len(line) * 0.9 for line in _lines(stage)))
    return max(92.0, widest * CHARACTER + 2 * PAD), PAD * 1.4 + ROW * (1 + len(_lines(stage))) + 8


def _lines(stage: StagePlan) -> list[str]:
    cells = sum(stage.states.values())
    job = f"{stage.job} · {cells} cells" if cells != 1 else stage.job
    return [job, *([" × ".join(stage.axes)] if stage.axes else [])]


def _places(
    layers: Sequence[Sequence[Node]], sizes: Mapping[Node, tuple[float, float]]
) -> tuple[dict[Node, tuple[float, float]], float, float]:
    """Upper left corner of each node, and the size of the picture; layers are centred on each other."""
    heights = [sum(sizes[n][1] for n in layer) + GAP_Y * (len(layer) - 1) for layer in layers]
    tallest = max(heights, default=0.0)
    places, x = {}, 4.0
    for layer, height in zip(layers, heights):
        y = 4.0 + (tallest - height) / 2
        widest = max(sizes[n][0] for n in layer)
        for node in layer:
            places[node] = (x + (widest - sizes[node][0]) / 2, y)
            y += sizes[node][1] + GAP_Y
        x += widest + GAP_X
    return places, max(x - GAP_X, 0) + 4, tallest + 8


def _edge(
    chain: Sequence[Node], places: Mapping[Node, tuple[float, float]], sizes: Mapping[Node, tuple[float, float]]
) -> str:
    """A curve from the right side of the first box through its lanes to the left side of the last."""
    path = ""
    for node, following in zip(chain, chain[1:]):
        x1, y1 = places[node][0] + sizes[node][0], places[node][1] + sizes[node][1] / 2
        x2, y2 = places[following][0], places[following][1] + sizes[following][1] / 2
        if following == chain[-1]:
            x2 -= 2  # room for the tip of the arrow
        bend = (x2 - x1) / 2
        path += f"{' L' if path else 'M'}{x1:.1f},{y1:.1f}"  # straight along its lane, past the boxes of the layer
        path += f" C{x1 + bend:.1f},{y1:.1f} {x2 - bend:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"
    return f'<path d="{path}" marker-end="url(#arrow)"/>'


def _box(stage: StagePlan, place: tuple[float, float], size: tuple[float, float]) -> str:
    (x, y), (width, height) = place, size
    counts = ", ".join(f"{n} {state}" for state, n in stage.states.items() if n)
    texts = [f'<text class="name" x="{x + PAD:.1f}" y="{y + PAD + 9:.1f}">{html.escape(stage.stage)}</text>']
    for i, line in enumerate(_lines(stage)):
        texts.append(
            f'<text class="soft" x="{x + PAD:.1f}" y="{y + PAD + 9 + ROW * (i + 1):.1f}">{html.escape(line)}</text>'
        )
    return (
        f'<g><title>{html.escape(f"{stage.stage}: {counts}")}</title>'
        f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="7"/>'
        f'{"".join(texts)}{_bar(stage.states, x + PAD, y + height - 11, width - 2 * PAD)}</g>'
    )


def _bar(states: Mapping[str, int], x: float, y: float, width: float) -> str:
    """The share of each state as a thin bar."""
    total, parts = sum(states.values()), []
    for state in ("done", "running", "failed", "blocked", "never-run"):
        share = width * states.get(state, 0) / total if total else 0.0
        if share:
            parts.append(f'<rect class="{state}" x="{x:.1f}" y="{y:.1f}" width="{share:.1f}" height="4"/>')
        x += share
    return "".join(parts)
