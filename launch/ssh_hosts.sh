#!/usr/bin/env bash
# One rlvid run on hosts that SSH reaches: a Ray head and the driver on the first, Ray workers on
# the others, this checkout's code as a wheel on all of them.
#
#   bash launch/ssh_hosts.sh HOSTFILE RECIPE --run-folder DIR [key=value ...]
#
# HOSTFILE has a host a line, as ssh knows it, and behind it, where that differs, the address by
# which the other nodes reach it; # begins a comment. Hosts need keys (no password is asked), the
# packages of launch/environment/ in the Python of RLVID_PYTHON (python3), and free ports between
# them. RECIPE is the name of one that ships, or a path on the head; DIR is a folder that all hosts
# see.
#
# Ray asks for a token, made for this run; its dashboard listens on the head's loopback only
# (ssh -L 8265:127.0.0.1:8265 HEAD). `rlvid doctor` looks at every node before the run.
#
# The nodes live as long as this script: when it ends, however it ends, each clears away what it
# started, so keep it in tmux or the like. A run that was asked to make room on its own side (status
# 75), or to which the connection was lost, is started again on the hosts that answer, the head among
# them, RLVID_ATTEMPTS times at most (100). SIGTERM to this script makes room and exits with 75. An
# error of the user's (2) ends it.
#
# RLVID_PORT (6379): the head's. RLVID_RAY_START: more options of `ray start`, such as --num-cpus=8.
# RLVID_SSH (ssh): the command that reaches a host. RLVID_NODE_TMP (/tmp): where a node has its files.
set -euo pipefail

if [ "$#" -lt 2 ] || [[ " $* " != *" --run-folder"* ]]; then
  echo "usage: bash launch/ssh_hosts.sh HOSTFILE RECIPE --run-folder DIR [key=value ...]" >&2
  exit 2
fi
if [ ! -r "$1" ] || [ -d "$1" ]; then
  echo "ssh_hosts.sh: no host file at $1 that can be read; give one, with a host a line" >&2
  exit 2
