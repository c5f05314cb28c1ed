#!/usr/bin/env bash
# A real SLURM on one machine, for tests and labs: one controller, and N nodes that differ from real ones in nothing
# but the kernel they share. Each node has its own network (a cable into a bridge), host name, processes and /etc/hosts.
#
#   local_cluster.sh start [NODES]      4 nodes unless told; a second start changes nothing
#   local_cluster.sh status             one line per node; exit status 0 when the cluster is up and every node ready
#   local_cluster.sh off NODE           pull the plug of one node (n1, n2, …): everything on it dies at once
#   local_cluster.sh on NODE            switch it on again
#   local_cluster.sh shape RATE|none    limit what each node sends, for example 50mbit
#   local_cluster.sh stop               leaves nothing: no process, namespace, bridge or file
#   local_cluster.sh check              says what this machine lacks, and nothing when it lacks nothing
#
# To use it:  export SLURM_CONF=$CLUSTER_DIR/slurm.conf   then sbatch, srun, squeue and scancel as on any cluster.
#
#   CLUSTER_DIR      all state lies in this folder, and two clusters have two [default: ${TMPDIR:-/tmp}/slurm-cluster]
#   CLUSTER_CPUS     CPUs that each node offers                                [default: what the machine has]
#   CLUSTER_GPUS     pretended GPUs per node: they are counted, not there      [default: 0]
#   CLUSTER_SUBNET   first three numbers of the nodes' addresses               [default: made from CLUSTER_DIR]
#
# For practice only: everything runs as root, and no cgroup keeps a job within its limits.
set -Eeuo pipefail

DIR=${CLUSTER_DIR:-${TMPDIR:-/tmp}/slurm-cluster}
NAMED='set -e; hostname "$1"; mount --bind "$2/hosts" /etc/hosts'     # in namespaces of its own; $1 is its name, $2 is DIR
PACKAGES="slurm-wlm slurmctld slurmd munge iproute2"

say() { printf '%s\n' "$*"; }
fail() { printf 'local_cluster.sh: %s\n' "$*" >&2; exit 1; }

# --- what the machine must give ---------------------------------------------------------------------------------------

check() {
  [ "$(uname -s)" = Linux ] || fail "needs Linux: the nodes are Linux namespaces"
  [ "$(id -u)" = 0 ] || fail "needs root, to make network namespaces and a bridge"
  local tool missing=""
  for tool in slurmctld slurmd sbatch munged ip nsenter unshare; do
    command -v "$tool" > /dev/null || missing="$missing $tool"
  done
  [ -z "$missing" ] || fail "not installed:$missing. On Debian: apt-get install --no-install-recommends $PACKAGES"
  unshare --net --uts --mount --pid --fork true 2> /dev/null \
    || fail "this machine lets root make no namespaces (a container?): needs CAP_SYS_ADMIN and CAP_NET_ADMIN"
}

# --- names: all of them come from DIR, so that two clusters never meet --------------------------------------------------

name_everything() {
  mkdir -p "$(dirname "$DIR")"
  DIR="$(cd "$(dirname "$DIR")" && pwd)/$(basename "$DIR")"
  local sum; sum=$(printf %s "$DIR" | cksum | cut -d' ' -f1)
  ID=$(printf '%05x' $((sum % 0xfffff)))
  BRIDGE=sl$ID                                     # an interface's name has at most 15 characters
  SUBNET=${CLUSTER_SUBNET:-10.$((64 + sum % 128)).$((sum / 128 % 256))}
  CONTROLLER=$SUBNET.254
  SOCKET=$DIR/munge.socket
}

