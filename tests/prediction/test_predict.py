"""What `python -m pid_jax.predict` writes, and its options."""

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from pid_jax import models
from pid_jax.command_line import with_flags
from pid_jax.commands.predict import make_predict_parser
from pid_jax.decoding.options import GenerationOptions
from pid_jax.inference.model import PidModel
from pid_jax.inference.request import Method
from pid_jax.inference.results import Generation
from tests.helpers.predict_command import LINES, Model, error_in, ids_in, run, status_of
from tests.helpers.questions import question, text_of
from tests.helpers.several_devices import result_of


@pytest.mark.parametrize("method", ["pid", "pie"])
def test_every_subtask_gains_what_the_model_generates(
    checkpoint: Path, questions: Path, tmp_path: Path, method: Method
) -> None:
    lines = run(
        checkpoint, questions, tmp_path / "out.jsonl", f"--method={method}", "--max-new-tokens=4"
    )

    model = PidModel.from_pretrained(checkpoint)
    for line in lines:
        document, prompts = line["document"], [subtask["prompt"] for subtask in line["subtasks"]]
        [expected] = model.generate([document], [prompts], max_new_tokens=4, method=method)
        assert [s["prediction"] for s in line["subtasks"]] == [answer.text for answer in expected]
        assert [s["score"] for s in line["subtasks"]] == pytest.approx(
            [answer.score for answer in expected], abs=1e-4
        )


def test_lines_stay_in_order_with_whatever_else_they_hold(
    checkpoint: Path, questions: Path, tmp_path: Path
) -> None:
    lines = run(checkpoint, questions, tmp_path / "out.jsonl", "--max-new-tokens=2")
    for line in lines:
        for subtask in line["subtasks"]:
            del subtask["prediction"], subtask["score"], subtask["finish_reason"]
    assert lines == LINES


def test_the_input_may_be_the_output(checkpoint: Path, questions: Path) -> None:
    lines = run(checkpoint, questions, questions, "--max-new-tokens=2")
    assert [line["id"] for line in lines] == ["short", "long"]
    assert "prediction" in lines[0]["subtasks"][0]


