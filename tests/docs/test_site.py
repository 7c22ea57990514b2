"""The documentation builds as a site, strictly and without a network, and nothing on it comes from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    assert {p.stem for p in (ROOT / "docs").glob("*.md")} <= {p.stem for p in site.glob("*.html")}


def test_every_notebook_is_a_page_and_a_file(site: Path) -> None:
    notebooks = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 2
    for notebook in notebooks:
        assert (site / "notebooks" / notebook.name).read_bytes() == notebook.read_bytes()
        page = (site / "notebooks" / f"{notebook.stem}.html").read_text()
        assert f'href="{notebook.name}"' in page and 'class="highlight"' in page


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert not loaded, f"{page.name}: {loaded}"


def test_references_are_made_of_the_program(site: Path) -> None:
    commands = (site / "cli.html").read_text()
    assert "granvit corpus import" in commands and "--val-fraction" in commands
    python = (site / "api.html").read_text()
    assert "granvit.predict.GranViT.describe" in python
    assert "<math" in (site / "method.html").read_text()