netns() { say "sl$ID-$1"; }
nodes() { seq -f 'n%g' 1 "$(cat "$DIR/nodes")"; }
ours() { [ -f "$DIR/nodes" ]; }
alive() { [ -s "$DIR/$1.pid" ] && grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$(cat "$DIR/$1.pid")/status"; }

end() { # end NAME: kill a process that we started, and wait until it is gone
  alive "$1" || { rm -f "$DIR/$1.pid"; return 0; }
  kill -"${2:-KILL}" "$(cat "$DIR/$1.pid")" 2> /dev/null || true
  local try; for try in $(seq 100); do alive "$1" || break; sleep 0.05; done
  rm -f "$DIR/$1.pid"
}

background() { # background NAME COMMAND...: a process of its own session, its number in DIR
  local name=$1; shift
  setsid "$@" >> "$DIR/$name.log" 2>&1 < /dev/null &
  printf '%s\n' $! > "$DIR/$name.pid"
  disown
}

# --- start ------------------------------------------------------------------------------------------------------------

start() {
  local count=${1:-4}
  [[ $count =~ ^[1-9][0-9]?$ ]] || fail "start takes a number of nodes from 1 to 99, not '$count'"
  check
  if ours; then
    [ "$(cat "$DIR/nodes")" = "$count" ] || fail "a cluster of $(cat "$DIR/nodes") nodes is up in $DIR: stop it first"
    status > /dev/null && { say "up already"; use; return; }
    stop                                           # half a cluster, left by a start that was killed
  fi
  [ -z "$(ls -A "$DIR" 2> /dev/null)" ] || fail "$DIR holds something else: name an empty folder with CLUSTER_DIR"
  [ -z "$(ip -4 route show | grep -F "$SUBNET." || true)" ] \
    || fail "$SUBNET.0/24 is in use on this machine: name another with CLUSTER_SUBNET"
  mkdir -p "$DIR"; chmod 755 "$DIR"
  trap 'stop; fail "could not start; see the messages above"' ERR INT TERM
  printf '%s\n' "$count" > "$DIR/nodes"
  write_configuration
  start_network
  start_controller
  local node; for node in $(nodes); do start_node "$node"; done
  wait_until_ready
  trap - ERR INT TERM
  use
}

write_configuration() {
  local cpus=${CLUSTER_CPUS:-$(nproc)} gpus=${CLUSTER_GPUS:-0} memory node number=0 gres=""
  memory=$(awk -v nodes="$(cat "$DIR/nodes")" '/^MemTotal/ {print int($2 / 1024 / nodes)}' /proc/meminfo)   # MiB each
  dd if=/dev/urandom of="$DIR/munge.key" bs=128 count=1 status=none; chmod 400 "$DIR/munge.key"
  printf '127.0.0.1 localhost\n%s controller\n' "$CONTROLLER" > "$DIR/hosts"
  : > "$DIR/gres.conf"
  if [ "$gpus" -gt 0 ]; then
    printf 'NodeName=n[1-%s] Name=gpu File=/dev/tty[0-%s]\n' "$(cat "$DIR/nodes")" $((gpus - 1)) > "$DIR/gres.conf"
    gres="Gres=gpu:$gpus"
  fi
  printf 'CgroupPlugin=cgroup/v1\n' > "$DIR/cgroup.conf"   # never loaded into use; v2 would want systemd
  {
    cat << EOF
ClusterName=local
SlurmctldHost=controller($CONTROLLER)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$SOCKET,cred_expire=5
CommunicationParameters=NoCtldInAddrAny
SlurmctldPidFile=$DIR/slurmctld.slurm-pid
SlurmdPidFile=$DIR/%n.slurm-pid
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool-%n
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
# The least loaded node first: a handful of tasks spreads over the nodes.
SelectTypeParameters=CR_CPU_Memory,CR_LLN
DefMemPerCPU=$((memory / cpus))
SlurmdParameters=config_overrides
# A node that stops answering is down after ten seconds, and what ran there is queued again at once.
SlurmdTimeout=10
JobRequeue=1
ReturnToService=2
KillWait=5
EOF
    [ -z "$gres" ] || say "GresTypes=gpu"
    for node in $(nodes); do
      number=$((number + 1))
      printf '%s %s\n' "$SUBNET.$number" "$node" >> "$DIR/hosts"
      say "NodeName=$node NodeAddr=$SUBNET.$number CPUs=$cpus RealMemory=$memory $gres"
    done
    say "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
  } > "$DIR/slurm.conf"
}

start_network() {
  local node number=0
  ip link add "$BRIDGE" type bridge
  ip addr add "$CONTROLLER/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  for node in $(nodes); do
    number=$((number + 1))
    ip netns add "$(netns "$node")"
    ip link add "v$ID-$number" type veth peer name eth0 netns "$(netns "$node")"
    ip link set "v$ID-$number" master "$BRIDGE" up
    ip -n "$(netns "$node")" addr add "$SUBNET.$number/24" dev eth0
    ip -n "$(netns "$node")" link set eth0 up
    ip -n "$(netns "$node")" link set lo up
  done
}

start_controller() {
  mkdir -p "$DIR/state"; chmod 700 "$DIR/state"
  background munged munged --foreground --force --socket="$SOCKET" --key-file="$DIR/munge.key" \
    --pid-file="$DIR/munged.munge-pid" --log-file="$DIR/munged.log" --seed-file="$DIR/munge.seed"
  local try; for try in $(seq 100); do [ -S "$SOCKET" ] && break; sleep 0.05; done
  background slurmctld unshare --uts --mount bash -c "$NAMED; exec slurmctld -D -f \"\$2/slurm.conf\"" - controller "$DIR"
}

# A node's first process is a shell that waits: when it dies, the kernel kills the rest of the node with it.
start_node() {
  ip link set "v$ID-${1#n}" up
  background "$1" nsenter --net="/run/netns/$(netns "$1")" \
    unshare --uts --ipc --mount --pid --fork --kill-child --mount-proc \
    bash -c "$NAMED; slurmd -D -N \$1 -f \"\$2/slurm.conf\" & wait" - "$1" "$DIR"
}

wait_until_ready() {
  local deadline=$((SECONDS + 30)) log
  while [ $SECONDS -lt $deadline ]; do
    status > /dev/null 2>&1 && return
    sleep 0.2
  done
  say "not ready after 30 s:" >&2
  status >&2 || true
  for log in "$DIR"/*.log; do say "$log:" >&2; tail -n 3 "$log" >&2; done
  return 1
}

use() { say "export SLURM_CONF=$DIR/slurm.conf"; }

# --- while it runs ----------------------------------------------------------------------------------------------------

status() {
  ours || { say "no cluster in $DIR"; return 1; }
  local states node state ready=0
  states=$(SLURM_CONF="$DIR/slurm.conf" timeout 5 sinfo --noheader --Node --format='%N %T' 2>&1) \
    || { say "the controller does not answer: $states"; return 1; }
  for node in $(nodes); do
    state=$(awk -v node="$node" '$1 == node {print $2}' <<< "$states")
    alive "$node" || state="off ($state)"
    say "$node $state"
    [[ $state =~ ^(idle|mixed|allocated|completing)$ ]] || ready=1
  done
  return $ready
}

known() { ours && nodes | grep -qx -- "$1" || fail "no node '$1' in $DIR"; }

off() {
  known "$1"
  end "$1"
  say "$1 is off"
}

on() {
  known "$1"
  alive "$1" || start_node "$1"
  say "$1 is on"
}

shape() { # a burst must hold one segment of 64 KiB, or nothing passes
  local node what=${1:?shape takes a rate such as 50mbit, or none}
  for node in $(nodes); do
    tc -n "$(netns "$node")" qdisc del dev eth0 root 2> /dev/null || true
    [ "$what" = none ] || tc -n "$(netns "$node")" qdisc add dev eth0 root tbf rate "$what" burst 256kb latency 2000ms
  done
}

# --- stop -------------------------------------------------------------------------------------------------------------

stop() {
  trap - ERR INT TERM
  ours || { say "no cluster in $DIR"; return 0; }
  local node
  for node in $(nodes); do
    end "$node"
    ip link del "v$ID-${node#n}" 2> /dev/null || true   # both ends; another's mount namespace may keep ours alive a while
    ip netns del "$(netns "$node")" 2> /dev/null || true
  done
  end slurmctld
  end munged TERM
  ip link del "$BRIDGE" 2> /dev/null || true
  rm -rf "$DIR"
  say "stopped"
}

name_everything
case "${1:-}" in
  start | off | on | shape) "$1" "${2:-}" ;;
  status | stop | check) "$1" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
