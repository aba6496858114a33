"""Small plots as inline SVG, drawn here: shapes that stretch, and words beside them in HTML, so that they stay readable on a phone.

Each plot has its numbers in a table next to it; the picture is for the glance.
"""

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 720, 120
TONES = ("bar", "second", "third")


def bars(values: Sequence[float], label: str) -> Markup:
    """One bar a value, oldest first, scaled to the highest."""
    top = max([*values, 1])
    step = WIDTH / max(len(values), 1)
    shapes = [
        Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
            _n(i * step + step * 0.1), _n(HEIGHT - value / top * (HEIGHT - 2)), _n(step * 0.8), _n(value / top * (HEIGHT - 2))
        )
        for i, value in enumerate(values)
    ]
    axis = Markup('<line class="axis" x1="0" x2="{}" y1="{}" y2="{}"/>').format(WIDTH, HEIGHT, HEIGHT)
    return _svg(HEIGHT, label, [*shapes, axis])


def stack(parts: Sequence[float], label: str) -> Markup:
    """Parts of a whole beside each other, in the order of TONES; a part that is not zero can be seen."""
    total, at, shapes = sum(parts) or 1, 0.0, [Markup('<rect class="track" x="0" y="0" width="{}" height="16"/>').format(WIDTH)]
    for part, tone in zip(parts, TONES, strict=False):
        width = max(part / total * WIDTH, 3.0) if part else 0.0
        shapes.append(Markup('<rect class="{}" x="{}" y="0" width="{}" height="16"/>').format(tone, _n(min(at, WIDTH - width)), _n(width)))
        at += width
    return _svg(16, label, shapes)


def level(value: float, top: float, label: str) -> Markup:
    """One bar from the left, as long as the value is of the top."""
    width = min(max(value / top, 0.0), 1.0) * WIDTH if top else 0.0
    track = Markup('<rect class="track" x="0" y="0" width="{}" height="10"/>').format(WIDTH)
    return _svg(10, label, [track, Markup('<rect class="bar" x="0" y="0" width="{}" height="10"/>').format(_n(width))])


def _svg(height: int, label: str, shapes: Sequence[Markup]) -> Markup:
    inside = Markup("").join(shapes)
    frame = Markup('<svg class="plot" viewBox="0 0 {} {}" height="{}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>')
    return frame.format(WIDTH, height, height, label, inside)


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
