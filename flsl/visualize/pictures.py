"""The sheets: attention, principal components, segments, use of prototypes, and their nearest patches."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from flsl.model.mean_shift import attention_map
from flsl.visualize.choose import Source, View, square
from flsl.visualize.colours import Colours, as_rgb, heat, segment_colours
from flsl.visualize.models import Looked
from flsl.visualize.prototypes import Usage
from flsl.visualize.sheet import sheet

CELL = 144
# of the queries, as shares of the student's view
_PLACES = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.75), (0.25, 0.75), (0.75, 0.25))
_MARKS = ("#00e5ff", "#ff4dd2", "#7cff4d", "#ffffff", "#ffb000")
_CONTEXT = 2


def query_indices(grid: int, count: int) -> list[int]:
    """Return the patches, row by row on a grid × grid, that serve as queries: the middle, then the corners' middles."""
    return [int(row * grid) * grid + int(column * grid) for row, column in _PLACES[:count]]


def attention_sheet(
    models: Sequence[Looked],
    views: Sequence[View],
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    queries: int,
) -> Image.Image:
    """Draw each query's mean-shift attention over the student's and the teacher's view.

    Args:
        models: the encoders.
        views: of the images.
        students: of each encoder, the tokens (images, N, C) of the students' views.
        teachers: likewise of the teachers' views.
        queries: their number.
    """
    columns = ["teacher's view", "student's view"]
    for number in range(1, queries + 1):
        columns += [f"query {number}: self-attention", f"query {number}: cross-attention"]
    rows = []
    for index, one in enumerate(views):
        for number, model in enumerate(models):
            grid = round(students[number].shape[1] ** 0.5)
            picked = query_indices(grid, queries)
            tokens = students[number][index : index + 1]
            own = attention_map(tokens[:, picked], tokens, model.tau_sa)[0]
            cross = attention_map(tokens[:, picked], teachers[number][index : index + 1], model.tau_ca)[0]
            pictures = [_boxed(one), _marked(one.student, picked, grid)]
            for query in range(queries):
                pictures.append(_marked(_heated(own[query], one.student), picked[query : query + 1], grid, query))
                pictures.append(_heated(cross[query], one.teacher))
            label = one.name if len(models) == 1 else f"{one.name} {model.label}"
            rows.append((label, pictures))
    note = (
        "A query's attention among the patches of its own view (softmax with tau_sa) and of the teacher's view (with "
        "tau_ca), each relative to its largest weight. The box is where the student's view lies in the teacher's."
    )
    return sheet("Mean-shift attention", note, columns, rows, CELL)


def components_sheet(labels: Sequence[str], views: Sequence[View], parts: Sequence[NDArray[np.float64]]) -> Image.Image:
    """Draw the first three principal components of the patches (of each encoder, (images, N, 3)) as RGB."""
    colours = [as_rgb(one) for one in parts]
    rows = [
        (one.name, [_photo(one.teacher), *(_blocks(each[index]) for each in colours)])
        for index, one in enumerate(views)
    ]
    note = (
        "Patches of like colour have like features: the first three principal components over all images shown, as "
        "red, green and blue. Components are matched between encoders."
    )
    return sheet("Principal components of the patch features", note, ["image", *labels], rows, CELL)


def segments_sheet(
    labels: Sequence[str], views: Sequence[View], assignments: Sequence[NDArray[np.int64]], reference: int
) -> Image.Image:
    """Draw which prototype each patch's mode is assigned to (of each encoder, (images, N)) as a segmentation."""
    colours = segment_colours(list(assignments), reference)
    rows = []
    for index, one in enumerate(views):
        photo = np.asarray(_photo(one.teacher)).mean(-1, keepdims=True)
        shown = [_photo(one.teacher)]
        for each in colours:
            blocks = np.asarray(_blocks(each[index])).astype(float)
            shown.append(Image.fromarray((0.72 * blocks + 0.28 * photo).round().astype(np.uint8)))
        rows.append((one.name, shown))
    note = (
        "A colour is a prototype that the patches' modes are assigned to. Encoders are coloured alike: a prototype "
        "takes the colour of the one that it shares the most patches with."
    )
    return sheet("Modes assigned to prototypes", note, ["image", *labels], rows, CELL)


