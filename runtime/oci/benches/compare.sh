#!/usr/bin/env bash
# Compares a runtime with Debian's crun and runc on the same bundles, in the same run; prints rows of a markdown table.
# usage: compare.sh path/to/knarr-oci
# Needs root and busybox-static, jq, python3, strace, time, podman, crun, runc; perf if it is there.
set -euo pipefail
# crun refuses hybrid cgroups, so all of them run where v2 is not mounted; runs in a mount namespace that ends with this script.
if [ "${1:-}" != --apart ]; then
  exec unshare --mount --propagation private "$0" --apart "$(realpath "$1")"
fi
ours=$2
if umount /sys/fs/cgroup/unified 2>/dev/null; then
  # What is below is the host's: Podman makes its groups there all the same, as plain directories.
  mount -t tmpfs tmpfs /sys/fs/cgroup/unified
fi

work=$(mktemp -d)
had=$(ls -d /sys/fs/cgroup/*/libpod_parent 2>/dev/null || true)
finish() {
  for runtime in "$ours" crun runc; do
    for id in $("$runtime" --root "$work/state/${runtime##*/}" list -q 2>/dev/null); do
      "$runtime" --root "$work/state/${runtime##*/}" delete --force "$id" || true
    done
  done
  # Podman leaves the group in which it has made its own.
  [ -n "$had" ] || find /sys/fs/cgroup -mindepth 2 -path '/sys/fs/cgroup/*/libpod_parent*' -type d -delete
  umount "$work/state"
  rm -rf --one-file-system "$work"
}
# On a tmpfs, where all three have it by default (/run): on a disk, a part of what is measured would be the disk.
mkdir "$work/state"
mount -t tmpfs tmpfs "$work/state"
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

# The three, each with its own ids: the cgroup is named after the id.
programs=("$ours --root $work/state/${ours##*/}" "crun --root $work/state/crun" "runc --root $work/state/runc")

print_row() { # what, value of ours, of crun, of runc, unit, bar
  awk -v what="$1" -v o="$2" -v c="$3" -v r="$4" -v unit="$5" -v bar="$6" \
    'BEGIN {
      printf "| %s | %.4g %s | %.4g %s | ", what, o, unit, c, unit
      if (r == "") printf "not measured | %.2f x crun", o/c
      else printf "%.4g %s | %.2f x crun, %.2f x runc", r, unit, o/c, o/r
      printf " | %s |\n", bar
    }'
}
# The time of one step; `times` steps are one sample, seven samples give the median. In steps and preparations, RT is a runtime
# with its root, and ID an id of its own.
here=$(dirname "$(realpath "$0")")
measure() { # what, bar, times, step, [preparation], [flag]
  local what=$1 bar=$2 times=$3 step=$4 prepare=${5:-} flags=("${@:6}") values=() steps=() each=0
  for program in "${programs[@]}"; do
    each=$((each + 1))
    local own=${step//RT/$program}
    steps+=("${own//ID/m$each}")
    if [ -n "$prepare" ]; then
      own=${prepare//RT/$program}
      flags+=(--prepare "${own//ID/m$each}")
    fi
  done
  mapfile -t values < <("$here/turns.py" "${flags[@]}" 7 "$times" "${steps[@]}")
  [ ${#values[@]} = 3 ] || { echo "$what: failed" >&2; return 1; }
  print_row "$what" "${values[@]}" ms "$bar"
}

echo "| OCI runtime | knarr-oci | crun | runc | ratios | bar |"
echo "|---|---|---|---|---|---|"
measure "run /bin/true, whole cycle" "0.5 x crun" 20 "RT run --bundle $work/plain ID-{i}"
measure "the same, Docker's profile" "0.6 x crun" 20 "RT run --bundle $work/docker ID-{i}"
clear="RT delete --force ID 2>/dev/null; true"
created="$clear; RT create --bundle $work/sleeper ID"
running="$created && RT start ID"
measure "exec /bin/true" "0.5 x crun" 20 "RT exec ID /bin/true" "$running"
measure "create" "" 1 "RT create --bundle $work/sleeper ID" "$clear"
measure "start" "" 1 "RT start ID" "$created"
measure "state" "" 20 "RT state ID" "$created"
measure "kill" "" 1 "RT kill ID KILL" "$running"
measure "delete --force" "" 1 "RT delete --force ID" "$running"
measure "100 containers in parallel, each" "" 100 "RT run --bundle $work/plain ID-{i}" "" --parallel

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
print_row "resident memory of \`run\`, shared pages too" "${values[@]}" KiB ""

# What a runtime takes for itself, and the kernel for it: the peak of a memory group in which it runs alone. The pages of its
# file and of its libraries are in the page cache already, so they are nobody's; a copy of the program in memory is not.
memory=/sys/fs/cgroup/memory
peak=memory.max_usage_in_bytes
if [ ! -d $memory ]; then
  memory=/sys/fs/cgroup
  peak=memory.peak
fi
values=()
for program in "${programs[@]}"; do
  samples=()
  for _ in 1 2 3 4 5; do
    mkdir "$memory/knarr-bench-$$"
    # shellcheck disable=SC2016,SC2086
    sh -c 'echo 0 >"$0/cgroup.procs" && exec "$@"' "$memory/knarr-bench-$$" $program run --bundle "$work/plain" m </dev/null
    samples+=("$(cat "$memory/knarr-bench-$$/$peak")")
    until rmdir "$memory/knarr-bench-$$" 2>/dev/null; do sleep 0.01; done
  done
  values+=("$(printf '%s\n' "${samples[@]}" | sort -n | awk 'NR == 3 {print $1 / 1024}')")
done
print_row "peak private memory of \`run\`, with the kernel's" "${values[@]}" KiB "1 x crun"

# The smallest limit with which the plain bundle ran three times in a row, to 16 KiB.
runs_with() { # program, KiB
  jq --argjson limit $(($2 * 1024)) '.linux.resources.memory = {limit: $limit}' <"$work/plain/config.json" >"$work/small/config.json"
  for _ in 1 2 3; do
    # shellcheck disable=SC2086
    if ! timeout 10 $1 run --bundle "$work/small" l </dev/null >/dev/null 2>&1; then
      $1 delete --force l >/dev/null 2>&1 || true
      return 1
    fi
  done
}
mkdir -p "$work/small"
values=()
for program in "${programs[@]}"; do
  low=0 high=65536
  while ((high - low > 16)); do
    middle=$(((low + high) / 2))
    if runs_with "$program" $middle; then high=$middle; else low=$middle; fi
  done
  values+=("$high")
done
print_row "smallest memory limit of a container that starts" "${values[@]}" KiB ""

# Valgrind knows neither clone3 nor open_tree, without which none of the three makes a container. So hardware counts where it
# can be asked, and elsewhere the instructions are stepped through one by one, which would take runc too long.
instructions() { # program…
  if perf stat -x, -e instructions:u true 2>&1 | grep -q '^[0-9]'; then
    perf stat -x, -e instructions:u -o "$work/perf" "$@" run --bundle "$work/plain" i </dev/null
    awk -F, '/instructions/ {print $1 / 1000}' "$work/perf"
  elif [ "${1##*/}" = runc ]; then
    echo
  else
    "$here/instructions.py" "$@" run --bundle "$work/plain" i </dev/null | awk '{print $1 / 1000}'
  fi
}
values=()
for program in "${programs[@]}"; do
  # shellcheck disable=SC2086
  values+=("$(instructions $program)")
done
print_row "instructions of \`run\` in user mode" "${values[@]}" thousand ""
