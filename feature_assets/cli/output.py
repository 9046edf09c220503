"""Results on stdout as a table or as JSON, everything else on stderr."""

import base64
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import repeat
from typing import Annotated, Any, Literal, TextIO

import typer
from rich.console import Console
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)]

Style = Literal["", "name", "dim", "number", "good", "warn", "bad"]

_BETWEEN = "   "
_SENTENCE = 20
"""How many characters of a sentence are worth a line."""

_STYLES = {"name": "bold", "dim": "dim", "good": "green", "warn": "yellow", "bad": "bold red"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: the key of its values in the rows, the heading, how it looks.

    A spare one is left out where the terminal is too narrow for all.
    """

    key: str
    heading: str = ""
    style: Style = ""
    spare: bool = False

    @property
    def title(self) -> str:
        return self.heading or self.key.replace("_", " ")


def _console(file: TextIO) -> Console:
    # In a pipe nothing is folded: who greps wants each row on one line.
    wide = not file.isatty() and "COLUMNS" not in os.environ
    return Console(file=file, markup=False, highlight=False, emoji=False, width=10_000 if wide else None)


def notes() -> Console:
    """Where progress, questions and errors go: stderr."""
    return _console(sys.stderr)


def note(text: str, *, style: str = "dim") -> None:
    """Say something that is not the result."""
    aside(Text(text, style))


def warn(text: str) -> None:
    """Say something that deserves attention and stops nothing."""
    aside(Text.assemble(("Note:  ", "yellow"), text))


def aside(line: Text) -> None:
    """Print a line on stderr: folded between words on a terminal, whole anywhere else."""
    console = notes()
    console.print(line, soft_wrap=not console.is_terminal)


def say(text: str, *, style: str = "") -> None:
    """One line of the result."""
    _console(sys.stdout).print(Text(text, style), soft_wrap=True)


def done(text: str) -> None:
    """One line of the result: it worked."""
    _console(sys.stdout).print(Text.assemble(("✓ ", "green"), text), soft_wrap=True)


def print_json(value: Any) -> None:
    """The value as JSON on stdout."""
    sys.stdout.write(json.dumps(_finite(value), default=_plain, indent=2, ensure_ascii=False) + "\n")


def show(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, as_json: bool, empty: str, title: str = ""
) -> None:
    """The rows as a table, or all of their keys as JSON. `empty` is said where there are none."""
    if as_json:
        print_json(list(rows))
    elif rows:
        table(rows, columns, title=title)
    else:
        note(empty, style="")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, title: str = "") -> None:
    """Print rows under headings. Columns that are empty in every row are left out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = _console(sys.stdout)
    shown, whole = _fitting(rows, columns, console.width)
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim", border_style="dim")
    for column in shown:
        number = column.style == "number"
        # Names and numbers stay whole as long as the sentences beside them can be folded.
        grid.add_column(
            column.title,
            justify="right" if number else "left",
            no_wrap=number or column.style in ("good", "dim") or (whole and column.style == "name"),
            overflow="fold",
            style=_STYLES.get(column.style, ""),
        )
    for row in rows:
        grid.add_row(*(_cell(row.get(column.key)) for column in shown))
    if title:
        console.print(Text(title, "bold"))
    with console.capture() as capture:
        console.print(grid)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _fitting(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], width: int) -> tuple[list[Column], bool]:
    """The columns that have values and room, and whether names stay whole beside them.

    There is room if no word has to be cut and sentences get a few words a line.
    """
    shown = [column for column in columns if any(text(row.get(column.key)) for row in rows)]

    def needed() -> int:
        return sum(map(_least_width, shown, repeat(rows))) + len(_BETWEEN) * (len(shown) - 1)

    while needed() > width and any(column.spare for column in shown):
        shown.remove([column for column in shown if column.spare][-1])
    return shown, needed() <= width


def _least_width(column: Column, rows: Sequence[Mapping[str, Any]]) -> int:
    texts = [column.title, *(_cell(row.get(column.key)).plain for row in rows)]
    longest_line = max(len(line) for one in texts for line in one.split("\n"))
    longest_word = max(len(word) for one in texts for word in one.split() or [""])
    return max(longest_word, min(longest_line, _SENTENCE))


def facts(pairs: Mapping[str, Any], *, title: str = "") -> None:
    """What is known of one thing: names on the left, values on the right. What is empty is left out."""
    from rich.table import Table

    console = _console(sys.stdout)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        if text(value):
            grid.add_row(name, _cell(value))
    if title:
        console.print(Text(title, "bold"))
    with console.capture() as capture:
        console.print(grid)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _cell(value: Any) -> Text:
    return value if isinstance(value, Text) else Text(text(value))


def text(value: Any) -> str:
    """A value as a person reads it; nothing for nothing."""
    if value is None or value == "" or value == () or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}{'' if value.tzinfo is None else 'Z'}"
    if isinstance(value, timedelta):
        return span(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={text(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(text(one) for one in value)
    return str(value)


def span(value: timedelta) -> str:
    """A length of time in its two largest units: 6 h, 1 d 12 h, 90 s."""
    seconds = value.total_seconds()
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        count, rest = divmod(seconds, length)
        if count and (unit != "min" or not rest or parts):
            parts.append(f"{count:.0f} {unit}")
            seconds = rest
    if seconds or not parts:
        parts.append(f"{seconds:g} s")
    return " ".join(parts[:2])


def _finite(value: Any) -> Any:
    """The value with NaN and the infinities as the texts that the server has for them: JSON has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """What JSON has no word for."""
    if isinstance(value, datetime | date):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.plain if isinstance(value, Text) else str(value)


def counted(number: int, what: str) -> str:
    """As in "1 view", "2 views"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask on stderr; a script that nobody watches has to say --yes."""
    if yes:
        return True
    if not sys.stdin.isatty():
        return False
    return typer.confirm(question, err=True)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something is being done; say nothing where nobody watches.

    What it gives takes how far it is, in words, to be shown behind.
    """
    console = notes()
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(Text(what, "dim"), spinner="dots") as status:
        yield lambda how_far: status.update(Text(f"{what} {how_far}", "dim"))
