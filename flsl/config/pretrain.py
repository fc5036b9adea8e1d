"""Settings of FLSL pretraining (arXiv 2306.06203); the defaults are the paper's ViT-S/16 on ImageNet-1K."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flsl.config.base import Count, Fraction, NonNegative, Positive, Settings, Slug

Range = Annotated[list[NonNegative], Field(min_length=2, max_length=2)]


class EncoderSettings(Settings):
    """The ViT, built by timm without a class token."""

    name: str = Field("vit_small_patch16_224", description="timm model that the sizes below change where given.")
    patch_size: Count = Field(16, description="Side of a patch, in pixels.")
    width: Count | None = Field(None, description="Token width; null keeps the timm model's.")
    depth: Count | None = Field(None, description="Number of blocks; null keeps the timm model's.")
    heads: Count | None = Field(None, description="Attention heads; null keeps the timm model's.")
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="Stochastic depth of the student's last block (linear over depth)."
    )
    position: Literal["sincos", "learned"] = Field(
        "sincos", description="Position embedding: fixed 2-D sine-cosine, or learned."
    )
    position_strength: NonNegative = Field(1.0, description="Factor on the sine-cosine embedding.")


class ViewSettings(Settings):
    """Views of one image: the teacher's crop, and the student's crops of that crop."""

    teacher_size: Count = Field(224, description="Side of the teacher's view, in pixels.")
    teacher_scale: Range = Field([0.8, 1.0], description="Area range of the teacher's crop, as a share of the image.")
    global_size: Count = Field(224, description="Side of the student's global view, in pixels.")
    global_scale: Range = Field(
        [0.5, 1.0], description="Area range of the global crop, as a share of the teacher's view."
    )
    local_crops: int = Field(2, ge=0, description="Number of the student's local views.")
    local_size: Count = Field(96, description="Side of a local view, in pixels.")
    local_scale: Range = Field([0.05, 0.4], description="Area range of a local crop, as a share of the teacher's view.")
    jitter: Fraction = Field(0.8, description="Probability of colour jitter.")
    brightness: NonNegative = Field(0.4, description="Brightness factor from [1 - b, 1 + b].")
    contrast: NonNegative = Field(0.4, description="Contrast factor from [1 - c, 1 + c].")
    saturation: NonNegative = Field(0.2, description="Saturation factor from [1 - s, 1 + s].")
    hue: float = Field(0.1, ge=0, le=0.5, description="Hue shift from [-h, h], in turns.")
    grayscale: Fraction = Field(0.2, description="Probability of grayscale.")
    blur_a: Fraction = Field(0.5, description="Probability of blur in branch A (chosen with probability 1/2).")
    blur_b: Fraction = Field(0.1, description="Probability of blur in branch B.")
    blur_radius: Range = Field(
        [0.1, 2.0], description="Range of the blur's sigma, in pixels of a 224-pixel teacher view."
    )
    solarize: Fraction = Field(0.2, description="Probability of solarize (threshold 128) in branch B.")

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> ViewSettings:
        for name in ("teacher_scale", "global_scale", "local_scale", "blur_radius"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the range [{low:g}, {high:g}] is upside down; write [{high:g}, {low:g}]")
            if name != "blur_radius" and not 0 < low <= high <= 1:
                raise ValueError(f"{name}: areas are shares of the image in (0, 1], not [{low:g}, {high:g}]")
        return self


class HeadSettings(Settings):
    """The projection head."""

    hidden: Count = Field(2048, description="Width of the hidden layers.")
    bottleneck: Count = Field(256, description="Width of the normalised features that meet the prototypes.")
    layers: int = Field(3, ge=1, le=6, description="Linear layers before the prototypes.")
    batch_norm: bool = Field(
        False, description="Batch norm, synchronised over ranks, after each hidden layer; decides whether a toy learns."
    )


class Schedule(Settings):
    """A value that follows a cosine from `start` to `end` over the whole training."""

    start: NonNegative = Field(description="Value at the first step.")
    end: NonNegative = Field(description="Value that it approaches at the end.")


class PriorSettings(Settings):
    """What an earlier run's encoder says about the cross-attention (multi-stage pretraining)."""

    block: Count | None = Field(
        None,
        description="Cut the earlier encoder after this block, counted from 1, and take its tokens as they are; "
        "null: all blocks and the final LayerNorm.",
    )
    tau: NonNegative = Field(0.2, description="Temperature of its attention, in units of sqrt(384) / C, C its width.")
    sharpness: Positive = Field(1e4, description="How sharply its attention is cut off at each row's mean.")
    bias: Fraction = Field(
        0.0, description="What is left of it at the end: the run's own attention gets a cosine from 0 to 1 - bias."
    )


