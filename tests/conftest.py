"""Options for test data that is too large for this repository, or that comes from elsewhere."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from running import set_up

FIXTURES = Path(__file__).parent / "fixtures"

# hundreds of configurations are composed, and a sixth of that time reads their files
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--splits",
        type=Path,
        metavar="FOLDER",
        help="folder with published split files (split_zhou_*.json); without it the tests on them are skipped",
    )
    parser.addoption(
        "--parity",
        type=Path,
        metavar="FOLDER",
        default=FIXTURES / "parity",
        help="folder with parity cases in the format of tests/fixtures/parity, which is the default",
    )


@pytest.fixture(scope="session")
def splits_folder(request: pytest.FixtureRequest) -> Path:
    """The folder with published split files."""
    folder = request.config.getoption("--splits")
    if folder is None:
        pytest.skip("needs --splits=FOLDER with the published split files")
    if not any(folder.glob("split_zhou_*.json")):
        raise pytest.UsageError(f"--splits={folder} holds no split_zhou_*.json")
    return folder


@pytest.fixture(scope="session")
def parity_folder(request: pytest.FixtureRequest) -> Path:
    """The folder with parity cases."""
    return request.config.getoption("--parity")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty results root, where commands find it."""
    set_up(monkeypatch, tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path / "results"
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def short_waits() -> None:
    """Each run collects garbage before it measures memory, and what the imports made is none; a loader whose iteration
    ended in an error waits this long for its workers."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_worker() -> None:
    """Several worker processes share the cores; more threads than cores slow all of them down."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
