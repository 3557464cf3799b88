"""Scatter plots as SVG: narrow enough for a phone, colours for light and dark pages, labels that do not overlap."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 420, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 64
_TEXT, _WIDE = 11, 6.1  # size of the letters, and about how wide one is

# Okabe and Ito's colours, which people of all kinds of colour vision tell apart; the second ones are for dark pages.
COLOURS: Mapping[str, tuple[str, str]] = {
  "dense": ("#000000", "#ffffff"),
  "drop": ("#0072b2", "#56b4e9"),
  "merge": ("#009e73", "#2fd6a5"),
  "pool": ("#aa4499", "#e08fc4"),
  "combined": ("#d55e00", "#f0904a"),
  "oracle": ("#777777", "#aaaaaa"),
}
STYLE = (
  "svg.scatter{font:11px system-ui,sans-serif;fill:#222;max-width:720px;width:100%;height:auto}"
  ".scatter .line{stroke:#222;fill:none;stroke-width:1}.scatter .grid{stroke:#ddd}.scatter .thin{stroke-width:1}"
  + "".join(f".scatter .{kind}{{fill:{light};stroke:{light}}}" for kind, (light, _) in COLOURS.items())
  + ".scatter text{stroke:none}@media (prefers-color-scheme:dark){svg.scatter{fill:#ddd}.scatter .line{stroke:#ddd}"
  ".scatter .grid{stroke:#444}"
  + "".join(f".scatter .{kind}{{fill:{dark};stroke:{dark}}}" for kind, (_, dark) in COLOURS.items())
  + "}"
)


@dataclasses.dataclass(frozen=True)
class Point:
  """One point.

  Attributes:
    name: shown beside it if `labelled`, else where the mouse rests.
    kind: its colour, a name of `COLOURS`.
    x, y: where it is.
    low, high: ends of its interval.
    labelled: whether its name is written, if there is room.
  """

  name: str
  kind: str
  x: float
  y: float
  low: float
  high: float
  labelled: bool = True


def draw(
  points: Sequence[Point], x_title: str, y_title: str, *, level: float | None = None, from_zero: bool = True
) -> str:
  """An SVG of points with vertical intervals.

  Args:
    points: labelled ones first come first served.
    x_title, y_title: of the axes.
    level: a dotted horizontal line.
    from_zero: the horizontal axis begins at 0.
  """
  xs, lows, highs = [p.x for p in points], [p.low for p in points], [p.high for p in points]
  x_ticks = _ticks(0.0 if from_zero else min(xs), max(xs))
  y_ticks = _ticks(
    min([*lows, *([] if level is None else [level])]), max([*highs, *([] if level is None else [level])])
  )
  place_x = _scale(x_ticks, _LEFT, WIDTH - _RIGHT)
  place_y = _scale(y_ticks, HEIGHT - _BOTTOM, _TOP)
  parts = [
    f"<svg class='scatter' xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>",
    f"<title>{html.escape(y_title)} against {html.escape(x_title)}</title><style>{STYLE}</style>",
  ]
  for tick in x_ticks:
    x = place_x(tick)
    parts.append(f"<path class='line grid' d='M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}'/>")
    parts.append(f"<text x='{x:.1f}' y='{HEIGHT - _BOTTOM + 14}' text-anchor='middle'>{tick:g}</text>")
  for tick in y_ticks:
    y = place_y(tick)
    parts.append(f"<path class='line grid' d='M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}'/>")
    parts.append(f"<text x='{_LEFT - 4}' y='{y + 4:.1f}' text-anchor='end'>{tick:g}</text>")
  if level is not None:
    y = place_y(level)
    parts.append(f"<path class='line' stroke-dasharray='2 3' d='M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}'/>")
  middle = (_TOP + HEIGHT - _BOTTOM) / 2
  parts.append(
    f"<text x='{(_LEFT + WIDTH - _RIGHT) / 2}' y='{HEIGHT - _BOTTOM + 30}' text-anchor='middle'>"
    f"{html.escape(x_title)}</text><text transform='translate(12 {middle}) rotate(-90)' text-anchor='middle'>"
    f"{html.escape(y_title)}</text>"
  )
  at = [(place_x(p.x), place_y(p.y)) for p in points]
  for p, (x, y) in zip(points, at, strict=True):
    shown = html.escape(f"{p.name}: {p.x:.3g}, {p.y:.4g} ({p.low:.4g} to {p.high:.4g})")
    interval = f"<path class='thin' opacity='.4' d='M{x:.1f} {place_y(p.low):.1f}V{place_y(p.high):.1f}'/>"
    parts.append(f"<g class='{p.kind}'><title>{shown}</title>{interval}<circle cx='{x:.1f}' cy='{y:.1f}' r='3.2'/></g>")
  parts += _labels(points, at)
  return "".join([*parts, *_legend([p.kind for p in points]), "</svg>"])


def _labels(points: Sequence[Point], at: Sequence[tuple[float, float]]) -> list[str]:
  """Names beside their points, where they cover neither each other nor a point."""
  taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in at]
  parts = []
  for p, (x, y) in zip(points, at, strict=True):
    width = len(p.name) * _WIDE
    if not p.labelled:
      continue
    for dx, dy in ((6, 4), (-6 - width, 4), (-width / 2, -7), (-width / 2, 16), (6, -6), (6, 14), (-6 - width, -6)):
      left, base = x + dx, y + dy
      box = (left, base - _TEXT + 2, left + width, base + 2)
      inside = box[0] >= _LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - _BOTTOM
      if inside and not any(_overlap(box, other) for other in taken):
        taken.append(box)
        parts.append(f"<text x='{left:.1f}' y='{base:.1f}'>{html.escape(p.name)}</text>")
        break
  return parts


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(kinds: Sequence[str]) -> list[str]:
  parts, x = [], float(_LEFT)
  for kind in COLOURS:
    if kind in kinds:
      parts.append(f"<g class='{kind}'><circle cx='{x:.0f}' cy='{HEIGHT - 12}' r='3.2'/></g>")
      parts.append(f"<text x='{x + 7:.0f}' y='{HEIGHT - 8}'>{kind}</text>")
      x += 20 + len(kind) * _WIDE
  return parts


def _ticks(low: float, high: float) -> list[float]:
  """About six round numbers that hold both ends."""
  span = (high - low) or abs(high) or 1.0
  unit = 10 ** math.floor(math.log10(span / 5))
  step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(span / step - 5))
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(number * step, 10) for number in range(first, last + 1)]


def _scale(ticks: Sequence[float], start: float, stop: float):
  first, last = ticks[0], ticks[-1]
  return lambda value: start + (value - first) / (last - first) * (stop - start)
