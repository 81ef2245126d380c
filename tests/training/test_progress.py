import numpy as np
import pytest

from pid_jax.data.batching import Batch
from pid_jax.training.progress import Progress, TokenCounts

COUNTS = TokenCounts(200, 400, 100, 500)
"""300 tokens without padding."""


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
        progress.add(documents=4, counts=COUNTS)
    clock.now += 5
    rates = progress.rates(20)
    # 40 documents and 3,000 tokens in 5 s; 30 steps are left, at half a second each.
    assert rates["documents_per_second"] == 8.0
    assert rates["tokens_per_second"] == 600.0
    assert rates["seconds_left"] == 15.0
    assert "mfu" not in rates


def test_padding_is_the_share_of_positions_without_a_token(clock):
    progress = Progress(0, 50, clock)
    progress.add(documents=1, counts=COUNTS)
    progress.add(documents=1, counts=TokenCounts(100, 400, 400, 500))
    clock.now += 1
    rates = progress.rates(2)
    assert (rates["document_tokens"], rates["document_padding"]) == (150, 1 - 300 / 800)
    assert (rates["decoder_tokens"], rates["decoder_padding"]) == (250, 1 - 500 / 1000)


def test_tokens_of_a_batch_are_those_of_its_masks():
    def mask(*rows):
        return np.array(rows, bool)

    batch = Batch(
        documents=np.zeros((2, 4), np.int32),
        document_mask=mask([1, 1, 1, 0], [1, 0, 0, 0]),
        prompts=np.zeros((2, 1, 3), np.int32),
        prompt_mask=mask([[0, 1, 1]], [[0, 0, 1]]),
        targets=np.zeros((2, 1, 2), np.int32),
        target_mask=mask([[1, 1]], [[0, 0]]),
    )
    # An absent subtask has no tokens, and the decoder does not read the last token of a target.
    assert TokenCounts.of(batch) == (4, 8, 3, 8)
    # One of two processes with half of the rows each.
    assert TokenCounts.of(batch, share=0.5) == (8, 16, 6, 16)


def test_a_step_is_waiting_for_input_and_device_and_the_host(clock):
    progress = Progress(0, 4, clock)
    for _ in range(2):
        with progress.waiting("input"):
            clock.now += 1
        clock.now += 0.5
        with progress.paused():
            clock.now += 100
        with progress.waiting("device"):
            clock.now += 2.5
        progress.add(documents=1, counts=COUNTS)
    rates = progress.rates(2)
    assert rates["step_seconds"] == 4
    assert [rates[f"{kind}_seconds"] for kind in ("input", "device", "host")] == [1, 2.5, 0.5]
    assert "(device 62%  input 25%  host 12%)" in progress.line(
        2, {"loss": 1.0, "exact_match": 0.0}, rates
    )


def test_mfu_is_that_of_all_steps_since_the_last_line(clock):
    progress = Progress(0, 4, clock)
    for _ in range(2):
        progress.add(documents=1, counts=COUNTS, model_flops=3e12)
    clock.now += 4
    # 6 TFLOP in 4 s, on devices of 2 TFLOP/s in all.
    assert progress.rates(2, lambda flops, seconds: flops / seconds / 2e12)["mfu"] == 0.75


def test_rates_start_anew_with_each_line(clock):
    progress = Progress(0, 100, clock)
    progress.add(documents=1000, counts=COUNTS)
    clock.now += 1
    progress.rates(1)
    progress.add(documents=6, counts=COUNTS)
    clock.now += 2
    assert progress.rates(2)["documents_per_second"] == 3.0


def test_a_pause_does_not_count(clock):
    progress = Progress(0, 2, clock)
    progress.add(documents=6, counts=COUNTS)
    clock.now += 1
    with progress.paused():
        clock.now += 60
    clock.now += 1
    assert progress.rates(1)["documents_per_second"] == 3.0


def test_the_line_says_step_loss_speed_and_time_left(clock):
    rates = {
        "documents_per_second": 41.23,
        "tokens_per_second": 18332.4,
        "seconds_left": 201.4,
        "step_seconds": 0.5,
        "device_seconds": 0.45,
        "input_seconds": 0.04,
        "host_seconds": 0.01,
    }
    metrics = {"loss": 0.53217, "exact_match": 0.8125}
    line = Progress(0, 2000, clock).line(120, metrics, rates)
    assert line == (
        "step 120/2000  loss 0.5322  exact match 0.812  41.2 documents/s  18,332 tokens/s  "
        "(device 90%  input 8%  host 2%)  0:03:21 left"
    )
    assert "tokens/s  MFU 41.2%  (device" in Progress(0, 2000, clock).line(
        120, metrics, rates | {"mfu": 0.412}
    )
