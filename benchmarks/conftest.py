"""Options of the benchmarks and their summary."""

from pathlib import Path

import pytest
import torch
from report import Report
from shapes import SHAPES

REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vampo_core benchmarks")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure (default: cpu)")
    group.addoption("--threads", type=int, help="CPU threads (default: as many as torch chooses)")
    group.addoption("--shapes", default=",".join(SHAPES), help="which shapes to measure (default: %(default)s)")
    group.addoption("--budget", type=float, default=4.0, help="seconds of rounds per case (default: %(default)s)")
    group.addoption(
        "--results",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder for ops-<device>.json and ops-<device>.md (default: benchmarks/results)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))
    unknown = set(config.getoption("--shapes").split(",")) - set(SHAPES)
    if unknown:
        raise pytest.UsageError(f"--shapes names {', '.join(sorted(unknown))}, expected some of {', '.join(SHAPES)}")
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no CUDA device")
    config.stash[REPORT] = Report(config.getoption("--device"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" in metafunc.fixturenames:
        names = metafunc.config.getoption("--shapes").split(",")
        metafunc.parametrize("shape", [SHAPES[name] for name in names], ids=names)


@pytest.fixture
def device(pytestconfig: pytest.Config) -> str:
    return pytestconfig.getoption("--device")


@pytest.fixture
def budget(pytestconfig: pytest.Config) -> float:
    return pytestconfig.getoption("--budget")


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[REPORT]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash[REPORT]
    if not (report.rows or report.call_overhead):
        return
    paths = report.write(config.getoption("--results"))
    terminalreporter.section("vampo_core operators (how to read this: benchmarks/README.md)")
    terminalreporter.write(paths[1].read_text(encoding="utf-8"))
    terminalreporter.write_line(f"\nwritten to {' and '.join(str(path) for path in paths)}")
