"""``flsl visualize``: from encoders and images to a folder of pictures, and the figures behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flsl.config.experiment import Experiment
from flsl.config.visualize import VisualizeSettings
from flsl.data.manifest import MANIFEST
from flsl.runtime.distributed import choose_device, describe, fitting
from flsl.runtime.errors import UserError, require_file
from flsl.runtime.outputs import StageRecord
from flsl.runtime.progress import bar
from flsl.visualize import choose, pictures
from flsl.visualize.colours import align, principal_components
from flsl.visualize.models import Looked, load_models
from flsl.visualize.prototypes import Usage, count_usage
from flsl.visualize.sheet import save

_WITH_HEAD = ("segments.png", "usage.png", "prototypes.png")


@fitting("visualize.batch_size: too many images for the GPU's memory; lower it")
def visualize(
    experiment: Experiment,
    named: Sequence[str],
    images: Path | None,
    shown: Sequence[Path],
    out: Path,
    run: str,
    epochs: bool = False,
) -> dict[str, Any]:
    """Write the pictures, and ``metrics.json`` last, into the folder ``out``.

    ``attention.png`` and ``pca.png`` of all encoders; ``segments.png``, ``usage.png`` and ``prototypes.png`` of those
    with a projection head. The figures are of the first encoder named, those of all stand under ``encoders``.

    Args:
        experiment: ``visualize`` and the device are read, and the teacher's view and τ where nothing else tells them.
        named: the encoders, ``FILE`` or ``LABEL=FILE``.
        images: a checked data set or a folder of images.
        shown: images to show instead of some of the data set.
        out: the folder.
        run: the run's name in the record.
        epochs: whether the teachers kept of single epochs are shown beside each encoder.

    Raises:
        UserError: when a file cannot be read or does not fit, or there are no images.
    """
    settings, device = experiment.visualize, choose_device(experiment.compute.device)
    if images is None and not shown:
        raise UserError("--images: name a checked data set or a folder of images, or single images with --show")
    models = load_models(named, epochs, experiment.pretrain, device)
    reference = next(index for index, model in enumerate(models) if model.epoch is None)
    size = settings.size or models[reference].view or experiment.pretrain.views.teacher_size
    for model in models:
        model.backbone.check_size(size, "visualize.size")
    inputs = [model.file for model in models]
    if images is not None and (images / MANIFEST).is_file():
        inputs.append(images / MANIFEST)
    params = {"seed": experiment.seed, **settings.plain(), "pixels": size, "encoders": [one.label for one in models]}
    record = StageRecord("visualize", run, params, inputs, describe(device))
    for path in shown:
        require_file(path, "an image to show")
    every = choose.images_of(images, settings.split) if images is not None else choose.files(shown)
    counted = choose.evenly(every, settings.counted)
    looked_at = choose.files(shown) or choose.evenly(every, settings.images)
    views = [choose.view(image, size, experiment.seed) for image in looked_at]
    made, figures = _draw(models, reference, views, counted, settings, size, device)
    for name, picture in made.items():
        save(picture, out / name)
    for name in _WITH_HEAD:  # of an earlier call, with other encoders
        if name not in made:
            (out / name).unlink(missing_ok=True)
    table = {model.label: {"file": str(model.file), **own} for model, own in zip(models, figures, strict=True)}
    return record.write(out / "metrics.json", figures[reference], encoders=table)


def _draw(
    models: Sequence[Looked],
    reference: int,
    views: Sequence[choose.View],
    counted: Sequence[choose.Source],
    settings: VisualizeSettings,
    size: int,
    device: torch.device,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return the pictures by file name, and each encoder's figures."""
    labels = [model.label for model in models]
    students = [_tokens(model, [one.student for one in views], settings.batch_size, device) for model in models]
    teachers = [_tokens(model, [one.teacher for one in views], settings.batch_size, device) for model in models]
    figures: list[dict[str, float]] = []
    parts = []
    for model, student, teacher in zip(models, students, teachers, strict=True):
        components, share = principal_components(teacher)
        parts.append(components)
        figures.append(
            {
                "visualize/pca_variance": 100 * share,
                "visualize/self_attention_keys": pictures.effective_keys(student, student, model.tau_sa),
                "visualize/cross_attention_keys": pictures.effective_keys(student, teacher, model.tau_ca),
            }
        )
    parts = [align(one, parts[reference]) for one in parts]
    made = {
        "attention.png": pictures.attention_sheet(models, views, students, teachers, settings.queries),
        "pca.png": pictures.components_sheet(labels, views, parts),
    }
    headed = [index for index, model in enumerate(models) if model.head is not None]
    if not headed:
        return made, figures
    usages = {}
    with bar("images", len(headed) * len(counted)) as shown:
        for index in headed:
            usages[index] = _usage(models[index], counted, settings, size, device, shown.advance)
            head = models[index].head
            assert head is not None
            figures[index] |= {
                "visualize/prototypes": len(head.prototypes),
                "visualize/prototypes_used": 100 * usages[index].used / len(head.prototypes),
                "visualize/perplexity": usages[index].perplexity,
            }
    main = reference if reference in usages else headed[-1]
    names = [labels[index] for index in headed]
    assigned = [models[index].assigned(models[index].similarities(teachers[index])).cpu().numpy() for index in headed]
    grid = round(teachers[main].shape[1] ** 0.5)
    chosen = usages[main].most_used(settings.prototypes)
    made["segments.png"] = pictures.segments_sheet(names, views, assigned, headed.index(main))
    made["usage.png"] = pictures.usage_chart(names, list(usages.values()), len(counted))
    made["prototypes.png"] = pictures.prototypes_sheet(labels[main], usages[main], counted, chosen, size, grid)
    return made, figures


def _tokens(model: Looked, images: Sequence[Any], batch_size: int, device: torch.device) -> Tensor:
    parts = [
        model.tokens(choose.pixels(images[start : start + batch_size], device))
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)


def _usage(
    model: Looked,
    images: Sequence[choose.Source],
    settings: VisualizeSettings,
    size: int,
    device: torch.device,
    advance: Any,
) -> Usage:
    def counted() -> Any:
        for batch in choose.batches(images, size, settings.batch_size, device):
            yield batch
            advance(len(batch))

    return count_usage(model, counted(), settings.patches)
