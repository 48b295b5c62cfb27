"""Budgets, schedules and max_time."""

import pytest

from medseg.errors import UsageError
from medseg.training.schedule import Budget, learning_rate_factor, parse_max_time


@pytest.mark.parametrize(("text", "seconds"), [("00:00:01:30", 90), ("01:02:03:04", 93784), (None, None)])
def test_max_time(text, seconds):
    assert parse_max_time(text) == seconds


@pytest.mark.parametrize("text", ["90", "1:30", "00:00:00:00", "00:00:1:30", "soon"])
def test_max_time_refused(text):
    with pytest.raises(UsageError, match="DD:HH:MM:SS"):
        parse_max_time(text)


def test_budget_without_an_end_is_refused():
    with pytest.raises(UsageError, match="no end"):
        Budget()


def test_progress_by_steps_ignores_the_clock():
    budget = Budget(max_steps=200, spent=1e6)
    assert [budget.progress(step) for step in (0, 50, 200, 300)] == [0, 0.25, 1, 1]


def test_progress_by_time_counts_earlier_processes_and_the_nearer_end_wins():
    budget = Budget(max_steps=100, max_seconds=60, spent=30)
    assert budget.progress(0) == 0.5
    assert budget.progress(80) == 0.8


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_schedules_fall_from_one_to_zero(schedule):
    factors = [learning_rate_factor(i / 20, schedule, warmup=0) for i in range(21)]
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(0)
    assert factors == sorted(factors, reverse=True)


def test_poly_is_nnunets():
    assert learning_rate_factor(0.5, "poly", 0) == pytest.approx(0.5**0.9)


def test_step_is_the_official_hybridgnets_step_lr_in_every_epoch():
    factors = [learning_rate_factor(epoch * 44 / 110_000, "step", 0) for epoch in range(2500)]
    assert factors == [0.9 ** (epoch // 50) for epoch in range(2500)]


def test_warmup_rises_from_more_than_zero():
    assert 0 < learning_rate_factor(0.0, "constant", 0.1) < learning_rate_factor(0.05, "constant", 0.1) < 1
    assert learning_rate_factor(0.1, "constant", 0.1) == 1


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        learning_rate_factor(0, "cosin", 0)
