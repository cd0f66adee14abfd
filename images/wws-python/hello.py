"""Says hello, in the words of the variable GREETING: a worker in Python is its source."""

import os


def worker(request):
    greeting = os.environ.get("GREETING", "hello")
    response = Response(f"{greeting} from Python!")
    response.headers["content-type"] = "text/plain"
    return response
