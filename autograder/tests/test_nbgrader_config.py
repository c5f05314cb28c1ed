"""The course's nbgrader options and the grader's own: one list, whichever command an instructor uses."""

from pathlib import Path

from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from autograder.nbgrader import install

COURSE = Path(__file__).parents[2] / "course"


def test_plain_nbgrader_runs_the_same_steps_as_autograder_grade():
    """The formgrader's button reads nbgrader_config.py alone; a step missing there could stop a class."""
    theirs = PyFileConfigLoader("nbgrader_config.py", path=str(COURSE)).load_config()
    ours = install(Config())
    assert set(ours.CourseDirectory.pop("ignore")) <= set(theirs.CourseDirectory.ignore)
    for section, options in ours.items():
        for name, wanted in options.items():
            assert theirs[section][name] == wanted, f"{section}.{name}"
