"""A hook of MkDocs (mkdocs.yml): adds to the site the files outside docs/ to which pages link.

Pages link to code in a form that any Git host resolves: `../service/roomcast/log/item.py`. The site
has no Git host, so each linked file gets a page of its own under repository/, and the link leads
there. A link to a missing file stays unchanged, and a strict build fails on it.

MkDocs loads this file by its path and calls the functions whose names begin with `on_`.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = [
    "foreign",
    "linked",
    "misread",
    "on_files",
    "on_page_content",
    "on_page_markdown",
    "on_post_page",
    "redirected",
]

log = logging.getLogger("mkdocs.hooks.links")

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = "docs"
# The folder of the site for files from outside docs/.
MOUNT: Final = "repository"
# The file types that the site shows, and their highlighting. A link to another type stays dead.
LANGUAGES: Final = {
    ".c": "c", ".css": "css", ".js": "js", ".json": "json", ".mjs": "js", ".py": "python",
    ".service": "ini", ".sh": "bash", ".toml": "toml", ".txt": "text", ".yaml": "yaml",
    ".yml": "yaml", ".ini": "ini", ".cfg": "ini", "": "text",
}  # fmt: skip
LINK: Final = re.compile(r"(\]\()(?!\w+:|#|/)([^)\s#]+)([^)\s]*\))")
FENCE: Final = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
# Tags by which a browser loads something from another host. Links for readers do not count.
LOADED: Final = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=[\"']?(?:https?:)?//[^\s\"'>]+"
)

# Lists and tables that Python-Markdown takes for text. It requires an empty line before them, and
# four spaces before the further lines of a list item. Git hosts require less.
MISREAD: Final = re.compile(r"^\s*(?:- |\d\d?\. |\| |```).*", re.MULTILINE)
PARAGRAPH: Final = re.compile(r"<p>(.*?)</p>", re.DOTALL)


def linked(text: str, path: str) -> set[str]:
    """The files to which `text` links, the Markdown of the file at `path`.

    Paths are relative to the repository.
    """
    return {
        _resolved(path, match[2])
        for part in FENCE.split(text)[::2]
        for match in LINK.finditer(part)
    }


def redirected(text: str, path: str, at: str) -> str:
    """`text`, the Markdown of the file at `path`, with its links adapted to its place in the site,
    `at`.

    Code blocks stay unchanged.

    `path` is relative to the repository, `at` to docs/.
    """

    def place(match: re.Match[str]) -> str:
        target = _resolved(path, match[2])
        found = _place(target)
        if found is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(found, posixpath.dirname(at) or '.')}{match[3]}"

    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(place, part) for part in parts[::2]]
    return "".join(parts)


def foreign(html: str) -> list[str]:
    """The tags by which a page loads something from another host. Each is cut after the address."""
    return LOADED.findall(html)


def misread(html: str) -> list[str]:
    """Lines of a page's paragraphs that should be a list, a table or a block of code."""
    return [line for text in PARAGRAPH.findall(html) for line in MISREAD.findall(text)]


def _resolved(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _place(target: str) -> str | None:
    """The place in the site of a repository file, relative to docs/. None: it has none."""
    file = ROOT / target
    if target == DOCS or target.startswith(f"{DOCS}/"):
        inside = posixpath.relpath(target, DOCS)
        if file.is_dir():
            return f"{inside}/README.md" if (file / "README.md").exists() else None
        # Python files of docs/ are not pages: they are shown as code.
        return f"{MOUNT}/{target}.md" if file.suffix == ".py" and file.is_file() else inside
    if target.startswith("."):
        return None
    if file.is_dir():
        return (
            f"{MOUNT}/{target}/README.md"
            if (file / "README.md").exists()
            else f"{MOUNT}/{target}.md"
        )
    if file.suffix == ".md" and file.is_file():
        return f"{MOUNT}/{target}"
    return f"{MOUNT}/{target}.md" if file.suffix in LANGUAGES and file.is_file() else None


def _shown(target: str) -> str:
    """The page for a file or folder of the repository, as Markdown."""
    file = ROOT / target
    if file.is_dir():
        names = sorted(each.name for each in file.iterdir() if not each.name.startswith(("_", ".")))
        listed = "".join(f"- `{name}`\n" for name in names)
        return f"{_head(target)}{listed}"
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    # Longer than any fence in the text itself.
    fence = "`" * (max([2, *map(len, re.findall(r"`{3,}", text))]) + 1)
    return f"{_head(target)}{fence}{LANGUAGES[file.suffix]}\n{text}\n{fence}\n"


def _head(target: str) -> str:
    return f"---\nsearch:\n  exclude: true\n---\n\n# {Path(target).name}\n\n`{target}`\n\n"


def _origin(page: str) -> str:
    """The repository file behind the site's page at `page`."""
    return page.removeprefix(f"{MOUNT}/") if page.startswith(f"{MOUNT}/") else f"{DOCS}/{page}"


def _mounted() -> Iterator[tuple[str, str]]:
    """The linked files, and the files that those link to: place in the site, and text."""
    waiting = [(f"{DOCS}/{each.relative_to(ROOT / DOCS)}") for each in (ROOT / DOCS).rglob("*.md")]
    waiting += ["README.md", "CHANGELOG.md", "deploy/README.md"]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        place = _place(path)
        if place is not None and place.startswith(f"{MOUNT}/"):
            if (ROOT / path / "README.md").exists():
                waiting.append(f"{path}/README.md")
                continue
            yield place, _shown(path)
        if path.endswith(".md") and (ROOT / path).exists():
            waiting += linked((ROOT / path).read_text(encoding="utf-8"), path)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """MkDocs: adds the pages for files outside docs/."""
    from mkdocs.structure.files import File

    for place, text in _mounted():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """MkDocs: adapts the links of a page to the site."""
    at = page.file.src_uri
    return redirected(markdown, _origin(at), at)


def on_page_content(html: str, *, page: Page, **_: object) -> str:
    """MkDocs: a list or table that became plain text fails a strict build."""
    for line in misread(html):
        log.warning(
            "%s: needs an empty line before it, or four spaces: %s", page.file.src_uri, line
        )
    return html


def on_post_page(output: str, *, page: Page, **_: object) -> str:
    """MkDocs: a page that loads anything from another host fails a strict build."""
    for what in foreign(output):
        log.warning("%s loads from another host: %s", page.file.src_uri, what)
    return output
