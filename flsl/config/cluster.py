"""Settings of the jobs that train on several nodes: what is asked of the cluster, and how they are waited for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flsl.config.base import Count, Settings

Name = Annotated[str, Field(min_length=1, pattern=r"^\S+$")]


class ShapeSettings(Settings):
    """The shape of a job."""

    nodes: Count = Field(1, description="Nodes.")
    gpus_per_node: int | None = Field(
        None,
        ge=0,
        description="GPUs per node; null: one, or none with `compute.device: cpu` and for `local` without GPUs.",
    )
    tasks_per_node: Count | None = Field(None, description="Processes per node; null: one per GPU, at least one.")
    cpus_per_task: Count = Field(8, description="CPU cores per process.")
    memory_gb: float | None = Field(16.0, gt=0, description="Memory per node, in GB; null leaves it to the site.")
    minutes: Count = Field(2880, description="Time limit of an attempt, in minutes; it is requeued when it ends.")

    def on_attempt(self, attempt: int) -> dict[str, float]:
        """Return what is asked for otherwise when a job that failed is tried again.

        More memory, but not more time: it goes on after its limit anyway, and many ask for the longest time there is.
        """
        return {} if self.memory_gb is None else {"memory_gb": self.memory_gb * attempt}


class DetectionShapeSettings(ShapeSettings):
    """The job of `flsl submit detect`; the rest of `cluster` holds for it, too.

    In the workflow, detection is trained by such a job where this asks for more than one process.
    """

    memory_gb: float | None = Field(32.0, gt=0, description="Memory per node, in GB; null leaves it to the site.")


class ClusterSettings(ShapeSettings):
    """What `flsl submit pretrain` asks for; no stage is rerun because one of these changed."""

    kind: Literal["auto", "none", "local", "slurm"] = Field(
        "auto",
        description="Where training runs: `slurm`: as a job of its own; `local`: the same number of processes on "
        "this machine; `none`: in the workflow's own job; `auto`: in the workflow `slurm` under a cluster's profile "
        "and else `none`, by `flsl submit` `slurm` where there is sbatch and else `local`.",
    )
    detection: DetectionShapeSettings = Field(
        DetectionShapeSettings(), description="Shape of the jobs that train detectors (COCO and UAVDT)."
    )
    partition: Name | None = Field(None, description="Partition; null leaves it to SBATCH_PARTITION or the site.")
    account: Name | None = Field(None, description="Account; null leaves it to SBATCH_ACCOUNT or the site.")
    qos: Name | None = Field(None, description="Quality of service; null leaves it to SBATCH_QOS or the site.")
    constraint: Name | None = Field(None, description="Features that the nodes must have, as sbatch's --constraint.")
    extra: dict[str, str | int | bool] = Field(
        {}, description="Further parameters of sbatch by long name, e.g. `{exclude: node7, exclusive: true}`."
    )
    setup: list[str] = Field(
        [], description="Shell commands before the job starts on its first node, e.g. `module load cuda`."
    )
    signal_seconds: int = Field(
        120, ge=1, description="Seconds before the time limit at which the job is told to save and is requeued."
    )
    requeues: int = Field(
        20, ge=0, description="Times that a job may start again after a time limit, a preemption or a lost node."
    )
    poll_seconds: float = Field(
        5.0, ge=0.5, description="Seconds between two questions to SLURM, for all that wait on one machine together."
    )
    latency_seconds: float = Field(
        60.0, ge=0, description="Seconds that files may take to be seen on another node (NFS)."
    )
    cancel_on_interrupt: bool = Field(
        False, description="Cancel the job when the waiting process is interrupted; by default it goes on."
    )

    @model_validator(mode="after")
    def _fit(self) -> ClusterSettings:
        for name, minutes in (("", self.minutes), ("detection.", self.detection.minutes)):
            if self.signal_seconds >= 60 * minutes:
                raise ValueError(
                    f"signal_seconds: must be less than the time limit, {name}minutes ({60 * minutes} s), not "
                    f"{self.signal_seconds}"
                )
        return self

    def for_detection(self) -> ClusterSettings:
        """Return the settings of a detection training's job."""
        shape = {name: getattr(self.detection, name) for name in ShapeSettings.model_fields}
        return self.model_copy(update=shape)
