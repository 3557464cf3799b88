"""Charts as SVG text: small, readable on a phone, dark where the reader's screen is, with a tooltip on every mark."""

import html
import math
from collections.abc import Sequence

WIDTH = 420  # user units, about a phone's pixels: text of 12 stays readable there
_LEGEND_LINE = 18
_LETTER = 6.6  # of 12 px text, on average

# Okabe and Ito's colours, which can be told apart with any kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
STYLE = (
  "svg{--ink:#222;--faint:#dcdcdc;--paper:#fff}"
  "@media(prefers-color-scheme:dark){svg{--ink:#ddd;--faint:#3a3f45;--paper:#15181c}}"
  "svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .faint{stroke:var(--faint);stroke-width:1}"
  "svg .ink{stroke:var(--ink);stroke-width:1}svg .line{fill:none;stroke-width:1.8}"
  + "".join(
    f"svg .c{number}{{fill:{colour}}}svg .l{number}{{stroke:{colour}}}" for number, colour in enumerate(COLOURS)
  )
)

Ticks = Sequence[tuple[float, str]]


def ticks(low: float, high: float, form: str = "{:g}", most: int = 5) -> list[tuple[float, str]]:
  """Round values between two, with their labels."""
  span = (high - low) or 1.0
  size = 10.0 ** math.floor(math.log10(span / most))
  step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= most)
  first = math.ceil(low / step - 1e-9)
  values = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
  return [(value, form.format(value + 0.0)) for value in values]


class Chart:
  """One pair of axes; what is drawn later lies above.

  Args:
    x, y: lowest and highest value of each axis; the first of `y` is at the bottom, even if it is the higher one.
    x_ticks, y_ticks: values with their labels.
    x_label, y_label: below and above the axes.
    height: of the axes alone, in user units.
    left: room for the labels of the y axis.
  """

  def __init__(
    self,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    x_ticks: Ticks,
    y_ticks: Ticks,
    x_label: str = "",
    y_label: str = "",
    height: int = 190,
    left: int = 52,
    grid: str = "y",
  ):
    self._x, self._y, self._top, self._left, self._height = x, y, 26 if y_label else 10, left, height
    self._right = WIDTH - 14
    self._parts: list[str] = []
    self._legend: list[tuple[str, int]] = []
    self._labels = (x_label, y_label)
    bottom = self._top + height
    for value, label in y_ticks:
      at = self.y(value)
      if "y" in grid:
        self._parts.append(_line(left, at, self._right, at, "faint"))
      self._parts.append(_text(left - 6, at + 4, label, "end"))
    for value, label in x_ticks:
      at = self.x(value)
      if "x" in grid:
        self._parts.append(_line(at, self._top, at, bottom, "faint"))
      for number, part in enumerate(label.split("\n")):
        self._parts.append(_text(at, bottom + 16 + 15 * number, part, "middle"))
    self._lines_below = max([label.count("\n") + 1 for _, label in x_ticks], default=0)

  def x(self, value: float) -> float:
    low, high = self._x
    return self._left + (value - low) / ((high - low) or 1.0) * (self._right - self._left)

  def y(self, value: float) -> float:
    low, high = self._y
    return self._top + self._height - (value - low) / ((high - low) or 1.0) * self._height

  def legend(self, names: Sequence[str]) -> None:
    """Names the colours from the first on, below the chart."""
    self._legend = [(name if len(name) <= 40 else name[:39] + "…", number) for number, name in enumerate(names)]

  def line(self, xs: Sequence[float], ys: Sequence[float], colour: int, tips: Sequence[str] = ()) -> None:
    """A line through points; with tips, a dot on each."""
    points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    self._parts.append(f'<polyline class="line l{colour % len(COLOURS)}" points="{points}"/>')
    for x, y, tip in zip(xs, ys, tips, strict=False):
      self.dot(x, y, colour, tip, radius=2.5)

  def dot(self, x: float, y: float, colour: int, tip: str, radius: float = 4.5) -> None:
    at = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}"'
    self._parts.append(_tipped(f'<circle class="c{colour % len(COLOURS)}" {at} r="{radius}"', "circle", tip))

  def segment(self, x: tuple[float, float], y: tuple[float, float], colour: int | None = None) -> None:
    """A straight line between two points, without colour in the text's."""
    name = "ink" if colour is None else f"line l{colour % len(COLOURS)}"
    self._parts.append(_line(self.x(x[0]), self.y(y[0]), self.x(x[1]), self.y(y[1]), name))

  def box(
    self, x: tuple[float, float], y: tuple[float, float], colour: int, tip: str, opacity: float | None = None
  ) -> None:
    """A filled rectangle between two corners."""
    left, right = sorted(map(self.x, x))
    top, bottom = sorted(map(self.y, y))
    size = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    shade = "" if opacity is None else f' fill-opacity="{opacity:.3f}"'
    self._parts.append(_tipped(f'<rect class="c{colour % len(COLOURS)}" {size}{shade}', "rect", tip))

  def text(self, x: float, y: float, label: str, anchor: str = "middle", up: float = 4) -> None:
    self._parts.append(_text(self.x(x), self.y(y) - up, label, anchor))

  def render(self, description: str) -> str:
    """The whole chart as an <svg> element, described for those who cannot see it."""
    x_label, y_label = self._labels
    parts, below = [], self._top + self._height + 15 * self._lines_below + 6
    if y_label:
      parts.append(_text(4, 15, y_label, "start"))
    if x_label:
      below += 15
      parts.append(_text((self._left + self._right) / 2, below, x_label, "middle"))
    at = 8.0
    for name, number in self._legend:
      wide = 30 + _LETTER * len(name)
      if at == 8.0 or at + wide > WIDTH:
        at, below = 8.0, below + _LEGEND_LINE
      parts.append(f'<rect class="c{number % len(COLOURS)}" x="{at:.0f}" y="{below - 9:.0f}" width="11" height="11"/>')
      parts.append(_text(at + 16, below + 1, name, "start"))
      at += wide
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {below + 10:.0f}" role="img"'
    label = html.escape(description)
    return f'{head} aria-label="{label}">{"".join(self._parts)}{"".join(parts)}</svg>'


def standalone(svg: str) -> str:
  """A chart as a file of its own."""
  head, rest = svg.split(">", 1)
  return f"{head}><style>{STYLE}svg{{background:var(--paper)}}</style>{rest}\n"


def _tipped(opening: str, tag: str, tip: str) -> str:
  return f"{opening}><title>{html.escape(tip)}</title></{tag}>"


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
  return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, label: str, anchor: str) -> str:
  return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(label)}</text>'
