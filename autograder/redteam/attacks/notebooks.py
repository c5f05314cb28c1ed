"""Change the notebook itself: its points, labels, checks, outputs, markup, encoding, and the file it is in."""

from typing import Any

from autograder.redteam.attack import attack

SCRIPT = "<script>alert('redteam')</script><img src=x onerror=alert('redteam')>"


@attack("measured against nbgrader 0.9.6", quick=True)
def points_edited(notebook: Any) -> None:
    """Gives every graded cell a thousand points, or points that are no number."""
    for number, cell in enumerate(notebook.cells):
        if "nbgrader" in cell.metadata:
            cell.metadata["nbgrader"]["points"] = 1000 if number % 2 else float("nan")


@attack("own")
def flags_edited(notebook: Any) -> None:
    """Turns solution cells into graded ones and check cells into prose."""
    for cell in notebook.cells:
        if "nbgrader" in cell.metadata:
            label = cell.metadata["nbgrader"]
            label["grade"], label["solution"], label["locked"] = not label.get("grade"), True, False
            label["task"] = True


@attack("nbgrader pull request 1770")
def checks_deleted(notebook: Any) -> None:
    """Deletes every check cell."""
    notebook.cells = [c for c in notebook.cells if not c.metadata.get("nbgrader", {}).get("grade")]


@attack("own")
def everything_deleted(notebook: Any) -> None:
    """Hands in a notebook without a cell."""
    notebook.cells = []


@attack("measured against nbgrader 0.9.6", quick=True)
def labels_duplicated(notebook: Any) -> None:
    """Copies every graded cell five times, labels and all."""
    import copy

    notebook.cells += [copy.deepcopy(cell) for cell in notebook.cells for _ in range(5) if "nbgrader" in cell.metadata]


@attack("own")
def labels_swapped(notebook: Any) -> None:
    """Gives the worthless answer the label of the right one, and the other way round."""
    swap = {"softmax": "total", "total": "softmax", "check-softmax": "check-total", "check-total": "check-softmax"}
    for cell in notebook.cells:
        if "nbgrader" in cell.metadata:
            label = cell.metadata["nbgrader"]
            label["grade_id"] = swap.get(label["grade_id"], label["grade_id"])


@attack("measured against nbgrader 0.9.6")
def checks_edited(notebook: Any) -> None:
    """Replaces every check by the number 1000."""
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.source = "1000.0"


@attack("Gradescope write-ups: results.json")
def outputs_forged(notebook: Any) -> None:
    """Puts full points into the outputs of every check cell."""
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            result = {"output_type": "execute_result", "data": {"text/plain": "10.0"}, "metadata": {}}
            cell.outputs = [{**result, "execution_count": 1}]


@attack("nbgrader pull requests 1915 and 1947")
def scripts_in_outputs(notebook: Any) -> None:
    """Puts scripts into outputs, prose, attachments, raw cells and metadata, for the browser of whoever grades."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell

    data = {"text/html": SCRIPT, "image/svg+xml": SCRIPT, "application/javascript": "alert('redteam')"}
    prose = f"{SCRIPT}\n[a](javascript:alert('redteam'))\n$\\href{{javascript:alert('redteam')}}{{x}}$"
    attachments = {"a.svg": {"image/svg+xml": SCRIPT}}
    notebook.cells += [
        new_code_cell("1", outputs=[new_output("display_data", data)]),
        new_code_cell("2", outputs=[new_output("error", ename=SCRIPT, evalue=SCRIPT, traceback=[SCRIPT])]),
        new_markdown_cell(prose, attachments=attachments),
        new_raw_cell(SCRIPT, metadata={"format": "text/html"}),
    ]
    notebook.metadata["title"] = SCRIPT
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}, "x": SCRIPT}}


@attack("measured against nbgrader 0.9.6")
def kernel_changed(notebook: Any) -> None:
    """Names another kernel, with a command of its own."""
    spec = {"name": "redteam", "display_name": "redteam", "language": "bash", "argv": ["sh", "-c", "id"]}
    notebook.metadata["kernelspec"] = spec
    notebook.metadata["language_info"] = {"name": "bash"}


@attack("own")
def shell_in_cells(notebook: Any) -> None:
    """Uses IPython's shell syntax and magics to run programs."""
    from nbformat.v4 import new_code_cell

    for source in (
        "!touch $HOME/redteam",
        "x = !id\nassert not x, print('BREACH: a shell ran:', x)",
        "%%bash\ntouch /tmp/redteam-magic",
        "%run -m this",
        "%load_ext autoreload\n%env SECRET=1\n%cd /tmp",
        "%%writefile /tmp/redteam-written\nx",
    ):
        notebook.cells.append(new_code_cell(source))


@attack("own")
def await_for_ever(notebook: Any) -> None:
    """Awaits at the top level something that never comes."""
    from nbformat.v4 import new_code_cell

    notebook.cells.append(new_code_cell("import asyncio\nawait asyncio.sleep(3600)"))


@attack("own")
def text_that_is_no_unicode(notebook: Any) -> None:
    """Puts lone surrogates and null bytes into code, prose and outputs."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

    bad = "\ud800 \x00 \udfff"
    stream = new_output("stream", name="stdout", text=bad)
    notebook.cells += [new_code_cell(f"x = '{bad}'", outputs=[stream]), new_markdown_cell(bad)]


@attack("own")
def cells_without_number(notebook: Any) -> None:
    """Adds twenty thousand cells, and one with two megabytes of code."""
    from nbformat.v4 import new_code_cell

    notebook.cells += [new_code_cell("pass", id=f"c{number}") for number in range(20_000)]
    notebook.cells.append(new_code_cell("x = 1\n" * 350_000))


@attack("own")
def fields_of_wrong_kind(notebook: Any) -> None:
    """Makes sources numbers, metadata lists, and labels dictionaries."""
    notebook.cells[0]["source"] = 7
    notebook.cells[1]["metadata"] = [1, 2]
    notebook.cells[2]["metadata"]["nbgrader"] = {"grade_id": {"a": 1}, "points": "many", "schema_version": 10**9}


@attack("own", quick=True)
def json_bomb(notebook: Any) -> bytes:
    """Hands in JSON that is nested a hundred thousand levels deep."""
    return b'{"cells": ' + b"[" * 100_000 + b"]" * 100_000 + b', "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'


@attack("own")
def giant_notebook(notebook: Any) -> bytes:
    """Hands in 40 MB of one output."""
    from nbformat.v4 import new_code_cell, new_output

    from autograder.redteam.attack import to_bytes

    output = new_output("stream", name="stdout", text="x" * (40 << 20))
    notebook.cells.append(new_code_cell("1", outputs=[output]))
    return to_bytes(notebook)


@attack("own")
def not_a_notebook(notebook: Any) -> bytes:
    """Hands in a pickle that would run a command when it is loaded."""
    return b"\x80\x04\x95!\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."


@attack("nbgrader: copies follow links")
def link_as_notebook(path: Any, target: dict) -> None:
    """Hands in a link to the submission of another student."""
    path.symlink_to(target["submissions"][0])


@attack("own")
def pipe_as_notebook(path: Any, target: dict) -> None:
    """Hands in a named pipe, at which a reader waits for ever."""
    import os

    os.mkfifo(path)


@attack("own")
def folder_as_notebook(path: Any, target: dict) -> None:
    """Hands in a folder of the notebook's name."""
    path.mkdir()
    (path / "lab.ipynb").write_text("{}")


@attack("own", plain=False)
def device_as_notebook(path: Any, target: dict) -> None:
    """Hands in a link to a device that never ends."""
    path.symlink_to("/dev/zero")
