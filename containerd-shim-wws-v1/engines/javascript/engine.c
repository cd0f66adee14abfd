/* The JavaScript engine of the wws shim: QuickJS, and what prelude.js and the host need of C.
 *
 * QuickJS is included, not linked: its stack check and its random state are private to it.
 *
 * The host's contract: `_initialize` and `prepare` once, when the engine is built (snapshot.py keeps
 * what memory looks like after them); `load` once a worker; `handle` once in each instance made of a
 * worker's snapshot. Nothing of the outside is read before `load`, so nothing of the build stays.
 */

#include "quickjs.c"

#undef malloc
#undef free
#undef realloc

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <wasi/api.h>

/* Of wasmtime's 512 KiB for a guest's calls, which trap, JavaScript has what leaves room for the
 * deepest C function that does not look. quickjs.patch makes each frame cost on the stack in
 * memory, which QuickJS measures, about what it costs there. */
#define STACK_BYTES 430000

/* A collection writes to every object, and so has every page of the snapshot copied. Most requests
 * end before one. */
#define COLLECT_AFTER_BYTES (16 << 20)

#define MAX_HEADERS 10000
#define MAX_MODULE_BYTES (4 << 20)
#define MAX_PATH_BYTES 4096

#define EXPORT(name) __attribute__((export_name(name)))

extern void __wasm_call_ctors(void);

typedef struct {
    const uint8_t *data;
    uint32_t length;
} Slice;

typedef struct {
    Slice name, value;
} Header;

/* http.wit: result<response, error>. */
typedef struct {
    uint8_t failed;
    union {
        struct {
            uint8_t has_body;
            Slice body;
            Header *headers;
            uint32_t header_count;
            uint16_t status;
        } response;
        struct {
            uint8_t error;
            Slice message;
        } failure;
    };
} HttpResult;

_Static_assert(sizeof(HttpResult) == 28, "as the canonical ABI has it");

__attribute__((import_module("http"), import_name("send-http-request"))) void send_http_request(
    int has_body, const uint8_t *body, uint32_t body_length, const Header *headers,
    uint32_t header_count, int method, const void *params, uint32_t param_count, const char *uri,
    uint32_t uri_length, HttpResult *result);

static JSRuntime *runtime;
static JSContext *context;
/* What prelude.js gave: load(name, source, environment), dispatch(request), advance(), finish(). */
static JSValue prelude;

/* Memory */

EXPORT("canonical_abi_realloc")
void *canonical_abi_realloc(void *old, size_t old_size, size_t align, size_t size)
{
    void *memory = realloc(old, size ? size : 1);
    if (!memory)
        abort();
    return memory;
}

/* One byte more: QuickJS wants a NUL after every source. */
EXPORT("allocate") void *allocate(size_t size)
{
    return size == SIZE_MAX ? NULL : malloc(size + 1);
}

static void *allocate_counted(JSMallocState *state, size_t size)
{
    void *memory;

    if (state->malloc_size + size > state->malloc_limit || !(memory = malloc(size)))
        return NULL;
    state->malloc_count++;
    state->malloc_size += malloc_usable_size(memory);
    return memory;
}

static void free_counted(JSMallocState *state, void *memory)
{
    if (!memory)
        return;
    state->malloc_count--;
    state->malloc_size -= malloc_usable_size(memory);
    free(memory);
}

static void *reallocate_counted(JSMallocState *state, void *memory, size_t size)
{
    size_t old_size;

    if (!memory)
        return size ? allocate_counted(state, size) : NULL;
    if (!size) {
        free_counted(state, memory);
        return NULL;
    }
    old_size = malloc_usable_size(memory);
    if (state->malloc_size - old_size + size > state->malloc_limit ||
        !(memory = realloc(memory, size)))
        return NULL;
    state->malloc_size += malloc_usable_size(memory) - old_size;
    return memory;
}

static size_t usable_size(const void *memory)
{
    return malloc_usable_size((void *)memory);
}

static const JSMallocFunctions memory_functions = {
    allocate_counted, free_counted, reallocate_counted, usable_size
};

/* Text */

/* Return how many bytes of a valid UTF-8 character begin at `p`, or 0 and in *bad how many are the
 * beginning of none: a decoder replaces these by one U+FFFD (Unicode 15, table 3-7). */
static int utf8_length(const uint8_t *p, const uint8_t *end, int *bad)
{
    uint8_t first = *p, low = 0x80, high = 0xBF;
    int length, i;

    *bad = 1;
    if (first < 0x80)
        return 1;
    if (first < 0xC2 || first > 0xF4)
        return 0;
    length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    if (first == 0xE0)
        low = 0xA0;
    else if (first == 0xED)
        high = 0x9F;
    else if (first == 0xF0)
        low = 0x90;
    else if (first == 0xF4)
        high = 0x8F;
    for (i = 1; i < length; i++) {
        if (p + i == end || p[i] < low || p[i] > high)
            return 0;
        low = 0x80, high = 0xBF;
        *bad = i + 1;
    }
    return length;
}

