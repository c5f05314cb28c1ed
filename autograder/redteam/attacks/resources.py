"""Use more than one submission's share: memory, disk, descriptors, output."""

from typing import Any

from autograder.redteam.attack import attack


@attack("measured against nbgrader 0.9.6", quick=True)
def memory_bomb(target: dict, report: Any, x: Any) -> None:
    """Asks for 6 GiB at once, then for 256 MiB at a time."""
    held = []
    for size in (6 << 30, *[256 << 20] * 24):
        try:
            held.append(torch.empty(size, dtype=torch.uint8))
        except RuntimeError:
            break
    if sum(block.numel() for block in held) > 5 << 30:
        report(f"{sum(block.numel() for block in held) >> 30} GiB")


@attack("own", plain=False)
def shared_memory_bomb(target: dict, report: Any, x: Any) -> None:
    """Asks for 5 GiB of shared memory, which limits on private memory do not count, and touches it."""
    import mmap

    held = []
    for _ in range(40):
        try:
            block = mmap.mmap(-1, 128 << 20)
            for page in range(0, len(block), 4096):
                block[page] = 1
        except (OSError, MemoryError):
            break
        held.append(block)
    if len(held) * 128 > 4096 + 512:
        report(f"{len(held) * 128} MiB of shared memory")


@attack("own", plain=False)
def files_in_memory(target: dict, report: Any, x: Any) -> None:
    """Fills files that exist in memory only, 60 MiB each, up to 5 GiB."""
    import os

    chunk, total = bytes(4 << 20), 0
    for _ in range(85):
        memory, _ = syscall("memfd_create", b"hoard", 0)
        if memory < 0:
            break
        try:
            for _ in range(15):
                total += os.write(memory, chunk)
        except OSError:
            break
    if total > (4096 + 512) << 20:
        report(f"{total >> 20} MiB in files of memory")


@attack("own")
def many_descriptors(target: dict, report: Any) -> None:
    """Opens files until the table is full, and keeps them."""
    import os

    kept = []
    try:
        while len(kept) < 5000:
            kept.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    if len(kept) > 4096:
        report(f"{len(kept)} open files")
    globals()["kept"] = kept


@attack("own")
def disk_filled(target: dict, report: Any) -> None:
    """Writes files of 60 MB wherever it may, up to 300 MB."""
    import os

    total = 0
    for folder in (os.getcwd(), target["temp"], "/tmp", "/var/tmp", "/dev/shm"):
        try:
            for number in range(5):
                with open(os.path.join(folder, f"{target['mark']}-{number}"), "wb") as file:
                    for _ in range(60):
                        if total < 300 << 20:
                            total += file.write(bytes(1 << 20))
        except OSError:
            continue
    if total > 256 << 20:
        report(f"{total >> 20} MB on disk")


@attack("own")
def inodes_filled(target: dict, report: Any) -> None:
    """Makes thousands of empty files and folders, for whoever has to remove them."""
    import os

    for number in range(2000):
        try:
            os.mkdir(f"d{number}")
            open(f"d{number}/f", "w").close()
        except OSError:
            break


@attack("measured against nbgrader 0.9.6", quick=True)
def output_flood(target: dict, report: Any, x: Any) -> None:
    """Prints 200 MB in one line, and writes as much to descriptors 1 and 2."""
    import os

    block = "x" * (10 << 20)
    for _ in range(20):
        print(block, end="")
    for descriptor in (1, 2):
        os.write(descriptor, b"y" * (1 << 20))


@attack("own")
def huge_tensor_returned(target: dict, report: Any, x: Any) -> Any:
    """Returns a tensor of 400 MB, expanded from a single number."""
    return torch.zeros(1).expand(100_000_000)


@attack("own")
def huge_list_returned(target: dict, report: Any, x: Any) -> Any:
    """Returns a list of a million lists."""
    return [[0.0] for _ in range(1_000_000)]


@attack("own")
def huge_string_returned(target: dict, report: Any, x: Any) -> Any:
    """Returns a string of 64 MB of quotation marks, each of which becomes two bytes."""
    return '"' * (64 << 20)


@attack("own")
def huge_message(target: dict, report: Any, x: Any) -> None:
    """Raises an error with a message of 200 MB."""
    raise ValueError("z" * (200 << 20))


@attack("own", quick=True)
def hostile_exception(target: dict, report: Any, x: Any) -> None:
    """Raises an error whose text, name, cause and traceback are traps."""

    class Meta(type):
        @property
        def __name__(cls) -> Any:  # type: ignore[override]
            raise SystemExit

    class Trap(Exception, metaclass=Meta):
        def __str__(self) -> str:
            while True:
                pass

        def __reduce__(self) -> Any:
            import os

            return os.system, ("touch /tmp/redteam-unpickled",)

        __repr__ = __str__

    raise Trap


@attack("own")
def error_that_causes_itself(target: dict, report: Any, x: Any) -> None:
    """Raises an InterpreterError that is its own cause, so that following the causes never ends."""
    error = type("InterpreterError", (Exception,), {})("round and round")
    error.__cause__ = error
    raise error


@attack("own")
def exception_of_the_base(target: dict, report: Any, x: Any) -> None:
    """Raises what `except Exception` does not catch: a BaseException, a GeneratorExit, a group of both."""
    import random

    group = BaseExceptionGroup("both", [GeneratorExit(), KeyboardInterrupt()])
    raise random.choice([type("Own", (BaseException,), {})(), GeneratorExit(), group])


@attack("own")
def garbage_that_never_ends(target: dict, report: Any, x: Any) -> Any:
    """Returns a right-looking result whose parts hang when they are thrown away."""

    class Forever:
        def __del__(self) -> None:
            while True:
                pass

    return [Forever()]
