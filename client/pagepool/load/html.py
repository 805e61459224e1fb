"""A load test's report as one HTML file, without anything from elsewhere: styles and plots are in it.

Light and dark as the reader's system is; on a narrow screen one column, and tables that scroll by themselves.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from pagepool.load.measures import OPERATIONS
from pagepool.load.plots import Axis, Series, line_plot, linear_axis, log_axis, stacked_bars
from pagepool.load.result import OK
from pagepool.load.words import HEADERS, human_time, operation_rows, summary, trouble
from pagepool.units import human_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pagepool.load.measures import Measures
    from pagepool.load.result import LoadResult

_PLOTTED: Final = tuple(name for name in OPERATIONS if name not in ("file", "reread"))
_PERCENTS: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)
_MOST_TROUBLE: Final = 20

_STYLE: Final = """
:root{color-scheme:light dark;--page:#f7f7f5;--card:#fff;--ink:#1d1d1b;--soft:#5c5c58;--line:#deded9;--good:#0a7a34;
--bad:#b3261e;--c1:#2a78d6;--c2:#c4511c;--c3:#008300;--c4:#b0467a;--c5:#9a6a00;--c6:#0f7f59;--c7:#4a3aa7;--c8:#c92f2e}
@media(prefers-color-scheme:dark){:root{--page:#161615;--card:#1f1f1e;--ink:#ecece8;--soft:#a9a9a3;--line:#3a3a37;
--good:#59c27d;--bad:#ff8a80;--c1:#5a9bec;--c2:#f0834f;--c3:#4cb24c;--c4:#e583ad;--c5:#d9a02b;--c6:#3fbf91;
--c7:#a59bf0;--c8:#f07f7f}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:16px}
h1{font-size:1.5rem;margin:8px 0}h2{font-size:1.1rem;margin:28px 0 8px}h3{font-size:1rem;margin:0 0 6px}
p{margin:4px 0;color:var(--soft);max-width:75ch}
.verdict{display:inline-block;font-weight:600;padding:1px 10px;border-radius:12px;border:1px solid currentColor}
.good{color:var(--good)}.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0}
.tile,figure{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;margin:0}
.tile b{display:block;font-size:1.35rem;font-weight:600}.tile span{color:var(--soft);font-size:.87rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:12px}
figcaption{color:var(--soft);font-size:.87rem;margin-top:6px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-weight:600}
th:first-child,td.text{text-align:left}td.long{white-space:normal;text-align:left;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}svg .label{fill:var(--ink)}
svg .end{text-anchor:end}svg .mid{text-anchor:middle}
.grid{stroke:var(--line);stroke-width:.7}.axis{stroke:var(--soft);stroke-width:1}
.line{fill:none;stroke:var(--c);stroke-width:1.6;stroke-linejoin:round}.dot,.bar{fill:var(--c)}
.area{fill:var(--c);opacity:.15}
""" + "".join(f".c{number}{{--c:var(--c{number})}}" for number in range(1, 9))


def render_html(result: LoadResult) -> str:
    """The report of a test, as one self-contained file."""
    measures = result.measures
    plan, around = result.plan, result.surroundings
    kind = "good" if result.verdict == OK else "bad"
    about = (
        f"{len(result.clients)} of {plan.clients} clients, mode {plan.mode}, {result.seconds:.1f} s, at "
        f"{around.began} on {around.processors} processors"
    )
    body = [
        f"<h1>pagepool load test <span class='verdict {kind}'>{escape(result.verdict)}</span></h1>",
        f"<p>{escape(about)}.</p>",
        _tiles(result, measures),
        _trouble(result),
        "<h2>Latency</h2>",
        _table("Latency by operation", HEADERS, operation_rows(result)),
        "".join(
            f"<p><b>{name}</b>: {escape(text)}</p>" for name, text in OPERATIONS.items() if name in measures.operations
        ),
        "<p>Comparing what was read is not part of these durations.</p>",
        "<h2>Over time, and by client</h2>",
        f'<div class="plots">{"".join(_plots(result, measures))}</div>',
        "<h2>What else was measured</h2>",
        _pairs("Other figures", summary(result)),
        "<h2>What was done</h2>",
        _images(result),
        _pairs("Plan and machine", _settings(result)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>pagepool load test: {escape(result.verdict)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _tiles(result: LoadResult, measures: Measures) -> str:
    seconds = result.seconds or 1.0
    reads = measures.hits + measures.misses
    done = [one for one in result.clients if one.measures is not None]
    tiles = [
        (f"{measures.count / seconds:,.0f}", "operations each second"),
        (f"{human_size(measures.bytes / seconds)}/s", "read and written"),
        (f"{measures.errors:,}", "errors"),
        (f"{measures.mismatches:,}", f"wrong of {measures.checked_pages:,} pages compared"),
    ]
    if reads:
        tiles.append((f"{measures.hits / reads:.1%}", "of reads needed no request"))
    if done:
        tiles.append((human_size(sum(one.after.pss for one in done) / len(done)), "memory of a client (PSS)"))
    if result.missing:
        tiles.append((f"{len(result.missing):,}", "clients missing"))
    inner = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in tiles
    )
    return f'<div class="tiles">{inner}</div>'


def _trouble(result: LoadResult) -> str:
    found = trouble(result, _MOST_TROUBLE)
    if not found:
        return ""
    rows = "".join(f"<tr><td class='long'>{escape(text)}</td></tr>" for text in found)
    return f"<h2 class='bad'>What went wrong</h2><div class='scroll'><table>{rows}</table></div>"


def _plots(result: LoadResult, measures: Measures) -> Iterable[str]:
    step_s = result.plan.step_s
    # The last step is not a whole one.
    steps = max(1, int(result.seconds / step_s)) if result.seconds else 1
    time = linear_axis("seconds", steps * step_s, lambda value: f"{value:g}")
    names = [name for name in _PLOTTED if name in measures.operations]
    counts, sizes = [0.0] * steps, [0.0] * steps
    for name, one in measures.operations.items():
        for step, (count, size, _, _) in one.series.items():
            if step < steps:
                counts[step] += count / step_s if name != "file" else 0.0
                sizes[step] += size / step_s
    middles = [(at + 0.5) * step_s for at in range(steps)]
    axis = linear_axis("operations/s", max(counts), lambda value: f"{value:,.0f}")
    yield _figure(
        "Throughput",
        line_plot(
            "throughput",
            f"Operations each second, at most {max(counts):,.0f}.",
            time,
            axis,
            [Series("operations", list(zip(middles, counts, strict=True)), 1)],
            area=True,
        ),
        "Operations of all clients that succeeded, each second; files of starts are not counted again.",
    )
    axis = linear_axis("bytes/s", max(sizes), human_size)
    yield _figure(
        "Bytes",
        line_plot(
            "bytes",
            f"Bytes each second, at most {human_size(max(sizes))}.",
            time,
            axis,
            [Series("bytes", list(zip(middles, sizes, strict=True)), 6)],
            area=True,
        ),
        "Bytes that clients read and wrote, each second.",
    )
    yield _percentiles(measures, names)
    yield _longest(measures, names, steps, step_s, time)
    yield from _memory(result)


def _percentiles(measures: Measures, names: Sequence[str]) -> str:
    places = {percent: 100 / (100 - percent) for percent in _PERCENTS}
    ticks = [(places[percent], f"{percent:g} %") for percent in (50.0, 90.0, 99.0, 99.9, 99.99)]
    series, values = [], []
    for name in names:
        durations = measures.operations[name].durations
        # What fewer than one in a sample says nothing of is left out.
        known = [percent for percent in _PERCENTS if durations.count * (100 - percent) >= 100]
        points = [(places[percent], float(max(1, durations.percentile(percent)))) for percent in known]
        if points:
            series.append(Series(name, points, _colour(name)))
            values += [value for _, value in points]
    y = log_axis("duration", min(values, default=1e3), max(values, default=1e6), human_time)
    x = Axis("of operations were not longer", 2.0, 10_000.0, ticks, log=True)
    words = "; ".join(f"{one.name}: median {human_time(one.points[0][1])}" for one in series)
    return _figure(
        "Latency by percentile",
        line_plot("latency-by-percentile", words, x, y, series),
        "How long operations took; each percentile that at least one measured operation lies above. Logarithmic.",
    )


def _longest(measures: Measures, names: Sequence[str], steps: int, step_s: float, time: Axis) -> str:
    series, values = [], []
    for name in names:
        found = sorted(measures.operations[name].series.items())
        points = [((step + 0.5) * step_s, float(most)) for step, (_, _, _, most) in found if step < steps and most]
        if points:
            series.append(Series(name, points, _colour(name)))
            values += [value for _, value in points]
    y = log_axis("duration", min(values, default=1e3), max(values, default=1e6), human_time)
    words = f"The longest of all took {human_time(max(values, default=0))}."
    return _figure(
        "The longest operation each second",
        line_plot("longest-operations", words, time, y, series),
        "By when it ended. Logarithmic.",
    )


def _memory(result: LoadResult) -> Iterable[str]:
    done = [one for one in result.clients if one.measures is not None]
    if not done:
        return
    parts = (("heap", "anonymous", 1), ("pool", "pool", 6), ("other files", "file", 5))
    series = [
        Series(name, [(at, float(getattr(one.after, field))) for at, one in enumerate(done)], colour)
        for name, field, colour in parts
    ]
    most = max(one.after.anonymous + one.after.pool + one.after.file for one in done)
    ticks = [(at, str(done[at].number)) for at in sorted({0, len(done) - 1})]
    x = Axis("client", 0, max(1, len(done) - 1), ticks)
    y = linear_axis("PSS", most, human_size)
    mean = sum(one.after.pss for one in done) / len(done)
    yield _figure(
        "Memory of each client",
        stacked_bars("memory-of-clients", f"{human_size(mean)} on average, at most {human_size(most)}.", x, y, series),
        "At the end of its work. A page that several processes map is divided among them (PSS).",
    )


def _colour(name: str) -> int:
    return _PLOTTED.index(name) % 8 + 1


def _figure(title: str, plot: str, caption: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{plot}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(label: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def _pairs(label: str, pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="long">{escape(text)}</td></tr>' for name, text in pairs
    )
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table>{rows}</table></div>'


def _images(result: LoadResult) -> str:
    rows = [
        (
            one.name,
            f"{one.files:,}",
            human_size(one.size),
            f"{len(one.trace):,}",
            human_size(sum(step.size for step in one.trace)),
            one.trace_source,
            f"{one.left_out:,}",
        )
        for one in result.plan.images
    ]
    headers = ("Image", "Files", "Size", "Read by a start", "Bytes", "Trace", "Files not compared")
    return _table("Images", headers, rows)


def _settings(result: LoadResult) -> list[tuple[str, str]]:
    plan, around = result.plan, result.surroundings
    pace = f"{plan.rate:g} operations/s each" if plan.rate else "one operation after the other"
    service = f"{around.service}, started for the test" if around.own_service else around.service
    return [
        ("mix", ", ".join(f"{name} {weight:g}" for name, weight in plan.mix.weights().items())),
        ("pages read", f"by Zipf's law, exponent {plan.zipf:g}; seed {plan.seed}"),
        ("clients", f"{plan.clients}, mode {plan.mode}, {pace}, for {plan.seconds:g} s"),
        ("service", service),
        ("coordinator", f"{around.host}, Linux {around.kernel}, Python {around.python}"),
    ]
