"""Names and settings are spelled as MLflow takes them, and stay apart."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from flsl.runtime.results import flat
from flsl.track.names import curve_name, is_curve, mlflow_name, mlflow_params


def test_names_of_the_protocols_are_spelled_readably() -> None:
    assert mlflow_name("knn/top1@20") == "knn/top1_at_20"
    assert mlflow_name("davis/J&F-Mean") == "davis/J_and_F-Mean"
    assert mlflow_name("uavdt/AP@0.7") == "uavdt/AP_at_0.7"
    assert mlflow_name("coco/bbox/AP") == "coco/bbox/AP"


@given(st.text(max_size=400))
def test_every_name_is_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_length_limit, _validate_metric_name

    _validate_metric_name(mlflow_name(name))
    _validate_length_limit("Metric name", 250, mlflow_name(name))
    assert mlflow_name(mlflow_name(name)) == mlflow_name(name)


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
@example("/", "/")
@example("step", "/")
@example("system", "/")
@example("epoch", "system//")
def test_curves_are_told_from_figures_by_their_names(kind: str, key: str) -> None:
    assert is_curve(curve_name(kind, key))
    assert not is_curve(mlflow_name("pretrain/loss"))


def test_curves_of_the_machine_are_system_metrics() -> None:
    assert curve_name("step", "loss") == "train/loss"
    assert curve_name("epoch", "online_knn") == "epoch/online_knn"
    assert curve_name("step", "images_per_second") == "system/images_per_second"
    assert curve_name("step", "data_wait_percent") == "system/data_wait_percent"
    assert curve_name("step", "gpu_memory_mb") == "system/gpu_memory_mb"


def test_params_are_flat_and_long_values_stay_different() -> None:
    settings = {"views": {"scale": [0.8, 1.0], "blur": True}, "name": "vit", "width": None, "long": "x" * 600}
    assert flat({"a": {"b": {"c": 1}, "d": [2]}}) == {"a.b.c": 1, "a.d": [2]}
    params = mlflow_params(settings)
    assert params["views.scale"] == "[0.8, 1.0]"
    assert params["views.blur"] == "true"
    assert params["name"] == "vit"
    assert params["width"] == "null"
    assert len(params["long"]) == 500
    assert params["long"] != mlflow_params({"long": "x" * 601})["long"]
