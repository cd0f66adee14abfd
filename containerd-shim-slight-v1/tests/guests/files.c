/* Shows the file that the path names, and says whether one can be written. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "slight.h"

const char *slight_init(void) {
  struct slight_result result;
  slight_router_new_(&result);
  SLIGHT_ROUTE(&result, get, "/*", "show");
  SLIGHT_ROUTE(&result, put, "/*", "write");
  if (!result.is_error) slight_serve_(SLIGHT_STRING("127.0.0.1:0"), result.handle, &result);
  return result.is_error ? result.error.text.data : NULL;
}

static const char *path_of(const struct slight_request *request) {
  return slight_param(request, "*");
}

static void fail(struct slight_response *response) {
  const char *text = strerror(errno);
  slight_answer(response, errno == ENOENT ? 404 : 403, text, strlen(text));
}

SLIGHT_HANDLER("show", show) {
  static char content[4096];
  FILE *file = fopen(path_of(request), "r");
  if (file == NULL) {
    fail(response);
    return;
  }
  slight_answer(response, 200, content, fread(content, 1, sizeof content, file));
}

SLIGHT_HANDLER("write", write) {
  FILE *file = fopen(path_of(request), "w");
  if (file == NULL)
    fail(response);
  else
    slight_answer(response, 200, SLIGHT_STRING("written"));
}
