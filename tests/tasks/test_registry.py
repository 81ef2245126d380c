import pytest

from pid_jax import tasks
from pid_jax.errors import UserError


def test_every_name_makes_the_task_of_that_name():
    assert tasks.names() == (
        "aci_bench",
        "jsonl",
        "multiwoz20",
        "multiwoz21",
        "multiwoz22",
        "multiwoz23",
        "multiwoz24",
        "radqa",
        "sgd",
        "squad1",
        "squad2",
        "synthetic_dst",
    )
    assert [tasks.get(name).name for name in tasks.names()] == list(tasks.names())


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown task 'multiwoz'.*multiwoz20, multiwoz21"):
        tasks.get("multiwoz")


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(UserError, match="multiwoz21 has no option promts: it has any_of, prompts"):
        tasks.get("multiwoz21", promts="slot")


def test_an_unknown_value_of_an_option_lists_the_known_ones():
    with pytest.raises(UserError, match="prompts='name': choose from slot, description, both"):
        tasks.get("multiwoz21", prompts="name")


def test_dialogue_state_tasks_name_their_negative_target():
    assert tasks.get("multiwoz24").negative_target == "none"
    assert tasks.get("synthetic_dst").negative_target == "none"
    assert tasks.get("jsonl").negative_target is None
    assert tasks.get("jsonl", negative_target="no").negative_target == "no"
