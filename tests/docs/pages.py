"""The pages of the documentation as what is in them: code blocks, headings, links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*) *$")
_REMARK = re.compile(r"^<!-- *(?P<name>[a-z ]+): *(?P<value>.*?) *-->$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_IMAGE = re.compile(r"""(?:!\[[^\]]*\]\(|(?:src|srcset)=")(?P<target>[^)\s"]+)""")
_HEADING = re.compile(r"^#+ +(?P<text>.+?) *$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `not_run` is the reason that a remark right before it gives for not running it."""

    language: str
    text: str
    line: int
    not_run: str = ""


@dataclass(frozen=True)
class Page:
    """One page. Remarks in it are HTML comments, which readers do not see: `<!-- project: shop -->`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def project(self) -> str:
        """The project that the page works in; an empty folder if it names none."""
        found = re.search(r"^<!-- *project: *([a-z]+) *-->$", self.text, re.MULTILINE)
        return found[1] if found else ""

    @property
    def needs_s3(self) -> bool:
        """Whether there is to be an S3, with a bucket `features`."""
        return "\n<!-- needs: s3 -->\n" in self.text

    @property
    def needs_kafka(self) -> bool:
        """Whether there is to be a broker, with a topic `trips`."""
        return "\n<!-- needs: kafka -->\n" in self.text

    @cached_property
    def blocks(self) -> list[Block]:
        found: list[Block] = []
        lines = self.text.splitlines()
        number = 0
        while number < len(lines):
            opening = _FENCE.match(lines[number])
            if not opening:
                number += 1
                continue
            end = next(at for at in range(number + 1, len(lines)) if lines[at].strip() == "```")
            inside = [one.removeprefix(opening["indent"]) for one in lines[number + 1 : end]]
            remark = _REMARK.match(lines[number - 1].strip()) if number else None
            reason = remark["value"] if remark and remark["name"] == "not run" else ""
            found.append(Block(opening["language"], "\n".join(inside) + "\n", number + 2, reason))
            number = end + 1
        return found

    @property
    def prose(self) -> str:
        """The page without its blocks, comments and `code`."""
        text = re.sub(r"^ *```.*?^ *```$", "", self.text, flags=re.MULTILINE | re.DOTALL)
        return re.sub(r"`[^`\n]*`", "`…`", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))

    @property
    def links(self) -> Iterator[str]:
        """Where the page leads to, as it is written."""
        for pattern in (_LINK, _IMAGE):
            yield from (found["target"] for found in pattern.finditer(self.prose))

    @property
    def anchors(self) -> set[str]:
        """What `#…` may follow the page's name: GitHub's form of its headings."""
        text = re.sub(r"^ *```.*?^ *```$", "", self.text, flags=re.MULTILINE | re.DOTALL)
        return {_anchor(found["text"]) for line in text.splitlines() if (found := _HEADING.match(line))}


def _anchor(heading: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def pages() -> list[Page]:
    """The README and everything below `docs`, the longest work first, so that it does not end alone."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return sorted((Page(path) for path in found), key=lambda page: -len(page.blocks))
