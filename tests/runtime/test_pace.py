"""When checkpoints are written: as the settings say, and at epochs' ends where that costs next to nothing."""

from flsl.config.compute import ComputeSettings
from flsl.runtime.pace import Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def saved_at(seconds_a_save: float, epochs: int, steps: int, seconds_a_step: float, **settings: float) -> list[int]:
    """The steps after which a training of so many epochs of so many steps writes checkpoints."""
    clock = Clock()
    pace = Pace(ComputeSettings.model_validate(settings), clock)
    saved = []
    for step in range(1, epochs * steps + 1):
        clock.now += seconds_a_step
        if pace.due(step, epoch_ends=step % steps == 0):
            saved.append(step)
            with pace.saving():
                clock.now += seconds_a_save
    return saved


def test_a_cheap_checkpoint_is_written_at_every_epochs_end() -> None:
    assert saved_at(0.05, epochs=5, steps=10, seconds_a_step=1.0) == [10, 20, 30, 40, 50]


def test_a_dear_one_takes_a_hundredth_of_the_time() -> None:
    # 2 seconds every 40: five times a hundredth
    steps = saved_at(2.0, epochs=100, steps=40, seconds_a_step=1.0)
    assert steps[:3] == [40, 240, 440]
    assert len(steps) * 2.0 <= 0.011 * 100 * 40


def test_minutes_and_steps_are_kept_whatever_they_cost() -> None:
    assert saved_at(9.0, epochs=1, steps=400, seconds_a_step=1.0, checkpoint_minutes=2.0) == [120, 240, 360]
    assert saved_at(9.0, epochs=1, steps=9, seconds_a_step=1.0, checkpoint_steps=3) == [3, 6, 9]