static int is_utf8(const uint8_t *p, size_t length)
{
    const uint8_t *end = p + length;
    int size, bad;

    while (p < end) {
        if (!(size = utf8_length(p, end, &bad)))
            return 0;
        p += size;
    }
    return 1;
}

static int is_surrogate(const uint8_t *p, const uint8_t *end)
{
    return *p == 0xED && end - p >= 3 && p[1] >= 0xA0;
}

/* Copy UTF-8 of JS_ToCStringLen; of lone surrogates, which no UTF-8 has, make U+FFFD, as long. */
static void copy_text(uint8_t *to, const uint8_t *from, size_t length)
{
    const uint8_t *end = from + length;

    memcpy(to, from, length);
    while ((from = memchr(from, 0xED, end - from))) {
        if (is_surrogate(from, end))
            memcpy(to + length - (end - from), "\xEF\xBF\xBD", 3);
        from++;
    }
}

static const char *to_bytes(JSContext *ctx, JSValueConst value, size_t *length)
{
    return JS_ToCStringLen(ctx, length, value);
}

static void write_all(int fd, const uint8_t *data, size_t length)
{
    while (length) {
        __wasi_ciovec_t vector = {data, length};
        __wasi_size_t written = 0;

        /* Output that nobody takes is no reason for a worker to fail. */
        if (__wasi_fd_write(fd, &vector, 1, &written) || !written)
            return;
        data += written;
        length -= written;
    }
}

static void complain(const char *text)
{
    write_all(2, (const uint8_t *)text, strlen(text));
}

/* write(fd, text) */
static JSValue host_write(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    size_t length;
    int32_t fd;
    const char *text;
    uint8_t *copy;

    if (JS_ToInt32(ctx, &fd, arguments[0]) || !(text = to_bytes(ctx, arguments[1], &length)))
        return JS_EXCEPTION;
    if ((copy = malloc(length + 1))) {
        copy_text(copy, (const uint8_t *)text, length);
        write_all(fd, copy, length);
        free(copy);
    }
    JS_FreeCString(ctx, text);
    return JS_UNDEFINED;
}

static void free_array(JSRuntime *rt, void *opaque, void *data)
{
    js_free_rt(rt, data);
}

/* encode(text): an ArrayBuffer with its UTF-8. */
static JSValue host_encode(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    size_t length;
    const char *text = to_bytes(ctx, arguments[0], &length);
    uint8_t *copy;

    if (!text)
        return JS_EXCEPTION;
    if ((copy = js_malloc(ctx, length + 1)))
        copy_text(copy, (const uint8_t *)text, length);
    JS_FreeCString(ctx, text);
    return copy ? JS_NewArrayBuffer(ctx, copy, length, free_array, NULL, FALSE) : JS_EXCEPTION;
}

/* wellFormed(text): the same with U+FFFD for lone surrogates. */
static JSValue host_well_formed(JSContext *ctx, JSValueConst self, int count,
                                JSValueConst *arguments)
{
    size_t length;
    const char *text = to_bytes(ctx, arguments[0], &length);
    uint8_t *copy;
    JSValue result = JS_EXCEPTION;

    if (!text)
        return JS_EXCEPTION;
    if ((copy = js_malloc(ctx, length + 1))) {
        copy_text(copy, (const uint8_t *)text, length);
        result = JS_NewStringLen(ctx, (const char *)copy, length);
        js_free(ctx, copy);
    }
    JS_FreeCString(ctx, text);
    return result;
}

static int get_range(JSContext *ctx, JSValueConst *arguments, Slice *range)
{
    size_t size;
    uint8_t *data = JS_GetArrayBuffer(ctx, &size, arguments[0]);
    uint32_t offset, length;

    if (!data || JS_ToUint32(ctx, &offset, arguments[1]) || JS_ToUint32(ctx, &length, arguments[2]))
        return -1;
    if (offset > size || length > size - offset) {
        JS_ThrowRangeError(ctx, "no such part of the buffer");
        return -1;
    }
    *range = (Slice){data + offset, length};
    return 0;
}

