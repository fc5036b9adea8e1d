"""bbox-aligned k-NN: do single patches of an object tell its class? The ablation measure of FLSL (arXiv 2306.06203)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flsl.config.experiment import Experiment
from flsl.data.boxes import Boxes, CsvBoxes, XmlBoxes, find_boxes
from flsl.data.images import ImageSet
from flsl.data.order import Key
from flsl.model.backbone import Backbone
from flsl.model.choice import EncoderChoice
from flsl.model.neighbours import top_neighbours, vote
from flsl.probe.encoder import feature_function, load_frozen
from flsl.probe.images import ImageSource, check_labels
from flsl.probe.loading import CentreCrop, batches, in_order
from flsl.probe.store import check_finite
from flsl.runtime.distributed import choose_device, describe, fitting
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import StageRecord
from flsl.runtime.progress import bar

PATCHES = 9
_NONE = -1


@fitting("aligned_knn.memory_mb, features.batch_size: too much for the GPU's memory; lower them")
def classify(
    experiment: Experiment, choice: EncoderChoice, source: ImageSource, boxes: str | None, out: Path, run: str
) -> dict[str, Any]:
    """Classify nine patches of each validation image's largest box by their neighbours among the training patches.

    Args:
        experiment: its ``aligned_knn``, ``features`` and ``compute`` settings are read.
        choice: the encoder.
        source: the images.
        boxes: CSV file or folder of XML files below the images' root.
        out: folder to write ``metrics.json`` to.
        run: the run's name for the record.

    Returns:
        what ``metrics.json`` holds, in percent, for each k: ``aligned_knn/patch_top1@<k>`` of all patches,
        ``aligned_knn/image_top1@<k>`` of images by the majority of their patches (equal ones by the sum of the patches'
        shares of votes), ``aligned_knn/any_of_nine@<k>`` of images with any right patch (the released code's figure);
        and how many images were left out.

    Raises:
        UserError: when the images, labels, boxes or the encoder do not serve.
    """
    settings, device = experiment.aligned_knn, choose_device(experiment.compute.device)
    if boxes is None:
        raise UserError("data.images.boxes: the aligned k-NN needs boxes; name a folder of XML files or a CSV file")
    sets = source.load()
    labels = check_labels(*sets)
    backbone = load_frozen(choice, experiment, device)
    params = {**settings.plain(), "features": experiment.features.plain()}
    record = StageRecord("aligned_knn", run, params, [*source.inputs, *choice.inputs], describe(device))
    patches, patch_labels, counts = [], [], {}
    for images, named in zip(sets, labels, strict=True):
        features, used, left_out = _patches(experiment, backbone, images, boxes, device)
        patches.append(features.flatten(0, 1))
        patch_labels.append(named[used])
        counts[images.split] = left_out
    (bank, queries), (bank_labels, query_labels) = patches, patch_labels
    if max(settings.k) > len(bank):
        raise UserError(f"aligned_knn.k: {max(settings.k)} neighbours are asked for, but there are {len(bank)} patches")
    similarities, indices = top_neighbours(queries, bank, max(settings.k), settings.memory_mb, device, progress=True)
    neighbour_labels = bank_labels.repeat_interleave(PATCHES).to(device)[indices]
    metrics: dict[str, float] = {}
    for k in sorted(set(settings.k)):
        figures = judge(
            similarities[:, :k],
            neighbour_labels[:, :k],
            query_labels.to(device),
            len(sets[0].class_names),
            settings.temperature,
            settings.memory_mb,
        )
        metrics |= {f"aligned_knn/{name}@{k}": value for name, value in figures.items()}
    return record.write(out / "metrics.json", metrics, images=counts)


def judge(
    similarities: Tensor, neighbours: Tensor, labels: Tensor, classes: int, temperature: float, memory_mb: int
) -> dict[str, float]:
    """Return the figures of patches whose neighbours are known.

    Args:
        similarities: (images × 9, k), an image's patches one after the other.
        neighbours: (images × 9, k), classes of the neighbours.
        labels: (images,), the images' classes.
        classes: number of classes.
        temperature: of the vote weights.
        memory_mb: for the votes of a chunk of images, in MiB.

    Returns:
        ``patch_top1``, ``image_top1`` and ``any_of_nine``, in percent.
    """
    rows = max(1, memory_mb * 2**20 // (classes * PATCHES * 8 * 4))
    patch = image = anyone = 0
    for start in range(0, len(labels), rows):
        own = labels[start : start + rows]
        part = slice(start * PATCHES, (start + rows) * PATCHES)
        shares = vote(similarities[part], neighbours[part], classes, temperature).view(len(own), PATCHES, classes)
        predicted = shares.argmax(2)  # of equal shares the first class
        ballots = F.one_hot(predicted, classes).sum(1)
        leading = ballots == ballots.max(1, keepdim=True).values
        elected = torch.where(leading, shares.sum(1), -1.0).argmax(1)
        right = predicted == own[:, None]
        patch += int(right.sum())
        image += int((elected == own).sum())
        anyone += int(right.any(1).sum())
    count = len(labels)
    return {
        "patch_top1": 100 * patch / (count * PATCHES),
        "image_top1": 100 * image / count,
        "any_of_nine": 100 * anyone / count,
    }


def nine_patches(boxes: Boxes, side: int, patch_size: int) -> NDArray[np.int64]:
    """Return the patches under the centres of the largest box's 3×3 cells.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the crop, clipped to it; of equally large ones the first counts.
        side: of the crop, in pixels.
        patch_size: in pixels.

    Returns:
        (9,) indices of patches, row by row, of the box's cells row by row; all -1 where no box has an area.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    if not len(boxes) or areas.max() <= 0:
        return np.full(PATCHES, _NONE)
    x0, y0, x1, y1 = boxes[areas.argmax()]
    places = np.array([1, 3, 5]) / 6
    grid = side // patch_size
    # clipped against rounding only: centres of cells lie within the crop
    columns = ((x0 + places * (x1 - x0)) // patch_size).astype(np.int64).clip(0, grid - 1)
    rows = ((y0 + places * (y1 - y0)) // patch_size).astype(np.int64).clip(0, grid - 1)
    patches: NDArray[np.int64] = (rows[:, None] * grid + columns).ravel()
    return patches


@dataclass(frozen=True)
class _CropAndPatches:
    """Makes an image's crop, and finds the patches of its largest box there, and how many boxes it has."""

    crop: CentreCrop
    boxes: CsvBoxes | XmlBoxes
    patch_size: int

    def __call__(self, image: Image.Image, key: Key) -> tuple[Tensor, Tensor, int]:
        boxes = self.boxes.read(key[1], image.size)
        moved = self.crop.boxes(boxes, image.width, image.height)
        places = nine_patches(moved, self.crop.crop, self.patch_size)
        return self.crop(image, key), torch.from_numpy(places), len(boxes)


def _patches(
    experiment: Experiment, backbone: Backbone, images: ImageSet, boxes: str, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Return the nine patches' features (images, 9, C) as unit vectors in float16, and of which images they are.

    float16 halves the memory of millions of patches; its rounding moves a cosine by less than 0.001.
    """
    settings = experiment.features
    found = find_boxes(images.root, boxes, images.paths)
    make = _CropAndPatches(CentreCrop(settings.resize, settings.crop), found, backbone.patch_size)
    tokens = feature_function(backbone, device, settings.precision, last_n=1)
    features = torch.empty(len(found.images), PATCHES, backbone.width, dtype=torch.float16)
    used: list[int] = []
    boxed = 0
    keys = in_order(found.images.tolist(), settings.batch_size)
    with bar(f"patches of {images.split}", len(found.images)) as shown:
        for indices, (crops, places, counts) in batches(images.load, make, keys, experiment.compute.workers, device):
            seen = places[:, 0] != _NONE
            boxed += int((counts > 0).sum())
            indices, crops, places = indices[seen], crops[seen], places[seen].to(device)
            if len(indices):
                chosen = tokens(crops)[:, 0].float().gather(1, places[..., None].expand(-1, -1, backbone.width))
                check_finite(chosen, [images.paths[index] for index in indices.tolist()])
                features[len(used) : len(used) + len(indices)] = F.normalize(chosen, dim=2).half().cpu()
                used += indices.tolist()
            shown.advance(len(seen))
    left_out = {"without_box": len(images) - boxed, "box_outside_crop": boxed - len(used)}
    if not used:
        raise UserError(
            f"{images.root / boxes}: no image of {images.split} has a box within its crop "
            f"({left_out['without_box']} of {len(images)} have none at all); check data.images.boxes"
        )
    return features[: len(used)], torch.tensor(used), {"used": len(used), **left_out}
