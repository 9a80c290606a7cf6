"""The hook that turns links of docs/ to their places in the site."""

from __future__ import annotations

import pytest

from docs.links import foreign, linked, misread, redirected

PAGE = "docs/page.md"


@pytest.mark.parametrize(
    "link, place",
    [
        ("../service/roomcast/wire/codes.py", "repository/service/roomcast/wire/codes.py.md"),
        ("../README.md#limits", "repository/README.md#limits"),
        ("../deploy/README.md", "repository/deploy/README.md"),
        ("../deploy", "repository/deploy/README.md"),
        ("rooms.py", "repository/docs/rooms.py.md"),
        # What docs/ has itself, and what nobody has, stays.
        ("api.md#batch", "api.md#batch"),
        ("decisions/", "decisions/README.md"),
        ("../gone.py", "../gone.py"),
        ("../../outside.md", "../../outside.md"),
        ("#here", "#here"),
        ("https://example.com/a.py", "https://example.com/a.py"),
    ],
)
def test_a_link_of_a_page_leads_to_its_place_in_the_site(link: str, place: str) -> None:
    assert redirected(f"[a]({link})", PAGE, "page.md") == f"[a]({place})"


def test_links_of_a_file_outside_of_docs_start_where_the_site_has_it() -> None:
    text = "[a](../docs/api.md) [b](template.yaml)"
    expected = "[a](../../api.md) [b](template.yaml.md)"
    assert redirected(text, "deploy/README.md", "repository/deploy/README.md") == expected


def test_blocks_of_code_stay() -> None:
    text = "```\n[a](../README.md)\n```\n"
    assert redirected(text, PAGE, "page.md") == text
    assert linked(text, PAGE) == set()


def test_files_that_are_linked_to_are_found() -> None:
    text = "[a](../README.md#x) [b](api.md) [c](https://example.com) [d](#e)"
    assert linked(text, PAGE) == {"README.md", "docs/api.md"}


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://example.com/a.js"></script>',
        '<img alt="" src="//example.com/a.png">',
        '<link rel="stylesheet" href="https://example.com/a.css">',
    ],
)
def test_what_comes_from_another_host_is_found(tag: str) -> None:
    assert foreign(tag) != []


@pytest.mark.parametrize(
    "tag",
    [
        '<a href="https://example.com/">',
        '<script src="assets/a.js"></script>',
        '<link rel="canonical" href="https://example.com/page.html">',
    ],
)
def test_a_link_that_a_reader_follows_is_not_loaded(tag: str) -> None:
    assert foreign(tag) == []


def test_a_list_that_became_text_is_found() -> None:
    assert misread("<p>As follows:\n- one\n- two</p>") == ["- one", "- two"]
    assert misread("<p>As - follows</p><ul><li>one</li></ul>") == []