/* decode(buffer, offset, length, fatal): text, or null where fatal and it is no UTF-8. */
static JSValue host_decode(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    Slice range;
    DynBuf text;
    JSValue result;
    const uint8_t *p, *end;
    int size, bad;

    if (get_range(ctx, arguments, &range))
        return JS_EXCEPTION;
    if (is_utf8(range.data, range.length))
        return JS_NewStringLen(ctx, (const char *)range.data, range.length);
    if (JS_ToBool(ctx, arguments[3]))
        return JS_NULL;
    js_dbuf_init(ctx, &text);
    for (p = range.data, end = p + range.length; p < end;) {
        if ((size = utf8_length(p, end, &bad))) {
            dbuf_put(&text, p, size);
            p += size;
        } else {
            dbuf_put(&text, (const uint8_t *)"\xEF\xBF\xBD", 3);
            p += bad;
        }
    }
    result = dbuf_error(&text) ? JS_ThrowOutOfMemory(ctx)
                               : JS_NewStringLen(ctx, (const char *)text.buf, text.size);
    dbuf_free(&text);
    return result;
}

/* incomplete(buffer, offset, length): how many bytes at the end begin a character (0 to 3). */
static JSValue host_incomplete(JSContext *ctx, JSValueConst self, int count,
                               JSValueConst *arguments)
{
    Slice range;
    uint32_t back;

    if (get_range(ctx, arguments, &range))
        return JS_EXCEPTION;
    for (back = 1; back <= 3 && back <= range.length; back++) {
        const uint8_t *p = range.data + range.length - back, *end = p + back;
        int bad;

        if (*p >= 0xC0)
            return JS_NewInt32(ctx, !utf8_length(p, end, &bad) && bad == (int)back && *p <= 0xF4 &&
                                            *p >= 0xC2 ? (int)back : 0);
        if (*p < 0x80)
            break;
    }
    return JS_NewInt32(ctx, 0);
}

static const char base64_digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Write base64 of `length` bytes; return how many characters. */
static size_t encode_base64(uint8_t *to, const uint8_t *from, size_t length)
{
    uint8_t *start = to;

    for (; length; from += 3) {
        uint32_t group = from[0] << 16 | (length > 1 ? from[1] << 8 : 0) |
                         (length > 2 ? from[2] : 0);
        *to++ = base64_digits[group >> 18];
        *to++ = base64_digits[group >> 12 & 63];
        *to++ = length > 1 ? base64_digits[group >> 6 & 63] : '=';
        *to++ = length > 2 ? base64_digits[group & 63] : '=';
        length -= length > 2 ? 3 : length;
    }
    return to - start;
}

static size_t base64_size(size_t length)
{
    return (length + 2) / 3 * 4;
}

/* toBase64(buffer, offset, length) */
static JSValue host_to_base64(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    Slice range;
    uint8_t *text;
    JSValue result;

    if (get_range(ctx, arguments, &range) ||
        !(text = js_malloc(ctx, base64_size(range.length) + 1)))
        return JS_EXCEPTION;
    result = JS_NewStringLen(ctx, (char *)text, encode_base64(text, range.data, range.length));
    js_free(ctx, text);
    return result;
}

/* fromBase64(text): an ArrayBuffer; null if it is none (WHATWG infra's forgiving decode). */
static JSValue host_from_base64(JSContext *ctx, JSValueConst self, int count,
                                JSValueConst *arguments)
{
    size_t length, i, digits = 0, padding = 0, size = 0;
    const char *text = to_bytes(ctx, arguments[0], &length);
    uint8_t *data;
    uint32_t group = 0;
    int valid = 1;

    if (!text)
        return JS_EXCEPTION;
    if (!(data = js_malloc(ctx, length / 4 * 3 + 3))) {
        JS_FreeCString(ctx, text);
        return JS_EXCEPTION;
    }
    for (i = 0; i < length && valid; i++) {
        char c = text[i];
        const char *digit;

        if (c == ' ' || c == '\t' || c == '\n' || c == '\f' || c == '\r')
            continue;
        if (c == '=') {
            padding++;
        } else if (padding || !c || !(digit = strchr(base64_digits, c))) {
            valid = 0;
        } else {
            group = group << 6 | (digit - base64_digits);
            if (++digits % 4 == 0) {
                data[size++] = group >> 16;
                data[size++] = group >> 8;
                data[size++] = group;
            }
        }
    }
    JS_FreeCString(ctx, text);
    if (padding > 2 || (padding && (digits + padding) % 4) || digits % 4 == 1)
        valid = 0;
    if (digits % 4 == 2) {
        data[size++] = group >> 4;
    } else if (digits % 4 == 3) {
        data[size++] = group >> 10;
        data[size++] = group >> 2;
    }
    if (!valid) {
        js_free(ctx, data);
        return JS_NULL;
    }
    return JS_NewArrayBuffer(ctx, data, size, free_array, NULL, FALSE);
}

/* Time and chance */

/* random(buffer, offset, length) */
static JSValue host_random(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    Slice range;

    if (get_range(ctx, arguments, &range))
        return JS_EXCEPTION;
    if (__wasi_random_get((uint8_t *)range.data, range.length))
        return JS_ThrowInternalError(ctx, "the host has no random numbers");
    return JS_UNDEFINED;
}

