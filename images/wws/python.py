"""Says hello: a worker in Python is its source, as one in JavaScript is."""


def worker(request):
    return Response(f"hello from Python, {request.method} {request.url}!")
