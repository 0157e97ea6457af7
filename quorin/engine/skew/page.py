"""A comparison as one page of HTML: a picture of each view by field, and the examples.

The page loads nothing. Kinds are told apart by pattern and place, so it is readable without colour, and it follows the
reader's choice of a dark scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from quorin.engine.skew.kinds import APART, EQUAL, MEANINGS, SKEWED, STATES
from quorin.engine.words import duration, moment

_TEMPLATE = Path(__file__).with_name("page.html")
_LABEL, _BAR, _ROW, _COUNT = 230, 460, 26, 150
_MIN_WIDTH = 2.0
"""The least width of a part that is not zero, so that one wrong value among a million shows."""
_MAX_TEXT = 120


def skew_page(reports: Sequence[Mapping[str, Any]]) -> str:
    """The page of some reports, each as :meth:`SkewReport.to_dict` returns it."""
    template = _TEMPLATE.read_text("utf-8")
    body = "\n".join(_section(report) for report in reports)
    legend = "".join(
        f'<li><svg width="28" height="14" aria-hidden="true">{_rect(0, 0, 28, 14, kind)}</svg> <b>{kind}</b> '
        f"{escape(MEANINGS[kind])}</li>"
        for kind in STATES
    )
    return template.replace("<!-- legend -->", legend).replace("<!-- reports -->", body)


def _section(report: Mapping[str, Any]) -> str:
    compared, rows = report["compared"], report["rows"]
    staleness = report["staleness_seconds"]
    late = (
        ""
        if staleness is None
        else "<p>Stale by "
        + ", ".join(f"{name} {duration(seconds)}" for name, seconds in staleness.items())
        + " (the offline event's time less the served one's).</p>"
    )
    counts = ", ".join(f"{rows[kind]:,} {kind}" for kind in STATES if rows[kind]) or "no entities"
    return (
        f"<section><h2>{escape(report['name'])}</h2>"
        f"<p>{compared:,} entities compared as of {escape(moment(report['as_of_time_ns']))}: {counts}.</p>{late}"
        f"{_picture(report)}{_examples(report)}</section>"
    )


def _picture(report: Mapping[str, Any]) -> str:
    """A bar for the rows, and one for each field: the shares of the compared entities."""
    rows = {kind: report["rows"][kind] for kind in STATES if kind not in APART and kind != EQUAL}
    bars = [("rows", rows), *((one["name"], {kind: one[kind] for kind in SKEWED}) for one in report["fields"])]
    total = max(report["compared"], 1)
    most = max([sum(counts.values()) for _, counts in bars] + [0]) / total
    scale = next((limit for limit in (0.001, 0.01, 0.05, 0.1, 0.25, 0.5) if most <= limit), 1.0)
    width, height = _LABEL + _BAR + _COUNT, _ROW * len(bars) + 34
    about = f"Share of skewed entities by field of {report['name']}"
    parts = [f'<svg class="bars" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(about)}">']
    for number, (name, counts) in enumerate(bars):
        top, x, wrong = number * _ROW + 4, float(_LABEL), sum(counts.values())
        shown = name if len(name) <= _LABEL // 8 else name[: _LABEL // 8 - 1] + "…"
        parts.append(
            f'<text x="{_LABEL - 10}" y="{top + 14}" text-anchor="end"><title>{escape(name)}</title>{escape(shown)}'
            f'</text><line class="axis" x1="{_LABEL}" x2="{_LABEL + _BAR}" y1="{top + 19}" y2="{top + 19}"/>'
        )
        for kind, count in counts.items():
            if count:
                size = max(_MIN_WIDTH, _BAR * count / total / scale)
                parts.append(_rect(x, top, min(size, _LABEL + _BAR - x), 18, kind, f"{name}: {count:,} {kind}"))
                x += size
        text = f"{wrong:,} ({_percent(wrong / total)})" if wrong else "none"
        parts.append(f'<text x="{_LABEL + _BAR + 10}" y="{top + 14}">{text}</text>')
    bottom = _ROW * len(bars) + 22
    for at in (0.0, 0.5, 1.0):
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[at]
        parts.append(
            f'<text class="tick" x="{_LABEL + at * _BAR}" y="{bottom}" text-anchor="{anchor}">{_percent(at * scale)}'
            "</text>"
        )
    return "".join([*parts, "</svg>"])


def _rect(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    """A part of a bar, filled with its kind's pattern."""
    about = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" '
        f'fill="url(#{kind})">{about}</rect>'
    )


def _examples(report: Mapping[str, Any]) -> str:
    rows = [
        "<tr>"
        + "".join(
            f"<td>{escape(text)}</td>"
            for text in (
                one["name"],
                example["kind"],
                example["entity_id"],
                _value(example["served"]),
                _value(example["offline"]),
                _time(example["served_time_ns"]),
                _time(example["offline_time_ns"]),
            )
        )
        + "</tr>"
        for one in report["fields"]
        for example in one["examples"]
    ]
    if not rows:
        return ""
    heads = ("field", "kind", "entity", "served", "offline", "served event", "offline event")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f"<details open><summary>Examples</summary><div class='wide'><table><thead><tr>{head}</tr></thead><tbody>"
        f"{''.join(rows)}</tbody></table></div></details>"
    )


def _value(value: Any) -> str:
    text = "null" if value is None else value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _time(time_ns: int | None) -> str:
    return "no row" if time_ns is None else moment(time_ns)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