/* monotonic(): milliseconds */
static JSValue host_monotonic(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    __wasi_timestamp_t now = 0;

    __wasi_clock_time_get(__WASI_CLOCKID_MONOTONIC, 1000, &now);
    return JS_NewFloat64(ctx, now / 1e6);
}

/* sleep(milliseconds) */
static JSValue host_sleep(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    double milliseconds;
    __wasi_subscription_t subscription = {0};
    __wasi_event_t event;
    __wasi_size_t events;

    if (JS_ToFloat64(ctx, &milliseconds, arguments[0]))
        return JS_EXCEPTION;
    if (!(milliseconds > 0))
        return JS_UNDEFINED;
    subscription.u.tag = __WASI_EVENTTYPE_CLOCK;
    subscription.u.u.clock.id = __WASI_CLOCKID_MONOTONIC;
    subscription.u.u.clock.timeout = milliseconds * 1e6;
    if (__wasi_poll_oneoff(&subscription, &event, 1, &events))
        return JS_ThrowInternalError(ctx, "the host cannot wait");
    return JS_UNDEFINED;
}

/* HTTP */

static int get_length(JSContext *ctx, JSValueConst array, uint32_t *length)
{
    JSValue value = JS_GetPropertyStr(ctx, array, "length");
    int failed = JS_ToUint32(ctx, length, value);

    JS_FreeValue(ctx, value);
    return failed;
}

static JSValue to_array_buffer(JSContext *ctx, Slice data)
{
    return JS_NewArrayBufferCopy(ctx, data.data, data.length);
}

/* Text of a host's list; a header's value may be no UTF-8. */
static JSValue to_text(JSContext *ctx, Slice data)
{
    if (is_utf8(data.data, data.length))
        return JS_NewStringLen(ctx, (const char *)data.data, data.length);
    return JS_NewString(ctx, "\xEF\xBF\xBD");
}

/* send(method, uri, [name, value, ...], body): [status, [name, value, ...], body?], or
 * [error, message]. method, error: numbers of http.wit. body: ArrayBuffer or null. */
static JSValue host_send(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    int32_t method;
    uint32_t texts = 0, i;
    size_t length, body_length = 0;
    uint8_t *body = NULL;
    const char *uri;
    Slice *list;
    HttpResult result;
    JSValue answer = JS_EXCEPTION, headers;

    if (JS_ToInt32(ctx, &method, arguments[0]) || get_length(ctx, arguments[2], &texts))
        return JS_EXCEPTION;
    if (!JS_IsNull(arguments[3]) && !(body = JS_GetArrayBuffer(ctx, &body_length, arguments[3])))
        return JS_EXCEPTION;
    if (texts > MAX_HEADERS * 2)
        return JS_ThrowRangeError(ctx, "more than %d headers", MAX_HEADERS);
    if (!(uri = to_bytes(ctx, arguments[1], &length)))
        return JS_EXCEPTION;
    if (!(list = js_mallocz(ctx, (texts + 1) * sizeof *list)))
        goto done;
    for (i = 0; i < texts; i++) {
        JSValue text = JS_GetPropertyUint32(ctx, arguments[2], i);
        size_t size;

        list[i].data = (const uint8_t *)to_bytes(ctx, text, &size);
        list[i].length = size;
        JS_FreeValue(ctx, text);
        if (!list[i].data)
            goto done;
    }
    memset(&result, 0, sizeof result);
    send_http_request(body != NULL, body, body_length, (Header *)list, texts / 2, method, NULL, 0,
                      uri, length, &result);
    answer = JS_NewArray(ctx);
    if (JS_IsException(answer))
        goto done;
    if (result.failed) {
        JS_SetPropertyUint32(ctx, answer, 0, JS_NewInt32(ctx, result.failure.error));
        JS_SetPropertyUint32(ctx, answer, 1, to_text(ctx, result.failure.message));
        free((void *)result.failure.message.data);
        goto done;
    }
    headers = JS_NewArray(ctx);
    for (i = 0; i < result.response.header_count; i++) {
        Header *header = &result.response.headers[i];

        JS_SetPropertyUint32(ctx, headers, i * 2, to_text(ctx, header->name));
        JS_SetPropertyUint32(ctx, headers, i * 2 + 1, to_text(ctx, header->value));
        free((void *)header->name.data);
        free((void *)header->value.data);
    }
    free(result.response.headers);
    JS_SetPropertyUint32(ctx, answer, 0, JS_NewInt32(ctx, result.response.status));
    JS_SetPropertyUint32(ctx, answer, 1, headers);
    if (result.response.has_body) {
        JS_SetPropertyUint32(ctx, answer, 2, to_array_buffer(ctx, result.response.body));
        free((void *)result.response.body.data);
    }
done:
    for (i = 0; list && i < texts; i++)
        if (list[i].data)
            JS_FreeCString(ctx, (const char *)list[i].data);
    js_free(ctx, list);
    JS_FreeCString(ctx, uri);
    return answer;
}

