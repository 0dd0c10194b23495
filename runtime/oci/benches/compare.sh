#!/usr/bin/env bash
# Compares a runtime with Debian's crun and runc on the same bundles, in the same run; prints rows of a markdown table.
# usage: compare.sh path/to/knarr-oci
# Needs root and busybox-static, hyperfine, jq, strace, time, podman, crun, runc.
set -euo pipefail
# crun refuses hybrid cgroups, so all of them run where v2 is not mounted; runs in a mount namespace that ends with this script.
if [ "${1:-}" != --apart ]; then
  exec unshare --mount --propagation private "$0" --apart "$(realpath "$1")"
fi
ours=$2
umount /sys/fs/cgroup/unified 2>/dev/null || true

work=$(mktemp -d)
finish() {
  for runtime in "$ours" crun runc; do
    for id in $("$runtime" --root "$work/state-${runtime##*/}" list -q 2>/dev/null); do
      "$runtime" --root "$work/state-${runtime##*/}" delete --force "$id" || true
    done
  done
  rm -rf --one-file-system "$work"
}
trap finish EXIT

mkdir -p "$work"/rootfs/{bin,proc,dev,sys,tmp,etc}
cp /bin/busybox "$work/rootfs/bin/"
for applet in true sleep sh; do ln -s busybox "$work/rootfs/bin/$applet"; done

# A bundle with another command, made of a specification on stdin.
bundle() { # name, command…
  local name=$1; shift
  mkdir -p "$work/$name"
  jq --arg root "$work/rootfs" --args \
    '.process.args = $ARGS.positional | .process.terminal = false | .ociVersion = "1.0.2" | .root = {path: $root, readonly: true}' \
    "$@" >"$work/$name/config.json"
}
(cd "$work" && runc spec)
bundle plain /bin/true <"$work/config.json"
bundle sleeper /bin/sleep 1000 <"$work/config.json"

# Docker's usual mounts, capabilities, masked paths and seccomp profile, as Podman writes them.
podman=(podman --root "$work/podman" --runroot "$work/podman-run" --tmpdir "$work/podman-tmp" --storage-driver vfs
  --cgroup-manager cgroupfs --events-backend none --runtime runc)
container=$("${podman[@]}" create --network none --ulimit nofile=20000:20000 --ulimit nproc=4096:4096 --rootfs "$work/rootfs" /bin/true)
"${podman[@]}" init "$container" >/dev/null
find "$work/podman" -name config.json -path "*$container*" -exec cat {} + |
  jq 'del(.hooks, .annotations, .linux.cgroupsPath) | .mounts |= map(select(.type != "bind"))' >"$work/docker.json"
"${podman[@]}" rm --force "$container" >/dev/null
bundle docker /bin/true <"$work/docker.json"

# The three runtimes by name. Each has its own ids: the cgroup is named after the id.
rt() { # name, arguments…
  local name=$1; shift
  case $name in
    ours) "$ours" --root "$work/state-${ours##*/}" "$@" ;;
    *) "$name" --root "$work/state-$name" "$@" ;;
  esac
}
export -f rt
export ours work
names="ours crun runc"

median() { jq '.results[0].median * 1000' "$1"; }
print_row() { # what, value of ours, of crun, of runc, unit, bar
  awk -v what="$1" -v o="$2" -v c="$3" -v r="$4" -v unit="$5" -v bar="$6" \
    'BEGIN {printf "| %s | %.4g %s | %.4g %s | %.4g %s | %.2f x crun, %.2f x runc | %s |\n", what, o, unit, c, unit, r, unit, o/c, o/r, bar}'
}
# The time of one step; the runtimes take turns within the run. `times` steps are one sample, seven samples give the median.
measure() { # what, bar, times, command with NAME for the runtime, [preparation]
  local what=$1 bar=$2 times=$3 step=$4 prepare=${5:-true}
  local values=()
  for name in $names; do
    hyperfine --shell "bash --norc" --warmup 1 --runs 7 --export-json "$work/$name.json" \
      --prepare "${prepare//NAME/$name}" \
      "for i in \$(seq $times); do ${step//NAME/$name}; done" >/dev/null 2>&1 </dev/null ||
      { echo "$what with $name failed" >&2; return 1; }
    values+=("$(median "$work/$name.json" | awk -v n="$times" '{print $1 / n}')")
  done
  print_row "$what" "${values[@]}" ms "$bar"
}

echo "| OCI runtime | knarr-oci | crun | runc | ratios | bar |"
echo "|---|---|---|---|---|---|"
measure "run /bin/true, whole cycle" "0.5 x crun" 20 "rt NAME run --bundle $work/plain b\$i"
measure "the same, Docker's profile" "0.6 x crun" 20 "rt NAME run --bundle $work/docker b\$i"
clear="rt NAME delete --force s-NAME 2>/dev/null || true"
measure "exec /bin/true" "0.5 x crun" 20 "rt NAME exec s-NAME /bin/true" \
  "$clear; rt NAME create --bundle $work/sleeper s-NAME >/dev/null; rt NAME start s-NAME"
measure "create" "" 1 "rt NAME create --bundle $work/sleeper s-NAME" "$clear"
measure "start" "" 1 "rt NAME start s-NAME" "$clear; rt NAME create --bundle $work/sleeper s-NAME >/dev/null"
measure "state" "" 20 "rt NAME state s-NAME >/dev/null" "$clear; rt NAME create --bundle $work/sleeper s-NAME >/dev/null"
measure "kill" "" 1 "rt NAME kill s-NAME KILL" \
  "$clear; rt NAME create --bundle $work/sleeper s-NAME >/dev/null; rt NAME start s-NAME"
measure "delete --force" "" 1 "rt NAME delete --force s-NAME" \
  "$clear; rt NAME create --bundle $work/sleeper s-NAME >/dev/null; rt NAME start s-NAME"
measure "100 containers in parallel" "" 1 \
  "for j in \$(seq 100); do rt NAME run --bundle $work/plain p\$j & done; wait"

programs=("$ours --root $work/state-${ours##*/}" "crun --root $work/state-crun" "runc --root $work/state-runc")
calls() { # verb and arguments
  local values=()
  for program in "${programs[@]}"; do
    # shellcheck disable=SC2086
    strace -fc -o "$work/strace" $program "$@" >/dev/null 2>&1 </dev/null
    values+=("$(awk '/total$/ {print $4}' "$work/strace")")
  done
  print_row "system calls of \`$1\`$calls_of" "${values[@]}" "" "fewer than crun"
}
calls_of="" calls run --bundle "$work/plain" c
calls_of=", Docker's profile" calls run --bundle "$work/docker" c
values=()
for program in "${programs[@]}"; do
  # shellcheck disable=SC2086
  /usr/bin/time -f %M -o "$work/rss" $program run --bundle "$work/plain" m </dev/null
  values+=("$(tail -1 "$work/rss")")
done
print_row "peak memory of \`run\`" "${values[@]}" KiB "1 x crun"
