"""What the errors of other libraries say, in a line of ours."""

import pytest

from stepladder.errors import brief, one_line


@pytest.mark.parametrize(
    ("said", "line"),
    [("one.", "one."), ("one\n  two\tthree", "one two three"), ("", "ValueError"), (" \n", "ValueError")],
)
def test_an_error_is_one_line(said, line):
    assert one_line(ValueError(said)) == line


@pytest.mark.parametrize(
    ("said", "quoted"), [("one.", "one"), ("a.b...\n", "a.b"), ("one.\ntwo", "one. two"), ("", "OSError")]
)
def test_a_quoted_error_ends_without_a_full_stop(said, quoted):
    assert brief(OSError(said)) == quoted


def test_a_long_error_is_cut_between_words():
    text = brief(OSError("word " * 100))
    assert 190 < len(text) <= 200
    assert text == "word " * (len(text) // 5) + "..."
