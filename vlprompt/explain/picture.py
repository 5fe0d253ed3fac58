"""The drawing of an explanation: the photo, and a row of panels for each of both models."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from vlprompt.explain.maps import Explanation, Side
from vlprompt.reports.figures.style import COLOURS, GREY, TEXT, new_figure, short, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP = 5  # classes
COLOUR_MAP = "viridis"  # reads alike for the colour-blind, and in grey
PHOTO, PANEL = 1.75, 1.5  # sides in inches
LEFT = (0.06, 1.94, 3.57, 5.26)  # of the photo, the two maps and the classes
ROW, BAR, TITLE, HEADING = 2.1, 0.08, 0.18, 0.24  # heights; a row has a title, a panel, a bar of colours and its label
NOTE = 0.13  # of a line of notes
LUMINANCE = (0.299, 0.587, 0.114)
LABELS = {"cosine": "cosine of patch and text", "logit": "its logit from each patch alone"}
SHADE = 0.6  # brightness that the darkest places of the photo leave to the colours


def draw(explanation: Explanation, title: str) -> "Figure":
    """The photo; then attention, similarity and probabilities of the frozen model, and those of the adapted one.

    What has no meaning for a model is an empty panel, and words below say why.
    """
    sides = {"frozen": explanation.frozen, explanation.method: explanation.adapted}
    notes = dict.fromkeys(note for side in sides.values() for note in side.notes)
    with styled():
        lines = [line for note in notes for line in wrapped(note, 72 * TEXT * 1.07)]
        height = HEADING + 2 * ROW + NOTE * (len(lines) + 1)
        figure = new_figure(TEXT, height)
        figure.set_layout_engine("none")
        figure.suptitle(short(title, 72 * TEXT * 0.84), y=1 - 0.05 / height, va="top")

        def add(left: float, below: float, width: float, tall: float) -> "Axes":
            """Axes whose top is so many inches below the top of the figure."""
            return figure.add_axes((left / TEXT, 1 - (below + tall) / height, width / TEXT, tall / height))

        _photo(add(LEFT[0], HEADING + ROW - PHOTO / 2, PHOTO, PHOTO), explanation)
        limits = _limits([side.rollout for side in sides.values()])
        for row, (name, side) in enumerate(sides.items()):
            below = HEADING + TITLE + row * ROW
            columns = [
                (add(left, below, PANEL, PANEL), add(left, below + PANEL + 0.05, PANEL, BAR)) for left in LEFT[1:3]
            ]
            learned = f"; {side.learned:.0%} is learned" if side.learned >= 0.005 else ""
            _heat(*columns[0], explanation, side.rollout, f"{name}: attention", f"× mean{learned}", limits)
            _heat(*columns[1], explanation, side.similarity, _predicted(explanation, side), LABELS[side.unit])
            _bars(add(LEFT[3], below, TEXT - LEFT[3] - 0.12, PANEL), explanation, side)
        for i, line in enumerate(lines):
            y = 1 - (HEADING + 2 * ROW + NOTE * (i + 1)) / height
            figure.text(0.01, y, short(line, 72 * TEXT), color="0.35", va="center")
    return figure


def _photo(axes: "Axes", explanation: Explanation) -> None:
    axes.imshow(explanation.photo.permute(1, 2, 0).numpy())
    axes.set_title("as the model sees it")
    axes.axis("off")


def _predicted(explanation: Explanation, side: Side) -> str:
    if side.probabilities is None:
        return ""
    return f"“{explanation.classes[int(side.probabilities.argmax())].replace('_', ' ')}”"


def _limits(maps: Sequence[Any]) -> tuple[float, float] | None:
    """One range of colours for all of them."""
    values = [float(v) for one in maps if one is not None for v in (one.min(), one.max())]
    return (min(values), max(values)) if values else None


def _heat(
    axes: "Axes",
    bar: "Axes",
    explanation: Explanation,
    values: Any,
    title: str,
    label: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """A map in colours, which the photo shades, and its scale."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    axes.axis("off")
    if values is None:
        bar.remove()
        axes.text(0.5, 0.5, "see below", transform=axes.transAxes, ha="center", va="center", color="0.5")
        return
    axes.set_title(short(title, 72 * PANEL))
    low, high = limits or (float(values.min()), float(values.max()))
    scale = Normalize(low, max(high, low + 1e-6))
    photo = explanation.photo.permute(1, 2, 0).numpy()
    colours = colormaps[COLOUR_MAP](scale(_as_large(values.numpy(), *photo.shape[:2])))[..., :3]
    axes.imshow(colours * _shade(photo)[..., None])
    drawn = axes.figure.colorbar(ScalarMappable(scale, COLOUR_MAP), cax=bar, orientation="horizontal")
    drawn.outline.set_visible(False)
    drawn.locator = MaxNLocator(3)
    drawn.update_ticks()
    bar.set_xlabel(short(label, 72 * PANEL))


def _as_large(values: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "H W"]:
    """Each patch as large as it is in the photo."""
    rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), values.shape, strict=True))
    return values[rows[:, None], columns]


def _shade(photo: np.ndarray) -> Float[np.ndarray, "H W"]:
    """The photo's brightness, stretched, from SHADE to 1."""
    grey = photo @ np.asarray(LUMINANCE)
    low, high = np.percentile(grey, (2, 98))
    return SHADE + (1 - SHADE) * np.clip((grey - low) / max(high - low, 1.0), 0, 1)


def _bars(axes: "Axes", explanation: Explanation, side: Side) -> None:
    """The likeliest classes."""
    if side.probabilities is None:
        axes.axis("off")
        return
    best = side.probabilities.topk(min(TOP, len(explanation.classes)))
    values = [100 * p for p in best.values.tolist()]
    axes.barh(range(len(values)), values, height=0.35, align="edge", color=[COLOURS[0], *[GREY] * (len(values) - 1)])
    for y, (label, value) in enumerate(zip(best.indices.tolist(), values, strict=True)):
        name = short(explanation.classes[label].replace("_", " "), 72 * (TEXT - LEFT[3] - 0.47))
        axes.text(0, y - 0.06, f"{name}  {value:.1f}", va="bottom")
    axes.set(xlim=(0, 100), ylim=(TOP - 0.4, -0.5), yticks=[], xlabel="probability (%)")
    axes.spines["left"].set_visible(False)
