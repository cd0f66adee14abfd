/* Asks for the variable that the path names: /v1/NAME by Spin 1.0's interface, /v1.5/NAME by that
 * of 1.4 and 1.5, /v2/NAME by that of 2.0. */
#include "host.h"

HOST_IMPORT("spin-config", "get-config")
void config_get(const char *name, size_t size, union host_result *result);
HOST_IMPORT("fermyon:spin/config", "get-config")
void config_get_1_5(const char *name, size_t size, union host_result *result);
HOST_IMPORT("fermyon:spin/variables@2.0.0", "get")
void variables_get(const char *name, size_t size, union host_result *result);

SPIN_EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  return spin_realloc(old, old_size, align, new_size);
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  union host_result result;
  char *slash = strchr(request->uri.data + 1, '/');
  if (slash == NULL) abort();
  *slash = '\0';
  const char *version = request->uri.data + 1, *name = slash + 1;
  size_t size = strlen(name);
  if (strcmp(version, "v1") == 0)
    config_get(name, size, &result);
  else if (strcmp(version, "v1.5") == 0)
    config_get_1_5(name, size, &result);
  else
    variables_get(name, size, &result);
  /* ok: a string at 4; error: its case at 4, a string at 8 */
  if (result.bytes[0] == 0) {
    struct spin_string value = host_string(result.bytes + 4);
    host_say(response, "ok %.*s", HOST_TEXT(value));
  } else {
    struct spin_string reason = host_string(result.bytes + 8);
    host_say(response, "error %d %.*s", result.bytes[4], HOST_TEXT(reason));
  }
}
