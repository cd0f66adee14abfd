"""An app that uses every host interface, the servers it uses, and requests that succeed, fail and
are abandoned.

The same traffic runs in this process (``test_traffic.py``), through containerd for a short time
(``e2e/test_traffic.py``), and ten thousand requests long (``make soak``).
"""
