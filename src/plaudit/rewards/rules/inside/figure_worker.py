"""Runs one plotting program and reads the figure that it made: what is plotted, written and coloured where, and a picture.

The figure is the last one that the program saved or, if it saved none, the last one with axes. Saving and closing do
nothing: paths do not exist here, and figures must stay. Drawing is done here, at a size of ours.
"""

import collections
import functools
import math
import random
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import prefork
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

MOST_VALUES, MOST_TEXTS, MOST_SERIES, MOST_AXES, LONGEST_TEXT = 5000, 300, 300, 64, 200
KINDS = """
    bar barh boxplot broken_barh contour contourf errorbar eventplot fill_between fill_betweenx hexbin hist hist2d hlines
    imshow loglog matshow pcolormesh pie plot quiver scatter semilogx semilogy stackplot stairs stem step streamplot
    tricontourf violinplot vlines
""".split()
saved = []
calls = collections.defaultdict(list)  # axes to the outermost plotting methods that were called on them
depth = 0


def record(kind, method):
    @functools.wraps(method)
    def recorded(axes, *arguments, **named):
        global depth
        depth += 1
        try:
            made = method(axes, *arguments, **named)
        finally:
            depth -= 1
        if depth == 0:
            calls[axes].append(kind)
        return made

    return recorded


def prepare():
    """Before the first fork: fonts, and what a program finds when it imports matplotlib."""
    figure, axes = plt.subplots()
    axes.legend(axes.plot([0, 1]), ["a"])
    FigureCanvasAgg(figure).draw()
    plt.close(figure)
    for kind in KINDS:
        if hasattr(Axes, kind):
            setattr(Axes, kind, record(kind, getattr(Axes, kind)))
    Figure.savefig = lambda figure, *arguments, **named: saved.append(figure)
    plt.savefig = lambda *arguments, **named: saved.append(plt.gcf())
    plt.close = plt.show = plt.pause = plt.switch_backend = matplotlib.use = lambda *arguments, **named: None


def work(item, settings):
    random.seed(0)
    np.random.seed(0)
    sys.argv = ["plot.py"]
    try:
        exec(compile(item, "plot.py", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        if error.code not in (None, 0):
            raise prefork.Refused(f"the program ends with status {error.code}") from None
    figure = made()
    pixels = picture(figure, settings["size"])
    return (facts(figure) if settings["facts"] else {}), pixels


def made():
    with_axes = [figure for figure in (*map(plt.figure, plt.get_fignums()), *saved) if figure.axes]
    if not with_axes:
        raise prefork.Refused("the program makes no figure with axes")
    return with_axes[-1]


def picture(figure, size):
    """RGB bytes, size x size: the figure as large as it fits, in the middle of white."""
    width, height = map(float, figure.get_size_inches())
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise prefork.Refused(f"a figure of {width:g} x {height:g} inches")
    figure.set_dpi(size / max(width, height))
    if min(width, height) * figure.dpi < 1:
        raise prefork.Refused(f"a figure of {width:g} x {height:g} inches has no area")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba(), dtype=np.float64)[:size, :size] / 255
    drawn = drawn[..., :3] * drawn[..., 3:] + 1 - drawn[..., 3:]
    square = np.ones((size, size, 3))
    top, left = (size - drawn.shape[0]) // 2, (size - drawn.shape[1]) // 2
    square[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return (255 * square).round().astype(np.uint8).tobytes()


# --- what the figure says; it has been drawn, so that tick labels are known -------------------------------------------


def facts(figure):
    axes = [each for each in figure.axes if each.get_visible() and not hasattr(each, "_colorbar")][:MOST_AXES]
    return {
        "layout": layout(axes),
        "texts": texts(*figure.texts),
        "axes": [of_axes(each) for each in axes],
    }


def layout(axes):
    """Rows, columns, and where each of the axes lies among them."""
    specs = [each.get_subplotspec() for each in axes]
    places = [list(map(int, spec.get_geometry())) for spec in specs if spec is not None]
    rows = max((place[0] for place in places), default=1)
    columns = max((place[1] for place in places), default=len(axes))
    return {"rows": rows, "columns": columns, "places": places}


def of_axes(axes):
    legend = axes.get_legend()
    lines = [line for line in axes.lines if shown(line)][:MOST_SERIES]
    bars = [each for each in axes.containers if isinstance(each, BarContainer)][:MOST_SERIES]
    groups = [each for each in axes.collections if shown(each)][:MOST_SERIES]
    patches = [each for each in axes.patches if shown(each)][:MOST_VALUES]
    return {
        "types": list(dict.fromkeys(calls[axes])),
        "title": texts(axes.title, axes._left_title, axes._right_title),
        "xlabel": texts(axes.xaxis.label),
        "ylabel": texts(axes.yaxis.label),
        "ticks": texts(*axes.get_xticklabels(), *axes.get_yticklabels()),
        "legend": texts(legend.get_title(), *legend.get_texts()) if legend and legend.get_visible() else [],
        "notes": texts(*axes.texts),
        "series": series(lines, bars, groups, patches, axes.images),
        "colors": colors(lines, groups, patches) + [f"map:{each.get_cmap().name}" for each in axes.images[:9]],
    }


def shown(artist):
    return artist.get_visible() and artist.get_alpha() != 0


def texts(*artists):
    found = [each.get_text().strip()[:LONGEST_TEXT] for each in artists if shown(each)]
    return list(filter(None, found))[:MOST_TEXTS]


def series(lines, bars, groups, patches, images):
    """Lists of numbers, in drawing order, at most MOST_VALUES together; x and y are lists of their own."""
    found = [column for line in lines for column in columns(line.get_xydata())]
    found += [column for container in bars for column in bar_columns(container)]
    for group in groups:
        if isinstance(group, PathCollection):
            found += columns(group.get_offsets())
        elif isinstance(group, QuadMesh):
            found.append(group.get_array())
        else:
            found += columns(np.concatenate([path.vertices for path in group.get_paths()] or [np.zeros((0, 2))]))
    angles = [patch.theta2 - patch.theta1 for patch in patches if isinstance(patch, Wedge)]
    found += [[angle / 360 for angle in angles], *(image.get_array() for image in images[:MOST_SERIES])]
    return limited(found)


def columns(points):
    return list(np.ma.asarray(points).T)


def bar_columns(container):
    """The middles of the bars and their lengths."""
    if container.orientation == "horizontal":
        return [bar.get_y() + bar.get_height() / 2 for bar in container], [bar.get_width() for bar in container]
    return [bar.get_x() + bar.get_width() / 2 for bar in container], [bar.get_height() for bar in container]


def limited(found):
    room, kept = MOST_VALUES, []
    for values in found:
        numbers = np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan).ravel()[:room]
        kept.append([float(f"{number:.6g}") for number in numbers if np.isfinite(number)])
        room -= len(kept[-1])
    return [numbers for numbers in kept if numbers]


def colors(lines, groups, patches):
    """Of lines, faces and markers, as #rrggbb; what is transparent has none."""
    found = [line.get_color() for line in lines]
    found += [patch.get_facecolor() for patch in patches]
    for group in groups:
        if isinstance(group, Collection):
            faces = group.get_facecolor()
            found += list(faces if len(faces) else group.get_edgecolor())[:MOST_VALUES]
    seen = {}
    for color in found:
        if isinstance(color, str) or color[-1] > 0 or len(color) == 3:
            seen[to_hex(color)] = None
    return list(seen)[:MOST_SERIES]


if __name__ == "__main__":
    prepare()
    prefork.serve(work)
