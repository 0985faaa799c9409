"""The notebooks: what is stored of them, and that they run, offline, and show what they promise."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browser import Page, chromium, needs_chromium

NOTEBOOKS = Path(__file__).parents[1] / "scripts" / "notebooks"
NAMES = ("quickstart", "explain")
"""In the order in which they are run: the second looks into the model of the first."""
VIEWS = ("head", "model", "neuron")
SCORE = re.compile(r"^(sentiment accuracy|intent accuracy|slots f1): (0\.\d+)$", re.MULTILINE)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: Any, kind: str) -> list[str]:
    """Return the outputs of a kind: `"text/html"`, or `"text/plain"`, which is printed or shown."""
    found: list[str] = []
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        if output.output_type == "stream":
            found += [output.text] if kind == "text/plain" and output.name == "stdout" else []
        elif kind in output.get("data", {}):
            found.append(output.data[kind])
    return found


def check_outputs(notebook: Any, name: str) -> None:
    """Check that no cell failed or warned, and that what the text promises is there."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    text, html = "\n".join(shown(notebook, "text/plain")), "\n".join(shown(notebook, "text/html"))
    if name == "quickstart":
        scores = {task: float(value) for task, value in SCORE.findall(text)}
        # A guess is right in half of the reviews, and for the commonest intent in fewer than one command in five.
        assert scores["sentiment accuracy"] > 0.7
        assert scores["intent accuracy"] > 0.5
        assert scores["slots f1"] > 0.3
        assert "sentiment: positive" in text
        assert ">tears</span>" in html
        assert "brightness: 35" in text
    else:
        assert ">wonderful</span>" in html
        assert "sentiment: " in text
        assert "sentiment：" in text
        assert " rather than " in text
        assert [kind for kind in VIEWS if f'title="attention, {kind} view"' in html] == [*VIEWS]


@pytest.mark.parametrize("name", NAMES)
def test_stored_notebook_has_its_outputs_and_nothing_of_the_machine(name: str) -> None:
    file = NOTEBOOKS / f"{name}.ipynb"
    assert file.stat().st_size < 2_000_000
    notebook = nbformat.read(file, 4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    check_outputs(notebook, name)
    texts = "\n".join([*shown(notebook, "text/plain"), *shown(notebook, "text/html")])
    assert re.findall(r"(?:/home|/root|/tmp|/usr|/opt|/Users|site-packages)/[/\w.-]*", texts) == []


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Generator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser.new_page()


def check_views(page: Page, notebook: Any, folder: Path) -> None:
    """Put the HTML of all cells into one page and check that the views in it are drawn."""
    file = folder / "notebook.html"
    cells = "".join(f"<div>{html}</div>" for html in shown(notebook, "text/html"))
    file.write_text(f"<!doctype html><meta charset='utf-8'><body>{cells}</body>", encoding="utf-8")
    page.open(file)
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith("about:srcdoc")] == [file.as_uri()]
    frames = "[...document.querySelectorAll('iframe')]"
    drawn = page.run(
        f"{frames}.map(x => [x.title, x.contentDocument.querySelectorAll('line').length,"
        " JSON.parse(x.contentDocument.getElementById('attention-data').textContent)])"
    )
    assert [title for title, _, _ in drawn] == [f"attention, {kind} view" for kind in VIEWS]
    for title, lines, data in drawn:
        squares = len(data["tokens"]) ** 2
        heads, layers = len(data["heads"]), len(data["layers"])
        assert lines >= {"head": heads, "model": heads * layers, "neuron": 1}[title.split()[1]] * squares


@needs_chromium
def test_views_of_the_stored_notebook_draw_without_a_network(page: Page, tmp_path: Path) -> None:
    check_views(page, nbformat.read(NOTEBOOKS / "explain.ipynb", 4), tmp_path)


@pytest.fixture(scope="session")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both notebooks, run from the first cell to the last in a folder of their own."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebooks")
    found: dict[str, Any] = {}
    for name in NAMES:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        options: dict[str, Any] = {"timeout": 1200, "resources": {"metadata": {"path": str(folder)}}}
        found[name] = NotebookClient(notebook, kernel_name="python3", **options).execute()
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_shows_what_it_promises(name: str, executed: dict[str, Any]) -> None:
    check_outputs(executed[name], name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_chromium
def test_views_of_the_executed_notebook_draw_without_a_network(
    page: Page, executed: dict[str, Any], tmp_path: Path
) -> None:
    check_views(page, executed["explain"], tmp_path)
