"""What Prometheus reads, and what the log says."""

from __future__ import annotations

import re

import grpc
import pytest

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.wire import collect, fails, make_generate
from inferd.v1.inference_pb2_grpc import InferenceServiceStub

LABELS = {"model_name", "le", "reason", "version", "engine"}


def series(name: str, **labels: str) -> str:
    text = ",".join(f'{key}="{value}"' for key, value in sorted({"model_name": "fake", **labels}.items()))
    return f"{name}{{{text}}}"


def test_requests_are_counted_once() -> None:
    with DaemonProcess(fake_config()) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as channel:
            stub = InferenceServiceStub(channel)
            collect(stub.Generate(make_generate("a" * 20, max_tokens=5, num_choices=2, request_id="counted")))
            fails(stub.Generate(make_generate(sampling={"temperature": 9})))
        metrics = daemon.wait_metrics(requests_running=0)

        for name, value in {
            "requests_admitted_total": 1,
            "prompt_tokens_total": 20,
            "generation_tokens_total": 10,
            "prefix_cache_queries_total": 20,
            "time_to_first_token_seconds_count": 1,
            "inter_token_latency_seconds_count": 8,
            "e2e_request_latency_seconds_count": 1,
            "request_queue_time_seconds_count": 1,
            "preemptions_total": 0,
            "engine_restarts_total": 0,
            "engine_up": 1,
        }.items():
            assert metrics[f"inferd_{name}"] == value, name
        assert metrics[series("inferd_requests_finished_total", reason="max_tokens")] == 2
        assert metrics["inferd_iteration_tokens_total_sum"] == 20 + 2 * 4
        assert metrics[series("inferd_inter_token_latency_seconds_bucket", le="0.0005")] >= 0
        assert metrics[series("vllm:num_requests_running", engine="0")] == 0
        assert metrics[series("vllm:num_requests_waiting", engine="0")] == 0
        assert metrics[series("vllm:kv_cache_usage_perc", engine="0")] == 0
        assert any(name.startswith("vllm:cache_config_info") for name in metrics)
        assert any(name.startswith("vllm:lora_requests_info") for name in metrics)

    lines = [line for line in daemon.lines if "request_id=counted" in line]
    assert len(lines) == 1
    assert re.search(r"method=\S+/Generate code=OK prompt_tokens=20 tokens=10 ttft_ms=\S+ duration_ms=\S+", lines[0])
    assert not any("aaaa" in line for line in daemon.lines), "a prompt is in the log"


@pytest.mark.parametrize("text", ["evil\n{}", "x" * 5000])
def test_callers_make_no_series(stub: InferenceServiceStub, daemon: DaemonProcess, text: str) -> None:
    before = set(daemon.metrics())
    fails(stub.Generate(make_generate(model=text)))
    collect(stub.Generate(make_generate(text[:20], cache={"salt": text[:9]}, stop={"stop_strings": [text[:9]]})))

    assert set(daemon.metrics()) == before
    names = {label for name in before for label in re.findall(r'(\w+)="', name) if name.startswith("inferd_")}
    assert names <= LABELS
