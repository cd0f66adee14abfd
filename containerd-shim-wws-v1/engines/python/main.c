/*
 * CPython as a reactor: what the shim calls, and the module `_wws` that the prelude calls.
 *
 * The shim keeps the memory as it is after `load`, and starts every request with a copy of it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name), used))

extern void __wasm_call_ctors(void);
extern const struct _frozen wws_frozen_modules[];

static PyObject *prelude;
static PyObject *response; /* what `handle` has returned a pointer into */
static uint32_t result[2];

/* The allocator of what the host writes */

/* The host would write to the address 0. */
static void *there(void *pointer)
{
    if (!pointer) {
        fputs("out of memory\n", stderr);
        __builtin_trap();
    }
    return pointer;
}

EXPORT("allocate") void *allocate(size_t size) { return there(malloc(size ? size : 1)); }

EXPORT("canonical_abi_realloc")
void *canonical_abi_realloc(void *old, size_t old_size, size_t align, size_t size)
{
    (void)old_size, (void)align; /* malloc aligns to 16 */
    if (!size)
        return (void *)align;
    return there(realloc(old, size));
}

EXPORT("canonical_abi_free") void canonical_abi_free(void *pointer, size_t size, size_t align)
{
    (void)align;
    if (size)
        free(pointer);
}

/* http: send-http-request */

struct text {
    const char *data;
    size_t size;
};

struct header {
    struct text name, value;
};

/* The interface's expected<http-response, http-request-error>. */
struct outcome {
    uint8_t failed;
    union {
        struct {
            uint8_t has_body;
            struct text body;
            struct {
                struct header *data;
                size_t count;
            } headers;
            uint16_t status;
        } response;
        struct {
            uint8_t kind;
            struct text message;
        } error;
    };
};

_Static_assert(sizeof(struct outcome) == 28, "as the host writes it");

__attribute__((import_module("http"), import_name("send-http-request"))) extern void
send_http_request(uint32_t has_body, const void *body, size_t body_size,
                  const struct header *headers, size_t headers_count, uint32_t method,
                  const void *params, size_t params_count, const char *uri, size_t uri_size,
                  struct outcome *outcome);

static void free_text(struct text text)
{
    if (text.size)
        free((void *)text.data);
}

static int as_text(PyObject *string, struct text *text)
{
    Py_ssize_t size;

    text->data = PyUnicode_AsUTF8AndSize(string, &size);
    text->size = (size_t)size;
    return text->data ? 0 : -1;
}

/* Return [(name, value), ...], as bytes, and free what the host has allocated for them. */
static PyObject *take_headers(struct header *headers, size_t count)
{
    PyObject *list = PyList_New(0);

    for (size_t i = 0; i < count; i++) {
        struct text name = headers[i].name, value = headers[i].value;
        PyObject *pair = NULL;
        if (list)
            pair = Py_BuildValue("(y#y#)", name.size ? name.data : "", (Py_ssize_t)name.size,
                                 value.size ? value.data : "", (Py_ssize_t)value.size);
        if (list && (!pair || PyList_Append(list, pair) < 0))
            Py_CLEAR(list);
        Py_XDECREF(pair);
        free_text(name);
        free_text(value);
    }
    if (count)
        free(headers);
    return list;
}

/* Return the host's pairs for a list of pairs of strings, which own the texts; or NULL. */
static struct header *headers_of(PyObject *list)
{
    Py_ssize_t count = PyList_GET_SIZE(list);
    struct header *headers = PyMem_New(struct header, count ? count : 1);

    if (!headers)
        return (struct header *)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name, *value;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "UU", &name, &value) ||
            as_text(name, &headers[i].name) < 0 || as_text(value, &headers[i].value) < 0) {
            PyMem_Free(headers);
            return NULL;
        }
    }
    return headers;
}

/* Return bytes of what the host has allocated, and free that. */
static PyObject *take_bytes(struct text text)
{
    PyObject *bytes = PyBytes_FromStringAndSize(text.size ? text.data : "", (Py_ssize_t)text.size);

    free_text(text);
    return bytes;
}

static PyObject *take_outcome(const struct outcome *outcome)
{
    if (outcome->failed)
        return Py_BuildValue("(iN)", outcome->error.kind, take_bytes(outcome->error.message));
    PyObject *headers =
        take_headers(outcome->response.headers.data, outcome->response.headers.count);
    PyObject *body = outcome->response.has_body ? take_bytes(outcome->response.body)
                                                : Py_NewRef(Py_None);
    return Py_BuildValue("(iNN)", outcome->response.status, headers, body);
}

/* send_http_request(method, uri, headers, body or None) -> (status, headers, body or None), or for
   an error (kind, message).  method, kind: the number of the interface's case.  headers: pairs. */
