"""Results against their published schema, as strictly as their readers are."""

import json
from importlib.resources import files

import pytest

from dspkd_bench.bench import RESULTS_SCHEMA_VERSION

__all__ = ["check_schema"]


def check_schema(results):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((files("dspkd_bench") / "results.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(json.dumps(results, allow_nan=False)), schema)
    assert schema["properties"]["schema_version"]["const"] == RESULTS_SCHEMA_VERSION