fi
mapfile -t lines < <(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1")
shift
if [ "${#lines[@]}" -eq 0 ]; then
  echo "ssh_hosts.sh: no host in the host file; give one a line" >&2
  exit 2
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
port="${RLVID_PORT:-6379}"
read -r -a ray_options <<<"${RLVID_RAY_START:-}"
umask 077

# Runs the words after the host there. Without the other nodes' pipes: only this script holds those.
on() (
  host="$1"
  shift
  for input in "${inputs[@]}"; do exec {input}>&-; done
  exec "${RLVID_SSH:-ssh}" -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15 \
    "$host" "$(printf '%q ' "$@")"
)

random() {
  python -c "import secrets; print(secrets.token_hex($1))"
}

pack() {
  bash "$root/launch/wheel.sh" "$work/ship"
  cp "$root/launch/ssh_node.sh" "$work/ship"
  random 32 >"$work/ship/token"
}

# Ships to every host at once, under a mark of this attempt; `hosts` and `addresses` are of those that
# took it.
ship() {
  local line host address pids=()
  before="${mark:-}" mark="$(random 8)"
  folder="${RLVID_NODE_TMP:-/tmp}/rlvid-$mark"
  printf '%s=%q\n' mark "$mark" before "$before" python "${RLVID_PYTHON:-python3}" \
    >"$work/ship/settings"
  tar -C "$work/ship" -czf "$work/ship.tgz" .
  for line in "${lines[@]}"; do
    on "${line%%[[:space:]]*}" bash -c "umask 077 && mkdir '$folder' && tar -xzf - -C '$folder'" \
      <"$work/ship.tgz" &
    pids+=($!)
  done
  hosts=() addresses=()
  for line in "${lines[@]}"; do
    read -r host address <<<"$line"
    if wait "${pids[0]}"; then
      hosts+=("$host") addresses+=("$address")
    else
      echo "ssh_hosts.sh: $host did not take the wheel" >&2
    fi
    pids=("${pids[@]:1}")
  done
}

# Has a host start Ray, in a session that ends it; arguments: its number, options of `ray start`.
start_node() {
  local number="$1" host="${hosts[$1]}" pipe="$work/input-$1"
  shift
  [ -z "${addresses[$number]}" ] || set -- "$@" --node-ip-address="${addresses[$number]}"
  rm -f "$pipe" "$work/output-$number"
  mkfifo "$pipe"
  touch "$work/output-$number"
  on "$host" bash "$folder/ssh_node.sh" start "$@" "${ray_options[@]}" \
    <"$pipe" >"$work/output-$number" &
  sessions+=($!)
  exec {input}>"$pipe"
  inputs+=("$input")
}

# Waits until Ray is up on a host.
await_node() {
  local deadline=$((SECONDS + 180))
  until grep -q started "$work/output-$1"; do
    if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "${sessions[$1]}" 2>/dev/null; then
      echo "ssh_hosts.sh: Ray did not start on ${hosts[$1]}" >&2
      return 1
    fi
    sleep 0.2
  done
}

# Ends every node and waits for it, half a minute at most.
end_nodes() {
  local input session deadline=$((SECONDS + 30))
  for input in "${inputs[@]}"; do exec {input}>&-; done
  for session in "${sessions[@]}"; do
    while kill -0 "$session" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
    kill "$session" 2>/dev/null || true
  done
  inputs=() sessions=()
}

start_cluster() {
  local number
  if [ -z "${addresses[0]}" ]; then
    addresses[0]="$(on "${hosts[0]}" hostname --all-ip-addresses </dev/null | cut -d' ' -f1)"
  fi
  cluster="${addresses[0]}:$port"
  start_node 0 --head --port="$port" --dashboard-host=127.0.0.1
  await_node 0 || return 1
  for number in $(seq $((${#hosts[@]} - 1))); do start_node "$number" --address="$cluster"; done
  for number in $(seq $((${#hosts[@]} - 1))); do await_node "$number" || return 1; done
}

driver="" is_asked=""
make_room() {
  is_asked=yes
  [ -n "$driver" ] || exit 75
  on "${hosts[0]}" bash "$folder/ssh_node.sh" make-room </dev/null || true
}

# Runs the recipe on the head; its exit status in `status`, 255 when the connection was lost.
run_driver() {
  # In the background, since bash handles a signal only when no foreground command runs.
  on "${hosts[0]}" bash "$folder/ssh_node.sh" rlvid run "$@" --resume-if-exists --restarts 3 \
    cluster.address="$cluster" </dev/null &
  driver=$!
  status=0
  wait "$driver" || status=$?
  # A signal ends `wait` early, while the driver drains; wait again for how it ended.
  while kill -0 "$driver" 2>/dev/null; do
    status=0
    wait "$driver" || status=$?
  done
  driver=""
}

inputs=() sessions=()
trap 'end_nodes; rm -rf "$work"' EXIT
trap make_room TERM INT
pack
for attempt in $(seq "${RLVID_ATTEMPTS:-100}"); do
  ship
  if [ "${hosts[0]:-}" != "${lines[0]%%[[:space:]]*}" ] ||
    { [ "$attempt" -eq 1 ] && [ "${#hosts[@]}" -ne "${#lines[@]}" ]; }; then
    echo "ssh_hosts.sh: needs the head, and at its first start every host; see above" >&2
    exit 1
  fi
  start_cluster || exit 1
  on "${hosts[0]}" bash "$folder/ssh_node.sh" rlvid doctor --cluster "$cluster" \
    --nodes "${#hosts[@]}" </dev/null || exit 1
  run_driver "$@"
  [ "$status" -eq 75 ] || [ "$status" -eq 255 ] || exit "$status"
  [ -z "$is_asked" ] || exit "$status"
  end_nodes
  echo "ssh_hosts.sh: the driver ended with $status; starting it again" >&2
  sleep "${RLVID_PAUSE_S:-10}"
done
echo "ssh_hosts.sh: all attempts are used up" >&2
exit 75