/* Modules */

/* Open a file below a preopened directory whose path begins `path`; return a descriptor or -1. */
static int open_file(const char *path)
{
    __wasi_fd_t fd, file;
    __wasi_prestat_t prestat;
    char directory[MAX_PATH_BYTES];

    for (fd = 3; __wasi_fd_prestat_get(fd, &prestat) == 0; fd++) {
        size_t length = prestat.u.dir.pr_name_len;
        const char *rest = path;

        if (length >= sizeof directory || __wasi_fd_prestat_dir_name(fd, (uint8_t *)directory, length))
            continue;
        while (length && directory[length - 1] == '/')
            length--;
        directory[length] = 0;
        if (strcmp(directory, ".")) {
            if (strncmp(path, directory, length) || path[length] != '/')
                continue;
            rest = path + length;
        }
        while (*rest == '/')
            rest++;
        if (__wasi_path_open(fd, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, rest, 0, __WASI_RIGHTS_FD_READ,
                             0, 0, &file) == 0)
            return file;
    }
    return -1;
}

/* Return a file's bytes and a NUL, or null. */
static char *read_file(const char *path, size_t *length)
{
    int fd = open_file(path);
    char *data = fd < 0 ? NULL : malloc(MAX_MODULE_BYTES + 1);

    *length = 0;
    while (data) {
        __wasi_iovec_t vector = {(uint8_t *)data + *length, MAX_MODULE_BYTES + 1 - *length};
        __wasi_size_t size = 0;

        if (__wasi_fd_read(fd, &vector, 1, &size) || *length + size > MAX_MODULE_BYTES) {
            free(data);
            data = NULL;
        } else if (!size) {
            data[*length] = 0;
            break;
        }
        *length += size;
    }
    if (fd >= 0)
        __wasi_fd_close(fd);
    return data;
}

/* Give a module its `import.meta.url`. */
static void set_meta(JSContext *ctx, JSModuleDef *module, const char *name)
{
    JSValue meta = JS_GetImportMeta(ctx, module), url, prefix;

    if (JS_IsException(meta))
        return;
    prefix = JS_NewString(ctx, "file://");
    url = JS_ConcatString(ctx, prefix, JS_NewString(ctx, name));
    if (!JS_IsException(url))
        JS_DefinePropertyValueStr(ctx, meta, "url", url, JS_PROP_C_W_E);
    JS_FreeValue(ctx, meta);
}

/* Resolve `./x` and `../x` by the importing module's path. */
static char *resolve_module(JSContext *ctx, const char *importer, const char *name, void *opaque)
{
    const char *slash = strrchr(importer, '/');
    size_t length = 0, part;
    char *path;

    if (name[0] != '.' && name[0] != '/') {
        JS_ThrowReferenceError(
            ctx, "cannot import '%s': there are no packages here, only files by a relative path"
                 " such as './library.js'; bundle the worker into one file", name);
        return NULL;
    }
    if (!(path = js_malloc(ctx, strlen(importer) + strlen(name) + 2)))
        return NULL;
    if (name[0] == '.' && slash) {
        length = slash - importer;
        memcpy(path, importer, length);
    }
    for (; *name; name += part) {
        while (*name == '/')
            name++;
        part = strcspn(name, "/");
        if (part == 2 && !strncmp(name, "..", 2)) {
            while (length && path[--length] != '/')
                continue;
        } else if (part && !(part == 1 && *name == '.')) {
            path[length++] = '/';
            memcpy(path + length, name, part);
            length += part;
        }
    }
    path[length] = 0;
    return path;
}

