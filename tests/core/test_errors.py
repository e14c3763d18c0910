"""Messages and texts of others are printable: one line, nothing that a terminal obeys."""

import pytest

from lorweb_core.errors import SettingsError, printable, quote


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("süß 😀 👩\u200d🔧", "süß 😀 👩\u200d🔧"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[2J\x9b\x7f\0", "\\x1b[2J\\x9b\\x7f\\x00"),
        ("a\u202eb\u2028\udcff", "a\\u202eb\\u2028\\udcff"),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_a_message_is_one_printable_line():
    error = SettingsError("The file x\x1b[2J is no YAML: line 1\n  column 2. Correct it.")
    assert str(error) == "The file x\\x1b[2J is no YAML: line 1   column 2. Correct it."


def test_long_quotes_are_cut():
    assert quote("x" * 5000, limit=3) == "'xxx'… (5,000 characters)"
    assert quote("a\0") == r"'a\x00'"
