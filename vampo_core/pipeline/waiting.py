"""Locks on products that several processes or jobs may need at the same time: the first makes, the others wait."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from accelerate.utils import broadcast_object_list

from vampo_core.files import locked, write_text
from vampo_core.training.processes import new_accelerator

_POLL_S = 0.2


def made_by_one_process(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time make ``folder``; the others wait, and then find it.

    Processes of a distributed run come here too: a file lock waits for as long as it takes, a collective times out.
    """
    return locked(_place(folder))


@contextlib.contextmanager
def made_by_one_job(folder: Path) -> Iterator[None]:
    """The same for what all processes of a distributed run make together: one job at a time has ``folder``."""
    accelerator, place = new_accelerator(), _place(folder)
    if accelerator.num_processes == 1:
        with locked(place):
            yield
        return
    job, owner = [uuid.uuid4().hex], place / "owner"
    broadcast_object_list(job)
    if accelerator.is_main_process:
        with locked(place):
            write_text(owner, job[0])
            accelerator.wait_for_everyone()
            yield
        return
    # The main process may wait for hours. Collectives time out before that, so the others look at a file.
    while not (owner.is_file() and owner.read_text(encoding="utf-8") == job[0]):
        time.sleep(_POLL_S)
    accelerator.wait_for_everyone()
    yield


def _place(folder: Path) -> Path:
    """Where the lock of ``folder`` lies: not in the folder, which may be replaced while it is made."""
    return folder.parent / ".locks" / folder.name
