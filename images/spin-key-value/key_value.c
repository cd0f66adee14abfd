/* A component of Spin 1.x that keeps values in its key-value store, in C.
 *
 *   GET    /KEY   the value, 404 if there is none
 *   HEAD   /KEY   200 or 404
 *   PUT    /KEY   keeps the body
 *   DELETE /KEY   removes it
 *   GET    /      all keys, one a line
 *
 * A call to the host is declared with the flat arguments of the ABI: a string or list is a pointer and
 * a length, the last argument is where the result goes.
 */
#include "spin.h"

#include <stdio.h>

#define KEY_VALUE(name) __attribute__((import_module("key-value"), import_name(name)))

/* The first byte says whether it is an error. At 4 is the value, or the error's case, and at 8 the
 * text of the last of those. */
struct result {
  uint8_t is_error;
  union {
    uint32_t store;
    bool exists;
    struct spin_string value;
    struct {
      struct spin_string *items;
      size_t count;
    } keys;
    struct {
      uint8_t which;
      struct spin_string text;
    } error;
  };
};
_Static_assert(sizeof(struct result) == 16, "the ABI's result");

enum { NO_SUCH_KEY = 4, IO = 5 };

KEY_VALUE("open") void kv_open(const char *name, size_t size, struct result *);
KEY_VALUE("get") void kv_get(uint32_t store, const char *key, size_t size, struct result *);
KEY_VALUE("set")
void kv_set(uint32_t store, const char *key, size_t size, const char *value, size_t value_size,
            struct result *);
KEY_VALUE("delete") void kv_delete(uint32_t store, const char *key, size_t size, struct result *);
KEY_VALUE("exists") void kv_exists(uint32_t store, const char *key, size_t size, struct result *);
KEY_VALUE("get-keys") void kv_get_keys(uint32_t store, struct result *);

/* Whether a call has worked; if not, the response is 404 for a key without value, or else 500. */
static bool worked(const struct result *result, struct spin_response *response) {
  if (!result->is_error) return true;
  if (result->error.which == NO_SUCH_KEY) {
    spin_answer(response, 404, "no such key\n");
    return false;
  }
  char text[600];
  struct spin_string reason = result->error.text;
  if (result->error.which != IO) reason = (struct spin_string){"", 0};
  snprintf(text, sizeof text, "error %d %.*s\n", result->error.which, (int)reason.size, reason.data);
  spin_answer(response, 500, text);
  return false;
}

static void list_keys(uint32_t store, struct spin_response *response) {
  struct result result;
  kv_get_keys(store, &result);
  if (!worked(&result, response)) return;
  size_t size = 0;
  for (size_t i = 0; i < result.keys.count; i++) size += result.keys.items[i].size + 1;
  char *text = malloc(size), *end = text;
  if (text == NULL) abort();
  for (size_t i = 0; i < result.keys.count; i++) {
    struct spin_string key = result.keys.items[i];
    memcpy(end, key.data, key.size);
    end += key.size;
    *end++ = '\n';
  }
  spin_set_body(response, text, size);
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  const char *key = request->uri.data + 1;
  size_t size = strcspn(key, "?");
  struct result result;
  kv_open("default", strlen("default"), &result);
  if (!worked(&result, response)) return;
  uint32_t store = result.store;

  if (size == 0 && request->method == SPIN_GET) {
    list_keys(store, response);
    return;
  }
  switch (request->method) {
    case SPIN_GET:
      kv_get(store, key, size, &result);
      if (worked(&result, response))
        spin_set_body(response, result.value.data, result.value.size);
      break;
    case SPIN_HEAD:
      kv_exists(store, key, size, &result);
      if (worked(&result, response) && !result.exists) response->status = 404;
      break;
    case SPIN_PUT:
      kv_set(store, key, size, request->body.data, request->body.size, &result);
      if (worked(&result, response)) spin_answer(response, 200, "kept\n");
      break;
    case SPIN_DELETE:
      kv_delete(store, key, size, &result);
      if (worked(&result, response)) spin_answer(response, 200, "removed\n");
      break;
    default:
      response->status = 405;
  }
}
