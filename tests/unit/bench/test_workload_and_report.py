"""The load generator against a scripted client, and its figures against hand-made records."""

from __future__ import annotations

import asyncio
import json
import math
import time

import pytest

from inferd.bench.clients import Record
from inferd.bench.report import inter_token, percentile, summarize, table, write_json, write_plot
from inferd.bench.serve import run
from inferd.bench.workload import Lengths, Workload, items


class ScriptedClient:
    """Answers every item with its tokens, one chunk each; remembers what it was asked and how many ran at once."""

    def __init__(self) -> None:
        self.prompts = []
        self.active = self.peak = 0
        self.closed = False

    async def stream(self, item, record):
        self.prompts.append(item.prompt)
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            for count in range(1, item.output_tokens + 1):
                await asyncio.sleep(0)
                record.output_tokens = count
                record.chunks.append((time.monotonic(), count))
                yield
        finally:
            self.active -= 1

    async def close(self):
        self.closed = True


def test_a_seed_gives_the_same_items_and_another_seed_others():
    workload = Workload(num_requests=5, prompt_words=Lengths(3, 9), prefix_words=2, cancel_fraction=0.5, seed=1)
    assert list(items(workload)) == list(items(workload))
    other = Workload(num_requests=5, prompt_words=Lengths(3, 9), prefix_words=2, cancel_fraction=0.5, seed=2)
    assert list(items(workload)) != list(items(other))


def test_prompts_have_the_asked_words_behind_one_shared_prefix():
    made = list(items(Workload(num_requests=4, prompt_words=Lengths(7, 7), prefix_words=3)))
    assert [len(item.prompt.split()) for item in made] == [10] * 4
    assert len({tuple(item.prompt.split()[:3]) for item in made}) == 1


def test_open_loop_arrivals_rise_with_the_asked_mean():
    made = list(items(Workload(num_requests=2000, rate=10.0, prompt_words=Lengths(1, 1))))
    arrivals = [item.arrival_s for item in made]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] / len(made) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("text", ["0", "5-4", "x", ""])
def test_a_bad_length_is_refused(text):
    with pytest.raises(ValueError, match=r"length|invalid literal"):
        Lengths.parse(text)


def test_closed_loop_keeps_the_concurrency_and_counts_every_request():
    client = ScriptedClient()
    workload = Workload(num_requests=12, concurrency=3, output_tokens=Lengths(4, 4))
    records, wall = asyncio.run(run(workload, lambda: client))
    assert [record.index for record in records] == list(range(12))
    assert {record.output_tokens for record in records} == {4}
    assert client.peak == 3
    assert client.closed
    assert wall > 0


def test_a_warmup_tells_the_server_nothing_of_what_is_measured():
    client = ScriptedClient()
    asyncio.run(run(Workload(num_requests=3, output_tokens=Lengths(1, 1)), lambda: client, warmup=2))
    assert len(client.prompts) == len(set(client.prompts)) == 5


def test_cancelled_requests_stop_at_their_token_and_say_so():
    client = ScriptedClient()
    workload = Workload(num_requests=8, concurrency=2, output_tokens=Lengths(50, 50), cancel_fraction=1.0)
    records, _ = asyncio.run(run(workload, lambda: client))
    assert {record.outcome for record in records} == {"cancelled"}
    assert [record.output_tokens for record in records] == [item.cancel_after for item in items(workload)]
    assert client.active == 0


def hand_made() -> list[Record]:
    first = Record(0, 10.0, 11.0, 5, 4, [(10.5, 1), (10.6, 2), (10.8, 4)])
    second = Record(1, 10.0, 12.0, 5, 2, [(11.5, 1), (12.0, 2)])
    failed = Record(2, 10.0, 10.1, outcome="RESOURCE_EXHAUSTED")
    return [first, second, failed]


def test_figures_of_hand_made_records():
    first, second, _ = hand_made()
    assert inter_token(first) == pytest.approx([0.1, 0.1, 0.1])
    summary = summarize(hand_made(), 2.0, ttft_slo_s=1.0, itl_slo_s=0.2)
    assert summary["outcomes"] == {"ok": 2, "RESOURCE_EXHAUSTED": 1}
    assert summary["output_tokens_per_s"] == 3.0
    assert summary["ttft_ms"]["p50"] == pytest.approx(1000.0)
    assert summary["goodput_requests_per_s"] == 0.5
    assert "ttft_ms" in table(summary)
    assert second.ttft == 1.5


def test_percentiles_interpolate_and_nothing_is_nan():
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([7.0], 99) == 7.0
    assert math.isnan(percentile([], 50))


def test_json_and_plot_are_written(tmp_path):
    records = hand_made()
    write_json(tmp_path / "run.json", summarize(records, 2.0, 1.0, 1.0), records)
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored["requests"][0]["ttft_ms"] == 500.0
    write_plot(tmp_path / "run.png", records)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
