//go:build tools

// Package tools names the programs that `make buildx` builds, so that go.mod locks their versions.
package tools

import (
	_ "github.com/docker/buildx/cmd/buildx"
	_ "github.com/moby/buildkit/cmd/buildkitd"
)
