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


def test_a_task_of_one_s_own_is_named_by_its_module():
    task = tasks.get("pid_jax.tasks.squad:Squad2", no_answer="none")
    assert (task.name, task.negative_target) == ("squad2", "none")
    with pytest.raises(UserError, match="task no_such:Task: the module 'no_such' cannot be imp"):
        tasks.get("no_such:Task")
    with pytest.raises(UserError, match=r"squad:Squad3: .* has no class or function 'Squad3'"):
        tasks.get("pid_jax.tasks.squad:Squad3")
    with pytest.raises(UserError, match="squad:Squad2 has no option no_anser: it has no_answer"):
        tasks.get("pid_jax.tasks.squad:Squad2", no_anser="none")
    with pytest.raises(UserError, match=r"is not a task: it has no name, .*examples, score"):
        tasks.get("tests.tasks.test_registry:NoTask", size=3)
    with pytest.raises(UserError, match="NoTask: missing a required argument: 'size'"):
        tasks.get("tests.tasks.test_registry:NoTask")


class NoTask:
    def __init__(self, size):
        self.size = size


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(
        UserError, match="multiwoz21 has no option promts: it has any_of, closed, prompts"
    ):
        tasks.get("multiwoz21", promts="slot")


def test_an_unknown_value_of_an_option_lists_the_known_ones():
    with pytest.raises(UserError, match="prompts='name': choose from slot, description, both"):
        tasks.get("multiwoz21", prompts="name")


def test_dialogue_state_tasks_name_their_negative_target():
    assert tasks.get("multiwoz24").negative_target == "none"
    assert tasks.get("synthetic_dst").negative_target == "none"
    assert tasks.get("jsonl").negative_target is None
    assert tasks.get("jsonl", negative_target="no").negative_target == "no"
