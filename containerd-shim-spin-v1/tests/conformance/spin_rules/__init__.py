"""The rules of Spin that apps rely on, as tables: a line for each rule.

The unit tests read the tables, and what is served is also asked over HTTP: in this process
(``test_served.py``), and a sample of it through containerd (``e2e/test_conformance.py``).

| table | rules |
|---|---|
| ``routes_v1``, ``routes_v2`` | which component a path is for, and what is left of the path |
| ``request_data`` | what a component is told of a request: headers, or variables with WAGI |
| ``answers`` | statuses, methods, paths of Spin's own, requests that are refused |
| ``wagi`` | arguments, environment, and what the program's output comes to |
| ``manifests`` | each field of each form, and what is refused with which words |
"""
