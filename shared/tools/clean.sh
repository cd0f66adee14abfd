#!/bin/sh
# Remove what was built, but never from under something that runs: `make clean`. What was only
# fetched or built for tests stays: .venv, .cache.
set -eu

cd "$(dirname "$0")/../.."
here=$(pwd -P)

refuse() {
    echo "make clean: $1 is still in use in .run; end it first (make run_spin stops at Ctrl-C)" >&2
    exit 1
}

for lock in .run/*/lock; do
    [ ! -e "$lock" ] || flock --nonblock "$lock" true || refuse "a running app"
done
for process in /proc/[0-9]*; do
    command=$(tr '\0' ' ' 2>/dev/null <"$process/cmdline") || continue
    case "$command" in
        *"$here/.run/"*) refuse "process ${process#/proc/}" ;;
    esac
done
# Removing through a mount would remove what is mounted.
! grep -q -F " $here/.run/" /proc/self/mountinfo || refuse "a mount"

rm -rf dist build .run .mypy_cache .ruff_cache .pytest_cache .hypothesis
find . -path ./.venv -prune -o -path ./.git -prune -o -type d -name __pycache__ -print0 |
    xargs -0 -r rm -rf
