#!/bin/sh
# Build the containerd that Debian does not have, and crictl, for the tests: PIP="..." build.sh DIRECTORY
#
# By the machine's Go if it is new enough for go.mod, else by the one on PyPI. All versions are
# locked: in go.sum, and in go.lock for Go itself.
set -eu

mkdir -p "$1"
output=$(cd "$1" && pwd)
cd "$(dirname "$0")"

export CGO_ENABLED=0      # needs no C compiler
export GOTOOLCHAIN=local  # what runs is what is installed
export GOFLAGS=-mod=readonly

# An old Go cannot even read this go.mod.
if ! go list -m >/dev/null 2>&1; then
    toolchain="$output/go"
    rm -rf "$toolchain"
    $PIP install --quiet --require-hashes --target "$toolchain" -r go.lock
    PATH="$toolchain/go/bin:$PATH"
fi

go build -trimpath -tags "no_btrfs no_devmapper no_zfs no_aufs" -ldflags "-s -w" -o "$output/" \
    $(sed -n 's/^\t_ "\(.*\)"$/\1/p' tools.go)
rm -rf "$output/go"