class PretrainSettings(Settings):
    """FLSL pretraining; changing any of these makes another run."""

    encoder: EncoderSettings = Field(EncoderSettings(), description="The ViT.")
    views: ViewSettings = Field(ViewSettings(), description="The views.")
    head: HeadSettings = Field(HeadSettings(), description="The projection head.")
    prototypes: int = Field(4096, ge=2, description="Number of prototypes K.")
    query_window: Count = Field(2, description="Side w of the windows of tokens; one token of each is a query.")
    query_sampling: Literal["random", "first"] = Field(
        "random", description="Which token of a window: uniform, or always the first (the released code's flag off)."
    )
    tau_sa: NonNegative | Schedule = Field(
        0.1, description="Self-attention temperature in units of sqrt(384) / C, C the token width; may be a schedule."
    )
    tau_ca: NonNegative | Schedule = Field(
        0.2, description="Cross-attention temperature in the same units; smaller than tau_sa collapses."
    )
    intra_weight: NonNegative | Schedule = Field(
        0.03, description="Weight υ of the intra-view loss; may be a schedule."
    )
    inter_weight: NonNegative = Field(1.0, description="Weight η of the inter-view loss.")
    volume_weight: NonNegative = Field(5.0, description="Weight γ of the volume maximisation (VMR).")
    centering: bool = Field(False, description="Centre the teacher's logits as DINO does (instead of VMR: set γ to 0).")
    center_momentum: Fraction = Field(0.9, description="Momentum of the centre.")
    student_temperature: Positive = Field(0.1, description="Temperature of the student's assignments.")
    teacher_temperature: Positive = Field(0.07, description="Temperature of the teacher's assignments after warm-up.")
    teacher_temperature_start: Positive = Field(
        0.04, description="Temperature of the teacher's assignments at the start."
    )
    teacher_temperature_epochs: NonNegative = Field(30.0, description="Epochs of linear warm-up of that temperature.")
    previous: Slug | None = Field(
        None, description="Run or baseline whose encoder, frozen, is a prior of the cross-attention; null: none."
    )
    prior: PriorSettings = Field(PriorSettings(), description="That prior.")
    epochs: Count = Field(300, description="Passes over the training images.")
    batch_size: Count = Field(512, description="Images per step, over all ranks and accumulated micro-batches.")
    accumulate: Count = Field(
        1, description="Micro-batches per step; batch norm and VMR see one micro-batch at a time."
    )
    learning_rate: Positive = Field(5e-4, description="Base learning rate; multiplied by batch_size / 256.")
    final_learning_rate: NonNegative = Field(1e-6, description="Learning rate that the cosine ends at (not scaled).")
    warmup: Fraction = Field(0.1, description="Share of the steps in which the learning rate rises linearly from 0.")
    weight_decay: NonNegative = Field(0.04, description="Weight decay at the first step (none on biases and norms).")
    final_weight_decay: NonNegative = Field(0.4, description="Weight decay that the cosine ends at.")
    clip: NonNegative = Field(3.0, description="Largest gradient norm of each parameter tensor; 0 does not clip.")
    freeze_prototypes_epochs: NonNegative = Field(1.0, description="Epochs in which the prototypes do not move.")
    momentum: Fraction = Field(0.996, description="Teacher's EMA momentum at the first step.")
    final_momentum: Fraction = Field(1.0, description="Teacher's EMA momentum that the cosine ends at.")
    precision: Literal["bf16", "bf16-residual", "float32"] = Field(
        "bf16",
        description="Autocast of the encoder and head; softmax, logarithms and cosines are float32 in any case. "
        "bf16-residual: the residual stream between the blocks is bfloat16, too, which takes a tenth less memory. "
        "A CPU without bfloat16 instructions is faster in float32.",
    )
    online_knn_every: int = Field(10, ge=0, description="Epochs between two k-NN checks of the teacher; 0: never.")
    online_knn_images: Count = Field(10_000, description="Training images of that check (validation: a tenth).")

    @model_validator(mode="after")
    def _sizes_fit(self) -> PretrainSettings:
        patch, views = self.encoder.patch_size, self.views
        for name in ("teacher_size", "global_size", "local_size"):
            if name == "local_size" and not views.local_crops:
                continue
            size = getattr(views, name)
            if size % patch:
                raise ValueError(f"views.{name}: {size} is not a multiple of encoder.patch_size ({patch})")
            if self.query_window > size // patch and name != "teacher_size":
                raise ValueError(
                    f"query_window: {self.query_window} is larger than the {size // patch} tokens of a side of "
                    f"views.{name} ({size} pixels, patches of {patch})"
                )
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide batch_size ({self.batch_size})")
        sides = [views.global_size, *[views.local_size] * views.local_crops]
        queries = sum((side // (patch * self.query_window)) ** 2 for side in sides)
        if self.head.batch_norm and queries * (self.batch_size // self.accumulate) < 2:
            raise ValueError("head.batch_norm: a step has a single query token, and no statistics; raise batch_size")
        return self
