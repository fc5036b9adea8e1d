"""DINO's protocol on DAVIS once more, query by query and pixel by pixel, in float64."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image


def step(queries, keys, labels, radius, top_k, temperature):
    """Soft labels (h, w, K) of one frame from features (h, w, C), and the context's (F, h, w, C) and (F, h, w, K)."""
    height, width, _ = queries.shape
    result = np.zeros((height, width, labels.shape[-1]))
    for i in range(height):
        for j in range(width):
            met = []
            for frame in range(len(keys)):
                for u in range(max(0, i - radius), min(height, i + radius + 1)):
                    for v in range(max(0, j - radius), min(width, j + radius + 1)):
                        met.append((float(keys[frame, u, v] @ queries[i, j]), labels[frame, u, v]))
            worst = sorted((cosine for cosine, _ in met), reverse=True)[:top_k][-1]
            # keys that tie with the last of the best are kept too
            best = [(math.exp(cosine / temperature), label) for cosine, label in met if cosine >= worst]
            total = sum(weight for weight, _ in best)
            result[i, j] = sum(weight / total * label for weight, label in best)
    return result


def video(features, first, settings):
    """Soft labels of every frame from all frames' features and the first one's labels."""
    soft = [first]
    for now in range(1, len(features)):
        previous = range(max(1, now - settings.context_frames), now)
        context = [0, *previous]
        keys = np.stack([features[frame] for frame in context])
        labels = np.stack([soft[frame] for frame in context])
        soft.append(step(features[now], keys, labels, settings.radius, settings.top_k, settings.temperature))
    return soft


def upsample(plane, factor):
    """Bilinear, pixel centres aligned at halves, edges repeated."""

    def weights(count):
        places = np.clip((np.arange(count * factor) + 0.5) / factor - 0.5, 0, count - 1)
        low = np.floor(places).astype(int)
        matrix = np.zeros((count * factor, count))
        for row, (place, left) in enumerate(zip(places, low, strict=True)):
            matrix[row, left] += 1 - (place - left)
            matrix[row, min(left + 1, count - 1)] += place - left
        return matrix

    return weights(plane.shape[0]) @ plane @ weights(plane.shape[1]).T


def nearest(labels, width, height):
    """Pillow's: where a pixel's centre falls between two, the rounding of its sums decides."""
    return np.asarray(Image.fromarray(np.asarray(labels, np.uint8)).resize((width, height), Image.Resampling.NEAREST))


def label_map(soft, patch_size, ids, width, height):
    """Ids at the size of the video from soft labels at token resolution, and which of them no rounding can change."""
    planes, decided = [], True
    for k in range(soft.shape[-1]):
        plane = upsample(soft[..., k], patch_size)
        low, high = plane.min(), plane.max()
        # whether a plane counts as constant must not hang on rounding
        decided = decided and not 0.9e-5 * high < high - low < 1.1e-5 * high
        planes.append((plane - low) / (high - low) if high - low > 1e-5 * high else plane)
    planes = np.array([*planes, np.full_like(planes[0], -1)])
    two = np.sort(planes, axis=0)[-2:]
    clear = (two[1] - two[0] > 1e-9) & decided
    return nearest(np.asarray(ids)[planes.argmax(0)], width, height), nearest(clear, width, height).astype(bool)
