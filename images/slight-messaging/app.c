/* Publishes messages and receives them: POST /publish, GET /receive. */
#include <stdio.h>

#include "slight.h"

#define TOPIC SLIGHT_STRING("messages")
/* What slightfile.toml calls its capabilities. */
#define BOX SLIGHT_STRING("my-messages")
#define STATE SLIGHT_STRING("my-state")
#define TOKEN SLIGHT_STRING("SUBSCRIPTION")

SLIGHT_IMPORT("messaging", "pub::open")
void pub_open(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("messaging", "pub::publish")
void pub_publish(uint32_t, SLIGHT_TEXT, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("messaging", "sub::open")
void sub_open(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("messaging", "sub::subscribe")
void sub_subscribe(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("messaging", "sub::receive")
void sub_receive(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("configs", "configs::open")
void configs_open(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("configs", "configs::get")
void configs_get(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("configs", "configs::set")
void configs_set(uint32_t, SLIGHT_TEXT, SLIGHT_TEXT, struct slight_result *);

/* Subscribes once, and leaves the token where the handlers find it: each of them is a new instance. */
static void subscribe(struct slight_result *result) {
  sub_open(BOX, result);
  if (!result->is_error) sub_subscribe(result->handle, TOPIC, result);
  if (result->is_error) return;
  struct slight_string token = result->content;
  configs_open(STATE, result);
  if (!result->is_error)
    configs_set(result->handle, TOKEN, token.data, token.size, result);
}

const char *slight_init(void) {
  struct slight_result result;
  subscribe(&result);
  if (result.is_error) return result.error.text.data;
  slight_router_new_(&result);
  SLIGHT_ROUTE(&result, post, "/publish", "handle_publish");
  SLIGHT_ROUTE(&result, get, "/receive", "handle_receive");
  if (!result.is_error) slight_serve_(SLIGHT_STRING("0.0.0.0:3000"), result.handle, &result);
  if (result.is_error) return result.error.text.data;
  puts("Server is running on port 3000");
  return NULL;
}

SLIGHT_HANDLER("handle-publish", publish) {
  struct slight_result result;
  pub_open(BOX, &result);
  if (!result.is_error)
    pub_publish(result.handle, request->body.data, request->body.size, TOPIC, &result);
  if (result.is_error)
    slight_fail(response, SLIGHT_UNEXPECTED_ERROR, result.error.text);
  else
    response->status = 204;
}

SLIGHT_HANDLER("handle-receive", receive) {
  struct slight_result result;
  struct slight_string token = {0};
  configs_open(STATE, &result);
  if (!result.is_error) configs_get(result.handle, TOKEN, &result);
  if (!result.is_error) {
    token = result.content;
    sub_open(BOX, &result);
  }
  if (!result.is_error) sub_receive(result.handle, token.data, token.size, &result);
  if (result.is_error)
    slight_fail(response, SLIGHT_UNEXPECTED_ERROR, result.error.text);
  else if (result.content.size == 0)
    response->status = 204; /* no message came */
  else
    slight_answer(response, 200, result.content.data, result.content.size);
}
