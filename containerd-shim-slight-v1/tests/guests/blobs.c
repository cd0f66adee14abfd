/* Does with blobs what the path says: /OPERATION/CONTAINER/OBJECT/. */
#include <stdio.h>

#include "slight.h"

SLIGHT_IMPORT("blob-store", "container::open")
void container_open(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("blob-store", "container::name")
void container_name(uint32_t, struct slight_result *);
SLIGHT_IMPORT("blob-store", "container::info")
void container_info(uint32_t, void *);
SLIGHT_IMPORT("blob-store", "container::read-object")
void read_object(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("blob-store", "container::write-object")
void write_object(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("blob-store", "container::list-objects")
void list_objects(uint32_t, struct slight_result *);
SLIGHT_IMPORT("blob-store", "container::delete-object")
void delete_object(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("blob-store", "container::delete-objects")
void delete_objects(uint32_t, const struct slight_string *, size_t, struct slight_result *);
SLIGHT_IMPORT("blob-store", "container::has-object")
void has_object(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("blob-store", "container::object-info")
void object_info(uint32_t, SLIGHT_TEXT, void *);
SLIGHT_IMPORT("blob-store", "container::clear")
void clear(uint32_t, struct slight_result *);
SLIGHT_IMPORT("blob-store", "write-stream::write")
void stream_write(uint32_t, const void *, size_t, struct slight_result *);
SLIGHT_IMPORT("blob-store", "write-stream::close")
void stream_close(uint32_t, struct slight_result *);
SLIGHT_IMPORT("blob-store", "read-stream::read")
void stream_read(uint32_t, uint64_t, struct slight_result *);
SLIGHT_IMPORT("blob-store", "read-stream::available")
void stream_available(uint32_t, void *);
SLIGHT_IMPORT("canonical_abi", "resource_drop_container")
void container_drop(uint32_t);
SLIGHT_IMPORT("canonical_abi", "resource_drop_write-stream")
void write_stream_drop(uint32_t);
SLIGHT_IMPORT("canonical_abi", "resource_drop_read-stream")
void read_stream_drop(uint32_t);

/* Results with a u64: they begin at 8, as do their errors. */
struct wide_result {
  uint8_t is_error;
  union {
    _Alignas(8) uint64_t number;
    struct {
      struct slight_string name;
      uint64_t created_at;
    } container;
    struct {
      struct slight_string name, container;
      uint64_t created_at, size;
    } object;
    struct {
      uint8_t code;
      struct slight_string text;
    } error;
  };
};

/* Of ``read``. */
struct read_result {
  uint8_t is_error;
  union {
    struct {
      uint8_t some;
      struct slight_string data;
    } ok;
    struct {
      uint8_t code;
      struct slight_string text;
    } error;
  };
};

const char *slight_init(void) {
  struct slight_result result;
  slight_router_new_(&result);
  SLIGHT_ROUTE(&result, get, "/:operation/:container/*", "work");
  SLIGHT_ROUTE(&result, put, "/:operation/:container/*", "work");
  slight_serve_(SLIGHT_STRING("127.0.0.1:0"), result.handle, &result);
  return result.is_error ? result.error.text.data : NULL;
}

static bool refuse(struct slight_response *response, bool is_error, struct slight_string text) {
  if (is_error) slight_answer(response, 418, text.data, text.size);
  return is_error;
}

static bool failed(struct slight_response *response, const struct slight_result *result) {
  return refuse(response, result->is_error, result->error.text);
}

static void answer_format(struct slight_response *response, const char *format, uint64_t first,
                          uint64_t second) {
  static char buffer[64];
  snprintf(buffer, sizeof buffer, format, first, second);
  slight_answer(response, 200, buffer, strlen(buffer));
}

/* Writes the body in pieces; how it ends is what the path says. */
static bool write_all(const struct slight_request *request, struct slight_response *response,
                      uint32_t container, const char *name, uint32_t *stream) {
  struct slight_result result;
  write_object(container, SLIGHT_STRING(name), &result);
  if (failed(response, &result)) return false;
  *stream = result.handle;
  size_t half = request->body.size / 2;
  if (request->body.size == 0) return true;
  stream_write(*stream, request->body.data, half, &result);
  if (failed(response, &result)) return false;
  stream_write(*stream, request->body.data + half, request->body.size - half, &result);
  return !failed(response, &result);
}

static void read_all(struct slight_response *response, uint32_t container, const char *name,
                     uint64_t piece) {
  struct slight_result result;
  struct wide_result left;
  struct read_result part;
  read_object(container, SLIGHT_STRING(name), &result);
  if (failed(response, &result)) return;
  uint32_t stream = result.handle;
  stream_available(stream, &left);
  if (refuse(response, left.is_error, left.error.text)) return;
  size_t size = left.number, at = 0;
  char *content = malloc(size + 1);
  for (;;) {
    stream_read(stream, piece, (struct slight_result *)&part);
    if (refuse(response, part.is_error, part.error.text)) return;
    if (!part.ok.some) break;
    if (at + part.ok.data.size > size) abort();
    memcpy(content + at, part.ok.data.data, part.ok.data.size);
    at += part.ok.data.size;
    stream_available(stream, &left);
    if (left.is_error || left.number != size - at) abort();
    free(part.ok.data.data);
  }
  read_stream_drop(stream);
  slight_answer(response, 200, content, at);
}

static void work_on(const struct slight_request *request, struct slight_response *response,
                    const char *operation, uint32_t container, const char *name) {
  struct slight_result result = {0};
  struct wide_result wide;
  uint32_t stream = 0;
#define IS(what) (strcmp(operation, what) == 0)
  if (IS("put")) {
    if (!write_all(request, response, container, name, &stream)) return;
    stream_close(stream, &result);
  } else if (IS("drop")) {
    if (!write_all(request, response, container, name, &stream)) return;
    write_stream_drop(stream);
  } else if (IS("leave")) {
    if (!write_all(request, response, container, name, &stream)) return;
  } else if (IS("trap")) {
    if (!write_all(request, response, container, name, &stream)) return;
    abort();
  } else if (IS("forever")) {
    if (!write_all(request, response, container, name, &stream)) return;
    for (volatile int i = 0;; i++) continue;
  } else if (IS("reread")) {
    if (!write_all(request, response, container, name, &stream)) return;
    read_all(response, container, name, 1 << 20);
    return;
  } else if (IS("closed")) {
    if (!write_all(request, response, container, name, &stream)) return;
    stream_close(stream, &result);
    stream_write(stream, "x", 1, &result);
  } else if (IS("many")) {
    while (!result.is_error) write_object(container, SLIGHT_STRING(name), &result);
  } else if (IS("get")) {
    read_all(response, container, name, UINT64_MAX);
    return;
  } else if (IS("pieces")) {
    read_all(response, container, name, 1000);
    return;
  } else if (IS("has")) {
    has_object(container, SLIGHT_STRING(name), &result);
    if (failed(response, &result)) return;
    /* A bool lies where a handle would, but is one byte. */
    answer_format(response, "%llu", result.handle & 0xff, 0);
    return;
  } else if (IS("info")) {
    object_info(container, SLIGHT_STRING(name), &wide);
    if (refuse(response, wide.is_error, wide.error.text)) return;
    if (strcmp(wide.object.name.data, name) != 0) abort();
    answer_format(response, "%llu %llu", wide.object.created_at, wide.object.size);
    return;
  } else if (IS("container")) {
    container_name(container, &result);
    if (failed(response, &result)) return;
    container_info(container, &wide);
    if (refuse(response, wide.is_error, wide.error.text)) return;
    if (strcmp(wide.container.name.data, result.content.data) != 0) abort();
    answer_format(response, "%llu", wide.container.created_at, 0);
    return;
  } else if (IS("list")) {
    list_objects(container, &result);
    if (failed(response, &result)) return;
    const struct slight_string *names = (const struct slight_string *)result.content.data;
    size_t size = 0;
    for (size_t i = 0; i < result.content.size; i++) size += names[i].size + 1;
    char *list = malloc(size + 1), *at = list;
    for (size_t i = 0; i < result.content.size; i++) at += sprintf(at, "%s\n", names[i].data);
    slight_answer(response, 200, list, size);
    return;
  } else if (IS("delete")) {
    delete_object(container, SLIGHT_STRING(name), &result);
  } else if (IS("delete-all")) { /* the lines of the body */
    struct slight_string *names = calloc(request->body.size, sizeof *names);
    size_t count = 0;
    for (char *line = strtok(request->body.data, "\n"); line; line = strtok(NULL, "\n"))
      names[count++] = (struct slight_string){line, strlen(line)};
    delete_objects(container, names, count, &result);
  } else if (IS("clear")) {
    clear(container, &result);
  }
  if (!failed(response, &result)) response->status = 204;
}

SLIGHT_HANDLER("work", work) {
  struct slight_result result;
  container_open(SLIGHT_STRING(slight_param(request, "container")), &result);
  if (failed(response, &result)) return;
  uint32_t container = result.handle;
  work_on(request, response, slight_param(request, "operation"), container,
          slight_param(request, "*"));
  container_drop(container);
}
