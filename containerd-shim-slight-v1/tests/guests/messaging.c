/* Publishes, subscribes and receives as the path says, by the interfaces of each generation. */
#include <stdio.h>
#include <unistd.h>

#include "slight.h"

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
SLIGHT_IMPORT("pubsub", "pub::open")
void old_pub_open(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("pubsub", "pub::publish")
void old_pub_publish(uint32_t, SLIGHT_TEXT, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("pubsub", "sub::open")
void old_sub_open(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("pubsub", "sub::subscribe")
void old_sub_subscribe(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("pubsub", "sub::receive")
void old_sub_receive(uint32_t, struct slight_result *);
SLIGHT_IMPORT("mq", "mq::open")
void mq_open(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("mq", "mq::send")
void mq_send(uint32_t, SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("mq", "mq::receive")
void mq_receive(uint32_t, struct slight_result *);
SLIGHT_IMPORT("canonical_abi", "resource_drop_pub")
void pub_drop(uint32_t);
SLIGHT_IMPORT("canonical_abi", "resource_drop_sub")
void sub_drop(uint32_t);
SLIGHT_IMPORT("canonical_abi", "resource_drop_mq")
void mq_drop(uint32_t);

const char *slight_init(void) {
  struct slight_result result;
  slight_router_new_(&result);
  SLIGHT_ROUTE(&result, put, "/topic/:name/*", "publish");
  SLIGHT_ROUTE(&result, post, "/topic/:name/*", "subscribe");
  SLIGHT_ROUTE(&result, get, "/subscription/:name/*", "receive");
  SLIGHT_ROUTE(&result, get, "/held/:name/*", "hold");
  SLIGHT_ROUTE(&result, get, "/failing/:name/*", "fail");
  SLIGHT_ROUTE(&result, put, "/old/:name/*", "old");
  SLIGHT_ROUTE(&result, put, "/queue/:name", "queue_send");
  SLIGHT_ROUTE(&result, get, "/queue/:name", "queue_receive");
  SLIGHT_ROUTE(&result, get, "/failing-queue/:name", "queue_fail");
  if (!result.is_error) slight_serve_(SLIGHT_STRING("127.0.0.1:0"), result.handle, &result);
  return result.is_error ? result.error.text.data : NULL;
}

/* An error of the host's is answered with 418, its code and its text. */
static bool refuse(struct slight_response *response, const struct slight_result *result) {
  static char buffer[1024];
  if (!result->is_error) return false;
  snprintf(buffer, sizeof buffer, "%d %s", result->error.code, result->error.text.data);
  slight_answer(response, 418, buffer, strlen(buffer));
  return true;
}

static void answer(struct slight_response *response, const struct slight_result *result) {
  if (!refuse(response, result))
    slight_answer(response, 200, result->content.data, result->content.size);
}

#define NAME SLIGHT_STRING(slight_param(request, "name"))
#define TOPIC SLIGHT_STRING(slight_param(request, "*"))
#define BODY request->body.data, request->body.size

SLIGHT_HANDLER("publish", publish) {
  struct slight_result result;
  pub_open(NAME, &result);
  if (refuse(response, &result)) return;
  uint32_t handle = result.handle;
  pub_publish(handle, BODY, TOPIC, &result);
  if (!refuse(response, &result)) response->status = 204;
  pub_drop(handle);
}

SLIGHT_HANDLER("subscribe", subscribe) {
  struct slight_result result;
  sub_open(NAME, &result);
  if (refuse(response, &result)) return;
  sub_subscribe(result.handle, TOPIC, &result);
  answer(response, &result);
}

SLIGHT_HANDLER("receive", receive) {
  struct slight_result result;
  sub_open(NAME, &result);
  if (refuse(response, &result)) return;
  uint32_t handle = result.handle;
  sub_receive(handle, SLIGHT_STRING(slight_param(request, "*")), &result);
  answer(response, &result);
  sub_drop(handle);
}

/* Says what it receives, and keeps it without an end. */
SLIGHT_HANDLER("hold", hold) {
  struct slight_result result;
  sub_open(NAME, &result);
  if (refuse(response, &result)) return;
  uint32_t handle = result.handle;
  do {
    sub_receive(handle, SLIGHT_STRING(slight_param(request, "*")), &result);
    if (refuse(response, &result)) return;
  } while (result.content.size == 0);
  printf("holding %s\n", result.content.data);
  fflush(stdout);
  for (;;) sleep(3600);
}

/* Says what it receives, and fails. */
SLIGHT_HANDLER("fail", fail) {
  struct slight_result result;
  sub_open(NAME, &result);
  if (refuse(response, &result)) return;
  sub_receive(result.handle, SLIGHT_STRING(slight_param(request, "*")), &result);
  if (refuse(response, &result) || result.content.size == 0) return;
  printf("failing with %s\n", result.content.data);
  fflush(stdout);
  __builtin_trap();
}

/* Receives what it publishes. */
SLIGHT_HANDLER("old", old) {
  struct slight_result result;
  old_sub_open(NAME, &result);
  if (refuse(response, &result)) return;
  uint32_t sub = result.handle;
  if (request->body.size > 0) {
    old_sub_subscribe(sub, TOPIC, &result);
    if (refuse(response, &result)) return;
    old_pub_open(NAME, &result);
    if (refuse(response, &result)) return;
    old_pub_publish(result.handle, BODY, TOPIC, &result);
    if (refuse(response, &result)) return;
  }
  old_sub_receive(sub, &result);
  answer(response, &result);
}

SLIGHT_HANDLER("queue-send", queue_send) {
  struct slight_result result;
  mq_open(NAME, &result);
  if (refuse(response, &result)) return;
  mq_send(result.handle, BODY, &result);
  if (!refuse(response, &result)) response->status = 204;
}

SLIGHT_HANDLER("queue-receive", queue_receive) {
  struct slight_result result;
  mq_open(NAME, &result);
  if (refuse(response, &result)) return;
  uint32_t handle = result.handle;
  mq_receive(handle, &result);
  answer(response, &result);
  mq_drop(handle);
}

SLIGHT_HANDLER("queue-fail", queue_fail) {
  struct slight_result result;
  mq_open(NAME, &result);
  if (refuse(response, &result)) return;
  mq_receive(result.handle, &result);
  if (!refuse(response, &result)) __builtin_trap();
}
