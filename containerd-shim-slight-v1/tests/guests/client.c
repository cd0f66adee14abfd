/* Makes the request that the path, x-url, x-h and the body say, and answers with its response. */
#include <stdio.h>

#include "slight.h"

struct answer {
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
      uint8_t code;
      struct slight_string text;
    } error;
  };
};

SLIGHT_IMPORT("http-client", "request")
void client_request(uint32_t method, SLIGHT_TEXT, const struct slight_pair *, size_t,
                    const struct slight_pair *, size_t, uint32_t has_body, SLIGHT_TEXT,
                    struct answer *);

const char *slight_init(void) {
  struct slight_result result;
  slight_router_new_(&result);
  SLIGHT_ROUTE(&result, put, "/:method", "call");
  if (!result.is_error) slight_serve_(SLIGHT_STRING("127.0.0.1:0"), result.handle, &result);
  return result.is_error ? result.error.text.data : NULL;
}

SLIGHT_HANDLER("call", call) {
  static char buffer[1024];
  static struct answer answer;
  static struct slight_pair headers[3];
  const char *url = "";
  size_t count = 0;
  for (size_t i = 0; i < request->headers.count; i++) {
    const struct slight_pair *pair = &request->headers.items[i];
    if (strcmp(pair->name.data, "x-url") == 0) url = pair->value.data;
    if (count < 3 && (strcmp(pair->name.data, "x-h") == 0 ||
                      strcmp(pair->name.data, "authorization") == 0))
      headers[count++] = *pair;
  }
  client_request((uint32_t)atoi(slight_param(request, "method")), SLIGHT_STRING(url), headers,
                 count, NULL, 0, request->body.size > 0, request->body.data, request->body.size,
                 &answer);
  if (answer.is_error) {
    snprintf(buffer, sizeof buffer, "%d %s", answer.error.code, answer.error.text.data);
    slight_answer(response, 418, buffer, strlen(buffer));
    return;
  }
  slight_answer(response, answer.status, answer.body.content.data, answer.body.content.size);
  response->headers.present = answer.headers.present;
  response->headers.list = answer.headers.list;
}
