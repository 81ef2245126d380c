import pytest

from pid_jax import tasks
from pid_jax.errors import UserError
from pid_jax.tasks.dialogue_state import PER_DOMAIN, PER_SLOT, document_text


def test_a_document_is_one_lower_case_line_without_silent_speakers():
    assert (
        document_text(
            [("system", ""), ("user", "A  Hotel\nplease"), ("system", " \t"), ("user", "Now !")]
        )
        == "[user] a hotel please [user] now !"
    )


@pytest.mark.parametrize(
    ("style", "prompt"),
    [
        ("slot", "hotel-book stay"),
        ("description", "number of nights at the hotel"),
        ("both", "hotel-book stay: number of nights at the hotel"),
    ],
)
@pytest.mark.parametrize("name", ["multiwoz21", "synthetic_dst"])
def test_a_prompt_is_the_slot_its_description_or_both(name, style, prompt):
    example = tasks.get(name, prompts=style).example("id", "[user] hi", {"hotel-book stay": "3"})
    (subtask,) = [s for s in example.subtasks if s.id == "hotel-book stay"]
    assert (subtask.prompt, subtask.target) == (prompt, "3")


def test_slots_outside_the_state_are_none():
    example = tasks.get("multiwoz21").example("id", "[user] hi", {"train-day": "monday"})
    assert {s.target for s in example.subtasks if s.id != "train-day"} == {"none"}
    assert len(example.subtasks) == 30


def test_closed_holds_categorical_slots_to_their_values():
    price, taxi = (
        subtask
        for subtask in tasks.get("multiwoz21", closed=True).example("id", "[user] hi", {}).subtasks
        if subtask.id in ("hotel-pricerange", "taxi-departure")
    )
    assert price.allowed == ("cheap", "moderate", "expensive", "dontcare", "none")
    assert taxi.allowed is None
    open_task = tasks.get("multiwoz21").example("id", "[user] hi", {})
    assert all(subtask.allowed is None for subtask in open_task.subtasks)


def turn(task, identifier, state):
    return task.example(identifier, "[user] hi", state)


def predicted(task, state):
    return {slot: state.get(slot, "none") for slot in task.slots}


def test_a_report_scores_turns_and_names_its_policy():
    task = tasks.get("multiwoz24")
    examples = [turn(task, "a", {"hotel-area": "north"}), turn(task, "b", {})]
    predictions = {
        "a": predicted(task, {"hotel-area": " north "}),
        "b": predicted(task, {"hotel-area": "north"}),
    }
    report = task.score(examples, predictions)
    assert report.metrics == {
        "joint_goal_accuracy": 0.5,
        "slot_accuracy": pytest.approx((30 + 29) / 60),
    }
    assert report.policy.keys() == {"data", "normalisation", "none", "dontcare", "|"}
    assert report.policy["data"].startswith("MultiWOZ 2.4; ")


def test_tables_split_the_score_by_slot_and_by_domain():
    task = tasks.get("multiwoz24")
    examples = [
        turn(task, "a", {"hotel-area": "north", "train-day": "monday"}),
        turn(task, "b", {"hotel-area": "north"}),
        turn(task, "c", {}),
        turn(task, "d", {}),
    ]
    predictions = {
        "a": predicted(task, {"hotel-area": "north", "train-day": "sunday"}),
        "b": predicted(task, {"hotel-area": "north", "hotel-stars": "4"}),
        "c": predicted(task, {}),
        "d": predicted(task, {"taxi-leaveat": "12:15"}),
    }
    tables = task.score(examples, predictions).tables
    per_slot = tables[PER_SLOT]
    assert list(per_slot) == sorted(task.slots)
    wrong = {slot: figure for slot, figure in per_slot.items() if figure != 1.0}
    assert wrong == {"hotel-stars": 0.75, "taxi-leaveat": 0.75, "train-day": 0.75}
    # Hotel: right in a, not in b, absent from c and d. The others come up once, wrongly.
    assert tables[PER_DOMAIN] == {"hotel": 0.5, "taxi": 0.0, "train": 0.0}


def test_of_several_values_the_first_is_learnt_and_any_is_right():
    task = tasks.get("multiwoz24")
    example = turn(task, "a", {"taxi-leaveat": ("12:15", "quarter past 12")})
    (subtask,) = [s for s in example.subtasks if s.id == "taxi-leaveat"]
    assert subtask.target == "12:15"
    assert subtask.references == ("12:15", "quarter past 12")


def test_any_of_is_an_option_that_the_policy_names():
    strict, lenient = tasks.get("multiwoz24"), tasks.get("multiwoz24", any_of=True)
    examples = [turn(strict, "a", {"hotel-area": "north|east"})]
    predictions = {"a": predicted(strict, {"hotel-area": "east"})}
    assert strict.score(examples, predictions).metrics["joint_goal_accuracy"] == 0.0
    assert lenient.score(examples, predictions).metrics["joint_goal_accuracy"] == 1.0
    assert (
        strict.score(examples, predictions).policy["|"]
        != (lenient.score(examples, predictions).policy["|"])
    )


def test_slot_accuracy_is_over_the_task_s_own_slots():
    task = tasks.get("synthetic_dst")
    report = task.score([turn(task, "a", {"hotel-area": "north"})], {"a": predicted(task, {})})
    assert report.metrics["slot_accuracy"] == pytest.approx(10 / 11)


def test_a_missing_prediction_is_an_error():
    task = tasks.get("multiwoz21")
    with pytest.raises(UserError, match="no prediction for example 'a'"):
        task.score([turn(task, "a", {})], {})
    with pytest.raises(UserError, match=r"no prediction for subtask 'attraction-area' of .* 'a'"):
        task.score([turn(task, "a", {})], {"a": {"hotel-area": "none"}})
