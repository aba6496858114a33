"""Small plots as SVG, without a library for them."""

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, COLUMNS = 380, 110, 2


def small_plots(series: Mapping[str, Sequence[float]]) -> str:
    """One small plot a figure, all over the same hours or rounds, each from zero."""
    plots = [
        _plot(title, values, n % COLUMNS * WIDTH, n // COLUMNS * HEIGHT, WIDTH - 20, HEIGHT - 40)
        for n, (title, values) in enumerate(series.items())
    ]
    width, height = WIDTH * COLUMNS, HEIGHT * -(-len(series) // COLUMNS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="white"/>{"".join(plots)}</svg>\n'
    )


def _plot(title: str, values: Sequence[float], x: int, y: int, width: int, height: int) -> str:
    top = max([*values, 1e-9])
    step = width / len(values)
    bars = "".join(
        f'<rect x="{x + 10 + n * step:.1f}" y="{y + 24 + height * (1 - value / top):.1f}" width="{step * 0.8:.1f}" '
        f'height="{height * value / top:.1f}" fill="#0b62a4"/>'
        for n, value in enumerate(values)
    )
    return f'<text x="{x + 10}" y="{y + 16}">{title}: {values[0]:,.0f} first, {top:,.0f} most, {values[-1]:,.0f} last</text>{bars}'
