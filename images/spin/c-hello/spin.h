/* The Spin 1.x ABI for HTTP components, in one header without an SDK.
 *
 * Include it in exactly one .c file and define spin_handle() there. Build without start files, as
 * a Spin host calls neither _start nor _initialize:
 *
 *     clang --target=wasm32-wasi -Os -nostartfiles -Wl,--no-entry,--strip-all -o app.wasm app.c
 *
 * A new instance of the module serves each request, so a handler may leave its memory behind.
 */
#ifndef SPIN_H
#define SPIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum spin_method {
  SPIN_GET,
  SPIN_POST,
  SPIN_PUT,
  SPIN_DELETE,
  SPIN_PATCH,
  SPIN_HEAD,
  SPIN_OPTIONS,
};

/* In a request a NUL follows the last byte, beyond size: data is a C string, too. */
struct spin_string {
  char *data;
  size_t size;
};

struct spin_header {
  struct spin_string name, value;
};

struct spin_request {
  enum spin_method method;
  struct spin_string uri; /* path and query */
  struct spin_header *headers;
  size_t header_count;
  struct spin_string body;
};

/* Read by the host in this layout. Every pointer in it comes from malloc(): the host copies the
 * parts and releases each with canonical_abi_free(). */
struct spin_response {
  uint16_t status;
  struct {
    bool present;
    struct spin_header *items;
    size_t count;
  } headers;
  struct {
    bool present;
    struct spin_string content;
  } body;
};
_Static_assert(sizeof(struct spin_header) == 16, "the ABI's header");
_Static_assert(offsetof(struct spin_response, headers) == 4, "the ABI's response");
_Static_assert(offsetof(struct spin_response, body) == 16, "the ABI's response");
_Static_assert(sizeof(struct spin_response) == 28, "the ABI's response");

/* The app. The response begins as status 200 without headers or body. */
void spin_handle(const struct spin_request *request, struct spin_response *response);

/* ---- For handlers ---- */

/* The value of the first header of this name (any case), or NULL. */
static inline const char *spin_request_header(const struct spin_request *request,
                                              const char *name) {
  for (size_t i = 0; i < request->header_count; i++)
    if (strcasecmp(request->headers[i].name.data, name) == 0)
      return request->headers[i].value.data;
  return NULL;
}

static inline struct spin_string spin_copy(const void *data, size_t size) {
  char *copy = malloc(size + 1);
  if (copy == NULL) abort();
  memcpy(copy, data, size);
  copy[size] = '\0';
  return (struct spin_string){copy, size};
}

static inline void spin_add_header(struct spin_response *response, const char *name,
                                   const char *value) {
  size_t count = response->headers.count + 1;
  struct spin_header *items = realloc(response->headers.items, count * sizeof *items);
  if (items == NULL) abort();
  items[count - 1].name = spin_copy(name, strlen(name));
  items[count - 1].value = spin_copy(value, strlen(value));
  response->headers.items = items;
  response->headers.count = count;
  response->headers.present = true;
}

static inline void spin_set_body(struct spin_response *response, const void *data, size_t size) {
  response->body.content = spin_copy(data, size);
  response->body.present = true;
}

static inline void spin_answer(struct spin_response *response, int status, const char *text) {
  response->status = (uint16_t)status;
  spin_add_header(response, "content-type", "text/plain");
  spin_set_body(response, text, strlen(text));
}

/* ---- For the host ---- */

#define SPIN_EXPORT(name) __attribute__((export_name(name)))

/* Linked without start files, these are ours to call. The constructors open the component's
 * files, the destructors flush stdout. Left out, the linker would wrap every export in both. */
void __wasm_call_ctors(void);
void __wasm_call_dtors(void);

/* Allocates what the host passes in; align is at most 4, which malloc() exceeds. */
SPIN_EXPORT("canonical_abi_realloc")
void *spin_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  (void)old_size, (void)align;
  char *block = realloc(old, new_size + 1);
  if (block == NULL) abort();
  block[new_size] = '\0';
  return block;
}

SPIN_EXPORT("canonical_abi_free")
void spin_free(void *block, size_t size, size_t align) {
  (void)size, (void)align;
  free(block);
}

/* params is always empty in Spin, and body always present. */
SPIN_EXPORT("handle-http-request")
const struct spin_response *spin_handle_http_request(
    uint32_t method, char *uri, size_t uri_size, struct spin_header *headers, size_t header_count,
    void *params, size_t param_count, uint32_t body_present, char *body, size_t body_size) {
  (void)params, (void)param_count;
  static struct spin_response response;
  struct spin_request request = {
      .method = (enum spin_method)method,
      .uri = {uri, uri_size},
      .headers = headers,
      .header_count = header_count,
      .body = {body_present ? body : "", body_present ? body_size : 0},
  };
  response = (struct spin_response){.status = 200};
  __wasm_call_ctors();
  spin_handle(&request, &response);
  __wasm_call_dtors();
  return &response;
}

#endif
