"""Settings of detection and instance segmentation, on COCO and UAVDT; the defaults are the FLSL paper's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flsl.config.base import Count, Fraction, NonNegative, Positive, Settings

Sizes = Annotated[list[Count], Field(min_length=1)]
PATCHES = (4, 8, 16)
"""Sides of the patches, in pixels, that the detectors' pyramid can be made from."""


class DetectorSettings(Settings):
    """Mask R-CNN on a vision transformer: equal in both engines."""

    pyramid: Literal["fpn", "simple"] = Field(
        "fpn",
        description="`fpn`: four blocks' tokens and an FPN; `simple`: ViTDet's pyramid of the last block's tokens.",
    )
    blocks: Annotated[list[Count], Field(min_length=4, max_length=4)] | None = Field(
        None,
        description="Blocks (from 1) whose tokens go to strides 4, 8, 16, 32; null: 4, 6, 8, 12 of 12, in proportion.",
    )
    frozen_blocks: int = Field(
        0,
        ge=0,
        description="Blocks, from the first on, that stay as they were pretrained, with the embeddings; 0: none.",
    )
    channels: Count = Field(256, description="Channels of the pyramid.")
    drop_path: float = Field(0.05, ge=0, lt=1, description="Stochastic depth of the last block (linear over depth).")
    activation_checkpointing: bool = Field(
        False, description="Compute the blocks' activations again in the backward pass: less memory, more time."
    )
    anchor_sizes: Annotated[list[Count], Field(min_length=5, max_length=5)] = Field(
        [32, 64, 128, 256, 512], description="Anchor sides at strides 4, 8, 16, 32, 64, in pixels."
    )
    box_hidden: Count = Field(1024, description="Width of the box head's two layers.")
    mask_convs: Count = Field(4, description="Convolutions of the mask head.")
    proposals_train: Count = Field(1000, description="RPN proposals kept per image in training, after NMS.")
    proposals_test: Count = Field(1000, description="RPN proposals kept per image in prediction, after NMS.")
    regions: Count = Field(512, description="RoIs sampled per image to train the heads.")
    anchors: Count = Field(256, description="Anchors sampled per image for the RPN's losses.")
    detections: Count = Field(100, description="Largest number of detections per image.")
    score_threshold: Fraction = Field(0.05, description="Lowest score of a detection.")

    @model_validator(mode="after")
    def _blocks_rise(self) -> DetectorSettings:
        if self.blocks is not None and sorted(self.blocks) != self.blocks:
            raise ValueError(f"blocks: {self.blocks} must rise from stride 4 to 32; write {sorted(self.blocks)}")
        return self


class RecipeSettings(Settings):
    """Fine-tuning and prediction: the 1x schedule, DETR's multi-scale and crop policy."""

    epochs: Count = Field(12, description="Passes over the training images.")
    milestones: list[Count] = Field([8, 11], description="Epochs after which the learning rate falls to a tenth.")
    batch_size: Count = Field(8, description="Images per step, over all ranks and accumulated micro-batches.")
    accumulate: Count = Field(1, description="Micro-batches per step.")
    learning_rate: Positive = Field(5e-5, description="AdamW's learning rate at batch 8; multiplied by batch_size / 8.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Factor on the learning rate from each ViT block to the one before; 1 is none."
    )
    weight_decay: NonNegative = Field(0.05, description="Weight decay (none on biases, norms and positions).")
    warmup_steps: int = Field(
        1000, ge=0, description="Steps in which the learning rate rises linearly from a thousandth."
    )
    clip: NonNegative = Field(0.0, description="Largest norm of the whole gradient; 0 does not clip.")
    ema: Fraction = Field(0.0, description="Momentum of the averaged weights that are evaluated; 0: none.")
    precision: Literal["bf16", "float32"] = Field("bf16", description="Autocast of training and prediction.")
    short_sides: Sizes = Field(
        list(range(480, 801, 32)), description="Short sides that training images are resized to, in pixels."
    )
    long_side: Count = Field(1333, description="Largest long side, in training and prediction, in pixels.")
    crop: Fraction = Field(0.5, description="Probability of the crop policy: resize, random crop, resize.")
    crop_short_sides: Sizes = Field([400, 500, 600], description="Short sides before the crop, in pixels.")
    crop_range: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(
        [384, 600], description="Range of the crop's sides, in pixels."
    )
    flip: Fraction = Field(0.5, description="Probability of a horizontal flip.")
    test_short_side: Count = Field(800, description="Short side in prediction, in pixels.")
    test_batch_size: Count = Field(1, description="Images a batch in prediction, at most: those padded to one size.")
    evaluate_every: int = Field(0, ge=0, description="Epochs between two validations; 0 validates at the end only.")
    images_shown: int = Field(8, ge=0, description="Validation images drawn with predictions beside ground truth.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> RecipeSettings:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide batch_size ({self.batch_size})")
        low, high = self.crop_range
        if low > high:
            raise ValueError(f"crop_range: the range [{low}, {high}] is upside down; write [{high}, {low}]")
        for name in ("short_sides", "crop_short_sides"):
            if max(getattr(self, name)) > self.long_side:
                raise ValueError(f"{name}: {max(getattr(self, name))} is larger than long_side ({self.long_side})")
        return self


class UavdtRecipeSettings(RecipeSettings):
    """The same for UAVDT: boxes only."""

    stride: Count = Field(1, description="Keep every n-th training frame.")
    classes: Literal["vehicle", "each"] = Field(
        "vehicle", description="One class, as the official AP measures, or car, truck and bus."
    )


class DetectionSettings(Settings):
    """Detection: the engine, the detector, and a recipe for each data set."""

    engine: Literal["torchvision", "detectron2"] = Field(
        "torchvision", description="Library that trains and predicts; `detectron2` is installed separately."
    )
    model: DetectorSettings = Field(DetectorSettings(), description="The detector.")
    coco: RecipeSettings = Field(RecipeSettings(), description="COCO: boxes and masks.")
    uavdt: UavdtRecipeSettings = Field(UavdtRecipeSettings(), description="UAVDT: boxes.")
