#!/usr/bin/env bash
# What ssh_hosts.sh calls on a node, in the folder that it shipped: wheel, token, settings, this.
#
#   bash ssh_node.sh start OPTIONS   `ray start OPTIONS`; when standard input ends, so does the node
#   bash ssh_node.sh rlvid ...       the command line of the wheel, as the cluster's driver
#   bash ssh_node.sh make-room       SIGTERM to that driver: it drains, writes a checkpoint, exits
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/settings" # mark; before: that of the attempt before, if there was one; python
export PATH="$(dirname "$python"):$PATH" PYTHONPATH="$here/code"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$here/token" RAY_USAGE_STATS_ENABLED=0
# Who starts goes before who works; the roles go to the end by themselves.
export RAY_worker_niceness=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0

# Kills every process on this node that carries the mark, once standard input has ended.
end_with_input() {
  "$python" -I -S "$here/code/rlvid/launch/cluster_guard.py" "$1" 0
}

what="$1"
shift
case "$what" in
  start)
    trap '' HUP # the connection may go first, and the node is still to be cleared
    "$python" -m zipfile -e "$here"/rlvid-*.whl "$here/code"
    cp "$here/code/rlvid/launch/wheel_first.py" "$here/code/sitecustomize.py"
    [ -z "$before" ] || end_with_input "$before" </dev/null
    if RLVID_CLUSTER_MARK="$mark" ray start "$@" </dev/null >"$here/ray.log" 2>&1; then
      echo started
      end_with_input "$mark"
      rm -rf "$here"
    else
      cat "$here/ray.log" >&2
      end_with_input "$mark" </dev/null
      rm -rf "$here"
      exit 1
    fi
    ;;
  rlvid)
    echo $$ >"$here/driver.pid"
    export RLVID_CLUSTER_MARK="$mark"
    exec "$python" -m rlvid.launch.cli "$@"
    ;;
  make-room) kill -TERM "$(cat "$here/driver.pid")" ;;
esac
