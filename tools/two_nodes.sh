#!/usr/bin/env bash
# Two nodes on one machine: two network namespaces, each with its own address, joined by a veth pair. TP 2 x PP 2 of MODEL
# serves over both; a node with another model file is refused; nothing is left. Needs root and an installed inferd.
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
STOP_S=30
WORK=$(mktemp -d)
PIDS=()
ON_A=(ip netns exec inferd-a)
ON_B=(ip netns exec inferd-b)
INFERD=("$PYTHON" -m inferd)
SERVE=("${INFERD[@]}" serve)
FLAGS=(-tp 2 -pp 2 --device cpu --num-kv-blocks 200 --max-model-len 1024 --metrics-port off)
FLAGS+=(--host "$A" --port "$PORT" --insecure)
export INFERD_CLUSTER_KEY=two-nodes

in_namespaces() {
    ip netns pids inferd-a
    ip netns pids inferd-b
}

stop() {
    for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${PIDS[@]}"; do wait "$pid" 2>/dev/null || true; done
    PIDS=()
    if [[ $MODE == --ray ]]; then
        "${ON_A[@]}" "${INFERD[@]}" cluster stop >/dev/null 2>&1 || true
    fi
}

clean_up() {
    stop
    in_namespaces 2>/dev/null | xargs -r kill -9 || true
    ip netns del inferd-a 2>/dev/null || true
    ip netns del inferd-b 2>/dev/null || true
    [[ -n ${KEEP_LOGS:-} ]] && cp -r "$WORK" "$KEEP_LOGS"
    rm -rf "$WORK"
}
trap clean_up EXIT

fail() {
    echo "$1" >&2
    tail -n 40 "$WORK"/*.log >&2
    exit 1
}

wait_until_serving() {
    for _ in $(seq 1 600); do
        if "${ON_A[@]}" "${INFERD[@]}" health --backend "$A:$PORT" >/dev/null 2>&1; then return; fi
        kill -0 "${PIDS[0]}" 2>/dev/null || fail "the daemon ended"
        sleep 0.5
    done
    fail "the daemon does not serve"
}

generate() {
    "${ON_A[@]}" "$PYTHON" tools/generate_once.py "$A:$PORT" "The capital of France is"
}

# $1: the file that node b has under the model's name.
start_ray() {
    "${ON_A[@]}" "${INFERD[@]}" cluster start --head --node-ip-address "$A" --num-cpus 2 >"$WORK/ray-a.log" 2>&1
    # A namespace of mounts comes with `ip netns exec`: only this node and its workers see the file that is put there.
    "${ON_B[@]}" bash -c 'mount --bind "$1" "$2"; shift 2; exec "$@"' bash "$1" "$MODEL" \
        "${INFERD[@]}" cluster start --address "$A" --node-ip-address "$B" --num-cpus 2 >"$WORK/ray-b.log" 2>&1
}

show_leftovers() {
    stop
    for _ in $(seq 1 $((STOP_S * 2))); do
        [[ -z $(in_namespaces) ]] && break
        sleep 0.5
    done
    [[ -z $(in_namespaces) ]] || fail "processes are left: $(in_namespaces | xargs ps -o pid,cmd -p)"
    echo "stopped: no process is left on either node"
}

ip netns add inferd-a
ip netns add inferd-b
ip link add inferd-va netns inferd-a type veth peer name inferd-vb netns inferd-b
"${ON_A[@]}" ip addr add "$A/24" dev inferd-va
"${ON_B[@]}" ip addr add "$B/24" dev inferd-vb
for namespace in inferd-a inferd-b; do ip netns exec "$namespace" ip link set lo up; done
"${ON_A[@]}" ip link set inferd-va up
"${ON_B[@]}" ip link set inferd-vb up

if [[ $MODE == --ray ]]; then
    start_ray "$OTHER"
    export RAY_ADDRESS="$A:6379"
    serve=("${ON_A[@]}" "${SERVE[@]}" "$MODEL" "${FLAGS[@]}" --distributed-executor-backend ray)
    if "${serve[@]}" >"$WORK/other.log" 2>&1; then fail "a node with another model was let in"; fi
    echo "another model file: $(tail -n 1 "$WORK/other.log")"
    stop
    start_ray "$MODEL"
    "${serve[@]}" >"$WORK/a.log" 2>&1 &
    PIDS+=($!)
    wait_until_serving
    generate
    echo "workers on node a: $(ip netns pids inferd-a | xargs ps -o cmd= -p | grep -c worker_process)," \
        "on node b: $(ip netns pids inferd-b | xargs ps -o cmd= -p | grep -c worker_process)"
    show_leftovers
    exit 0
fi

NODES=(--nnodes 2 --master-addr "$A" --master-port 29501)
"${ON_A[@]}" "${SERVE[@]}" "$MODEL" "${FLAGS[@]}" "${NODES[@]}" >"$WORK/a.log" 2>&1 &
PIDS+=($!)
if "${ON_B[@]}" "${SERVE[@]}" "$OTHER" "${FLAGS[@]}" "${NODES[@]}" --node-rank 1 >"$WORK/other.log" 2>&1; then
    fail "a node with another model was let in"
fi
echo "another model file: $(tail -n 1 "$WORK/other.log")"
"${ON_B[@]}" "${SERVE[@]}" "$MODEL" "${FLAGS[@]}" "${NODES[@]}" --node-rank 1 >"$WORK/b.log" 2>&1 &
PIDS+=($!)
wait_until_serving
generate
echo "listening on node a: $("${ON_A[@]}" ss -Htln | awk '{print $4}' | sort -u | tr '\n' ' ')"
echo "listening on node b: $("${ON_B[@]}" ss -Htln | awk '{print $4}' | sort -u | tr '\n' ' ')"
show_leftovers
