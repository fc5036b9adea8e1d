"""Encoders as files that plain timm loads: exported from checkpoints, or baselines that were not pretrained here."""

from __future__ import annotations

from pathlib import Path

from flsl.config.experiment import Experiment
from flsl.model.backbone import Backbone, load_backbone
from flsl.model.choice import EncoderChoice
from flsl.runtime.errors import UserError, nearest
from flsl.runtime.outputs import StageRecord


def export(checkpoint: Path, out: Path, model: str | None = None) -> Backbone:
    """Write the encoder of a checkpoint (ours, the authors', DINO's or timm's) as ``backbone.safetensors``.

    Raises:
        UserError: naming the file that cannot be read or written.
    """
    backbone = load_backbone(checkpoint, model)
    backbone.save(out, source=checkpoint.name)
    return backbone


def write_baseline(experiment: Experiment, name: str, out: Path) -> None:
    """Write ``backbone.safetensors`` and ``metrics.json`` of the baseline ``name`` into the folder ``out``.

    A random encoder has the very weights that the run of the same settings and seed starts from.

    Raises:
        UserError: when there is no such baseline, or its weights cannot be had.
    """
    if name not in experiment.baselines:
        known = ", ".join(experiment.baselines) or "none"
        raise UserError(f"baselines.{name}: no such baseline{nearest(name, experiment.baselines)}; there are: {known}")
    baseline = experiment.baselines[name]
    inputs = [Path(baseline.checkpoint)] if baseline.checkpoint is not None else []
    params = {**baseline.plain(), "made_from": experiment.made_from(baseline)}
    record = StageRecord("baseline", name, params, inputs)
    match baseline.kind:
        case "random":
            backbone = EncoderChoice(random=True).load(experiment)
        case "timm":
            backbone = load_backbone(None, baseline.model, experiment.features.crop)
        case "file":
            backbone = load_backbone(baseline.checkpoint, baseline.model)
    backbone.save(out / "backbone.safetensors", run=name)
    parameters = sum(parameter.numel() for parameter in backbone.vit.parameters())
    record.write(out / "metrics.json", {"baseline/parameters": parameters})
