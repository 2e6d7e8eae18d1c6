"""The benchmark of attackers: how much more one succeeds than another, seed by seed."""

from benchmarks.attacker import VARIANTS, ratio
from loop.config import as_object, build, load_config


def test_success_is_compared_by_seed() -> None:
    one = {f"s{n}": [1.0, float(n % 2)] for n in range(40)} | {"alone": [0.0]}
    other = {f"s{n}": [float(n % 2), 0.0] for n in range(40)}
    found = ratio(one, other)
    assert (found.value, found.n) == (3.0, 40)
    assert found.low is not None
    assert found.high is not None
    assert 1 < found.low < 3 < found.high


def test_without_a_seed_in_common_there_is_no_ratio() -> None:
    assert ratio({"a": [1.0]}, {"b": [1.0]}).value is None


def test_every_attacker_can_be_built_from_its_config() -> None:
    for over in VARIANTS.values():
        role = as_object(load_config(["configs/cpu.yaml", *over])).roles.attacker
        build(role, "roles.attacker")
