"""`inferd bench ...`: the flags of each benchmark and what it prints."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from inferd.bench.clients import Client, GrpcClient, HttpClient
from inferd.bench.report import summarize, table, write_json, write_plot
from inferd.bench.workload import Lengths, Workload
from inferd.config import Count, Positive, Rate, Seed, Share, Temperature, Threads, Timeout, number


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks as subcommands of `parser`; each sets `run` to a function of the parsed arguments."""
    commands = parser.add_subparsers(dest="benchmark", required=True)
    _add_serve(commands.add_parser("serve", help="load a running server and report latency and throughput"))
    _add_ops(commands.add_parser("ops", help="time every native CPU op against this machine's limits"))
    startup = commands.add_parser("startup", help="time from exec to SERVING")
    startup.add_argument("model")
    startup.add_argument("--runs", type=number(Positive), default=5)
    startup.add_argument("serve_flags", nargs=argparse.REMAINDER, help="further flags of `inferd serve`")
    startup.set_defaults(run=run_startup)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--protocol", choices=("grpc", "http"), default="grpc")
    add("--target", help="HOST:PORT (grpc) or URL (http); default 127.0.0.1:50051 or http://127.0.0.1:8000")
    add("--model", default="", help="served name; grpc may leave it out")
    add("--api-key")
    add("--num-requests", type=number(Positive), default=32)
    add("--concurrency", type=number(Positive), default=1, help="callers of a closed loop")
    add("--rate", type=number(Rate), help="open loop: arrivals per second (Poisson)")
    add("--prompt-words", type=Lengths.parse, default=Lengths(128, 128), help="N or N-M")
    add("--output-tokens", type=Lengths.parse, default=Lengths(128, 128), help="N or N-M")
    add("--prefix-words", type=number(Count), default=0, help="words all prompts share")
    add("--cancel-fraction", type=number(Share), default=0.0)
    add("--slow-fraction", type=number(Share), default=0.0, help="callers that pause between reads")
    add("--temperature", type=number(Temperature), default=0.0)
    add("--seed", type=number(Seed), default=0)
    add("--warmup", type=number(Count), default=1)
    add("--ttft-slo-ms", type=number(Rate), default=1000.0, help="objective for goodput")
    add("--itl-slo-ms", type=number(Rate), default=100.0, help="objective for goodput, median per request")
    add("--json", type=Path, help="write the figures here")
    add("--plot", type=Path, help="draw the distributions here (png, svg, pdf)")
    parser.set_defaults(run=run_serve)


def _add_ops(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=number(Threads), help="default: the processors this process may use")
    parser.add_argument("--isa", default="", help="avx512, avx2 or baseline; default: the best this processor has")
    parser.add_argument("--match", default="", help="only ops whose name contains this")
    parser.add_argument("--seconds", type=number(Timeout), default=0.2, help="time spent on each op")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.set_defaults(run=run_ops)


def run_ops(arguments: argparse.Namespace) -> int:
    """A line per op as it is measured. Raises StartupError where there are no native ops."""
    from inferd.bench.ops import HEADER, limits_line, measure_ops, open_ops, row_line

    ops = open_ops(arguments.threads, arguments.isa)
    limits, measurements = measure_ops(ops, arguments.match, arguments.seconds)
    sys.stdout.write(f"{limits_line(ops, limits)}\n{HEADER}\n")
    rows = []
    for row in measurements:
        sys.stdout.write(row_line(row) + "\n")
        sys.stdout.flush()
        rows.append(asdict(row))
    if arguments.json:
        arguments.json.write_text(json.dumps({"limits": asdict(limits), "ops": rows}, indent=1) + "\n")
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """Exit status 1 when no request succeeded."""
    from inferd.bench.serve import run

    workload = Workload(
        num_requests=arguments.num_requests,
        concurrency=arguments.concurrency,
        rate=arguments.rate,
        prompt_words=arguments.prompt_words,
        output_tokens=arguments.output_tokens,
        prefix_words=arguments.prefix_words,
        cancel_fraction=arguments.cancel_fraction,
        slow_fraction=arguments.slow_fraction,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )

    def make_client() -> Client:
        if arguments.protocol == "grpc":
            target = arguments.target or "127.0.0.1:50051"
            return GrpcClient(target, arguments.model, workload, arguments.api_key)
        return HttpClient(arguments.target or "http://127.0.0.1:8000", arguments.model, workload, arguments.api_key)

    records, wall_s = asyncio.run(run(workload, make_client, arguments.warmup))
    summary = summarize(records, wall_s, arguments.ttft_slo_ms / 1e3, arguments.itl_slo_ms / 1e3)
    sys.stdout.write(table(summary) + "\n")
    if arguments.json:
        write_json(arguments.json, summary, records)
    if arguments.plot:
        write_plot(arguments.plot, records)
    return 0 if any(record.outcome == "ok" for record in records) else 1


def run_startup(arguments: argparse.Namespace) -> int:
    """Median over runs, and the phases of the median run."""
    from inferd.bench.startup import measure_startup

    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # --runs behind the model is not the daemon's
    ours.add_argument("--runs", type=number(Positive), default=arguments.runs)
    own, serve_flags = ours.parse_known_args(arguments.serve_flags)
    runs = [asyncio.run(measure_startup([arguments.model, *serve_flags])) for _ in range(own.runs)]
    median = sorted(runs, key=lambda run: run.serving_s)[len(runs) // 2]
    figures = {
        "runs": own.runs,
        "port_open_s": round(statistics.median(run.port_open_s for run in runs), 3),
        "serving_s": [round(run.serving_s, 3) for run in runs],
        "serving_median_s": round(median.serving_s, 3),
        "phases_s": {name: round(seconds, 3) for name, seconds in median.phases.items()},
    }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0
