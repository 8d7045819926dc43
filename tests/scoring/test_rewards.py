import pytest

from mlx_finetune.scoring.json_schema import Validator
from mlx_finetune.scoring.rewards import Rewards

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("check", "answer", "reward"),
    [
        ("number", "so it is 12.0", 1),
        ("number", "13", 0),
        ("text", "The twelve!", 0),
        ("exact", "12", 1),
        ("exact", "12.", 0),
        ("json", 'here: {"n": 3}', 1),
        ("json", '{"n": "3"}', 0),
        ("json", "[1]", 0),
        ("max_length:4", "1234", 1),
        ("max_length:4", "12345", 0),
        ("contains:ab", "cab", 1),
        ("regex:^a+$", "aaa", 1),
        ("regex:^a+$", "b", 0),
    ],
)
def test_each_check_is_worth_one(check: str, answer: str, reward: float):
    assert Rewards([check], [1.0], Validator(SCHEMA))("12", answer) == reward


def test_rewards_are_weighted_and_added():
    rewards = Rewards(["number", "max_length:3"], [1.0, -0.25])
    assert rewards("12", "12") == 0.75
    assert rewards("12", "it is 12") == 1.0
    assert rewards("12", "9") == -0.25


def test_without_a_schema_any_object_will_do():
    assert Rewards(["json"], [1.0])("", '{"m": 1}') == 1
