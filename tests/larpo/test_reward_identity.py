"""What tells one reward from another before it is asked: its section, and the code or the model behind it."""

import pytest

from larpo.reward_config import Reward
from larpo.rewards import reward_identity


@pytest.fixture
def identity(tmp_path, monkeypatch):
    """`identity(code, **knobs)`: of a user's function with that source, alone and as a part of a sum."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(code: str, **knobs):
        (tmp_path / "identified_reward.py").write_text(f"def give(prompt, responses):\n    return {code}\n")
        section = {"kind": "callable", "name": "identified_reward:give", **knobs}
        summed = {"kind": "weighted", "parts": [section, {"kind": "verifier", "name": "gsm8k"}]}
        return tuple(reward_identity(Reward.model_validate(each)) for each in (section, summed))

    return make


def test_it_is_that_of_section_and_code(identity):
    first = identity("[0.0 for _ in responses]")
    assert identity("[0.0 for _ in responses]") == first
    for other in (identity("[1.0 for _ in responses]"), identity("[0.0 for _ in responses]", timeout_s=9.0)):
        assert not set(first) & set(other)
