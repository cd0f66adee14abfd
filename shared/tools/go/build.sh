#!/bin/sh
# Build what MODULE/tools.go names, for the tests: PIP="..." build.sh MODULE DIRECTORY [OPTION...]
#
# OPTIONs are those of `go build`. By the machine's Go if it is new enough for MODULE/go.mod, else by
# the one on PyPI. All versions are locked: in MODULE/go.sum, and in go.lock for Go itself.
set -eu

mkdir -p "$2"
output=$(cd "$2" && pwd)
lock=$(cd "$(dirname "$0")" && pwd)/go.lock
cd "$1"
shift 2

export CGO_ENABLED=0      # needs no C compiler
export GOTOOLCHAIN=local  # what runs is what is installed
export GOFLAGS=-mod=readonly

# An old Go cannot even read this go.mod.
if ! go list -m >/dev/null 2>&1; then
    toolchain="$output/go"
    rm -rf "$toolchain"
    $PIP install --quiet --require-hashes --target "$toolchain" -r "$lock"
    PATH="$toolchain/go/bin:$PATH"
fi

go build -trimpath "$@" -o "$output/" $(sed -n 's/^\t_ "\(.*\)"$/\1/p' tools.go)
rm -rf "$output/go"
