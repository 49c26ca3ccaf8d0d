"""The seed that a name gives."""

import hashlib

from stepladder.seeds import seed_of


def test_a_seed_is_the_first_63_bits_of_the_hash_of_the_name():
    digest = hashlib.sha256("Zürich".encode()).hexdigest()
    assert seed_of("Zürich") == int(digest[:16], 16) // 2


def test_names_give_different_seeds_in_the_range():
    seeds = {seed_of(str(number)) for number in range(1000)}
    assert len(seeds) == 1000
    assert 0 <= min(seeds) <= max(seeds) < 2**63


def test_names_that_are_no_text_have_a_seed():
    assert seed_of("\udcff") != seed_of("\udcfe")
