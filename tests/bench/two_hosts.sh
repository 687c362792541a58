# shellcheck shell=bash
# Sourced by benches: two hosts on one machine, as network namespaces with a core each, joined by a cable. Defines in_a and in_b,
# which run a command on a host (192.0.2.1 and 192.0.2.2), `wait_for FILE TEXT` with a deadline of two minutes, `narrow MBIT` for the
# cable, end_programs, and $work, a folder that is removed at the end. Needs root for the namespaces, and two cores.
work=$(mktemp -d) a=ferry-a-$$ b=ferry-b-$$
export XDG_CACHE_HOME=$work/cache
end_programs() {
  { ip netns pids "$a"; ip netns pids "$b"; } 2>/dev/null | xargs -r kill 2>/dev/null || true
  wait 2>/dev/null || true
}
remove_hosts() {
  end_programs
  ip netns del "$a" 2>/dev/null || true
  ip netns del "$b" 2>/dev/null || true
  rm -rf "$work"
}
trap remove_hosts EXIT
ip netns add "$a"; ip netns add "$b"
ip link add va netns "$a" type veth peer name vb netns "$b"
for side in "$a va 192.0.2.1" "$b vb 192.0.2.2"; do
  read -r host device address <<<"$side"
  ip -n "$host" link set lo up; ip -n "$host" link set "$device" up; ip -n "$host" addr add "$address/24" dev "$device"
done
in_a() { ip netns exec "$a" taskset -c 0 "$@"; }
in_b() { ip netns exec "$b" taskset -c 1 "$@"; }
narrow() {  # MBIT: the cable's rate; 0 leaves it as fast as it goes
  [ "$1" -gt 0 ] || return 0
  tc -n "$a" qdisc add dev va root tbf rate "${1}mbit" burst 2mb latency 20ms
  tc -n "$b" qdisc add dev vb root tbf rate "${1}mbit" burst 2mb latency 20ms
}
wait_for() { for _ in $(seq 600); do grep -qs "$2" "$1" && return 0; sleep 0.2; done; cat "$1" >&2; return 1; }
