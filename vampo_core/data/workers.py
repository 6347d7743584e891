"""Processes that load data outlive a signal to their whole process group."""

import signal


def outlive_signals(worker: int) -> None:
    """The ``worker_init_fn`` of a torch ``DataLoader``: leave Ctrl-C and the first SIGTERM to the main process.

    Schedulers and terminals send both to every process of a run. Its main process then needs the workers for the
    iteration that it finishes before it saves. A second SIGTERM ends a worker, as torch does where one hangs.

    Args:
        worker: number of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
