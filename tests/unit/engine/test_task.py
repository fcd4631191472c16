import json
from pathlib import Path

import numpy as np

from moevision.engine.task import as_json


def test_facts_of_any_kind_become_json():
    facts = {
        "n": np.int64(3),
        "x": np.float32(0.5),
        "nan": float("nan"),
        "inf": np.float64("inf"),
        "flag": np.bool_(True),
        "path": Path("a"),
        "nested": [(1, 2), {"k": None}],
        1: "key",
    }
    expected = {
        "n": 3,
        "x": 0.5,
        "nan": None,
        "inf": None,
        "flag": True,
        "path": "a",
        "nested": [[1, 2], {"k": None}],
        "1": "key",
    }
    assert as_json(facts) == expected
    json.dumps(as_json(facts), allow_nan=False)


def test_what_json_cannot_hold_becomes_text():
    assert as_json(np.zeros(2)) == "[0. 0.]"
    assert as_json(b"x") == "b'x'"
