/* A component that says back what it was given, for tables of requests:
 *
 *   NAME                         of its environment, which tells components of one module apart
 *   METHOD URI
 *   a line for each header, an empty one, and the body
 */
#include "host.h"

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  static const char *const methods[] = {"GET",   "POST", "PUT",    "DELETE",
                                        "PATCH", "HEAD", "OPTIONS"};
  const char *name = getenv("NAME");
  host_say(response, "%s\n%s %s\n", name != NULL ? name : "",
           request->method <= SPIN_OPTIONS ? methods[request->method] : "?", request->uri.data);
  for (size_t i = 0; i < request->header_count; i++)
    host_say(response, "%s: %s\n", request->headers[i].name.data, request->headers[i].value.data);
  host_say(response, "\n%.*s", HOST_TEXT(request->body));
}
