"""The shipped models draw what they drew when the record was made."""

import json

import pytest
from record import RECORD, record


@pytest.fixture(scope="module")
def now():
    return record()


EXPECTED = json.loads(RECORD.read_text(encoding="utf-8"))


def test_tokens_are_those_of_the_record(now):
    assert now["tokens"] == EXPECTED["tokens"]


def test_likelihoods_are_those_of_the_record(now):
    assert now["bits"].keys() == EXPECTED["bits"].keys()
    for name, bits in EXPECTED["bits"].items():
        assert now["bits"][name] == pytest.approx(bits, abs=3e-5), name
