/* The ABI of SpiderLightning 0.4 and 0.5 for HTTP apps, in one header without an SDK.
 *
 * Include it in exactly one .c file, define slight_init() there, and a handler for each route by
 * SLIGHT_HANDLER. Build without start files, as the host calls neither _start nor _initialize:
 *
 *     clang --target=wasm32-wasi -Os -nostartfiles -Wl,--no-entry,--strip-all -o app.wasm app.c
 *
 * A new instance of the module serves each request, so a handler may leave its memory behind.
 */
#ifndef SLIGHT_H
#define SLIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum slight_method {
  SLIGHT_GET,
  SLIGHT_POST,
  SLIGHT_PUT,
  SLIGHT_DELETE,
  SLIGHT_PATCH,
  SLIGHT_HEAD,
  SLIGHT_OPTIONS,
};

/* From the host a NUL follows the last byte, beyond size: data is a C string, too. */
struct slight_string {
  char *data;
  size_t size;
};

struct slight_pair {
  struct slight_string name, value;
};

struct slight_pairs {
  struct slight_pair *items;
  size_t count;
};

struct slight_request {
  enum slight_method method;
  struct slight_string uri; /* path and query */
  struct slight_pairs headers;
  struct slight_pairs params; /* of the route */
  struct slight_string body;
};

/* The errors of http-error; that of SLIGHT_STATUS_ERROR has a status, the others have a text. */
enum slight_error {
  SLIGHT_INVALID_URL,
  SLIGHT_TIMEOUT_ERROR,
  SLIGHT_PROTOCOL_ERROR,
  SLIGHT_STATUS_ERROR,
  SLIGHT_UNEXPECTED_ERROR,
};

/* Read by the host in this layout. */
struct slight_response {
  uint8_t is_error;
  union {
    struct {
      uint16_t status;
      struct {
        bool present;
        struct slight_pairs list;
      } headers;
      struct {
        bool present;
        struct slight_string content;
      } body;
    };
    struct {
      uint8_t code; /* enum slight_error */
      union {
        struct slight_string text;
        uint16_t status;
      };
    } error;
  };
};
_Static_assert(offsetof(struct slight_response, status) == 4, "the ABI's response");
_Static_assert(offsetof(struct slight_response, headers) == 8, "the ABI's response");
_Static_assert(offsetof(struct slight_response, body) == 20, "the ABI's response");
_Static_assert(offsetof(struct slight_response, error.text) == 8, "the ABI's error");
_Static_assert(sizeof(struct slight_response) == 32, "the ABI's result");

#define SLIGHT_EXPORT(name) __attribute__((export_name(name)))
#define SLIGHT_IMPORT(module, name) __attribute__((import_module(module), import_name(name)))

/* Sets the app up: returns NULL, or why it cannot be. */
const char *slight_init(void);

/* ---- The host's functions ---- */

/* What they return: ok with a value or a string, or an error with its code and text. */
struct slight_result {
  uint8_t is_error;
  union {
    uint32_t handle;
    struct slight_string content;
    struct {
      uint8_t code;
      struct slight_string text;
    } error;
  };
};
_Static_assert(offsetof(struct slight_result, error.text) == 8, "the ABI's result");

#define SLIGHT_TEXT const char *, size_t

