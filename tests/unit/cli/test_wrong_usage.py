"""Wrong usage of every command, made from what each declares: one line that names what is wrong, and exit code 2."""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from quorin.cli import app, main
from quorin.cli.repository import repository
from quorin.engine.backend import connect

PROGRAM: Any = typer.main.get_command(app)
GROUPS: Any = [((), app), *(((of.typer_instance.info.name,), of.typer_instance) for of in app.registered_groups)]  # type: ignore[union-attr]
FUNCTIONS: dict[tuple[str, ...], Any] = {
    (*path, command.name or command.callback.__name__): command.callback
    for path, group in GROUPS
    for command in group.registered_commands
}


def leaf(name: tuple[str, ...]) -> Any:
    """What Typer made of a command."""
    found = PROGRAM
    for word in name:
        found = found.commands[word]
    return found


def value_types(hint: Any) -> set[type]:
    """The types of an annotation, such as int of ``Annotated[int | None, …]``."""
    if typing.get_origin(hint) is typing.Annotated:
        return value_types(typing.get_args(hint)[0])
    parts = typing.get_args(hint)
    return set().union(*map(value_types, parts)) if parts else {hint}


def limits(hint: Any) -> tuple[float | None, float | None]:
    """What an option declares as its least and its largest value."""
    infos = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    return next(((info.min, info.max) for info in infos if hasattr(info, "min")), (None, None))


def wrong_values(name: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Words after a command, each with one value of a wrong type or out of range."""
    hints = inspect.get_annotations(FUNCTIONS[name], eval_str=True)
    for parameter in leaf(name).params:
        hint = hints.get(parameter.name)
        types = value_types(hint)
        if parameter.param_type_name != "option" or bool in types:
            continue
        option = parameter.opts[0]
        if types & {int, float} or any(isinstance(one, type) and issubclass(one, enum.Enum) for one in types):
            yield option, "much"
        if types & {int}:
            yield option, "1.5"
        least, largest = limits(hint)
        if least is not None:
            yield option, str(least - 1)
        if largest is not None:
            yield option, str(largest + 1)


def cases() -> Iterator[Any]:
    for name in FUNCTIONS:
        arguments = [one for one in leaf(name).params if one.param_type_name == "argument"]
        wrong = [("--no-such-option",), *wrong_values(name)]
        wrong += [(one.opts[-1],) for one in leaf(name).params if one.param_type_name == "option" and not one.is_flag]
        if any(one.required for one in arguments):
            wrong.append(())
        if all(one.nargs == 1 for one in arguments):
            wrong.append(("x",) * (len(arguments) + 1))
        yield pytest.param(name, wrong, id="-".join(name))


@pytest.mark.parametrize(("name", "wrong"), list(cases()))
def test_every_wrong_word_is_one_line_and_exit_code_2(
    name: tuple[str, ...],
    wrong: list[tuple[str, ...]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    repository.cache_clear()
    if name != ("bench",):
        connect(str(tmp_path / "store")).close()
        monkeypatch.setenv("QUORIN_CONNECTION", str(tmp_path / "store"))
        monkeypatch.setenv("QUORIN_OFFLINE", str(tmp_path / "history"))
    for words in wrong:
        monkeypatch.setattr("sys.argv", ["quorin", *name, *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert (end.value.code, said.out) == (2, ""), (words, said)
        first, *hint = said.err.strip().splitlines()
        assert first.startswith("error: "), words
        assert len(hint) < 2
        assert all(line.endswith(f"quorin {' '.join(name)} --help`") for line in hint)
        if len(words) == 2 and words[0].startswith("-"):
            assert words[0] in first or words[1] in first, f"{first} does not say that {words} is wrong"


def test_there_are_values_of_wrong_types_to_try() -> None:
    tried = {words for name in FUNCTIONS for words in wrong_values(name)}
    assert {("--timeout-ms", "much"), ("--last", "0"), ("--interval", "much"), ("--wait-for", "much")} <= tried
