"""Strict conversion between dataclasses and plain data."""

from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from stepladder import presets
from stepladder.bottlenecks import KLConfig
from stepladder.configs import structure, unstructure
from stepladder.errors import ConfigError
from stepladder.tokenizer_config import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class Leaf:
    number: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ConfigError(f"Number {self.number} is negative. Pass 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Round:
    kind: Literal["round"] = "round"
    radius: int = 1


@dataclass(frozen=True, kw_only=True)
class Square:
    kind: Literal["square"] = "square"
    side: int = 1


@dataclass(frozen=True, kw_only=True)
class Tree:
    count: int
    leaf: Leaf = field(default_factory=Leaf)
    shape: Round | Square = field(default_factory=Round)
    pair: tuple[float, float] = (0.0, 1.0)
    names: list[str] = field(default_factory=list)
    mode: Literal["a", "b"] = "a"
    flag: bool = False
    leaves: dict[str, Leaf] = field(default_factory=dict)


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=presets.PRESETS)
def test_plain_data_of_a_preset_gives_it_back(preset):
    for config in (preset(), replace(preset(), bottleneck=KLConfig(weight=0.5), description="a \u00e9 b")):
        assert structure(unstructure(config), TokenizerConfig, where="here") == config


def test_every_field_is_written_out():
    data = unstructure(Tree(count=2))
    assert data == {
        "count": 2,
        "leaf": {"number": 1.0, "name": None},
        "shape": {"kind": "round", "radius": 1},
        "pair": (0.0, 1.0),
        "names": [],
        "mode": "a",
        "flag": False,
        "leaves": {},
    }


def test_missing_fields_take_their_defaults():
    assert structure({"count": 2}, Tree, where="here") == Tree(count=2)


def test_values_are_taken_as_they_are_and_whole_numbers_count_as_floats():
    data = {
        "count": 3,
        "leaf": {"number": 2, "name": "x"},
        "shape": {"kind": "square", "side": 4},
        "pair": [1, 2],
        "names": ["a"],
        "mode": "b",
        "flag": True,
    }
    found = structure(data, Tree, where="here")
    assert found.leaf == Leaf(number=2.0, name="x")
    assert isinstance(found.leaf.number, float)
    assert found.shape == Square(side=4)
    assert found.pair == (1.0, 2.0)
    assert isinstance(found.pair, tuple)
    assert (found.names, found.mode, found.flag) == (["a"], "b", True)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "here: Key 'count' is missing. It has no default. Add it."),
        ({"count": "3"}, "here: Value of 'count' does not fit: '3' is not of type int. Write a value of that type."),
        ({"count": 3.0}, "here: Value of 'count' does not fit: 3.0 is not of type int. Write a value of that type."),
        ({"count": True}, "here: Value of 'count' does not fit: True is not of type int. Write a value of that type."),
        ({"count": None}, "here: Value of 'count' does not fit: None is not of type int. Write a value of that type."),
        (
            {"count": 1, "flag": 1},
            "here: Value of 'flag' does not fit: 1 is not of type bool. Write a value of that type.",
        ),
        (
            {"count": 1, "leaf": {"number": "x"}},
            "here: Value of 'leaf.number' does not fit: 'x' is not of type float. Write a value of that type.",
        ),
        (
            {"count": 1, "leaf": {"name": 5}},
            "here: Value of 'leaf.name' does not fit: 5 is not of type str. Write a value of that type.",
        ),
        ({"count": 1, "leaf": {"number": -1}}, "here: Number -1.0 is negative. Pass 0 or more."),
        (
            {"count": 1, "leaf": 3},
            "here: Value of 'leaf' does not fit: 3 is no table. Write a table with keys of: number, name.",
        ),
        (
            {"count": 1, "leaf": {"nmae": "x"}},
            "here: Unknown key 'nmae' in 'leaf'. Accepted: number, name. Did you mean 'name'?",
        ),
        ({"count": 1, "leaf": {"q": 1}}, "here: Unknown key 'q' in 'leaf'. Accepted: number, name. Remove it."),
        (
            {"coutn": 1},
            "here: Unknown key 'coutn'. Accepted: count, leaf, shape, pair, names, mode, flag, leaves. "
            "Did you mean 'count'?",
        ),
        (
            {"count": 1, "shape": {"kind": "oval"}},
            "here: Value of 'shape' does not fit: its kind is 'oval'. Accepted: 'round', 'square'. "
            "Set the key 'kind' to one of them.",
        ),
        (
            {"count": 1, "shape": {"radius": 1}},
            "here: Value of 'shape' does not fit: its key 'kind' is missing. Accepted: 'round', 'square'. "
            "Set the key 'kind' to one of them.",
        ),
        (
            {"count": 1, "shape": {"kind": "round", "side": 1}},
            "here: Unknown key 'side' in 'shape'. Accepted: kind, radius. Remove it.",
        ),
        (
            {"count": 1, "pair": [1]},
            "here: Value of 'pair' does not fit: [1] is not a list of 2 values. Write it in square brackets.",
        ),
        (
            {"count": 1, "names": "ab"},
            "here: Value of 'names' does not fit: 'ab' is not a list. Write it in square brackets.",
        ),
        (
            {"count": 1, "mode": "c"},
            "here: Value of 'mode' does not fit: 'c' is unknown. Accepted: 'a', 'b'. Choose one of them.",
        ),
        (
            {"count": 1, "leaves": {"low": {}, "high": {"number": "x"}}},
            "here: Value of 'leaves.high.number' does not fit: 'x' is not of type float. Write a value of that type.",
        ),
        (
            {"count": 1, "leaves": {"low": 3}},
            "here: Value of 'leaves.low' does not fit: 3 is no table. Write a table with keys of: number, name.",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_with_place_value_and_remedy(data, text):
    with pytest.raises(ConfigError) as caught:
        structure(data, Tree, where="here")
    assert str(caught.value) == text
