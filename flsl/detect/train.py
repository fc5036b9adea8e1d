"""Fine-tuning with torchvision's Mask R-CNN."""

from __future__ import annotations

from flsl.detect.coco_files import Record
from flsl.detect.finetune import FineTuning, Task
from flsl.detect.rcnn import Detector
from flsl.model.backbone import Backbone
from flsl.runtime.interrupt import StopRequest
from flsl.runtime.progress import bar
from flsl.runtime.training import begin


def train(task: Task, backbone: Backbone) -> list[Record] | None:
    """Train, or go on where a checkpoint stands; write ``history.jsonl`` and ``model.pth``; return the predictions.

    Returns:
        COCO results on ``task.val``; None on other ranks than the first, which writes the files.

    Raises:
        UserError: for settings that do not fit, a loss that is not finite, or an image that cannot be read.
        Stopped: when a signal ended the training after it was saved.
    """
    process = begin(task.compute, task.seed)
    detector = Detector(backbone, len(task.val.categories), task.settings.model, task.masks)
    detector.bf16 = task.recipe.precision == "bf16"
    tuning = FineTuning(task, detector, backbone, process)
    with StopRequest() as stop, bar("fine-tuning (steps)", tuning.steps, tuning.start, process.is_main) as shown:
        for step in range(tuning.start, tuning.steps):
            tuning.step(step)
            shown.advance(1, tuning.after(step + 1, stop.agreed()))
    return tuning.finish()
