"""Each block of each document is what it says it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_player.checks import check_block
from doc_player.document import Block, blocks, documents

from containerd_shimkit.errors import ManifestError

ROOT = Path(__file__).parents[3]
DOCUMENTS = documents(ROOT)
BLOCKS = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}:{block.line}-{block.kind}")
    for path in DOCUMENTS
    for block in blocks(path.read_text())
]


@pytest.mark.parametrize("block", BLOCKS)
def test_block_is_what_it_says(block: Block) -> None:
    check_block(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(p.relative_to(ROOT)) for p in DOCUMENTS])
def test_every_fence_is_of_a_block(document: Path) -> None:
    """None is written in a way that no block is seen in it."""
    text = document.read_text()
    fences = re.findall(r"^\s*(?:```|~~~).*$", text, re.M)
    assert len(fences) == 2 * len(list(blocks(text)))


POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  runtimeClassName: wasmtime-spin
  containers:
    - name: web
      image: registry.example.com/web:1
"""
CRI = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.spin]\n'
KUSTOMIZATION = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - deployments/workloads
images:
  - name: docker.io/library/wasmtest_spin
    newName: mine
"""


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("yaml", POD, POD.replace("runtimeClassName", "runtimeClass")),
        ("yaml", "spec:\n  runtimeClassName: x\n", "spec:\n  runtimeclassName: x\n"),
        ("yaml", "resources:\n  limits:\n    memory: 1Gi\n", "resources:\n  limit: {}\n"),
        ("yaml", "runtimeClassName: x\n", "runtimeClass: x\n"),
        ("yaml", KUSTOMIZATION, KUSTOMIZATION.replace("wasmtest_spin", "other")),
        ("yaml", KUSTOMIZATION, KUSTOMIZATION.replace("workloads", "nowhere")),
        ("yaml", KUSTOMIZATION, KUSTOMIZATION.replace("newName", "newname")),
        (
            "toml",
            f'{CRI}  runtime_type = "io.containerd.spin.v1"\n',
            f'{CRI}  runtimetype = "io.containerd.spin.v1"\n',
        ),
        (
            "toml",
            f'{CRI}runtime_type = "a.b.v1"\n{CRI[:-2]}.options]\nSystemdCgroup = true\n',
            f'version = 3\n{CRI}  runtime_type = "a.b.v1"\n',
        ),
        ("toml", '[[capability]]\nresource = "http"\nname = "x"\n', "[[capability]]\nname = 1\n"),
        ("toml", 'name = "x"\nversion = "1"\n', 'name = "x"\nversion = "1"\nother = 1\n'),
        ("toml", 'state_dir = "/data"\n', "state_dir = 1\n"),
        ("toml", 'state_dir = "/data"\n', 'something = "else"\n'),
        (
            "toml",
            'spin_manifest_version = "1"\nname = "x"\nversion = "1.0.0"\n'
            'trigger = { type = "http", base = "/" }\n[[component]]\nid = "x"\nsource = "x.wasm"\n'
            '[component.trigger]\nroute = "/"\n',
            'spin_manifest_version = "1"\nname = "x"\n',
        ),
        (
            "toml",
            'version = 1\n[[repositories]]\nname = "x"\n',
            "version = 1\n[[repositories]]\n",
        ),
        ("json", '{"a": 1}', "{'a': 1}"),
        (
            "dockerfile",
            'FROM scratch\nCOPY app.wasm /\nENTRYPOINT ["/"]\n',
            "FROM debian\nRUN cd /tmp\n",
        ),
        ("sh", 'echo "$HOME"\n', "echo $1\n"),
        ("bash", "[[ -e x ]] && ls\n", "for x in $(ls); do\n"),
        ("console", "$ curl http://127.0.0.1/\n", "$ wget http://127.0.0.1/\n"),
        ("console", '$ curl "$URL"\n', "$ curl $URL\n"),
        ("c", "int f(void) { return 1; }\n", "int f(void) { return g(); }\n"),
        ("rust", "pub fn f() -> u32 { 1 }\n", "pub fn f() -> u32 { x }\n"),
        ("python", "x = [1]\n", "x = [1\n"),
        ("js", "export default () => 1;\n", "export default () => ;\n"),
        ("mermaid", "flowchart LR\n  a --> b\n", "flow LR\n"),
        ("text", "anything", None),
        ("json", "1", None),
    ],
)
def test_checks_tell_good_from_bad(kind: str, good: str, bad: str | None) -> None:
    check_block(Block(kind, good, 1, ""))
    if bad is not None:
        with pytest.raises((AssertionError, ManifestError, ValueError, SyntaxError)):
            check_block(Block(kind, bad, 1, ""))


def test_kind_that_nobody_knows() -> None:
    with pytest.raises(AssertionError, match="no rule says how a block of kind 'cobol'"):
        check_block(Block("cobol", "", 1, ""))