def prototypes_sheet(
    label: str, usage: Usage, images: Sequence[Source], chosen: Sequence[int], size: int, grid: int
) -> Image.Image:
    """Draw the nearest patches of the chosen prototypes, each with what is around it."""
    patch = size // grid
    opened: dict[int, Image.Image] = {}
    rows = []
    total = int(usage.counts.sum())
    for prototype in chosen:
        pictures = []
        for rank in range(len(usage.image)):
            index, place = int(usage.image[rank, prototype]), int(usage.patch[rank, prototype])
            if index not in opened:
                opened[index] = square(images[index], size)
            pictures.append(_around(opened[index], place // grid * patch, place % grid * patch, patch))
        rows.append((f"{prototype}: {100 * int(usage.counts[prototype]) / total:.1f} % of patches", pictures))
    note = (
        "Each row is a prototype, most used first: the patches (in the frame, with their surroundings) whose modes are "
        "nearest to it, one of an image."
    )
    columns = [str(rank + 1) for rank in range(len(usage.image))]
    return sheet(f"Nearest patches of the prototypes, {label}", note, columns, rows, 96)


def usage_chart(labels: Sequence[str], usages: Sequence[Usage], images: int) -> Image.Image:
    """Draw how many patches each prototype has, most used first, of each encoder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # the key stands below, a line an encoder
    figure = Figure(figsize=(8, 4 + 0.19 * len(labels)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for label, usage in zip(labels, usages, strict=True):
        share = 100 * usage.counts.sort(descending=True).values.double() / usage.counts.sum()
        used = share[share > 0]
        text = f"{label}: {usage.used} of {len(usage.counts)} used, perplexity {usage.perplexity:.1f}"
        # a single one makes no line
        mark = "o" if len(used) == 1 else None
        axes.step(np.arange(1, len(used) + 1), used.numpy(), where="mid", label=text, marker=mark)
    for count in {len(usage.counts) for usage in usages}:
        axes.axhline(100 / count, color="grey", linestyle=":")
        at, place = (0.995, 100 / count), axes.get_yaxis_transform()
        axes.annotate(f"even use of {count}", at, xycoords=place, ha="right", va="bottom", color="grey", fontsize=8)
    axes.set(
        xlabel="prototypes, most used first",
        ylabel="patches (%)",
        yscale="log",
        title=f"Use of the prototypes, {images} images",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower left")
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    with Image.open(buffer) as image:
        return image.convert("RGB")


def _photo(image: Image.Image) -> Image.Image:
    return image.resize((CELL, CELL), Image.Resampling.BICUBIC)


def _blocks(patches: Colours) -> Image.Image:
    """Return patches (g · g, 3) as a picture of squares."""
    side = round(len(patches) ** 0.5)
    return Image.fromarray(patches.reshape(side, side, 3)).resize((CELL, CELL), Image.Resampling.NEAREST)


def _heated(weights: Tensor, image: Image.Image) -> Image.Image:
    side = round(len(weights) ** 0.5)
    spread = Image.fromarray(weights.reshape(side, side).float().cpu().numpy())
    large = np.asarray(spread.resize((CELL, CELL), Image.Resampling.NEAREST), dtype=np.float64)
    return Image.fromarray(heat(large, np.asarray(_photo(image))))


def _marked(image: Image.Image, patches: Sequence[int], grid: int, first: int = 0) -> Image.Image:
    """Frame patches of a picture, in the colours of the queries from ``first`` on."""
    made = _photo(image)
    pen, side = ImageDraw.Draw(made), CELL / grid
    for number, patch in enumerate(patches, first):
        left, top = patch % grid * side, patch // grid * side
        pen.rectangle((left, top, left + side, top + side), outline=_MARKS[number], width=3)
    return made


def _boxed(one: View) -> Image.Image:
    made, scale = _photo(one.teacher), CELL / one.teacher.width
    top, left, height, width = (scale * number for number in one.box)
    ImageDraw.Draw(made).rectangle((left, top, left + width - 1, top + height - 1), outline="#ffffff", width=2)
    return made


def _around(image: Image.Image, top: int, left: int, patch: int) -> Image.Image:
    """Return a patch framed within its surroundings, shifted where the image ends."""
    side = min(image.width, (2 * _CONTEXT + 1) * patch)
    x, y = (min(max(0, start - _CONTEXT * patch), image.width - side) for start in (left, top))
    scale = 96 / side
    made = image.crop((x, y, x + side, y + side)).resize((96, 96), Image.Resampling.BICUBIC)
    corner = (scale * (left - x), scale * (top - y))
    end = (corner[0] + scale * patch - 1, corner[1] + scale * patch - 1)
    ImageDraw.Draw(made).rectangle((*corner, *end), outline=_MARKS[0], width=2)
    return made


def effective_keys(queries: Tensor, keys: Tensor, temperature: float) -> float:
    """Return how many keys mean-shift attention is spread over: exp of its mean entropy, in percent of N.

    Args:
        queries: (images, M, C).
        keys: (images, N, C).
        temperature: τ.
    """
    entropies = []
    for own, others in zip(queries, keys, strict=True):  # M × N numbers, of an image at a time
        weights = attention_map(own[None], others[None], temperature)
        entropies.append(-torch.xlogy(weights, weights).sum(-1).mean())
    return float(100 * torch.exp(torch.stack(entropies).mean()) / keys.shape[1])
