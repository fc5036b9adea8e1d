"""Ablations: which runs they come to, what their names are, what is shared, and how mistakes are told."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from flsl.config.changes import run_name
from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.config.loading import require_data, run_experiment
from flsl.config.sweep import Plan, plan
from flsl.runtime.errors import UserError

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def experiment(ablations: dict[str, Any], **settings: Any) -> Experiment:
    return check(Experiment, {"project": "x", "stages": ["knn", "linear"], "ablations": ablations, **settings}, "test")


def planned(ablations: dict[str, Any], **settings: Any) -> Plan:
    return plan(experiment(ablations, **settings))


def runs_of(whole: Plan, ablation: str = "a") -> list[str]:
    return [point.run for point in whole.ablations[ablation].points]


def test_a_grid_is_the_product_of_its_axes_and_seeds() -> None:
    grid = {"pretrain.prototypes": [16, 32, 64], "pretrain.tau_ca": [0.2, 0.4]}
    points = planned({"a": {"grid": grid, "seeds": [0, 3]}}).ablations["a"].points
    wanted = list(itertools.product(*grid.values(), [0, 3]))
    assert [(*point.values.values(), point.seed) for point in points] == wanted
    for point in points:
        resolved = plan(experiment({"a": {"grid": grid, "seeds": [0, 3]}})).runs[point.run].settings
        assert resolved.pretrain.prototypes == point.values["pretrain.prototypes"]
        assert resolved.pretrain.tau_ca == point.values["pretrain.tau_ca"]
        assert resolved.seed == point.seed


def test_runs_are_named_after_what_they_change() -> None:
    grid = {"pretrain.prototypes": [1024, 4096]}
    whole = planned({"a": {"grid": grid, "seeds": [0, 1], "shared": {"pretrain.epochs": 20}}})
    assert runs_of(whole) == [
        "epochs-20_prototypes-1024",
        "epochs-20_prototypes-1024_seed-1",
        "epochs-20",
        "epochs-20_seed-1",
    ]
    assert run_name({}) == "base"
    assert run_name({"pretrain.tau_ca": {"start": 0.1, "end": 1.0}}) == "tau_ca-0.1-to-1"
    assert run_name({"pretrain.views.local_scale": [0.05, 0.4]}) == "views.local_scale-0.05-0.4"
    assert run_name({"pretrain.centering": True, "pretrain.encoder.depth": None}) == "centering-true_encoder.depth-null"
    assert run_name({"pretrain.learning_rate": 1e-5, "seed": 2}) == "learning_rate-1e-05_seed-2"
    long = [run_name({"pretrain.encoder.name": text}) for text in ("x" * 200, "x" * 201, "a b", "a-b")]
    assert len(set(long)) == 4
    assert all(len(name) <= 100 and _SLUG.fullmatch(name) for name in long)


def test_points_equal_to_the_base_or_to_a_run_or_across_ablations_are_one_run() -> None:
    whole = planned(
        {
            "a": {"grid": {"pretrain.prototypes": [1024, 4096, 8192]}},
            "b": {"points": [{}, {"pretrain.prototypes": 1024}, {"pretrain.intra_weight": 0}]},
        },
        runs={"base": {}, "wide": {"pretrain.prototypes": 8192}},
    )
    assert runs_of(whole) == ["prototypes-1024", "base", "wide"]
    assert runs_of(whole, "b") == ["base", "prototypes-1024", "intra_weight-0"]
    assert list(whole.runs) == ["base", "wide", "prototypes-1024", "intra_weight-0"]
    assert [point.base for point in whole.ablations["a"].points] == [False, True, False]


def test_an_int_and_a_float_of_one_value_are_one_point() -> None:
    with pytest.raises(UserError, match=r"a.points.1: is the same point as ablations.a.points.0"):
        planned({"a": {"points": [{"pretrain.intra_weight": 0}, {"pretrain.intra_weight": 0.0}]}})


def test_a_point_that_says_what_the_experiment_says_anyway_is_the_base() -> None:
    points: list[dict[str, Any]] = [{"pretrain.prototypes": 1024}, {"pretrain.prototypes": 4096}, {}]
    whole = planned({"a": {"points": points}})
    assert runs_of(whole, "a") == ["prototypes-1024", "base"]
    assert [point.base for point in whole.ablations["a"].points] == [False, True]


def test_named_points_of_equal_settings_are_one_by_all_their_names() -> None:
    points = {
        "vmr": {},
        "k16": {"pretrain.prototypes": 16, "pretrain.tau_sa": 0.1},
        "same": {"pretrain.prototypes": 16},
        "default": {"pretrain.tau_sa": 0.1},
    }
    whole = planned({"a": {"points": points, "seeds": [0, 1]}})
    assert [(point.name, point.run) for point in whole.ablations["a"].points] == [
        ("vmr = default", "base"),
        ("vmr = default", "seed-1"),
        ("k16 = same", "prototypes-16"),
        ("k16 = same", "prototypes-16_seed-1"),
    ]


AXES: dict[str, list[Any]] = {
    "pretrain.prototypes": [16, 4096],
    "pretrain.views.local_crops": [0, 2, 4],
    "pretrain.tau_ca": [0.2, {"start": 0.1, "end": 0.3}],
    "knn.temperature": [0.05, 0.07],
    "linear.epochs": [5, 100],
    "seed": [0, 1],
}
changes = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in AXES.items()})


@settings(max_examples=30)
@given(st.lists(changes, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_and_further_points_rename_nothing_and_move_no_work(
    points: list[dict[str, Any]], order: random.Random
) -> None:
    def places(some: list[dict[str, Any]]) -> Plan:
        return planned({f"p{place}": {"points": [one]} for place, one in enumerate(some)})

    whole = places(points)
    shuffled = list(points)
    order.shuffle(shuffled)
    again, less = places(shuffled), places(points[:-1])
    facts = {run.name: (run.settings, run.shares) for run in whole.runs.values()}
    assert {run.name: (run.settings, run.shares) for run in again.runs.values()} == facts
    for run in less.runs.values():
        now = whole.runs[run.name]
        assert run.settings.model_copy(update={"stages": []}) == now.settings.model_copy(update={"stages": []})
        assert run.shares.items() <= now.shares.items()
    for run in whole.runs.values():
        for stage, owner in run.shares.items():
            made_by = whole.runs[owner]
            # who makes a stage has the very settings that it depends on, and does not hand it on
            assert stage not in made_by.shares
            assert made_by.settings.pretrain == run.settings.pretrain
            assert made_by.settings.seed == run.settings.seed
            if stage not in ("pretrain", "features"):
                assert stage in made_by.stages
                assert getattr(made_by.settings, stage) == getattr(run.settings, stage)


def test_points_that_differ_in_evaluation_only_share_the_pretraining_and_other_stages() -> None:
    whole = planned({"a": {"grid": {"knn.temperature": [0.05, 0.1]}, "shared": {"pretrain.prototypes": 16}}})
    first = whole.runs["knn.temperature-0.05_prototypes-16"]
    assert first.shares == {"pretrain": "prototypes-16", "features": "prototypes-16", "linear": "prototypes-16"}
    owner = whole.runs["prototypes-16"]
    # it is there for the others' sake, and has no k-NN of its own
    assert (owner.settings.stages, owner.shares) == (["linear"], {})


def test_a_named_run_with_evaluation_changes_shares_with_the_base_if_there_is_one() -> None:
    crop = {"features.crop": 192}
    assert planned({}, runs={"base": {}, "crop": crop}).runs["crop"].shares == {"pretrain": "base"}
    assert planned({}, runs={"crop": crop}).runs["crop"].shares == {}


def test_stages_of_a_run_are_those_of_all_its_ablations() -> None:
    whole = planned(
        {
            "a": {"grid": {"pretrain.prototypes": [16, 4096]}, "stages": ["davis"]},
            "b": {"grid": {"pretrain.prototypes": [16, 32]}, "stages": ["knn"]},
        },
        stages=["linear"],
    )
    stages = {run.name: run.settings.stages for run in whole.runs.values()}
    assert stages == {"base": ["linear", "davis"], "prototypes-16": ["knn", "davis"], "prototypes-32": ["knn"]}
    with pytest.raises(UserError, match=r"ablations.a.stages: davis needs data.davis"):
        require_data(
            experiment({"a": {"seeds": [1], "stages": ["davis"]}}, data={"images": {"root": "x"}}, stages=["knn"])
        )


def test_the_run_of_a_point_can_be_named_on_the_command_line() -> None:
    one = experiment({"a": {"grid": {"pretrain.prototypes": [16]}}})
    assert run_experiment(one, "prototypes-16").pretrain.prototypes == 16
    with pytest.raises(UserError, match=r"no such run \(did you mean 'prototypes-16'\?\)"):
        run_experiment(one, "prototypes-1")


@pytest.mark.parametrize(
    ("ablation", "words"),
    [
        ({"grid": {"pretrain.prototypes": []}}, "ablations.a.grid.pretrain.prototypes: the axis is empty"),
        ({"grid": {"pretrain.prototypes": 3}}, "ablations.a.grid.pretrain.prototypes: input should be a list, not 3"),
        ({"grid": {"pretrain.prototyps": [1]}}, "prototyps: unknown setting (did you mean 'prototypes'?)"),
        ({"grid": {"prototypes": [1]}}, "prototypes: unknown setting (did you mean 'pretrain.prototypes'?)"),
        ({"grid": {"epochs": [1]}}, "epochs: unknown setting (did you mean 'pretrain.epochs'?)"),
        ({"grid": {"pretrian.epochs": [1]}}, "pretrian.epochs: unknown setting (did you mean 'pretrain.epochs'?)"),
        ({"grid": {"pretrain.prototypes": ["x"]}}, 'prototypes: input should be a valid integer, not "x"'),
        ({"grid": {"pretrain.prototypes": [4, 4]}}, "the value 4 stands there twice"),
        ({"grid": {"pretrain": [{"epochs": 3}]}}, "a.grid: pretrain: is a whole section; name its settings one by one"),
        ({"points": [{"pretrain.views": {"local_crops": 1}}]}, "e.g. 'pretrain.views.teacher_size'"),
        ({"grid": {"compute.compile": [True]}}, "'compute.compile' cannot differ between runs"),
        ({"grid": {"pretrain.query_window": [2, 99]}}, "query_window: 99 is larger than the 14 tokens"),
        ({"points": [{"knn.k": [5]}] * 2}, "a.points.1: is the same point as ablations.a.points.0"),
        ({"points": [3]}, "ablations.a.points.0: input should be a mapping, not 3"),
        ({"points": {"a b": {}}}, "ablations.a.points.a b: a name takes letters"),
        ({"points": [{}], "grid": {"seed": [1]}}, "ablations.a.points: give either a grid or points"),
        ({"points": [{"seed": 1}], "seeds": [0]}, "ablations.a.points.0.seed: give seeds either in"),
        ({"grid": {"pretrain.epochs": [1]}, "shared": {"pretrain.epochs": 2}}, "a.shared.pretrain.epochs: is set by"),
        ({"seeds": [1, 1]}, "ablations.a.seeds: the seed 1 stands there twice"),
        ({"seeds": [0], "stages": []}, "ablations.a.stages: list should have at least 1 item"),
        ({"seeds": [0], "stages": ["kn"]}, "ablations.a.stages.0: input should be 'knn'"),
        (
            {"grid": {"davis.radius": [6, 12]}, "stages": ["knn"]},
            "ablations.a: davis.radius is varied, but no figure depends on it: the points have knn; name its stage in",
        ),
        ({"points": [{"davis.radus": 6}], "stages": ["knn"]}, "davis.radus: unknown setting"),
        ({"grdi": {}}, "ablations.a.grdi: unknown setting (did you mean 'grid'?)"),
        ({}, "ablations.a.grid: the ablation has no points"),
    ],
)
def test_mistakes_are_one_line_that_says_where(ablation: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        planned({"a": ablation})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["runs", "baselines"])
def test_a_name_that_is_taken_is_refused(kind: str) -> None:
    others = {
        "runs": {"runs": {"base": {}, "prototypes-16": {"seed": 3}}},
        "baselines": {"baselines": {"prototypes-16": {"kind": "random"}}},
    }
    with pytest.raises(UserError, match=rf"its run would be called prototypes-16, as {kind}.prototypes-16"):
        planned({"a": {"grid": {"pretrain.prototypes": [16]}}}, **others[kind])
