from __future__ import annotations

from structlog.testing import capture_logs

from sgl_router.workers import Worker, WorkerInfo
from sgl_router.workers.backed_off_lines import BackedOffLines


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_back_off_in_a_while_has_a_line_and_its_end_too() -> None:
    clock = Clock()
    worker = Worker("http://a:1", WorkerInfo(served_model_name="m", dp_size=2))
    worker.moved = BackedOffLines(worker, clock)
    [first, second] = worker.targets
    with capture_logs() as logs:
        for _ in range(5):
            worker.moved(first, True)
            worker.moved(first, False)
        worker.moved(second, True)
        worker.moved(None, True)
        clock.now = 30.0
        worker.moved(first, True)
    said = [(line["event"].partition(":")[0], line.get("dp_rank"), line.get("unlogged_before")) for line in logs]
    assert said == [
        ("worker backed off", "0", 0),
        ("worker accepts requests again", "0", None),
        ("worker backed off", "1", 0),
        ("worker backed off", None, 0),
        ("worker backed off", "0", 4),
    ]
