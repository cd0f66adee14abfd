/* Takes and gives back locks as the path says, by the interfaces of each generation. */
#include <stdio.h>

#include "slight.h"

#define INTERFACE(prefix, module, resource)                                          \
  SLIGHT_IMPORT(module, resource "::open")                                           \
  void prefix##_open(SLIGHT_TEXT, struct slight_result *);                           \
  SLIGHT_IMPORT(module, resource "::lock")                                           \
  void prefix##_lock(uint32_t, SLIGHT_TEXT, struct slight_result *);                 \
  SLIGHT_IMPORT(module, resource "::lock-with-time-to-live")                         \
  void prefix##_lock_for(uint32_t, SLIGHT_TEXT, int64_t, struct slight_result *);    \
  SLIGHT_IMPORT(module, resource "::unlock")                                         \
  void prefix##_unlock(uint32_t, SLIGHT_TEXT, struct slight_result *);               \
  SLIGHT_IMPORT("canonical_abi", "resource_drop_" resource)                          \
  void prefix##_drop(uint32_t);                                                      \
                                                                                     \
  static void prefix##_call(const char *call, const char *seconds, const char *text, \
                            size_t size, struct slight_result *result) {             \
    prefix##_open(SLIGHT_STRING("locks"), result);                                   \
    if (result->is_error) return;                                                    \
    uint32_t handle = result->handle;                                                \
    if (strcmp(call, "unlock") == 0)                                                 \
      prefix##_unlock(handle, text, size, result);                                   \
    else if (strcmp(seconds, "-") == 0)                                              \
      prefix##_lock(handle, text, size, result);                                     \
    else                                                                             \
      prefix##_lock_for(handle, text, size, atoll(seconds), result);                 \
    prefix##_drop(handle);                                                           \
  }

INTERFACE(current, "distributed-locking", "distributed-locking")
INTERFACE(old, "lockd", "lockd")

const char *slight_init(void) {
  struct slight_result result;
  slight_router_new_(&result);
  SLIGHT_ROUTE(&result, put, "/:generation/:call/:seconds", "call");
  if (!result.is_error) slight_serve_(SLIGHT_STRING("127.0.0.1:0"), result.handle, &result);
  return result.is_error ? result.error.text.data : NULL;
}

SLIGHT_HANDLER("call", call) {
  static char buffer[1024];
  struct slight_result result;
  const char *what = slight_param(request, "call"), *seconds = slight_param(request, "seconds");
  if (strcmp(slight_param(request, "generation"), "old") == 0)
    old_call(what, seconds, request->body.data, request->body.size, &result);
  else
    current_call(what, seconds, request->body.data, request->body.size, &result);
  if (result.is_error) {
    snprintf(buffer, sizeof buffer, "%d %s", result.error.code, result.error.text.data);
    slight_answer(response, 418, buffer, strlen(buffer));
  } else if (strcmp(what, "unlock") == 0) {
    response->status = 204;
  } else {
    slight_answer(response, 200, result.content.data, result.content.size);
  }
}
