/* Makes the request that x-method, x-url, x-h and the body say, and answers with its response. */
#include <stdbool.h>
#include <stdint.h>

#include "worker.h"

struct text {
  char *data;
  uint32_t size;
};

struct pair {
  struct text name, value;
};

struct answer {
  uint8_t is_error;
  union {
    struct {
      uint8_t has_body;
      struct text body;
      struct pair *headers;
      uint32_t count;
      uint16_t status;
    };
    struct {
      uint8_t code;
      struct text message;
    } error;
  };
};

__attribute__((import_module("http"), import_name("send-http-request"))) void send_request(
    uint32_t has_body, const char *, uint32_t, const struct pair *, uint32_t, uint32_t method,
    const struct pair *params, uint32_t, const char *uri, uint32_t, struct answer *);

__attribute__((export_name("canonical_abi_realloc"))) void *allocate(void *old, size_t old_size,
                                                                     size_t align, size_t size) {
  (void)old_size, (void)align;
  return realloc(old, size > 0 ? size : 1);
}

int main(void) {
  static char url[4096], method[16], header[4096];
  static struct answer answer;
  char *request = worker_request();
  const char *headers = worker_member(request, "headers");
  size_t room = strlen(request) + 1;
  char *body = malloc(room);
  size_t size = worker_string(worker_member(request, "body"), body, room);
  size_t url_size = worker_string(worker_member(headers, "x-url"), url, sizeof url);
  worker_string(worker_member(headers, "x-method"), method, sizeof method);
  size_t header_size = worker_string(worker_member(headers, "x-h"), header, sizeof header);
  struct pair pairs[] = {{{"x-h", 3}, {header, header_size}},
                         {{"authorization", 13}, {"secret", 6}}};
  send_request(size > 0, body, size, pairs, header_size > 0 ? 2 : 0, (uint32_t)atoi(method), NULL,
               0, url, url_size, &answer);
  printf("{\"data\":\"");
  if (answer.is_error) {
    printf("%d ", answer.error.code);
    worker_put(answer.error.message.data, answer.error.message.size);
    printf("\",\"headers\":{},\"status\":418,\"kv\":{}}");
    return 0;
  }
  worker_put(answer.body.data, answer.body.size);
  printf("\",\"headers\":{\"content-type\":\"text/plain\"");
  for (uint32_t i = 0; i < answer.count; i++) {
    printf(",\"x-got-");
    worker_put(answer.headers[i].name.data, answer.headers[i].name.size);
    printf("\":\"");
    worker_put(answer.headers[i].value.data, answer.headers[i].value.size);
    putchar('"');
  }
  printf("},\"status\":%d,\"kv\":{}}", answer.status);
  return 0;
}
