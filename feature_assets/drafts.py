"""Files and folders that are there whole or not at all."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def drafted(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end.

    Whatever stops the writing, Ctrl-C too, leaves `path` as it was. What is no plain file, such as a pipe, is written to
    as it is.
    """
    # Where a link leads to is what is meant to be written.
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        yield target
        return
    draft = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}")
    try:
        yield draft
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def drafted_folder(path: str | Path) -> Iterator[Path]:
    """A folder beside `path` to write files to, which takes its place at the end; `path` is not there, or empty.

    What begins with a dot in it stays behind: drafts of who was killed.
    """
    target = Path(path).resolve()
    draft = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        yield draft
        for left in draft.glob(".*"):
            left.unlink()
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
