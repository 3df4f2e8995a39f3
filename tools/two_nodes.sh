#!/usr/bin/env bash
# Two nodes on one machine: two network namespaces, each with its own address, joined by a veth pair. TP 2 x PP 2 of MODEL
# serves over both; a node with another model file is refused. Needs root (ip netns) and an installed inferd.
#   tools/two_nodes.sh MODEL OTHER_MODEL          without Ray
#   tools/two_nodes.sh MODEL OTHER_MODEL --ray    with Ray, which `inferd cluster` starts on both
set -euo pipefail

MODEL=${1:?usage: tools/two_nodes.sh MODEL OTHER_MODEL [--ray]}
OTHER=${2:?usage: tools/two_nodes.sh MODEL OTHER_MODEL [--ray]}
MODE=${3:-}
PYTHON=${PYTHON:-python}
A=10.77.0.1
B=10.77.0.2
PORT=50051
WORK=$(mktemp -d)
PIDS=()
FLAGS=(-tp 2 -pp 2 --device cpu --num-kv-blocks 200 --max-model-len 1024 --host "$A" --insecure --metrics-port off)

on_a() { ip netns exec inferd-a "$@"; }
on_b() { ip netns exec inferd-b "$@"; }

clean_up() {
    for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${PIDS[@]}"; do wait "$pid" 2>/dev/null || true; done
    if [[ $MODE == --ray ]]; then
        on_a "$PYTHON" -m inferd cluster stop >/dev/null 2>&1 || true
    fi
    ip netns del inferd-a 2>/dev/null || true
    ip netns del inferd-b 2>/dev/null || true
    rm -rf "$WORK"
}
trap clean_up EXIT

ip netns add inferd-a
ip netns add inferd-b
ip link add inferd-va netns inferd-a type veth peer name inferd-vb netns inferd-b
on_a ip addr add "$A/24" dev inferd-va
on_b ip addr add "$B/24" dev inferd-vb
for namespace in inferd-a inferd-b; do ip netns exec "$namespace" ip link set lo up; done
on_a ip link set inferd-va up
on_b ip link set inferd-vb up

wait_until_serving() {
    for _ in $(seq 1 240); do
        if on_a "$PYTHON" -m inferd health --backend "$A:$PORT" >/dev/null 2>&1; then return; fi
        kill -0 "${PIDS[0]}" || { cat "$WORK"/*.log; exit 1; }
        sleep 0.5
    done
    cat "$WORK"/*.log
    exit 1
}

generate() {
    on_a "$PYTHON" tools/generate_once.py "$A:$PORT" "The capital of France is"
}

if [[ $MODE == --ray ]]; then
    on_a "$PYTHON" -m inferd cluster start --head --node-ip-address "$A" --num-cpus 2 >"$WORK/ray-a.log" 2>&1
    on_b "$PYTHON" -m inferd cluster start --address "$A" --node-ip-address "$B" --num-cpus 2 >"$WORK/ray-b.log" 2>&1
    RAY_ADDRESS="$A:6379" on_a "$PYTHON" -m inferd serve "$MODEL" "${FLAGS[@]}" --port "$PORT" \
        --distributed-executor-backend ray >"$WORK/a.log" 2>&1 &
    PIDS+=($!)
    wait_until_serving
    generate
    on_b ss -Htn state established | grep -c "$A" | sed 's/^/connections of node b to node a: /'
    exit 0
fi

nodes=(--nnodes 2 --master-addr "$A" --master-port 29501)
on_a "$PYTHON" -m inferd serve "$MODEL" "${FLAGS[@]}" "${nodes[@]}" --port "$PORT" >"$WORK/a.log" 2>&1 &
PIDS+=($!)
if on_b "$PYTHON" -m inferd serve "$OTHER" "${FLAGS[@]}" "${nodes[@]}" --node-rank 1 >"$WORK/other.log" 2>&1; then
    echo "a node with another model was let in" >&2
    exit 1
fi
echo "another model file: $(tail -n 1 "$WORK/other.log")"
on_b "$PYTHON" -m inferd serve "$MODEL" "${FLAGS[@]}" "${nodes[@]}" --node-rank 1 >"$WORK/b.log" 2>&1 &
PIDS+=($!)
wait_until_serving
generate
echo "listening on node a: $(on_a ss -Htln | awk '{print $4}' | sort -u | tr '\n' ' ')"
echo "listening on node b: $(on_b ss -Htln | awk '{print $4}' | sort -u | tr '\n' ' ')"
