/* Does what the path says. How it sets the app up is said by the variable SETUP. */
#include <stdio.h>
#include <time.h>

#include "slight.h"

SLIGHT_IMPORT("configs", "configs::open")
void configs_open(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("configs", "configs::get")
void configs_get(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("configs", "configs::set")
void configs_set(uint32_t, SLIGHT_TEXT, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("canonical_abi", "resource_drop_keyvalue")
void keyvalue_drop(uint32_t);
SLIGHT_IMPORT("canonical_abi", "resource_clone_keyvalue")
uint32_t keyvalue_clone(uint32_t);
SLIGHT_IMPORT("canonical_abi", "resource_drop_router")
void router_drop(uint32_t);

static int counter;

static void serve(const char *address, struct slight_result *result) {
  slight_router_new_with_base_(SLIGHT_STRING("/base"), result);
  SLIGHT_ROUTE(result, get, "/hello", "echo");
  uint32_t with_base = result->handle;
  slight_serve_(SLIGHT_STRING(address), with_base, result);
  router_drop(with_base);
}

const char *slight_init(void) {
  struct slight_result result;
  const char *setup = "", *address = "127.0.0.1:0";
  configs_open(SLIGHT_STRING("env"), &result);
  if (!result.is_error) {
    uint32_t handle = result.handle;
    configs_get(handle, SLIGHT_STRING("ADDRESS"), &result);
    if (!result.is_error) address = result.content.data;
    configs_get(handle, SLIGHT_STRING("SETUP"), &result);
    if (!result.is_error) setup = result.content.data;
  }
  if (strcmp(setup, "error") == 0) return "no luck today";
  if (strcmp(setup, "trap") == 0) abort();
  if (strcmp(setup, "nothing") == 0) return NULL;
  if (strcmp(setup, "forever") == 0)
    for (volatile int i = 0;; i++) continue;

  slight_router_new_(&result);
  SLIGHT_ROUTE(&result, get, "/echo", "echo");
  SLIGHT_ROUTE(&result, put, "/echo", "echo");
  SLIGHT_ROUTE(&result, post, "/echo", "echo");
  SLIGHT_ROUTE(&result, delete, "/echo", "echo");
  SLIGHT_ROUTE(&result, get, "/params/:first/*", "params");
  SLIGHT_ROUTE(&result, get, "/counter", "count");
  SLIGHT_ROUTE(&result, get, "/kv/:store", "kv_keys");
  SLIGHT_ROUTE(&result, get, "/kv/:store/*", "kv_get");
  SLIGHT_ROUTE(&result, put, "/kv/:store/*", "kv_set");
  SLIGHT_ROUTE(&result, delete, "/kv/:store/*", "kv_delete");
  SLIGHT_ROUTE(&result, get, "/handles/:what", "handles");
  SLIGHT_ROUTE(&result, get, "/config/:key", "config_get");
  SLIGHT_ROUTE(&result, put, "/config/:key", "config_set");
  SLIGHT_ROUTE(&result, get, "/fail/:what", "fail");
  SLIGHT_ROUTE(&result, get, "/status/:code", "status");
  SLIGHT_ROUTE(&result, get, "/sleep/:ms", "pause");
  SLIGHT_ROUTE(&result, get, "/serve", "serve_now");
  SLIGHT_ROUTE(&result, get, "/missing", "not_exported");
  SLIGHT_ROUTE(&result, get, "/other", "canonical_abi_free");
  uint32_t router = result.handle;
  if (!result.is_error) slight_serve_(SLIGHT_STRING(address), router, &result);
  if (result.is_error) return result.error.text.data;
  uint32_t server = result.handle;
  if (strcmp(setup, "two") == 0) {
    serve("127.0.0.1:0", &result);
    if (result.is_error) return result.error.text.data;
  }
  if (strcmp(setup, "stop") == 0) {
    slight_stop_(server, &result);
    if (result.is_error) return result.error.text.data;
  }
  if (strcmp(setup, "say") == 0) {
    puts("set up");
    fputs("on stderr\n", stderr);
  }
  return NULL;
}

static struct slight_string text(const char *content) {
  return (struct slight_string){(char *)content, strlen(content)};
}

static void answer_text(struct slight_response *response, int status, const char *content) {
  slight_answer(response, status, content, strlen(content));
}

/* An error of the host's is answered with 418, its code and its text. */
static bool refuse(struct slight_response *response, const struct slight_result *result) {
  static char buffer[1024];
  if (!result->is_error) return false;
  snprintf(buffer, sizeof buffer, "%d %s", result->error.code, result->error.text.data);
  answer_text(response, 418, buffer);
  return true;
}

SLIGHT_HANDLER("echo", echo) {
  static char line[4096];
  snprintf(line, sizeof line, "%d %s", request->method, request->uri.data);
  size_t count = request->headers.count;
  struct slight_pair *items = calloc(count + 3, sizeof *items);
  memcpy(items, request->headers.items, count * sizeof *items);
  items[count] = (struct slight_pair){text("x-line"), text(line)};
  items[count + 1] = (struct slight_pair){text("Set-Cookie"), text("a=1")};
  items[count + 2] = (struct slight_pair){text("set-cookie"), text("b=2")};
  response->headers.present = true;
  response->headers.list = (struct slight_pairs){items, count + 3};
  slight_answer(response, 200, request->body.data, request->body.size);
}

SLIGHT_HANDLER("params", list_params) {
  static char list[4096];
  for (size_t i = 0; i < request->params.count; i++) {
    const struct slight_pair *pair = &request->params.items[i];
    size_t at = strlen(list);
    snprintf(list + at, sizeof list - at, "%s=%s\n", pair->name.data, pair->value.data);
  }
  answer_text(response, 200, list);
}

SLIGHT_HANDLER("count", count) {
  static char buffer[16];
  snprintf(buffer, sizeof buffer, "%d", ++counter);
  answer_text(response, 200, buffer);
}

static bool open_store(const struct slight_request *request, struct slight_response *response,
                       struct slight_result *result) {
  slight_keyvalue_open_(SLIGHT_STRING(slight_param(request, "store")), result);
  return !refuse(response, result);
}

SLIGHT_HANDLER("kv-get", kv_get) {
  struct slight_result result;
  if (!open_store(request, response, &result)) return;
  slight_keyvalue_get_(result.handle, SLIGHT_STRING(slight_param(request, "*")), &result);
  if (refuse(response, &result)) return;
  slight_answer(response, 200, result.content.data, result.content.size);
}

SLIGHT_HANDLER("kv-set", kv_set) {
  struct slight_result result;
  if (!open_store(request, response, &result)) return;
  slight_keyvalue_set_(result.handle, SLIGHT_STRING(slight_param(request, "*")),
                       request->body.data, request->body.size, &result);
  if (!refuse(response, &result)) response->status = 204;
}

SLIGHT_HANDLER("kv-delete", kv_delete) {
  struct slight_result result;
  if (!open_store(request, response, &result)) return;
  slight_keyvalue_delete_(result.handle, SLIGHT_STRING(slight_param(request, "*")), &result);
  if (!refuse(response, &result)) response->status = 204;
}

SLIGHT_HANDLER("kv-keys", kv_keys) {
  struct slight_result result;
  if (!open_store(request, response, &result)) return;
  slight_keyvalue_keys_(result.handle, &result);
  if (refuse(response, &result)) return;
  const struct slight_string *keys = (const struct slight_string *)result.content.data;
  size_t size = 0;
  for (size_t i = 0; i < result.content.size; i++) size += keys[i].size + 1;
  char *list = malloc(size + 1), *at = list;
  for (size_t i = 0; i < result.content.size; i++) at += sprintf(at, "%s\n", keys[i].data);
  slight_answer(response, 200, list, size);
}

SLIGHT_HANDLER("handles", handles) {
  struct slight_result result;
  const char *what = slight_param(request, "what");
  slight_keyvalue_open_(SLIGHT_STRING("store"), &result);
  if (refuse(response, &result)) return;
  uint32_t handle = result.handle;
  if (strcmp(what, "clone") == 0) {
    uint32_t other = keyvalue_clone(handle);
    keyvalue_drop(handle);
    handle = other;
  } else if (strcmp(what, "dropped") == 0) {
    keyvalue_drop(handle);
  } else if (strcmp(what, "twice") == 0) {
    keyvalue_drop(handle);
    keyvalue_drop(handle);
  } else if (strcmp(what, "router") == 0) {
    slight_router_new_(&result);
    handle = result.handle;
  } else if (strcmp(what, "many") == 0) {
    while (!result.is_error) slight_keyvalue_open_(SLIGHT_STRING("store"), &result);
    refuse(response, &result);
    return;
  }
  slight_keyvalue_set_(handle, SLIGHT_STRING("key"), SLIGHT_STRING("value"), &result);
  if (!refuse(response, &result)) answer_text(response, 200, "ok");
}

SLIGHT_HANDLER("config-get", config_get) {
  struct slight_result result;
  configs_open(SLIGHT_STRING("env"), &result);
  if (refuse(response, &result)) return;
  configs_get(result.handle, SLIGHT_STRING(slight_param(request, "key")), &result);
  if (refuse(response, &result)) return;
  slight_answer(response, 200, result.content.data, result.content.size);
}

SLIGHT_HANDLER("config-set", config_set) {
  struct slight_result result;
  configs_open(SLIGHT_STRING("env"), &result);
  if (refuse(response, &result)) return;
  configs_set(result.handle, SLIGHT_STRING(slight_param(request, "key")), request->body.data,
              request->body.size, &result);
  if (!refuse(response, &result)) response->status = 204;
}

SLIGHT_HANDLER("fail", fail) {
  const char *what = slight_param(request, "what");
  if (strcmp(what, "trap") == 0) abort();
  if (strcmp(what, "exit") == 0) exit(3);
  if (strcmp(what, "forever") == 0)
    for (volatile int i = 0;; i++) continue;
  if (strcmp(what, "header") == 0) {
    static struct slight_pair bad;
    bad = (struct slight_pair){text("x-a"), text("b\r\nx-c: d")};
    response->headers.present = true;
    response->headers.list = (struct slight_pairs){&bad, 1};
  } else if (strcmp(what, "pointer") == 0) {
    slight_answer(response, 200, (void *)0x7fff0000, 100);
  } else if (strcmp(what, "case") == 0) {
    slight_fail(response, 77, text("of no case"));
  } else if (strcmp(what, "tag") == 0) {
    response->is_error = 2;
  } else if (strcmp(what, "timeout") == 0) {
    slight_fail(response, SLIGHT_TIMEOUT_ERROR, text("too late"));
  } else if (strcmp(what, "unexpected") == 0) {
    slight_fail(response, SLIGHT_UNEXPECTED_ERROR, text("a secret reason"));
  } else {
    slight_fail(response, SLIGHT_STATUS_ERROR, (struct slight_string){0});
    response->error.status = (uint16_t)atoi(what);
  }
}

SLIGHT_HANDLER("status", status) {
  answer_text(response, atoi(slight_param(request, "code")), "body");
}

SLIGHT_HANDLER("pause", pause_) {
  long ms = atol(slight_param(request, "ms"));
  nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
  answer_text(response, 200, slight_param(request, "ms"));
}

SLIGHT_HANDLER("serve-now", serve_now) {
  struct slight_result result;
  serve("127.0.0.1:0", &result);
  if (!refuse(response, &result)) answer_text(response, 200, "it serves");
}
