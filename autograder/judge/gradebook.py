"""One visit to nbgrader's gradebook per submission, and all of it or nothing.

nbgrader opens the gradebook nine times for each submission (a new engine, a look at every table, an empty cache of
compiled statements) and commits after every cell. Here its visits share one connection and one transaction, so a
process that is killed leaves no half-recorded student, the disk is waited for once and not twenty times, and a
third of the time is gone.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from nbgrader.api import Gradebook
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import scoped_session, sessionmaker

from autograder.judge.trouble import database_trouble

LOCK_SECONDS = 10  # how long another program may hold a SQLite gradebook before we give up


class OneVisit:
    """The gradebook at `url` for many transactions, each around whatever nbgrader does meanwhile."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.shown = make_url(url).render_as_string(hide_password=True)
        self.sqlite = make_url(url).get_backend_name() == "sqlite"
        options = {"connect_args": {"timeout": LOCK_SECONDS}} if self.sqlite else {}
        self.engine = create_engine(url, **options)
        self.trouble: BaseException | None = None
        event.listen(self.engine, "handle_error", self._remember)

    def __enter__(self) -> "OneVisit":
        return self

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        self.engine.dispose()
        if isinstance(problem, DBAPIError):  # a server that is down, met before or between two steps
            raise database_trouble(problem.orig or problem, self.shown) from None

    def run(self, step: Callable[[], dict[str, Any]], *, write: bool = True) -> dict[str, Any]:
        """nbgrader's answer to `step`, committed if it succeeded. CycleError if the database itself failed."""
        self.trouble = None
        try:
            with self.engine.connect() as connection, connection.begin() as transaction:
                if self.sqlite and write:  # at once: another writer is found out before anything is changed
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                with shared(self.url, connection):
                    result = step()
                if not result["success"]:
                    transaction.rollback()
        except DBAPIError as problem:
            raise database_trouble(problem.orig or problem, self.shown) from None
        if self.trouble is not None and not result["success"]:
            raise database_trouble(self.trouble, self.shown)
        return result

    def _remember(self, context: ExceptionContext) -> None:
        """nbgrader turns database errors into advice to upgrade; keep the true one."""
        if isinstance(context.sqlalchemy_exception, DBAPIError):
            self.trouble = context.original_exception


@contextlib.contextmanager
def shared(url: str, connection: Connection) -> Iterator[None]:
    """Inside, every Gradebook of `url` works on `connection`: its commits are savepoints, closing it closes nothing.

    nbgrader makes its Gradebooks by name in eight places and takes none from outside, hence the change to the class.
    """
    original, closing = Gradebook.__init__, Gradebook.close
    checked: set[str] = set()

    def opened(gradebook: Gradebook, db_url: str, course_id: str = "default_course", authenticator: Any = None) -> None:
        if db_url != url:
            original(gradebook, db_url, course_id, authenticator)
            return
        made = sessionmaker(autoflush=True, bind=connection, join_transaction_mode="create_savepoint")
        gradebook.engine, gradebook.db = connection.engine, scoped_session(made)
        if course_id not in checked:  # nbgrader asks for, or adds, the course's row at every visit
            gradebook.check_course(course_id)
            checked.add(course_id)
        gradebook.course_id, gradebook.authenticator = course_id, authenticator

    def closed(gradebook: Gradebook) -> None:
        if gradebook.engine is connection.engine:
            gradebook.db.remove()
        else:
            closing(gradebook)

    Gradebook.__init__, Gradebook.close = opened, closed
    try:
        yield
    finally:
        Gradebook.__init__, Gradebook.close = original, closing
