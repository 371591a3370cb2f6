"""What a task asks for, step by step."""

import pytest

from envs._goals import Goal, UnsupportedTaskError, parse_goals, task_goals
from envs.tasks import list_tasks

DRAWER = "cabinet_1_top_region"


def problem(goal, language="pick up the bowl", initial_state=()):
    return {
        "goal_state": goal,
        "language_instruction": language,
        "initial_state": list(initial_state),
    }


def steps(goal, language="put it", initial_state=()):
    return [g.state for g in parse_goals(problem(goal, language, initial_state))]


def test_goals_are_read_from_the_predicates():
    (goal,) = parse_goals(problem([["on", "bowl_1", "plate_1"]]))
    assert goal == Goal(predicate="on", item="bowl_1", target="plate_1")
    assert goal.state == ["on", "bowl_1", "plate_1"]


def test_what_shall_be_pushed_stays_on_the_table():
    (goal,) = parse_goals(problem([["on", "plate_1", "region"]], "Push the plate to the front"))
    assert goal.slide


@pytest.mark.parametrize(
    ("goal", "names"),
    [
        ([["open", "microwave_1"]], "microwave_1"),
        ([["in", "mug_1", "microwave_1_heating_region"]], "heating_region"),
        ([["painted", "bowl_1"]], "painted"),
        ([["in", "bowl_1", DRAWER]], "not open at the start"),
    ],
)
def test_other_tasks_are_refused_with_the_reason(goal, names):
    with pytest.raises(UnsupportedTaskError, match=names):
        parse_goals(problem(goal))


def test_an_open_drawer_can_be_a_target():
    goal = [["in", "bowl_1", DRAWER]]
    assert steps(goal, initial_state=[["open", DRAWER]]) == goal


def test_a_drawer_is_opened_before_something_goes_in():
    opened, fill = ["open", DRAWER], ["in", "bowl_1", DRAWER]
    assert steps([fill, opened]) == [opened, fill]


def test_a_drawer_is_shut_over_what_it_holds():
    close, fill = ["close", DRAWER], ["in", "bowl_1", DRAWER]
    assert steps([close, fill], initial_state=[["open", DRAWER]]) == [fill, close]


def test_a_drawer_in_the_way_is_shut_first():
    close, place = ["close", DRAWER], ["on", "bowl_1", "cabinet_1_top_side"]
    assert steps([place, close], initial_state=[["open", DRAWER]]) == [close, place]


def test_a_stove_is_turned_on_before_the_pot_stands_on_it():
    on, place = ["turnon", "stove_1"], ["on", "pot_1", "stove_1_cook_region"]
    assert steps([place, on], "turn on the stove") == [on, place]


def test_two_objects_on_one_region_know_of_each_other():
    goals = parse_goals(problem([["on", "pot_1", "stove"], ["on", "pot_2", "stove"]]))
    assert [goal.beside for goal in goals] == ["pot_2", "pot_1"]
    heap = parse_goals(problem([["in", "soup", "basket"], ["in", "butter", "basket"]]))
    assert [goal.beside for goal in heap] == ["", ""]


def test_a_refusal_names_the_task():
    task = next(task for task in list_tasks("libero_90") if "open_the_microwave" in task.name)
    with pytest.raises(UnsupportedTaskError, match=r"libero_90 task \d+ \(open the microwave\)"):
        task_goals(task)
