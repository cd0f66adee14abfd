/* Says hello, and keeps a value: PUT /set, GET /get. */
#include <stdio.h>

#include "slight.h"

static const char *const methods[] = {"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"};

const char *slight_init(void) {
  struct slight_result result;
  slight_router_new_(&result);
  SLIGHT_ROUTE(&result, get, "/hello", "handle_hello");
  SLIGHT_ROUTE(&result, get, "/get", "handle_get");
  SLIGHT_ROUTE(&result, put, "/set", "handle_set");
  SLIGHT_ROUTE(&result, post, "/upload", "upload");
  SLIGHT_ROUTE(&result, delete, "/delete-file", "delete_file_handler");
  if (!result.is_error) slight_serve_(SLIGHT_STRING("0.0.0.0:3000"), result.handle, &result);
  if (result.is_error) return result.error.text.data;
  puts("Server is running on port 3000");
  return NULL;
}

SLIGHT_HANDLER("handle-hello", hello) {
  printf("I just got a request uri: %s method: %s\n", request->uri.data,
         methods[request->method]);
  slight_echo_headers(request, response);
  slight_answer(response, 200, SLIGHT_STRING("hello world!"));
}

SLIGHT_HANDLER("handle-get", get) {
  struct slight_result result;
  slight_keyvalue_open_(SLIGHT_STRING("my-container"), &result);
  if (!result.is_error) slight_keyvalue_get_(result.handle, SLIGHT_STRING("key"), &result);
  if (!result.is_error) {
    slight_echo_headers(request, response);
    slight_answer(response, 200, result.content.data, result.content.size);
  } else if (result.error.code == SLIGHT_KEY_NOT_FOUND) {
    slight_echo_headers(request, response);
    slight_answer(response, 404, SLIGHT_STRING("Key not found"));
  } else {
    slight_fail(response, SLIGHT_UNEXPECTED_ERROR, result.error.text);
  }
}

SLIGHT_HANDLER("handle-set", set) {
  struct slight_result result;
  slight_keyvalue_open_(SLIGHT_STRING("my-container"), &result);
  if (!result.is_error)
    slight_keyvalue_set_(result.handle, SLIGHT_STRING("key"), request->body.data,
                         request->body.size, &result);
  if (result.is_error) {
    slight_fail(response, SLIGHT_UNEXPECTED_ERROR, result.error.text);
    return;
  }
  slight_echo_headers(request, response);
  response->status = 204;
}

SLIGHT_HANDLER("upload", upload) {
  slight_echo_headers(request, response);
  slight_answer(response, 200, request->body.data, request->body.size);
}

SLIGHT_HANDLER("delete-file-handler", delete_file) {
  slight_echo_headers(request, response);
  slight_answer(response, 200, request->body.data, request->body.size);
}
