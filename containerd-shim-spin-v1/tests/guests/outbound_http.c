/* Makes the request that its own request describes, and answers with what came of it.
 *
 * The header x-abi says by which interface: v1 (Spin 1.0) or v1.5; x-url and x-method say what to
 * ask for; each header x-send-NAME is sent as NAME. The body goes along. The answer is "error N" or
 * the status, the headers in lines, an empty line and the body. */
#include "host.h"

typedef uint32_t pair[4]; /* pointer and length of name and value */

#define REQUEST_ARGUMENTS                                                                      \
  int method, const char *uri, size_t uri_size, const pair *headers, size_t header_count,      \
      const pair *params, size_t param_count, int has_body, const char *body, size_t body_size, \
      union host_result *result

HOST_IMPORT("wasi-outbound-http", "request") void request_v1(REQUEST_ARGUMENTS);
HOST_IMPORT("fermyon:spin/http", "send-request") void request_v1_5(REQUEST_ARGUMENTS);

SPIN_EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  return spin_realloc(old, old_size, align, new_size);
}

static const char *or_empty(const char *text) { return text == NULL ? "" : text; }

static void append(struct spin_response *response, struct spin_string part) {
  struct spin_string *body = &response->body.content;
  body->data = realloc(body->data, body->size + part.size);
  memcpy(body->data + body->size, part.data, part.size);
  body->size += part.size;
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  static const char *const methods[] = {"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"};
  const char *wanted = or_empty(spin_request_header(request, "x-method"));
  int method = 0;
  for (int i = 0; i < 7; i++)
    if (strcmp(wanted, methods[i]) == 0) method = i;

  pair *headers = calloc(request->header_count + 1, sizeof *headers);
  size_t count = 0;
  for (size_t i = 0; i < request->header_count; i++) {
    struct spin_string name = request->headers[i].name, value = request->headers[i].value;
    if (strncmp(name.data, "x-send-", 7) != 0) continue;
    uint32_t *out = headers[count++];
    out[0] = (uintptr_t)(name.data + 7);
    out[1] = name.size - 7;
    out[2] = (uintptr_t)value.data;
    out[3] = value.size;
  }

  const char *url = or_empty(spin_request_header(request, "x-url"));
  const char *abi = or_empty(spin_request_header(request, "x-abi"));
  union host_result result;
  (strcmp(abi, "v1.5") == 0 ? request_v1_5 : request_v1)(
      method, url, strlen(url), headers, count, NULL, 0, request->body.size > 0,
      request->body.data, request->body.size, &result);

  /* ok: status u16 at 4; headers: tag at 8, list at 12; body: tag at 20, list at 24 */
  if (result.bytes[0] != 0) {
    host_say(response, "error %d", result.bytes[4]);
    return;
  }
  host_say(response, "%d\n", result.bytes[4] | result.bytes[5] << 8);
  struct spin_string list = host_string(result.bytes + 12);
  for (size_t i = 0; result.bytes[8] == 1 && i < list.size; i++) {
    struct spin_string name = host_string(list.data + 16 * i);
    struct spin_string value = host_string(list.data + 16 * i + 8);
    host_say(response, "%.*s: %.*s\n", HOST_TEXT(name), HOST_TEXT(value));
  }
  host_say(response, "\n");
  if (result.bytes[20] == 1) append(response, host_string(result.bytes + 24));
}
