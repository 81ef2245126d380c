import pytest

from pid_jax.training.progress import Progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_rates_are_counts_over_seconds(clock):
    progress = Progress(10, 50, clock)
    for _ in range(10):
        progress.add(documents=4, tokens=300)
    clock.now += 5
    rates = progress.rates(20)
    # 40 documents and 3,000 tokens in 5 s; 30 steps are left, at half a second each.
    assert rates == {
        "documents_per_second": 8.0,
        "tokens_per_second": 600.0,
        "seconds_left": 15.0,
    }


def test_rates_start_anew_with_each_line(clock):
    progress = Progress(0, 100, clock)
    progress.add(documents=1000, tokens=1)
    clock.now += 1
    progress.rates(1)
    progress.add(documents=6, tokens=1)
    clock.now += 2
    assert progress.rates(2)["documents_per_second"] == 3.0


def test_a_pause_does_not_count(clock):
    progress = Progress(0, 2, clock)
    progress.add(documents=6, tokens=1)
    clock.now += 1
    with progress.paused():
        clock.now += 60
    clock.now += 1
    assert progress.rates(1)["documents_per_second"] == 3.0


def test_the_line_says_step_loss_speed_and_time_left(clock):
    line = Progress(0, 2000, clock).line(
        120,
        {"loss": 0.53217, "exact_match": 0.8125},
        {"documents_per_second": 41.23, "tokens_per_second": 18332.4, "seconds_left": 201.4},
    )
    assert line == (
        "step 120/2000  loss 0.5322  exact match 0.812  "
        "41.2 documents/s  18,332 tokens/s  0:03:21 left"
    )
