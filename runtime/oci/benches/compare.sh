#!/bin/sh
# Compares a runtime with crun and runc on the same bundle, in the same run: whole cycle of `run /bin/true`, and exec.
# usage: compare.sh path/to/knarr-oci [runs]
# Needs root, busybox-static, hyperfine, crun, runc. crun refuses hybrid cgroups, so it runs where v2 is not mounted.
set -eu
ours=$(realpath "$1")
runs=${2:-100}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/rootfs/bin" "$work/rootfs/proc" "$work/rootfs/dev" "$work/rootfs/sys" "$work/rootfs/tmp"
cp /bin/busybox "$work/rootfs/bin/busybox"
for applet in true sleep sh; do ln -s busybox "$work/rootfs/bin/$applet"; done
cd "$work"
"$ours" spec
sed -i -e 's/"terminal": true/"terminal": false/' -e 's/"ociVersion": "[^"]*"/"ociVersion": "1.0.2"/' \
    -e 'N;s#"args": \[\n *"sh"#"args": ["/bin/true"#;P;D' config.json
grep -q '"/bin/true"' config.json
measure() { hyperfine --shell=none --warmup 10 --runs "$runs" --export-json "$work/$1.json" "$2" >/dev/null 2>&1; }
report() {
    sed -n 's/^ *"\(median\|min\|mean\)": \([0-9.]*\).*/\1 \2/p' "$work/$1.json" |
        awk -v name="$1" '{v[$1]=$2*1000} END {printf "%-10s mean %.2f ms  median %.2f ms  min %.2f ms\n", name, v["mean"], v["median"], v["min"]}'
}
export work runs
# In turns, so that a busy moment of the machine hits all of them.
measure ours "$ours --root $work/state run bench-ours"
unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null
    hyperfine --shell=none --warmup 10 --runs "$runs" --export-json "$work/crun.json" "crun --root $work/crun run bench-crun" >/dev/null 2>&1'
measure runc "runc --root $work/runc run bench-runc"
measure ours-again "$ours --root $work/state run bench-ours"
for name in ours ours-again crun runc; do report "$name"; done
echo "system calls of one cycle (strace -fc):"
strace -fc -o "$work/ours.st" "$ours" --root "$work/state" run bench-ours
unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; strace -fc -o "$work/crun.st" crun --root "$work/crun" run bench-crun'
for name in ours crun; do awk -v name="$name" '/total$/ {print name, $4}' "$work/$name.st"; done