static PyObject *wws_send_http_request(PyObject *module, PyObject *arguments)
{
    unsigned int method;
    struct text uri, content = {0};
    PyObject *list, *body;
    struct outcome outcome = {0};

    (void)module;
    if (!PyArg_ParseTuple(arguments, "Is#O!O:send_http_request", &method, &uri.data, &uri.size,
                          &PyList_Type, &list, &body))
        return NULL;
    if (body != Py_None) {
        if (!PyBytes_Check(body))
            return PyErr_Format(PyExc_TypeError, "body is no bytes");
        content = (struct text){PyBytes_AS_STRING(body), (size_t)PyBytes_GET_SIZE(body)};
    }
    struct header *headers = headers_of(list);
    if (!headers)
        return NULL;
    send_http_request(body != Py_None, content.data, content.size, headers,
                      (size_t)PyList_GET_SIZE(list), method, NULL, 0, uri.data, uri.size, &outcome);
    PyMem_Free(headers);
    return take_outcome(&outcome);
}

static PyMethodDef wws_methods[] = {
    {"send_http_request", wws_send_http_request, METH_VARARGS, NULL},
    {0},
};

static struct PyModuleDef wws_module = {PyModuleDef_HEAD_INIT, "_wws", NULL, 0, wws_methods,
                                        NULL, NULL, NULL, NULL};

static PyObject *init_wws(void) { return PyModule_Create(&wws_module); }

/* Starting */

static void fail(PyStatus status)
{
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

static void configure(PyConfig *config)
{
    PyConfig_InitIsolatedConfig(config);
    config->site_import = 0;
    config->write_bytecode = 0;
    config->pathconfig_warnings = 0;
    config->module_search_paths_set = 1; /* empty: every module is frozen */
    fail(PyConfig_SetString(config, &config->home, L"/"));
    fail(PyConfig_SetString(config, &config->program_name, L"python3.11"));
    fail(PyConfig_SetString(config, &config->executable, L""));
    fail(PyConfig_SetString(config, &config->stdio_encoding, L"utf-8"));
    fail(PyConfig_SetString(config, &config->stdio_errors, L"backslashreplace"));
}

/* Clear what calls that have returned left on the stack, so that a snapshot need not hold it. The
   stack lies first in memory; untouched pages of it are read, not written. */
static void __attribute__((noinline)) clear_stack(void)
{
    volatile uint64_t *end = (uint64_t *)__builtin_frame_address(0) - 64;

    for (volatile uint64_t *word = (uint64_t *)1024; word < end; word++)
        if (*word)
            *word = 0;
}

EXPORT("_initialize") void initialize(void)
{
    PyPreConfig preconfig;
    PyConfig config;

    __wasm_call_ctors();
    PyImport_FrozenModules = wws_frozen_modules;
    PyPreConfig_InitIsolatedConfig(&preconfig);
    preconfig.utf8_mode = 1;
    fail(Py_PreInitialize(&preconfig));
    if (PyImport_AppendInittab("_wws", init_wws) < 0)
        abort();
    configure(&config);
    fail(Py_InitializeFromConfig(&config));
    PyConfig_Clear(&config);
    prelude = PyImport_ImportModule("_worker");
    if (!prelude) {
        PyErr_Print();
        abort();
    }
}

/* What the host calls */

/* Call a function of the prelude; the arguments are freed. */
static PyObject *call_prelude(const char *function, PyObject *first, PyObject *second)
{
    PyObject *answer = first ? PyObject_CallMethod(prelude, function, second ? "OO" : "O", first,
                                                   second)
                             : NULL;
    if (!answer)
        PyErr_Print();
    Py_XDECREF(first);
    Py_XDECREF(second);
    return answer;
}

EXPORT("load") int load(char *name, size_t name_size, char *source, size_t source_size)
{
    PyObject *first = PyUnicode_DecodeUTF8(name, (Py_ssize_t)name_size, "replace");
    PyObject *second = PyBytes_FromStringAndSize(source, (Py_ssize_t)source_size);
    int loaded = 0;

    free(name);
    free(source);
    if (first && second) {
        PyObject *answer = call_prelude("load", first, second);
        loaded = answer == Py_True;
        Py_XDECREF(answer);
    }
    clear_stack();
    return loaded ? 0 : 1;
}

EXPORT("handle") uint32_t *handle(char *request, size_t size)
{
    PyObject *text = PyBytes_FromStringAndSize(request, (Py_ssize_t)size);

    free(request);
    Py_CLEAR(response);
    response = call_prelude("handle", text, NULL);
    if (!response || !PyBytes_Check(response))
        return NULL;
    result[0] = (uint32_t)(uintptr_t)PyBytes_AS_STRING(response);
    result[1] = (uint32_t)PyBytes_GET_SIZE(response);
    return result;
}
