"""FLSL's views of one image and the sampling of queries (arXiv 2306.06203).

The CPU decodes an image and makes one crop, the teacher's, as 8-bit pixels. Everything else happens in batches on the
training device: the student's views are crops of that crop. What happens to sample i in epoch e is a function of
(seed, e, i): its uniform numbers are drawn from a generator seeded with the three, and all parameters follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flsl.config.pretrain import PretrainSettings
from flsl.data.crops import (
    CROP_DRAWS,
    apply_matrices,
    random_resized_boxes,
    random_resized_crop,
    resize_matrices,
)
from flsl.data.fused_views import FusedOperations, coloured, cropped
from flsl.data.photometric import (
    PHOTOMETRIC_DRAWS,
    PhotometricParameters,
    apply_photometric,
    draw_photometric,
)
from flsl.data.statistics import IMAGENET_MEAN, IMAGENET_STD

_REFERENCE_SIZE = 224


@dataclass(frozen=True)
class StudentParameters:
    """Parameters of a group of equally large student views; group size G = views × batch, view by view.

    Attributes:
        boxes: (G, 4) top, left, height, width in the teacher's crop, in pixels.
        colours: the colour changes.
        queries: (G, M) indices of the sampled tokens.
        drop_path: (G, 2 × depth) uniform numbers for stochastic depth.
    """

    boxes: Tensor
    colours: PhotometricParameters
    queries: Tensor
    drop_path: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> StudentParameters:
        """Return parameters of which ``change`` made every tensor."""
        return StudentParameters(
            change(self.boxes), self.colours.each(change), change(self.queries), change(self.drop_path)
        )


@dataclass(frozen=True)
class Batch:
    """What the data loader hands over.

    Attributes:
        crops: (batch, 3, T, T) the teacher's crops, uint8.
        teacher: their colour changes.
        students: the groups of student views: the global one, and the local ones where there are any.
    """

    crops: Tensor
    teacher: PhotometricParameters
    students: list[StudentParameters]

    def to(self, device: torch.device) -> Batch:
        """Move everything to a device, without waiting where the memory is pinned."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy everything to page-locked memory."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch of which ``change`` made every tensor."""
        return Batch(change(self.crops), self.teacher.each(change), [group.each(change) for group in self.students])


class FLSLViews:
    """Makes the views of a batch; see the module's text.

    Args:
        settings: of the pretraining (views, patch size and query sampling are read).
        depth: blocks of the encoder, each of which takes two numbers for stochastic depth.

    >>> views = FLSLViews(PretrainSettings(), depth=12)
    >>> numbers = np.stack([views.draw(seed=0, epoch=0, index=i) for i in range(2)])
    >>> crops = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8)
    >>> teacher, students = views(views.batch(crops, numbers))
    >>> teacher.shape, [tuple(view.shape) for view in students]
    (torch.Size([2, 3, 224, 224]), [(2, 3, 224, 224), (4, 3, 96, 96)])
    """

    def __init__(self, settings: PretrainSettings, depth: int) -> None:
        self._settings = settings.views
        self._window, self._sampling = settings.query_window, settings.query_sampling
        self._blur_scale = settings.views.teacher_size / _REFERENCE_SIZE
        views = settings.views
        patch = settings.encoder.patch_size
        # of each group: how many views, their side in pixels and in tokens, and the range of their area
        self._groups = [(1, views.global_size, views.global_size // patch, views.global_scale)]
        if views.local_crops:
            self._groups.append((views.local_crops, views.local_size, views.local_size // patch, views.local_scale))
        self._depth = depth
        # kept on each device: copying them there every time would make a GPU wait
        self._mean_and_std: dict[torch.device, Tensor] = {}
        self.draws = (
            CROP_DRAWS + PHOTOMETRIC_DRAWS + sum(n * self._student_draws(grid) for n, _, grid, _ in self._groups)
        )

    def _student_draws(self, grid: int) -> int:
        return CROP_DRAWS + PHOTOMETRIC_DRAWS + query_draws(grid, self._window) + 2 * self._depth

    def draw(self, seed: int, epoch: int, index: int) -> NDArray[np.float64]:
        """Return the uniform numbers (draws,) of sample ``index`` in ``epoch``."""
        return np.random.default_rng((seed, epoch, index)).random(self.draws)

    def crop(self, image: Tensor, numbers: NDArray[np.float64]) -> Tensor:
        """Make the teacher's crop (3, T, T), uint8, of an image (3, height, width); the only pixel work of the CPU."""
        scale = self._settings.teacher_scale
        return random_resized_crop(image, numbers[:CROP_DRAWS], (scale[0], scale[1]), self._settings.teacher_size)

    def batch(self, crops: Tensor, numbers: NDArray[np.float64]) -> Batch:
        """Turn crops (batch, 3, T, T) and numbers (batch, draws) into what the training step takes."""
        size = self._settings.teacher_size
        at = CROP_DRAWS
        teacher = draw_photometric(numbers[:, at : at + PHOTOMETRIC_DRAWS], self._settings, self._blur_scale)
        at += PHOTOMETRIC_DRAWS
        students = []
        for count, _, grid, scale in self._groups:
            each = self._student_draws(grid)
            # view by view: the first view of all samples, then the second
            own = np.concatenate([numbers[:, at + view * each : at + (view + 1) * each] for view in range(count)])
            at += count * each
            crop, colour, query, drop = np.split(
                own,
                np.cumsum([CROP_DRAWS, PHOTOMETRIC_DRAWS, query_draws(grid, self._window)]),
                axis=1,
            )
            students.append(
                StudentParameters(
                    boxes=torch.from_numpy(random_resized_boxes(crop, size, size, (scale[0], scale[1]))),
                    colours=draw_photometric(colour, self._settings, self._blur_scale),
                    queries=sample_queries(grid, self._window, torch.from_numpy(query), self._sampling),
                    drop_path=torch.from_numpy(drop.astype(np.float32)),
                )
            )
        return Batch(crops, teacher, students)

    @torch.no_grad()
    def __call__(self, batch: Batch, fused: FusedOperations | None = None) -> tuple[Tensor, list[Tensor]]:
        """Make the views on the batch's device.

        Args:
            batch: of :meth:`batch`.
            fused: operations that make them in few passes; None: one after another, each on the images it changes.

        Returns:
            The teacher's views (batch, 3, T, T), and a tensor of student views (views × batch, 3, S, S) for each size;
            all normalised, float32.
        """
        sigma = self._blur_scale * self._settings.blur_radius[1]
        statistics = self._statistics(batch.crops.device)
        if fused is not None:
            pixels = batch.crops.float()
            students = [
                coloured(cropped(pixels, *matrices), group.colours, sigma, statistics, fused)
                for matrices, group in zip(self._matrices(batch, fused), batch.students, strict=True)
            ]
            return coloured(batch.crops.unbind(1), batch.teacher, sigma, statistics, fused), students

        def finish(images: Tensor, colours: PhotometricParameters) -> Tensor:
            return (apply_photometric(images, colours, sigma) - statistics[0]) / statistics[1]

        teacher, crops = self.crops(batch)
        return finish(teacher, batch.teacher), [
            finish(images, group.colours) for images, group in zip(crops, batch.students, strict=True)
        ]

    @torch.no_grad()
    def crops(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Make the views without their changes of colour, in shapes as those of a call, in [0, 1]."""
        images = batch.crops.float() / 255
        return images, [
            apply_matrices(images.repeat(count, 1, 1, 1), *matrices).clamp_(0, 1)
            for (count, _, _, _), matrices in zip(self._groups, self._matrices(batch), strict=True)
        ]

    def _matrices(self, batch: Batch, fused: FusedOperations | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the matrices that crop and resize the rows and the columns of each group's views."""
        make = resize_matrices if fused is None else fused.matrices
        height, width = batch.crops.shape[2:]
        for (_, size, _, _), group in zip(self._groups, batch.students, strict=True):
            top, left, rows, columns = group.boxes.unbind(1)
            yield make(top, rows, height, size), make(left, columns, width, size)

    def _statistics(self, device: torch.device) -> Tensor:
        """Return the images' mean and standard deviation, (2, 3, 1, 1)."""
        if device not in self._mean_and_std:
            self._mean_and_std[device] = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=device)[..., None, None]
        return self._mean_and_std[device]