def test_a_bad_line_is_named_and_the_old_output_stays(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("old\n")
    with questions.open("a") as file:
        file.write('{"id": "third", "document": \n')
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, questions, output)
    assert stopped.value.code == 2
    error = error_in(capsys.readouterr().err)
    assert f"{questions}, line 3: not JSON" in error
    assert output.read_text() == "old\n"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--input=nowhere.jsonl", "nowhere.jsonl"),
        ("--checkpoint=./nowhere", "nowhere"),
        ("--output=.", "it is a directory"),
        ("--batch-size=0", "--batch-size must be at least 1"),
        ("--batch-tokens=0", "--batch-tokens must be at least 1"),
        ("--max-new-tokens=0", "max_new_tokens"),
        ("--temperature=0", "temperature must be above 0"),
        ("--write-every=0", "--write-every must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    checkpoint: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    expected: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, questions, tmp_path / "out.jsonl", option)
    assert stopped.value.code == 2
    error = error_in(capsys.readouterr().err)
    assert expected in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_checkpoint_without_a_tokenizer_is_refused(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(SystemExit):
        run(bare, questions, tmp_path / "out.jsonl")
    assert "no tokenizer" in capsys.readouterr().err


# How answers are chosen


def test_options_of_decoding_that_are_not_given_are_left_to_the_checkpoint() -> None:
    given = make_predict_parser("predict").parse_args(["--checkpoint=c", "--input=i", "--output=o"])
    assert {getattr(given, field.name) for field in with_flags(GenerationOptions)} == {None}


def test_options_reach_the_model(
    no_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def generate(model: Model, documents: Sequence[str], *_: Any, **options: Any) -> Any:
        calls.append(options)
        return [[Generation("", [], 0.0)] * 2 for _ in documents]

    monkeypatch.setattr(Model, "generate", generate)
    questions.write_bytes(text_of(1))
    command = "--do-sample --temperature=0.5 --top-k=3 --seed=7 --stop=; --stop=. --batch-tokens=99"
    run(no_model, questions, tmp_path / "out.jsonl", *command.split(), "--num-return-sequences=2")
    assert (
        calls[-1].items()
        >= {
            "do_sample": True,
            "temperature": 0.5,
            "top_k": 3,
            "seed": 7,
            "stop": [";", "."],
            "num_return_sequences": 2,
            "batch_tokens": 99,
            "batch_size": None,
            "allowed": None,
            "progress": False,
        }.items()
    )


def test_several_answers_are_written_and_resumed(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, beams = tmp_path / "out.jsonl", ["--num-beams=2", "--num-return-sequences=2"]
    options = ["--max-new-tokens=4", "--write-every=1", *beams]
    lines = run(checkpoint, questions, output, *options)
    model = PidModel.from_pretrained(checkpoint)
    for line in lines:
        prompts = [subtask["prompt"] for subtask in line["subtasks"]]
        [expected] = model.generate(
            [line["document"]], [prompts], max_new_tokens=4, num_beams=2, num_return_sequences=2
        )
        for subtask, answer in zip(line["subtasks"], expected, strict=True):
            [other], [alternative] = subtask["alternatives"], answer.alternatives
            assert (subtask["prediction"], other["prediction"]) == (answer.text, alternative.text)
            assert other["score"] == pytest.approx(alternative.score, abs=1e-4)
    assert "2 documents, 3 prompts in" in capsys.readouterr().out  # what decoding did

    # As a run that was killed after the first document left it.
    whole = output.read_bytes()
    with questions.open("a") as file:
        file.write("{\n")
    with pytest.raises(SystemExit):
        run(checkpoint, questions, output, *options)
    questions.write_bytes(questions.read_bytes()[:-2])
    run(checkpoint, questions, output, *options)
    assert output.read_bytes() == whole
    # Answers of before give way, whichever there are.
    [line, _] = run(checkpoint, output, output, "--max-new-tokens=4")
    answer = {"prediction", "score", "finish_reason"}
    assert line["subtasks"][0].keys() == {"id", "prompt"} | answer


def with_allowed(number: int, *allowed: Any) -> bytes:
    line = question(number)
    line["subtasks"] = line["subtasks"][: len(allowed)]
    for subtask, texts in zip(line["subtasks"], allowed, strict=True):
        subtask["allowed"] = texts
    return json.dumps(line).encode() + b"\n"


def test_predictions_are_among_what_a_line_allows(
    checkpoint: Path, questions: Path, tmp_path: Path
) -> None:
    questions.write_bytes(text_of(2) + with_allowed(5, ["north", "south"], None, ["4"]))
    options = ["--max-new-tokens=4", "--write-every=1"]
    free, line = run(checkpoint, questions, tmp_path / "out.jsonl", *options)
    predictions = [subtask["prediction"] for subtask in line["subtasks"]]
    assert predictions[0] in ("north", "south")
    assert predictions[2] == "4"
    assert line["subtasks"][0]["allowed"] == ["north", "south"]
    # Documents 2 and 5 differ in a digit; the subtask without a list is free as any.
    model = PidModel.from_pretrained(checkpoint)
    [[answer]] = model.generate([line["document"]], [["p1"]], max_new_tokens=4)
    assert predictions[1] == answer.text
    assert not {subtask["prediction"] for subtask in free["subtasks"]} & {"north", "south", "4"}


def test_an_allowed_text_that_is_too_long_makes_a_bad_line(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a text of more than four tokens"
    questions.write_bytes(text_of(0) + with_allowed(1, ["4"], ["4", long]) + with_allowed(3, ["4"]))
    output, options = tmp_path / "out.jsonl", ["--max-new-tokens=4", "--write-every=1"]
    assert status_of(lambda: run(checkpoint, questions, output, *options)) == 2
    error = error_in(capsys.readouterr().err)
    assert error.startswith(f'error: {questions}, line 2, subtask 2: "allowed": {long!r} takes')
    assert "max_new_tokens=4" in error
    assert "1 documents are answered" in error
    assert status_of(lambda: run(checkpoint, questions, output, *options, "--on-error=skip")) == 3
    assert ids_in(output) == ["d0", "d3"]


@pytest.fixture(scope="module")
def few_positions(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART for documents of 12 tokens."""
    tokenizer = PidModel.from_pretrained(checkpoint).tokenizer
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 12}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = {"model_type": "bart", "vocab_size": len(tokenizer), **sizes, **heads}
    model = models.build({**config, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16})
    directory = tmp_path_factory.mktemp("bart")
    params = models.init_params(model, jax.random.key(0))
    PidModel(model, params, tokenizer).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("options", "document", "reason"),
    [
        ([], "a " * 50, "the document has"),
        (["--method=pie"], "a " * 8, "the document with the prompt of subtask 2 has"),
        (["--max-new-tokens=9"], "a", "the prompt of subtask 2 has"),
    ],
)
def test_what_is_longer_than_the_model_has_positions_for_makes_a_bad_line(
    few_positions: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    document: str,
    reason: str,
) -> None:
    longer = question(1) | {"document": document}
    longer["subtasks"][1]["prompt"] = "hotel-name hotel-area"
    questions.write_bytes(text_of(0) + json.dumps(longer).encode() + b"\n" + text_of(2))
    output, options = tmp_path / "out.jsonl", ["--max-new-tokens=3", "--on-error=skip", *options]
    assert status_of(lambda: run(few_positions, questions, output, "--max-new-tokens=13")) == 2
    assert "error: max_new_tokens=13, but the model's decoder has" in capsys.readouterr().err
    assert status_of(lambda: run(few_positions, questions, output, *options)) == 3
    assert f"{questions}, line 2: {reason}" in capsys.readouterr().err
    assert ids_in(output) == ["d0", "d2"]


def test_a_token_without_an_embedding_makes_a_bad_line(
    text_model: PidModel, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As <mask> of bart-large-cnn: the tokenizer has one token more than the model."""
    tokenizer = copy.deepcopy(text_model.tokenizer)
    assert tokenizer is not None
    tokenizer.add_tokens(["<mask>"], special_tokens=True)
    checkpoint = tmp_path / "checkpoint"
    PidModel(text_model.model, text_model.params, tokenizer).save_pretrained(checkpoint)
    questions.write_bytes(text_of(0) + text_of(1).replace(b"text 1", b"text <mask>"))
    output, options = tmp_path / "out.jsonl", ["--max-new-tokens=3", "--on-error=skip"]
    assert status_of(lambda: run(checkpoint, questions, output, *options)) == 3
    expected = f"line 2: the document has the token id {len(tokenizer) - 1}, but ids go from 0"
    assert expected in capsys.readouterr().err
    assert ids_in(output) == ["d0"]
    questions.write_bytes(text_of(0) + with_allowed(1, ["4"], ["<mask>"]))
    assert status_of(lambda: run(checkpoint, questions, output, *options)) == 3
    assert 'line 2, subtask 2: "allowed"[0] has the token id' in capsys.readouterr().err


def test_bfloat16_answers_are_another_runs(
    checkpoint: Path, questions: Path, tmp_path: Path
) -> None:
    output, options = tmp_path / "out.jsonl", ["--max-new-tokens=3", "--dtype=bfloat16"]
    [line, _] = run(checkpoint, questions, output, *options)
    model = PidModel.from_pretrained(checkpoint, dtype="bfloat16")
    [[answer, _]] = model.generate(
        [line["document"]], [[one["prompt"] for one in line["subtasks"]]], max_new_tokens=3
    )
    assert line["subtasks"][0]["score"] == pytest.approx(answer.score, abs=1e-3)


def test_answers_of_weights_in_8_bits_are_another_runs(
    checkpoint: Path, questions: Path, tmp_path: Path
) -> None:
    output, options = tmp_path / "out.jsonl", ["--max-new-tokens=3", "--weights=int8"]
    [line, _] = run(checkpoint, questions, output, *options)
    model = PidModel.from_pretrained(checkpoint, weights="int8")
    [[answer, _]] = model.generate(
        [line["document"]], [[one["prompt"] for one in line["subtasks"]]], max_new_tokens=3
    )
    assert line["subtasks"][0]["score"] == pytest.approx(answer.score, abs=1e-3)


def test_a_stopped_run_does_not_go_on_with_weights_in_8_bits(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions.write_bytes(text_of(0) + b"no JSON\n")
    output, options = tmp_path / "out.jsonl", ["--max-new-tokens=3", "--write-every=1"]
    assert status_of(lambda: run(checkpoint, questions, output, *options)) == 2
    assert "line 2" in capsys.readouterr().err
    assert status_of(lambda: run(checkpoint, questions, output, *options, "--weights=int8")) == 2
    assert "had weights=(default), not int8" in capsys.readouterr().err


def test_a_bad_checkpoint_is_no_bad_line(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions.write_bytes(with_allowed(0, ["4"]))
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    assert status_of(lambda: run(nowhere, questions, tmp_path / "o", "--on-error=skip")) == 2
    error = error_in(capsys.readouterr().err)
    assert "left out" not in error


def test_a_checkpoint_that_is_replaced_before_it_is_loaded_is_noticed(
    checkpoint: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copied = Path(shutil.copytree(checkpoint, tmp_path / "copy"))

    def replaced_before(path: Path, **_: object) -> Model:
        (copied / "merges.txt").write_text("of another tokenizer")
        return Model()

    monkeypatch.setattr(PidModel, "from_pretrained", replaced_before)
    assert status_of(lambda: run(copied, questions, tmp_path / "out.jsonl")) == 2
    said = error_in(capsys.readouterr().err)
    assert said == f"error: {copied} was replaced since this command started: run it again\n"


def test_a_mesh_splits_the_parameters_and_answers_alike(
    checkpoint: Path, questions: Path, tmp_path: Path
) -> None:
    lines = run(checkpoint, questions, tmp_path / "one.jsonl", "--max-new-tokens=4")
    output = tmp_path / "four.jsonl"
    largest = result_of(ON_A_MESH, str(checkpoint), str(questions), str(output), devices=4)
    assert largest <= 0.3  # a quarter, and the norms
    on_mesh = [json.loads(line) for line in output.read_text().splitlines()]
    for line, other in zip(lines, on_mesh, strict=True):
        for subtask, split in zip(line["subtasks"], other["subtasks"], strict=True):
            assert split["prediction"] == subtask["prediction"]
            assert split["score"] == pytest.approx(subtask["score"], abs=1e-4)


ON_A_MESH = """
import json, sys
import jax
from pid_jax.commands import predict
from pid_jax.inference.model import PidModel

checkpoint, questions, output = sys.argv[1:]
models, load = [], PidModel.from_pretrained

def from_pretrained(*arguments, **options):
    models.append(load(*arguments, **options))
    return models[-1]

PidModel.from_pretrained = from_pretrained
sys.stdout, stdout = sys.stderr, sys.stdout
predict.main([
    f"--checkpoint={checkpoint}", f"--input={questions}", f"--output={output}",
    "--max-new-tokens=4", "--mesh=tensor=2,fsdp=2",
])
leaves = jax.tree.leaves(models[0].params)
here = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
print(json.dumps(here / sum(leaf.size for leaf in leaves)), file=stdout)
"""


@pytest.mark.parametrize("mesh", ["4", "tensor", "tensor=x", "rows=2", "fsdp=1,fsdp=2"])
def test_a_mesh_that_is_none_is_refused(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mesh: str
) -> None:
    options = [f"--mesh={mesh}", "--checkpoint=x", f"--input={questions}", "--output=y"]
    with pytest.raises(SystemExit):
        make_predict_parser("predict").parse_args(options)
    assert "write AXIS=N, with commas between, for axes of data, fsdp, tensor" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("tensor=4", {"data": 1, "tensor": 4}),
        ("fsdp=-1", {"data": 1, "fsdp": -1}),
        ("data=2", {"data": 2, "tensor": -1}),
        ("data=2,fsdp=2,tensor=2", {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_the_devices_that_are_left_split_parameters(text: str, sizes: dict[str, int]) -> None:
    required = ["--checkpoint=x", "--input=in", "--output=out"]
    assert make_predict_parser("predict").parse_args([f"--mesh={text}", *required]).mesh == sizes
