"""Short recordings, and the bytes of a folder."""

from vampo_core.data import record

LINE = "simulators:line"
SHORT = {"max_steps": 4, "image_size": 32}


def record_short(root, num_episodes=3, **kwargs):
    """Record PushT; no expert succeeds in four steps."""
    return record("pusht", root, num_episodes=num_episodes, env_kwargs=SHORT, progress=False, **kwargs)


def contents(root):
    """Bytes of every file under a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
