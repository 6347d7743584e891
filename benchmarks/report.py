"""Turns measurements into the summary table and its JSON."""

import json
import platform
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch
from contenders import OPERATORS, Case
from measure import Measurement
from shapes import SHAPES

import vampo_core

Row = dict[str, object]
RATIOS = ("eager", "eager out=", "compile")


@dataclass
class Report:
    """What one run measured."""

    device: str
    rows: list[Row] = field(default_factory=list)
    call_overhead: dict[str, float] = field(default_factory=dict)  # seconds above torch.add, by operator

    def write(self, folder: Path) -> list[Path]:
        """Write ``ops-<device>.json`` and ``ops-<device>.md``; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"ops-{self.device}.json", folder / f"ops-{self.device}.md"]
        where = environment(self.device)
        content = {"environment": where, "rows": self.rows, "call_overhead_s": self.call_overhead}
        paths[0].write_text(json.dumps(content, indent=2) + "\n")
        paths[1].write_text(self.markdown(where))
        return paths

    def markdown(self, where: dict[str, object]) -> str:
        """Tables of the operators and of the cost of a call, headed by what they were measured with."""
        parts = [_headline(where)]
        if self.rows:
            head = ["operator", "shape", "time", *(f"x {name}" for name in RATIOS), "GB/s", "copy GB/s", "of copy"]
            parts.append(_table(head, [_cells(row) for row in sorted(self.rows, key=_order)]))
            if any(_is_disturbed(row) for row in self.rows):
                parts.append(
                    "~ disturbed: some contender's median is over twice its best round; run again on a quiet machine."
                )
        if self.call_overhead:
            cells = [[name, f"{seconds * 1e6:.1f}"] for name, seconds in self.call_overhead.items()]
            parts.append(_table(["call without gradients", "µs above torch.add"], cells))
        return "\n\n".join(parts) + "\n"


def make_row(case: Case, shape: str, measurement: Measurement) -> Row:
    """Medians over rounds: of the times, and of the per-round ratios with their quartiles."""
    others = [name for name in measurement.seconds if name != "fused"]
    ratios = {name: measurement.ratios(name) for name in others}
    return {
        "operator": case.operator,
        "shape": shape,
        "bytes_moved": case.bytes_moved,
        "rounds": len(measurement.seconds["fused"]),
        "seconds": {name: measurement.median(name) for name in measurement.seconds},
        "best_seconds": {name: min(seconds) for name, seconds in measurement.seconds.items()},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_quartiles": {name: statistics.quantiles(values, n=4)[::2] for name, values in ratios.items()},
        "gb_per_s": case.bytes_moved / measurement.median("fused") / 1e9,
        "copy_gb_per_s": case.bytes_moved / measurement.median("copy") / 1e9,
    }


def environment(device: str) -> dict[str, object]:
    """Machine, date, versions and commit of this run."""
    result = {
        "device": device,
        "machine": torch.cuda.get_device_name() if device == "cuda" else _cpu_model(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "build_info": vampo_core.build_info(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        result |= {"cuda": torch.version.cuda, "compute_capability": f"{properties.major}.{properties.minor}"}
    return result


def provenance(where: Mapping[str, object]) -> str:
    """What of an environment stands above a table."""
    return f"{where['machine']}, torch {where['torch']}, commit {where['commit']}, {where['date']}"


def kernels_measured(device: str) -> bool:
    """Whether the compiled operators serve this device; otherwise the reference was timed in their place."""
    info = vampo_core.build_info()
    return bool(info["compiled"] and (device == "cpu" or info["cuda"]))


def _order(row: Row) -> tuple[int, int]:
    return list(OPERATORS).index(str(row["operator"])), list(SHAPES).index(str(row["shape"]))


def _headline(environment: dict[str, object]) -> str:
    text = (
        f"{environment['machine']}, {environment['threads']} CPU threads, torch {environment['torch']}, "
        f"commit {environment['commit']}, {environment['date']}"
    )
    if not kernels_measured(str(environment["device"])):
        text += "\n\n**No compiled operators for this device: the pure-PyTorch reference was timed in their place.**"
    return text


def _is_disturbed(row: dict) -> bool:
    return any(median > 2 * row["best_seconds"][name] for name, median in row["seconds"].items())


def _cells(row: dict) -> list[str]:
    ratio = row["ratio"]
    return [
        row["operator"],
        row["shape"],
        _duration(row["seconds"]["fused"]) + " ~" * _is_disturbed(row),
        *(f"{ratio[name]:.2f}" if name in ratio else "" for name in RATIOS),
        f"{row['gb_per_s']:.1f}",
        f"{row['copy_gb_per_s']:.1f}",
        f"{ratio['copy']:.0%}",
    ]


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def _table(head: list[str], body: list[list[str]]) -> str:
    """Markdown, padded to be read as plain text too."""
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in [head, *body]]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.machine()


def _git_commit() -> str | None:
    """Commit of this checkout, marked where the working tree differs; None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None
