"""Adapters in PEFT's layout: peft loads ours, and we load those of peft."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from pid_jax import models, prompt_in_decoder
from pid_jax.checkpoints import huggingface, identity, peft
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.models import lora
from tests.helpers import adapted
from tests.helpers.adapted import ALL, DOCUMENTS, PROMPTS, QUERIES_AND_VALUES, TARGETS
from tests.helpers.tiny_families import VARIANTS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
their_peft = pytest.importorskip("peft")


def write_base(directory, model, params):
    """The model without its adapter, as transformers loads it."""
    base = models.build(model.config)
    huggingface.save(directory, base, adapted.without_adapter(params))


def load_base(directory):
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(
        directory, attn_implementation="eager"
    ).eval()


def their_logits(theirs, config, document, prompt, target):
    inputs = {"input_ids": torch.tensor([document])}
    if config.model_type == "led":
        inputs["global_attention_mask"] = torch.tensor([[1] + [0] * (len(document) - 1)])
    decoder_input = [config.decoder_start_token_id, *prompt, *target[:-1]]
    with torch.no_grad():
        output = theirs(**inputs, decoder_input_ids=torch.tensor([decoder_input]))
    return output.logits[0, len(prompt) :].numpy()


def assert_logits_equal(model, params, theirs, atol=2e-5):
    """Of every target token of all prompts: ours in one batch, theirs one by one."""
    batch = adapted.batch(model)
    ours = jax.jit(prompt_in_decoder.teacher_forced_logits, static_argnums=0)(model, params, batch)
    for i, document in enumerate(DOCUMENTS):
        for j, (prompt, target) in enumerate(zip(PROMPTS[i], TARGETS[i], strict=True)):
            expected = their_logits(theirs, model.config, document, prompt, target)
            np.testing.assert_allclose(ours[i, j, : len(target)], expected, atol=atol)


@pytest.mark.parametrize(
    "name",
    ["t5", "longt5, transient-global", "bart", "led, one global token", "t5gemma", "t5gemma2"],
)
def test_peft_loads_an_adapter_onto_the_base_and_gives_the_same_logits(name, tmp_path):
    model, params = adapted.make(VARIANTS[name], ALL)
    write_base(tmp_path / "base", model, params)
    base = str(tmp_path / "base")
    peft.save(tmp_path / "adapter", model.config, base, ALL, adapted.matrices(params))

    theirs = load_base(base)
    without = their_logits(theirs, model.config, DOCUMENTS[0], PROMPTS[0][0], TARGETS[0][0])
    theirs = their_peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    assert_logits_equal(model, params, theirs)
    adapted_logits = their_logits(theirs, model.config, DOCUMENTS[0], PROMPTS[0][0], TARGETS[0][0])
    assert np.abs(adapted_logits - without).max() > 0.1


@pytest.mark.parametrize("name", ["t5", "bart", "t5gemma2"])
def test_transformers_gives_the_same_logits_for_a_merged_export(name, tmp_path):
    model, params = adapted.make(VARIANTS[name], ALL)
    merged = PidModel(models.build(model.config), lora.merged(params, ALL.scale))
    merged.save_pretrained(tmp_path)
    assert_logits_equal(model, params, load_base(tmp_path), atol=1e-5)


@pytest.fixture(scope="module", params=["t5", "bart", "t5gemma"])
def exported(request, tmp_path_factory):
    """A base model, its adapter, and the model with both."""
    directory = tmp_path_factory.mktemp("exported")
    model, params = adapted.make(VARIANTS[request.param], QUERIES_AND_VALUES)
    write_base(directory / "base", model, params)
    base = str(directory / "base")
    matrices = adapted.matrices(params)
    peft.save(directory / "adapter", model.config, base, QUERIES_AND_VALUES, matrices)
    return directory, model, params


def test_files_have_the_names_and_shapes_that_peft_writes(exported, tmp_path):
    directory, _, _ = exported
    theirs = load_base(directory / "base")
    config = their_peft.LoraConfig.from_pretrained(str(directory / "adapter"))
    config.inference_mode = False
    their_peft.get_peft_model(theirs, config).save_pretrained(tmp_path)
    ours, written = (load_file(d / peft.WEIGHTS) for d in (directory / "adapter", tmp_path))
    assert {name: x.shape for name, x in ours.items()} == {
        name: x.shape for name, x in written.items()
    }
    assert {path.name for path in (directory / "adapter").iterdir()} == {peft.CONFIG, peft.WEIGHTS}


def test_an_adapter_is_loaded_and_merged_into_its_base(exported):
    directory, _, params = exported
    loaded = PidModel.from_pretrained(directory / "adapter")
    expected = lora.merged(params, QUERIES_AND_VALUES.scale)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    assert loaded.config == PidModel.from_pretrained(directory / "base").config


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", ["t5", "bart", "t5gemma", "t5gemma2"])
def test_an_adapter_of_peft_scores_as_in_peft(name, rslora, tmp_path):
    """Made by peft, with random matrices, for modules that it names by their last parts."""
    model, params = adapted.make(VARIANTS[name], ALL)
    write_base(tmp_path / "base", model, params)
    theirs = load_base(tmp_path / "base")
    targets = {"t5": ["q", "wo"], "bart": ["q_proj", "fc1"]}.get(name, r".*coder.*layers.*\.q_proj")
    if name == "t5gemma2":
        targets = r".*(text_model|decoder)\.layers.*\.(v_proj|up_proj)"
    config = their_peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, use_rslora=rslora, task_type="SEQ_2_SEQ_LM"
    )
    torch.manual_seed(0)
    theirs = their_peft.get_peft_model(theirs, config)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if "lora_B" in parameter_name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "adapter")
    ours = PidModel.from_pretrained(tmp_path / "adapter")
    assert_logits_equal(models.build(ours.config), ours.params, theirs.eval())


def test_half_precision_and_8_bits_are_of_the_merged_kernels(exported):
    directory, _, params = exported
    half = PidModel.from_pretrained(directory / "adapter", dtype="bfloat16")
    path = ("decoder", "layers_0", "cross_attention", "query", "kernel")
    exact = flatten_dict(lora.merged(params, QUERIES_AND_VALUES.scale))[path]
    kernel = flatten_dict(half.params)[path]
    assert kernel.dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(kernel, np.float32), exact, atol=0.02)
    PidModel.from_pretrained(directory / "adapter", weights="int8").score(
        DOCUMENTS, PROMPTS, TARGETS
    )


def test_the_identity_is_that_of_the_adapter_and_its_base(exported, tmp_path):
    directory, _, _ = exported
    copy = shutil.copytree(directory / "adapter", tmp_path / "adapter")
    assert identity.digest(copy) == identity.digest(directory / "adapter")
    about = json.loads((copy / peft.CONFIG).read_text())
    shutil.copytree(directory / "base", tmp_path / "base")
    (tmp_path / "base" / "tokenizer_config.json").write_text("{}")
    (copy / peft.CONFIG).write_text(
        json.dumps(about | {"base_model_name_or_path": str(tmp_path / "base")})
    )
    assert identity.digest(copy) != identity.digest(directory / "adapter")


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported[0] / "adapter", tmp_path / "adapter")


def refusal(path):
    with pytest.raises(UserError) as error:
        PidModel.from_pretrained(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"use_dora": True}, '"use_dora": true: only LoRA'),
        ({"bias": "all"}, '"bias": "all"'),
        ({"peft_type": "IA3"}, '"peft_type": "IA3"'),
        ({"modules_to_save": ["lm_head"]}, '"modules_to_save": ["lm_head"]'),
        ({"r": None}, '"r" and "lora_alpha" must be numbers'),
        ({"base_model_name_or_path": None}, '"base_model_name_or_path" names no model'),
        ({"base_model_name_or_path": "/nowhere"}, "an adapter of /nowhere: /nowhere: no such"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(copy, changes, problem):
    about = json.loads((copy / peft.CONFIG).read_text())
    (copy / peft.CONFIG).write_text(json.dumps(about | changes))
    message = refusal(copy)
    assert problem in message
    assert str(copy) in message


def change_weights(copy, change):
    tensors = load_file(copy / peft.WEIGHTS)
    change(tensors)
    save_file(tensors, copy / peft.WEIGHTS)


def test_tensors_that_do_not_fit_are_named(copy):
    name = sorted(load_file(copy / peft.WEIGHTS))[0]
    assert name.endswith(".lora_A.weight")
    partner = name.replace("lora_A", "lora_B")
    change_weights(copy, lambda x: x.update({partner: np.ones((7, 4), np.float32)}))
    assert "has the shape (4, 7), but the kernel" in refusal(copy)
    change_weights(copy, lambda x: x.pop(partner))
    assert "is there without kernel_lora_b" in refusal(copy)
    change_weights(copy, lambda x: x.update({"nothing.lora_A.weight": np.ones((4, 4))}))
    assert "nothing.lora_A.weight belongs to no kernel" in refusal(copy)
    change_weights(copy, lambda x: x.update({name: np.full((4, 16), np.nan, np.float32)}))
    assert name in refusal(copy)


def test_missing_and_truncated_weights_are_named(copy):
    (copy / peft.WEIGHTS).write_bytes((copy / peft.WEIGHTS).read_bytes()[:100])
    assert "not a complete safetensors file" in refusal(copy)
    (copy / peft.WEIGHTS).unlink()
    assert "no such file" in refusal(copy)