SLIGHT_IMPORT("http-server", "router::new")
void slight_router_new_(struct slight_result *);
SLIGHT_IMPORT("http-server", "router::new-with-base")
void slight_router_new_with_base_(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("http-server", "router::get")
void slight_router_get_(uint32_t, SLIGHT_TEXT, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("http-server", "router::put")
void slight_router_put_(uint32_t, SLIGHT_TEXT, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("http-server", "router::post")
void slight_router_post_(uint32_t, SLIGHT_TEXT, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("http-server", "router::delete")
void slight_router_delete_(uint32_t, SLIGHT_TEXT, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("http-server", "server::serve")
void slight_serve_(SLIGHT_TEXT, uint32_t, struct slight_result *);
SLIGHT_IMPORT("http-server", "server::stop")
void slight_stop_(uint32_t, struct slight_result *);
SLIGHT_IMPORT("keyvalue", "keyvalue::open")
void slight_keyvalue_open_(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("keyvalue", "keyvalue::get")
void slight_keyvalue_get_(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("keyvalue", "keyvalue::set")
void slight_keyvalue_set_(uint32_t, SLIGHT_TEXT, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("keyvalue", "keyvalue::keys")
void slight_keyvalue_keys_(uint32_t, struct slight_result *);
SLIGHT_IMPORT("keyvalue", "keyvalue::delete")
void slight_keyvalue_delete_(uint32_t, SLIGHT_TEXT, struct slight_result *);

enum slight_keyvalue_error {
  SLIGHT_KEY_NOT_FOUND,
  SLIGHT_INVALID_KEY,
  SLIGHT_INVALID_VALUE,
};

#define SLIGHT_STRING(text) text, strlen(text)

/* Adds a route to the router that is in `result`, and leaves the new router there. */
#define SLIGHT_ROUTE(result, method, path, handler)                                           \
  do {                                                                                        \
    if (!(result)->is_error)                                                                  \
      slight_router_##method##_((result)->handle, SLIGHT_STRING(path), SLIGHT_STRING(handler), \
                                (result));                                                    \
  } while (0)

/* ---- For handlers ---- */

static inline const char *slight_param(const struct slight_request *request, const char *name) {
  for (size_t i = 0; i < request->params.count; i++)
    if (strcmp(request->params.items[i].name.data, name) == 0)
      return request->params.items[i].value.data;
  return NULL;
}

static inline void slight_answer(struct slight_response *response, int status, const void *data,
                                 size_t size) {
  response->status = (uint16_t)status;
  response->body.present = true;
  response->body.content = (struct slight_string){(char *)data, size};
}

/* Answers with the request's headers, as the examples of SpiderLightning do. */
static inline void slight_echo_headers(const struct slight_request *request,
                                       struct slight_response *response) {
  response->headers.present = true;
  response->headers.list = request->headers;
}

static inline void slight_fail(struct slight_response *response, enum slight_error code,
                               struct slight_string text) {
  response->is_error = 1;
  response->error.code = (uint8_t)code;
  response->error.text = text;
}

/* ---- For the host ---- */

/* Linked without start files, these are ours to call. The constructors open the files, the
 * destructors flush stdout. Left out, the linker would wrap every export in both. */
void __wasm_call_ctors(void);
void __wasm_call_dtors(void);

/* Allocates what the host passes in; align is at most 8, which malloc() gives. */
SLIGHT_EXPORT("canonical_abi_realloc")
void *slight_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  (void)old_size, (void)align;
  char *block = realloc(old, new_size + 1);
  if (block == NULL) abort();
  block[new_size] = '\0';
  return block;
}

SLIGHT_EXPORT("canonical_abi_free")
void slight_free(void *block, size_t size, size_t align) {
  (void)size, (void)align;
  free(block);
}

SLIGHT_EXPORT("on-server-init")
const struct slight_result *slight_on_server_init(void) {
  static struct slight_result result;
  __wasm_call_ctors();
  const char *reason = slight_init();
  __wasm_call_dtors();
  result.is_error = reason != NULL;
  if (reason != NULL) result.content = (struct slight_string){(char *)reason, strlen(reason)};
  return &result;
}

/* The result of a handler, which begins as status 200 without headers or body. */
static struct slight_response slight_response_;

/* Defines the handler that is exported under `name` (with - where routes say _): its body follows,
 * with `request` and `response`. */
#define SLIGHT_HANDLER(name, function)                                                      \
  static void function(const struct slight_request *, struct slight_response *);            \
  SLIGHT_EXPORT(name)                                                                       \
  const struct slight_response *function##_export(                                          \
      uint32_t method, char *uri, size_t uri_size, struct slight_pair *headers,             \
      size_t header_count, struct slight_pair *params, size_t param_count,                  \
      uint32_t body_present, char *body, size_t body_size) {                                \
    const struct slight_request request = {                                                 \
        .method = (enum slight_method)method,                                               \
        .uri = {uri, uri_size},                                                             \
        .headers = {headers, header_count},                                                 \
        .params = {params, param_count},                                                    \
        .body = {body_present ? body : "", body_present ? body_size : 0},                   \
    };                                                                                      \
    slight_response_ = (struct slight_response){.status = 200};                             \
    __wasm_call_ctors();                                                                    \
    function(&request, &slight_response_);                                                  \
    __wasm_call_dtors();                                                                    \
    return &slight_response_;                                                               \
  }                                                                                         \
  static void function(__attribute__((unused)) const struct slight_request *request,        \
                       struct slight_response *response)

#endif
