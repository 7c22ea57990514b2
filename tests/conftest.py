import os

from helpers.paths import NO_REAL_DATA

# Before torch starts: tiny models gain nothing from a second thread, and wait long for it where a core is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_terminal_summary(terminalreporter) -> None:
    """Says how many tests did not run because the real images are not beside the repository."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if NO_REAL_DATA in str(r.longrepr)]
    if skipped:
        count = "1 test" if len(skipped) == 1 else f"{len(skipped)} tests"
        terminalreporter.write_line(f"{count} on real images skipped: they need ../shared/data")
