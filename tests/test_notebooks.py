"""Every notebook runs from top to bottom on a machine without network, and is committed as it was written."""

import ast
import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pytest
from archive_server import DANDISET, serving
from caches import new_cache
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from problems import SMALL_FIGURE

from bci_adapt.archive.sources.simulated import Simulated

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TINY = {  # parameters of each notebook under which it runs in seconds, and the figures it must then show
    "01_from_dandi_to_session.ipynb": (
        {
            "DANDISET": None,
            "SIM_DURATION_S": 100.0,
            "SIM_UNITS": 12,
            "SIM_ELECTRODES": 14,
            "BLOCK_S": 5.0,
            "N_BOOT": 60,
        },
        7,
    ),
    "02_a_decoders_life.ipynb": (
        {
            "FOLDER": None,
            "SIM_DAYS": (0, 30, 210),
            "SIM_DURATION_S": 100.0,
            "SIM_UNITS": 12,
            "STREAM_S": 50.0,
            "N_HIDDEN": 6,
            "N_UPDATES": 20,
            "WINDOW_S": 10.0,
            "BLOCK_S": 5.0,
            "N_BOOT": 60,
            "N_GRADIENTS": 12,
            "BACKEND": "plain",
        },
        7,
    ),
    "03_the_papers_claims.ipynb": (
        {"FOLDER": None, "FIGURES": ("F1", "F2b", "F3", "methods", "delays"), "WORKERS": 0},
        7,
    ),
    "04_ninety_two_days.ipynb": (
        {
            "FOLDER": None,
            "SIM_DAYS": (0, 30, 92),
            "SIM_DURATION_S": 100.0,
            "SIM_UNITS": 12,
            "N_HIDDEN": 6,
            "N_UPDATES": 20,
            "BUDGETS_S": (0.0, 20.0),
            "WORKERS": 0,
        },
        2,
    ),
}

PAPER_FIGURES = {
    "F1": 'methods = [{ rule = "trace", decay = [0.0, 0.95], optimizer = "sgd" }]',
    "F2b": 'gradients = { rules = ["immediate"], exact_up_to = 0, n_bins = 20, every = 10 }',
    "F3": 'methods = [{ rule = "immediate", optimizer = ["sgd", "adam"] }]',
    "methods": 'methods = [{ rule = "immediate" }]',
    "delays": 'methods = [{ rule = "immediate" }]',
}
PAPER_CLAIMS = """
[[claims]]
id = "d0"
claim = "immediate derivatives recover"
paper = "102 %"
figure = "methods"
cases = [{ when = "n = 6", statistic = "recovery", task = "sine", method = "immediate + rmsprop", above = 0.0 }]
[[claims]]
id = "elsewhere"
claim = "something else"
paper = "—"
figure = "methods"
untested = "needs another machine"
"""


@pytest.fixture
def paper_configs(tmp_path):
    """Figures of the paper small enough for a test, the same task and networks in all of them."""
    folder = tmp_path / "paper"
    folder.mkdir()
    for name, own in PAPER_FIGURES.items():
        (folder / f"{name}.toml").write_text(f'figure = "{name}"\n{SMALL_FIGURE}\n{own}\n', encoding="utf-8")
    (folder / "claims.toml").write_text(PAPER_CLAIMS, encoding="utf-8")
    return folder


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder to run in, with its own cache, and a kernel `python3` that is this interpreter wherever this runs."""
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")
    places = {"JUPYTER_PATH": "jupyter", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    for name, folder in places.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no way out
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(new_cache(tmp_path)))
    return tmp_path / "work"


def parameters_of(notebook):
    """The place of the one cell tagged `parameters`, and the names that it assigns."""
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    body = ast.parse(notebook.cells[place].source).body
    assert all(isinstance(line, ast.Assign) for line in body), "parameters are plain assignments"
    return place, {target.id for line in body for target in line.targets}


def pixels(png):
    from matplotlib.image import imread

    return imread(io.BytesIO(base64.b64decode(png)))


def test_every_notebook_is_run():
    assert [path.name for path in NOTEBOOKS] == sorted(TINY)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert dict(notebook.metadata.language_info) == {"name": "python"}, "the version of whoever saved it last"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.id
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), f"{cell.id}: clear outputs before a commit"
    place, _ = parameters_of(notebook)
    (own,) = TINY[path.name][0].keys() & {"DANDISET", "FOLDER"}
    assert f"{own} = None" in notebook.cells[place].source, "simulated unless the reader asks for more"


def execute(path, folder, until="", **changes):
    """Outputs of a notebook that runs in `folder` with its tiny parameters, some of them changed.

    It ends with the first code cell that holds `until`, or at its end.
    """
    notebook = nbformat.read(path, as_version=4)
    parameters = TINY[path.name][0] | changes
    place, names = parameters_of(notebook)
    assert set(parameters) <= names
    lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    if until:
        last = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and until in cell.source)
        notebook.cells = notebook.cells[: last + 1]
    client = NotebookClient(notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()  # raises at the first error of a cell
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if "Warning" in output.get("text", "")] == []
    assert not list(folder.iterdir()), "files go into the cache"
    return outputs


def said(outputs):
    """All text of outputs."""
    plain = [output.get("text", "") for output in outputs]
    return "\n".join(plain + [output.data.get("text/markdown", "") for output in outputs if "data" in output])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path, alone, paper_configs):
    own = {"CONFIGS": str(paper_configs)} if path.name.startswith("03") else {}
    outputs = execute(path, alone, **own)
    figures = [pixels(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == TINY[path.name][1]
    assert all(figure.shape[1] > 1500 and np.unique(figure).size > 50 for figure in figures)  # wide, and not blank
    assert ("# ⚠ SMALL" if own else "SIMULATED") in said(outputs)  # nothing that is shown is a finding


def test_the_first_notebook_on_an_archive(alone, tmp_path, monkeypatch):
    """The way that real recordings take: fetched, with where they are from in the session."""
    made = Simulated(tmp_path / "made", days=(0, 30), duration_s=100.0, n_units=12)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as archive:
        for name in made.list().index:
            archive.add(f"sub-M/{name}_behavior+ecephys.nwb", made.fetch(name).read_bytes())
        monkeypatch.setenv("DANDI_INSTANCE", archive.url)
        changes = {"DANDISET": DANDISET, "PATHS": ["sub-M/*_ses-CO-*"]}
        outputs = execute(NOTEBOOKS[0], alone, until="session_warnings(session)", **changes)
    assert "SIMULATED" not in said(outputs)
    assert said(outputs).count("spdx:CC-BY-4.0, file ") == 2
    assert len(archive.asked()) == 2
