from __future__ import annotations

import random

from sgl_router.workers.backoff import Backoff, worth_logging


def test_pauses_double_up_to_the_cap_and_vary() -> None:
    backoff = Backoff(0.2, 5.0, random.Random(1))
    pauses = [backoff.next() for _ in range(200)]
    for expected, pause in zip([0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 195], pauses, strict=True):
        assert 0.8 * expected <= pause <= 1.2 * expected
    assert len({round(pause, 6) for pause in pauses}) > 190
    backoff.reset()
    assert backoff.next() <= 0.24


def test_log_lines_become_rare_but_never_stop() -> None:
    logged = [attempt for attempt in range(1, 1100) if worth_logging(attempt)]
    assert logged == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024]
