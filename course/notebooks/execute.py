"""Run lectures once, keep their outputs, and refuse outputs that another machine could not have made.

A committed lecture carries `outputs_sha256` in its metadata: the hash of the code that made its outputs. Prose may
change without a new run; one changed character of code makes the outputs stale.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.notebooknode import NotebookNode, from_dict
from traitlets.config import Config

from course.notebooks.sources import REPOSITORY, NotebookError, Problem, Source

TIMEOUT_S = 120.0  # for one whole notebook on two cores
STAMP = "outputs_sha256"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
# The committed outputs are those of a CPU with one thread: the machine every reader has.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
MACHINE = (
    (
        re.compile(r"(?:/home|/root|/Users|/tmp|/var|/opt|/usr|/work|/mnt|[A-Z]:\\)[/\\]?[\w.]*[/\\][^\s'\"]*"),
        "a machine path",
    ),
    (re.compile(r"site-packages|dist-packages|\.venv"), "a path of an installation"),
    (re.compile(r"\bat 0x[0-9a-f]{6,}"), "a memory address"),
    (re.compile(r"\b\w*Warning: "), "a warning"),
)


def code_sha256(notebook: NotebookNode) -> str:
    """The hash of everything that decides the outputs: the code cells, in order."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(code).encode()).hexdigest()


def attach(notebook: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """`notebook` with the outputs of `executed`, where the same code made them; else as it is, without outputs."""
    if executed.metadata.get(STAMP) != code_sha256(notebook):
        return notebook
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    donors = [cell for cell in executed.cells if cell.cell_type == "code"]
    if [cell.source for cell in cells] != [cell.source for cell in donors]:
        return notebook
    for count, (cell, donor) in enumerate(zip(cells, donors, strict=True), start=1):
        cell.outputs, cell.execution_count = donor.outputs, count
        _finish(cell, count)
    for key in (STAMP, "widgets"):
        if key in executed.metadata:
            notebook.metadata[key] = executed.metadata[key]
    return notebook


def has_outputs(notebook: NotebookNode) -> bool:
    """True when the outputs are stamped with the hash of the code that stands in the notebook."""
    return notebook.metadata.get(STAMP) == code_sha256(notebook)


def execute(
    notebook: NotebookNode, source: Source, progress: Callable[[str], None], timeout_s: float = TIMEOUT_S
) -> float:
    """Run every cell of `notebook` in place, in a fresh kernel in the source's folder; return the seconds it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
            store_widget_state=True,
            resources={"metadata": {"path": str(source.folder)}},
            config=_kernel_config(home),
        )
        with client.setup_kernel(env=_environment(home)):
            for number in range(1, len(notebook.cells) + 1):
                seconds = time.monotonic() - start
                progress(f"cell {number}/{len(notebook.cells)}, {seconds:.0f} s")
                _run_cell(client, source, number, timeout_s - seconds, timeout_s)
            client.set_widgets_metadata()
    _number_widgets(notebook)
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
        _finish(cell, count)
    notebook.metadata = _without_machine(notebook)
    return time.monotonic() - start


def _kernel_config(home: str) -> Config:
    """Sockets in the file system, where there are such: nobody else on a shared machine can drive the kernel."""
    return Config() if sys.platform == "win32" else Config(KernelManager={"transport": "ipc", "ip": f"{home}/kernel"})


def _environment(home: str) -> dict[str, str]:
    """Ours and a new IPython folder: the user's start-up files are no part of the course."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **ENVIRONMENT, "IPYTHONDIR": home, "PYTHONPATH": path}


def _run_cell(client: NotebookClient, source: Source, number: int, left_s: float, timeout_s: float) -> None:
    cell = client.nb.cells[number - 1]
    where = f"{source.shown}, cell {number}"
    too_long = NotebookError(
        f"{where}: the notebook needs more than {timeout_s:.0f} s. Make the sizes smaller, or commit the slow result "
        "as JSON and read it."
    )
    if left_s <= 0:
        raise too_long
    client.timeout = max(1, int(left_s))
    try:
        client.execute_cell(cell, number - 1)
    except CellTimeoutError:
        raise too_long from None
    except CellExecutionError as error:
        raise NotebookError(f"{where}: {error.ename}: {error.evalue}\n{cell.source}") from None
    except DeadKernelError:
        raise NotebookError(f"{where}: the kernel died, most often for want of memory. Run this cell alone.") from None


def _finish(cell: NotebookNode, count: int) -> None:
    """Remove what differs between two runs, and copy a figure's alt text to where the book looks for it."""
    cell.metadata.pop("execution", None)
    cell.metadata.pop("mystnb", None)
    for output in cell.outputs:
        if "execution_count" in output:
            output["execution_count"] = count
        if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
            cell.metadata["mystnb"] = {"image": {"alt": alt}}


def _number_widgets(notebook: NotebookNode) -> None:
    """Give each widget a running number for an id, in outputs and state: a new run would draw other ids.

    The state stays in the notebook, so that a widget whose logic is JavaScript works before anything has run.
    """
    kept = notebook.metadata.get("widgets")
    if kept is None:
        return
    new = {old: f"{number:032x}" for number, old in enumerate(kept[WIDGET_STATE]["state"], start=1)}

    def renamed(node: NotebookNode | list[NotebookNode]) -> Any:
        text = re.sub("|".join(new), lambda found: new[found[0]], json.dumps(node))
        return from_dict(json.loads(text))

    notebook.metadata["widgets"] = renamed(kept)
    for cell in notebook.cells:
        if cell.get("outputs"):
            cell.outputs = renamed(cell.outputs)


def _without_machine(notebook: NotebookNode) -> NotebookNode:
    metadata = notebook.metadata
    metadata["language_info"] = {
        key: value
        for key, value in metadata["language_info"].items()
        if key in ("name", "file_extension", "pygments_lexer")  # the version is the machine's
    }
    metadata[STAMP] = code_sha256(notebook)
    return metadata


def scrub(source: Source, notebook: NotebookNode) -> list[Problem]:
    """What in the outputs belongs to the machine that ran them (paths, addresses, warnings); figures without words."""
    problems = []
    secrets = [
        (re.compile(re.escape(str(path))), "a machine path") for path in {REPOSITORY, Path.home()} if path != Path("/")
    ]
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            found = _stains(output, [*MACHINE, *secrets])
            problems += [Problem(source.shown, number, what, fix) for what, fix in found]
    return problems


def _stains(output: NotebookNode, patterns: list[tuple[re.Pattern[str], str]]) -> list[tuple[str, str]]:
    if output.output_type == "error":
        return [(f"the output is an error: {output.ename}", "Catch it and print its message: a reader runs all cells.")]
    if output.output_type == "stream" and output.name == "stderr":
        return [(f"the cell wrote to stderr: {output.text.strip()[:80]}", "Mend the cause of the warning.")]
    data = output.get("data", {})
    texts = [output.get("text", "")] + [
        value for kind, value in data.items() if isinstance(value, str) and kind != "image/png"
    ]
    found = []
    for pattern, what in patterns:
        if match := next(filter(None, map(pattern.search, texts)), None):
            found.append((f"{what} in an output: {match[0][:80]}", "Print a name or a number instead."))
    if "image/png" in data and not output.get("metadata", {}).get("image/png", {}).get("alt"):
        found.append(("a figure without alt text", "Show it with show(fig, alt=…) of course.viz."))
    return found