def query_draws(grid: int, window: int) -> int:
    """Return how many uniform numbers :func:`sample_queries` takes: a corner, and one a window."""
    return 1 + (grid // window) ** 2


def sample_queries(grid: int, window: int, uniforms: Tensor, sampling: str = "random") -> Tensor:
    """Sample one token of each window of the token grid (the paper's random pooling).

    When the window does not divide the grid, the largest square that it does divide lies in one of the four corners, at
    random.

    Args:
        grid: tokens n of a side.
        window: side w of a window, in tokens; at most ``grid``.
        uniforms: (batch, 1 + ⌊n/w⌋²) numbers in [0, 1).
        sampling: ``random``, or ``first`` for each window's first token, the square in the first corner.

    Returns:
        (batch, ⌊n/w⌋²) indices into the n·n tokens, row by row, window by window.

    >>> sample_queries(4, 2, torch.zeros(1, 5))
    tensor([[ 0,  2,  8, 10]])
    """
    count = grid // window
    slack = grid - count * window
    if sampling == "first":
        uniforms = torch.zeros_like(uniforms)
    corner = (uniforms[:, :1] * 4).long()
    within = (uniforms[:, 1:] * window * window).long()
    windows = torch.arange(count * count, device=uniforms.device)
    row = windows // count * window + within // window + slack * (corner // 2)
    column = windows % count * window + within % window + slack * (corner % 2)
    return row * grid + column
