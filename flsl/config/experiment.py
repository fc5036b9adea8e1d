"""The whole experiment: every setting once, the root of what a YAML file may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from flsl.config.ablation import AblationSettings
from flsl.config.base import NonNegative, Place, Settings, Slug, Stage
from flsl.config.cluster import ClusterSettings
from flsl.config.compute import ComputeSettings
from flsl.config.data import DataSettings
from flsl.config.detect import DetectionSettings
from flsl.config.pretrain import PretrainSettings
from flsl.config.probe import AlignedKnnSettings, FeatureSettings, KnnSettings, LinearSettings
from flsl.config.video import DavisSettings
from flsl.config.visualize import VisualizeSettings


class BaselineSettings(Settings):
    """An encoder that is not pretrained here but evaluated beside the runs."""

    kind: Literal["random", "timm", "file"] = Field(
        description="`random`: the runs' encoder, untrained; "
        "`timm`: a timm model with its weights; `file`: a checkpoint."
    )
    model: str | None = Field(None, description="timm model name, for `timm` and `file`.")
    checkpoint: Place | None = Field(None, description="Checkpoint to load: ours, the authors', DINO's or timm's.")

    @model_validator(mode="after")
    def _complete(self) -> BaselineSettings:
        if self.kind == "timm" and self.model is None:
            raise ValueError("model: a baseline of kind `timm` needs a timm model name")
        if self.kind == "file" and self.checkpoint is None:
            raise ValueError("checkpoint: a baseline of kind `file` needs the path of a checkpoint")
        if self.kind != "file" and self.checkpoint is not None:
            raise ValueError(f"checkpoint: a baseline of kind `{self.kind}` reads none; its kind would be `file`")
        if self.kind == "random" and self.model is not None:
            raise ValueError("model: a baseline of kind `random` is the runs' encoder, untrained; drop `model`")
        return self


class TrackingSettings(Settings):
    """MLflow: a view of the files under results/."""

    uri: str | None = Field(
        None,
        description="Tracking server; null takes MLFLOW_TRACKING_URI (the place for an address with a password, as "
        "configs are kept with the results), else SQLite in the project's results folder.",
    )
    experiment: str | None = Field(
        None, min_length=1, max_length=500, description="Name of the MLflow experiment; null takes the project's name."
    )
    live: bool = Field(True, description="Send training curves while pretraining runs, not only at the end.")
    live_seconds: float = Field(5.0, ge=0.1, description="Seconds between two looks for new points while it runs.")
    timeout: float = Field(10.0, gt=0, description="Seconds after which a server that does not answer is left alone.")
    artifact_mb: NonNegative = Field(
        100.0, description="Largest file (a model, a figure, a table) that is stored with a run in MLflow, in MB."
    )


class Experiment(Settings):
    """One experiment: data, one pretraining recipe and its variants, and how they are evaluated."""

    project: Slug = Field(description="Name of the folder below `results` and of the MLflow experiment.")
    results: Place = Field("results", description="Folder that holds the projects; `~` is the home folder.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of weights, views and order.")
    data: DataSettings = Field(DataSettings(), description="Data sets.")
    pretrain: PretrainSettings = Field(PretrainSettings(), description="FLSL pretraining.")
    runs: Annotated[dict[Slug, dict[str, Any]], Field(min_length=1)] = Field(
        {"base": {}},
        description="Pretraining runs by name, each with the settings it changes by dotted name, "
        "e.g. `wide: {pretrain.prototypes: 8192}`.",
    )
    ablations: dict[Slug, AblationSettings] = Field(
        {}, description="Ablations by name: runs that differ in chosen settings, with tables and figures of their own."
    )
    baselines: dict[Slug, BaselineSettings] = Field(
        {"untrained": BaselineSettings(kind="random")}, description="Encoders evaluated beside the runs."
    )
    stages: list[Stage] = Field(["knn", "linear", "aligned_knn"], description="Evaluations of every run and baseline.")
    features: FeatureSettings = Field(FeatureSettings(), description="Frozen features.")
    knn: KnnSettings = Field(KnnSettings(), description="k-NN.")
    linear: LinearSettings = Field(LinearSettings(), description="Linear probe.")
    aligned_knn: AlignedKnnSettings = Field(AlignedKnnSettings(), description="bbox-aligned k-NN.")
    detection: DetectionSettings = Field(DetectionSettings(), description="Mask R-CNN on COCO, and UAVDT.")
    davis: DavisSettings = Field(DavisSettings(), description="Video object segmentation.")
    visualize: VisualizeSettings = Field(VisualizeSettings(), description="Pictures of what is learnt.")
    compute: ComputeSettings = Field(ComputeSettings(), description="Devices, threads, intervals: speed, not results.")
    cluster: ClusterSettings = Field(ClusterSettings(), description="What training jobs ask the cluster for.")
    tracking: TrackingSettings = Field(TrackingSettings(), description="MLflow.")

    @field_validator("results")
    @classmethod
    def _plain_folder(cls, results: str) -> str:
        """Drop the slashes and dots that snakemake would take for another file's name."""
        return str(Path(results))

    @model_validator(mode="after")
    def _names_differ(self) -> Experiment:
        both = sorted(set(self.runs) & set(self.baselines))
        if both:
            raise ValueError(f"runs.{both[0]}: baselines has that name, too; rename one of them")
        # {…} is a wildcard to snakemake, and the others have a meaning in the address of MLflow's store
        special = sorted(set(self.results) & set("{}?#%"))
        if special:
            raise ValueError(f"results: '{self.results}' has the character {special[0]}; choose a folder without it")
        return self

    def made_from(self, baseline: BaselineSettings) -> dict[str, Any]:
        """Return the settings that a baseline's encoder depends on besides its own, by dotted name."""
        match baseline.kind:
            case "random":
                return {
                    "seed": self.seed,
                    "pretrain.encoder": self.pretrain.encoder.plain(),
                    "pretrain.views.teacher_size": self.pretrain.views.teacher_size,
                }
            case "timm":
                return {"features.crop": self.features.crop}
            case "file":
                return {}
