"""stdout is data, piped tables are whole, and nothing is changed without a yes."""

import io

import pytest

from otf_workflows.cli import output
from otf_workflows.errors import InputError


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "?"), (0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"),
     (90_000, "1 d 01 h")],
)  # fmt: skip
def test_durations_read_like_words(seconds, words):
    assert output.duration(seconds) == words


def test_a_piped_table_is_never_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    output.print_table(["key", "n"], [["a" * 200, 1], ["b", None]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("a" * 200)
    assert lines[2].endswith("–")


def test_json_names_its_schema_first(capsys):
    output.emit_json("otf.x/1", {"a": 1}, compact=True)
    assert capsys.readouterr().out == '{"schema": "otf.x/1", "a": 1}\n'


def test_quiet_leaves_notes_out(capsys):
    output.be_quiet(quiet=True)
    output.note("hello")
    output.be_quiet(quiet=False)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("answer", "agreed"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_a_person_is_asked_and_no_is_the_default(monkeypatch, answer, agreed):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert output.confirm("Really?", yes=False, no_input=False) is agreed


@pytest.mark.parametrize("no_input", [True, False])
def test_without_a_person_only_yes_is_yes(monkeypatch, no_input):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert output.confirm("Really?", yes=True, no_input=no_input)
    with pytest.raises(InputError, match="nobody is there"):
        output.confirm("Really?", yes=False, no_input=no_input)


def test_colour_is_left_out_when_asked(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    import sys

    output.print_error(InputError("bad", where="here", hint="do this"))
    assert sys.stderr.getvalue() == "error: bad\nwhere: here\nnext:  do this\n"
