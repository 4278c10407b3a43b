"""The pages: generated parts are up to date, links lead somewhere, and the README stays short."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import vidvq
from vidvq.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_generated_parts_are_up_to_date():
    check = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target, anchor in LINK.findall(page.read_text()):
        path = (page.parent / target) if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name} links to {target}#{anchor}"


def test_every_command_has_a_page_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for name in cli.commands:
        page = "settings" if name == "config" else name
        assert (ROOT / "docs" / f"{page}.md").is_file() and f" {page}.md" in navigation


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_pages_load_nothing_from_the_network():
    configured = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in configured and "https://" not in configured


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page):
    named = re.findall(r"`((?:vidvq|tests|configs|docker|launch|examples)/[\w./-]*\w)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists() and "NAME" not in name] == []


@pytest.mark.parametrize(
    "path",
    [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml"],
    ids=lambda path: path.name,
)
def test_files_that_only_a_server_reads_are_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_citation_names_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == vidvq.__version__


@pytest.mark.parametrize("name", ["brightness_stage.py", "pyproject.toml"])
def test_the_blocks_of_the_walk_through_are_the_files_of_the_example(name):
    blocks = re.findall(r"^```\w+\n(.*?)^```$", (ROOT / "docs/add-a-stage.md").read_text(), re.MULTILINE | re.DOTALL)
    assert (ROOT / "examples/brightness_stage" / name).read_text() in blocks


def test_the_where_of_the_page_is_the_language():
    from vidvq.formats.where import Where

    page = (ROOT / "docs/map.md").read_text()
    block = re.search(r"## where\n\n```text\n(.*?)```", page, re.DOTALL)
    assert block
    rows = [{"motion": 1, "caption": "a dog", "fps": 25, "height": 360, "carried": {"licence": "cc0"}}, {}]
    for line in block[1].splitlines():
        assert [Where(line).selects(row) for row in rows] == [True, False]
