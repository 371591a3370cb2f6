"""Tables count what the records say, keep errors apart, and weigh as they state."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_opt.evaluation import EpisodeRecord, html_table, success_table, text_table, wilson

OUTCOMES = {"s": "success", "f": "failure", "e": "error"}


def episodes(outcomes: str, **changes: Any) -> list[EpisodeRecord]:
    """One record per letter: s(uccess), f(ailure), e(rror)."""
    return [
        EpisodeRecord(
            **{
                "suite": "libero_goal",
                "task_id": 0,
                "init_state": i,
                "seed": i,
                "outcome": OUTCOMES[letter],
                "success": letter == "s",
                "steps": 100 + i,
                "wall_s": 1.0,
                "cpu_s": 1.0,
                "error": "lost" if letter == "e" else None,
                "language": "open the drawer",
                **changes,
            }
        )
        for i, letter in enumerate(outcomes)
    ]


def test_rows_per_task_suite_and_total() -> None:
    table = success_table(
        episodes("sssf")
        + episodes("sf", task_id=1, language="push the plate")
        + episodes("ff", suite="libero_10", language="turn on the stove")
    )
    assert [(r.name, r.successes, r.scored) for r in table.tasks] == [
        ("libero_10 0", 0, 2),
        ("libero_goal 0", 3, 4),
        ("libero_goal 1", 1, 2),
    ]
    assert [(r.name, r.successes, r.scored) for r in table.suites] == [
        ("libero_10", 0, 2),
        ("libero_goal", 4, 6),
    ]
    assert (table.total.name, table.total.successes, table.total.scored) == ("total", 4, 8)
    assert table.tasks[1].language == "open the drawer"
    assert table.total.language == ""


def test_errors_are_in_no_numerator_and_no_denominator() -> None:
    (row,) = success_table(episodes("ssfee")).tasks
    assert (row.successes, row.scored, row.errors) == (2, 3, 2)
    assert row.rate == pytest.approx(2 / 3)
    assert row.interval == wilson(2, 3)


def test_task_of_errors_alone_has_no_rate_and_is_no_zero_in_the_means() -> None:
    table = success_table(episodes("ss") + episodes("ee", task_id=1))
    assert table.tasks[1].rate is None
    assert table.task_mean == table.suite_mean == 1.0
    assert "libero_goal 1  0/0 (nothing measured)             + 2 errors" in text_table(table)
    assert "not measured" in html_table(table)


def test_means_weigh_tasks_and_suites_the_same_and_the_total_weighs_episodes() -> None:
    table = success_table(
        episodes("ssss") + episodes("f", task_id=1) + episodes("f", suite="libero_10")
    )
    assert table.total.rate == pytest.approx(4 / 6)
    assert table.task_mean == pytest.approx(1 / 3)
    assert table.suite_mean == pytest.approx((4 / 5 + 0) / 2)
    assert not table.is_balanced
    assert success_table(episodes("sf") + episodes("fs", task_id=1)).is_balanced


def test_steps_are_the_mean_over_successes() -> None:
    (row,) = success_table(episodes("sfs")).tasks
    assert row.mean_steps == pytest.approx((100 + 102) / 2)
    assert success_table(episodes("ff")).total.mean_steps is None


def test_nothing_evaluated_is_an_empty_table() -> None:
    table = success_table([])
    assert (table.tasks, table.suites, table.total.scored) == ((), (), 0)
    assert table.task_mean is None
    assert text_table(table) == "total  0/0 (nothing measured)"
    assert "0/0" in html_table(table)


def test_text_is_aligned_and_ends_with_the_total() -> None:
    table = success_table(
        episodes("s" * 9 + "e") + episodes("sf", task_id=12) + episodes("s", suite="libero_10")
    )
    assert text_table(table).splitlines() == [
        "libero_10 0     1/1 (100.0 %, 95 % CI 20.7-100.0)             open the drawer",
        "libero_10       1/1 (100.0 %, 95 % CI 20.7-100.0)",
        "libero_goal 0   9/9 (100.0 %, 95 % CI 70.1-100.0)  + 1 error  open the drawer",
        "libero_goal 12  1/2 (50.0 %, 95 % CI 9.5-90.5)                open the drawer",
        "libero_goal     10/11 (90.9 %, 95 % CI 62.3-98.4)  + 1 error",
        "total           11/12 (91.7 %, 95 % CI 64.6-98.5)  + 1 error",
    ]


def test_one_suite_is_not_repeated_as_total() -> None:
    lines = text_table(success_table(episodes("sf"))).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["libero_goal 0", "libero_goal"]


def test_differing_instructions_of_a_task_are_not_shown_as_one() -> None:
    mixed = episodes("s") + episodes("f", trial=1, language="open it")
    assert success_table(mixed).tasks[0].language == ""


def test_html_escapes_names() -> None:
    page = html_table(success_table(episodes("s", suite="<i>", language="a & b")))
    assert "<i>" not in page
    assert "&lt;i&gt; 0" in page
    assert "a &amp; b" in page


@given(
    st.lists(
        st.tuples(st.sampled_from("sfe"), st.integers(0, 3), st.sampled_from(["a", "b"])),
        max_size=40,
    )
)
def test_rows_add_up(draws: list[tuple[str, int, str]]) -> None:
    records = [
        record
        for i, (letter, task_id, suite) in enumerate(draws)
        for record in episodes(letter, task_id=task_id, suite=suite, init_state=i)
    ]
    table = success_table(reversed(records))
    for name in ("successes", "scored", "errors"):
        tasks = sum(getattr(row, name) for row in table.tasks)
        suites = sum(getattr(row, name) for row in table.suites)
        assert tasks == suites == getattr(table.total, name)
    assert table.total.scored + table.total.errors == len(records)
