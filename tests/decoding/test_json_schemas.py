"""Texts of random walks through the automata of schemas, judged by `jsonschema`."""

import json
import re
from typing import Any

import jsonschema
import pytest

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.decoding.patterns import JsonSchema, compile_patterns
from pid_jax.decoding.token_automata import (
    shortest,
)
from pid_jax.errors import UserError
from pid_jax.models.protocol import control_token_ids
from tests.helpers.tiny_tokenizers import TOKENIZERS, config_of
from tests.helpers.token_walks import walk

PERSON = {
    "title": "Person",
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 4},
        "b": {"type": "integer", "minimum": 0},
        "c": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/flag"}]},
    },
    "required": ["b"],
    "$defs": {"flag": {"type": "boolean"}},
}
SCHEMAS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "object": (PERSON, [{"a": "xy", "b": 3, "c": None}, {"b": 0}], [{"a": "x"}, {"b": -1}, 3]),
    "optional": (
        {"properties": {name: {"type": "null"} for name in "abcd"}, "additionalProperties": False},
        [{}, {"c": None}, {"a": None, "d": None}],
        [{"e": None}, {"a": 1}],
    ),
    "numbers": (
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
        [[0], [-1.5, 20, 0.25]],
        [[], [1, 2, 3, 4], ["1"]],
    ),
    "tuple": (
        {"prefixItems": [{"enum": ["a", 1, None, True]}, {"const": "b"}], "maxItems": 2},
        [["a", "b"], [None, "b"]],
        [["a"], ["a", "b", 1]],
    ),
    "map": (
        {"type": "object", "additionalProperties": {"type": ["boolean", "null"]}},
        [{}, {"a": True, "bcd": None}],
        [{"a": 1}],
    ),
    "escapes": (
        {"enum": ['a"b\\c', "n\nt\t", {"a.b": [1, {"c": "*"}]}]},
        ['a"b\\c', "n\nt\t", {"a.b": [1, {"c": "*"}]}],
        ["a", {"axb": [1, {"c": "*"}]}],
    ),
    "name": (
        {"properties": {'a"\\.b': {"type": "null"}}, "required": ['a"\\.b']},
        [{'a"\\.b': None}],
        [{}, {'a"\\xb': None}],
    ),
    "string": ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", '"a\\'], ["a", "abcd"]),
    "pattern": ({"type": "string", "pattern": "^[a-d]+x|y$"}, ["abx", "y"], ["", "x", "ay"]),
    "date": ({"type": "string", "format": "date"}, ["2024-02-29", "1999-12-31"], ["2024-02-30"]),
    "moment": (
        {"type": "string", "format": "date-time"},
        ["2024-11-25T23:59:00Z", "2024-11-25T23:59:00.5+02:00"],
        ["2024-11-25T24:00:00Z", "2024-11-25T23:59:00"],
    ),
    "uuid": (
        {"type": "string", "format": "uuid"},
        ["01234567-89ab-cdef-0123-456789abcdef"],
        ["01234567-89ab-cdef-0123"],
    ),
    "single": ({"allOf": [{"type": "integer"}]}, [12, -3], [1.5, "1"]),
}


@pytest.mark.parametrize("tokenizer_name", ["t5_json", "byte_level", "gemma"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_output_is_json_that_satisfies_the_schema(name, tokenizer_name):
    schema, valid, invalid = SCHEMAS[name]
    tokenizer = TOKENIZERS[tokenizer_name]()
    config = config_of(tokenizer)
    detokenizer = Detokenizer(tokenizer, control_token_ids(config))
    if tokenizer_name == "t5_json" and name in ("escapes", "name", "moment"):
        return  # it has no *, and no T
    automaton, [start] = compile_patterns([JsonSchema(schema)], tokenizer, config)
    for limit in shortest(automaton, start), shortest(automaton, start) + 9, 60:
        for tokens in walk(automaton, start, max(limit, shortest(automaton, start)), seed=limit):
            value = json.loads(detokenizer.text(tokens))
            jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    regex = re.compile(JsonSchema(schema).regex)
    for value in valid:
        jsonschema.validate(value, schema)
        assert regex.fullmatch(json.dumps(value))
        assert regex.fullmatch(json.dumps(value, separators=(",", ":")))
    assert not any(regex.fullmatch(json.dumps(value)) for value in invalid)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "the schema is no JSON"),
        ({"type": "integer", "maximum": 3}, r"\$\.maximum cannot be enforced"),
        ({"type": "integer", "minimum": 3}, r"\$\.minimum cannot be enforced unless it is 0"),
        ({"properties": {"a": {"not": {}}}}, r"\$\.properties\.a\.not cannot be enforced"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "uniqueItems cannot"),
        ({"oneOf": [{"type": "null"}]}, "write anyOf"),
        ({"anyOf": []}, r"\$\.anyOf is no list of schemas"),
        ({"anyOf": [{"type": "null"}], "type": "null"}, r"\$\.type cannot be enforced here"),
        ({}, "admits any value"),
        ("true", "no JSON schema"),
        ({"type": "object"}, "admits any object"),
        ({"type": "array"}, "admits any items"),
        ({"type": "text"}, "'text' is none of object, array"),
        ({"type": 3}, "3 is none of"),
        ({"properties": ["a"]}, "is no dict"),
        ({"properties": {}, "required": ["a"]}, "'a' is not among the properties"),
        ({"type": "string", "format": "email"}, "'email' cannot be enforced"),
        ({"type": "string", "pattern": ".*"}, "quotes, backslashes or control characters"),
        ({"type": "string", "pattern": "(a"}, r"\$\.pattern: '\(a': missing"),
        ({"type": "string", "pattern": "a", "minLength": 1}, "only one can be enforced"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength is 3, and maxLength"),
        ({"type": "string", "minLength": -1}, "-1 is no number of 0 or more"),
        ({"type": "integer", "enum": [1, "a"]}, "'a' is not of the type integer"),
        ({"prefixItems": [{"type": "null"}], "minItems": 2}, "exactly these 1 items"),
        ({"$ref": "#/$defs/a"}, "refers to nothing in this schema"),
        ({"$ref": "other.json#/a"}, "refers to nothing in this schema"),
        ({"properties": {"next": {"$ref": "#"}}}, "# refers to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "a refers to itself"),
    ],
)
def test_a_schema_that_outputs_might_contradict_is_refused(schema, message):
    with pytest.raises(UserError, match=message):
        JsonSchema(schema)
