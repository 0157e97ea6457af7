"""What ``--help`` prints: whole sentences that fit, and examples that the commands accept."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from quorin.cli import app

PROGRAM: Any = typer.main.get_command(app)
SETTINGS = {"QUORIN_CONNECTION": "redis://localhost:6379", "QUORIN_OFFLINE": "history", "QUORIN_SERVED_LOG": "served"}
"""What a Feast repository, or the shell's profile, says once for all commands."""
EXAMPLE = re.compile(r"^ +((?:[A-Z_]+=\S+ )*quorin .*)$", flags=re.MULTILINE)


def commands(command: Any = PROGRAM, name: str = "quorin", parent: Any = None) -> Iterator[tuple[str, Any, str]]:
    """Name, command and help of every command, in a terminal of eighty columns."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=80)
    yield context.command_path, command, command.get_help(context)
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, word, context)


COMMANDS = {name: (command, text) for name, command, text in commands()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_in_one_whole_sentence_what_it_does(name: str) -> None:
    command, text = COMMANDS[name]
    [first] = re.findall(r"\n\n((?:  .+\n?)+)", text)[:1]
    assert re.match(r"  [A-Z][^.]+\.(?: |\n|$)", first), first
    listed = text.partition("\nCommands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(listed) == len(getattr(command, "commands", {}))
    assert [line for line in listed if not re.match(r"  [a-z]+ +[A-Z][^.]+[^.]\.$", line)] == []


@pytest.mark.parametrize("name", [name for name, (command, _) in COMMANDS.items() if not hasattr(command, "commands")])
def test_examples_are_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, text = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    for setting, value in SETTINGS.items():
        monkeypatch.setenv(setting, value)
    (tmp_path / "feature_repo").mkdir()
    shown = EXAMPLE.findall(text.partition("Examples:")[2].partition("Exit codes:")[0])
    assert shown
    for example in shown:
        words = shlex.split(example.partition(" > ")[0], comments=True)
        words = words[words.index("quorin") :]
        for word in words:
            if re.fullmatch(r"[\w./]+\.(?:json|yaml|pem|csv|parquet|snapshot)|token", word):
                Path(word).touch()
        path = name.split()
        assert words[: len(path)] == path
        command.make_context(name, words[len(path) :])  # parses all, and runs nothing