static JSModuleDef *load_module(JSContext *ctx, const char *name, void *opaque)
{
    size_t length;
    char *source = read_file(name, &length);
    JSValue module;

    if (!source) {
        JS_ThrowReferenceError(
            ctx, "cannot import '%s': no such file of at most 4 MiB in a folder that the worker"
                 " may read; give it the folder ([[folders]]), or bundle the worker into one file",
            name);
        return NULL;
    }
    module = JS_Eval(ctx, source, length, name, JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
    free(source);
    if (JS_IsException(module))
        return NULL;
    set_meta(ctx, JS_VALUE_GET_PTR(module), name);
    JS_FreeValue(ctx, module);
    return JS_VALUE_GET_PTR(module);
}

/* What `compile` made and `run` has not run yet. */
static JSValue compiled = JS_UNDEFINED;

/* compile(name, source, isModule) */
static JSValue host_compile(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    size_t length;
    const char *name = JS_ToCString(ctx, arguments[0]), *source = NULL;
    int is_module = JS_ToBool(ctx, arguments[2]);
    JSValue code = JS_EXCEPTION;

    if (name && (source = to_bytes(ctx, arguments[1], &length)))
        code = JS_Eval(ctx, source, length, name,
                       (is_module ? JS_EVAL_TYPE_MODULE : JS_EVAL_TYPE_GLOBAL) |
                           JS_EVAL_FLAG_COMPILE_ONLY);
    if (is_module && !JS_IsException(code))
        set_meta(ctx, JS_VALUE_GET_PTR(code), name);
    if (name)
        JS_FreeCString(ctx, name);
    if (source)
        JS_FreeCString(ctx, source);
    if (JS_IsException(code))
        return code;
    JS_FreeValue(ctx, compiled);
    compiled = code;
    return JS_UNDEFINED;
}

/* run(): a module's namespace, or what a script's last statement gives. */
static JSValue host_run(JSContext *ctx, JSValueConst self, int count, JSValueConst *arguments)
{
    JSValue code = compiled, result;
    JSModuleDef *module = NULL;

    if (JS_VALUE_GET_TAG(code) == JS_TAG_MODULE)
        module = JS_VALUE_GET_PTR(code);
    compiled = JS_UNDEFINED;
    result = JS_EvalFunction(ctx, code);
    if (!module || JS_IsException(result))
        return result;
    JS_FreeValue(ctx, result);
    return js_get_module_ns(ctx, module);
}

/* The prelude's functions */

static const JSCFunctionListEntry host_functions[] = {
    JS_CFUNC_DEF("write", 2, host_write),
    JS_CFUNC_DEF("encode", 1, host_encode),
    JS_CFUNC_DEF("decode", 4, host_decode),
    JS_CFUNC_DEF("incomplete", 3, host_incomplete),
    JS_CFUNC_DEF("wellFormed", 1, host_well_formed),
    JS_CFUNC_DEF("toBase64", 3, host_to_base64),
    JS_CFUNC_DEF("fromBase64", 1, host_from_base64),
    JS_CFUNC_DEF("random", 3, host_random),
    JS_CFUNC_DEF("monotonic", 0, host_monotonic),
    JS_CFUNC_DEF("sleep", 1, host_sleep),
    JS_CFUNC_DEF("send", 4, host_send),
    JS_CFUNC_DEF("compile", 3, host_compile),
    JS_CFUNC_DEF("run", 0, host_run),
};

/* Print the pending exception: what, and where. The prelude does it; this is for when it cannot. */
static void print_exception(const char *what)
{
    JSValue exception = JS_GetException(context), stack;
    const char *text = JS_ToCString(context, exception);

    complain(what);
    complain(text ? text : "an exception that has no text");
    complain("\n");
    if (text)
        JS_FreeCString(context, text);
    else
        JS_FreeValue(context, JS_GetException(context));
    if (JS_IsError(context, exception)) {
        stack = JS_GetPropertyStr(context, exception, "stack");
        if (JS_IsString(stack) && (text = JS_ToCString(context, stack))) {
            complain(text);
            JS_FreeCString(context, text);
        }
        JS_FreeValue(context, stack);
    }
    JS_FreeValue(context, exception);
}

static JSValue call_prelude(const char *name, int count, JSValueConst *arguments)
{
    JSValue function = JS_GetPropertyStr(context, prelude, name), result;

    result = JS_Call(context, function, JS_UNDEFINED, count, arguments);
    JS_FreeValue(context, function);
    return result;
}

static void note_rejection(JSContext *ctx, JSValueConst promise, JSValueConst reason,
                           JS_BOOL is_handled, void *opaque)
{
    JSValueConst arguments[] = {promise, reason, JS_NewBool(ctx, is_handled)};

    JS_FreeValue(ctx, call_prelude("rejected", 3, arguments));
}

/* Run promise jobs until there are none. */
static void run_jobs(void)
{
    JSContext *ctx;
    int more;

    do {
        more = JS_ExecutePendingJob(runtime, &ctx);
        if (more < 0)
            print_exception("Uncaught ");
    } while (more);
}

/* The host's functions */

EXPORT("_initialize") void _initialize(void)
{
    if (runtime)
        return;
    __wasm_call_ctors();
    runtime = JS_NewRuntime2(&memory_functions, NULL);
    JS_SetMaxStackSize(runtime, STACK_BYTES);
    JS_SetGCThreshold(runtime, COLLECT_AFTER_BYTES);
    JS_SetModuleLoaderFunc(runtime, resolve_module, load_module, NULL);
    context = JS_NewContext(runtime);
    /* QuickJS takes the time, and a build shall give the same bytes whenever it is. */
    context->random_state = 1;
}

/* Any but zero, from which QuickJS's generator does not move. */
static void seed_random(void)
{
    __wasi_random_get((uint8_t *)&context->random_state, sizeof context->random_state);
    context->random_state |= 1;
}

/* Take what is free between objects, for good: what a worker and a request allocate then lies
 * together, and fewer pages are copied. */
static void fill_gaps(void)
{
    char *end = malloc(1 << 16), *memory;
    size_t size;

    for (size = 1 << 15; size >= 16; size = size > 256 ? size / 2 : size - 8) {
        while ((memory = malloc(size)) && memory < end)
            continue;
        free(memory);
    }
    free(end);
}

/* Make whole free pages zero: then they cost nothing, in the module and in snapshots. */
static __attribute__((noinline)) void clear_free_memory(void)
{
    enum { STEP = 4096, HEADER = 8, RUNS = 256, EDGE = 64 };
    struct {
        char *start, *last;
    } runs[RUNS];
    char *end = sbrk(0), *memory;
    void **taken = NULL, **next;
    int count = 0, i;

    do {
        if (!(memory = malloc(STEP - HEADER)))
            break;
        next = (void **)memory;
        *next = taken;
        taken = next;
        if (count && runs[count - 1].last + STEP == memory)
            runs[count - 1].last = memory;
        else if (count < RUNS)
            runs[count].start = runs[count].last = memory, count++;
        /* Free chunks are taken first, the end of the heap last: stop before it grows. */
    } while (end - memory > 3 * STEP);
    for (; taken; taken = next) {
        next = *taken;
        free(taken);
    }
    /* A free chunk's first words and its last are dlmalloc's; nothing between is read again. */
    for (i = 0; i < count; i++)
        memset(runs[i].start + EDGE, 0, runs[i].last - runs[i].start + STEP - HEADER - 2 * EDGE);
}

/* Evaluate prelude.js; 0 if that went well. */
EXPORT("prepare") int prepare(char *source, size_t length)
{
    JSValue function, host;

    JS_UpdateStackTop(runtime);
    source[length] = 0;
    function = JS_Eval(context, source, length, "prelude.js", 0);
    free(source);
    host = JS_NewObject(context);
    JS_SetPropertyFunctionList(context, host, host_functions, countof(host_functions));
    prelude = JS_IsException(function)
                  ? function
                  : JS_Call(context, function, JS_UNDEFINED, 1, (JSValueConst *)&host);
    if (JS_IsException(prelude)) {
        print_exception("");
        return 1;
    }
    JS_FreeValue(context, function);
    JS_FreeValue(context, host);
    JS_SetHostPromiseRejectionTracker(runtime, note_rejection, NULL);
    JS_RunGC(runtime);
    fill_gaps();
    clear_free_memory();
    return 0;
}

/* Return an object of the environment's variables. */
static JSValue get_environment(void)
{
    __wasi_size_t count = 0, size = 0, i;
    uint8_t **entries, *text;
    JSValue result = JS_NewObject(context);

    if (__wasi_environ_sizes_get(&count, &size) || !count)
        return result;
    entries = malloc(count * sizeof *entries);
    text = malloc(size);
    if (entries && text && !__wasi_environ_get(entries, text)) {
        for (i = 0; i < count; i++) {
            char *equals = strchr((char *)entries[i], '=');

            if (!equals)
                continue;
            *equals = 0;
            JS_SetPropertyStr(context, result, (char *)entries[i],
                              to_text(context, (Slice){(uint8_t *)equals + 1, strlen(equals + 1)}));
        }
    }
    free(entries);
    free(text);
    return result;
}

/* Dead frames would be pages of the snapshot. */
static __attribute__((noinline)) void clear_stack(void)
{
    char *top = __builtin_frame_address(0), *bottom = (char *)runtime->stack_top - STACK_BYTES;

    if (top - 256 > bottom)
        memset(bottom, 0, top - 256 - bottom);
}

EXPORT("load")
int load(char *name, size_t name_length, char *source, size_t source_length)
{
    JSValue arguments[3], result;
    int failed = 1;

    JS_UpdateStackTop(runtime);
    seed_random();
    arguments[0] = to_text(context, (Slice){(uint8_t *)name, name_length});
    arguments[1] = JS_NULL;
    if (is_utf8((uint8_t *)source, source_length))
        arguments[1] = JS_NewStringLen(context, source, source_length);
    arguments[2] = get_environment();
    free(name);
    free(source);
    result = call_prelude("load", 3, (JSValueConst *)arguments);
    if (JS_IsException(result))
        print_exception("");
    else if (JS_ToBool(context, result)) {
        run_jobs();
        JS_FreeValue(context, result);
        result = call_prelude("loaded", 0, NULL);
        if (JS_IsException(result))
            print_exception("");
        else
            failed = !JS_ToBool(context, result);
    }
    JS_FreeValue(context, result);
    for (int i = 0; i < 3; i++)
        JS_FreeValue(context, arguments[i]);
    JS_SetGCThreshold(runtime, runtime->malloc_state.malloc_size + COLLECT_AFTER_BYTES);
    clear_free_memory();
    clear_stack();
    return failed;
}

static uint8_t *put(uint8_t *to, const char *text, size_t length)
{
    memcpy(to, text, length);
    return to + length;
}

/* Write a string's UTF-8 as JSON's, at most six bytes for one. */
static uint8_t *put_json(uint8_t *to, const uint8_t *from, size_t length)
{
    static const char hexadecimal[] = "0123456789abcdef";
    const uint8_t *end = from + length;

    while (from < end) {
        uint8_t c = *from;

        if (c == '"' || c == '\\') {
            *to++ = '\\';
            *to++ = c;
        } else if (c < 0x20) {
            to = put(to, "\\u00", 4);
            *to++ = hexadecimal[c >> 4];
            *to++ = hexadecimal[c & 15];
        } else if (c == 0xED && is_surrogate(from, end)) {
            to = put(to, "\xEF\xBF\xBD", 3);
            from += 2;
        } else {
            *to++ = c;
        }
        from++;
    }
    return to;
}

static uint64_t json_size(const uint8_t *data, size_t length)
{
    uint64_t size = length;
    size_t i;

    for (i = 0; i < length; i++)
        size += data[i] < 0x20 ? 5 : data[i] == '"' || data[i] == '\\';
    return size;
}

/* The response's JSON: `data`, and the members that `rest`, an object's JSON, has. */
static Slice *write_response(JSValueConst data, JSValueConst rest)
{
    static Slice response;
    size_t length = 0, rest_length;
    uint64_t size;
    const char *text = NULL, *members = to_bytes(context, rest, &rest_length);
    const uint8_t *bytes;
    uint8_t *json, *p;
    int base64 = 0;

    if (!members)
        return NULL;
    if (rest_length < 3 || members[0] != '{') {
        JS_ThrowTypeError(context, "the response is no object");
        return NULL;
    }
    if (JS_IsString(data))
        bytes = (const uint8_t *)(text = to_bytes(context, data, &length));
    else
        bytes = JS_GetArrayBuffer(context, &length, data);
    if (!bytes)
        return NULL;
    size = json_size(bytes, length);
    if (!text && (size > base64_size(length) || !is_utf8(bytes, length))) {
        base64 = 1;
        size = base64_size(length);
    }
    size += rest_length + 64;
    if (size > SIZE_MAX / 2 || !(json = malloc(size))) {
        JS_ThrowOutOfMemory(context);
        return NULL;
    }
    p = put(json, "{\"data\":\"", 9);
    if (base64) {
        p += encode_base64(p, bytes, length);
        p = put(p, "\",\"base64\":true,", 16);
    } else {
        p = put_json(p, bytes, length);
        p = put(p, "\",", 2);
    }
    p = put(p, members + 1, rest_length - 1);
    response = (Slice){json, p - json};
    return &response;
}

EXPORT("handle") Slice *handle(char *request, size_t length)
{
    static Slice *response;
    JSValue value, data, rest;
    int32_t more = 1;

    JS_UpdateStackTop(runtime);
    response = NULL;
    seed_random();
    request[length] = 0;
    value = JS_ParseJSON(context, request, length, "request");
    free(request);
    if (JS_IsException(value)) {
        print_exception("the host's request is no JSON: ");
        return NULL;
    }
    data = call_prelude("dispatch", 1, (JSValueConst *)&value);
    JS_FreeValue(context, value);
    while (!JS_IsException(data) && more) {
        JS_FreeValue(context, data);
        run_jobs();
        data = call_prelude("advance", 0, NULL);
        if (!JS_IsException(data) && JS_ToInt32(context, &more, data))
            data = JS_EXCEPTION;
    }
    if (!JS_IsException(data)) {
        JS_FreeValue(context, data);
        value = call_prelude("finish", 0, NULL);
        if (JS_IsNull(value))
            return NULL;
        if (!JS_IsException(value)) {
            data = JS_GetPropertyUint32(context, value, 0);
            rest = JS_GetPropertyUint32(context, value, 1);
            response = write_response(data, rest);
            JS_FreeValue(context, data);
            JS_FreeValue(context, rest);
            JS_FreeValue(context, value);
        }
    }
    if (!response)
        print_exception("");
    return response;
}
