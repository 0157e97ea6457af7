"""Pictures of the document's figures, as SVG. The same figures give the same bytes: no dates, no random names.

Cases differ in marker, line and hatch as well as in colour. A picture has a ground of its own, which is dark where the
reader's system is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import measuring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = dict[str, Any]
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "quorin",
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
CASES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", (0, (5, 1, 1, 1, 1, 1))))
"""Marker and line of each case."""
DARK = """<style>
@media (prefers-color-scheme: dark) {
  path[style*="fill: #ffffff"] { fill: #17181c !important }
  [style*="stroke: #000000"] { stroke: #d0d0d0 !important }
  [style*="stroke: #b0b0b0"] { stroke: #606060 !important }
  text { fill: #d0d0d0 !important }
}
</style>
"""
PERCENTILES = ("p1", "p10", "p25", "p50", "p75", "p90", "p99", "p999")


@dataclass(frozen=True)
class Picture:
    """Drawn from the figures of one benchmark, if they have all that it needs."""

    mark: str
    title: str
    draw: Callable[[Axes, Figures], None]

    def drawable(self, figures: Figures) -> bool:
        """Whether a run measured what the picture shows; one part alone may not have."""
        try:
            _svg(self, figures)
        except KeyError:
            return False
        return True


def draw_all(entries: Mapping[str, Any]) -> dict[str, str]:
    """SVG by file name, for all pictures whose figures are there."""
    return {
        name: _svg(picture, entries[picture.mark]["figures"])
        for name, picture in PICTURES.items()
        if picture.mark in entries and picture.drawable(entries[picture.mark]["figures"])
    }


def _svg(picture: Picture, figures: Figures) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), io.StringIO() as file:
        figure = Figure(figsize=(6.4, 3.4))
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        picture.draw(axes, figures)
        axes.set_title(picture.title, loc="left")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        drawn = "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
        return drawn.replace(" <defs>", f"{DARK} <defs>", 1)


# --- what each shows --------------------------------------------------------------------------------------------------


def _reads(axes: Axes, figures: Figures) -> None:
    prefix = "4 fields, random ids: "
    names = ("assemble", "dict[id].copy()", "LMDB get", "Redis GET")
    _distributions(axes, {name: figures["reads"][prefix + name] for name in names})


def _beside_a_writer(axes: Axes, figures: Figures) -> None:
    states = ("quiet", "beside a writer")
    cases = {state: figures["beside_a_writer"][f"random ids: assemble, {state}"] for state in states}
    _distributions(axes, cases)


def _feast(axes: Axes, figures: Figures) -> None:
    request = "1 row × 4, int key, to_dict"
    stores = {"Quorin": "feast-quorin", "Redis": "feast-redis", "SQLite": "feast-sqlite"}
    _distributions(axes, {label: figures["feast"][f"{request}: {store}"] for label, store in stores.items()})


def _batches(axes: Axes, figures: Figures) -> None:
    forms: dict[str, list[tuple[int, float]]] = {}
    for name, row in figures["batches"].items():
        size, _, form = name.removeprefix("batch of ").partition(": ")
        number = int(size.replace(",", ""))
        forms.setdefault(form, []).append((number, number / row["p50"] * 1e3))
    for (marker, line), (form, points) in zip(CASES, forms.items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker=marker, linestyle=line, label=form)
    axes.set_xscale("log")
    axes.set_xlabel("ids in a batch")
    axes.set_ylabel("million rows a second, one core")


def _entities(axes: Axes, figures: Figures) -> None:
    points = [
        (int(name.partition(" ")[0].replace(",", "")), row)
        for name, row in figures["growth"].items()
        if name.endswith(" entities, 4 fields: assemble")
    ]
    counts = [count for count, _ in points]
    for (marker, line), label in zip(CASES, ("p50", "p99"), strict=False):
        axes.plot(counts, [row[label] / 1e3 for _, row in points], marker=marker, linestyle=line, label=label)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("entities of four floats, random ids")
    axes.set_ylabel("µs a read")


def _memory(axes: Axes, figures: Figures) -> None:
    rows = figures["memory"]
    raw = [row["raw_bytes"] for row in rows.values()]
    rest = [row["bytes_an_entity"] - row["raw_bytes"] for row in rows.values()]
    axes.barh(list(rows), raw, label="values")
    more = "id, index, event time, position, spare rows"
    axes.barh(list(rows), rest, left=raw, label=more, hatch="///", edgecolor="#ffffff")
    axes.invert_yaxis()
    axes.set_xlabel("bytes an entity, at capacity")


def _collector(axes: Axes, figures: Figures) -> None:
    labels = {"p50": "p50", "p99": "p99", "p999": "p99.9", "p9999": "p99.99", "longest": "longest"}
    names = {"default": "as it comes", "freeze": "frozen", "rare": "frozen, seldom run", "off": "off"}
    for (marker, line), (mode, row) in zip(CASES, figures["gc"].items(), strict=False):
        times = [row[label] / 1e3 for label in labels]
        axes.plot(list(labels.values()), times, marker=marker, linestyle=line, label=names[mode])
    axes.set_yscale("log")
    axes.set_ylabel("µs a request")


def _materialize(axes: Axes, figures: Figures) -> None:
    shape, ways = next(iter(figures["materialize"].items()))
    _bars(axes, {name: row["rows_per_s"] for name, row in ways.items()}, f"rows a second, {shape}")


def _hydrate(axes: Axes, figures: Figures) -> None:
    rows = {
        name.removeprefix("hydrate, "): row["rows_per_s"] / 1e6
        for name, row in figures["history"].items()
        if name.startswith("hydrate, ") and "rows_per_s" in row
    }
    _bars(axes, rows, "million entities a second", log=False)


def _log(axes: Axes, figures: Figures) -> None:
    rows = {}
    for kind, label in (("redis", "Redis, TCP"), ("unix", "Redis, Unix socket"), ("embedded", "embedded")):
        for what, key in (("written", "bulk_appended_per_s"), ("visible", "bulk_visible_per_s")):
            rows[f"{label}: {what}"] = figures["log"][kind][key] / 1e6
    _bars(axes, rows, "million rows a second", log=False)


def _upgrade(axes: Axes, figures: Figures) -> None:
    found = figures["evolution"]
    rows = {
        f"{state}, {label}": found[f"read_{key}_{label}"] / 1e3
        for state, key in (("before", "quiet"), ("during the copy", "copy"))
        for label in ("p50", "p99")
    }
    _bars(axes, rows, "µs a read", log=False)


def _distributions(axes: Axes, cases: Mapping[str, Mapping[str, float]]) -> None:
    labels = [label.replace("p999", "p99.9") for label in PERCENTILES]
    for (marker, line), (name, row) in zip(CASES, cases.items(), strict=False):
        times = [row[label] for label in PERCENTILES]
        axes.plot(labels, times, marker=marker, linestyle=line, markersize=4, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: measuring.duration(value))
    axes.set_xlabel("of all calls, clock included")


def _bars(axes: Axes, rows: Mapping[str, float], label: str, *, log: bool = True) -> None:
    bars = axes.barh(list(rows), list(rows.values()))
    axes.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in rows.values()], padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    if log:
        axes.set_xscale("log")


PICTURES = {
    "reads.svg": Picture("engine", "One read of four floats, random ids over all entities", _reads),
    "writer.svg": Picture("engine", "Reads, while another process rewrites all rows", _beside_a_writer),
    "batches.svg": Picture("engine", "Batches of random ids, by their size", _batches),
    "entities.svg": Picture("engine", "A read, by the number of entities", _entities),
    "memory.svg": Picture("engine", "Memory of an entity", _memory),
    "feast.svg": Picture("feast", "Feast: one row of four features with to_dict", _feast),
    "log.svg": Picture("log", "Rows through the log", _log),
    "collector.svg": Picture("gc", "A request beside Python's garbage collector", _collector),
    "upgrade.svg": Picture("evolution", "Reads beside a schema upgrade", _upgrade),
    "materialize.svg": Picture("materialize", "feast materialize, from Parquet", _materialize),
    "hydration.svg": Picture("history", "A segment built from the history", _hydrate),
}
