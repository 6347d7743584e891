"""Files and folders that are whole or absent, locks between processes, and files of JSON lines."""

from vampo_core.files.atomic import discard, flush, point, publish, remove_leftovers, temporary_beside, write_text
from vampo_core.files.cache import user_cache
from vampo_core.files.locks import LOCK, LockedError, lock, locked

__all__ = [
    "LOCK",
    "LockedError",
    "discard",
    "flush",
    "lock",
    "locked",
    "point",
    "publish",
    "remove_leftovers",
    "temporary_beside",
    "user_cache",
    "write_text",
]
