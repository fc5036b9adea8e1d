"""Settings of the data sets: where they lie, and the made scenes of the demo."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from flsl.config.base import Count, Place, Settings, Slug

Watch = Literal["files", "folders", "off"]


class ImageFolderSettings(Settings):
    """An ImageNet-style image folder: `<root>/<split>/<class>/<image>`."""

    root: Place = Field(description="Folder that holds the splits.")
    train: str = Field("train", min_length=1, description="Folder of the training split below `root`.")
    val: str | None = Field(
        "val", min_length=1, description="Folder of the validation split below `root`; null where there is none."
    )
    boxes: str | None = Field(
        None,
        min_length=1,
        description="Boxes for the aligned k-NN below `root`: a folder of PASCAL VOC XML files as ImageNet's, "
        "or one CSV file `path,x0,y0,x1,y1`.",
    )
    pack: Place | None = Field(
        None,
        description="Folder for a copy of the images in a few large tar files, which the check makes and all stages "
        "read, to the same results: for file systems that are slow to open many files; null: no copy.",
    )
    decode: bool = Field(
        False,
        description="Decode every image wholly in the check: finds damage in the middle of a file, too, and takes "
        "several times longer.",
    )
    watch: Watch = Field(
        "files",
        description="How the workflow notices changed files: `files` looks at each file's size and time, "
        "`folders` only at each folder's (for millions of files), `off` never.",
    )


class CocoSettings(Settings):
    """COCO detection: images and `instances_*.json`."""

    root: Place = Field(description="Folder of the data set; the other paths are below it.")
    train_images: str = Field("train2017", description="Folder of the training images.")
    train_annotations: str = Field("annotations/instances_train2017.json", description="Training annotations.")
    val_images: str = Field("val2017", description="Folder of the validation images.")
    val_annotations: str = Field("annotations/instances_val2017.json", description="Validation annotations.")
    decode: bool = Field(False, description="As for the image folder.")
    watch: Watch = Field("files", description="As for the image folder.")


class UavdtSettings(Settings):
    """UAVDT: frames and ground truth of the detection benchmark."""

    root: Place = Field(description="Folder of the data set; the other paths are below it.")
    frames: str = Field("UAV-benchmark-M", description="Folder of the sequences' frames.")
    ground_truth: str = Field("UAV-benchmark-MOTD_v1.0/GT", description="Folder of `<sequence>_gt_whole.txt`.")
    decode: bool = Field(False, description="As for the image folder.")
    watch: Watch = Field("files", description="As for the image folder.")


class DavisDataSettings(Settings):
    """DAVIS 2017 in its official layout."""

    root: Place = Field(description="Folder that holds `JPEGImages`, `Annotations` and `ImageSets`.")
    year: int = Field(2017, ge=2016, le=2099, description="Folder of the lists of sequences below `ImageSets`.")
    resolution: Slug = Field("480p", description="Folder below `JPEGImages` and `Annotations`, e.g. `Full-Resolution`.")
    decode: bool = Field(False, description="As for the image folder.")
    watch: Watch = Field("files", description="As for the image folder.")

    @property
    def frames(self) -> str:
        """Folder of the sequences' frames below the root."""
        return f"JPEGImages/{self.resolution}"

    @property
    def masks(self) -> str:
        """Folder of the sequences' masks below the root."""
        return f"Annotations/{self.resolution}"

    @property
    def lists(self) -> str:
        """Folder of the lists of sequences below the root."""
        return f"ImageSets/{self.year}"


class ScenesSettings(Settings):
    """The made demo data: textured objects on textured backgrounds, in the real data sets' layouts."""

    root: Place = Field("results/scenes", description="Folder to make the data sets in.")
    seed: int = Field(0, ge=0, description="Seed of everything that is made.")
    classes: int = Field(10, ge=2, le=10, description="Object classes, each a pair of texture and shape.")
    image_size: int = Field(48, ge=32, le=1024, description="Side of the image folder's images, in pixels.")
    train_images: Count = Field(4000, description="Training images of the image folder, at least one per class.")
    val_images: Count = Field(1000, description="Validation images of the image folder, at least one per class.")
    coco_size: int = Field(
        128, ge=64, le=2048, description="Longer side of the COCO images, in pixels; it varies by 15 %."
    )
    coco_train_images: int = Field(200, ge=0, description="COCO training images; 0 leaves COCO out.")
    coco_val_images: Count = Field(50, description="COCO validation images.")
    uavdt_size: int = Field(256, ge=128, le=2048, description="Width of the UAVDT frames, in pixels (1024:540).")
    uavdt_sequences: int = Field(
        4, ge=0, le=50, description="UAVDT sequences, half of them (at most 20) test; 0 leaves UAVDT out."
    )
    uavdt_frames: Count = Field(30, description="Frames a UAVDT sequence.")
    davis_size: int = Field(96, ge=64, le=2048, description="Short side of the DAVIS frames, in pixels (854:480).")
    davis_sequences: int = Field(4, ge=0, description="DAVIS sequences, half of them val; 0 leaves DAVIS out.")
    davis_frames: int = Field(
        20, ge=3, description="Frames a DAVIS sequence, of which the first and the last are not evaluated."
    )

    @model_validator(mode="after")
    def _fit(self) -> ScenesSettings:
        for name in ("train_images", "val_images"):
            if getattr(self, name) < self.classes:
                raise ValueError(f"{name}: at least one image per class ({self.classes}), not {getattr(self, name)}")
        if self.uavdt_sequences == 1:
            raise ValueError("uavdt_sequences: at least 2 (one to train on, one to test on) or 0, not 1")
        return self


class DataSettings(Settings):
    """The data sets of the experiment; a stage in `stages` whose data set is null is an error."""

    scenes: ScenesSettings | None = Field(None, description="Make the demo's data first.")
    images: ImageFolderSettings | None = Field(None, description="Image folder for pretraining and the probes.")
    coco: CocoSettings | None = Field(None, description="COCO, for Mask R-CNN.")
    uavdt: UavdtSettings | None = Field(None, description="UAVDT, for vehicle detection.")
    davis: DavisDataSettings | None = Field(None, description="DAVIS 2017, for video object segmentation.")
